// SPDX-License-Identifier: Apache-2.0
//! Answers, forwarding and bad packets of the resolver.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query as Question, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use proptest::prelude::*;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::watch;

use super::answer::{Transport, Verdict, answer};
use super::upstream::{QUIET, read_message, write_message};
use super::{NameTable, Resolver};
use crate::nb::model::{Declared, Endpoint, EndpointId, Network};
use crate::nb::rows::{Desired, Learned};
use crate::nb::tests::{allocated, endpoint, id, network};
use arca_proto::helper::v1 as proto;

/// machine100 on net18; machine101 on net18 and net19; machine102 on net19 and internal net20; machine103 only on net20;
/// machine104 on net21 without names.
fn table() -> NameTable {
    let mut desired = Desired::default();
    let internal = proto::Network { internal: true, ..network(20) };
    let nameless = proto::Network { dns: false, ..network(21) };
    for object in [network(18), network(19), internal, nameless] {
        let object: Network = object.try_into().unwrap();
        desired.networks.insert(object.id.clone(), Declared { generation: 1, object });
    }
    let mut learned = Learned::new();
    for (n, net, machine) in
        [(100, 18, 100), (101, 18, 101), (111, 19, 101), (102, 19, 102), (112, 20, 102), (103, 20, 103), (104, 21, 104)]
    {
        let mut e = proto::Endpoint { machine_id: format!("machine{machine}"), ..endpoint(n, net) };
        if n == 100 {
            e.links = [("mine".to_owned(), "web101".to_owned()), ("later".to_owned(), "nobody-yet".to_owned())].into();
            e.forwarders = vec!["192.0.2.9".into()];
        }
        let object: Endpoint = e.try_into().unwrap();
        learned.insert(EndpointId::new(&id(n)).unwrap(), allocated(&format!("m 172.{net}.0.{n}")));
        desired.endpoints.insert(object.id.clone(), Declared { generation: 1, object });
    }
    NameTable::new(&desired, &learned)
}

fn question(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Question::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    message
}

fn ask(source: &str, message: &Message, transport: Transport) -> Option<Message> {
    match answer(&table(), source.parse().unwrap(), &message.to_vec().unwrap(), transport) {
        Verdict::Reply(bytes) => Some(Message::from_vec(&bytes).unwrap()),
        Verdict::Forward(_) => None,
        Verdict::Drop => panic!("dropped"),
    }
}

fn addresses(reply: &Message) -> Vec<IpAddr> {
    reply.answers.iter().filter_map(|r| r.data.ip_addr()).collect()
}

#[test]
fn names_are_answered_by_who_asks() {
    let a = |source, name| ask(source, &question(name, RecordType::A), Transport::Udp);
    let reply = a("172.18.0.101", "WEB100").expect("known");
    assert_eq!(addresses(&reply), ["172.18.0.100".parse::<IpAddr>().unwrap()]);
    assert!(!reply.metadata.authoritative && reply.metadata.recursion_available && reply.metadata.id == 4711);
    assert_eq!(reply.answers[0].ttl, 600);
    // Over all networks of the machine, whichever address it asks from.
    for source in ["172.18.0.101", "172.19.0.111"] {
        assert_eq!(addresses(&a(source, "web102").unwrap()).len(), 1);
        assert_eq!(addresses(&a(source, "web102.net19").unwrap()).len(), 1);
    }
    // Not over networks of others: the name is foreign to it.
    assert!(a("172.18.0.100", "web102").is_none());
    let code = |name| a("172.20.0.103", name).unwrap().metadata.response_code;
    assert_eq!((code("web100"), code("example.com")), (ResponseCode::NXDomain, ResponseCode::ServFail), "internal");
    assert!(a("172.21.0.104", "web104").is_none(), "no names on the default bridge");
    assert_eq!(a("10.9.9.9", "web100").unwrap().metadata.response_code, ResponseCode::Refused);
}

#[test]
fn links_and_own_name_servers_are_one_machines_alone() {
    let a = |source, name| ask(source, &question(name, RecordType::A), Transport::Udp);
    let reply = a("172.18.0.100", "Mine").expect("known");
    assert_eq!(addresses(&reply), ["172.18.0.101".parse::<IpAddr>().unwrap()]);
    assert!(a("172.18.0.101", "mine").is_none(), "foreign to everybody else");
    assert!(a("172.18.0.100", "later").is_none(), "what it stands for is not there");
    let table = table();
    let servers = |source: &str| table.forwarders(source.parse().unwrap()).to_vec();
    assert_eq!(servers("172.18.0.100"), ["192.0.2.9:53".parse().unwrap()]);
    assert!(servers("172.18.0.101").is_empty() && servers("10.9.9.9").is_empty());
}

#[test]
fn known_names_without_such_data_and_reverse_names() {
    let reply = ask("172.18.0.100", &question("web101", RecordType::AAAA), Transport::Udp).unwrap();
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    let reply = ask("172.18.0.100", &question("web101", RecordType::MX), Transport::Udp).unwrap();
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    let reverse = |name| ask("172.18.0.100", &question(name, RecordType::PTR), Transport::Udp);
    let reply = reverse("101.0.18.172.in-addr.arpa").unwrap();
    assert!(matches!(&reply.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "web101.net18."));
    let vacant = reverse("77.0.18.172.in-addr.arpa").unwrap();
    assert_eq!(vacant.metadata.response_code, ResponseCode::NXDomain);
    assert!(reverse("8.8.8.8.in-addr.arpa").is_none());
}

#[test]
fn names_of_several_endpoints_are_shuffled() {
    let mut orders = std::collections::BTreeSet::new();
    for _ in 0..64 {
        let reply = ask("172.18.0.100", &question("shared", RecordType::A), Transport::Udp).unwrap();
        orders.insert(addresses(&reply));
    }
    assert_eq!(orders.len(), 2);
}

#[test]
fn edns_and_large_answers() {
    let mut desired = Desired::default();
    let object: Network = network(18).try_into().unwrap();
    desired.networks.insert(object.id.clone(), Declared { generation: 1, object });
    let mut learned = Learned::new();
    for n in 1..=120 {
        let object: Endpoint = endpoint(n, 18).try_into().unwrap();
        learned.insert(object.id.clone(), allocated(&format!("m 172.18.0.{n}")));
        desired.endpoints.insert(object.id.clone(), Declared { generation: 1, object });
    }
    let table = NameTable::new(&desired, &learned);
    let source = "172.18.0.1".parse().unwrap();
    let ask = |message: &Message, transport| match answer(&table, source, &message.to_vec().unwrap(), transport) {
        Verdict::Reply(bytes) => (bytes.len(), Message::from_vec(&bytes).unwrap()),
        other => panic!("{other:?}"),
    };
    let mut query = question("shared", RecordType::A);
    let (length, plain) = ask(&query, Transport::Udp);
    assert!(length <= 512 && plain.metadata.truncation && plain.edns.is_none());
    let (_, whole) = ask(&query, Transport::Tcp);
    assert!(whole.answers.len() == 120 && !whole.metadata.truncation);
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    query.set_edns(edns.clone());
    let (length, reply) = ask(&query, Transport::Udp);
    assert!(length <= 1232 && reply.metadata.truncation && reply.edns.is_some());
    edns.set_version(1);
    query.set_edns(edns);
    // BADVERS and BADSIG share their number.
    assert_eq!(u16::from(ask(&query, Transport::Udp).1.metadata.response_code), u16::from(ResponseCode::BADVERS));
}

#[test]
fn packets_that_are_no_queries() {
    let judge = |packet: &[u8]| answer(&table(), Ipv4Addr::new(172, 18, 0, 100).into(), packet, Transport::Udp);
    assert!(matches!(judge(&[]), Verdict::Drop));
    let mut response = question("web100", RecordType::A);
    response.metadata.message_type = MessageType::Response;
    assert!(matches!(judge(&response.to_vec().unwrap()), Verdict::Drop), "two resolvers must not talk to each other");
    let mut cut = question("web100", RecordType::A).to_vec().unwrap();
    cut.truncate(20);
    let Verdict::Reply(reply) = judge(&cut) else { panic!("no answer") };
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::FormErr);
    let mut update = question("web100", RecordType::A);
    update.metadata.op_code = OpCode::Notify;
    let Verdict::Reply(reply) = judge(&update.to_vec().unwrap()) else { panic!("no answer") };
    assert_eq!(Message::from_vec(&reply).unwrap().metadata.response_code, ResponseCode::NotImp);
}

proptest! {
    #[test]
    fn no_packet_crashes(packet in proptest::collection::vec(any::<u8>(), 0..600), tcp: bool) {
        let transport = if tcp { Transport::Tcp } else { Transport::Udp };
        let _ = answer(&table(), Ipv4Addr::new(172, 18, 0, 100).into(), &packet, transport);
    }

    #[test]
    fn no_mangled_query_crashes(at in 0usize..40, by: u8, cut in 0usize..40) {
        let mut packet = question("web100.net18", RecordType::A).to_vec().unwrap();
        let at = at % packet.len();
        packet[at] ^= by;
        packet.truncate(packet.len() - cut.min(packet.len()));
        if let Verdict::Reply(reply) = answer(&table(), Ipv4Addr::new(172, 18, 0, 100).into(), &packet, Transport::Udp) {
            prop_assert!(reply.len() <= 512);
        }
    }
}

/// A name server that answers every A query with 192.0.2.1, by TCP only if `silent`.
async fn upstream(silent: bool) -> SocketAddr {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let reply = |packet: &[u8]| {
        let query = Message::from_vec(packet).unwrap();
        let mut reply = Message::response(query.metadata.id, OpCode::Query);
        let name = query.queries[0].name().clone();
        reply.add_queries(query.queries.iter().cloned());
        let data = RData::A(Ipv4Addr::new(192, 0, 2, 1).into());
        reply.add_answer(hickory_proto::rr::Record::from_rdata(name, 60, data));
        reply.to_vec().unwrap()
    };
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, client) = udp.recv_from(&mut buffer).await.unwrap();
            if !silent {
                // A forged answer comes first and must not be believed.
                let mut forged = reply(&buffer[..length]);
                forged[1] ^= 1;
                udp.send_to(&forged, client).await.unwrap();
                udp.send_to(&reply(&buffer[..length]), client).await.unwrap();
            }
        }
    });
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = tcp.accept().await.unwrap();
            let packet = read_message(&mut stream).await.unwrap();
            write_message(&mut stream, &reply(&packet)).await.unwrap();
        }
    });
    address
}

/// The table with the loopback address as machine100's.
fn loopback_table() -> Arc<NameTable> {
    let mut desired = Desired::default();
    let object: Network = network(18).try_into().unwrap();
    desired.networks.insert(object.id.clone(), Declared { generation: 1, object });
    let object: Endpoint = endpoint(100, 18).try_into().unwrap();
    let learned = Learned::from([(object.id.clone(), allocated("m 127.0.0.1"))]);
    desired.endpoints.insert(object.id.clone(), Declared { generation: 1, object });
    Arc::new(NameTable::new(&desired, &learned))
}

async fn ask_udp(server: SocketAddr, message: &Message) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(&message.to_vec().unwrap(), server).await.unwrap();
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).await.unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

#[tokio::test]
async fn sockets_answer_and_forward() {
    let (_names, names) = watch::channel(loopback_table());
    let (forwarders, servers) = watch::channel(vec![upstream(false).await]);
    let resolver = Resolver::start("127.0.0.1:0".parse().unwrap(), names, servers).await.unwrap();
    let server = resolver.address();

    assert_eq!(addresses(&ask_udp(server, &question("web100", RecordType::A)).await).len(), 1);
    let foreign = question("example.com", RecordType::A);
    let reply = ask_udp(server, &foreign).await;
    assert_eq!((reply.metadata.id, addresses(&reply)), (4711, vec!["192.0.2.1".parse().unwrap()]));

    let mut stream = TcpStream::connect(server).await.unwrap();
    for name in ["web100", "example.com"] {
        let query = question(name, RecordType::A).to_vec().unwrap();
        write_message(&mut stream, &query).await.unwrap();
        let reply = Message::from_vec(&read_message(&mut stream).await.unwrap()).unwrap();
        assert_eq!(addresses(&reply).len(), 1, "{name}");
    }

    // Where UDP is swallowed TCP is tried; without any server the answer is SERVFAIL.
    forwarders.send(vec![upstream(true).await]).unwrap();
    let reply = ask_udp(server, &foreign).await;
    assert_eq!(addresses(&reply).len(), 1);
    forwarders.send(vec![]).unwrap();
    assert_eq!(ask_udp(server, &foreign).await.metadata.response_code, ResponseCode::ServFail);
}

/// Time until SERVFAIL comes for a name of its own.
async fn failure(server: SocketAddr, name: &str) -> Duration {
    let began = Instant::now();
    let reply = ask_udp(server, &question(name, RecordType::A)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail, "{name}");
    began.elapsed()
}

#[tokio::test]
async fn unreachable_name_servers_fail_lookups_quickly() {
    let (_names, names) = watch::channel(loopback_table());
    // Bound and never read, never accepted: a black hole.
    let hole = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let _listener = TcpListener::bind(hole.local_addr().unwrap()).await.unwrap();
    let (forwarders, servers) = watch::channel(vec![hole.local_addr().unwrap()]);
    let resolver = Resolver::start("127.0.0.1:0".parse().unwrap(), names, servers).await.unwrap();
    let server = resolver.address();

    // Asked before anything is known of it: as long as the check takes, and not the client's whole five seconds.
    let first = failure(server, "a.example").await;
    assert!(first > QUIET && first < Duration::from_secs(3), "{first:?}");
    // Once it is known to be silent: a short wait in which it may come back, then none at all.
    let second = failure(server, "b.example").await;
    assert!(second < 2 * QUIET, "{second:?}");
    for _ in 0..3 {
        let later = failure(server, "c.example").await;
        assert!(later < QUIET / 2, "{later:?}");
    }
    let reply = ask_udp(server, &question("db", RecordType::AAAA)).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "no name of ours, and nobody else's");
    // A second server that answers is not held up by the first, not even when neither is known.
    forwarders.send(vec![hole.local_addr().unwrap(), upstream(false).await]).unwrap();
    let began = Instant::now();
    assert_eq!(addresses(&ask_udp(server, &question("d.example", RecordType::A)).await).len(), 1);
    assert!(began.elapsed() < QUIET / 2, "{:?}", began.elapsed());
    let another = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    forwarders.send(vec![another.local_addr().unwrap(), upstream(false).await]).unwrap();
    let began = Instant::now();
    assert_eq!(addresses(&ask_udp(server, &question("e.example", RecordType::A)).await).len(), 1);
    assert!(began.elapsed() < 2 * QUIET, "{:?}", began.elapsed());

    // Nobody there: the system says so, and so do we.
    let closed = UdpSocket::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    forwarders.send(vec![closed]).unwrap();
    let refused = failure(server, "f.example").await;
    assert!(refused < QUIET / 2, "{refused:?}");
}

#[tokio::test]
async fn a_name_server_that_waits_for_others_is_waited_for() {
    let (_names, names) = watch::channel(loopback_table());
    let slow = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (_forwarders, servers) = watch::channel(vec![slow.local_addr().unwrap()]);
    let resolver = Resolver::start("127.0.0.1:0".parse().unwrap(), names, servers).await.unwrap();
    let slow = Arc::new(slow);
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        loop {
            let (length, client) = slow.recv_from(&mut buffer).await.unwrap();
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, OpCode::Query);
            reply.add_queries(query.queries.iter().cloned());
            let wait = if query.queries[0].name().is_root() { Duration::ZERO } else { Duration::from_millis(2500) };
            let slow = Arc::clone(&slow);
            tokio::spawn(async move {
                tokio::time::sleep(wait).await;
                slow.send_to(&reply.to_vec().unwrap(), client).await.unwrap();
            });
        }
    });
    for name in ["a.example", "b.example"] {
        let reply = ask_udp(resolver.address(), &question(name, RecordType::A)).await;
        assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
    }
}
