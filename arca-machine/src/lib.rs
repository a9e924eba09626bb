// SPDX-License-Identifier: Apache-2.0
//! Boots what a container or the helper lives in, and gives a way to dial it.
//!
//! arca-api launches container machines, arca-netd the helper machine. Nothing above this crate may know which kind of
//! machine it talks to: a [`Machine`] is an address whose ports are dialled, a process that ends, and something that can
//! be destroyed. A machine outlives its launcher: it is a process of a session of its own, and a record in its state
//! directory lets the next daemon [`Machines::adopt`] it.
//!
//! ```text
//! launch_* ── bind <sockets>/9000 ── spawn ── record ── READY ──> Machine ── wait_exit / destroy ──> gone
//!                                      │                 │                        ^
//!                                      └ died, late: killed, nothing remains      └ adopt (record + pid + start time + dial)
//! ```

#![cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "no driver of another platform uses all of it yet"))]

#[cfg_attr(not(any(target_os = "linux", target_os = "macos")), allow(dead_code, reason = "no virtual machines there"))]
mod control;
mod error;
mod files;
mod machine;
mod ready;
mod record;

#[cfg(target_os = "linux")]
#[path = "netns_linux.rs"]
pub mod netns;
#[cfg(not(target_os = "linux"))]
#[path = "netns_other.rs"]
pub mod netns;

#[cfg(target_os = "linux")]
#[path = "namespace/linux.rs"]
mod namespace;
#[cfg(not(target_os = "linux"))]
#[path = "namespace/other.rs"]
mod namespace;

#[cfg(target_os = "linux")]
#[path = "vm/linux.rs"]
mod vm;
#[cfg(target_os = "macos")]
use self::vz as vm;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
#[path = "vm/other.rs"]
mod vm;
pub mod vz;

#[cfg(target_os = "linux")]
mod vmm;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arca_proto::dial::Address;
use async_trait::async_trait;

use serde::{Deserialize, Serialize};

pub use arca_proto::keeper::{Role, State as VmState};
pub use error::MachineError;
pub use files::VmFiles;
pub use machine::Machine;
pub use record::Record;

/// How long a machine that is found may take to accept a connection.
const ANSWER: Duration = Duration::from_secs(5);

/// How machines are made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Linux namespaces: root, no hypervisor.
    #[default]
    Namespace,
    /// Virtual machines.
    Vm,
}

/// How large a machine is made. A machine on the host's own kernel is as large as the host.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Size {
    /// Bytes that its workload may use; the machine gets more, for itself.
    pub memory: Option<u64>,
    /// Virtual processors.
    pub cpus: Option<u32>,
}

/// A root file system: read-only layers, topmost first, and the folders of what is written.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Overlay {
    /// Topmost first.
    pub lower: Vec<PathBuf>,
    /// Takes what is written.
    pub upper: PathBuf,
    /// Of the same file system as `upper`.
    pub work: PathBuf,
}

/// Where a container machine's interfaces come from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Network {
    /// They are the host's (`--network host`).
    Host,
    /// arca-tapfwd makes them in a network namespace of the machine's own.
    Links,
    /// Somebody outside puts one into a network namespace of the machine's own; no arca-tapfwd runs. A kind of machine
    /// whose interfaces are fixed when it boots is given this one then.
    Native(Nic),
}

/// The one interface of a machine on the host's native switch, as a machine that boots like a computer gets it: plain,
/// with any hardware address. Its name, addresses and routes it is told later, when it is plugged in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Nic {
    /// The host's end. Linux: name of the TAP interface that the machine's keeper makes (not persistent, so that it goes with
    /// the machine) and leaves down; the native switch plugs it in. macOS: socket of the keeper of the network.
    pub wire: String,
    /// Bytes of an IP packet.
    pub mtu: u32,
}

/// A container machine to launch.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    /// Machine id; arca-api uses the id of the container that the machine is made for.
    pub id: String,
    /// One unix socket per port appears here. Short: `sun_path` holds 108 bytes. Made, and removed by `destroy`.
    pub socket_directory: PathBuf,
    /// `machine.json` and `machine.log` go here. Made, not removed.
    pub state_directory: PathBuf,
    /// Where `arca-init` and `arca-tapfwd` lie.
    pub guest_directory: PathBuf,
    /// Where its interfaces come from.
    pub network: Network,
    /// How large it is.
    pub size: Size,
    /// Further environment of arca-init, for example `ARCA_CRUN`.
    pub environment: Vec<(String, String)>,
    /// Log level word or filter of the guest programs.
    pub log_level: String,
    /// From spawn to READY.
    pub ready_timeout: Duration,
}

/// The network card of a helper machine that boots like a computer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Card {
    /// None: an interface is put into its network namespace.
    #[default]
    None,
    /// A TAP interface of the host, which the machine's keeper makes and takes with it. It is left down.
    Tap {
        /// Its name.
        interface: String,
    },
    /// The hypervisor's user-mode network, for which nobody needs privileges.
    User {
        /// The network, `192.168.127.0/29`.
        network: String,
        /// The host's address in it.
        host: std::net::Ipv4Addr,
        /// Two addresses that it may use for services of its own.
        spare: [std::net::Ipv4Addr; 2],
    },
}

/// The helper machine to launch.
#[derive(Clone, Debug)]
pub struct HelperSpec {
    /// Machine id, also its host name.
    pub id: String,
    /// Root file system of the helper image. Stays as it is: changes go to a tmpfs of the machine.
    pub root: PathBuf,
    /// What survives the machine; seen inside as /var/lib/arca. Made if missing.
    pub data_directory: PathBuf,
    /// Seen inside as /vsock; see [`ContainerSpec::socket_directory`].
    pub socket_directory: PathBuf,
    /// `machine.json`, `machine.log` and the mount point of the root.
    pub state_directory: PathBuf,
    /// Where `arca-helper-agent` lies.
    pub guest_directory: PathBuf,
    /// Its way out.
    pub card: Card,
    /// Further environment of the helper's first process.
    pub environment: Vec<(String, String)>,
    /// Log level word or filter.
    pub log_level: String,
    /// From spawn to READY.
    pub ready_timeout: Duration,
}

/// What was found of a machine after a daemon's restart.
#[derive(Debug)]
pub enum Adoption {
    /// It runs and answers.
    Running(Machine),
    /// Its process runs but its gRPC port does not answer: destroy it.
    Unresponsive(Machine),
    /// It ended while nobody watched; the record says what it was (`None`: nothing was ever launched there). Call
    /// [`Machines::sweep`] to remove what it left.
    Gone(Option<Record>),
}

/// One way to make machines. Implementations know everything about their kind; callers know nothing of it.
#[async_trait]
pub(crate) trait Driver: Send + Sync + std::fmt::Debug {
    /// Boots a container machine and waits for READY. On failure nothing of it remains.
    async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError>;
    /// Boots the helper machine and waits for READY. On failure nothing of it remains.
    async fn launch_helper(&self, spec: &HelperSpec) -> Result<Machine, MachineError>;
    /// Removes the cgroup `parent` in every hierarchy if no machine uses it any more.
    async fn release_cgroups(&self, guest_directory: &Path, parent: &str) -> Result<(), MachineError>;
}

/// Launches and adopts machines of one kind.
#[derive(Clone, Debug)]
pub struct Machines {
    driver: Arc<dyn Driver>,
}

impl Machines {
    /// Machines of the given kind.
    ///
    /// # Errors
    /// [`MachineError::Unavailable`] where the platform has no such kind.
    pub fn new(kind: Kind) -> Result<Self, MachineError> {
        match kind {
            Kind::Namespace => Ok(Self { driver: namespace::driver()? }),
            Kind::Vm => Self::virtual_machines(VmFiles::default()),
        }
    }

    /// Virtual machines made of these parts, which are looked for at each launch.
    ///
    /// # Errors
    /// [`MachineError::Unavailable`] where the platform has none.
    pub fn virtual_machines(files: VmFiles) -> Result<Self, MachineError> {
        Ok(Self { driver: vm::driver(files)? })
    }

    /// Boots a container machine; returns when its ports may be dialled.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing of the machine remains then.
    pub async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError> {
        self.driver.launch_container(spec).await
    }

    /// Boots the helper machine; returns when its ports may be dialled.
    ///
    /// # Errors
    /// See [`MachineError`]; nothing of the machine remains then.
    pub async fn launch_helper(&self, spec: &HelperSpec) -> Result<Machine, MachineError> {
        self.driver.launch_helper(spec).await
    }

    /// Finds what really runs of the machine whose state directory this is.
    ///
    /// # Errors
    /// The record cannot be read.
    pub async fn adopt(&self, state_directory: &Path) -> Result<Adoption, MachineError> {
        let record = Record::find(state_directory)?;
        let Some(record) = record else { return Ok(Adoption::Gone(None)) };
        let opened = match record.kind {
            Kind::Namespace => namespace::open(&record)?,
            Kind::Vm => vm::open(&record)?,
        };
        let Some(machine) = opened else { return Ok(Adoption::Gone(Some(record))) };
        match tokio::time::timeout(ANSWER, machine.dial(machine.grpc_port())).await {
            Ok(Ok(_)) => return Ok(Adoption::Running(machine)),
            Ok(Err(error)) => tracing::warn!(machine_id = record.id, %error, "machine runs but does not answer"),
            Err(_) => tracing::warn!(machine_id = record.id, "machine runs but hangs"),
        }
        Ok(Adoption::Unresponsive(machine))
    }

    /// Removes what a machine that is gone left behind. Sweeping twice is no error.
    ///
    /// # Errors
    /// [`MachineError::Teardown`] lists what could not be removed.
    pub async fn sweep(&self, record: &Record) -> Result<(), MachineError> {
        match record.kind {
            Kind::Namespace => namespace::sweep(record).await,
            Kind::Vm => vm::sweep(record, Vec::new()),
        }
    }

    /// Removes the cgroup `parent` ("arca/<engine>") in every hierarchy once no workload stands below it. For the
    /// engine's stop: while it runs, a machine may be making its own cgroup there.
    ///
    /// # Errors
    /// The guest program that does it cannot be run or failed.
    pub async fn release_cgroups(&self, guest_directory: &Path, parent: &str) -> Result<(), MachineError> {
        self.driver.release_cgroups(guest_directory, parent).await
    }
}

/// Whether virtual machines run on the processor itself here, not on an emulated one.
#[must_use]
pub fn virtual_machines_are_fast() -> bool {
    vm::is_fast()
}

/// How a virtual machine with this socket directory is dialled.
#[must_use]
pub fn virtual_address(sockets: &Path) -> Address {
    Address::Hybrid(sockets.join("vsock"))
}

/// Keeps the virtual machine whose plan lies at `plan`: the program arca-vmm.
///
/// # Errors
/// It could not be started, or ended unasked: one line.
#[cfg(target_os = "linux")]
pub fn keep(plan: &Path) -> anyhow::Result<()> {
    vmm::run(plan)
}

/// Keeps the virtual machine whose plan lies at `plan`: the program arca-vmm.
///
/// # Errors
/// Always here: QEMU's machines are Linux's.
#[cfg(not(target_os = "linux"))]
pub fn keep(_plan: &Path) -> anyhow::Result<()> {
    anyhow::bail!("arca-vmm keeps machines on Linux hosts")
}
