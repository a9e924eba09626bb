// SPDX-License-Identifier: Apache-2.0
//! Who reaches a container by its own address, who sees that address, and which addresses there are to be given out:
//! options of networks that the host's routes and packet filter take part in.

use std::{
    fs,
    net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6, TcpStream, UdpSocket},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    engine::Engine,
    isolation::{in_network_of, output, run},
    outside::{ADDRESS, ADDRESS6, GATEWAY, GATEWAY6, Outside, WHO_PORT, ask_who},
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("networks_are_reached_as_their_options_say", options),
    ("subnets_of_every_size_and_first_addresses_are_given_out", sizes),
    ("a_host_without_ipv6_is_served_and_told_what_is_missing", without_ipv6),
];

/// Ports 80 and 81 listen when this returns; what `options` publish is up to them.
fn server(engine: &Engine, name: &str, network: &str, options: &[&str]) -> anyhow::Result<u32> {
    let script = "mkdir -p /srv && httpd -p 80 -h /srv && httpd -p 81 -h /srv && echo listening && exec sleep 1000";
    let all = [&["run", "-d", "--name", name, "--network", network][..], options, &["busybox", "sh", "-c", script]];
    engine.docker_ok(&all.concat())?;
    engine.until_said(name, "listening")?;
    engine.pid(name)
}

/// Whether a connection is accepted, seen from the network of process `from`. One that should be is given time.
fn reaches(from: u32, to: &str, wanted: bool) -> anyhow::Result<bool> {
    let to: SocketAddr = to.parse()?;
    let limit = if wanted { Duration::from_secs(10) } else { Duration::from_millis(400) };
    Ok(in_network_of(from, || TcpStream::connect_timeout(&to, limit)).is_ok())
}

fn expect(from: u32, who: &str, list: &[(&str, bool)]) -> anyhow::Result<()> {
    for (to, wanted) in list {
        ensure!(reaches(from, to, *wanted)? == *wanted, "{who} to {to}: not {wanted}");
    }
    Ok(())
}

fn options() -> anyhow::Result<()> {
    const MODE: &str = "com.docker.network.bridge.gateway_mode_ipv4";
    let outside = Outside::start()?;
    run("ip", &["address", "add", "198.51.100.22/24", "dev", "wan0"])?;
    in_network_of(outside.pid(), || -> anyhow::Result<()> {
        run("ip", &["route", "add", "10.88.0.0/13", "via", GATEWAY])?;
        run("ip", &["route", "add", "fd00:91::/64", "via", GATEWAY6])
    })?;
    let engine = Engine::start()?;
    engine.load_image()?;
    let networks: &[(&str, &str, &[&str])] = &[
        ("plain", "10.90.0.0/24", &[]),
        ("routed", "10.91.0.0/24", &["routed"]),
        ("open", "10.92.0.0/24", &["nat-unprotected"]),
        ("bare", "10.93.0.0/24", &["-o", "com.docker.network.bridge.enable_ip_masquerade=false"]),
        ("named", "10.94.0.0/24", &["-o", "com.docker.network.host_ipv4=198.51.100.22"]),
        ("trusted", "10.95.0.0/24", &["-o", "com.docker.network.bridge.trusted_host_interfaces=zz0:wan0"]),
        ("beside", "10.89.0.0/24", &["routed"]),
    ];
    let mut pids = Vec::new();
    for (at, (name, subnet, more)) in networks.iter().enumerate() {
        let mode = more.first().map(|mode| format!("{MODE}={mode}")).unwrap_or_default();
        let more = if let [_] = more { &["-o", mode.as_str()][..] } else { more };
        let six = ["--ipv6", "--subnet", "fd00:91::/64", "-o", "com.docker.network.bridge.gateway_mode_ipv6=routed"];
        let six = if *name == "routed" { &six[..] } else { &[] };
        engine.docker_ok(&[&["network", "create", "--subnet", subnet][..], more, six, &[*name]].concat())?;
        pids.push(server(&engine, &format!("c-{name}"), name, &["-p", &format!("1808{at}:80")])?);
    }
    let [plain, routed, open, bare, named, trusted, beside] = pids[..] else { bail!("{pids:?}") };

    // By their own addresses from outside: the published port, and one that is not.
    let from_outside = |closed: bool| {
        let mut list = vec![
            ("10.91.0.2:80", true),
            ("[fd00:91::2]:80", true),
            ("10.92.0.2:80", true),
            ("10.92.0.2:81", true),
            ("10.95.0.2:80", true),
        ];
        let shut = ["10.90.0.2:80", "10.91.0.2:81", "[fd00:91::2]:81", "10.93.0.2:80", "10.94.0.2:80", "10.95.0.2:81"];
        list.extend(shut.into_iter().filter(|_| closed).map(|to| (to, false)));
        expect(outside.pid(), "outside", &list)
    };
    from_outside(true)?;
    // The host reaches every port of what it has a route to, and what is routed has no port of the host.
    let host = std::process::id();
    expect(host, "the host", &[("10.91.0.2:81", true), ("10.93.0.2:81", true), ("127.0.0.1:18082", true)])?;
    expect(host, "the host", &[("127.0.0.1:18081", false)])?;
    expect(outside.pid(), "outside", &[("198.51.100.2:18083", true), ("198.51.100.2:18081", false)])?;
    let shown = engine.docker_ok(&["inspect", "-f", "{{json .NetworkSettings.Ports}}", "c-routed"])?;
    ensure!(shown == r#"{"80/tcp":[{"HostIp":"0.0.0.0","HostPort":""},{"HostIp":"::","HostPort":""}]}"#, "{shown}");
    // Other networks reach what is published on a routed one, and nothing else.
    for (name, pid) in [("plain", plain), ("open", open), ("bare", bare), ("beside", beside)] {
        expect(pid, name, &[("10.91.0.2:80", true), ("10.91.0.2:81", false)])?;
        // The ports of the host are theirs as everybody's.
        expect(pid, name, &[("198.51.100.2:18084", true)])?;
    }
    expect(plain, "plain", &[("10.92.0.2:80", false), ("10.93.0.2:80", false)])?;
    expect(routed, "routed", &[("10.90.0.2:80", false), ("198.51.100.2:18080", true), ("10.91.0.2:81", true)])?;

    // Whom the outside sees.
    for (pid, seen) in [
        (plain, GATEWAY),
        (routed, "10.91.0.2"),
        (open, GATEWAY),
        (bare, "10.93.0.2"),
        (named, "198.51.100.22"),
        (trusted, GATEWAY),
    ] {
        let who = ask_who(pid, ADDRESS, WHO_PORT)?;
        ensure!(who == seen, "{who} is seen, not {seen}");
    }
    ensure!(ask_who(routed, ADDRESS6, WHO_PORT)? == "fd00:91::2");

    // All of it is there again with the engine's daemons, and goes with what it is for.
    engine.arca(&["daemon", "stop"]).ok()?;
    engine.arca(&["-c", "link=stream", "daemon", "start"]).ok()?;
    from_outside(false)?;
    engine.docker_ok(&["rm", "-f", "c-routed", "c-open"])?;
    server(&engine, "again", "routed", &["--ip", "10.91.0.2"])?;
    expect(outside.pid(), "outside", &[("10.91.0.2:80", false), ("10.95.0.2:80", true)])?;
    engine.docker_ok(&["network", "rm", "open"])?;
    let routes = output("ip", &["route"])?;
    ensure!(!routes.contains("10.92.") && routes.contains("10.91.0.0/24"), "{routes}");
    // What cannot be is said.
    run("ip", &["route", "add", "10.99.0.0/16", "via", ADDRESS])?;
    let met = engine.docker(&["network", "create", "--subnet", "10.99.5.0/24", "-o", &format!("{MODE}=routed"), "met"]);
    ensure!(met.code == 1 && met.stderr.contains("Pool overlaps with other one"), "{met:?}");
    let inhibit = engine.docker(&["network", "create", "-o", "com.docker.network.bridge.inhibit_ipv4=true", "inh"]);
    ensure!(inhibit.code == 1 && inhibit.stderr.contains("inhibit_ipv4=true is not supported"), "{inhibit:?}");
    run("ip", &["route", "delete", "10.99.0.0/16"])?;
    engine.stop()
}

/// A container's address and default route on a network, as it sees them.
fn sees(engine: &Engine, network: &str, more: &[&str]) -> anyhow::Result<String> {
    let look = "ip -4 -o addr show dev eth0 | sed 's/.*inet //;s/ .*//'; ip route | grep default | cut -d' ' -f3";
    let all = [&["run", "--rm", "--network", network][..], more, &["busybox", "sh", "-c", look]];
    engine.docker_ok(&all.concat()).map(|text| text.replace('\n', " "))
}

fn sizes() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = Engine::start()?;
    engine.load_image()?;
    let create = |arguments: &[&str]| engine.docker_ok(&[&["network", "create"], arguments].concat());
    create(&["--subnet", "10.64.0.0/24", "--gateway", "10.64.0.254", "far"])?;
    create(&["--subnet", "10.60.1.0/31", "two"])?;
    create(&["--subnet", "10.60.1.2/31", "--gateway", "10.60.1.3", "next"])?;
    create(&["--subnet", "10.60.2.0/32", "one"])?;
    create(&["--subnet", "100.0.0.0/7", "large"])?;
    for (network, seen) in [
        ("far", "10.64.0.1/24 10.64.0.254"),
        ("two", "10.60.1.1/31 10.60.1.0"),
        ("next", "10.60.1.2/31 10.60.1.3"),
        ("large", "100.0.0.2/7 100.0.0.1"),
    ] {
        let found = sees(&engine, network, &[])?;
        ensure!(found == seen, "{network}: {found}");
    }
    ensure!(sees(&engine, "far", &["--ip", "10.64.0.77"])? == "10.64.0.77/24 10.64.0.254");
    // Given out once, kept over a restart, given back; and all that is outside is reached and answers by name.
    let server = |name: &str, network: &str| server(&engine, name, network, &["-p", "80"]);
    server("f1", "far")?;
    server("f2", "far")?;
    ensure!(engine.address("f2", "far")? == "10.64.0.2");
    engine.docker_ok(&["restart", "-t", "0", "f1"])?;
    ensure!(engine.address("f1", "far")? == "10.64.0.1");
    let (t1, n1) = (server("t1", "two")?, server("n1", "next")?);
    for pid in [t1, n1, engine.pid("f1")?] {
        ensure!(ask_who(pid, ADDRESS, WHO_PORT)? == GATEWAY);
    }
    for name in ["t1", "n1", "f2"] {
        let port = engine.docker_ok(&["port", name, "80/tcp"])?;
        let port = port.lines().find_map(|line| line.strip_prefix("0.0.0.0:")).context("a port of the host")?;
        expect(outside.pid(), "outside", &[(&format!("{GATEWAY}:{port}"), true)])?;
    }
    engine.docker_ok(&["exec", "f2", "nslookup", "f1"])?;
    for (network, family) in [("two", "IPv4"), ("one", "IPv4")] {
        let full = engine.docker(&["run", "--rm", "--network", network, "busybox", "true"]);
        let text = format!("no available {family} addresses on this network's address pools: {network} (");
        ensure!(full.code == 125 && full.stderr.contains(&text), "{full:?}");
    }

    // A workload's own DHCPv6 client is given the address it has.
    create(&["--ipv6", "--subnet", "fd00:60::/64", "--subnet", "10.66.0.0/24", "six"])?;
    engine.docker_ok(&["run", "-d", "--name", "s1", "--network", "six", "busybox", "sleep", "1000"])?;
    let leased = lease6(engine.pid("s1")?)?;
    let own = engine.docker_ok(&["inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", "s1"])?;
    ensure!(leased.to_string() == own, "{leased}, not {own}");
    engine.docker_ok(&["rm", "-f", "f1", "f2", "t1", "n1", "s1"])?;
    engine.stop()
}

/// Solicit, Advertise, Request, Reply (RFC 8415) from the interface eth0 of a container; the address of its lease.
fn lease6(pid: u32) -> anyhow::Result<Ipv6Addr> {
    in_network_of(pid, || {
        let text = output("ip", &["-6", "-o", "address", "show", "dev", "eth0", "scope", "link"])?;
        let own = text.split_whitespace().find_map(|word| word.strip_suffix("/64")).context("a link-local address")?;
        let index = text.split(':').next().context("an interface")?.trim().parse()?;
        let socket = UdpSocket::bind(SocketAddrV6::new(own.parse()?, 546, 0, index))?;
        socket.set_read_timeout(Some(Duration::from_secs(2)))?;
        let servers = SocketAddrV6::new("ff02::1:2".parse()?, 547, 0, index);
        let option = |code: u16, data: &[u8]| {
            let length = u16::try_from(data.len()).unwrap_or(0);
            [&code.to_be_bytes(), &length.to_be_bytes(), data].concat()
        };
        // DUID-LL of Ethernet; IA_NA 1 with both times left to the server.
        let client = option(1, &[0, 3, 0, 1, 2, 0, 0, 0, 0, 1]);
        let association = option(3, &[0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        let exchange = |kind: u8, more: &[u8]| -> anyhow::Result<Vec<u8>> {
            let message = [&[kind, 7, 7, kind], &client[..], &association, more].concat();
            let mut answer = [0; 1500];
            for _ in 0..3 {
                socket.send_to(&message, servers)?;
                if let Ok(length) = socket.recv(&mut answer) {
                    ensure!(answer[1..4] == message[1..4], "another exchange's answer");
                    return Ok(answer[..length].to_vec());
                }
            }
            bail!("no DHCPv6 server answers")
        };
        let advertise = exchange(1, &[])?;
        ensure!(advertise[0] == 2, "no Advertise: {advertise:?}");
        let server = find_option(&advertise[4..], 2).context("a server identifier")?;
        let reply = exchange(3, &option(2, server))?;
        ensure!(reply[0] == 7, "no Reply: {reply:?}");
        let association = find_option(&reply[4..], 3).context("an association")?;
        let address = find_option(association.get(12..).unwrap_or_default(), 5).context("an address")?;
        Ok(Ipv6Addr::from(<[u8; 16]>::try_from(address.get(..16).context("16 bytes")?)?))
    })
}

fn find_option(mut options: &[u8], wanted: u16) -> Option<&[u8]> {
    loop {
        let (head, rest) = options.split_at_checked(4)?;
        let (data, rest) = rest.split_at_checked(usize::from(u16::from_be_bytes([head[2], head[3]])))?;
        if u16::from_be_bytes([head[0], head[1]]) == wanted {
            return Some(data);
        }
        options = rest;
    }
}

fn without_ipv6() -> anyhow::Result<()> {
    // Switched off on every interface: networks have IPv6 within all the same, as with Docker.
    for interface in ["all", "default", "lo"] {
        fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1")?;
    }
    let engine = Engine::start()?;
    engine.load_image()?;
    let serve = |engine: &Engine, name: &str, network: &str, port: &str| -> anyhow::Result<()> {
        server(engine, name, network, &["-p", &format!("{port}:80")])?;
        expect(std::process::id(), "the host", &[(&format!("127.0.0.1:{port}"), true)])
    };
    engine.docker_ok(&["network", "create", "--ipv6", "--subnet", "fd00:6::/64", "six"])?;
    serve(&engine, "aa", "six", "18090")?;
    let bb = server(&engine, "bb", "six", &[])?;
    let six: IpAddr = engine
        .docker_ok(&["inspect", "-f", "{{.NetworkSettings.Networks.six.GlobalIPv6Address}}", "aa"])?
        .parse()
        .context("an IPv6 address")?;
    expect(bb, "bb", &[(&SocketAddr::new(six, 81).to_string(), true)])?;
    engine.docker_ok(&["rm", "-f", "aa", "bb"])?;
    engine.stop()?;

    // A kernel without it has no such folder.
    run("mount", &["-t", "tmpfs", "none", "/proc/sys/net/ipv6"])?;
    let engine = Engine::start()?;
    engine.load_image()?;
    let refused = engine.docker(&["network", "create", "--ipv6", "six"]);
    let text = "IPv6 is not available: this host's kernel has none";
    ensure!(refused.code == 1 && refused.stderr.contains(text), "{refused:?}");
    engine.docker_ok(&["network", "create", "four"])?;
    serve(&engine, "aa", "four", "18091")?;
    let shown = engine.docker_ok(&["port", "aa"])?;
    ensure!(shown == "80/tcp -> 0.0.0.0:18091", "{shown}");
    engine.docker_ok(&["rm", "-f", "aa"])?;
    engine.stop()?;
    run("umount", &["/proc/sys/net/ipv6"])
}
