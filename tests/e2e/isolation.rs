// SPDX-License-Identifier: Apache-2.0
//! Who must not reach whom. Every claim is first a probe that arrives where it may, or once the very row or rule that
//! forbids it is taken away; only then does its absence say something.
//!
//! Probes are frames made by hand, sent from inside a container's network namespace past its own kernel.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr, UdpSocket},
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation::{in_network_of, output, run},
    outside::{ADDRESS, GATEWAY, Outside},
    wire::{ARP, BROADCAST, IPV4, IPV6, Mac, Wire, arp, echo4, ethernet, mark, udp4, udp6},
};
use serde_json::Value;

use crate::{
    Test,
    daemons::helper_process,
    proofs::{nbctl, unrepaired},
};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("networks_are_apart_on_every_layer", networks_apart),
    ("internal_isolated_and_icc_false_keep_their_promises", closed_networks),
    ("nobody_outside_reaches_what_is_not_published", from_outside),
    ("the_helpers_and_the_hosts_own_kernel_are_out_of_reach", kernels),
];

/// An EtherType of nobody (IEEE 802, local experiments).
const FOREIGN: u16 = 0x88b5;

/// A running container on one network, with a wire to its interface.
struct Host {
    mac: Mac,
    ip: Ipv4Addr,
    /// OVN's router on its network.
    gateway: (Mac, Ipv4Addr),
    network: String,
    endpoint: String,
    wire: Wire,
}

impl Host {
    fn start(engine: &Engine, name: &str, network: &str, more: &[&str]) -> anyhow::Result<Self> {
        let all = [&["run", "-d", "--name", name, "--network", network][..], more, &["busybox", "sleep", "1000"]];
        engine.docker_ok(&all.concat())?;
        let inspect = engine.inspect(name)?;
        let endpoint = &inspect["NetworkSettings"]["Networks"][network];
        let text = |key: &str| endpoint[key].as_str().unwrap_or_default().to_owned();
        let id = text("NetworkID");
        let port = format!("gw-{}", id.get(..12).context("a network id")?);
        let gateway_mac = nbctl(&["get", "Logical_Router_Port", &port, "mac"])?;
        let list = engine.docker_ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", network])?;
        Ok(Self {
            mac: mac(&text("MacAddress"))?,
            ip: text("IPAddress").parse()?,
            gateway: (mac(gateway_mac.trim().trim_matches('"'))?, list.parse()?),
            network: id,
            endpoint: text("EndpointID"),
            wire: Wire::open(engine.pid(name)?, "eth0")?,
        })
    }

    /// A datagram of its own to a neighbour.
    fn frame_to(&self, other: &Self, name: &str) -> Vec<u8> {
        ethernet(other.mac, self.mac, IPV4, &udp4((self.ip, 4000), (other.ip, 9), &mark(name)))
    }

    /// A datagram of its own, by way of the router.
    fn routed(&self, to: Ipv4Addr, port: u16, name: &str) -> Vec<u8> {
        ethernet(self.gateway.0, self.mac, IPV4, &udp4((self.ip, 4000), (to, port), &mark(name)))
    }

    /// Which marks came here from anybody, known by a last frame of `neighbour`.
    fn seen(&self, neighbour: &Self, fence: &str) -> anyhow::Result<BTreeSet<String>> {
        self.wire.seen(fence, |name| neighbour.wire.send(&neighbour.frame_to(self, name)))
    }
}

fn mac(text: &str) -> anyhow::Result<Mac> {
    let bytes: Vec<u8> = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    bytes.try_into().map_err(|_| anyhow::anyhow!("{text:?} is no MAC address"))
}

fn engine_with(config: &[&str], networks: &[&[&str]]) -> anyhow::Result<Engine> {
    let engine = Engine::start_with(config)?;
    engine.load_image()?;
    for arguments in networks {
        engine.docker_ok(&[&["network", "create"], *arguments].concat())?;
    }
    Ok(engine)
}

/// Takes ACLs of a network's port group away, by their arca-kind, and waits until the switch has followed.
fn without_acls(host: &Host, kinds: &[&str]) -> anyhow::Result<()> {
    let group = format!("net_{}", &host.network[..12]);
    for kind in kinds {
        let (kind, network) =
            (format!("external_ids:arca-kind={kind}"), format!("external_ids:arca-id={}", host.network));
        let row = nbctl(&["--bare", "--columns=_uuid", "find", "ACL", &kind, &network])?;
        ensure!(!row.trim().is_empty(), "there is an ACL with {kind}");
        nbctl(&["remove", "Port_Group", &group, "acls", row.trim()])?;
    }
    nbctl(&["--wait=hv", "--timeout=10", "sync"]).map(drop)
}

fn set(names: &[&str]) -> BTreeSet<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn router(engine: &Engine) -> anyhow::Result<(Ipv4Addr, Ipv4Addr)> {
    let text = output("ip", &["-4", "-o", "address", "show", "dev", &engine.uplink()])?;
    let host: Ipv4Addr =
        text.split_whitespace().nth(3).and_then(|net| net.split('/').next()).context("uplink")?.parse()?;
    Ok((host, Ipv4Addr::from(u32::from(host) + 1)))
}

fn networks_apart() -> anyhow::Result<()> {
    let engine = engine_with(&[], &[&["one"], &["two"]])?;
    let aa = Host::start(&engine, "aa", "one", &[])?;
    let bb = Host::start(&engine, "bb", "one", &[])?;
    let xx = Host::start(&engine, "xx", "two", &["-p", "127.0.0.1:5300:53/udp", "-p", "5301:53/udp"])?;
    let yy = Host::start(&engine, "yy", "two", &[])?;
    let (_, vip) = router(&engine)?;
    let (link_local, all_nodes) =
        (Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
    let many: Mac = [0x33, 0x33, 0, 0, 0, 1];

    // What one container may try against another: on the wire, by addresses, under false names.
    let datagram = |from: Ipv4Addr, to: Ipv4Addr, name: &str| udp4((from, 4000), (to, 9), &mark(name));
    let plain = |to: &Host| {
        vec![
            aa.frame_to(to, "datagram"),
            ethernet(BROADCAST, aa.mac, IPV4, &datagram(aa.ip, Ipv4Addr::BROADCAST, "broadcast")),
            ethernet(to.mac, aa.mac, ARP, &arp(2, (aa.mac, aa.ip), (to.mac, to.ip), "arp")),
        ]
    };
    let other = [0x02, 0x42, 0, 0, 0, 0x77];
    let gateway = aa.gateway.1;
    let nobody = Ipv4Addr::from(u32::from(gateway) + 200);
    let spoofed = |to: &Host| {
        vec![
            ethernet(to.mac, aa.mac, IPV4, &datagram(nobody, to.ip, "ip")),
            ethernet(to.mac, aa.mac, IPV4, &datagram(gateway, to.ip, "ip-of-gateway")),
            ethernet(to.mac, other, IPV4, &datagram(aa.ip, to.ip, "mac")),
            ethernet(to.mac, other, FOREIGN, &mark("mac-and-kind")),
            ethernet(to.mac, aa.mac, FOREIGN, &mark("kind")),
            ethernet(BROADCAST, aa.mac, FOREIGN, &mark("kind-to-all")),
            ethernet(to.mac, aa.mac, ARP, &arp(2, (aa.mac, gateway), (to.mac, to.ip), "arp-of-gateway")),
            ethernet(BROADCAST, aa.mac, ARP, &arp(2, (aa.mac, gateway), (BROADCAST, gateway), "arp-of-gateway-to-all")),
            ethernet(to.mac, aa.mac, ARP, &arp(2, (other, aa.ip), (to.mac, to.ip), "arp-mac")),
            ethernet(to.mac, aa.mac, IPV6, &udp6((link_local, 4000), (link_local, 9), &mark("link-local"))),
            ethernet(many, aa.mac, IPV6, &udp6((link_local, 4000), (all_nodes, 9), &mark("link-local-to-all"))),
        ]
    };
    let routed = vec![
        aa.routed(xx.ip, 9, "direct"),
        ethernet(xx.gateway.0, aa.mac, IPV4, &datagram(aa.ip, xx.ip, "other-gateway")),
        ethernet(aa.gateway.0, aa.mac, IPV4, &datagram(bb.ip, xx.ip, "as-neighbour")),
        ethernet(aa.gateway.0, aa.mac, IPV4, &datagram(yy.ip, xx.ip, "as-insider")),
        ethernet(aa.gateway.0, bb.mac, IPV4, &datagram(bb.ip, xx.ip, "as-neighbour-fully")),
        aa.routed(vip, 5300, "published-on-loopback"),
        aa.routed(vip, 5301, "published"),
    ];
    let send = |frames: &[Vec<u8>]| frames.iter().try_for_each(|frame| aa.wire.send(frame));
    // Past the switch when a neighbour has the last frame; then whatever was let through comes before the last one there.
    let at_xx = |fence: &str| {
        bb.seen(&aa, &format!("{fence}-left"))?;
        xx.seen(&yy, fence)
    };

    send(&plain(&bb))?;
    let arrived = bb.seen(&aa, "allowed")?;
    ensure!(arrived == set(&["datagram", "broadcast", "arp"]), "between neighbours all arrives: {arrived:?}");
    send(&spoofed(&bb))?;
    let arrived = bb.seen(&aa, "spoofed")?;
    ensure!(arrived.is_empty(), "under false names nothing does: {arrived:?}");
    send(&[plain(&xx), spoofed(&xx), routed.clone()].concat())?;
    let arrived = at_xx("apart")?;
    ensure!(arrived.is_empty(), "and nothing at all in another network: {arrived:?}");

    unrepaired(|| {
        for port in [&aa.endpoint, &bb.endpoint] {
            nbctl(&["clear", "Logical_Switch_Port", port, "port_security"])?;
        }
        without_acls(&aa, &["isolate4", "uplink4"])?;
        send(&spoofed(&bb))?;
        let arrived = bb.seen(&aa, "open")?;
        ensure!(arrived.len() == spoofed(&bb).len(), "without port security all false names arrive: {arrived:?}");
        send(&[plain(&xx), routed.clone()].concat())?;
        let arrived = at_xx("leak")?;
        let leaks =
            ["direct", "as-neighbour", "as-insider", "as-neighbour-fully", "published", "published-on-loopback"];
        ensure!(arrived == set(&leaks), "without the ACLs these arrive: {arrived:?}");
        Ok(())
    })?;
    // Names of another network are nobody's.
    ensure!(engine.docker(&["exec", "aa", "nslookup", "-type=a", "bb"]).code == 0);
    ensure!(engine.docker(&["exec", "aa", "nslookup", "-type=a", "xx"]).code != 0);
    engine.stop()
}

/// Answers every question for an IPv4 address with 192.0.2.1, in the outside.
fn name_server(outside: &Outside) -> anyhow::Result<()> {
    let socket = in_network_of(outside.pid(), || UdpSocket::bind((ADDRESS, 53)))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 512];
        while let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            // Header, and the question: a name, which ends with an empty label, type and class.
            let Some(name) = buffer[12..length].iter().position(|byte| *byte == 0) else { continue };
            let mut reply = buffer[..12 + name + 5].to_vec();
            reply[2..12].copy_from_slice(&[0x81, 0x80, 0, 1, 0, 1, 0, 0, 0, 0]);
            reply.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 1]);
            let _ = socket.send_to(&reply, peer);
        }
    });
    Ok(())
}

fn closed_networks() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    name_server(&outside)?;
    let mode = "com.docker.network.bridge.gateway_mode_ipv4=isolated";
    let icc = "com.docker.network.bridge.enable_icc=false";
    let networks: [&[&str]; 3] =
        [&["--internal", "inner"], &["--internal", "-o", mode, "alone"], &["-o", icc, "apart"]];
    let engine = engine_with(&[&format!("dns={ADDRESS}")], &networks)?;
    let ii = Host::start(&engine, "ii", "inner", &[])?;
    let jj = Host::start(&engine, "jj", "inner", &[])?;
    let kk = Host::start(&engine, "kk", "alone", &[])?;
    let ll = Host::start(&engine, "ll", "alone", &[])?;
    let pp = Host::start(&engine, "pp", "apart", &[])?;
    let qq = Host::start(&engine, "qq", "apart", &["-p", "5302:53/udp"])?;
    let (host, vip) = router(&engine)?;
    let uplink = Wire::open(std::process::id(), &engine.uplink())?;
    let far: Ipv4Addr = ADDRESS.parse()?;

    // Out of the internal network, and into it. The way out is watched on the host's end of the uplink.
    let tries = [
        ii.routed(far, 7777, "far"),
        ii.routed(host, 9, "host"),
        ii.routed(vip, 5302, "port"),
        ii.routed(qq.ip, 9, "net"),
    ];
    let left = |name: &str| uplink.seen(name, |last| pp.wire.send(&pp.routed(far, 7777, last)));
    let published = |name: &str| qq.wire.seen(name, |last| pp.wire.send(&pp.routed(host, 5302, last)));
    // Once for nothing: the router learns who is on its uplink.
    left("learn")?;
    published("learn-in")?;
    let try_all = |name: &str| {
        tries.iter().try_for_each(|frame| ii.wire.send(frame))?;
        jj.seen(&ii, &format!("{name}-left"))?;
        anyhow::Ok((left(name)?, published(&format!("{name}-in"))?))
    };
    let into = |name: &str| {
        pp.wire.send(&pp.routed(ii.ip, 9, "into"))?;
        left(&format!("{name}-left"))?;
        ii.seen(&jj, name)
    };
    let (out, port) = try_all("closed")?;
    ensure!(out.is_empty() && port.is_empty(), "an internal network has no way out: {out:?} {port:?}");
    let arrived = into("unreached")?;
    ensure!(arrived.is_empty(), "and none in: {arrived:?}");

    // Without inter-container traffic: a published port and the way out, which the fences above took, and no more.
    let peers = [
        pp.frame_to(&qq, "datagram"),
        ethernet(BROADCAST, pp.mac, IPV4, &udp4((pp.ip, 4000), (Ipv4Addr::BROADCAST, 9), &mark("broadcast"))),
        ethernet(qq.mac, pp.mac, FOREIGN, &mark("kind")),
        pp.routed(qq.ip, 53, "by-the-router"),
    ];
    let peer = |name: &str| {
        peers.iter().try_for_each(|frame| pp.wire.send(frame))?;
        published(name)
    };
    let arrived = peer("icc")?;
    ensure!(arrived.is_empty(), "peers without inter-container traffic: {arrived:?}");

    // The gateway of an isolated network answers names and nothing else.
    let ping = |from: &Host, to: &Host, name: &str| {
        let echo = echo4(from.ip, from.gateway.1, &mark("echo"));
        from.wire.send(&ethernet(from.gateway.0, from.mac, IPV4, &echo))?;
        to.seen(from, &format!("{name}-left"))?;
        from.seen(to, name)
    };
    ensure!(ping(&ii, &jj, "internal")? == set(&["echo"]), "an internal network's gateway answers");
    let answered = ping(&kk, &ll, "isolated")?;
    ensure!(answered.is_empty(), "an isolated one's does not: {answered:?}");

    let asks = |name: &str, what: &str| engine.docker(&["exec", name, "nslookup", "-type=a", what]);
    for (name, peer) in [("ii", "jj"), ("kk", "ll"), ("pp", "qq")] {
        ensure!(asks(name, peer).code == 0, "names are answered: {:?}", asks(name, peer));
    }
    ensure!(asks("pp", "far.example").ok()?.contains("192.0.2.1"), "and those of elsewhere forwarded");
    for name in ["ii", "kk"] {
        let refused = asks(name, "far.example");
        ensure!(refused.code != 0 && !refused.stdout.contains("192.0.2.1"), "but not from here: {refused:?}");
    }

    unrepaired(|| {
        without_acls(&ii, &["internal4", "isolate4", "uplink4"])?;
        without_acls(&pp, &["isolate4", "icc4", "icc-other", "icc-turn4"])?;
        nbctl(&["clear", "Logical_Switch_Port", &pp.endpoint, "port_security"])?;
        without_acls(&kk, &["isolated4"])?;
        let (out, port) = try_all("opened")?;
        ensure!(out == set(&["far", "host"]) && port == set(&["port", "net"]), "without ACLs: {out:?} {port:?}");
        // Besides what others' kernels had to say to the probes before.
        let arrived = into("reached")?;
        ensure!(arrived.contains("into"), "and in: {arrived:?}");
        let arrived = peer("talking")?;
        let all = set(&["kind", "broadcast", "datagram", "by-the-router"]);
        ensure!(arrived.is_superset(&all), "peers without ACLs: {arrived:?}");
        ensure!(ping(&kk, &ll, "answered")?.contains("echo"), "the isolated gateway without its ACL");
        Ok(())
    })?;
    engine.stop()
}

fn from_outside() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine_with(&[], &[&["n"]])?;
    let cc = Host::start(&engine, "cc", "n", &["-p", "5303:53/udp", "-p", "127.0.0.1:5304:53/udp"])?;
    let (host, vip) = router(&engine)?;
    let gateway: Ipv4Addr = GATEWAY.parse()?;
    let far: Ipv4Addr = ADDRESS.parse()?;
    // A host that knows the way: it leads over ours.
    let subnet = format!("{}/16", Ipv4Addr::from(u32::from(cc.ip) & 0xffff_0000));
    run("ip", &["route", "add", &subnet, "via", &vip.to_string()])?;
    let address = |pid: u32, interface: &str| -> anyhow::Result<Mac> {
        let path = format!("/proc/{pid}/root/sys/class/net/{interface}/address");
        let text = in_network_of(pid, || output("ip", &["-json", "link", "show", "dev", interface]))?;
        let list: Value = serde_json::from_str(&text)?;
        mac(list[0]["address"].as_str().with_context(|| path)?)
    };
    let (ours, theirs) = (address(std::process::id(), "wan0")?, address(outside.pid(), "wan1")?);
    let wire = Wire::open(outside.pid(), "wan1")?;
    let from = |source: Ipv4Addr, to: Ipv4Addr, port: u16, name: &str| {
        ethernet(ours, theirs, IPV4, &udp4((source, 4000), (to, port), &mark(name)))
    };
    let resolver = Ipv4Addr::from(u32::from(vip) + 1);
    let tries = [
        from(far, cc.ip, 53, "direct"),
        from(far, vip, 5303, "uplink"),
        from(far, vip, 5304, "uplink-loopback"),
        from(far, gateway, 5304, "loopback"),
        from(resolver, cc.ip, 53, "as-resolver"),
        from(host, cc.ip, 53, "as-host"),
    ];
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    let published = |name: &str| cc.wire.seen(name, |last| wire.send(&from(far, gateway, 5303, last)));
    let try_all = |name: &str| {
        tries.iter().try_for_each(|frame| wire.send(frame))?;
        socket.send_to(&mark("from-host"), (cc.ip, 53))?;
        published(name)
    };
    let arrived = try_all("closed")?;
    ensure!(arrived.is_empty(), "only what is published: {arrived:?}");

    let table = engine.uplink().replace('-', "_");
    unrepaired(|| {
        run("nft", &["delete", "chain", "ip", &table, "guard"])?;
        let mut arrived = try_all("unguarded")?;
        // Whether the host's kernel lets a false source through depends on its settings.
        arrived.remove("as-resolver");
        let open = set(&["uplink", "uplink-loopback"]);
        ensure!(arrived == open, "without the host's rule the router's own address answers: {arrived:?}");
        let row = nbctl(&["--bare", "--columns=_uuid", "find", "ACL", "external_ids:arca-kind=direct4"])?;
        nbctl(&["remove", "Logical_Switch", "ext", "acls", row.trim()])?;
        nbctl(&["--wait=hv", "--timeout=10", "sync"])?;
        let arrived = try_all("open")?;
        let all = set(&["direct", "from-host", "uplink", "uplink-loopback"]);
        ensure!(arrived.is_superset(&all), "without the ACL containers are reached directly: {arrived:?}");
        Ok(())
    })?;
    run("ip", &["route", "delete", &subnet])?;
    engine.stop()
}

/// Ports on which somebody listens in a network namespace, TCP.
fn listening(pid: u32) -> anyhow::Result<BTreeSet<u16>> {
    let mut ports = BTreeSet::new();
    for file in ["tcp", "tcp6"] {
        let table = in_network_of(pid, || std::fs::read_to_string(format!("/proc/thread-self/net/{file}")))?;
        for line in table.lines().skip(1) {
            let columns: Vec<&str> = line.split_whitespace().collect();
            // State 0A is LISTEN (Linux, include/net/tcp_states.h).
            if columns.get(3) == Some(&"0A") {
                let port = columns[1].rsplit(':').next().context("a port")?;
                ports.insert(u16::from_str_radix(port, 16)?);
            }
        }
    }
    Ok(ports)
}

fn kernels() -> anyhow::Result<()> {
    let engine = engine_with(&[], &[&["n"]])?;
    let cc = Host::start(&engine, "cc", "n", &[])?;
    let dd = Host::start(&engine, "dd", "n", &[])?;
    let helper = u32::try_from(helper_process("arca-helper-agent", Some("init"))?)?;
    let (host, vip) = router(&engine)?;
    let resolver = Ipv4Addr::from(u32::from(vip) + 1);

    // Engine and OVSDB listen on no port at all; the resolver does.
    ensure!(listening(helper)?.iter().all(|port| *port == 53), "{:?}", listening(helper)?);
    ensure!(listening(std::process::id())?.is_empty(), "{:?}", listening(std::process::id())?);
    let shown = std::net::TcpListener::bind("127.0.0.1:7003")?;
    ensure!(listening(std::process::id())? == BTreeSet::from([7003]));
    drop(shown);

    // The host: what listens on its loopback only is not reached by any address, what listens on all is.
    let bound = |address: &str| -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind(address)?;
        socket.set_nonblocking(true)?;
        Ok(socket)
    };
    let (inner, all) = (bound("127.0.0.1:7001")?, bound("0.0.0.0:7002")?);
    let heard = |socket: &UdpSocket| {
        let mut buffer = [0; 64];
        std::iter::from_fn(|| socket.recv(&mut buffer).ok()).count()
    };
    let uplink = Wire::open(std::process::id(), &engine.uplink())?;
    let loopback = Ipv4Addr::LOCALHOST;
    for frame in [cc.routed(loopback, 7001, "loopback"), cc.routed(host, 7001, "host"), cc.routed(host, 7002, "open")] {
        cc.wire.send(&frame)?;
    }
    let passed = uplink.seen("last", |last| cc.wire.send(&cc.routed(host, 7004, last)))?;
    ensure!(passed == set(&["host", "open"]), "the router takes nothing to a loopback address: {passed:?}");
    ensure!(heard(&inner) == 0 && heard(&all) > 0, "only what listens on all addresses hears");
    UdpSocket::bind("127.0.0.1:0")?.send_to(b"x", "127.0.0.1:7001")?;
    ensure!(heard(&inner) == 1, "the host itself is heard");

    // The helper's kernel: frames to the very interface that OVS only taps, for an address it has.
    let endpoints: Vec<Value> = serde_json::from_str(&engine.program("arca-netd", &["endpoints", "--json"]).ok()?)?;
    let link = endpoints.iter().find(|e| e["id"] == cc.endpoint.as_str()).context("the endpoint")?["link"].clone();
    let tap = format!("arca{link}");
    let target = in_network_of(helper, || -> anyhow::Result<(Mac, UdpSocket)> {
        for name in ["all", &tap] {
            // The leak must not fail to show for want of a route back.
            std::fs::write(format!("/proc/thread-self/net/../../sys/net/ipv4/conf/{name}/rp_filter"), "0").ok();
        }
        let list: Value = serde_json::from_str(&output("ip", &["-json", "link", "show", "dev", &tap])?)?;
        let socket = UdpSocket::bind("0.0.0.0:7000")?;
        socket.set_nonblocking(true)?;
        Ok((mac(list[0]["address"].as_str().context("an address")?)?, socket))
    })?;
    let (tap_mac, socket) = target;
    let past = |name: &str| -> anyhow::Result<usize> {
        let datagram = udp4((cc.ip, 4000), (resolver, 7000), &mark("past"));
        for to in [tap_mac, BROADCAST] {
            cc.wire.send(&ethernet(to, cc.mac, IPV4, &datagram))?;
        }
        cc.wire.send(&cc.routed(resolver, 7000, "by-the-router"))?;
        dd.seen(&cc, name)?;
        Ok(heard(&socket))
    };
    ensure!(past("closed")? == 0, "the helper's kernel hears nothing");
    in_network_of(helper, || run("nft", &["delete", "chain", "netdev", "arca-ingress", &tap]))?;
    ensure!(past("open")? > 0, "without the ingress drop it hears what was sent past OVN");
    engine.stop()
}
