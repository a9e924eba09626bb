// SPDX-License-Identifier: Apache-2.0
//! Packets as they go out, and answers good, bad and mangled.

use proptest::prelude::*;

use super::*;
use crate::udp::{checksum, packet, partial_sum, payload};
use dhcproto::v4::{Decodable, Decoder};

const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
const SERVER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);

fn reply(kind: MessageType, id: u32, yours: Ipv4Addr, extra: Vec<DhcpOption>) -> Vec<u8> {
    let mut message = Message::default();
    message.set_opcode(Opcode::BootReply).set_xid(id).set_yiaddr(yours);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in extra {
        message.opts_mut().insert(option);
    }
    packet(SERVER, SERVER_PORT, Ipv4Addr::BROADCAST, CLIENT_PORT, &message.to_vec().unwrap())
}

#[test]
fn the_request_is_init_reboot_as_rfc_2131_table_5_has_it() {
    let mac = MacAddr::try_from("02:42:ac:12:00:02").unwrap();
    let packet = request(7, mac, ADDRESS);
    assert_eq!(packet[12..20], [0, 0, 0, 0, 255, 255, 255, 255]);
    assert_eq!(checksum(&packet[..20], 0), 0, "the header sums to zero with its checksum in place");
    let mut pseudo = packet[12..20].to_vec();
    pseudo.extend_from_slice(&[0, 17]);
    pseudo.extend_from_slice(&packet[24..26]);
    assert_eq!(checksum(&packet[20..], partial_sum(&pseudo, 0)), 0);
    let bytes = payload(&packet, CLIENT_PORT, SERVER_PORT).unwrap();
    assert!(bytes.len() >= BOOTP_MIN);
    let message = Message::decode(&mut Decoder::new(bytes)).unwrap();
    assert_eq!((message.opcode(), message.xid(), message.ciaddr()), (Opcode::BootRequest, 7, Ipv4Addr::UNSPECIFIED));
    assert_eq!(message.chaddr(), mac.octets());
    assert!(message.flags().broadcast());
    assert!(message.opts().has_msg_type(MessageType::Request));
    assert_eq!(message.opts().get(OptionCode::RequestedIpAddress), Some(&DhcpOption::RequestedIpAddress(ADDRESS)));
    // With a server identifier it would be SELECTING, and OVN would compare it.
    assert!(!message.opts().contains(OptionCode::ServerIdentifier));
}

#[test]
fn an_ack_gives_the_lease() {
    let options = vec![
        DhcpOption::ServerIdentifier(SERVER),
        DhcpOption::Router(vec![SERVER]),
        DhcpOption::DomainNameServer(vec![SERVER]),
        DhcpOption::InterfaceMtu(1442),
        DhcpOption::AddressLeaseTime(3600),
    ];
    let lease = parse(&reply(MessageType::Ack, 7, ADDRESS, options), 7, ADDRESS).unwrap().unwrap();
    let (router, dns_servers, mtu) = (Some(SERVER), vec![SERVER], Some(1442));
    assert_eq!(lease, Lease { address: ADDRESS, router, dns_servers, mtu, seconds: 3600, server: SERVER });
}

#[test]
fn a_nak_and_an_ack_for_another_address_are_errors_that_name_the_server() {
    let nak = reply(MessageType::Nak, 7, Ipv4Addr::UNSPECIFIED, vec![DhcpOption::Message("not yours".into())]);
    let error = parse(&nak, 7, ADDRESS).unwrap().unwrap_err().to_string();
    assert!(error.starts_with("DHCP server 172.18.0.1 refused 172.18.0.2: not yours"), "{error}");
    let other = reply(MessageType::Ack, 7, Ipv4Addr::new(172, 18, 0, 9), vec![]);
    assert!(matches!(parse(&other, 7, ADDRESS), Some(Err(DhcpError::Other { .. }))));
}

#[test]
fn answers_to_others_are_passed_over() {
    assert!(parse(&reply(MessageType::Ack, 8, ADDRESS, vec![]), 7, ADDRESS).is_none());
    assert!(parse(&reply(MessageType::Offer, 7, ADDRESS, vec![]), 7, ADDRESS).is_none());
    assert!(parse(&request(7, MacAddr::try_from("02:00:00:00:00:01").unwrap(), ADDRESS), 7, ADDRESS).is_none());
}

#[test]
fn options_of_no_use_to_us_may_have_any_length() {
    let mut packet = reply(MessageType::Ack, 7, ADDRESS, vec![DhcpOption::Router(vec![SERVER])]);
    // The router's option becomes number 94, which has three bytes where it is in use.
    let router = packet.windows(2).rposition(|bytes| bytes == [3, 4]).unwrap();
    packet[router] = 94;
    assert_eq!(parse(&packet, 7, ADDRESS).unwrap().unwrap().router, None);
}

proptest! {
    #[test]
    fn mangled_packets_never_panic(at in 0usize..600, value: u8, cut in 0usize..600) {
        let options = vec![DhcpOption::ServerIdentifier(SERVER), DhcpOption::Router(vec![SERVER])];
        let mut packet = reply(MessageType::Ack, 7, ADDRESS, options);
        let length = packet.len();
        packet[at % length] = value;
        packet.truncate(cut);
        let _ = parse(&packet, 7, ADDRESS);
    }

    #[test]
    fn noise_never_panics(packet in proptest::collection::vec(any::<u8>(), 0..400)) {
        let _ = parse(&packet, 7, ADDRESS);
    }
}
