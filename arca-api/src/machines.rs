// SPDX-License-Identifier: Apache-2.0
//! The seam to arca-machine: what a container's lifecycle asks of the thing it lives in.
//!
//! [`Boot`] is implemented by [`RealMachines`] over the arca-machine crate, and by a fake in the tests, which answers the
//! same gRPC services from inside the test.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

pub use arca_machine::{Network, Nic};
use arca_machine::{Adoption, ContainerSpec, Kind, Machines};
use arca_proto::{
    dial::{self, Address},
    init::v1::init_client::InitClient,
    ports,
};
use async_trait::async_trait;
use tonic::transport::Channel;

/// A running machine.
#[async_trait]
pub trait Machine: Send + Sync + std::fmt::Debug {
    /// How its ports are dialled.
    fn address(&self) -> Address;
    /// Process id of its keeper on this host, 0 where there is none.
    fn pid(&self) -> u32;
    /// Returns when it has ended, whoever ended it.
    async fn wait_exit(&self);
    /// Ends it and everything in it and removes what it left. Ended machines are only cleaned up.
    async fn destroy(&self, grace: Duration) -> Result<(), String>;
}

/// What was found of a container's machine after a restart of arca-api.
#[derive(Debug)]
pub enum Found {
    /// It runs and answers.
    Running(Arc<dyn Machine>),
    /// It has ended, or was ended here because it did not answer; nothing of it remains.
    Gone,
}

/// Starts and finds container machines.
#[async_trait]
pub trait Boot: Send + Sync + std::fmt::Debug {
    /// Boots machine `id`; its ports answer when this returns. On failure nothing of it remains.
    async fn launch(&self, id: &str, network: Network) -> Result<Arc<dyn Machine>, String>;
    /// Machines that an earlier arca-api launched and nobody destroyed.
    async fn left(&self) -> Result<Vec<String>, String>;
    /// Finds machine `id` that an earlier arca-api launched.
    async fn adopt(&self, id: &str) -> Result<Found, String>;
    /// Removes the cgroup that the workloads' own ones stood below, once none does. For the engine's stop.
    async fn release_cgroups(&self, parent: &str) -> Result<(), String>;
}

/// Client of the arca-init in a machine; clones share one connection.
pub type Init = InitClient<Channel>;

/// A container's machine and the way into it. Several containers may live in one ([`crate::tenants`]).
#[derive(Clone, Debug)]
pub struct Live {
    /// Machine id.
    pub id: String,
    /// The machine.
    pub machine: Arc<dyn Machine>,
    /// Its arca-init.
    pub init: Init,
}

impl Live {
    /// Connects (lazily) to the machine's arca-init.
    pub fn new(id: impl Into<String>, machine: Arc<dyn Machine>) -> Self {
        let channel = dial::channel(&machine.address(), ports::INIT);
        // File contents and whole outputs never travel in one message; stdin and output chunks stay far below this.
        Self { id: id.into(), machine, init: InitClient::new(channel).max_decoding_message_size(16 << 20) }
    }
}

/// Machines of the arca-machine crate.
#[derive(Debug)]
pub struct RealMachines {
    machines: Machines,
    paths: arca_daemon::paths::Paths,
    guest_directory: PathBuf,
    log_level: String,
    environment: Vec<(String, String)>,
}

/// From spawn to READY. Namespaces take milliseconds; a loaded machine may take a while.
const READY_TIMEOUT: Duration = Duration::from_secs(30);

impl RealMachines {
    /// Machines of the kind that the configuration names.
    ///
    /// # Errors
    /// The platform or the configuration names a kind that cannot be booted here.
    pub fn new(config: &arca_daemon::config::Config) -> Result<Self, arca_machine::MachineError> {
        let environment = std::env::var("ARCA_CRUN").ok().map(|crun| ("ARCA_CRUN".to_owned(), crun));
        Ok(Self {
            machines: Machines::new(Kind::Namespace)?,
            paths: config.paths.clone(),
            guest_directory: config.guest_directory.clone(),
            log_level: config.log_level.clone(),
            environment: environment.into_iter().collect(),
        })
    }
}

#[async_trait]
impl Machine for arca_machine::Machine {
    fn address(&self) -> Address {
        self.address().clone()
    }

    fn pid(&self) -> u32 {
        self.pid()
    }

    async fn wait_exit(&self) {
        self.wait_exit().await;
    }

    async fn destroy(&self, grace: Duration) -> Result<(), String> {
        self.destroy(grace).await.map_err(|error| chain(&error))?;
        forget(&self.record().state_directory)
    }
}

#[async_trait]
impl Boot for RealMachines {
    async fn launch(&self, id: &str, network: Network) -> Result<Arc<dyn Machine>, String> {
        let spec = ContainerSpec {
            id: id.to_owned(),
            socket_directory: self.paths.machine_sockets(id),
            state_directory: self.paths.machine(id),
            guest_directory: self.guest_directory.clone(),
            network,
            environment: self.environment.clone(),
            log_level: self.log_level.clone(),
            ready_timeout: READY_TIMEOUT,
        };
        let machine = self.machines.launch_container(&spec).await.map_err(|error| chain(&error))?;
        Ok(Arc::new(machine))
    }

    async fn left(&self) -> Result<Vec<String>, String> {
        let folder = self.paths.machines();
        let entries = match std::fs::read_dir(&folder) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(|error| format!("read {}: {error}", folder.display()))?,
        };
        Ok(entries.flatten().filter_map(|entry| entry.file_name().into_string().ok()).collect())
    }

    async fn adopt(&self, id: &str) -> Result<Found, String> {
        let state = self.paths.machine(id);
        match self.machines.adopt(&state).await.map_err(|error| chain(&error))? {
            Adoption::Running(machine) => Ok(Found::Running(Arc::new(machine))),
            Adoption::Unresponsive(machine) => {
                machine.destroy(Duration::ZERO).await.map_err(|error| chain(&error))?;
                forget(&state)?;
                Ok(Found::Gone)
            }
            Adoption::Gone(record) => {
                if let Some(record) = record {
                    self.machines.sweep(&record).await.map_err(|error| chain(&error))?;
                }
                forget(&state)?;
                Ok(Found::Gone)
            }
        }
    }

    async fn release_cgroups(&self, parent: &str) -> Result<(), String> {
        let released = self.machines.release_cgroups(&self.guest_directory, parent).await;
        released.map_err(|error| chain(&error))
    }
}

/// Removes what is on disk of a machine that is gone: its record went with it, its log is of no use without it.
fn forget(state: &Path) -> Result<(), String> {
    match std::fs::remove_dir_all(state) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(format!("remove {}: {error}", state.display()))
        }
        _ => Ok(()),
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
