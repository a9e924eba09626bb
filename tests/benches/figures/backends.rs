// SPDX-License-Identifier: Apache-2.0
//! Both backends side by side in one engine: round trips of two containers on a network of each.

use std::{fs, path::Path, time::Duration};

use anyhow::Context as _;
use arca_tests::{engine::Engine, measure};

use crate::{Budget, Report, Unit, table::median};

/// The row of docs/vmnet.md that is written from here.
const ROW: &str = "| latency between two containers |";

/// Measures, in turns, so that what disturbs one disturbs the other; with `write` the page gets the figures.
pub(crate) fn measure(engine: &Engine, report: &mut Report, rounds: usize, write: bool) -> anyhow::Result<()> {
    report.progress("round trips of both backends");
    let mut paths = Vec::new();
    for driver in ["ovs", "vmnet"] {
        let network = format!("both-{driver}");
        engine.docker_ok(&["network", "create", "--driver", driver, &network])?;
        let ends = ["a", "b"].map(|end| format!("{network}-{end}"));
        for end in &ends {
            engine.docker_ok(&["run", "-d", "--name", end, "--network", &network, "busybox", "sleep", "100000"])?;
        }
        let address = engine.address(&ends[1], &network)?;
        paths.push((engine.pid(&ends[0])?, engine.pid(&ends[1])?, address, Vec::new(), Vec::new()));
    }
    for _ in 0..rounds {
        for (from, to, address, calm, flat) in &mut paths {
            let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
            let pause = Some(Duration::from_millis(10));
            calm.push(milliseconds(measure::ping_pong(*from, *to, address, pause, 300)?.p50));
            flat.push(milliseconds(measure::ping_pong(*from, *to, address, None, 5000)?.p50));
        }
    }
    let (vmnet, ovs) = (paths.pop().context("vmnet")?, paths.pop().context("ovs")?);
    if write {
        // Flat out: at a slower pace it is the scheduler that is measured as soon as the machine does anything else.
        put(median(&ovs.4), median(&vmnet.4))?;
    }
    let others = [("ovs backend", ovs.3), ("ovs backend", ovs.4)];
    let figures = [("RTT p50, vmnet backend, 100/s", vmnet.3), ("RTT p50, vmnet backend, flat out", vmnet.4)];
    for ((figure, samples), peer) in figures.into_iter().zip(others) {
        // A hop in the kernel: well under a tenth of a millisecond.
        report.add(figure, Unit::Milliseconds, samples, Budget::AtMost(0.1), Some(peer));
    }
    for driver in ["ovs", "vmnet"] {
        engine.docker_ok(&["rm", "-f", &format!("both-{driver}-a"), &format!("both-{driver}-b")])?;
        engine.docker_ok(&["network", "rm", &format!("both-{driver}")])?;
    }
    Ok(())
}

/// Writes the row.
fn put(ovs: f64, vmnet: f64) -> anyhow::Result<()> {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/vmnet.md");
    let text = fs::read_to_string(&page).with_context(|| page.display().to_string())?;
    let lines = text.lines().map(|line| match line.starts_with(ROW) {
        true => format!("{ROW} {ovs:.3} ms | {vmnet:.3} ms |\n"),
        false => format!("{line}\n"),
    });
    fs::write(&page, lines.collect::<String>()).with_context(|| page.display().to_string())
}
