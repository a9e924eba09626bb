// SPDX-License-Identifier: Apache-2.0
//! One UDP datagram in one IPv4 packet, made and taken apart by hand for the packet socket of [`crate::dhcp`].

use std::net::Ipv4Addr;

/// Bytes of IPv4 and UDP header.
const HEADERS: usize = 28;

/// An IPv4 packet with one UDP datagram (RFC 791, RFC 768). `payload` is at most a BOOTP message, far below 64 KiB.
pub fn packet(from: Ipv4Addr, from_port: u16, to: Ipv4Addr, to_port: u16, payload: &[u8]) -> Vec<u8> {
    let total = u16::try_from(HEADERS + payload.len()).unwrap_or(u16::MAX);
    let udp_length = total - 20;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&total.to_be_bytes());
    ip.extend_from_slice(&from.octets());
    ip.extend_from_slice(&to.octets());
    let sum = checksum(&ip, 0);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());

    let mut udp = Vec::with_capacity(8 + payload.len());
    udp.extend_from_slice(&from_port.to_be_bytes());
    udp.extend_from_slice(&to_port.to_be_bytes());
    udp.extend_from_slice(&udp_length.to_be_bytes());
    udp.extend_from_slice(&[0, 0]);
    udp.extend_from_slice(payload);
    // The pseudo header: both addresses, protocol, length.
    let mut pseudo = ip[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&udp_length.to_be_bytes());
    let sum = match checksum(&udp, partial_sum(&pseudo, 0)) {
        0 => 0xffff,
        sum => sum,
    };
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(&udp);
    ip
}

pub(crate) fn partial_sum(bytes: &[u8], start: u32) -> u32 {
    bytes
        .chunks(2)
        .fold(start, |sum, pair| sum + u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)])))
}

/// The Internet checksum (RFC 1071) of `bytes`, going on from a partial sum.
pub(crate) fn checksum(bytes: &[u8], start: u32) -> u16 {
    let mut sum = partial_sum(bytes, start);
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(u16::MAX)
}

/// What an unfragmented UDP datagram between these ports carries; `None` for anything else, however mangled.
pub fn payload(packet: &[u8], from_port: u16, to_port: u16) -> Option<&[u8]> {
    let header = usize::from(packet.first()? & 0x0f) * 4;
    let first_fragment = u16::from_be_bytes([*packet.get(6)?, *packet.get(7)?]) & 0x3fff == 0;
    if packet[0] >> 4 != 4 || header < 20 || *packet.get(9)? != 17 || !first_fragment {
        return None;
    }
    let udp = packet.get(header..)?;
    let word = |at: usize| Some(u16::from_be_bytes([*udp.get(at)?, *udp.get(at + 1)?]));
    if word(0)? != from_port || word(2)? != to_port {
        return None;
    }
    udp.get(8..usize::from(word(4)?))
}
