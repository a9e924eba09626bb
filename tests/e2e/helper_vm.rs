// SPDX-License-Identifier: Apache-2.0
//! The helper as a virtual machine, on an emulated processor where there is no other: boots, carries, reaches out, lets in,
//! and is there again with the same addresses after its end.

use std::{
    fs,
    net::IpAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation::in_network_of,
    outside::{ADDRESS, GATEWAY, Outside, WHO_PORT, ask_who},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    Test, helper,
    publishing::{serve, sleeper, udp_who, who},
};

pub(crate) const TESTS: &[(&str, Test)] = &[("the_helper_is_a_virtual_machine", lives)];

/// A machine that boots on an emulated processor of a busy host.
const PATIENCE: Duration = Duration::from_secs(150);

fn missing() -> Option<&'static str> {
    ["ARCA_KERNEL_PATH", "ARCA_HELPER_IMAGE", "ARCA_VM_TOOLS"]
        .into_iter()
        .find(|name| std::env::var_os(name).is_none_or(|path| !std::path::Path::new(&path).exists()))
}

/// Processes called `name` whose command line has this machine's id.
fn processes(name: &str, id: &str) -> Vec<i32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
    pids.filter(|pid| {
        let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        line.split(' ').next().is_some_and(|program| program.contains(name)) && line.contains(id)
    })
    .collect()
}

/// Tries until it works; gives the time that took. A try is several commands with limits of their own: it is wait enough.
fn again(what: &str, mut works: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let began = Instant::now();
    loop {
        match works() {
            Ok(()) => return Ok(began.elapsed()),
            Err(error) if began.elapsed() > PATIENCE => return Err(error.context(what.to_owned())),
            Err(_) => {}
        }
    }
}

fn lives() -> anyhow::Result<()> {
    if let Some(name) = missing() {
        arca_tests::skip("the helper as a virtual machine", &format!("${name} names nothing (./dev vm)"));
        return Ok(());
    }
    let outside = Outside::start()?;
    // By an interface of the host, then with nothing of the host's at all.
    one_life(&outside, &["machine=vm", "uplink=tap"], true)?;
    one_life(&outside, &["machine=vm", "uplink=user"], false)
}

fn one_life(outside: &Outside, config: &[&str], with_faults: bool) -> anyhow::Result<()> {
    let began = Instant::now();
    let engine = Engine::start_with(config)?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "n"])?;
    let plain = ["--runtime", "arca-ns", "--network", "n"];
    sleeper(&engine, "web", &[&plain[..], &["-p", "8080:80", "-p", "8080:80/udp", "-p", "[::1]:8082:80"]].concat())?;
    eprintln!("config {config:?}: first container after {:?}", began.elapsed());
    sleeper(&engine, "peer", &plain)?;
    serve(&engine, "web", 80)?;
    let (web, peer) = (engine.address("web", "n")?, engine.pid("peer")?);
    let host: IpAddr = GATEWAY.parse()?;

    let works = |engine: &Engine| -> anyhow::Result<()> {
        in_network_of(peer, || who(&format!("{web}:80")).map(drop)).context("container to container")?;
        let seen = ask_who(peer, ADDRESS, WHO_PORT).context("container to outside")?;
        ensure!(seen == GATEWAY, "outside sees {seen}, not {host}");
        who("127.0.0.1:8080").context("host to published port")?;
        who("[::1]:8082").context("host to port published on ::1")?;
        udp_who("127.0.0.1:8080").context("host to published UDP port")?;
        in_network_of(outside.pid(), || who(&format!("{GATEWAY}:8080")).map(drop)).context("outside to port")?;
        in_network_of(peer, || who(&format!("{GATEWAY}:8080")).map(drop)).context("container to port")?;
        let found = engine.docker_ok(&["exec", "peer", "nslookup", "web"])?;
        ensure!(found.contains(&web), "{found}");
        Ok(())
    };
    works(&engine)?;
    helper::looked_into(&engine, "Vm")?;
    let status = engine.arca(&["helper", "status"]).ok()?;
    let id = status.split_whitespace().nth(1).context("the machine's id")?.to_owned();
    if with_faults {
        let emulators = processes("qemu-system", &id);
        ensure!(!emulators.is_empty(), "no QEMU of {id}");
        for pid in emulators {
            kill(Pid::from_raw(pid), Signal::SIGKILL).context("kill QEMU")?;
        }
        let took = again("after QEMU's death", || works(&engine))?;
        eprintln!("QEMU killed: everything works again after {took:?}");
        ensure!(engine.address("web", "n")? == web, "the address changed");
        let now = engine.arca(&["helper", "status"]).ok()?;
        ensure!(keeper(&now)? != keeper(&status)?, "it is the machine of before: {now}");
    }
    engine.docker_ok(&["rm", "-f", "web", "peer"])?;
    engine.stop()
}

/// Process id of the machine's keeper, as `arca helper status` shows it.
fn keeper(status: &str) -> anyhow::Result<i32> {
    let line = status.lines().find_map(|line| line.strip_prefix("keeper")).context("a keeper")?;
    line.rsplit(' ').next().context("its pid")?.parse().context("its pid")
}
