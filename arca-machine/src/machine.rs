// SPDX-License-Identifier: Apache-2.0
//! A running machine as its users see it.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arca_proto::{
    dial::{self, Address, DialError, Stream},
    ports,
};
use async_trait::async_trait;
use tonic::transport::Channel;

use crate::{Kind, Overlay, Role, VmState, error::MachineError, record::Record};

/// What a driver keeps of one machine.
#[async_trait]
pub(crate) trait Keeper: Send + Sync + std::fmt::Debug {
    /// Returns when the machine has ended.
    async fn wait_exit(&self);
    /// Ends it: gracefully within `grace`, then by force; removes everything but the state directory.
    async fn destroy(&self, record: &Record, grace: Duration) -> Result<(), MachineError>;
    /// Makes a host path visible inside; what it is called there. By default the machine sees what the host sees.
    async fn expose(&self, _record: &Record, path: &Path, _read_only: bool) -> Result<PathBuf, MachineError> {
        Ok(path.to_path_buf())
    }
    /// Mounts a root file system on the host where the machine cannot do it itself; what it is called inside.
    async fn root(&self, _record: &Record, _name: &str, _overlay: &Overlay) -> Result<Option<PathBuf>, MachineError> {
        Ok(None)
    }
    /// Takes away what `root` made.
    async fn unroot(&self, _record: &Record, _name: &str) -> Result<(), MachineError> {
        Ok(())
    }
    /// Where the keeper, in its own mount namespace, has what `root` mounted.
    fn root_on_host(&self, _record: &Record, _name: &str) -> Option<PathBuf> {
        None
    }
    /// How a virtual machine is.
    async fn vm_state(&self, _record: &Record) -> Result<Option<VmState>, MachineError> {
        Ok(None)
    }
}

/// A running machine. Clones are the same machine; dropping them all leaves it running.
#[derive(Clone, Debug)]
pub struct Machine {
    record: Arc<Record>,
    keeper: Arc<dyn Keeper>,
}

impl Machine {
    pub(crate) fn new(record: Record, keeper: Arc<dyn Keeper>) -> Self {
        Self { record: Arc::new(record), keeper }
    }

    /// Machine id.
    #[must_use]
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// How its ports are dialled; what netd and relayd are told.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.record.address
    }

    /// Process id of its keeper in this process's pid namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.record.pid
    }

    /// Start time of the keeper in clock ticks since boot.
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.record.start_time
    }

    /// What is on disk of it.
    #[must_use]
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What it is made of. For those who show it; whoever decides by it asks the wrong question.
    #[must_use]
    pub fn kind(&self) -> Kind {
        self.record.kind
    }

    /// Makes a file or folder of the host visible inside, also while the machine runs; gives its path inside. Exposing the
    /// same again gives the same path.
    ///
    /// # Errors
    /// The path does not exist, or the keeper cannot be asked.
    pub async fn expose(&self, path: &Path, read_only: bool) -> Result<PathBuf, MachineError> {
        self.keeper.expose(&self.record, path, read_only).await
    }

    /// Mounts the root file system `name` where the machine sees it, and gives its path inside; `None`: the machine mounts
    /// it itself, from the same folders.
    ///
    /// # Errors
    /// It cannot be mounted, or the keeper cannot be asked.
    pub async fn root(&self, name: &str, overlay: &Overlay) -> Result<Option<PathBuf>, MachineError> {
        self.keeper.root(&self.record, name, overlay).await
    }

    /// Takes away what [`Self::root`] mounted; nothing there is no error.
    ///
    /// # Errors
    /// The keeper cannot be asked.
    pub async fn unroot(&self, name: &str) -> Result<(), MachineError> {
        self.keeper.unroot(&self.record, name).await
    }

    /// Where what [`Self::root`] mounted is, in the mount namespace of the process [`Self::pid`]; `None`: it is not there.
    #[must_use]
    pub fn root_on_host(&self, name: &str) -> Option<PathBuf> {
        self.keeper.root_on_host(&self.record, name)
    }

    /// How a virtual machine is; `None` of other machines.
    ///
    /// # Errors
    /// The keeper cannot be asked.
    pub async fn vm_state(&self) -> Result<Option<VmState>, MachineError> {
        self.keeper.vm_state(&self.record).await
    }

    /// The machine's network namespace, where it is one on this host: for moving a veth end in.
    #[must_use]
    pub fn netns_path(&self) -> Option<PathBuf> {
        matches!(self.record.address, Address::Sockets(_)).then(|| format!("/proc/{}/ns/net", self.record.pid).into())
    }

    /// Port of the machine's first gRPC service.
    #[must_use]
    pub fn grpc_port(&self) -> u32 {
        match self.record.role {
            Role::Container => ports::INIT,
            Role::Helper => ports::HELPER,
        }
    }

    /// Connects to a port.
    ///
    /// # Errors
    /// See [`dial::dial`].
    pub async fn dial(&self, port: u32) -> Result<Stream, DialError> {
        dial::dial(&self.record.address, port).await
    }

    /// A gRPC channel to a port; it connects when first used and again after each loss.
    #[must_use]
    pub fn channel(&self, port: u32) -> Channel {
        dial::channel(&self.record.address, port)
    }

    /// Returns when the machine has ended, whoever ended it. Any number of callers may wait.
    pub async fn wait_exit(&self) {
        self.keeper.wait_exit().await;
    }

    /// Ends the machine and everything in it, gracefully within `grace`, then by force, and removes its sockets and
    /// record. Destroying a machine that has ended only cleans up.
    ///
    /// # Errors
    /// [`MachineError::Teardown`] lists what could not be removed.
    pub async fn destroy(&self, grace: Duration) -> Result<(), MachineError> {
        self.keeper.destroy(&self.record, grace).await
    }
}
