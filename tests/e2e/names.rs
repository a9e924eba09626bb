// SPDX-License-Identifier: Apache-2.0
//! 127.0.0.11 as programs in containers meet it: raw DNS over UDP and TCP from inside the container's network.

use std::{
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, TcpStream, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation,
    outside::{self, Outside},
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("every_kind_of_question_has_its_answer_over_udp_and_tcp", questions),
    ("names_follow_aliases_renames_stops_and_links", follow),
    ("foreign_names_are_forwarded_but_not_from_internal_networks", forwarding),
    ("name_servers_on_the_hosts_loopback_are_asked", loopback),
];

const A: u16 = 1;
const PTR: u16 = 12;
const AAAA: u16 = 28;
const NO_ERROR: u8 = 0;
const SERVER_FAILURE: u8 = 2;
const NO_SUCH_NAME: u8 = 3;

/// What a server said.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Answer {
    code: u8,
    /// Type and data of each answer; a name as text.
    records: Vec<(u16, String)>,
    /// It has an OPT record (RFC 6891).
    edns: bool,
}

impl Answer {
    fn addresses(&self) -> Vec<String> {
        let mut addresses: Vec<_> = self.records.iter().map(|(_, text)| text.clone()).collect();
        addresses.sort();
        addresses
    }
}

/// A question as RFC 1035 writes it.
fn question(name: &str, kind: u16, edns: bool) -> Vec<u8> {
    let mut packet = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, u8::from(edns)];
    for label in name.split('.') {
        packet.push(u8::try_from(label.len()).expect("a short label"));
        packet.extend(label.as_bytes());
    }
    packet.push(0);
    packet.extend(kind.to_be_bytes());
    packet.extend([0, 1]);
    if edns {
        packet.extend([0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0]);
    }
    packet
}

fn short(packet: &[u8], at: usize) -> anyhow::Result<u16> {
    let bytes = packet.get(at..at + 2).context("the packet is cut off")?;
    Ok(u16::from_be_bytes([bytes[0], bytes[1]]))
}

/// Reads a name at `at`; gives it with the place behind it.
fn name(packet: &[u8], mut at: usize) -> anyhow::Result<(String, usize)> {
    let (mut labels, mut end) = (Vec::new(), None);
    loop {
        let length = usize::from(*packet.get(at).context("the packet is cut off")?);
        if length >= 0xc0 {
            end.get_or_insert(at + 2);
            at = usize::from(short(packet, at)? & 0x3fff);
        } else if length == 0 {
            return Ok((labels.join("."), end.unwrap_or(at + 1)));
        } else {
            labels.push(String::from_utf8_lossy(packet.get(at + 1..at + 1 + length).context("cut off")?).into_owned());
            at += 1 + length;
        }
    }
}

fn parse(packet: &[u8]) -> anyhow::Result<Answer> {
    ensure!(short(packet, 0)? == 0x1234 && packet[2] & 0x80 != 0, "not our answer: {packet:?}");
    let (_, mut at) = name(packet, 12)?;
    at += 4;
    let (mut records, mut edns) = (Vec::new(), false);
    for index in 0..short(packet, 6)? + short(packet, 8)? + short(packet, 10)? {
        let (_, after) = name(packet, at)?;
        let (kind, length) = (short(packet, after)?, usize::from(short(packet, after + 8)?));
        let data = packet.get(after + 10..after + 10 + length).context("cut off")?;
        at = after + 10 + length;
        edns |= kind == 41;
        if index >= short(packet, 6)? {
            continue;
        }
        let text = match kind {
            A => IpAddr::from(<[u8; 4]>::try_from(data)?).to_string(),
            AAAA => IpAddr::from(<[u8; 16]>::try_from(data)?).to_string(),
            PTR => name(packet, after + 10)?.0,
            _ => String::new(),
        };
        records.push((kind, text));
    }
    Ok(Answer { code: packet[3] & 15, records, edns })
}

/// Asks from inside the network of process `pid`. A datagram that is lost is sent again.
fn ask_packet(pid: u32, packet: &[u8], tcp: bool) -> anyhow::Result<Answer> {
    isolation::in_network_of(pid, || {
        if tcp {
            let mut stream = TcpStream::connect("127.0.0.11:53")?;
            stream.set_read_timeout(Some(Duration::from_secs(10)))?;
            stream.write_all(&u16::try_from(packet.len())?.to_be_bytes())?;
            stream.write_all(packet)?;
            let mut length = [0; 2];
            stream.read_exact(&mut length)?;
            let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
            stream.read_exact(&mut answer)?;
            return parse(&answer);
        }
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect("127.0.0.11:53")?;
        socket.set_read_timeout(Some(Duration::from_secs(4)))?;
        let mut buffer = [0; 4096];
        for _ in 0..3 {
            socket.send(packet)?;
            if let Ok(length) = socket.recv(&mut buffer) {
                return parse(&buffer[..length]);
            }
        }
        anyhow::bail!("nobody answered")
    })
}

fn ask(pid: u32, name: &str, kind: u16) -> anyhow::Result<Answer> {
    ask_packet(pid, &question(name, kind, false), false)
}

/// Asks until it is so: what was withdrawn may be known for a moment.
fn until(pid: u32, name: &str, wanted: impl Fn(&Answer) -> bool) -> anyhow::Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let answer = ask(pid, name, A)?;
        if wanted(&answer) {
            return Ok(());
        }
        ensure!(Instant::now() < end, "{name}: {answer:?}");
    }
}

fn sleeper(engine: &Engine, name: &str, options: &[&str]) -> anyhow::Result<u32> {
    let mut all = vec!["run", "-d", "--name", name];
    all.extend(options);
    all.extend(["busybox", "sleep", "1000"]);
    engine.docker_ok(&all)?;
    engine.pid(name)
}

fn questions() -> anyhow::Result<()> {
    let engine = Engine::start()?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.71.0.0/24", "net-a"])?;
    let asker = sleeper(&engine, "asker", &["--network", "net-a"])?;
    sleeper(
        &engine,
        "aa",
        &["--network", "net-a", "--ip", "10.71.0.9", "--network-alias", "alias", "--hostname", "hh"],
    )?;
    let id = engine.docker_ok(&["inspect", "-f", "{{.Id}}", "aa"])?;
    let there = Answer { code: NO_ERROR, records: vec![(A, "10.71.0.9".into())], edns: false };
    for known in ["aa", "AA", "alias", "hh", &id[..12], "aa.net-a", "alias.net-a"] {
        for tcp in [false, true] {
            let answer = ask_packet(asker, &question(known, A, false), tcp)?;
            ensure!(answer == there, "{known} tcp={tcp}: {answer:?}");
        }
        // A client with EDNS is answered (by OVN as if it had none, by the resolver with it); one that asks for what is not
        // there is told so.
        let answer = ask_packet(asker, &question(known, A, true), false)?;
        ensure!(answer.addresses() == ["10.71.0.9"], "{known}: {answer:?}");
        let answer = ask_packet(asker, &question(known, A, true), true)?;
        ensure!(answer.addresses() == ["10.71.0.9"] && answer.edns, "{known}: {answer:?}");
        let none = ask(asker, known, AAAA)?;
        ensure!(none.code == NO_ERROR && none.records.is_empty(), "{known}: {none:?}");
    }
    for tcp in [false, true] {
        let pointer = ask_packet(asker, &question("9.0.71.10.in-addr.arpa", PTR, false), tcp)?;
        ensure!(pointer.records == [(PTR, "aa.net-a".to_owned())], "{pointer:?}");
        let nobody = ask_packet(asker, &question("nobody", A, false), tcp)?;
        ensure!(nobody.code == NO_SUCH_NAME, "{nobody:?}");
        let vacant = ask_packet(asker, &question("77.0.71.10.in-addr.arpa", PTR, false), tcp)?;
        ensure!(vacant.code == NO_SUCH_NAME, "{vacant:?}");
    }
    // Its own name, and that of a network it is not on.
    ensure!(ask(asker, "asker", A)?.addresses() == [engine.address("asker", "net-a")?]);
    engine.docker_ok(&["network", "create", "net-b"])?;
    sleeper(&engine, "bb", &["--network", "net-b"])?;
    ensure!(ask(asker, "bb", A)?.code == NO_SUCH_NAME);
    engine.docker_ok(&["network", "connect", "net-b", "asker"])?;
    until(asker, "bb", |answer| answer.records.len() == 1)?;
    // The default bridge has no names and nobody at 127.0.0.11.
    let plain = sleeper(&engine, "plain", &[])?;
    let refused = isolation::in_network_of(plain, || TcpStream::connect("127.0.0.11:53"));
    ensure!(refused.is_err(), "{refused:?}");
    engine.stop()
}

fn follow() -> anyhow::Result<()> {
    let engine = Engine::start()?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.72.0.0/24", "n"])?;
    let asker = sleeper(&engine, "asker", &["--network", "n", "--link", "aa:mine", "--link", "later:soon"])?;
    let on = |ip: &'static str| ["--network", "n", "--network-alias", "both", "--ip", ip];
    sleeper(&engine, "aa", &on("10.72.0.11"))?;
    let other = sleeper(&engine, "bb", &on("10.72.0.12"))?;
    until(asker, "both", |answer| answer.addresses() == ["10.72.0.11", "10.72.0.12"])?;
    // Round robin: either comes first in its turn.
    let mut first = std::collections::BTreeSet::new();
    for _ in 0..64 {
        first.extend(ask(asker, "both", A)?.records.first().map(|(_, text)| text.clone()));
    }
    ensure!(first.len() == 2, "{first:?}");

    // A link is the asker's own word, and follows the name it was made with.
    ensure!(ask(asker, "mine", A)?.addresses() == ["10.72.0.11"]);
    ensure!(ask(other, "mine", A)?.code == NO_SUCH_NAME, "nobody else knows it");
    ensure!(ask(asker, "soon", A)?.code == NO_SUCH_NAME);
    sleeper(&engine, "later", &["--network", "n", "--ip", "10.72.0.13"])?;
    until(asker, "soon", |answer| answer.addresses() == ["10.72.0.13"])?;

    engine.docker_ok(&["pause", "bb"])?;
    ensure!(ask(asker, "bb", A)?.addresses() == ["10.72.0.12"], "a paused container keeps its name");
    engine.docker_ok(&["unpause", "bb"])?;
    engine.docker_ok(&["rename", "aa", "new-name"])?;
    until(asker, "new-name", |answer| answer.addresses() == ["10.72.0.11"])?;
    until(asker, "aa", |answer| answer.code == NO_SUCH_NAME)?;
    until(asker, "mine", |answer| answer.code == NO_SUCH_NAME)?;
    engine.docker_ok(&["stop", "-t", "0", "new-name"])?;
    until(asker, "both", |answer| answer.addresses() == ["10.72.0.12"])?;
    until(asker, "new-name", |answer| answer.code == NO_SUCH_NAME)?;
    engine.docker_ok(&["start", "new-name"])?;
    until(asker, "both", |answer| answer.records.len() == 2)?;
    engine.docker_ok(&["network", "disconnect", "n", "bb"])?;
    until(asker, "both", |answer| answer.addresses() == ["10.72.0.11"])?;
    engine.stop()
}

/// A name server in the outside that has one answer for everything; counts what it is asked.
fn server(outside: &Outside, address: &'static str, answer: Ipv4Addr) -> anyhow::Result<Arc<AtomicUsize>> {
    let socket = isolation::in_network_of(outside.pid(), || -> anyhow::Result<UdpSocket> {
        if address != outside::ADDRESS {
            isolation::run("ip", &["address", "add", &format!("{address}/24"), "dev", "wan1"])?;
        }
        Ok(UdpSocket::bind((address, 53))?)
    })?;
    Ok(answering(socket, answer))
}

/// Answers each question for a name, which is counted, and those for the root.
fn answering(socket: UdpSocket, answer: Ipv4Addr) -> Arc<AtomicUsize> {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // Ends with the process.
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let Ok(reply) = reply(&buffer[..length], answer) else { continue };
            counted.fetch_add(usize::from(reply[7]), Ordering::SeqCst);
            let _ = socket.send_to(&reply, peer);
        }
    });
    count
}

/// An answer, recursion available; one question, one record unless the root was asked for.
fn reply(query: &[u8], answer: Ipv4Addr) -> anyhow::Result<Vec<u8>> {
    let (asked, end) = name(query, 12)?;
    let mut reply = query.get(..end + 4).context("cut off")?.to_vec();
    reply[2] = 0x81;
    reply[3] = 0x80;
    let known = !asked.is_empty();
    reply[4..12].copy_from_slice(&[0, 1, 0, u8::from(known), 0, 0, 0, 0]);
    if known {
        reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        reply.extend(answer.octets());
    }
    Ok(reply)
}

fn forwarding() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let hosts = server(&outside, outside::ADDRESS, Ipv4Addr::new(192, 0, 2, 1))?;
    let own = server(&outside, "198.51.100.3", Ipv4Addr::new(192, 0, 2, 3))?;
    let engine = Engine::start_with(&[&format!("dns={}", outside::ADDRESS)])?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "n"])?;
    engine.docker_ok(&["network", "create", "--internal", "inner"])?;
    let plain = sleeper(&engine, "plain", &["--network", "n"])?;
    let asked = |count: &AtomicUsize| count.load(Ordering::SeqCst);
    // The host's servers, over UDP and, for a client on TCP, the same.
    ensure!(ask(plain, "www.example.org", A)?.addresses() == ["192.0.2.1"]);
    ensure!(ask_packet(plain, &question("www.example.net", A, true), true)?.addresses() == ["192.0.2.1"]);
    ensure!(asked(&hosts) >= 2 && asked(&own) == 0);
    // `--dns` is this container's alone; known names stay known.
    let with = sleeper(&engine, "with", &["--network", "n", "--dns", "198.51.100.3"])?;
    ensure!(ask(with, "www.example.org", A)?.addresses() == ["192.0.2.3"]);
    ensure!(ask(with, "plain", A)?.addresses() == [engine.address("plain", "n")?]);
    ensure!(ask(plain, "www.example.org", A)?.addresses() == ["192.0.2.1"]);
    // What leads nowhere out asks nobody.
    let inner = sleeper(&engine, "inner", &["--network", "inner"])?;
    let before = (asked(&hosts), asked(&own));
    let answer = ask(inner, "www.example.org", A)?;
    ensure!(answer.code == SERVER_FAILURE && answer.records.is_empty(), "{answer:?}");
    ensure!(ask(inner, "inner", A)?.records.len() == 1);
    ensure!((asked(&hosts), asked(&own)) == before, "an internal network's question left the engine");
    // On a second network that leads out it may ask.
    engine.docker_ok(&["network", "connect", "n", "inner"])?;
    ensure!(ask(inner, "www.example.org", A)?.addresses() == ["192.0.2.1"]);
    // After its last user network a container still has somebody to ask.
    sleeper(&engine, "leaver", &[])?;
    engine.docker_ok(&["network", "connect", "n", "leaver"])?;
    engine.docker_ok(&["network", "disconnect", "n", "leaver"])?;
    ensure!(ask(engine.pid("leaver")?, "www.example.org", A)?.addresses() == ["192.0.2.1"]);
    engine.stop()
}

fn loopback() -> anyhow::Result<()> {
    // As with systemd-resolved: the only server that the host names is on its loopback, and nothing tells of another.
    let list = "/run/resolv.conf";
    std::fs::write(list, "nameserver 127.0.0.53\nnameserver 127.0.0.54\n")?;
    isolation::run("mount", &["--bind", list, "/etc/resolv.conf"])?;
    let count = answering(UdpSocket::bind("127.0.0.54:53")?, Ipv4Addr::new(192, 0, 2, 54));
    let streams = std::net::TcpListener::bind("127.0.0.54:53")?;
    std::thread::spawn(move || {
        for mut stream in streams.incoming().flatten() {
            let mut length = [0; 2];
            let Ok(()) = stream.read_exact(&mut length) else { continue };
            let mut query = vec![0; u16::from_be_bytes(length).into()];
            let Ok(()) = stream.read_exact(&mut query) else { continue };
            let reply = reply(&query, Ipv4Addr::new(192, 0, 2, 55)).unwrap_or_default();
            let length = u16::try_from(reply.len()).unwrap_or(0).to_be_bytes();
            let _ = stream.write_all(&[&length[..], &reply].concat());
        }
    });
    let engine = Engine::start()?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "n"])?;
    let pid = sleeper(&engine, "asker", &["--network", "n"])?;
    let asked = |name: &str| ask(pid, name, A).map(|answer| answer.addresses());
    ensure!(asked("www.example.org")? == ["192.0.2.54"]);
    ensure!(ask_packet(pid, &question("www.example.net", A, true), true)?.addresses() == ["192.0.2.55"]);
    ensure!(asked("asker")? == [engine.address("asker", "n")?]);
    // Nobody but the helper's resolver is answered where arca-netd asks for it.
    let addresses = isolation::output("ip", &["-4", "-o", "address", "show", "dev", &engine.uplink()])?;
    let here =
        addresses.split_whitespace().find_map(|word| word.strip_suffix("/29")).context("the uplink's address")?;
    let sockets = isolation::output("ss", &["-Hlun"])?;
    let ports: Vec<u16> = sockets
        .split_whitespace()
        .filter_map(|word| word.strip_prefix(&format!("{here}%{}:", engine.uplink()))?.parse().ok())
        .collect();
    ensure!(ports.len() == 2, "one for each server: {sockets}");
    let before = count.load(Ordering::SeqCst);
    let silent = |from: u32, port: u16| -> anyhow::Result<bool> {
        isolation::in_network_of(from, || {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            socket.set_read_timeout(Some(Duration::from_millis(300)))?;
            socket.send_to(&question("stranger.example", A, false), (here, port))?;
            Ok(socket.recv(&mut [0; 512]).is_err())
        })
    };
    for port in ports {
        ensure!(silent(pid, port)? && silent(std::process::id(), port)?, "port {port} answers strangers");
    }
    ensure!(count.load(Ordering::SeqCst) == before, "a stranger's question was asked");
    engine.docker_ok(&["rm", "-f", "asker"])?;
    engine.stop()?;
    isolation::run("umount", &["/etc/resolv.conf"])
}
