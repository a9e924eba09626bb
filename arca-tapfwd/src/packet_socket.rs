// SPDX-License-Identifier: Apache-2.0
//! Packet sockets: one on an interface that hears only UDP for the DHCP client's port, for [`crate::dhcp`], and addresses
//! of the link layer, also for [`crate::announce`].

use std::io;
use std::os::fd::AsRawFd;

use dhcproto::v4::CLIENT_PORT;
use nix::libc;
use socket2::{Domain, SockAddr, SockAddrStorage, SockFilter, Socket, Type};
use tokio::io::unix::AsyncFd;

/// Sends to the broadcast address and receives IP packets, both without Ethernet header (packet(7), `SOCK_DGRAM`).
pub(crate) struct PacketSocket {
    socket: AsyncFd<Socket>,
    everybody: SockAddr,
}

impl PacketSocket {
    pub(crate) fn open(index: u32) -> io::Result<Self> {
        // Protocol 0 hears nothing until bind; the filter is in place by then.
        let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking().cloexec(), None)?;
        socket.attach_filter(&filter())?;
        let everybody = link_address(index, libc::ETH_P_IP, [0xff; 6])?;
        socket.bind(&everybody)?;
        // SAFETY: the AsyncFd owns the socket from here on and deregisters it before it closes it.
        let socket = unsafe { AsyncFd::register(socket) }?;
        Ok(Self { socket, everybody })
    }

    pub(crate) async fn send(&self, packet: &[u8]) -> io::Result<()> {
        self.socket
            .async_io(tokio::io::Interest::WRITABLE, |socket| socket.send_to(packet, &self.everybody))
            .await
            .map(|_| ())
    }

    pub(crate) async fn receive(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let mut read = |socket: &Socket| nix::unistd::read(socket, buffer).map_err(io::Error::from);
        self.socket.async_io(tokio::io::Interest::READABLE, |socket| read(socket)).await
    }
}

impl std::fmt::Debug for PacketSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("PacketSocket").field(&self.socket.as_raw_fd()).finish()
    }
}

/// Protocol `protocol` (an Ethernet type) on interface `index`, to hardware address `to`.
// The constants and the size are far below the fields' limits.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub(crate) fn link_address(index: u32, protocol: libc::c_int, to: [u8; 6]) -> io::Result<SockAddr> {
    let index = i32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: sockaddr_ll is a socket address, smaller than the storage, and valid with all bits zero.
    let address = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    address.sll_family = libc::AF_PACKET as u16;
    address.sll_protocol = (protocol as u16).to_be();
    address.sll_ifindex = index;
    address.sll_halen = 6;
    address.sll_addr[..6].copy_from_slice(&to);
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: family and length are those of the sockaddr_ll just written.
    Ok(unsafe { SockAddr::new(storage, length) })
}

/// Classic BPF, offsets from the IP header: `udp and not fragment and dst port 68`. Without it a busy interface's
/// whole traffic would be copied to us for the length of the exchange.
fn filter() -> [SockFilter; 9] {
    let (load_byte, load_half, load_half_x) = (0x30, 0x28, 0x48);
    let (load_header_length, jump_equal, jump_set, accept) = (0xb1, 0x15, 0x45, 0x06);
    [
        SockFilter::new(load_byte, 0, 0, 9),
        SockFilter::new(jump_equal, 0, 6, 17),
        SockFilter::new(load_half, 0, 0, 6),
        SockFilter::new(jump_set, 4, 0, 0x3fff),
        SockFilter::new(load_header_length, 0, 0, 0),
        SockFilter::new(load_half_x, 0, 0, 2),
        SockFilter::new(jump_equal, 0, 1, u32::from(CLIENT_PORT)),
        SockFilter::new(accept, 0, 0, u32::MAX),
        SockFilter::new(accept, 0, 0, 0),
    ]
}
