// SPDX-License-Identifier: Apache-2.0
//! Frames made by hand and what arrives of them: the probes of isolation tests.
//!
//! Every frame carries a name in square brackets. That one did *not* arrive is known without waiting: behind the probes
//! goes a frame that must arrive (a fence), and what is in order cannot come later ([`Wire::seen`]).

use std::{
    collections::BTreeSet,
    io,
    net::{Ipv4Addr, Ipv6Addr},
    os::fd::{AsRawFd as _, OwnedFd},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    libc,
    net::if_::if_nametoindex,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, socket},
};

use crate::isolation::in_network_of;

/// An Ethernet address.
pub type Mac = [u8; 6];
/// Everybody.
pub const BROADCAST: Mac = [0xff; 6];
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;
/// A frame that must arrive has that long; a fence is sent again each second meanwhile.
const PATIENCE: Duration = Duration::from_secs(15);

/// A packet socket on an interface of some network namespace.
#[derive(Debug)]
pub struct Wire(OwnedFd);

impl Wire {
    /// On `interface` in the network namespace of process `pid`. Hears everything from now on.
    ///
    /// # Errors
    /// No such interface.
    pub fn open(pid: u32, interface: &str) -> anyhow::Result<Self> {
        in_network_of(pid, || open(interface)).with_context(|| format!("open a packet socket on {interface}"))
    }

    /// What has come so far, as much of it as the socket's queue has kept.
    ///
    /// # Errors
    /// The interface has gone.
    pub fn so_far(&self) -> anyhow::Result<Vec<Vec<u8>>> {
        let (mut frames, mut buffer) = (Vec::new(), vec![0; 70_000]);
        loop {
            match recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(length) => frames.push(buffer[..length].to_vec()),
                Err(nix::Error::EAGAIN) => return Ok(frames),
                Err(error) => return Err(error).context("hear frames"),
            }
        }
    }

    /// Sends a frame three times: the first one of a kind may be lost while somebody learns an address.
    ///
    /// # Errors
    /// The interface is down.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        for _ in 0..3 {
            send(self.0.as_raw_fd(), frame, MsgFlags::empty()).context("send a frame")?;
        }
        Ok(())
    }

    /// Names of all frames heard since the last call, up to a last one (a fence) that `send_fence` sends under the name
    /// it is given. Fences are not among them. There are two, one after the other: OVS takes what is there at once by
    /// kinds, so that the first may overtake probes that it was sent right behind.
    ///
    /// # Errors
    /// The fence did not arrive: the way that must be open is not.
    pub fn seen(
        &self,
        fence: &str,
        mut send_fence: impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<BTreeSet<String>> {
        let mut all = BTreeSet::new();
        for round in 1..=2 {
            self.heard(&format!("fence-{fence}-{round}"), &mut all, &mut send_fence)?;
        }
        // They are sent several times as well, and those of earlier calls may follow theirs.
        all.retain(|name| !name.starts_with("fence-"));
        Ok(all)
    }

    fn heard(
        &self,
        fence: &str,
        all: &mut BTreeSet<String>,
        send_fence: &mut impl FnMut(&str) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        let mut buffer = vec![0; 1 << 16];
        while Instant::now() < deadline {
            send_fence(fence)?;
            let again = Instant::now() + Duration::from_secs(1);
            while let Some(left) = again.checked_duration_since(Instant::now()) {
                use std::os::fd::AsFd as _;
                let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::ZERO);
                if poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
                    break;
                }
                let read = recv(self.0.as_raw_fd(), &mut buffer, MsgFlags::empty())?;
                let new = names(&buffer[..read]);
                let done = new.contains(fence);
                all.extend(new);
                if done {
                    return Ok(());
                }
            }
        }
        bail!("the frame [{fence}] that must arrive did not; others were {all:?}")
    }
}

#[allow(unsafe_code, reason = "nix makes no link-layer address out of an interface's number")]
fn open(interface: &str) -> io::Result<Wire> {
    let index = if_nametoindex(interface)?;
    let fd = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::EthAll)?;
    let family = u16::try_from(libc::AF_PACKET).map_err(io::Error::other)?;
    let protocol = u16::try_from(libc::ETH_P_ALL).map_err(io::Error::other)?.to_be();
    let address = libc::sockaddr_ll {
        sll_family: family,
        sll_protocol: protocol,
        sll_ifindex: i32::try_from(index).map_err(io::Error::other)?,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    };
    let length = libc::socklen_t::try_from(size_of_val(&address)).map_err(io::Error::other)?;
    // SAFETY: pointer and length are those of a whole sockaddr_ll that lives over the call.
    if unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), length) } != 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Wire(fd))
}

/// Every `[name]` in a frame.
fn names(frame: &[u8]) -> BTreeSet<String> {
    let plain = |byte: &u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || *byte == b'-';
    let starts = frame.iter().enumerate().filter(|(_, byte)| **byte == b'[').map(|(at, _)| at + 1);
    let found = starts.filter_map(|at| {
        let rest = &frame[at..];
        let length = rest.iter().take_while(|byte| plain(byte)).count();
        (length > 0 && rest.get(length) == Some(&b']')).then(|| String::from_utf8_lossy(&rest[..length]).into_owned())
    });
    found.collect()
}

/// The mark that a frame is found by.
#[must_use]
pub fn mark(name: &str) -> Vec<u8> {
    format!("[{name}]").into_bytes()
}

/// An Ethernet frame, filled up to 60 bytes.
#[must_use]
pub fn ethernet(to: Mac, from: Mac, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&to[..], &from, &kind.to_be_bytes(), payload].concat();
    frame.resize(frame.len().max(60), 0);
    frame
}

/// A UDP datagram in an IPv4 packet, checksums right.
#[must_use]
pub fn udp4(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16), payload: &[u8]) -> Vec<u8> {
    let pseudo = [&from.0.octets()[..], &to.0.octets()].concat();
    ipv4(from.0, to.0, 17, &udp(&pseudo, from.1, to.1, payload))
}

/// A UDP datagram in an IPv6 packet.
#[must_use]
pub fn udp6(from: (Ipv6Addr, u16), to: (Ipv6Addr, u16), payload: &[u8]) -> Vec<u8> {
    let pseudo = [&from.0.octets()[..], &to.0.octets()].concat();
    let body = udp(&pseudo, from.1, to.1, payload);
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend(u16::try_from(body.len()).unwrap_or(u16::MAX).to_be_bytes());
    packet.extend([17, 64]);
    packet.extend(pseudo);
    packet.extend(body);
    packet
}

/// An ICMP echo request.
#[must_use]
pub fn echo4(from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let mut body = [&[8, 0, 0, 0, 0, 7, 0, 1], payload].concat();
    let sum = checksum(&[&body]);
    body[2..4].copy_from_slice(&sum.to_be_bytes());
    ipv4(from, to, 1, &body)
}

/// An ARP packet: operation 1 asks, 2 answers. The mark is in the padding behind it.
#[must_use]
pub fn arp(operation: u16, from: (Mac, Ipv4Addr), to: (Mac, Ipv4Addr), name: &str) -> Vec<u8> {
    let mut packet = vec![0, 1, 8, 0, 6, 4];
    packet.extend(operation.to_be_bytes());
    for (mac, ip) in [from, to] {
        packet.extend(mac);
        packet.extend(ip.octets());
    }
    packet.extend(mark(name));
    packet
}

fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(20 + body.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut packet = vec![0x45, 0, length[0], length[1], 0, 0, 0x40, 0, 64, protocol, 0, 0];
    packet.extend(from.octets());
    packet.extend(to.octets());
    let sum = checksum(&[&packet]);
    packet[10..12].copy_from_slice(&sum.to_be_bytes());
    packet.extend(body);
    packet
}

fn udp(addresses: &[u8], from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let length = u16::try_from(8 + payload.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut body = [&from.to_be_bytes()[..], &to.to_be_bytes(), &length, &[0, 0], payload].concat();
    let sum = match checksum(&[addresses, &[0, 17], &length, &body]) {
        0 => 0xffff,
        sum => sum,
    };
    body[6..8].copy_from_slice(&sum.to_be_bytes());
    body
}

/// RFC 1071, over the parts in their order; all but the last have even lengths.
fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}

/// Has the kernel finish every frame that leaves by an interface of the calling thread's namespace, as a wire without
/// offloads needs it: checksums and segmentation are done before.
///
/// # Errors
/// The interface cannot do without.
pub fn without_offloads(interface: &str) -> anyhow::Result<()> {
    /// linux/ethtool.h: what is sent has its checksum.
    const ETHTOOL_STXCSUM: u32 = 0x17;
    /// linux/ethtool.h: TCP is segmented.
    const ETHTOOL_STSO: u32 = 0x1f;
    /// linux/ethtool.h: so is everything else.
    const ETHTOOL_SGSO: u32 = 0x24;
    let handle = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    for command in [ETHTOOL_SGSO, ETHTOOL_STSO, ETHTOOL_STXCSUM] {
        // struct ethtool_value: command and value.
        let mut value = [command, 0];
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(interface.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_data = value.as_mut_ptr().cast();
        // SAFETY: `request` and the value it points to live across the call.
        let done = unsafe { libc::ioctl(handle.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        nix::Error::result(done).with_context(|| format!("offloads of {interface}"))?;
    }
    Ok(())
}

/// Whether an Ethernet frame is TCP over IPv4, and if so, whether its checksum is right.
#[must_use]
pub fn tcp_checksum(frame: &[u8]) -> Option<bool> {
    let packet = frame.get(12..14).filter(|kind| **kind == IPV4.to_be_bytes()).and_then(|_| frame.get(14..))?;
    let header = usize::from(packet.first()? & 0xf) * 4;
    let total = usize::from(u16::from_be_bytes([*packet.get(2)?, *packet.get(3)?]));
    if packet.get(9) != Some(&6) {
        return None;
    }
    let (segment, addresses) = (packet.get(header..total)?, packet.get(12..20)?);
    let words = |bytes: &[u8]| -> u32 {
        bytes.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w.get(1).copied().unwrap_or(0)]))).sum()
    };
    // RFC 9293 section 3.1: pseudo-header, then the segment; of one with a right checksum the sum is all ones.
    let mut sum = words(addresses) + 6 + u32::try_from(segment.len()).ok()? + words(segment);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    Some(sum == 0xffff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_found_wherever_they_stand() {
        let frame = ethernet(BROADCAST, [2; 6], 0x88b5, b"[[a-1] [no end [b]x[]");
        assert_eq!(names(&frame), BTreeSet::from(["a-1".to_owned(), "b".to_owned()]));
    }

    #[test]
    fn checksums_are_right() {
        // A sum over what holds its own checksum is zero.
        let packet = udp4((Ipv4Addr::new(10, 0, 0, 1), 7), (Ipv4Addr::new(10, 0, 0, 2), 9), b"abc");
        assert_eq!(checksum(&[&packet[..20]]), 0);
        assert_eq!(checksum(&[&packet[12..20], &[0, 17, 0, 11], &packet[20..]]), 0);
    }
}
