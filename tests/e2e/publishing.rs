// SPDX-License-Identifier: Apache-2.0
//! Published ports: who comes in by which address, what is refused and how, and that what Docker's client shows is what
//! is bound.
//!
//! In the containers serve sockets of this process, bound before anybody asks: they answer with the client's address.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation::{in_network_of, output, run},
    outside::{ADDRESS, GATEWAY, Outside, WHO_PORT},
};
use serde_json::{Value, json};

use crate::{Test, proofs::eventually};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("clients_come_in_from_everywhere_and_only_where_bound", everywhere),
    ("every_form_is_bound_as_shown_and_refusals_are_dockers", forms),
    ("ports_live_with_their_container", life),
    ("ports_follow_the_default_route", following),
    ("a_neighbours_firewall_is_named_and_the_listener_serves", neighbour),
    ("udp_clients_keep_their_replies_apart_and_none_is_lost", datagrams),
];

const PATIENCE: Option<Duration> = Some(Duration::from_secs(10));

fn engine(networks: &[&[&str]]) -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    for arguments in networks {
        engine.docker_ok(&[&["network", "create"], *arguments].concat())?;
    }
    Ok(engine)
}

pub(crate) fn sleeper(engine: &Engine, name: &str, arguments: &[&str]) -> anyhow::Result<()> {
    let all = [&["run", "-d", "--name", name][..], arguments, &["busybox", "sleep", "1000"]].concat();
    engine.docker_ok(&all).map(drop)
}

/// Serves a port of a running container, TCP and UDP: who asked, and what. The connection stays open until the client
/// ends it.
pub(crate) fn serve(engine: &Engine, name: &str, port: u16) -> anyhow::Result<()> {
    let (tcp, udp) = in_network_of(engine.pid(name)?, || -> anyhow::Result<_> {
        Ok((TcpListener::bind(("0.0.0.0", port))?, UdpSocket::bind(("0.0.0.0", port))?))
    })?;
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let who = stream.peer_addr().map(|peer| peer.ip().to_string()).unwrap_or_default();
            std::thread::spawn(move || {
                let _ = stream.write_all(format!("{who}\n").as_bytes());
                let _ = stream.read_to_end(&mut Vec::new());
            });
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, peer)) = udp.recv_from(&mut buffer) {
            let text = format!("{} {}", peer.ip(), String::from_utf8_lossy(&buffer[..length]));
            let _ = udp.send_to(text.as_bytes(), peer);
        }
    });
    Ok(())
}

/// Opens a connection and reads who one is to the container.
fn open(to: &str) -> anyhow::Result<(TcpStream, IpAddr)> {
    let address: SocketAddr = to.parse().with_context(|| to.to_owned())?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(10)).with_context(|| to.to_owned())?;
    stream.set_read_timeout(PATIENCE)?;
    let mut text = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).with_context(|| to.to_owned())? == 1 && byte != *b"\n" {
        text.push(byte[0]);
    }
    Ok((stream, String::from_utf8(text)?.parse().with_context(|| format!("{to} said nothing"))?))
}

pub(crate) fn who(to: &str) -> anyhow::Result<IpAddr> {
    open(to).map(|(_, who)| who)
}

fn refuses(to: &str) -> bool {
    let Ok(address) = to.parse::<SocketAddr>() else { return false };
    TcpStream::connect_timeout(&address, Duration::from_secs(10))
        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused)
}

/// Asks by UDP until an answer comes: a datagram may be lost.
pub(crate) fn udp_who(to: &str) -> anyhow::Result<IpAddr> {
    let unspecified = if to.starts_with('[') { "[::]:0" } else { "0.0.0.0:0" };
    let socket = UdpSocket::bind(unspecified)?;
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(to)?;
    let mut buffer = [0; 100];
    for _ in 0..5 {
        socket.send(b"x")?;
        if let Ok(length) = socket.recv(&mut buffer) {
            let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
            return text.split(' ').next().context("an address")?.parse().context(text.clone());
        }
    }
    anyhow::bail!("{to} does not answer")
}

/// The engine's address on its uplink: who comes in by a listener is that to the container.
pub(crate) fn uplink(engine: &Engine) -> anyhow::Result<IpAddr> {
    let text = output("ip", &["-4", "-o", "address", "show", "dev", &engine.uplink()])?;
    Ok(text.split_whitespace().nth(3).and_then(|net| net.split('/').next()).context("uplink")?.parse()?)
}

/// `tcp 0.0.0.0:8080`, as arca-relayd has bound them.
fn bound(engine: &Engine) -> anyhow::Result<BTreeSet<String>> {
    let list: Vec<Value> = serde_json::from_str(&engine.program("arca-relayd", &["ports", "--json"]).ok()?)?;
    let text = |port: &Value, key: &str| port[key].as_str().unwrap_or_default().to_owned();
    Ok(list.iter().map(|port| format!("{} {}", text(port, "protocol"), text(port, "host"))).collect())
}

/// What `docker port`, `docker inspect` and `docker ps` show of all these containers is the same, and it is what is bound.
fn shown_is_bound(engine: &Engine, containers: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut inspected = BTreeSet::new();
    for container in containers {
        let mut own = BTreeSet::new();
        let ports = engine.inspect(container)?["NetworkSettings"]["Ports"].clone();
        for (key, hosts) in ports.as_object().context("Ports")? {
            let protocol = key.split_once('/').context("a protocol")?.1;
            for host in hosts.as_array().into_iter().flatten() {
                let (ip, port) = (host["HostIp"].as_str().unwrap_or("?"), host["HostPort"].as_str().unwrap_or("?"));
                let ip = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
                own.insert((protocol.to_owned(), format!("{ip}:{port}")));
            }
        }
        let lines = engine.docker_ok(&["port", container])?;
        let port: BTreeSet<_> = lines
            .lines()
            .filter_map(|line| line.split_once(" -> "))
            .map(|(key, host)| (key.rsplit('/').next().unwrap_or_default().to_owned(), host.to_owned()))
            .collect();
        ensure!(port == own, "{container}: docker port says {port:?}, inspect {own:?}");
        let filter = format!("name=^{container}$");
        let ps = engine.docker_ok(&["ps", "-a", "--filter", &filter, "--format", "{{.Ports}}"])?;
        ensure!(own.is_empty() || ps.contains("->"), "{container}: docker ps says {ps:?}, inspect {own:?}");
        ensure!(!own.is_empty() || !ps.contains("->"), "{container}: docker ps says {ps:?}, inspect nothing");
        inspected.extend(own.into_iter().map(|(protocol, host)| format!("{protocol} {host}")));
    }
    let bound = bound(engine)?;
    ensure!(inspected == bound, "shown {inspected:?}, bound {bound:?}");
    for entry in &bound {
        let (protocol, host) = entry.split_once(' ').context("an entry")?;
        // IPv6 sockets of the standard library take IPv4 as well, and would collide with that listener.
        let taken = match protocol {
            "tcp" => TcpListener::bind(host).is_err(),
            _ => UdpSocket::bind(host).is_err(),
        };
        ensure!(taken, "{entry} is shown and could be bound");
    }
    Ok(bound)
}

fn everywhere() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[&["n"], &["m"]])?;
    let address = format!("{GATEWAY}:8083:80");
    let ports = ["8080:80", "127.0.0.1:8081:80", "[::1]:8082:80", &address, "8080:80/udp", "127.0.0.1:8081:80/udp"];
    let mut arguments = vec!["--network", "n"];
    ports.iter().for_each(|port| arguments.extend(["-p", port]));
    sleeper(&engine, "web", &arguments)?;
    serve(&engine, "web", 80)?;
    for (name, network) in [("peer", "n"), ("other", "m"), ("plain", "bridge")] {
        sleeper(&engine, name, &["--network", network])?;
    }
    let bound = shown_is_bound(&engine, &["web"])?;
    ensure!(bound.len() == 8, "{bound:?}");
    let host = uplink(&engine)?;

    for to in ["127.0.0.1:8080", "[::1]:8080", "127.0.0.1:8081", "[::1]:8082", &format!("{GATEWAY}:8080")] {
        ensure!(who(to)? == host, "from the host by {to}");
    }
    ensure!(udp_who("127.0.0.1:8080")? == host && udp_who("[::1]:8080")? == host && udp_who("127.0.0.1:8081")? == host);
    ensure!(
        refuses("[::1]:8081") && refuses("127.0.0.1:8082") && refuses("127.0.0.1:8083"),
        "bound to one address only"
    );
    ensure!(refuses(&format!("{GATEWAY}:8081")));

    // Clients elsewhere are redirected in the kernel: the container sees their address.
    let far: IpAddr = ADDRESS.parse()?;
    in_network_of(outside.pid(), || {
        for port in [8080, 8083] {
            let seen = who(&format!("{GATEWAY}:{port}"))?;
            ensure!(seen == far, "a client outside is {seen} to the container");
        }
        ensure!(udp_who(&format!("{GATEWAY}:8080"))? == far, "by UDP too");
        ensure!(refuses(&format!("{GATEWAY}:8081")) && refuses(&format!("{GATEWAY}:8082")), "loopback is not outside");
        Ok(())
    })?;

    // Containers come by any address of the host, also the one that published it.
    for name in ["web", "peer", "other", "plain"] {
        in_network_of(engine.pid(name)?, || {
            for to in [format!("{GATEWAY}:8080"), format!("{host}:8080"), format!("{GATEWAY}:8083")] {
                ensure!(who(&to)? == host, "{name} by {to}");
            }
            ensure!(udp_who(&format!("{GATEWAY}:8080"))? == host, "{name} by UDP");
            ensure!(refuses(&format!("{host}:8081")), "{name} is not on the host's loopback");
            Ok(())
        })
        .with_context(|| format!("from {name}"))?;
    }
    engine.stop()
}

fn forms() -> anyhow::Result<()> {
    let _outside = Outside::start()?;
    let engine = engine(&[])?;
    // Somebody who is no container.
    let foreign = TcpListener::bind("0.0.0.0:8103")?;
    let mut arguments = vec!["-P", "--expose", "90", "--expose", "91/udp"];
    for port in ["8100-8102:80-82", "8103-8105:83", "84", "127.0.0.1::85", "8106:86", "8107:86", "8106:86/udp"] {
        arguments.extend(["-p", port]);
    }
    sleeper(&engine, "aa", &arguments)?;
    serve(&engine, "aa", 83)?;
    serve(&engine, "aa", 86)?;
    let all = shown_is_bound(&engine, &["aa"])?;
    let has = |entry: &str| all.contains(entry);
    ensure!(
        (8100..=8102).all(|port| has(&format!("tcp 0.0.0.0:{port}")) && has(&format!("tcp [::]:{port}"))),
        "{all:?}"
    );
    ensure!(has("tcp 0.0.0.0:8104") && !has("tcp 0.0.0.0:8103") && !has("tcp 0.0.0.0:8105"), "first free: {all:?}");
    ensure!(has("tcp 0.0.0.0:8106") && has("tcp 0.0.0.0:8107") && has("udp 0.0.0.0:8106"), "{all:?}");
    // 3 + 1 + 1 + 3 and two exposed ones at both addresses, one at loopback.
    ensure!(all.len() == 10 * 2 + 1, "{all:?}");
    let high: Vec<u16> = all.iter().filter_map(|e| e.rsplit(':').next()?.parse().ok()).filter(|p| *p > 9000).collect();
    ensure!(high.len() == 3 * 2 + 1 && high.iter().all(|port| (32_768..=60_999).contains(port)), "{high:?}");
    ensure!(who("127.0.0.1:8104").is_ok() && who("127.0.0.1:8106").is_ok() && who("127.0.0.1:8107").is_ok());
    ensure!(udp_who("127.0.0.1:8106").is_ok());

    let refused = |port: &str, text: &str| {
        let ran = engine.docker(&["run", "--name", "zz", "-p", port, "busybox", "true"]);
        ensure!(ran.code == 125 && ran.stderr.contains(text), "{port}: {ran:?}");
        // Created and not started, as Docker leaves it; or not even created.
        engine.docker(&["rm", "-f", "zz"]);
        Ok(())
    };
    let failed =
        "failed to set up container networking: driver failed programming external connectivity on endpoint zz (";
    refused("8100:80", "Bind for 0.0.0.0:8100 failed: port is already allocated")?;
    // What is named is the address that holds it.
    refused("127.0.0.1:8100:80", "Bind for 0.0.0.0:8100 failed: port is already allocated")?;
    refused("[::]:8100:80", "Bind for :::8100 failed: port is already allocated")?;
    refused("8103:80", "failed to bind host port for 0.0.0.0:8103:172.17.0.")?;
    refused("8103:80", ":80/tcp: address already in use")?;
    refused("8103:80", failed)?;
    refused("203.0.113.9:8108:80", "failed to bind host port for 203.0.113.9:8108:172.17.0.")?;
    refused("203.0.113.9:8108:80", ":80/tcp: cannot assign requested address")?;
    refused("8109:80/sctp", "SCTP")?;
    refused("8102-8102:80", "Bind for 0.0.0.0:8102 failed: port is already allocated")?;
    ensure!(bound(&engine)? == all, "refusals leave nothing behind");
    drop(foreign);

    // Any port, several containers at once: never the same.
    let names = ["r1", "r2", "r3", "r4"];
    let started: Vec<anyhow::Result<()>> = std::thread::scope(|scope| {
        let each = names.map(|name| scope.spawn(|| sleeper(&engine, name, &["-p", "80", "-p", "8110-8119:81"])));
        each.into_iter().map(|one| one.join().unwrap_or_else(|_| Err(anyhow::anyhow!("panicked")))).collect()
    });
    started.into_iter().collect::<anyhow::Result<Vec<()>>>()?;
    let all = shown_is_bound(&engine, &["aa", "r1", "r2", "r3", "r4"])?;
    ensure!(all.len() == 21 + names.len() * 4, "{all:?}");
    ensure!((8110..8114).all(|port| all.contains(&format!("tcp 0.0.0.0:{port}"))), "{all:?}");

    // A network's own host address for ports that name none.
    let own = "com.docker.network.bridge.host_binding_ipv4=127.0.0.1";
    engine.docker_ok(&["network", "create", "-o", own, "own"])?;
    sleeper(&engine, "oo", &["--network", "own", "-p", "8120:80"])?;
    let ports = engine.inspect("oo")?["NetworkSettings"]["Ports"].clone();
    ensure!(ports == json!({"80/tcp": [{"HostIp": "127.0.0.1", "HostPort": "8120"}]}), "{ports}");
    engine.stop()
}

fn life() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[])?;
    sleeper(&engine, "aa", &["--stop-timeout", "0", "-p", "8200:80", "-p", "80", "-p", "8200:80/udp"])?;
    serve(&engine, "aa", 80)?;
    let before = shown_is_bound(&engine, &["aa"])?;
    let port = |all: &BTreeSet<String>| {
        let high = all.iter().filter_map(|entry| entry.rsplit(':').next()?.parse::<u16>().ok());
        high.max().context("a port")
    };
    let ephemeral = port(&before)?;
    let held = |address: &str| open(&format!("{address}:8200"));
    // One connection by the listener, one that the kernel redirects; both are idle when the port goes.
    let (mut near, _) = held("127.0.0.1")?;
    let (mut far, seen) = in_network_of(outside.pid(), || held(GATEWAY))?;
    ensure!(seen == ADDRESS.parse::<IpAddr>()?);

    engine.docker_ok(&["pause", "aa"])?;
    ensure!(shown_is_bound(&engine, &["aa"])? == before, "kept over pause");
    engine.docker_ok(&["unpause", "aa"])?;
    ensure!(who("127.0.0.1:8200").is_ok());

    engine.docker_ok(&["stop", "aa"])?;
    ensure!(shown_is_bound(&engine, &["aa"])?.is_empty(), "freed on stop");
    ensure!(refuses("127.0.0.1:8200") && in_network_of(outside.pid(), || refuses(&format!("{GATEWAY}:8200"))));
    drop(TcpListener::bind("0.0.0.0:8200").context("the port is free")?);
    let ended = |stream: &mut TcpStream| {
        // Cut: an end or a reset, the latter in answer to something sent. Never silence.
        let _ = stream.write_all(b"x").and_then(|()| stream.write_all(b"y"));
        match stream.read(&mut [0; 16]) {
            Ok(length) => length == 0,
            Err(error) => !matches!(error.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut),
        }
    };
    ensure!(ended(&mut near), "a connection by the listener is cut");
    ensure!(ended(&mut far), "a redirected connection is cut");

    // A stopped container holds no port against others.
    sleeper(&engine, "thief", &["-p", "8200:80"])?;
    let late = engine.docker(&["start", "aa"]);
    ensure!(
        late.code == 1 && late.stderr.contains("Bind for 0.0.0.0:8200 failed: port is already allocated"),
        "{late:?}"
    );
    engine.docker_ok(&["rm", "-f", "thief"])?;
    engine.docker_ok(&["start", "aa"])?;
    serve(&engine, "aa", 80)?;
    let after = shown_is_bound(&engine, &["aa"])?;
    ensure!(after.len() == before.len() && after.contains("tcp 0.0.0.0:8200") && after.contains("udp 0.0.0.0:8200"));
    ensure!(who("127.0.0.1:8200").is_ok() && who(&format!("127.0.0.1:{}", port(&after)?)).is_ok());
    ensure!(who(&format!("127.0.0.1:{ephemeral}")).is_ok() == (port(&after)? == ephemeral), "shown is served");
    ensure!(in_network_of(outside.pid(), || who(&format!("{GATEWAY}:8200")))? == ADDRESS.parse::<IpAddr>()?);

    engine.docker_ok(&["restart", "-t", "0", "aa"])?;
    ensure!(shown_is_bound(&engine, &["aa"])?.contains("tcp 0.0.0.0:8200"), "restored on restart");
    // Relay and control plane may go: the ports come back as they were.
    let all = bound(&engine)?;
    engine.kill_daemon("arca-relayd")?;
    eventually("the published ports", || bound(&engine).is_ok_and(|now| now == all))?;
    serve(&engine, "aa", 80)?;
    eventually("the way in", || who("127.0.0.1:8200").is_ok())?;
    ensure!(in_network_of(outside.pid(), || who(&format!("{GATEWAY}:8200")))? == ADDRESS.parse::<IpAddr>()?);
    engine.docker_ok(&["rm", "-f", "aa"])?;
    ensure!(bound(&engine)?.is_empty());
    let tables = output("nft", &["list", "tables"])?;
    ensure!(!tables.contains("arca_publish"), "the last rule takes its table along: {tables}");
    engine.stop()
}

fn following() -> anyhow::Result<()> {
    let engine = engine(&[&["aside"], &["best"], &["--internal", "inner"]])?;
    sleeper(&engine, "cc", &["--network", "aside", "-p", "8300:80"])?;
    serve(&engine, "cc", 80)?;
    let all = shown_is_bound(&engine, &["cc"])?;
    ensure!(who("127.0.0.1:8300").is_ok() && all.len() == 2);
    // Which of the container's addresses the port leads to is in the row of OVN.
    let leads_to = |network: &str| -> anyhow::Result<()> {
        let rows = crate::proofs::nbctl(&[
            "--bare",
            "--columns=vips",
            "find",
            "Load_Balancer",
            "external_ids:arca-kind=published",
        ])?;
        let target = format!("{}:80", engine.address("cc", network)?);
        ensure!(rows.contains(&target), "{rows:?} does not lead to {target}");
        ensure!(who("127.0.0.1:8300").is_ok(), "reached by {network}");
        ensure!(shown_is_bound(&engine, &["cc"])? == all, "shown and bound by {network}");
        Ok(())
    };
    leads_to("aside")?;
    engine.docker_ok(&["network", "connect", "--gw-priority", "5", "best", "cc"])?;
    leads_to("best")?;
    engine.docker_ok(&["network", "disconnect", "best", "cc"])?;
    leads_to("aside")?;

    // No way out, no port: neither shown nor bound. Another container may have it then.
    engine.docker_ok(&["network", "connect", "inner", "cc"])?;
    engine.docker_ok(&["network", "disconnect", "aside", "cc"])?;
    ensure!(shown_is_bound(&engine, &["cc"])?.is_empty(), "an internal network publishes nothing");
    ensure!(refuses("127.0.0.1:8300"));
    let other = TcpListener::bind("0.0.0.0:8300").context("the port is free")?;
    let late = engine.docker(&["network", "connect", "aside", "cc"]);
    ensure!(late.code == 1 && late.stderr.contains("address already in use"), "{late:?}");
    ensure!(shown_is_bound(&engine, &["cc"])?.is_empty());
    drop(other);
    engine.docker_ok(&["network", "connect", "aside", "cc"])?;
    leads_to("aside")?;
    engine.stop()
}

fn neighbour() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[])?;
    sleeper(&engine, "aa", &["-p", "8400:80"])?;
    serve(&engine, "aa", 80)?;
    let from_outside = || in_network_of(outside.pid(), || who(&format!("{GATEWAY}:8400")));
    let way = |start: &str| {
        let text = engine.program("arca-relayd", &["ports", "--json"]).ok().unwrap_or_default();
        let list: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        let ours = list.iter().find(|port| port["host"] == "0.0.0.0:8400");
        ours.is_some_and(|port| port["way"].as_str().is_some_and(|way| way.starts_with(start)))
    };
    let far: IpAddr = ADDRESS.parse()?;
    ensure!(way("nftables+listener") && from_outside()? == far, "redirected at first");
    // Another engine or a firewall comes.
    run(
        "nft",
        &["add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }"],
    )?;
    eventually("the listener's turn", || way("listener (chain FORWARD of nftables table ip filter drops"))?;
    ensure!(from_outside()? == uplink(&engine)?, "served by the listener, which has an address of its own");
    let logs = engine.arca(&["daemon", "logs", "-n", "200"]).stdout;
    ensure!(logs.contains("drops forwarded packets by policy"), "the neighbour is named in the log");
    run("nft", &["delete", "table", "ip", "filter"])?;
    eventually("the kernel's turn", || way("nftables+listener"))?;
    ensure!(from_outside()? == far, "redirected again");
    engine.stop()
}

fn datagrams() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[&["n"]])?;
    sleeper(&engine, "aa", &["--network", "n", "-p", "8500:53/udp"])?;
    serve(&engine, "aa", 53)?;
    const CLIENTS: usize = 50;
    // As many clients at once, each from a socket of its own, in the first moment of the engine's life: none is lost.
    let burst = |to: &str, question: &dyn Fn(usize) -> Vec<u8>| -> anyhow::Result<Vec<Vec<u8>>> {
        let sockets: Vec<UdpSocket> =
            (0..CLIENTS).map(|_| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).collect::<Result<_, _>>()?;
        for socket in &sockets {
            socket.connect(to)?;
            socket.set_read_timeout(PATIENCE)?;
        }
        let mut answers = Vec::new();
        // Twice: each flow is found again.
        for first in [0, CLIENTS] {
            let questions: Vec<Vec<u8>> = (first..first + CLIENTS).map(question).collect();
            for (socket, question) in sockets.iter().zip(&questions) {
                socket.send(question)?;
            }
            for (number, socket) in sockets.iter().enumerate() {
                let mut buffer = [0; 512];
                let length =
                    socket.recv(&mut buffer).with_context(|| format!("{to} does not answer client {number}"))?;
                answers.push(buffer[..length].to_vec());
            }
        }
        Ok(answers)
    };
    let ask = |to: &str, seen_as: IpAddr| -> anyhow::Result<()> {
        for (number, answer) in burst(to, &|number| number.to_string().into_bytes())?.iter().enumerate() {
            let text = String::from_utf8_lossy(answer);
            ensure!(text == format!("{seen_as} {number}"), "{to} answers question {number} by {text:?}");
        }
        Ok(())
    };
    ask("127.0.0.1:8500", uplink(&engine)?)?;
    in_network_of(outside.pid(), || ask(&format!("{GATEWAY}:8500"), ADDRESS.parse()?))?;
    // The way out, and the resolver, who stands on the uplink as well (RFC 1035 section 4.1: a question for MX).
    in_network_of(engine.pid("aa")?, || -> anyhow::Result<()> {
        burst(&format!("{ADDRESS}:{WHO_PORT}"), &|_| b"x".to_vec())?;
        let question = |number: usize| {
            let id = u16::try_from(number).unwrap_or_default().to_be_bytes();
            [&id[..], b"\x01\0\0\x01\0\0\0\0\0\0\x02aa\0\0\x0f\0\x01"].concat()
        };
        let answers = burst(&format!("{}:53", gateway(&engine, "n")?), &question)?;
        let right = |(number, answer): (usize, &Vec<u8>)| answer.starts_with(&question(number)[..2]);
        ensure!(answers.iter().enumerate().all(right), "answers to other questions: {answers:?}");
        Ok(())
    })?;
    engine.stop()
}

fn gateway(engine: &Engine, network: &str) -> anyhow::Result<String> {
    engine.docker_ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network])
}
