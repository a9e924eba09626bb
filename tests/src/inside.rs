// SPDX-License-Identifier: Apache-2.0
//! What is seen and done inside a container, whatever it lives in. A namespace machine is visited by threads of this
//! process; into a virtual one nobody can go, so the container's own tools do it.

use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};

use crate::{
    engine::{self, Engine},
    measure,
};

/// Longest time for a transfer between virtual machines on emulated processors.
const PATIENCE: Duration = Duration::from_secs(180);
const PORT: &str = "6999";
/// Megabytes that are sent before the strike.
const BEFORE: usize = 4;

/// Whether a container lives in a virtual machine.
///
/// # Errors
/// If it does not exist.
pub fn is_virtual(engine: &Engine, container: &str) -> anyhow::Result<bool> {
    Ok(engine.inspect(container)?["HostConfig"]["Runtime"] == "arca-vm")
}

/// Interfaces with their IPv4 addresses, without the loopback: `eth0 172.18.0.2/16`.
///
/// # Errors
/// If the container does not run.
pub fn interfaces(engine: &Engine, container: &str) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    if !is_virtual(engine, container)? {
        return engine::interfaces(engine.pid(container)?);
    }
    let script = "for i in /sys/class/net/*; do i=${i##*/}; echo $i $(ip -4 -o address show dev $i | sed 's/.* inet //; s/ .*//'); done";
    let text = engine.docker_ok(&["exec", container, "sh", "-c", script])?;
    let named = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace().map(str::to_owned);
        Some((words.next()?, words.collect::<Vec<_>>()))
    });
    Ok(named.filter(|(name, _)| name != "lo").collect())
}

/// Sends random bytes over one TCP connection from a container to another at `address` and compares the digests of both
/// ends; `strike` is called once in the middle.
///
/// # Errors
/// If the connection breaks or a byte arrived wrong.
pub fn transfer(
    engine: &Engine,
    from: &str,
    to: &str,
    address: &str,
    megabytes: usize,
    strike: impl FnOnce() -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    if !is_virtual(engine, from)? && !is_virtual(engine, to)? {
        let (middle, mut strike) = (megabytes / 3, Some(strike));
        return measure::transfer(engine.pid(from)?, engine.pid(to)?, address, megabytes, |megabyte| {
            if megabyte == middle { strike.take().map_or(Ok(()), |strike| strike()) } else { Ok(()) }
        });
    }
    // Its own input never ends: at that end it would say so, and the sender would take it for the end of all.
    let receive = format!(
        "rm -f /tmp/sum /tmp/never; mkfifo /tmp/never; nc -l -p {PORT} <> /tmp/never | md5sum > /tmp/sum.new; \
         mv /tmp/sum.new /tmp/sum"
    );
    let prepare = format!(
        "rm -f /tmp/mark; dd if=/dev/urandom of=/tmp/data bs=1M count={megabytes} 2>/dev/null; md5sum < /tmp/data"
    );
    let send = format!("(dd bs=1M count={BEFORE} 2>/dev/null; touch /tmp/mark; cat) < /tmp/data | nc {address} {PORT}");
    let digest = engine.docker_ok(&["exec", from, "sh", "-c", &prepare])?;
    engine.docker_ok(&["exec", "-d", to, "sh", "-c", &receive])?;
    // It listens when the kernel lists the socket.
    let listens = format!("until netstat -ltn | grep -q :{PORT}; do sleep 0.1; done");
    engine.docker_ok(&["exec", to, "sh", "-c", &listens])?;
    let began = Instant::now();
    engine.docker_ok(&["exec", "-d", from, "sh", "-c", &send])?;
    engine.docker_ok(&["exec", from, "sh", "-c", "until [ -e /tmp/mark ]; do sleep 0.1; done"])?;
    strike()?;
    // Whoever was struck may be the one that is asked: then again.
    let arrived = "i=0; until [ -s /tmp/sum ]; do sleep 0.1; i=$((i+1)); [ $i -lt 900 ] || exit 1; done; cat /tmp/sum";
    loop {
        let ran = engine.docker(&["exec", to, "sh", "-c", arrived]);
        if ran.code == 0 {
            ensure!(ran.stdout.trim() == digest.trim(), "what arrived is not what was sent");
            return Ok(began.elapsed());
        }
        if began.elapsed() > PATIENCE {
            bail!("nothing arrived: {ran:?}");
        }
        crate::story::wait_until_up(engine).context("wait for who was struck")?;
    }
}
