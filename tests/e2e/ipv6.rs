// SPDX-License-Identifier: Apache-2.0
//! IPv6: dual stack, alone, out by NAT66, in by published ports, apart where it must be.
//!
//! What must not be reached is first reached where it may, by the same probe.

use std::{fs, net::Ipv6Addr};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation::{self as namespaces, in_network_of, output, run},
    outside::{ADDRESS, ADDRESS6, GATEWAY6, Outside, WHO_PORT, ask_who, serve_who},
    story,
};
use serde_json::Value;

use crate::{
    Test,
    proofs::{nbctl, unrepaired},
};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("dual_stack_networks_have_dockers_addresses_and_names", dual_stack),
    ("pools_ranges_and_reserved_addresses_are_ovns", pools),
    ("networks_of_ipv6_alone_have_names_a_way_out_and_ports", alone),
    ("published_ports_keep_the_ipv6_clients_address", published),
    ("ipv6_networks_are_apart", apart),
];

fn engine(networks: &[&[&str]]) -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    for arguments in networks {
        engine.docker_ok(&[&["network", "create"], *arguments].concat())?;
    }
    Ok(engine)
}

fn sleeper(engine: &Engine, name: &str, network: &str, more: &[&str]) -> anyhow::Result<()> {
    let all = [&["run", "-d", "--name", name, "--network", network][..], more, &["busybox", "sleep", "1000"]];
    engine.docker_ok(&all.concat()).map(drop)
}

/// A field of a container's endpoint.
fn endpoint(engine: &Engine, container: &str, network: &str, field: &str) -> anyhow::Result<String> {
    let inspect = engine.inspect(container)?;
    Ok(match &inspect["NetworkSettings"]["Networks"][network][field] {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    })
}

fn address6(engine: &Engine, container: &str, network: &str) -> anyhow::Result<String> {
    endpoint(engine, container, network, "GlobalIPv6Address")
}

fn ipam(engine: &Engine, network: &str) -> anyhow::Result<Vec<Value>> {
    let inspect: Vec<Value> = serde_json::from_str(&engine.docker_ok(&["network", "inspect", network])?)?;
    Ok(inspect[0]["IPAM"]["Config"].as_array().cloned().unwrap_or_default())
}

fn inside(engine: &Engine, container: &str, command: &[&str]) -> anyhow::Result<String> {
    engine.docker_ok(&[&["exec", container], command].concat())
}

fn dual_stack() -> anyhow::Result<()> {
    let _outside = Outside::start()?;
    let engine = engine(&[&["--ipv6", "auto"], &["--ipv6", "next"], &["--ipv6", "--subnet", "fd00:51::/64", "given"]])?;
    // One unique local /48 for the engine, a /64 of it for each network.
    let subnets = ["auto", "next"].map(|name| -> anyhow::Result<Ipv6Addr> {
        let pool = ipam(&engine, name)?;
        let (subnet, gateway) = (pool[1]["Subnet"].as_str().unwrap_or_default(), &pool[1]["Gateway"]);
        let network = subnet.strip_suffix("::/64").with_context(|| format!("{name}: {pool:?}"))?;
        ensure!(*gateway == format!("{network}::1"), "{name}: {pool:?}");
        Ok(format!("{network}::").parse()?)
    });
    let [first, second] = subnets;
    let (first, second) = (first?.segments(), second?.segments());
    ensure!(first[0] >> 8 == 0xfd && first[..3] == second[..3] && first[3] != second[3], "{first:x?} {second:x?}");

    engine.run_server(&["--name", "aa", "--network", "given", "--network-alias", "alpha"])?;
    sleeper(&engine, "bb", "given", &["--ip6", "fd00:51::99"])?;
    sleeper(&engine, "cc", "auto", &[])?;
    ensure!(address6(&engine, "aa", "given")? == "fd00:51::2", "the lowest free one, as Docker gives");
    ensure!(endpoint(&engine, "aa", "given", "IPv6Gateway")? == "fd00:51::1");
    ensure!(endpoint(&engine, "aa", "given", "GlobalIPv6PrefixLen")? == "64");
    ensure!(address6(&engine, "bb", "given")? == "fd00:51::99");
    let taken = engine.docker(&["run", "--rm", "--network", "given", "--ip6", "fd00:51::99", "busybox", "true"]);
    ensure!(taken.code == 125 && taken.stderr.contains("Address already in use"), "{taken:?}");

    // The container sees what inspect says, at once: no address is tentative.
    let seen = inside(&engine, "bb", &["ip", "-6", "address", "show", "dev", "eth0"])?;
    ensure!(seen.contains("inet6 fd00:51::99/64 scope global") && !seen.contains("tentative"), "{seen}");
    let routes = inside(&engine, "bb", &["ip", "-6", "route"])?;
    ensure!(routes.contains("default via fd00:51::1 dev eth0"), "{routes}");
    let hosts = inside(&engine, "bb", &["cat", "/etc/hosts"])?;
    ensure!(hosts.lines().any(|line| line.starts_with("fd00:51::99\t")), "{hosts}");

    // Names in both families, by OVN and by 127.0.0.11, and back.
    for name in ["aa", "alpha", "aa.given"] {
        let answer = inside(&engine, "bb", &["nslookup", "-type=aaaa", name])?;
        ensure!(answer.contains("fd00:51::2"), "{answer}");
    }
    let back = inside(&engine, "bb", &["nslookup", "fd00:51::2"])?;
    ensure!(back.contains("name = aa.given"), "{back}");
    let text = inside(&engine, "bb", &["wget", "-qO-", "http://[fd00:51::2]/name"])?;
    ensure!(text.len() == 12, "{text:?}");

    // Out by NAT, in both families; the address is the host's.
    let bb = engine.pid("bb")?;
    ensure!(ask_who(bb, ADDRESS6, WHO_PORT)? == GATEWAY6);
    ensure!(ask_who(bb, ADDRESS, WHO_PORT)? == arca_tests::outside::GATEWAY);
    inside(&engine, "bb", &["ping", "-6", "-c", "1", "-W", "3", ADDRESS6])?;

    // A restart keeps what can be kept.
    engine.docker_ok(&["restart", "-t", "0", "aa"])?;
    ensure!(address6(&engine, "aa", "given")? == "fd00:51::2");

    // Several networks: the IPv6 default route is that of a network which has one.
    engine.docker_ok(&["network", "create", "a-plain"])?;
    engine.docker_ok(&["network", "connect", "a-plain", "cc"])?;
    let by = |family: &str| inside(&engine, "cc", &["ip", family, "route", "show", "default"]);
    let (v4, v6) = (by("-4")?, by("-6")?);
    ensure!(v4.contains("dev eth1") && v6.contains("dev eth0"), "{v4} {v6}");
    ensure!(ask_who(engine.pid("cc")?, ADDRESS6, WHO_PORT)? == GATEWAY6);

    engine.stop()?;
    let forwards = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")?;
    ensure!(forwards.trim() == "0", "forwarding is as it was: {forwards}");
    Ok(())
}

fn pools() -> anyhow::Result<()> {
    let engine = engine(&[
        &["--ipv6", "--subnet", "10.51.0.0/16", "--subnet", "fd00:52::/80", "--ip-range", "fd00:52::ab:0/112", "range"],
        &["--ipv6", "--subnet", "fd00:53::/126", "small"],
        &["--ipv6", "--subnet", "fd00:54::/48", "--gateway", "fd00:54::2", "--aux-address", "x=fd00:54::3", "set"],
    ])?;
    sleeper(&engine, "rr", "range", &[])?;
    let gateway = endpoint(&engine, "rr", "range", "IPv6Gateway")?;
    let address = address6(&engine, "rr", "range")?;
    ensure!(
        address.starts_with("fd00:52::ab:") && gateway.starts_with("fd00:52::ab:") && address != gateway,
        "{address}"
    );
    ensure!(endpoint(&engine, "rr", "range", "GlobalIPv6PrefixLen")? == "80");
    // Outside the range but inside the subnet may be asked for.
    sleeper(&engine, "ss", "range", &["--ip6", "fd00:52::77"])?;
    inside(&engine, "ss", &["ping", "-6", "-c", "1", "-W", "3", &address])?;
    sleeper(&engine, "tt", "set", &[])?;
    ensure!(address6(&engine, "tt", "set")? == "fd00:54::1", "the gateway and what is set apart are stepped over");
    let reserved = engine.docker(&["run", "--rm", "--network", "set", "--ip6", "fd00:54::3", "busybox", "true"]);
    ensure!(reserved.code == 125 && reserved.stderr.contains("Address already in use"), "{reserved:?}");

    // Two addresses besides the gateway; the third container is told in Docker's words, and one that goes makes room.
    sleeper(&engine, "one", "small", &[])?;
    sleeper(&engine, "two", "small", &[])?;
    let id = engine.docker_ok(&["network", "inspect", "-f", "{{.Id}}", "small"])?;
    let full = engine.docker(&["run", "--rm", "--network", "small", "busybox", "true"]);
    let text = format!("no available IPv6 addresses on this network's address pools: small ({id})");
    ensure!(full.code == 125 && full.stderr.contains(&text), "{full:?}");
    let freed = address6(&engine, "one", "small")?;
    engine.docker_ok(&["rm", "-f", "one"])?;
    sleeper(&engine, "three", "small", &[])?;
    ensure!(address6(&engine, "three", "small")? == freed);

    // Refused before anything is made.
    for (arguments, code) in [
        (&["--ipv6", "--subnet", "fd00:52::1:0/112"][..], "Pool overlaps with other one on this address space"),
        (&["--ipv6", "--subnet", "fe80::/64"], "no link-local, multicast, unspecified or loopback prefix"),
        (&["--ipv4=false"], "IPv4 or IPv6 must be enabled"),
    ] {
        let refused = engine.docker(&[&["network", "create"], arguments, &["never"]].concat());
        ensure!(refused.code == 1 && refused.stderr.contains(code), "{arguments:?}: {refused:?}");
    }
    ensure!(engine.docker(&["network", "inspect", "never"]).code == 1);
    engine.stop()
}

fn alone() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[&["--ipv4=false", "--ipv6", "--subnet", "fd00:56::/64", "six"]])?;
    engine.run_server(&["--name", "aa", "--network", "six", "-p", "8086:80"])?;
    sleeper(&engine, "bb", "six", &[])?;
    ensure!(endpoint(&engine, "aa", "six", "IPAddress")?.is_empty() && address6(&engine, "aa", "six")? == "fd00:56::2");
    let v4 = inside(&engine, "bb", &["ip", "-4", "-o", "address", "show", "dev", "eth0"])?;
    ensure!(v4.is_empty(), "{v4}");

    // 127.0.0.11 answers by UDP and by TCP, though there is no IPv4.
    let resolv = inside(&engine, "bb", &["cat", "/etc/resolv.conf"])?;
    ensure!(resolv.contains("nameserver 127.0.0.11"), "{resolv}");
    let answer = inside(&engine, "bb", &["nslookup", "aa"])?;
    ensure!(answer.contains("fd00:56::2"), "{answer}");
    let text = inside(&engine, "bb", &["wget", "-qO-", "http://aa/name"])?;
    ensure!(text.len() == 12, "{text:?}");
    let unknown = engine.docker(&["exec", "bb", "nslookup", "nobody"]);
    ensure!(unknown.code != 0 && unknown.stdout.contains("NXDOMAIN"), "{unknown:?}");
    let length = in_network_of(engine.pid("bb")?, || ask_by_tcp("aa"))?;
    ensure!(length > 12 + 16, "an answer with an address, not {length} bytes");

    // What carries queries dies with its process and comes back with it.
    let own = namespaces::network_of(engine.pid("bb")?)?;
    let here = |pid: &u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        name.trim() == "arca-tapfwd" && namespaces::network_of(*pid).is_ok_and(|network| network == own)
    };
    let processes = || fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = || processes().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let tapfwd = pids().find(here).context("arca-tapfwd of bb")?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(tapfwd.try_into()?), nix::sys::signal::Signal::SIGKILL)?;
    let again = "until nslookup aa > /dev/null 2>&1; do :; done";
    inside(&engine, "bb", &["timeout", "20", "sh", "-c", again])?;
    ensure!(!here(&tapfwd) && pids().any(|pid| here(&pid)), "another arca-tapfwd");

    ensure!(ask_who(engine.pid("bb")?, ADDRESS6, WHO_PORT)? == GATEWAY6);
    ensure!(ask_who(engine.pid("bb")?, ADDRESS, WHO_PORT).is_err(), "no IPv4 leads out");

    // Published by IPv6 only, as Docker does it.
    let ports = engine.docker_ok(&["port", "aa"])?;
    ensure!(ports == "80/tcp -> [::]:8086", "{ports}");
    ensure!(story::http_get("[::1]:8086", "/name")?.len() == 12);
    ensure!(story::http_get("127.0.0.1:8086", "/name").is_err());
    let from_outside = in_network_of(outside.pid(), || story::http_get(&format!("[{GATEWAY6}]:8086"), "/name"))?;
    ensure!(from_outside.len() == 12);
    engine.stop()
}

/// Asks 127.0.0.11 by TCP for the IPv6 address of a single label; the answer's length.
fn ask_by_tcp(name: &str) -> anyhow::Result<usize> {
    use std::io::{Read as _, Write as _};
    let mut query = vec![0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, u8::try_from(name.len())?];
    query.extend(name.as_bytes());
    query.extend([0, 0, 28, 0, 1]);
    let mut stream = std::net::TcpStream::connect("127.0.0.11:53")?;
    stream.set_read_timeout(Some(std::time::Duration::from_secs(5)))?;
    stream.write_all(&u16::try_from(query.len())?.to_be_bytes())?;
    stream.write_all(&query)?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut answer = vec![0; u16::from_be_bytes(length).into()];
    stream.read_exact(&mut answer)?;
    ensure!(answer[..2] == query[..2] && answer[3] & 15 == 0, "{answer:x?}");
    Ok(answer.len())
}

fn published() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine(&[&["--ipv6", "dual"], &["plain"]])?;
    let ports = ["-p", "8087:80", "-p", "[::1]:8088:80", "-p", "8087:80/udp"];
    sleeper(&engine, "dd", "dual", &ports)?;
    sleeper(&engine, "ff", "plain", &["-p", "[::]:8089:80"])?;
    for name in ["dd", "ff"] {
        in_network_of(engine.pid(name)?, || serve_who("::", 80))?;
    }
    let shown = engine.docker_ok(&["port", "dd"])?;
    ensure!(shown.contains("80/tcp -> [::]:8087") && shown.contains("80/tcp -> [::1]:8088"), "{shown}");
    let uplink = output("ip", &["-6", "-o", "address", "show", "dev", &engine.uplink(), "scope", "global"])?;
    let host = uplink.split_whitespace().nth(3).and_then(|net| net.split('/').next()).context("uplink")?;

    // From outside with the client's own address; from this host by the listener.
    ensure!(ask_who(outside.pid(), GATEWAY6, 8087)? == ADDRESS6);
    ensure!(in_network_of(outside.pid(), || ask_udp(GATEWAY6, 8087))? == ADDRESS6);
    let own = std::process::id();
    ensure!(ask_who(own, "::1", 8087)? == host && ask_who(own, "::1", 8088)? == host);
    ensure!(ask_who(own, GATEWAY6, 8087)? == host);
    ensure!(ask_who(outside.pid(), GATEWAY6, 8088).is_err(), "a port of ::1 is not for the outside");
    // A container comes to a published port through the host: another's, and its own.
    for name in ["ff", "dd"] {
        let asked = if name == "dd" { ask_who(engine.pid(name)?, GATEWAY6, 8087)? } else { host.to_owned() };
        ensure!(asked == host, "{name}: {asked}");
    }
    // IPv6 clients of a container without IPv6 are carried over.
    ensure!(!ask_who(outside.pid(), GATEWAY6, 8089)?.is_empty() && !ask_who(own, "::1", 8089)?.is_empty());

    // After a restart it is the same; when the container has gone there is nothing.
    engine.docker_ok(&["restart", "-t", "0", "dd"])?;
    in_network_of(engine.pid("dd")?, || serve_who("::", 80))?;
    ensure!(ask_who(outside.pid(), GATEWAY6, 8087)? == ADDRESS6);
    engine.docker_ok(&["rm", "-f", "dd"])?;
    ensure!(ask_who(outside.pid(), GATEWAY6, 8087).is_err());
    engine.stop()
}

fn ask_udp(to: &str, port: u16) -> anyhow::Result<String> {
    let socket = std::net::UdpSocket::bind("[::]:0")?;
    socket.set_read_timeout(Some(std::time::Duration::from_secs(1)))?;
    socket.connect((to, port))?;
    let mut buffer = [0; 64];
    // A datagram may be lost while neighbours are looked for.
    for _ in 0..5 {
        socket.send(b"who")?;
        if let Ok(length) = socket.recv(&mut buffer) {
            return Ok(String::from_utf8_lossy(&buffer[..length]).into_owned());
        }
    }
    anyhow::bail!("no answer from {to} port {port}")
}

fn apart() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let icc = "com.docker.network.bridge.enable_icc=false";
    let engine = engine(&[
        &["--ipv6", "--subnet", "fd00:61::/64", "one"],
        &["--ipv6", "--subnet", "fd00:62::/64", "two"],
        &["--ipv6", "--internal", "--subnet", "fd00:63::/64", "inner"],
        &["--ipv6", "--subnet", "fd00:64::/64", "-o", icc, "quiet"],
        &["plain"],
    ])?;
    for (name, network) in [
        ("aa", "one"),
        ("bb", "one"),
        ("xx", "two"),
        ("ii", "inner"),
        ("jj", "inner"),
        ("pp", "quiet"),
        ("qq", "quiet"),
        ("vv", "plain"),
    ] {
        sleeper(&engine, name, network, &[])?;
        in_network_of(engine.pid(name)?, || serve_who("::", 9))?;
    }
    let address = |name: &str, network: &str| address6(&engine, name, network);
    let reach = |from: &str, to: &str| -> anyhow::Result<bool> {
        let from = if from == "outside" { outside.pid() } else { engine.pid(from)? };
        Ok(ask_who(from, to, 9).is_ok())
    };
    let (aa, xx) = (address("aa", "one")?, address("xx", "two")?);
    let (ii, qq) = (address("ii", "inner")?, address("qq", "quiet")?);
    ensure!(reach("bb", &aa)? && reach("jj", &ii)?, "neighbours reach each other");
    ensure!(!reach("xx", &aa)? && !reach("aa", &xx)?, "networks are apart");
    ensure!(!reach("aa", &ii)?, "nobody reaches an internal network");
    ensure!(ask_who(engine.pid("ii")?, ADDRESS6, WHO_PORT).is_err(), "and nobody gets out of it");
    ensure!(!reach("pp", &qq)?, "peers without inter-container traffic");
    ensure!(ask_who(engine.pid("pp")?, ADDRESS6, WHO_PORT)? == GATEWAY6, "whose way out is open");
    let routes = inside(&engine, "ii", &["ip", "-6", "route", "show", "default"])?;
    ensure!(routes.is_empty(), "{routes}");

    // Whoever knows the way: the outside over this host, with a route of this host to the router.
    let uplink = output("ip", &["-6", "-o", "address", "show", "dev", &engine.uplink(), "scope", "global"])?;
    let host = uplink.split_whitespace().nth(3).and_then(|net| net.split('/').next()).context("uplink")?;
    let host: Ipv6Addr = host.parse()?;
    let router = Ipv6Addr::from(u128::from(host) + 1).to_string();
    run("ip", &["-6", "route", "add", "fd00:61::/64", "via", &router])?;
    in_network_of(outside.pid(), || run("ip", &["-6", "route", "add", "fd00:61::/64", "via", GATEWAY6]))?;
    ensure!(
        !reach("outside", &aa)? && ask_who(std::process::id(), &aa, 9).is_err(),
        "nobody outside reaches a container"
    );

    // False addresses: one of the same subnet that is another's, and any at all where the network has no IPv6.
    let spoof = |name: &str, false_address: &str, to: &str| -> anyhow::Result<bool> {
        let pid = engine.pid(name)?;
        in_network_of(pid, || -> anyhow::Result<()> {
            run("sh", &["-c", "echo 0 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6"])?;
            run("ip", &["-6", "address", "add", &format!("{false_address}/64"), "dev", "eth0", "nodad"])
        })?;
        in_network_of(pid, || -> anyhow::Result<bool> {
            let socket = socket_from(false_address)?;
            socket.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
            socket.send_to(b"who", (to, 9))?;
            Ok(socket.recv(&mut [0; 64]).is_ok())
        })
    };
    let own = in_network_of(engine.pid("bb")?, || ask_udp(&aa, 9))?;
    ensure!(own == address("bb", "one")?, "by its own address a datagram is answered: {own}");
    ensure!(!spoof("bb", "fd00:61::77", &aa)?, "a false address is not let out");
    ensure!(!spoof("vv", "fd00:61::78", &aa)?, "nor any IPv6 from a network without it");

    // The same probes arrive once the rows that forbid them are gone.
    unrepaired(|| {
        let group = |name: &str| -> anyhow::Result<String> {
            let id = engine.docker_ok(&["network", "inspect", "-f", "{{.Id}}", name])?;
            Ok(format!("net_{}", id.get(..12).context("a network id")?))
        };
        without_acl("Port_Group", &group("two")?, "isolate6")?;
        for kind in ["isolate6", "uplink6"] {
            // The second: what the router translates comes from its uplink address, where answers must go.
            without_acl("Port_Group", &group("one")?, kind)?;
        }
        for kind in ["icc6", "icc-turn6"] {
            without_acl("Port_Group", &group("quiet")?, kind)?;
        }
        without_acl("Logical_Switch", "ext", "direct6")?;
        nbctl(&["--wait=hv", "--timeout=10", "sync"])?;
        ensure!(reach("xx", &aa)?, "without its ACL another network is reached");
        ensure!(reach("pp", &qq)?, "and a peer");
        ensure!(ask_who(std::process::id(), &aa, 9).is_ok(), "and a container from the host");
        Ok(())
    })?;
    engine.stop()
}

/// Takes an ACL away from its group or switch, by its arca-kind.
fn without_acl(table: &str, record: &str, kind: &str) -> anyhow::Result<()> {
    let wanted = nbctl(&["--bare", "--columns=acls", "list", table, record])?;
    let of_kind = nbctl(&["--bare", "--columns=_uuid", "find", "ACL", &format!("external_ids:arca-kind={kind}")])?;
    let row = of_kind.split_whitespace().find(|row| wanted.contains(row)).context("the ACL is there")?;
    nbctl(&["remove", table, record, "acls", row]).map(drop)
}

fn socket_from(address: &str) -> anyhow::Result<std::net::UdpSocket> {
    Ok(std::net::UdpSocket::bind((address, 0))?)
}
