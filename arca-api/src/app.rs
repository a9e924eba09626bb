// SPDX-License-Identifier: Apache-2.0
//! Makes every part of arca-api, in reading order, and serves until shutdown.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use anyhow::{Context as _, anyhow};
use arca_daemon::{
    config::Config,
    exit::{Failure, Fatal},
    paths::Paths,
    services::{self, Listening},
    shutdown::Shutdown,
};
use arca_proto::listen::Listener;
use nix::unistd::Group;
use sha2::{Digest, Sha256};
use tokio::net::UnixListener;

use crate::{
    containers::{Record, adopt, exec::Execs, index::Index, remove},
    engine::Engine,
    events::Bus,
    http::server,
    images, machines, netd, routes,
    store::{Documents, Store},
    tenants::Tenants,
    volumes::{Volume, Volumes},
};

/// Serves the Docker Engine API.
///
/// # Errors
/// A [`Fatal`] or another error in one line; nothing listens then.
pub async fn serve(config: &Config, shutdown: Shutdown) -> anyhow::Result<()> {
    // The socket first: it tells a second engine apart before anything of the first is touched.
    let (listener, inherited) = listen(&config.paths)?;
    let machines = Arc::new(machines::RealMachines::new(config)?);
    let engine_netd = netd::connect(&config.paths.netd_socket());
    let (engine, records) = build(config, machines, engine_netd)?;
    adopt::adopt(&engine, records).await;
    remove::sweep(&engine).await;
    let in_step = tokio::spawn(netd::keep_in_step(engine.clone()));
    arca_daemon::notify::ready();
    tracing::info!(socket = %config.paths.docker_socket.display(), "serving the Docker Engine API");
    arca_daemon::notify::ready();
    server::serve(listener, routes::router(engine.clone()), shutdown.wait()).await;
    in_step.abort();
    if engine.containers.all().iter().all(|container| container.live().is_none())
        && let Err(error) = engine.machines.release_cgroups(&engine.cgroup_parent).await
    {
        tracing::warn!(error, cgroup = engine.cgroup_parent, "the engine's empty cgroup stays");
    }
    // Containers go on; their machines are found again by the next arca-api.
    if !inherited {
        let _ = std::fs::remove_file(&config.paths.docker_socket);
    }
    Ok(())
}

/// Builds the engine and gives the stored containers for adoption. Nothing runs yet.
///
/// # Errors
/// Folders that cannot be made, a database in use or a document that cannot be read.
pub fn build(
    config: &Config,
    machines: Arc<dyn machines::Boot>,
    netd: netd::Netd,
) -> anyhow::Result<(Arc<Engine>, Vec<Record>)> {
    let paths = config.paths.clone();
    for folder in [paths.data.join("containers"), paths.data.join("volumes"), paths.run.join("m")] {
        std::fs::create_dir_all(&folder).with_context(|| format!("create {}", folder.display()))?;
    }
    let (store, documents) = Store::open(&paths.data.join("api.db"))
        .map_err(|error| Fatal::new(Failure::AlreadyRunning, error.to_string()))?;
    let (records, volumes) = read(documents)?;
    let images = images::Store::open(&paths.data.join("images")).context("open the image store")?;
    let identity = Sha256::digest(paths.data.to_string_lossy().as_bytes());
    let hex: String = identity.iter().take(16).map(|byte| format!("{byte:02x}")).collect();
    let engine = Engine {
        volumes: Volumes::new(&paths.data.join("volumes"), store.clone(), volumes),
        store,
        images,
        containers: Index::default(),
        execs: Execs::default(),
        netd,
        machines,
        tenants: Tenants::default(),
        events: Bus::default(),
        init_program: config.guest_directory.join("arca-init"),
        cgroup_parent: paths.cgroup_parent(),
        id: format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]),
        hosts: tokio::sync::Mutex::default(),
        attached: Mutex::new(BTreeSet::new()),
        full_set: tokio::sync::RwLock::new(()),
        paths,
    };
    Ok((Arc::new(engine), records))
}

fn read(documents: Documents) -> anyhow::Result<(Vec<Record>, Vec<Volume>)> {
    let (mut records, mut volumes) = (Vec::new(), Vec::new());
    for (kind, id, json) in documents {
        let within = || format!("the stored {kind} {id} (written by another version?)");
        match kind.as_str() {
            "container" => records.push(serde_json::from_str(&json).with_context(within)?),
            "volume" => volumes.push(serde_json::from_str(&json).with_context(within)?),
            _ => return Err(anyhow!("the database holds a document of the unknown kind {kind}")),
        }
    }
    Ok((records, volumes))
}

/// Listens on the docker socket, mode 0660, for the group `arca` if it exists.
fn listen(paths: &Paths) -> anyhow::Result<(UnixListener, bool)> {
    let Listening { listener, inherited } = services::API.listen(paths)?;
    let path = &paths.docker_socket;
    if !inherited && let Ok(Some(group)) = Group::from_name("arca") {
        nix::unistd::chown(path, None, Some(group.gid))
            .with_context(|| format!("give {} to the group arca", path.display()))?;
    }
    match listener {
        Listener::Unix(listener) => Ok((listener, inherited)),
        #[cfg(target_os = "linux")]
        Listener::Vsock(_) => Err(anyhow!("a path gave a vsock listener")),
    }
}
