// SPDX-License-Identifier: Apache-2.0
//! A UDP socket that knows to which of the host's addresses each datagram came, and answers from there.
//!
//! A client that asked 10.0.0.5 does not take an answer from 10.0.0.6, which is what a socket bound to 0.0.0.0 would
//! send it on a host with both.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{SocketAddr, UdpSocket as StdSocket};
use std::os::fd::AsRawFd;

use nix::errno::Errno;
use nix::libc;
use nix::sys::socket::sockopt::{Ipv4PacketInfo, Ipv6RecvPacketInfo};
use nix::sys::socket::{
    ControlMessage, ControlMessageOwned, MsgFlags, SockaddrLike as _, SockaddrStorage, recvmsg, sendmsg, setsockopt,
};
use tokio::io::Interest;
use tokio::net::UdpSocket;

/// Greatest payload of a UDP datagram, and more.
pub(super) const LARGEST: usize = 65_536;

/// The bound socket of a publication.
#[derive(Debug)]
pub(super) struct DatagramSocket(UdpSocket);

/// One side of the conversation with a client.
#[derive(Clone, Copy, Debug)]
pub(super) struct Correspondent {
    /// The client.
    pub(super) client: SocketAddr,
    local: Local,
}

/// The address of this host that the client used.
#[derive(Clone, Copy, Debug)]
enum Local {
    V4(libc::in_addr),
    V6(libc::in6_pktinfo),
    Unknown,
}

impl Correspondent {
    /// Two datagrams belong together when this is equal.
    pub(super) fn key(&self) -> (SocketAddr, [u8; 16]) {
        let local = match self.local {
            Local::V4(address) => u128::from(address.s_addr).to_ne_bytes(),
            Local::V6(info) => info.ipi6_addr.s6_addr,
            Local::Unknown => [0; 16],
        };
        (self.client, local)
    }
}

impl DatagramSocket {
    /// Takes over a bound, non-blocking socket.
    pub(super) fn new(socket: StdSocket) -> io::Result<Self> {
        match socket.local_addr()? {
            SocketAddr::V4(_) => setsockopt(&socket, Ipv4PacketInfo, &true)?,
            SocketAddr::V6(_) => setsockopt(&socket, Ipv6RecvPacketInfo, &true)?,
        }
        Ok(Self(UdpSocket::from_std(socket)?))
    }

    pub(super) fn port(&self) -> io::Result<u16> {
        Ok(self.0.local_addr()?.port())
    }

    /// The next datagram. Cancel-safe: one that is not returned is not read.
    pub(super) async fn receive(&self, buffer: &mut [u8]) -> io::Result<(usize, Correspondent)> {
        self.0.async_io(Interest::READABLE, || receive(&self.0, buffer)).await
    }

    /// Sends to a client, from the address that it used.
    pub(super) async fn send(&self, payload: &[u8], to: &Correspondent) -> io::Result<()> {
        self.0.async_io(Interest::WRITABLE, || send(&self.0, payload, to)).await
    }
}

fn receive(socket: &UdpSocket, buffer: &mut [u8]) -> io::Result<(usize, Correspondent)> {
    let mut control = nix::cmsg_space!(libc::in6_pktinfo);
    let mut parts = [IoSliceMut::new(buffer)];
    let message =
        recvmsg::<SockaddrStorage>(socket.as_raw_fd(), &mut parts, Some(&mut control), MsgFlags::MSG_DONTWAIT)?;
    let mut local = Local::Unknown;
    for control in message.cmsgs()? {
        match control {
            ControlMessageOwned::Ipv4PacketInfo(info) => local = Local::V4(info.ipi_spec_dst),
            ControlMessageOwned::Ipv6PacketInfo(info) => local = Local::V6(info),
            _ => {}
        }
    }
    let client = message.address.as_ref().and_then(socket_address);
    let client = client.ok_or_else(|| io::Error::from(Errno::EAFNOSUPPORT))?;
    Ok((message.bytes, Correspondent { client, local }))
}

fn send(socket: &UdpSocket, payload: &[u8], to: &Correspondent) -> io::Result<()> {
    let address = SockaddrStorage::from(to.client);
    let mut v4: libc::in_pktinfo = zeroed_v4();
    let v6;
    let control = match to.local {
        Local::V4(local) => {
            v4.ipi_spec_dst = local;
            Some(ControlMessage::Ipv4PacketInfo(&v4))
        }
        Local::V6(info) => {
            v6 = info;
            Some(ControlMessage::Ipv6PacketInfo(&v6))
        }
        Local::Unknown => None,
    };
    let control: &[ControlMessage<'_>] = control.as_slice();
    sendmsg(socket.as_raw_fd(), &[IoSlice::new(payload)], control, MsgFlags::MSG_DONTWAIT, Some(&address))?;
    Ok(())
}

/// Interface 0: any, the route decides.
fn zeroed_v4() -> libc::in_pktinfo {
    let none = libc::in_addr { s_addr: 0 };
    libc::in_pktinfo { ipi_ifindex: 0, ipi_spec_dst: none, ipi_addr: none }
}

fn socket_address(storage: &SockaddrStorage) -> Option<SocketAddr> {
    match storage.family()? {
        nix::sys::socket::AddressFamily::Inet => storage.as_sockaddr_in().map(|a| SocketAddr::V4((*a).into())),
        nix::sys::socket::AddressFamily::Inet6 => storage.as_sockaddr_in6().map(|a| SocketAddr::V6((*a).into())),
        _ => None,
    }
}
