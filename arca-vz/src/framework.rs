// SPDX-License-Identifier: Apache-2.0
//! What the keeper asks of a virtual machine. Implemented over Virtualization.framework on macOS, by a stand-in in tests.

use std::{any::Any, fmt, os::unix::net::UnixStream as StdStream};

use async_trait::async_trait;
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
};

use crate::shares::Shares;

/// The framework said no.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{action}: {reason}")]
pub struct FrameworkError {
    /// What was asked for.
    pub action: &'static str,
    /// In the framework's words.
    pub reason: String,
}

/// A connection with a port of the guest, whoever began it.
pub struct Connection {
    /// Its bytes.
    pub stream: UnixStream,
    /// What must live as long as the bytes are used: the framework closes its descriptor with the object that stands for
    /// the connection, and early release was seen to break the duplicate, too.
    pub hold: Box<dyn Any + Send>,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection").field("stream", &self.stream).finish_non_exhaustive()
    }
}

impl Connection {
    /// Over a connected stream socket.
    ///
    /// # Errors
    /// It cannot be made non-blocking.
    pub fn new(stream: StdStream, hold: Box<dyn Any + Send>) -> std::io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream: UnixStream::from_std(stream)?, hold })
    }
}

/// How a machine came to its end, in words; `Ok` if the guest powered off or was stopped.
pub type Ended = Option<Result<(), String>>;

/// One virtual machine. Calls may come from any task; an implementation sees to it that they reach the framework where it
/// wants them.
#[async_trait]
pub trait Framework: Send + Sync + fmt::Debug {
    /// Boots it. Called once, after [`Framework::listen`].
    async fn start(&self) -> Result<(), FrameworkError>;
    /// Connects to a port of the guest; any port, at any time after READY.
    async fn connect(&self, port: u32) -> Result<Connection, FrameworkError>;
    /// Connections that the guest makes to a port of its host, from now on.
    async fn listen(&self, port: u32) -> Result<mpsc::UnboundedReceiver<Connection>, FrameworkError>;
    /// Makes exactly these folders of the host visible in the guest.
    async fn share(&self, shares: &Shares) -> Result<(), FrameworkError>;
    /// Lets the guest have this many bytes of its memory.
    async fn balloon(&self, bytes: u64) -> Result<(), FrameworkError>;
    /// One word: `running`, `stopped`, ...
    async fn state(&self) -> String;
    /// Takes its power away.
    async fn stop(&self) -> Result<(), FrameworkError>;
    /// Changes once, at the end.
    fn ended(&self) -> watch::Receiver<Ended>;
}
