// SPDX-License-Identifier: Apache-2.0
//! One suite for every carrier of frames: whatever a link is made of, it does the same.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    engine::{Engine, interfaces},
    isolation, measure,
    outside::{self, Outside},
    story,
    wire::{self, Wire},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Test, daemons::helper_process};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("carrier_stream_does_what_a_link_does", || suite("stream")),
    ("carrier_tap_fd_does_what_a_link_does", || suite("tap-fd")),
    ("carrier_cable_does_what_a_link_does", || suite("cable")),
    ("the_fastest_carrier_is_taken_unless_one_is_named", auto),
];

/// What a restarted party may take until a byte is through: TCP repeats after ever longer pauses.
const PATIENCE: Duration = Duration::from_secs(20);
const MTU: &str = "1400";

fn links(engine: &Engine) -> anyhow::Result<Vec<Value>> {
    Ok(serde_json::from_str(&engine.program("arca-relayd", &["links", "--json"]).ok()?)?)
}

fn auto() -> anyhow::Result<()> {
    let engine = Engine::start_with(&["link=auto"])?;
    engine.load_image()?;
    engine.docker_ok(&["run", "-d", "--name", "aa", "busybox", "sleep", "1000"])?;
    let links = links(&engine)?;
    ensure!(links.len() == 1 && links[0]["carrier"] == "cable" && links[0]["state"] == "up", "{links:?}");
    engine.stop()
}

fn suite(carrier: &str) -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = Engine::start_with(&[&format!("link={carrier}"), "metrics=sockets"])?;
    engine.load_image()?;
    let mtu = format!("com.docker.network.driver.mtu={MTU}");
    engine.docker_ok(&["network", "create", "--subnet", "10.91.0.0/24", "-o", &mtu, "n"])?;
    engine.docker_ok(&["network", "create", "--subnet", "10.92.0.0/24", "m"])?;
    for (name, network) in [("aa", "n"), ("bb", "n"), ("other", "m")] {
        let run = ["run", "-d", "--name", name, "--network", network, "--cap-add", "NET_ADMIN"];
        engine.docker_ok(&[&run[..], &["busybox", "sleep", "10000"]].concat())?;
    }
    let list = links(&engine)?;
    ensure!(list.iter().all(|link| link["carrier"] == carrier && link["state"] == "up"), "{list:?}");
    ensure!(list.len() == 3, "{list:?}");

    hot(&engine).context("hot attach and detach")?;
    kept_apart(&engine).context("isolation")?;
    counted(&engine).context("counters")?;
    sizes(&engine).context("sizes")?;
    followed(&engine, carrier).context("trace")?;
    out(&engine, outside.pid()).context("to the outside")?;
    alone(&engine, outside.pid()).context("beside a flood and a standstill")?;
    restarts(&engine).context("restarts")?;
    engine.stop()
}

/// A second network comes and goes while the container runs.
fn hot(engine: &Engine) -> anyhow::Result<()> {
    let pid = engine.pid("aa")?;
    for _ in 0..2 {
        engine.docker_ok(&["network", "connect", "m", "aa"])?;
        let there = interfaces(pid)?;
        let address = engine.address("aa", "m")?;
        let has = |name: &str, address: &str| {
            there.iter().any(|(n, list)| n == name && list.iter().any(|a| a.starts_with(address)))
        };
        ensure!(has("eth1", &address), "{there:?}");
        engine.docker_ok(&["exec", "aa", "ping", "-c", "1", "-W", "5", &engine.address("other", "m")?])?;
        engine.docker_ok(&["network", "disconnect", "m", "aa"])?;
        ensure!(interfaces(pid)?.len() == 1, "{:?}", interfaces(pid)?);
    }
    ensure!(links(engine)?.len() == 3);
    Ok(())
}

/// Nobody reaches another network, sends under another's address, or speaks to the helper's own kernel.
fn kept_apart(engine: &Engine) -> anyhow::Result<()> {
    let (bb, other) = (engine.address("bb", "n")?, engine.address("other", "m")?);
    let ping = |from: &str, more: &[&str]| {
        let all = [&["exec", from, "ping", "-c", "1", "-W", "1"][..], more].concat();
        engine.docker(&all).code == 0
    };
    ensure!(ping("aa", &[&bb]), "the neighbour is there");
    ensure!(!ping("aa", &[&other]), "another network is reached");
    engine.docker_ok(&["exec", "aa", "ip", "address", "add", "10.91.0.200/24", "dev", "eth0"])?;
    ensure!(!ping("aa", &["-I", "10.91.0.200", &bb]), "a foreign source address is let through");
    engine.docker_ok(&["exec", "aa", "ip", "address", "del", "10.91.0.200/24", "dev", "eth0"])?;

    // A frame to the hardware address of the helper's end, for an address that the helper itself has.
    let helper = u32::try_from(helper_process("arca-helper-agent", Some("init"))?)?;
    let in_helper = |arguments: &[&str]| isolation::in_network_of(helper, || isolation::output("ip", arguments));
    let link = links(engine)?.iter().find_map(|l| l["link"].as_u64()).context("a link")?;
    let shown: Vec<Value> = serde_json::from_str(&in_helper(&["-json", "link", "show"])?)?;
    let far = shown.iter().filter(|l| l["ifname"] == format!("arca{link}").as_str());
    let far = far.filter_map(|l| l["address"].as_str()).next().context("the helper's end")?;
    let addresses: Vec<Value> = serde_json::from_str(&in_helper(&["-json", "-4", "address", "show", "dev", "br-ex"])?)?;
    let own = addresses[0]["addr_info"][0]["local"].as_str().context("an address of the helper")?.to_owned();
    let echoes = || -> anyhow::Result<u64> {
        let table = isolation::in_network_of(helper, || fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let line = table.lines().filter(|line| line.starts_with("Icmp:")).nth(1).context("a counter")?;
        Ok(line.split_whitespace().nth(8).context("InEchos")?.parse()?)
    };
    let before = echoes()?;
    let speak = format!(
        "ip route add {own}/32 dev eth0 && ip neigh replace {own} lladdr {far} dev eth0 nud permanent && \
         ! ping -c 1 -W 1 {own} && ip route del {own}/32 dev eth0"
    );
    // busybox has no `ip neigh replace` everywhere: the tool of this machine visits the container's namespace.
    let pid = engine.pid("aa")?;
    isolation::in_network_of(pid, || isolation::run("sh", &["-c", &speak]))?;
    ensure!(echoes()? == before, "the helper's own kernel heard a container");
    Ok(())
}

/// What is sent is what is counted.
fn counted(engine: &Engine) -> anyhow::Result<()> {
    let bytes = || -> anyhow::Result<u64> {
        Ok(links(engine)?.iter().filter_map(|link| link["toHelper"]["bytes"].as_u64()).sum())
    };
    let before = bytes()?;
    measure::transfer(engine.pid("aa")?, engine.pid("bb")?, &engine.address("bb", "n")?, 16, |_| Ok(()))?;
    let (grown, sent) = (bytes()? - before, 16 << 20);
    ensure!((sent..sent * 5 / 4).contains(&grown), "{grown} bytes counted for {sent} sent");
    Ok(())
}

/// The interface has the network's MTU, and what is longer comes in pieces.
fn sizes(engine: &Engine) -> anyhow::Result<()> {
    ensure!(engine.docker_ok(&["exec", "aa", "cat", "/sys/class/net/eth0/mtu"])? == MTU);
    for size in ["1372", "1373", "8000"] {
        engine.docker_ok(&["exec", "aa", "ping", "-c", "1", "-W", "5", "-s", size, &engine.address("bb", "n")?])?;
    }
    Ok(())
}

/// Single frames are followed where they pass processes of the engine, and figures of every hop are served.
fn followed(engine: &Engine, carrier: &str) -> anyhow::Result<()> {
    let link = links(engine)?[0]["link"].to_string();
    let trace = || engine.program("arca-relayd", &["trace", &link, "--seconds", "1", "--json"]);
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    let traced = std::thread::scope(|scope| -> anyhow::Result<_> {
        let trace = scope.spawn(trace);
        while !trace.is_finished() {
            measure::ping_pong(a, b, &address, Some(Duration::from_millis(2)), 20)?;
        }
        trace.join().map_err(|_| anyhow::anyhow!("the trace panicked"))
    })?;
    let hops = match carrier {
        "cable" => {
            ensure!(traced.code != 0 && traced.stderr.contains("is a cable"), "{traced:?}");
            &["tapfwd", "agent"][..]
        }
        "tap-fd" => &["agent"],
        _ => &["tapfwd", "relayd", "agent"],
    };
    if carrier != "cable" {
        let told: Vec<Value> = serde_json::from_str(&traced.ok()?)?;
        for hop in hops {
            for to_helper in [true, false] {
                let of_hop = told.iter().filter(|event| event["hop"] == *hop && event["toHelper"] == to_helper);
                ensure!(of_hop.count() > 10, "{hop}, to helper {to_helper}: of {} events", told.len());
            }
        }
        ensure!(told.iter().all(|event| hops.iter().any(|hop| event["hop"] == *hop)), "another hop");
    }
    let served = figures(engine)?;
    for hop in hops {
        let frames = format!("arca_link_frames_total{{link=\"{link}\",carrier=\"{carrier}\",hop=\"{hop}\",direction=");
        let counted: Vec<u64> =
            served.lines().filter_map(|line| line.strip_prefix(&frames)?.split_once("} ")?.1.parse().ok()).collect();
        ensure!(counted.len() == 2 && counted.iter().all(|frames| *frames > 20), "{hop}: {counted:?} in {served}");
    }
    Ok(())
}

/// What arca-relayd serves to Prometheus.
fn figures(engine: &Engine) -> anyhow::Result<String> {
    let mut stream = UnixStream::connect(engine.home().join("run/relayd.metrics")).context("the metrics' socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: arca\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
    Ok(answer)
}

/// Out through the uplink onto a wire without offloads: whole frames of at most the MTU, each with its checksum.
fn out(engine: &Engine, outside: u32) -> anyhow::Result<()> {
    wire::without_offloads("wan0")?;
    let capture = Wire::open(outside, "wan1")?;
    measure::transfer(engine.pid("aa")?, outside, outside::ADDRESS, 4, |_| Ok(()))?;
    let frames = capture.so_far()?;
    // Of those that came: the outside's own are heard too, before its kernel has finished them.
    let own: Ipv4Addr = outside::ADDRESS.parse()?;
    let came = frames.iter().filter(|frame| frame.get(30..34) == Some(&own.octets()[..]));
    let tcp: Vec<(usize, bool)> = came.filter_map(|f| Some((f.len(), wire::tcp_checksum(f)?))).collect();
    ensure!(tcp.len() > 50, "{} of {} frames were TCP", tcp.len(), frames.len());
    ensure!(tcp.iter().all(|(length, right)| *length <= 1514 && *right), "{tcp:?}");
    Ok(())
}

/// One container floods another, then stands still and takes nothing; a third notices neither.
fn alone(engine: &Engine, outside: u32) -> anyhow::Result<()> {
    let (a, b, third) = (engine.pid("aa")?, engine.pid("bb")?, engine.pid("other")?);
    let (to_a, to_b) = (engine.address("aa", "n")?, engine.address("bb", "n")?);
    let transfer = || measure::transfer(third, outside, outside::ADDRESS, 2, |_| Ok(())).map(drop);
    let flood =
        |from, to, address: &str| measure::udp_load(from, to, address, f64::INFINITY, Duration::from_millis(300));
    std::thread::scope(|scope| -> anyhow::Result<()> {
        let flooding = scope.spawn(|| flood(b, a, &to_a));
        transfer().context("beside a flood")?;
        let load = flooding.join().map_err(|_| anyhow::anyhow!("the flood panicked"))??;
        ensure!(load.received > 0.0, "{load:?}");
        Ok(())
    })?;
    let stopped = Pid::from_raw(tapfwd(engine.inspect("bb")?["Id"].as_str().context("an id")?)?);
    kill(stopped, Signal::SIGSTOP)?;
    let beside = flood(a, b, &to_b).and_then(|_| transfer().context("beside a standstill"));
    kill(stopped, Signal::SIGCONT)?;
    beside?;
    // It goes on when it can: its link may have been dialled anew meanwhile.
    let ping = ["exec", "aa", "ping", "-c", "1", "-W", "1", &to_b];
    ensure!((0..15).any(|_| engine.docker(&ping).code == 0), "the container that stood still is not back");
    Ok(())
}

/// An open connection on which nothing is said for long.
struct Idle(TcpStream, TcpStream);

impl Idle {
    fn open(from: u32, to: u32, address: &str) -> anyhow::Result<Self> {
        let listener = isolation::in_network_of(to, || TcpListener::bind((address, 0)))?;
        let target = listener.local_addr()?;
        let client = isolation::in_network_of(from, || TcpStream::connect_timeout(&target, PATIENCE))?;
        let (server, _) = listener.accept()?;
        for end in [&client, &server] {
            end.set_read_timeout(Some(PATIENCE))?;
        }
        Ok(Self(client, server))
    }

    /// One byte each way.
    fn is_alive(&mut self) -> anyhow::Result<()> {
        self.0.write_all(b"?")?;
        self.1.read_exact(&mut [0])?;
        self.1.write_all(b"!")?;
        Ok(self.0.read_exact(&mut [0])?)
    }
}

/// Every party is killed during a transfer; that and a session that was silent meanwhile go on.
fn restarts(engine: &Engine) -> anyhow::Result<()> {
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    let mut idle = Idle::open(a, b, &address)?;
    let id = engine.inspect("aa")?["Id"].as_str().context("an id")?.to_owned();
    for party in ["arca-tapfwd", "arca-relayd", "agent", "arca-netd", "helper"] {
        let strike = |megabyte: usize| match (party, megabyte) {
            (_, megabyte) if megabyte != 6 => Ok(()),
            ("arca-tapfwd", _) => strike(tapfwd(&id)?),
            ("agent", _) => strike(helper_process("arca-helper-agent", Some("agent"))?),
            ("helper", _) => strike(helper_process("arca-helper-agent", Some("init"))?),
            (daemon, _) => engine.kill_daemon(daemon),
        };
        measure::transfer(a, b, &address, 8, strike).with_context(|| format!("{party} killed"))?;
        idle.is_alive().with_context(|| format!("an idle connection after {party} was killed"))?;
        story::wait_until_up(engine)?;
    }
    ensure!(engine.address("bb", "n")? == address);
    // New connections and networks too.
    engine.docker_ok(&["network", "connect", "m", "aa"])?;
    engine.docker_ok(&["exec", "aa", "ping", "-c", "1", "-W", "5", &engine.address("other", "m")?])?;
    let list = links(engine)?;
    ensure!(list.len() == 4 && list.iter().all(|link| link["state"] == "up"), "{list:?}");
    Ok(())
}

fn strike(pid: i32) -> anyhow::Result<()> {
    Ok(kill(Pid::from_raw(pid), Signal::SIGKILL)?)
}

/// arca-tapfwd of a container's machine.
fn tapfwd(id: &str) -> anyhow::Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let program = line.split('\0').next().unwrap_or_default();
        if program.ends_with("arca-tapfwd") && line.contains(&id[..12]) {
            return Ok(pid);
        }
    }
    bail!("arca-tapfwd of {id} does not run")
}
