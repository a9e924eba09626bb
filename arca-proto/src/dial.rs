// SPDX-License-Identifier: Apache-2.0
//! The one way to reach a machine's port, over three transports.
//!
//! Host daemons hold an [`Address`] and a port of [`crate::ports`]; which transport lies between is decided here and
//! nowhere else. [`dial`] gives a byte stream, [`channel`] a gRPC channel over such streams, [`unix_channel`] a gRPC
//! channel to another host daemon's socket. All three hand out descriptors too, for threads that pump frames.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tonic::transport::{Channel, Endpoint};

use crate::{hybrid, machine::v1 as proto};

#[cfg(target_os = "linux")]
#[path = "dial/vsock_linux.rs"]
pub mod vsock;
#[cfg(not(target_os = "linux"))]
#[path = "dial/vsock_other.rs"]
pub mod vsock;

mod long_path;
pub use long_path::with_short_path;

/// How a machine is reached.
#[derive(Clone, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Address {
    /// Real AF_VSOCK, by context id. Never 2: that is the host itself.
    Vsock(u32),
    /// One unix socket of a VMM; `CONNECT port\n` opens a port.
    Hybrid(PathBuf),
    /// A directory with one unix socket per port (namespace machines).
    Sockets(PathBuf),
}

/// An address message without a transport, or with a context id that is reserved.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("machine address is {0}")]
pub struct InvalidAddress(&'static str);

impl Address {
    /// Whether a machine of which nothing is left here had this address: who does not answer there will not come back.
    /// Of a context id nobody can tell.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        match self {
            Self::Vsock(_) => false,
            Self::Hybrid(path) | Self::Sockets(path) => !path.exists(),
        }
    }
}

impl TryFrom<proto::Address> for Address {
    type Error = InvalidAddress;

    fn try_from(message: proto::Address) -> Result<Self, InvalidAddress> {
        use proto::address::Transport;
        match message.transport {
            // vsock(7): 0 is the hypervisor, 1 is local, 2 the host, u32::MAX "any".
            Some(Transport::VsockCid(0..=2 | u32::MAX)) => Err(InvalidAddress("a reserved vsock context id")),
            Some(Transport::VsockCid(cid)) => Ok(Self::Vsock(cid)),
            Some(Transport::HybridSocket(path)) if path.starts_with('/') => Ok(Self::Hybrid(path.into())),
            Some(Transport::SocketDirectory(path)) if path.starts_with('/') => Ok(Self::Sockets(path.into())),
            Some(_) => Err(InvalidAddress("not an absolute path")),
            None => Err(InvalidAddress("missing")),
        }
    }
}

impl From<Address> for proto::Address {
    fn from(address: Address) -> Self {
        use proto::address::Transport;
        let transport = match address {
            Address::Vsock(cid) => Transport::VsockCid(cid),
            Address::Hybrid(path) => Transport::HybridSocket(path.to_string_lossy().into_owned()),
            Address::Sockets(path) => Transport::SocketDirectory(path.to_string_lossy().into_owned()),
        };
        Self { transport: Some(transport) }
    }
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock(cid) => write!(f, "vsock:{cid}"),
            Self::Hybrid(path) => write!(f, "hybrid:{}", path.display()),
            Self::Sockets(path) => write!(f, "sockets:{}", path.display()),
        }
    }
}

/// Why a port could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum DialError {
    /// Nobody listens, or the machine is gone.
    #[error("dial port {port} of {address}")]
    Connect {
        /// Machine dialled.
        address: Address,
        /// vsock port.
        port: u32,
        /// Cause.
        source: io::Error,
    },
    /// The hybrid daemon closed the connection or answered something else than `OK n`.
    #[error("dial port {port} of {address}: the machine refused (is the guest up and listening?)")]
    Refused {
        /// Machine dialled.
        address: Address,
        /// vsock port.
        port: u32,
        /// Cause.
        source: hybrid::HybridError,
    },
}

/// A connected byte stream to a machine's port.
#[derive(Debug)]
pub enum Stream {
    /// Unix socket: hybrid and sockets transports.
    Unix(UnixStream),
    /// AF_VSOCK.
    Vsock(vsock::Stream),
}

impl Stream {
    /// Gives up the runtime's hold; the descriptor stays non-blocking.
    ///
    /// # Errors
    /// If the runtime cannot deregister the descriptor.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(stream) => Ok(stream.into_std()?.into()),
            Self::Vsock(stream) => vsock::into_fd(&stream),
        }
    }
}

impl AsFd for Stream {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Unix(stream) => stream.as_fd(),
            Self::Vsock(stream) => stream.as_fd(),
        }
    }
}

macro_rules! delegate {
    ($self:ident, $method:ident($($arg:expr),*)) => {
        match $self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).$method($($arg),*),
            Stream::Vsock(stream) => Pin::new(stream).$method($($arg),*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_read(cx, buf))
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        delegate!(self, poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        delegate!(self, poll_shutdown(cx))
    }
}

/// Connects to `port` of the machine at `address`. Does not wait for a listener: refused is an error at once.
///
/// # Errors
/// [`DialError`] if the machine is gone, nobody listens, or the hybrid daemon refuses.
pub async fn dial(address: &Address, port: u32) -> Result<Stream, DialError> {
    let connect = |source| DialError::Connect { address: address.clone(), port, source };
    match address {
        Address::Sockets(directory) => {
            let path = directory.join(port.to_string());
            Ok(Stream::Unix(connect_unix(&path).await.map_err(connect)?))
        }
        Address::Hybrid(socket) => {
            let mut stream = connect_unix(socket).await.map_err(connect)?;
            hybrid::connect(&mut stream, port).await.map_err(|source| DialError::Refused {
                address: address.clone(),
                port,
                source,
            })?;
            Ok(Stream::Unix(stream))
        }
        Address::Vsock(cid) => Ok(Stream::Vsock(vsock::connect(*cid, port).await.map_err(connect)?)),
    }
}

/// Connects to a unix socket whose path may be longer than `sun_path`.
///
/// # Errors
/// As `connect(2)`.
pub async fn connect_unix(path: &Path) -> io::Result<UnixStream> {
    let (_guard, short) = with_short_path(path)?;
    UnixStream::connect(short).await
}

/// A gRPC channel to `port` of a machine. Connects when first used and again after each loss.
#[must_use]
pub fn channel(address: &Address, port: u32) -> Channel {
    let address = address.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let address = address.clone();
        async move { dial(&address, port).await.map(hyper_util::rt::TokioIo::new) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

/// As [`channel`]; a peer that does not answer a ping, sent each `interval`, within the same time is taken for gone, so that
/// calls on a machine that hangs fail.
#[must_use]
pub fn watched_channel(address: &Address, port: u32, interval: Duration) -> Channel {
    let address = address.clone();
    let connector = tower::service_fn(move |_: http::Uri| {
        let address = address.clone();
        async move { dial(&address, port).await.map(hyper_util::rt::TokioIo::new) }
    });
    let endpoint = endpoint().http2_keep_alive_interval(interval).keep_alive_timeout(interval);
    endpoint.keep_alive_while_idle(true).connect_with_connector_lazy(connector)
}

/// A gRPC channel to the unix socket of a host daemon. Connects when first used and again after each loss.
#[must_use]
pub fn unix_channel(path: &Path) -> Channel {
    let path = path.to_path_buf();
    let connector = tower::service_fn(move |_: http::Uri| {
        let path = path.clone();
        async move { connect_unix(&path).await.map(hyper_util::rt::TokioIo::new) }
    });
    endpoint().connect_with_connector_lazy(connector)
}

fn endpoint() -> Endpoint {
    // The authority is never resolved: the connector knows where to go. It only has to be a valid URI.
    Endpoint::from_static("http://arca.local").connect_timeout(Duration::from_secs(5)).tcp_nodelay(true)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_survive_the_wire_and_reserved_ones_do_not() {
        for address in [Address::Vsock(3), Address::Hybrid("/x/vm.vsock".into()), Address::Sockets("/x/m".into())] {
            assert_eq!(Address::try_from(proto::Address::from(address.clone())), Ok(address));
        }
        for cid in [0, 1, 2, u32::MAX] {
            assert!(Address::try_from(proto::Address::from(Address::Vsock(cid))).is_err(), "cid {cid}");
        }
        assert!(Address::try_from(proto::Address { transport: None }).is_err());
        assert!(Address::try_from(proto::Address::from(Address::Sockets("relative".into()))).is_err());
    }

    #[tokio::test]
    async fn a_port_nobody_listens_on_is_an_error_that_names_machine_and_port() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let error = dial(&Address::Sockets(directory.path().into()), 5556).await.expect_err("nobody listens");
        assert!(error.to_string().starts_with("dial port 5556 of sockets:"), "{error}");
    }
}
