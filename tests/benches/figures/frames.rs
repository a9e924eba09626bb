// SPDX-License-Identifier: Apache-2.0
//! Between two containers on a network of their own, through OVN; and the same probes through a kernel bridge.

use std::time::Duration;

use arca_tests::{engine::Engine, measure};

use crate::{
    Budget, Report, Unit,
    kernel::{self, Bridge},
    table::median,
};

const PEER: &str = "kernel bridge";

/// Two ends of a path.
struct Path {
    pids: [u32; 2],
    addresses: [String; 2],
}

impl Path {
    /// From end 0 to end 1, or back.
    fn ends(&self, back: bool) -> (u32, u32, &str) {
        let to = usize::from(!back);
        (self.pids[1 - to], self.pids[to], &self.addresses[to])
    }
}

/// Samples of one path.
#[derive(Default)]
struct Samples {
    calm: Vec<f64>,
    calm_99: Vec<f64>,
    flat: Vec<f64>,
    flat_99: Vec<f64>,
    there: Vec<f64>,
    back: Vec<f64>,
    packets: Vec<f64>,
    overload: Vec<f64>,
}

impl Samples {
    fn round_trips(&mut self, path: &Path) -> anyhow::Result<()> {
        let (from, to, address) = path.ends(false);
        let calm = measure::ping_pong(from, to, address, Some(Duration::from_millis(10)), 300)?;
        let flat = measure::ping_pong(from, to, address, None, 5000)?;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        self.calm.push(milliseconds(calm.p50));
        self.calm_99.push(milliseconds(calm.p99));
        self.flat.push(milliseconds(flat.p50));
        self.flat_99.push(milliseconds(flat.p99));
        Ok(())
    }

    fn streams(&mut self, path: &Path) -> anyhow::Result<()> {
        for (back, samples) in [(false, &mut self.there), (true, &mut self.back)] {
            let (from, to, address) = path.ends(back);
            samples.push(measure::stream(from, to, address, Duration::from_secs(3))? / 1e9);
        }
        Ok(())
    }

    fn packets(&mut self, path: &Path) -> anyhow::Result<()> {
        let (from, to, address) = path.ends(false);
        let best = measure::udp_capacity(from, to, address, Duration::from_secs(1))?;
        self.packets.push(best.received / 1e3);
        let overload = measure::udp_load(from, to, address, best.received * 4.0, Duration::from_secs(1))?;
        self.overload.push(100.0 * overload.received / best.received);
        Ok(())
    }
}

/// Round trips, streams and small packets; both paths take turns, so that other load meets both.
pub(crate) fn measure(engine: &Engine, report: &mut Report, rounds: usize) -> anyhow::Result<()> {
    report.progress("two containers, and a kernel bridge beside them");
    engine.docker_ok(&["network", "create", "bench"])?;
    for name in ["left", "right"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "bench", "busybox", "sleep", "3600"])?;
    }
    let arca = Path {
        pids: [engine.pid("left")?, engine.pid("right")?],
        addresses: [engine.address("left", "bench")?, engine.address("right", "bench")?],
    };
    let bridge = Bridge::start()?;
    let kernel = Path { pids: [bridge.pid(0), bridge.pid(1)], addresses: [kernel::address(0), kernel::address(1)] };

    let (mut a, mut k) = (Samples::default(), Samples::default());
    for round in 1..=rounds {
        report.progress(&format!("round trips, round {round} of {rounds}"));
        k.round_trips(&kernel)?;
        a.round_trips(&arca)?;
        report.progress(&format!("one TCP stream each way, round {round} of {rounds}"));
        k.streams(&kernel)?;
        a.streams(&arca)?;
    }
    for round in 1..=rounds.min(2) {
        report.progress(&format!("64-byte UDP, round {round} of {}", rounds.min(2)));
        k.packets(&kernel)?;
        a.packets(&arca)?;
    }
    engine.docker_ok(&["rm", "-f", "left", "right"])?;
    engine.docker_ok(&["network", "rm", "bench"])?;

    let ratio = median(&a.there) / median(&k.there);
    let peer = |samples| Some((PEER, samples));
    report.add("RTT at 100/s, p50", Unit::Milliseconds, a.calm, Budget::AtMost(0.35), peer(k.calm));
    report.add("RTT at 100/s, p99", Unit::Milliseconds, a.calm_99, Budget::None, peer(k.calm_99));
    report.add("RTT flat out, p50", Unit::Milliseconds, a.flat, Budget::AtMost(0.14), peer(k.flat));
    report.add("RTT flat out, p99", Unit::Milliseconds, a.flat_99, Budget::None, peer(k.flat_99));
    report.add("one TCP stream, there", Unit::Gigabits, a.there, Budget::AtLeast(6.0), peer(k.there));
    report.add("one TCP stream, back", Unit::Gigabits, a.back, Budget::AtLeast(6.0), peer(k.back));
    report.add("one TCP stream, of the kernel bridge's", Unit::Times, vec![ratio], Budget::AtLeast(1.0 / 3.0), None);
    report.add("64-byte UDP, < 1 % loss", Unit::KiloPackets, a.packets, Budget::AtLeast(150.0), peer(k.packets));
    let overload = peer(k.overload);
    report.add("goodput when 4x that is offered", Unit::Percent, a.overload, Budget::AtLeast(70.0), overload);
    Ok(())
}
