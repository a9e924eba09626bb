// SPDX-License-Identifier: Apache-2.0
//! Tells the neighbours at once which hardware address has an address now.
//!
//! Called by [`crate::attach`] when an address is confirmed. A container that leaves a network and comes back, or another
//! one that gets its address, has another hardware address; without this, neighbours would send to the old one until
//! their caches give up, which takes several seconds. IPv4: a gratuitous ARP request (RFC 5227 section 3), which OVN's
//! ARP responder lets pass because it comes from the address's own port. IPv6: an unsolicited neighbour advertisement
//! with the override flag (RFC 4861 section 7.2.6), as OVN answers solicitations itself but floods what goes to all nodes.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use nix::libc;
use socket2::{Domain, Socket, Type};

use crate::packet_socket::link_address;
use crate::settings::{MacAddr, Settings};
use crate::udp::{checksum, partial_sum};

const EVERYBODY: [u8; 6] = [0xff; 6];
/// Where packets to ff02::1 go on Ethernet (RFC 2464 section 7).
const ALL_NODES: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

/// Announces each address of an interface once. A neighbour that misses it is where it would be without, so a failure is
/// only worth a line in the log.
pub(crate) fn announce(index: u32, settings: &Settings) {
    for cidr in &settings.addresses {
        if let Err(error) = send(index, settings.mac, cidr.address) {
            tracing::warn!(%error, interface = %settings.interface, address = %cidr.address, "cannot announce an address");
        }
    }
}

fn send(index: u32, mac: MacAddr, address: IpAddr) -> io::Result<()> {
    let (packet, protocol, to) = match address {
        IpAddr::V4(address) => (arp(mac, address).to_vec(), libc::ETH_P_ARP, EVERYBODY),
        IpAddr::V6(address) => (advertisement(mac, address), libc::ETH_P_IPV6, ALL_NODES),
    };
    // The kernel puts the Ethernet header before it; with protocol 0 nothing is received.
    let socket = Socket::new(Domain::PACKET, Type::DGRAM.nonblocking().cloexec(), None)?;
    socket.send_to(&packet, &link_address(index, protocol, to)?).map(drop)
}

/// An ARP request (RFC 826) of `address` for itself.
fn arp(mac: MacAddr, address: Ipv4Addr) -> [u8; 28] {
    let mut packet = [0; 28];
    // Ethernet, IPv4, their lengths, request.
    packet[..8].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, 1]);
    packet[8..14].copy_from_slice(&mac.octets());
    packet[14..18].copy_from_slice(&address.octets());
    // The target's hardware address stays zero: it is what a request asks for.
    packet[24..28].copy_from_slice(&address.octets());
    packet
}

/// An IPv6 packet from the interface's link-local address to all nodes that says where `address` is. OVN's routers do not
/// learn from such a packet what they do not know yet, as they would from one with another source.
fn advertisement(mac: MacAddr, address: Ipv6Addr) -> Vec<u8> {
    const LENGTH: u8 = 32;
    const ICMPV6: u8 = 58;
    let [a, b, c, d, e, f] = mac.octets();
    // RFC 4291 appendix A: the hardware address with its universal bit flipped.
    let source = Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    // Type 136, code, checksum, override flag.
    let mut icmp = vec![136, 0, 0, 0, 0x20, 0, 0, 0];
    icmp.extend_from_slice(&address.octets());
    // Option: target's link-layer address, one unit of eight bytes.
    icmp.extend_from_slice(&[2, 1]);
    icmp.extend_from_slice(&mac.octets());
    let pseudo = [&source.octets()[..], &all_nodes.octets(), &[0, 0, 0, LENGTH, 0, 0, 0, ICMPV6]].concat();
    let sum = checksum(&icmp, partial_sum(&pseudo, 0));
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    // Hop limit 255 proves that no router passed it on.
    let header = [0x60, 0, 0, 0, 0, LENGTH, ICMPV6, 255];
    [&header[..], &source.octets(), &all_nodes.octets(), &icmp].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gratuitous_request_has_the_address_twice() {
        let packet = arp(MacAddr::try_from("02:42:ac:12:00:02").unwrap(), Ipv4Addr::new(172, 18, 0, 2));
        let expected =
            [0, 1, 8, 0, 6, 4, 0, 1, 0x02, 0x42, 0xac, 0x12, 0, 2, 172, 18, 0, 2, 0, 0, 0, 0, 0, 0, 172, 18, 0, 2];
        assert_eq!(packet, expected);
    }

    #[test]
    fn an_advertisement_sums_to_zero() {
        let address: Ipv6Addr = "fd00:18::2".parse().unwrap();
        let packet = advertisement(MacAddr::try_from("02:42:ac:12:00:02").unwrap(), address);
        assert_eq!((packet.len(), packet[7], packet[40], packet[44]), (72, 255, 136, 0x20));
        assert_eq!(packet[8..24], "fe80::42:acff:fe12:2".parse::<Ipv6Addr>().unwrap().octets());
        assert_eq!(packet[48..64], address.octets());
        let pseudo = [&packet[8..40], &[0, 0, 0, 32, 0, 0, 0, 58]].concat();
        assert_eq!(checksum(&packet[40..], partial_sum(&pseudo, 0)), 0);
    }
}
