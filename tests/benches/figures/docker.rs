// SPDX-License-Identifier: Apache-2.0
//! How long what a user types takes, the docker command included.

use std::time::{Duration, Instant};

use arca_tests::engine::Engine;

use crate::{Budget, Report, Unit};

/// Repetitions of one command; the first ones warm up and do not count.
const TIMES: usize = 20;
const WARM_UP: usize = 2;
/// Endpoints of the crowded network.
const CROWD: usize = 10;

// What dockerd 28 with its bridge driver took on the machine of the budgets; it does not run here.
const DOCKERD_RUN: f64 = 212.0;
const DOCKERD_EXEC: f64 = 60.0;
const DOCKERD_CREATE_REMOVE: f64 = 244.0;
const DOCKERD_CONNECT_DISCONNECT: f64 = 112.0;

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// From nothing to a container with its first address, helper machine booted on the way.
pub(crate) fn boots(report: &mut Report, rounds: usize) -> anyhow::Result<()> {
    let (mut ready, mut addressed) = (Vec::new(), Vec::new());
    for round in 1..=rounds {
        report.progress(&format!("cold boot, round {round} of {rounds}"));
        let engine = Engine::start()?;
        engine.load_image()?;
        let began = Instant::now();
        engine.docker_ok(&["run", "-d", "--name", "first", "busybox", "sleep", "3600"])?;
        engine.address("first", "bridge")?;
        ready.push(engine.start_time.as_secs_f64());
        // Loading the image is not part of a boot.
        addressed.push(engine.start_time.as_secs_f64() + began.elapsed().as_secs_f64());
        engine.stop()?;
    }
    report.add("`arca daemon start` until docker may be used", Unit::Seconds, ready, Budget::None, None);
    report.add(
        "the same until the first container has an address",
        Unit::Seconds,
        addressed,
        Budget::AtMost(2.0),
        None,
    );
    Ok(())
}

/// Times of each command of `each`, which is called with a number; what it gives are the times of its parts.
fn repeat<const PARTS: usize>(
    mut each: impl FnMut(usize) -> anyhow::Result<[f64; PARTS]>,
) -> anyhow::Result<[Vec<f64>; PARTS]> {
    let mut samples = [const { Vec::new() }; PARTS];
    for number in 0..TIMES + WARM_UP {
        let times = each(number)?;
        if number >= WARM_UP {
            for (samples, time) in samples.iter_mut().zip(times) {
                samples.push(time);
            }
        }
    }
    Ok(samples)
}

/// Time of one command that has to succeed.
fn timed(engine: &Engine, arguments: &[&str]) -> anyhow::Result<f64> {
    let ran = engine.docker(arguments);
    let time = milliseconds(ran.time);
    ran.ok().map_err(|error| error.context(format!("docker {}", arguments.join(" "))))?;
    Ok(time)
}

/// Run, exec, network create and connect on a quiet engine.
pub(crate) fn measure(engine: &Engine, report: &mut Report) -> anyhow::Result<()> {
    report.progress("docker version (what the command line itself takes)");
    let [version] = repeat(|_| Ok([timed(engine, &["version", "--format", "{{.Server.Version}}"])?]))?;
    report.add("docker version (the command line itself)", Unit::Milliseconds, version, Budget::None, None);

    report.progress("docker run --rm busybox true");
    let [run] = repeat(|_| Ok([timed(engine, &["run", "--rm", "busybox", "true"])?]))?;
    let recorded = |value| Some(("dockerd, recorded,", vec![value]));
    let budget = Budget::AtMost(DOCKERD_RUN);
    report.add("docker run --rm busybox true", Unit::Milliseconds, run, budget, recorded(DOCKERD_RUN));

    engine.docker_ok(&["run", "-d", "--name", "probe", "busybox", "sleep", "3600"])?;
    report.progress("docker exec probe true");
    let [exec] = repeat(|_| Ok([timed(engine, &["exec", "probe", "true"])?]))?;
    let budget = Budget::AtMost(DOCKERD_EXEC);
    report.add("docker exec", Unit::Milliseconds, exec, budget, recorded(DOCKERD_EXEC));

    report.progress("docker network create and rm");
    let [create, remove] =
        repeat(|_| Ok([timed(engine, &["network", "create", "made"])?, timed(engine, &["network", "rm", "made"])?]))?;
    let both = sums(&create, &remove);
    report.add("docker network create", Unit::Milliseconds, create, Budget::None, None);
    let budget = Budget::AtMost(DOCKERD_CREATE_REMOVE);
    report.add("docker network create + rm", Unit::Milliseconds, both, budget, recorded(DOCKERD_CREATE_REMOVE));

    engine.docker_ok(&["network", "create", "empty"])?;
    report.progress("docker network connect and disconnect");
    connects(engine, report, "empty", "")?;
    engine.docker_ok(&["network", "rm", "empty"])?;
    engine.docker_ok(&["rm", "-f", "probe"])?;
    Ok(())
}

fn sums(a: &[f64], b: &[f64]) -> Vec<f64> {
    a.iter().zip(b).map(|(a, b)| a + b).collect()
}

fn connects(engine: &Engine, report: &mut Report, network: &str, with: &str) -> anyhow::Result<()> {
    let [connect, disconnect] = repeat(|_| {
        Ok([
            timed(engine, &["network", "connect", network, "probe"])?,
            timed(engine, &["network", "disconnect", network, "probe"])?,
        ])
    })?;
    let both = sums(&connect, &disconnect);
    report.add(format!("docker network connect{with}"), Unit::Milliseconds, connect, Budget::AtMost(80.0), None);
    let (budget, peer) = (Budget::AtMost(DOCKERD_CONNECT_DISCONNECT), vec![DOCKERD_CONNECT_DISCONNECT]);
    let peer = Some(("dockerd, recorded,", peer));
    report.add(format!("docker network connect + disconnect{with}"), Unit::Milliseconds, both, budget, peer);
    Ok(())
}

/// Ten containers on one network.
pub(crate) struct Crowd<'a>(&'a Engine);

impl<'a> Crowd<'a> {
    pub(crate) fn gather(engine: &'a Engine, report: &mut Report) -> anyhow::Result<Self> {
        report.progress("ten containers on one network");
        engine.docker_ok(&["network", "create", "crowd"])?;
        for number in 0..CROWD {
            let name = format!("crowd{number}");
            engine.docker_ok(&["run", "-d", "--name", &name, "--network", "crowd", "busybox", "sleep", "3600"])?;
        }
        Ok(Self(engine))
    }

    pub(crate) fn connects(&self, report: &mut Report) -> anyhow::Result<()> {
        report.progress("docker network connect and disconnect with ten endpoints there");
        self.0.docker_ok(&["run", "-d", "--name", "probe", "busybox", "sleep", "3600"])?;
        connects(self.0, report, "crowd", ", 10 there")?;
        self.0.docker_ok(&["rm", "-f", "probe"]).map(drop)
    }
}
