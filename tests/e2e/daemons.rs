// SPDX-License-Identifier: Apache-2.0
//! Daemons may die at any time: containers, their output and their traffic go on.

use std::{fs, time::Duration};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::Engine,
    isolation, measure,
    outside::{self, Outside},
    story,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("what_a_container_said_and_how_it_ended_while_the_api_was_dead_is_known", api_gap),
    ("twenty_kills_at_random_moments_lose_no_byte", twenty_kills),
    ("a_stopped_and_started_engine_finds_its_containers", stop_start),
    ("the_helper_machine_comes_back_with_the_same_addresses", helper_dies),
    ("two_engines_run_side_by_side", two_engines),
];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    Ok(engine)
}

/// Freezes the supervisor, so that a killed daemon stays dead until it is thawed.
fn frozen<T>(engine: &Engine, work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    use nix::{
        sys::signal::{Signal, kill},
        unistd::Pid,
    };
    let pid: i32 = fs::read_to_string(engine.home().join("data/engine.lock"))?.trim().parse()?;
    kill(Pid::from_raw(pid), Signal::SIGSTOP)?;
    let result = work();
    kill(Pid::from_raw(pid), Signal::SIGCONT)?;
    result
}

fn api_gap() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    let script = "echo before; read x < /gate/fifo; echo during; exit 42";
    let gate = engine.home().join("gate");
    fs::create_dir(&gate)?;
    nix::unistd::mkfifo(&gate.join("fifo"), nix::sys::stat::Mode::S_IRWXU)?;
    let bind = format!("{}:/gate", gate.display());
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "-v", &bind, "busybox", "sh", "-c", script])?;
    engine.docker_ok(&["run", "-d", "--name", "lives", "--network", "n", "busybox", "sleep", "1000"])?;
    let pid = engine.pid("cc")?;
    let address = engine.address("lives", "n")?;
    frozen(&engine, || {
        engine.kill_daemon("arca-api")?;
        fs::write(gate.join("fifo"), "go\n")?;
        // It has ended when its process is gone: its pidfd tells.
        ensure!(isolation::wait_for_end(pid, Duration::from_secs(20))?, "the container did not end");
        Ok(())
    })?;
    story::wait_until_up(&engine)?;
    ensure!(engine.docker_ok(&["wait", "cc"])? == "42");
    ensure!(engine.docker_ok(&["logs", "cc"])? == "before\nduring");
    ensure!(engine.address("lives", "n")? == address, "the living container kept its address");
    ensure!(engine.docker_ok(&["exec", "lives", "echo", "still here"])? == "still here");
    engine.stop()
}

fn twenty_kills() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    for name in ["aa", "bb"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "n", "busybox", "sleep", "10000"])?;
    }
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    let mut random = SmallRng::seed_from_u64(20);
    for strike in 0..20 {
        let daemon = ["arca-relayd", "arca-netd", "arca-api", "arca-relayd"][strike % 4];
        let moment = random.random_range(1..24);
        measure::transfer(
            a,
            b,
            &address,
            24,
            |megabyte| {
                if megabyte == moment { engine.kill_daemon(daemon) } else { Ok(()) }
            },
        )
        .with_context(|| format!("strike {strike}: {daemon} killed at megabyte {moment}"))?;
        story::wait_until_up(&engine)?;
    }
    engine.stop()
}

fn stop_start() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    for name in ["aa", "bb"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "n", "busybox", "sleep", "10000"])?;
    }
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    engine.arca(&["daemon", "stop"]).ok()?;
    ensure!(fs::metadata(format!("/proc/{a}")).is_ok(), "containers outlive the daemons");
    ensure!(engine.arca(&["daemon", "status"]).code == 3, "no daemon is left");
    engine.arca(&["daemon", "start"]).ok()?;
    ensure!(engine.pid("aa")? == a && engine.pid("bb")? == b && engine.address("bb", "n")? == address);
    measure::transfer(a, b, &address, 8, |_| Ok(()))?;
    // What a stopped engine left running can still be ended: the harness sees whether anything is left.
    engine.arca(&["daemon", "stop"]).ok()?;
    engine.stop()
}

fn helper_dies() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    for name in ["aa", "bb"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "n", "busybox", "sleep", "10000"])?;
    }
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    let helper = helper_process("arca-helper-agent", Some("init"))?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL)?;
    // The connection itself must survive: TCP repeats what was lost meanwhile.
    measure::transfer(a, b, &address, 8, |_| Ok(()))?;
    ensure!(engine.address("bb", "n")? == address);
    ensure!(engine.docker_ok(&["exec", "aa", "nslookup", "bb"])?.contains(&address));
    engine.stop()
}

/// A process of the helper machine, by its program and the word after it.
pub(crate) fn helper_process(program: &str, word: Option<&str>) -> anyhow::Result<i32> {
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let line = String::from_utf8_lossy(&line).into_owned();
        let mut words = line.split('\0');
        let is_it = words.next().is_some_and(|path| path.rsplit('/').next() == Some(program));
        if is_it && word.is_none_or(|word| words.next() == Some(word)) {
            return Ok(pid);
        }
    }
    anyhow::bail!("{program} does not run in the helper machine")
}

fn two_engines() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let forwarding = || fs::read_to_string("/proc/sys/net/ipv4/ip_forward");
    ensure!(forwarding()?.trim() == "0", "a new network namespace forwards nothing");
    // At the same moment: both look for a free uplink network then.
    let (one, two) = std::thread::scope(|scope| {
        let other = scope.spawn(engine);
        (engine(), other.join())
    });
    let (one, two) = (one?, two.map_err(|_| anyhow::anyhow!("an engine's start panicked"))??);
    let uplink = |engine: &Engine| isolation::output("ip", &["-4", "-o", "address", "show", "dev", &engine.uplink()]);
    let network = |text: String| text.split_whitespace().nth(3).map(str::to_owned).context("an address");
    let (first, second) = (network(uplink(&one)?)?, network(uplink(&two)?)?);
    ensure!(first != second, "both have the uplink network of {first}");

    for (engine, name, port) in [(&one, "first", "8080:80"), (&two, "second", "8081:80")] {
        engine.docker_ok(&["network", "create", "same"])?;
        engine.run_server(&["--name", "same", "--hostname", name, "--network", "same", "-p", port])?;
    }
    ensure!(one.docker_ok(&["ps", "-q"])? != two.docker_ok(&["ps", "-q"])?);
    let ask = |engine: &Engine| {
        engine.docker_ok(&["exec", "same", "nc", "-w", "3", outside::ADDRESS, &outside::WHO_PORT.to_string()])
    };
    let come_in = |port: u16| {
        let address = format!("{}:{port}", outside::GATEWAY);
        isolation::in_network_of(outside.pid(), || story::http_get(&address, "/name"))
    };
    ensure!(come_in(8080)? == "first" && come_in(8081)? == "second");
    ensure!(ask(&one)? == outside::GATEWAY && ask(&two)? == outside::GATEWAY);

    one.stop()?;
    ensure!(two.docker_ok(&["exec", "same", "echo", "here"])? == "here");
    ensure!(
        come_in(8081)? == "second" && ask(&two)? == outside::GATEWAY,
        "the second engine needs nothing of the first"
    );
    two.stop()?;
    ensure!(forwarding()?.trim() == "0", "forwarding is as it was");
    Ok(())
}
