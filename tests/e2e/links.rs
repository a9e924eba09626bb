// SPDX-License-Identifier: Apache-2.0
//! One suite for every carrier of frames: whatever a link is made of, it does the same.

use std::{
    fs,
    io::{Read as _, Write as _},
    net::{TcpListener, TcpStream},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    engine::{Engine, interfaces},
    isolation, measure,
    outside::{self, Outside},
    story,
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
    let engine = Engine::start_with(&[&format!("link={carrier}")])?;
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
    // Out through the uplink: the digests of both ends agree, so no checksum was left unfinished where it mattered.
    measure::transfer(engine.pid("aa")?, outside.pid(), outside::ADDRESS, 24, |_| Ok(())).context("to the outside")?;
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
        measure::transfer(a, b, &address, 16, strike).with_context(|| format!("{party} killed"))?;
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
