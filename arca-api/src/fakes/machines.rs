// SPDX-License-Identifier: Apache-2.0
//! Machines that are tasks of the test.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use arca_proto::dial::Address;
use async_trait::async_trait;
use tokio::{runtime::Handle, sync::watch};

use crate::{
    fakes::init::FakeInit,
    machines::{Boot, Found, Kind, Machine, Network, Overlay, Size},
};

#[derive(Debug)]
pub(crate) struct FakeMachine {
    directory: PathBuf,
    ended: watch::Sender<bool>,
    server: tokio::task::AbortHandle,
    pub(crate) init: Arc<FakeInit>,
}

#[async_trait]
impl Machine for FakeMachine {
    fn address(&self) -> Address {
        Address::Sockets(self.directory.clone())
    }

    fn pid(&self) -> u32 {
        42
    }

    fn kind(&self) -> Kind {
        Kind::Namespace
    }

    async fn expose(&self, path: &Path, _: bool) -> Result<PathBuf, String> {
        Ok(path.to_path_buf())
    }

    async fn root(&self, _: &str, _: &Overlay) -> Result<Option<PathBuf>, String> {
        Ok(None)
    }

    async fn unroot(&self, _: &str) {}

    fn root_on_host(&self, _: &str) -> Option<PathBuf> {
        None
    }

    async fn wait_exit(&self) {
        let mut ended = self.ended.subscribe();
        let _ = ended.wait_for(|ended| *ended).await;
    }

    async fn destroy(&self, _: Duration) -> Result<(), String> {
        self.end();
        Ok(())
    }
}

impl FakeMachine {
    /// The machine dies, as by `kill -9`.
    pub(crate) fn end(&self) {
        self.server.abort();
        let _ = std::fs::remove_dir_all(&self.directory);
        self.ended.send_replace(true);
    }
}

#[derive(Debug)]
pub(crate) struct FakeMachines {
    root: PathBuf,
    /// Machines outlive the engine that launched them, so they live in the runtime of the fakes.
    runtime: Handle,
    pub(crate) machines: Mutex<BTreeMap<String, Arc<FakeMachine>>>,
}

impl FakeMachines {
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.join("fm"), runtime: Handle::current(), machines: Mutex::default() }
    }

    pub(crate) fn get(&self, id: &str) -> Option<Arc<FakeMachine>> {
        let machines = self.machines.lock().expect("lock");
        machines.get(id).filter(|machine| !*machine.ended.borrow()).cloned()
    }
}

#[async_trait]
impl Boot for FakeMachines {
    fn default_kind(&self) -> Kind {
        Kind::Namespace
    }

    async fn launch(&self, id: &str, _: Kind, _: Network, _: Size) -> Result<Arc<dyn Machine>, String> {
        let directory = self.root.join(&id[..12]);
        std::fs::create_dir_all(&directory).map_err(|error| error.to_string())?;
        let init = Arc::new(FakeInit::default());
        let _inside = self.runtime.enter();
        let server = init.clone().serve(&directory);
        let machine = Arc::new(FakeMachine { directory, ended: watch::Sender::new(false), server, init });
        self.machines.lock().expect("lock").insert(id.to_owned(), machine.clone());
        Ok(machine)
    }

    async fn left(&self) -> Result<Vec<String>, String> {
        Ok(self.machines.lock().expect("lock").keys().cloned().collect())
    }

    async fn release_cgroups(&self, _: &str) -> Result<(), String> {
        Ok(())
    }

    async fn adopt(&self, id: &str) -> Result<Found, String> {
        Ok(match self.get(id) {
            Some(machine) => Found::Running(machine),
            None => Found::Gone,
        })
    }
}
