// SPDX-License-Identifier: Apache-2.0
//! The wiring: every component, in reading order.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    sync::Arc,
};

use arca_daemon::{
    config::{BackendKind, Config, LinkKind},
    exit::{Failure, Fatal},
    serve,
    shutdown::Shutdown,
};
use arca_proto::{listen::Listener, netd::v1::netd_server::NetdServer, relay::v1::Carrier};
use tonic::service::Routes;

use crate::{
    backend::{
        Backends,
        ovn::Ovn,
        vmnet::{self, Vmnet},
    },
    engine::{Engine, Settings},
    error::{Error, Result},
    helper::{Boot, Helper, machine::HelperMachine},
    hostnet,
    model::{Endpoint, Kind, NetworkId},
    peers::{agent::Agent, relay::Relay},
    pools::AddressPool,
    service::{NAME, Service},
    store::{Store, StoreError},
    validate::create::DefaultKind,
};

const SYSTEM_ID: &str = "system-id";

/// Everything that runs, besides the helper machine.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Socket of arca-relayd.
    pub relayd: PathBuf,
    /// Carrier of links; unspecified: for each link the fastest that comes up.
    pub carrier: Carrier,
    /// Name servers that unknown names are asked of.
    pub servers: Vec<SocketAddr>,
    /// What "" and "bridge" mean.
    pub default_kind: DefaultKind,
    /// Where subnets nobody named come from; empty: Docker's.
    pub pools: Vec<AddressPool>,
    /// Of the native backend.
    pub vmnet: vmnet::Settings,
}

/// A running engine; dropping it stops its tasks and nothing else.
pub struct App {
    /// What requests go to.
    pub engine: Arc<Engine>,
    tasks: tokio::task::JoinSet<()>,
    helper: Arc<Helper>,
    boot: Arc<dyn Boot>,
}

impl App {
    /// Starts every task. The order does not matter to them: each waits for what it needs.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn start(store: Store, system_id: String, boot: Arc<dyn Boot>, parts: Parts) -> Result<Self> {
        let helper = Arc::new(Helper::new(Arc::clone(&boot), system_id, parts.servers));
        let agent = Arc::new(Agent::new(Arc::clone(&helper), store.clone()));
        let relay = Arc::new(Relay::new(&parts.relayd, Arc::clone(&helper), store.clone()));
        let ovn = Ovn::new(Arc::clone(&agent), Arc::clone(&relay), store.clone(), parts.carrier);
        let vmnet = Arc::new(Vmnet::new(store.clone(), &parts.vmnet));
        let backends = Backends::new(Arc::new(ovn), Arc::clone(&vmnet));
        let peers =
            crate::engine::Peers { agent: Arc::clone(&agent), relay: Arc::clone(&relay), helper: Arc::clone(&helper) };
        let settings = Settings::new(parts.default_kind, parts.pools);
        let engine = Engine::new(store, backends, peers, settings).await?;
        // What a previous life left half done goes before anything is compared with it.
        engine.recover().await?;
        engine.follow_config().await?;
        if let Err(error) = vmnet.follow().await {
            // Networks of the other backend are served all the same.
            tracing::error!(%error, "the native switch could not be made what it should be");
        }
        let mut tasks = tokio::task::JoinSet::new();
        // Where OVN is the default the first container need not wait for it.
        let used = |endpoint: &Arc<Endpoint>| engine.state().kind_of(endpoint) == Some(Kind::Ovs);
        if parts.default_kind == DefaultKind::Ovs
            || engine.state().endpoints.values().any(used)
            || boot.is_there().await
        {
            helper.need();
        }
        let booted = Arc::clone(&helper);
        tasks.spawn(async move { booted.run().await });
        tasks.spawn(async move { agent.run().await });
        tasks.spawn(async move { relay.run().await });
        Ok(Self { engine, tasks, helper, boot })
    }

    /// Serves until shutdown; the helper machine and the links stay.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(mut self, listener: Listener, shutdown: Shutdown) -> Result<(), serve::ServeError> {
        let routes = Routes::new(NetdServer::new(Service::new(Arc::clone(&self.engine))));
        let served = serve::serve(listener, routes, &[NAME], shutdown).await;
        let _settled = self.helper.settled().await;
        self.tasks.shutdown().await;
        served
    }

    /// Stops every task and leaves everything else as it is.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Ends the helper machine as well and undoes what was changed on the host.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn take_down(mut self) -> Result<()> {
        self.tasks.shutdown().await;
        self.boot.down().await
    }
}

/// The helper's chassis id: drawn once, kept in the store over restarts of everything.
///
/// # Errors
/// If the store fails.
pub async fn system_id(store: &Store) -> Result<String> {
    store
        .update(|draft| {
            if let Some(id) = draft.meta.get(SYSTEM_ID) {
                return Ok(id.clone());
            }
            let id = NetworkId::random().map_err(Error::io("draw a chassis id"))?.as_str()[..32].to_owned();
            draft.put_meta(SYSTEM_ID, id.clone());
            Ok(id)
        })
        .await
}

/// Opens the store of the configured engine.
///
/// # Errors
/// A [`Fatal`] with its own exit code if another arca-netd has it.
pub fn open_store(config: &Config) -> Result<Store, Fatal> {
    let data = &config.paths.data;
    std::fs::create_dir_all(data).map_err(|error| {
        Fatal::new(Failure::Privileges, format!("create {}: {error} (run as root, or set ARCA_HOME)", data.display()))
    })?;
    let path = data.join("netd.db");
    Store::open(&path).map_err(|error| {
        let failure = match error {
            StoreError::Locked => Failure::AlreadyRunning,
            _ => Failure::General,
        };
        Fatal::new(failure, format!("{}: {}", path.display(), chain(&error)))
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The real engine, as configured.
///
/// # Errors
/// If the store or the machine kind is not to be had.
pub async fn start(config: &Config) -> anyhow::Result<App> {
    let store = open_store(config)?;
    let system_id = system_id(&store).await?;
    let boot = Arc::new(HelperMachine::new(config, &system_id, store.clone()).await?);
    let mut servers = if config.dns.is_empty() { hostnet::nameservers() } else { config.dns.clone() };
    if servers.is_empty() {
        // As Docker does, and as the files in containers say.
        servers.extend([[8, 8, 8, 8], [8, 8, 4, 4]].map(IpAddr::from));
    }
    let parts = Parts {
        relayd: config.paths.relayd_socket(),
        carrier: match config.link {
            LinkKind::Auto => Carrier::Unspecified,
            LinkKind::Stream => Carrier::Stream,
            LinkKind::TapFd => Carrier::TapFd,
            LinkKind::Cable => Carrier::Cable,
        },
        servers: servers.into_iter().map(|ip| SocketAddr::new(ip, 53)).collect(),
        default_kind: match config.network_backend {
            BackendKind::Ovs => DefaultKind::Ovs,
            BackendKind::Vmnet => DefaultKind::Vmnet,
        },
        pools: pools(config)?,
        vmnet: vmnet_settings(config),
    };
    Ok(App::start(store, system_id, boot, parts).await?)
}

fn pools(config: &Config) -> anyhow::Result<Vec<AddressPool>> {
    let pool = |pool: &arca_daemon::config::AddressPool| {
        let base = ipnet::Ipv4Net::new(pool.base.network, pool.base.length)?;
        anyhow::Ok(AddressPool::new(base, pool.size)?)
    };
    config.address_pools.iter().map(pool).collect()
}

fn vmnet_settings(config: &Config) -> vmnet::Settings {
    vmnet::Settings { tag: config.paths.tag(), marker: config.paths.native_marker() }
}

/// Ends the helper machine of an engine whose arca-netd does not run, and undoes what it changed on the host.
///
/// # Errors
/// If arca-netd still runs, or what could not be undone.
pub async fn stop_helper(config: &Config) -> anyhow::Result<()> {
    let store = open_store(config)?;
    let vmnet = Vmnet::new(store.clone(), &vmnet_settings(config)).down().await;
    let machine = HelperMachine::new(config, &system_id(&store).await?, store).await?;
    machine.adopt().await?;
    Ok(machine.down().await.and(vmnet)?)
}
