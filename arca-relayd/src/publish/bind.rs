// SPDX-License-Identifier: Apache-2.0
//! Binding a host port, and Docker's words when it cannot be had.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;

use nix::errno::Errno;
use socket2::{Domain, Socket, Type};
use tokio::net::TcpListener;

use super::datagram::DatagramSocket;
use super::wanted::{Protocol, Wanted};

/// Ports that Docker gives to `-p 80` and `-P`.
const EPHEMERAL: RangeInclusive<u16> = 32_768..=60_999;
/// Connections that wait to be accepted; the kernel caps it at net.core.somaxconn.
const BACKLOG: i32 = 4096;

/// Why a port was not bound. Texts are Docker's; arca-netd puts the container's address into `failed to bind host port
/// for ...`, the cause being what follows the last `: `.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// By another publication.
    #[error("Bind for {} failed: port is already allocated", docker(.0, *.1))]
    Allocated(IpAddr, u16),
    /// By another process.
    #[error("failed to bind host port for {0}: address already in use")]
    InUse(SocketAddr),
    /// Not an address of this host.
    #[error("failed to bind host port for {0}: cannot assign requested address")]
    NotLocal(SocketAddr),
    /// Privileges.
    #[error("failed to bind host port for {0}: permission denied")]
    Denied(SocketAddr),
    /// No ephemeral port left.
    #[error("no free port on {host}: all dynamic {protocol} ports are taken")]
    NoneFree {
        /// Address.
        host: IpAddr,
        /// Protocol.
        protocol: Protocol,
    },
    /// Anything else, such as no descriptors.
    #[error("failed to bind host port for {0}")]
    Other(SocketAddr, #[source] io::Error),
}

/// Docker writes `:::80`, without brackets, in this one message.
fn docker(host: &IpAddr, port: u16) -> String {
    format!("{host}:{port}")
}

/// What serves a publication.
#[derive(Debug)]
pub(super) enum Bound {
    Tcp(TcpListener),
    Udp(DatagramSocket),
}

/// Binds what is wanted, next to the ports that other publications have `taken`.
pub(super) fn bind(wanted: &Wanted, taken: &[(Protocol, IpAddr, u16)]) -> Result<(Bound, u16), BindError> {
    let allocated =
        |port| taken.iter().any(|(p, host, n)| *p == wanted.protocol && *n == port && meet(*host, wanted.host));
    if let Some(port) = wanted.port {
        if allocated(port) {
            return Err(BindError::Allocated(wanted.host, port));
        }
        return Ok((bind_one(wanted, port)?, port));
    }
    // The kernel's own choice lies in that range unless ip_local_port_range was changed; then all are tried in turn.
    let chosen = bind_any(wanted).map_err(|e| classify(SocketAddr::new(wanted.host, 0), e))?;
    if EPHEMERAL.contains(&chosen.1) {
        return Ok(chosen);
    }
    drop(chosen);
    for port in EPHEMERAL.filter(|port| !allocated(*port)) {
        match bind_one(wanted, port) {
            Err(BindError::InUse(_)) => {}
            bound => return Ok((bound?, port)),
        }
    }
    Err(BindError::NoneFree { host: wanted.host, protocol: wanted.protocol })
}

/// Whether two addresses cannot both have the same port: they are equal, or one is "all" of the other's family.
fn meet(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4() && (a == b || a.is_unspecified() || b.is_unspecified())
}

fn bind_one(wanted: &Wanted, port: u16) -> Result<Bound, BindError> {
    let address = SocketAddr::new(wanted.host, port);
    open(wanted.protocol, address).map_err(|error| classify(address, error))
}

fn bind_any(wanted: &Wanted) -> io::Result<(Bound, u16)> {
    let bound = open(wanted.protocol, SocketAddr::new(wanted.host, 0))?;
    let port = match &bound {
        Bound::Tcp(listener) => listener.local_addr()?.port(),
        Bound::Udp(socket) => socket.port()?,
    };
    Ok((bound, port))
}

fn open(protocol: Protocol, address: SocketAddr) -> io::Result<Bound> {
    let kind = match protocol {
        Protocol::Tcp => Type::STREAM,
        Protocol::Udp => Type::DGRAM,
    };
    let socket = Socket::new(Domain::for_address(address), kind, None)?;
    socket.set_nonblocking(true)?;
    if address.is_ipv6() {
        // `::` beside `0.0.0.0` on the same port, as Docker publishes them.
        socket.set_only_v6(true)?;
    }
    match protocol {
        Protocol::Tcp => {
            // Past connections in TIME-WAIT do not hold the port. For UDP this would let two processes share it.
            socket.set_reuse_address(true)?;
            socket.bind(&address.into())?;
            socket.listen(BACKLOG)?;
            Ok(Bound::Tcp(TcpListener::from_std(socket.into())?))
        }
        Protocol::Udp => {
            socket.bind(&address.into())?;
            Ok(Bound::Udp(DatagramSocket::new(socket.into())?))
        }
    }
}

fn classify(address: SocketAddr, error: io::Error) -> BindError {
    match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EADDRINUSE) => BindError::InUse(address),
        Some(Errno::EADDRNOTAVAIL) => BindError::NotLocal(address),
        Some(Errno::EACCES | Errno::EPERM) => BindError::Denied(address),
        _ => BindError::Other(address, error),
    }
}
