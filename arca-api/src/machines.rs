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

use arca_daemon::config::MachineKind;
use arca_machine::{Adoption, ContainerSpec, Machines, VmFiles};
pub use arca_machine::{Kind, Network, Nic, Overlay, Size};
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
    /// What it is made of.
    fn kind(&self) -> Kind;
    /// Makes a file or folder of the host visible inside; its path there.
    async fn expose(&self, path: &Path, read_only: bool) -> Result<PathBuf, String>;
    /// Mounts a root file system and gives its path inside; `None`: the machine does it itself.
    async fn root(&self, name: &str, overlay: &Overlay) -> Result<Option<PathBuf>, String>;
    /// Takes away what `root` mounted.
    async fn unroot(&self, name: &str);
    /// Where that root is in the mount namespace of the process `pid`; `None`: elsewhere.
    fn root_on_host(&self, name: &str) -> Option<PathBuf>;
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
    /// What containers live in that do not say.
    fn default_kind(&self) -> Kind;
    /// Boots machine `id`; its ports answer when this returns. On failure nothing of it remains.
    async fn launch(&self, id: &str, kind: Kind, network: Network, size: Size) -> Result<Arc<dyn Machine>, String>;
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
    namespaces: Option<Machines>,
    virtual_machines: Option<Machines>,
    default: Kind,
    paths: arca_daemon::paths::Paths,
    guest_directory: PathBuf,
    log_level: String,
    environment: Vec<(String, String)>,
}

/// From spawn to READY. Namespaces take milliseconds; a loaded machine may take a while.
const READY_TIMEOUT: Duration = Duration::from_secs(30);
/// As above for a virtual machine, whose processor may be an emulated one.
const VM_READY_TIMEOUT: Duration = Duration::from_secs(120);

impl RealMachines {
    /// Machines of both kinds, as far as the platform has them, and the one that the configuration names by default.
    ///
    /// # Errors
    /// The configuration names a kind that cannot be booted here.
    pub fn new(config: &arca_daemon::config::Config) -> Result<Self, arca_machine::MachineError> {
        let namespaces = Machines::new(Kind::Namespace);
        let virtual_machines = Machines::virtual_machines(vm_files(config));
        let default = match config.machine {
            MachineKind::Namespace => Kind::Namespace,
            MachineKind::Vm => Kind::Vm,
            // One that cannot be made is no default: everything of it must be there.
            MachineKind::Auto if namespaces.is_err() || has_fast_machines(config) => Kind::Vm,
            MachineKind::Auto => Kind::Namespace,
        };
        let (namespaces, virtual_machines) = match default {
            Kind::Namespace => (Some(namespaces?), virtual_machines.ok()),
            Kind::Vm => (namespaces.ok(), Some(virtual_machines?)),
        };
        let environment = std::env::var("ARCA_CRUN").ok().map(|crun| ("ARCA_CRUN".to_owned(), crun));
        Ok(Self {
            namespaces,
            virtual_machines,
            default,
            paths: config.paths.clone(),
            guest_directory: config.guest_directory.clone(),
            log_level: config.log_level.clone(),
            environment: environment.into_iter().collect(),
        })
    }

    fn of(&self, kind: Kind) -> Result<&Machines, String> {
        match kind {
            Kind::Namespace => self.namespaces.as_ref().ok_or("namespace machines are a Linux feature"),
            Kind::Vm => self.virtual_machines.as_ref().ok_or("this platform has no virtual machines"),
        }
        .map_err(str::to_owned)
    }

    /// For what works on machines of either kind.
    fn any(&self) -> Result<&Machines, String> {
        self.of(self.default)
    }
}

/// Where the parts of virtual machines lie.
fn vm_files(config: &arca_daemon::config::Config) -> VmFiles {
    VmFiles {
        kernel: config.kernel_path.clone(),
        init_image: config.init_image.clone(),
        helper_image: config.helper_image.clone(),
        tools: Some(config.vm_tools.clone()),
        keeper: std::env::current_exe().unwrap_or_default().with_file_name("arca-vmm"),
    }
}

fn has_fast_machines(config: &arca_daemon::config::Config) -> bool {
    config.kernel_path.is_file() && config.init_image.is_file() && arca_machine::virtual_machines_are_fast()
}

#[async_trait]
impl Machine for arca_machine::Machine {
    fn address(&self) -> Address {
        self.address().clone()
    }

    fn pid(&self) -> u32 {
        self.pid()
    }

    fn kind(&self) -> Kind {
        self.kind()
    }

    async fn expose(&self, path: &Path, read_only: bool) -> Result<PathBuf, String> {
        self.expose(path, read_only).await.map_err(|error| chain(&error))
    }

    async fn root(&self, name: &str, overlay: &Overlay) -> Result<Option<PathBuf>, String> {
        self.root(name, overlay).await.map_err(|error| chain(&error))
    }

    async fn unroot(&self, name: &str) {
        if let Err(error) = self.unroot(name).await {
            tracing::warn!(machine_id = self.id(), error = chain(&error), "a root file system stays mounted");
        }
    }

    fn root_on_host(&self, name: &str) -> Option<PathBuf> {
        self.root_on_host(name)
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
    fn default_kind(&self) -> Kind {
        self.default
    }

    async fn launch(&self, id: &str, kind: Kind, network: Network, size: Size) -> Result<Arc<dyn Machine>, String> {
        let spec = ContainerSpec {
            id: id.to_owned(),
            socket_directory: self.paths.machine_sockets(id),
            state_directory: self.paths.machine(id),
            guest_directory: self.guest_directory.clone(),
            network,
            size,
            environment: self.environment.clone(),
            log_level: self.log_level.clone(),
            ready_timeout: if kind == Kind::Vm { VM_READY_TIMEOUT } else { READY_TIMEOUT },
        };
        let machine = self.of(kind)?.launch_container(&spec).await.map_err(|error| chain(&error))?;
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
        let machines = self.any()?;
        match machines.adopt(&state).await.map_err(|error| chain(&error))? {
            Adoption::Running(machine) => Ok(Found::Running(Arc::new(machine))),
            Adoption::Unresponsive(machine) => {
                machine.destroy(Duration::ZERO).await.map_err(|error| chain(&error))?;
                forget(&state)?;
                Ok(Found::Gone)
            }
            Adoption::Gone(record) => {
                if let Some(record) = record {
                    machines.sweep(&record).await.map_err(|error| chain(&error))?;
                }
                forget(&state)?;
                Ok(Found::Gone)
            }
        }
    }

    async fn release_cgroups(&self, parent: &str) -> Result<(), String> {
        let Some(machines) = &self.namespaces else { return Ok(()) };
        let released = machines.release_cgroups(&self.guest_directory, parent).await;
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
