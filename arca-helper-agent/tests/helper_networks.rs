// SPDX-License-Identifier: Apache-2.0
//! Docker's network model on the wire: what the declared objects mean to containers, with real OVS and OVN and the kernel's
//! own TCP at both ends. Needs root and the environment variable ARCA_HELPER_ROOT, else SKIP.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code, unreachable_pub)] // a test; `machine` serves another one too

mod container;
mod machine;

use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use arca_helper_agent::ovsdb::{Database, Monitor};
use arca_proto::helper::v1::{
    ApplyRequest, ConfigureRequest, Endpoint, Network, Object, ObjectKey, ObjectKind, PublishedPort, SyncEnd, SyncItem,
    WatchRequest, object, sync_item,
};
use arca_proto::relay::v1::Protocol;
use container::{Container, ask, query, serve, tcp, udp};
use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{RData, Record, RecordType};
use machine::{Machine, in_sandbox, run};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const ROUTER: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const HOST6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 1);
const ROUTER6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2);
const FRONT: char = 'a';
const BACK: char = 'b';
const INSIDE: char = 'c';
const APART: char = 'd';
const BRIDGE: char = 'e';
/// IPv6 alone, in a prefix that OVN cannot allocate from by itself.
const SIX: char = 'f';

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

fn network(n: char) -> Network {
    let third = u32::from(n) - u32::from('a') + 18;
    Network {
        id: id(n),
        name: format!("net-{n}"),
        subnet_v4: if n == SIX { String::new() } else { format!("172.{third}.0.0/16") },
        gateway_v4: if n == SIX { String::new() } else { gateway(n).to_string() },
        subnet_v6: match n {
            SIX => "fd00:f::/80".into(),
            BRIDGE => String::new(),
            _ => format!("fd00:{n}::/64"),
        },
        gateway_v6: if n == BRIDGE { String::new() } else { gateway6(n).to_string() },
        internal: n == INSIDE,
        inter_container: n != APART,
        masquerade: true,
        dns: n != BRIDGE,
        mtu: 1442,
        ..Network::default()
    }
}

fn gateway(n: char) -> Ipv4Addr {
    Ipv4Addr::new(172, u8::try_from(u32::from(n)).unwrap() - b'a' + 18, 0, 1)
}

fn gateway6(n: char) -> Ipv6Addr {
    format!("fd00:{n}::1").parse().unwrap()
}

fn mac(link: u32) -> [u8; 6] {
    [2, 0x42, 0xac, 0x12, 0, u8::try_from(link).unwrap()]
}

fn endpoint(link: u32, network: char, machine: u32) -> Endpoint {
    Endpoint {
        id: id(char::from_digit(link, 16).unwrap()),
        network_id: id(network),
        link,
        mac: mac(link).map(|octet| format!("{octet:02x}")).join(":"),
        names: vec![format!("c{link}"), "shared".into()],
        hostname: format!("c{link}"),
        machine_id: format!("machine-{machine}"),
        ..Endpoint::default()
    }
}

fn published(id: &str, link: u32, protocol: Protocol, vip_port: u32) -> PublishedPort {
    let endpoint_id = self::id(char::from_digit(link, 16).unwrap());
    PublishedPort { id: id.into(), endpoint_id, protocol: protocol.into(), vip_port, target_port: 80 }
}

fn everything() -> Vec<Object> {
    let object = |kind| Object { generation: 1, kind: Some(kind) };
    let mut all: Vec<Object> =
        [FRONT, BACK, INSIDE, APART, BRIDGE, SIX].map(|n| object(object::Kind::Network(network(n)))).into();
    // Machine 1 is on front (link 1) and on back (link 4); 2 on front, 3 on back, 5 inside, 6 and 7 apart, 8 and 9 on
    // the default bridge, 10 and 11 on the network of IPv6 alone.
    let endpoints = [
        endpoint(1, FRONT, 1),
        endpoint(2, FRONT, 2),
        endpoint(3, BACK, 3),
        endpoint(4, BACK, 1),
        endpoint(5, INSIDE, 5),
        endpoint(6, APART, 6),
        endpoint(7, APART, 7),
        endpoint(8, BRIDGE, 8),
        endpoint(9, BRIDGE, 9),
        endpoint(10, SIX, 10),
        endpoint(11, SIX, 11),
    ];
    all.extend(endpoints.map(|e| object(object::Kind::Endpoint(e))));
    let ports = [
        published("web-tcp", 1, Protocol::Tcp, 8080),
        published("web-udp", 1, Protocol::Udp, 8081),
        published("six-tcp", 10, Protocol::Tcp, 8083),
    ];
    all.extend(ports.map(|p| object(object::Kind::PublishedPort(p))));
    all
}

/// A name server on the host that knows everything.
fn foreign_name_server() {
    let socket = UdpSocket::bind((HOST, 53)).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, client)) = socket.recv_from(&mut buffer) {
            let query = Message::from_vec(&buffer[..length]).unwrap();
            let mut reply = Message::response(query.metadata.id, query.metadata.op_code);
            reply.add_queries(query.queries.iter().cloned());
            let name = query.queries[0].name().clone();
            reply.add_answer(Record::from_rdata(name, 60, RData::A(A::new(192, 0, 2, 1))));
            socket.send_to(&reply.to_vec().unwrap(), client).unwrap();
        }
    });
}

async fn configure(machine: &Machine) {
    run("ip", &["link", "add", "arca-up0", "type", "veth", "peer", "name", "up0", "netns", &machine.init.to_string()]);
    run("ip", &["address", "add", "192.168.127.1/29", "dev", "arca-up0"]);
    run("ip", &["address", "add", "fd00:77::1/64", "dev", "arca-up0", "nodad"]);
    run("ip", &["link", "set", "arca-up0", "up"]);
    let request = ConfigureRequest {
        system_id: "helper-test".into(),
        uplink_interface: "up0".into(),
        router_address: format!("{ROUTER}/29"),
        next_hop: HOST.to_string(),
        resolver_address: "192.168.127.3/29".into(),
        forwarders: vec![format!("{HOST}:53")],
        router_address_v6: format!("{ROUTER6}/64"),
        next_hop_v6: HOST6.to_string(),
        resolver_address_v6: "fd00:77::3/64".into(),
    };
    Machine::client().configure(request).await.unwrap();
}

/// A listener on the host that passes on what the router's published port answers.
fn forward_to(published: (Ipv4Addr, u16)) -> u16 {
    let listener = TcpListener::bind((HOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut client in listener.incoming().flatten() {
            let mut answer = String::new();
            TcpStream::connect(published).unwrap().read_to_string(&mut answer).unwrap();
            client.write_all(answer.as_bytes()).unwrap();
        }
    });
    port
}

/// Addresses of links, in their order, once all are up.
async fn all_up(count: usize) -> Vec<(String, String)> {
    let mut stream = Machine::client().watch(WatchRequest {}).await.unwrap().into_inner();
    let mut addresses = std::collections::BTreeMap::new();
    let watch = async {
        while addresses.len() < count {
            let observation = stream.message().await.unwrap().unwrap();
            assert_eq!(observation.error, "");
            if observation.up {
                addresses.insert(observation.key.unwrap().id, (observation.address_v4, observation.address_v6));
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(10), watch).await.expect("all endpoints up within 10 s");
    addresses.into_values().collect()
}

/// First packets may be lost while flows are learnt.
fn reaches(attempt: impl Fn() -> Option<String>) -> Option<String> {
    (0..5).find_map(|_| attempt())
}

fn host_only(address: &str) -> Ipv4Addr {
    address.split('/').next().unwrap().parse().unwrap()
}

fn addresses(reply: &Message) -> Vec<IpAddr> {
    let mut all: Vec<_> = reply.answers.iter().filter_map(|r| r.data.ip_addr()).collect();
    all.sort();
    all
}

#[test]
fn networks_are_what_docker_says_they_are() {
    in_sandbox("networks_are_what_docker_says_they_are", async |machine| {
        configure(&machine).await;
        foreign_name_server();
        let started = Instant::now();
        let request = ApplyRequest { put: everything(), remove: vec![] };
        let answer = Machine::client().apply(request).await.unwrap().into_inner();
        assert!(answer.observations.iter().all(|o| o.error.is_empty()), "{answer:?}");
        let up = all_up(11).await;
        println!("6 networks, 11 endpoints, 3 published ports: all up after {:?}", started.elapsed());

        let nb = Database::connect(
            machine.inside("/run/ovn/ovnnb_db.sock"),
            "OVN_Northbound",
            vec![Monitor::new("Logical_Switch_Port", &["name", "addresses", "dynamic_addresses"])],
        );
        let rows = nb.ready().await.unwrap();
        let (_, row) = rows.find("Logical_Switch_Port", "name", &id('1')).unwrap();
        assert_eq!(
            row.str("addresses"),
            format!("02:42:ac:12:00:01 {} {}", host_only(&up[0].0), up[0].1.trim_end_matches("/64"))
        );
        let (_, row) = rows.find("Logical_Switch_Port", "name", &id('8')).unwrap();
        // OVN allocated it; soon after it is written down as this port's.
        let own = format!("02:42:ac:12:00:08 {}", host_only(&up[7].0));
        let shown = if row.str("addresses").ends_with(" dynamic") { "dynamic_addresses" } else { "addresses" };
        assert_eq!(row.str(shown), own);
        // As Docker gives them, in a prefix of any length.
        let mut sixes: Vec<&str> = [0, 1, 9, 10].map(|n: usize| up[n].1.as_str()).into();
        sixes.sort_unstable();
        assert_eq!(sixes, ["fd00:a::2/64", "fd00:a::3/64", "fd00:f::2/80", "fd00:f::3/80"]);

        let mut containers = Vec::new();
        for (link, network) in [
            (1, FRONT),
            (2, FRONT),
            (3, BACK),
            (5, INSIDE),
            (6, APART),
            (7, APART),
            (8, BRIDGE),
            (9, BRIDGE),
            (10, SIX),
            (11, SIX),
        ] {
            let (v4, v6) = &up[link as usize - 1];
            let mut container = Container::start(link, mac(link)).await;
            // Also inside the internal network somebody may set a default route.
            if !v4.is_empty() {
                container.add_v4(v4, gateway(network));
            }
            if !v6.is_empty() {
                container.add_v6(v6, gateway6(network));
            }
            containers.push(container);
        }
        for container in &containers {
            serve(Some(container), 80);
        }
        serve(None, 7777);
        let [web, db, other, inside, apart, alone, plain, peer, six, seven] = &containers[..] else { unreachable!() };

        same_network_and_the_way_out(web, db);
        published_ports(web, db, other);
        isolation(web, other, inside, apart, alone, plain, peer);
        names(web, db, other, inside, plain);
        by_ipv6([web, db, other, inside, apart, alone, plain, six, seven]);
        without_resolver(&machine, web, db);
        sync(web).await;
    });
}

fn same_network_and_the_way_out(web: &Container, db: &Container) {
    assert_eq!(reaches(|| tcp(Some(web), (db.ip, 80))), Some(web.ip.to_string()), "same network, own address");
    let [from, to] = [web, db].map(|c| c.ip6.unwrap());
    assert_eq!(reaches(|| tcp(Some(web), (to, 80))), Some(from.to_string()), "the same by IPv6");
    assert_eq!(reaches(|| tcp(Some(web), (HOST, 7777))), Some(ROUTER.to_string()), "SNAT on the way out");
    assert_eq!(reaches(|| udp(Some(web), (HOST, 7777))), Some(ROUTER.to_string()), "SNAT on the way out, UDP");
}

fn published_ports(web: &Container, db: &Container, other: &Container) {
    let host = Some(HOST.to_string());
    assert_eq!(reaches(|| tcp(None, (ROUTER, 8080))), host, "from the host, with the client's own address");
    assert_eq!(reaches(|| udp(None, (ROUTER, 8081))), host, "the same by UDP");
    // On the host something listens that leads there: this is the only way, also from the container itself.
    let listener = forward_to((ROUTER, 8080));
    for (from, what) in [(db, "same network"), (web, "the container itself"), (other, "another network")] {
        assert_eq!(tcp(Some(from), (ROUTER, 8080)), None, "the router's own address from {what}");
        assert_eq!(reaches(|| tcp(Some(from), (HOST, listener))), host, "published port from {what}");
    }
    assert_eq!(tcp(None, (ROUTER, 8082)), None, "nothing is published there");
}

#[allow(clippy::too_many_arguments)] // eight containers take part
fn isolation(
    web: &Container,
    other: &Container,
    inside: &Container,
    apart: &Container,
    alone: &Container,
    plain: &Container,
    peer: &Container,
) {
    assert_eq!(tcp(Some(web), (other.ip, 80)), None, "networks are apart");
    assert_eq!(tcp(Some(other), (web.ip, 80)), None, "and the other way");
    assert_eq!(tcp(Some(web), (other.ip6.unwrap(), 80)), None, "by IPv6 too");
    assert_eq!(tcp(Some(other), (web.ip6.unwrap(), 80)), None, "by IPv6 too, and the other way");
    assert_eq!(tcp(Some(plain), (web.ip, 80)), None, "the default bridge too");
    assert_eq!(reaches(|| tcp(Some(plain), (peer.ip, 80))), Some(plain.ip.to_string()));
    assert_eq!(tcp(Some(inside), (HOST, 7777)), None, "an internal network has no way out");
    assert_eq!(tcp(Some(inside), (ROUTER, 8080)), None, "nor to published ports");
    assert_eq!(tcp(Some(web), (inside.ip, 80)), None, "nor has it one in");
    assert_eq!(tcp(Some(apart), (alone.ip, 80)), None, "without inter-container traffic peers are out of reach");
    assert_eq!(reaches(|| tcp(Some(apart), (HOST, 7777))), Some(ROUTER.to_string()), "but the way out is open");
    // Whoever is on the uplink and knows the way.
    run("ip", &["route", "add", "172.16.0.0/12", "via", &ROUTER.to_string()]);
    assert_eq!(tcp(None, (web.ip, 80)), None, "no direct access from outside");
    run("ip", &["route", "del", "172.16.0.0/12"]);
    assert_eq!(reaches(|| tcp(None, (ROUTER, 8080))), Some(HOST.to_string()), "still published");
}

fn names(web: &Container, db: &Container, other: &Container, inside: &Container, plain: &Container) {
    let resolve = |from: &Container, network, by_tcp, message: &Message| {
        (0..5).find_map(|_| ask(from, gateway(network), by_tcp, message)).expect("an answer")
    };
    let a = |name| query(name, RecordType::A, true);
    let ttl = |reply: &Message| reply.answers.first().unwrap_or_else(|| panic!("no answer: {reply}")).ttl;
    // OVN's own answer, known by its TTL; then what it leaves to the resolver.
    let native = resolve(web, FRONT, false, &a("c2"));
    assert_eq!((addresses(&native), ttl(&native)), (vec![db.ip.into()], 3600), "answered by OVN");
    let qualified = resolve(web, FRONT, false, &a("C2.net-A"));
    assert_eq!(addresses(&qualified), [IpAddr::from(db.ip)]);
    let by_tcp = resolve(web, FRONT, true, &a("c2"));
    assert_eq!((addresses(&by_tcp), ttl(&by_tcp)), (vec![db.ip.into()], 600), "TCP is the resolver's");
    let six = resolve(web, FRONT, false, &query("c2", RecordType::AAAA, true));
    assert_eq!(addresses(&six), [IpAddr::from(db.ip6.unwrap())]);
    let six = resolve(plain, BRIDGE, false, &query("c7", RecordType::AAAA, true));
    assert!(six.answers.iter().all(|r| !matches!(r.data, RData::AAAA(_))), "{six}");
    let both = resolve(web, FRONT, false, &a("shared"));
    let mut expected = vec![IpAddr::from(web.ip), db.ip.into()];
    expected.sort();
    assert_eq!((addresses(&both), ttl(&both)), (expected, 600), "a name of two is the resolver's");
    let [d, c, b, e] = [3, 2, 1, 0].map(|n| db.ip.octets()[n]);
    let reverse = resolve(web, FRONT, false, &query(&format!("{d}.{c}.{b}.{e}.in-addr.arpa"), RecordType::PTR, false));
    assert!(matches!(&reverse.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "c2.net-a."), "{reverse}");
    // All networks of whoever asks, and none of the others'.
    assert_eq!(addresses(&resolve(web, FRONT, false, &a("c3"))), [IpAddr::from(other.ip)], "machine 1 is on back too");
    assert_eq!(
        addresses(&resolve(db, FRONT, false, &a("c3"))),
        ["192.0.2.1".parse::<IpAddr>().unwrap()],
        "foreign to 2"
    );
    assert_eq!(addresses(&resolve(web, FRONT, true, &a("example.com"))).len(), 1, "forwarded");
    // An internal network knows its names only; the default bridge knows none.
    assert_eq!(addresses(&resolve(inside, INSIDE, false, &a("c5"))), [IpAddr::from(inside.ip)]);
    let refused = resolve(inside, INSIDE, false, &a("example.com"));
    assert_eq!(refused.metadata.response_code, ResponseCode::ServFail);
    assert_eq!(addresses(&resolve(plain, BRIDGE, false, &a("c9"))), ["192.0.2.1".parse::<IpAddr>().unwrap()]);
}

/// Everything again by IPv6, also where there is nothing else.
fn by_ipv6([web, db, other, inside, apart, alone, plain, six, seven]: [&Container; 9]) {
    let to = |container: &Container| (container.ip6.unwrap(), 80);
    let seen = |from: &Container| Some(from.ip6.unwrap().to_string());
    let (host, router) = (Some(HOST6.to_string()), Some(ROUTER6.to_string()));
    for (from, peer) in [(web, db), (six, seven)] {
        assert_eq!(reaches(|| tcp(Some(from), to(peer))), seen(from), "same network, own address");
        assert_eq!(reaches(|| tcp(Some(from), (HOST6, 7777))), router, "NAT on the way out");
    }
    assert_eq!(reaches(|| tcp(None, (ROUTER6, 8080))), host, "published, with the client's own address");
    assert_eq!(reaches(|| tcp(None, (ROUTER6, 8083))), host, "published of a container without IPv4");
    for (from, what) in [(web, six), (six, web), (web, other), (plain, six), (web, inside), (six, inside)] {
        let Some(_) = from.ip6 else { continue };
        assert_eq!(tcp(Some(from), to(what)), None, "networks are apart");
    }
    assert_eq!(reaches(|| tcp(Some(apart), (HOST6, 7777))), router, "without peers the way out is open");
    assert_eq!(tcp(Some(apart), to(alone)), None, "without inter-container traffic peers are out of reach");
    assert_eq!(tcp(Some(inside), (HOST6, 7777)), None, "an internal network has no way out");
    assert_eq!(tcp(Some(inside), (ROUTER6, 8080)), None, "nor to published ports");
    run("ip", &["-6", "route", "add", "fd00::/16", "via", &ROUTER6.to_string()]);
    for container in [web, six, inside] {
        assert_eq!(tcp(None, to(container)), None, "no direct access from outside");
    }
    run("ip", &["-6", "route", "del", "fd00::/16"]);
    // Names, asked for by IPv6: OVN's own answers, the resolver's, forwarded ones.
    let aaaa = |name| query(name, RecordType::AAAA, true);
    let resolve = |from: &Container, network, by_tcp, message: &Message| {
        (0..5).find_map(|_| ask(from, gateway6(network), by_tcp, message)).expect("an answer")
    };
    for (by_tcp, ttl) in [(false, 3600), (true, 600)] {
        let answer = resolve(six, SIX, by_tcp, &aaaa("c11"));
        assert_eq!((addresses(&answer), answer.answers[0].ttl), (vec![seven.ip6.unwrap().into()], ttl));
    }
    let nothing = resolve(six, SIX, false, &query("c11", RecordType::A, true));
    assert_eq!((nothing.metadata.response_code, nothing.answers.len()), (ResponseCode::NoError, 0), "no such data");
    let name: String =
        seven.ip6.unwrap().octets().iter().rev().map(|b| format!("{:x}.{:x}.", b & 15, b >> 4)).collect();
    for by_tcp in [false, true] {
        let reverse = resolve(six, SIX, by_tcp, &query(&format!("{name}ip6.arpa"), RecordType::PTR, false));
        assert!(matches!(&reverse.answers[0].data, RData::PTR(p) if p.0.to_ascii() == "c11.net-f."), "{reverse}");
    }
    let foreign = resolve(six, SIX, false, &query("example.com", RecordType::A, true));
    assert_eq!(addresses(&foreign), ["192.0.2.1".parse::<IpAddr>().unwrap()], "forwarded");
}

/// Known names do not depend on the resolver, nor on the agent it runs in.
fn without_resolver(machine: &Machine, web: &Container, db: &Container) {
    machine.in_network(
        "nft 'add table inet deaf; add chain inet deaf in { type filter hook input priority 0; };
         add rule inet deaf in meta l4proto { tcp, udp } th dport 53 drop'",
    );
    assert!(ask(web, gateway(FRONT), false, &query("example.com", RecordType::A, true)).is_none(), "it hears nothing");
    let known = ask(web, gateway(FRONT), false, &query("c2", RecordType::A, true)).expect("OVN answers");
    assert_eq!(addresses(&known), [IpAddr::from(db.ip)]);
    machine.in_network("nft delete table inet deaf");
}

/// An equal full declaration changes nothing; withdrawal of a published port and of an endpoint's name is felt.
async fn sync(web: &Container) {
    let items = |objects: Vec<Object>, epoch| {
        let kinds = std::iter::once(sync_item::Kind::Epoch(epoch));
        let kinds = kinds.chain(objects.into_iter().map(sync_item::Kind::Object));
        let kinds: Vec<_> = kinds.chain([sync_item::Kind::End(SyncEnd {})]).collect();
        tokio_stream::iter(kinds.into_iter().map(|kind| SyncItem { kind: Some(kind) }))
    };
    let answer = Machine::client().sync(items(everything(), 1)).await.unwrap().into_inner();
    assert_eq!((answer.rows_inserted, answer.rows_updated, answer.rows_deleted), (0, 0, 0), "{answer:?}");
    assert_eq!(reaches(|| tcp(None, (ROUTER, 8080))), Some(HOST.to_string()));

    let remove = vec![ObjectKey { kind: ObjectKind::PublishedPort.into(), id: "web-tcp".into(), generation: 2 }];
    Machine::client().apply(ApplyRequest { put: vec![], remove }).await.unwrap();
    let closed = (0..10).any(|_| tcp(None, (ROUTER, 8080)).is_none());
    assert!(closed, "withdrawn means closed");
    let remove = vec![ObjectKey { kind: ObjectKind::Endpoint.into(), id: id('2'), generation: 2 }];
    let answer = Machine::client().apply(ApplyRequest { put: vec![], remove }).await.unwrap().into_inner();
    assert!(answer.observations[0].removed);
    let gone = (0..10).any(|_| {
        ask(web, gateway(FRONT), false, &query("c2", RecordType::A, true))
            .is_some_and(|reply| addresses(&reply) == ["192.0.2.1".parse::<IpAddr>().unwrap()])
    });
    assert!(gone, "the name has gone with its endpoint");
}
