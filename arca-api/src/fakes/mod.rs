// SPDX-License-Identifier: Apache-2.0
//! Stateful fakes of arca-netd, arca-init and arca-machine: real gRPC over real sockets, no machine and no privilege.

pub(crate) mod init;
pub(crate) mod machines;
pub(crate) mod netd;

use std::{collections::BTreeMap, io::Cursor, path::Path, sync::Arc};

use arca_daemon::config::{self, Config, Input};

use crate::{
    containers::{Container, adopt, create, create::CreateRequest},
    engine::Engine,
    http::ApiResult,
};

fn config_below(home: &Path) -> Config {
    let environment = BTreeMap::from([("ARCA_HOME".to_owned(), home.to_string_lossy().into_owned())]);
    let program = home.join("arca-api");
    let input = Input { environment, flags: Vec::new(), root: false, user_home: home.to_owned(), program };
    config::load(&input).expect("configuration")
}

/// What an engine meets: arca-netd and machines. Lives in the runtime it was made in.
pub(crate) struct Outside {
    pub(crate) machines: Arc<machines::FakeMachines>,
    pub(crate) netd: Arc<netd::FakeNetd>,
    pub(crate) home: tempfile::TempDir,
    config: Config,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let home = tempfile::tempdir().expect("temporary directory");
        let config = config_below(home.path());
        std::fs::create_dir_all(&config.paths.run).expect("run");
        let netd = netd::FakeNetd::serve(&config.paths.netd_socket());
        Self { machines: Arc::new(machines::FakeMachines::new(home.path())), netd, home, config }
    }

    /// An engine in the current runtime; adopts what an earlier one left.
    pub(crate) async fn engine(&self) -> Arc<Engine> {
        let client = crate::netd::connect(&self.config.paths.netd_socket());
        let (engine, records) = loop {
            match crate::app::build(&self.config, self.machines.clone(), client.clone()) {
                Ok(built) => break built,
                // The killed engine's database thread closes its file in a moment.
                Err(_) => tokio::time::sleep(std::time::Duration::from_millis(5)).await,
            }
        };
        adopt::adopt(&engine, records).await;
        engine
    }
}

/// An engine over fakes, with an image `img`.
pub(crate) struct World {
    pub(crate) engine: Arc<Engine>,
    pub(crate) outside: Outside,
}

impl World {
    pub(crate) async fn new() -> Self {
        let outside = Outside::new();
        let engine = outside.engine().await;
        import(&engine).await;
        Self { engine, outside }
    }

    pub(crate) async fn create(&self, name: &str, body: serde_json::Value) -> ApiResult<Arc<Container>> {
        create(&self.engine, name, body).await
    }

    /// Actions of all events so far, `type action`.
    pub(crate) fn events(&self) -> Vec<String> {
        let (past, _) = self.engine.events.subscribe(Some(0));
        past.iter().map(|event| format!("{} {}", event.kind, event.action)).collect()
    }
}

pub(crate) async fn create(engine: &Arc<Engine>, name: &str, body: serde_json::Value) -> ApiResult<Arc<Container>> {
    let request: CreateRequest = serde_json::from_value(body).expect("body");
    create::create(engine, name, "", request).await
}

/// Imports the image `img`, whose command is `sleep`.
pub(crate) async fn import(engine: &Engine) {
    let images = engine.images.clone();
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_cksum();
    tar.append_data(&mut header, "file", std::io::empty()).expect("append");
    let tar = tar.into_inner().expect("in memory");
    let changes = ["CMD [\"sleep\"]".to_owned()];
    tokio::task::spawn_blocking(move || {
        images.import(Cursor::new(tar), Some("img"), "", None, &changes).expect("import")
    })
    .await
    .expect("join");
}
