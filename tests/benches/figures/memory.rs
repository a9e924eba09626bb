// SPDX-License-Identifier: Apache-2.0
//! What ten idle containers cost: memory of each process, processor time, wake-ups.

use std::{collections::BTreeMap, time::Duration};

use crate::{
    Budget, Report, Unit,
    processes::{self, Place, Process},
};

const IDLE: Duration = Duration::from_secs(10);

/// Measures an engine that does nothing.
pub(crate) fn measure(report: &mut Report) {
    report.progress("ten seconds of idleness");
    wait(Duration::from_secs(2));
    let processes = processes::of_engine();
    let ticks = |processes: &[Process]| processes.iter().map(Process::ticks).sum::<u64>();
    let wakeups = |processes: &[Process]| -> Vec<u64> { processes.iter().map(Process::wakeups).collect() };
    let (ticks_before, before) = (ticks(&processes), wakeups(&processes));
    wait(IDLE);
    let (ticks_after, after) = (ticks(&processes), wakeups(&processes));
    #[expect(clippy::cast_precision_loss, reason = "a share")]
    let share = ticks_after.saturating_sub(ticks_before) as f64 / IDLE.as_secs_f64();
    report.add("idle, processor time of all", Unit::Percent, vec![share], Budget::AtMost(1.0), None);
    // The busiest of each kind: a timer faster than a second would be seen here.
    let rates = processes.iter().zip(before.iter().zip(&after)).filter(|(process, _)| process.is_arca());
    #[expect(clippy::cast_precision_loss, reason = "a rate")]
    let rates = rates
        .map(|(process, (before, after))| (after.saturating_sub(*before) as f64 / IDLE.as_secs_f64(), process.title()));
    if let Some((rate, title)) = rates.max_by(|a, b| a.0.total_cmp(&b.0)) {
        let figure = format!("idle, wake-ups of Arca's busiest ({title})");
        report.add(figure, Unit::PerSecond, vec![rate], Budget::AtMost(1.0), None);
    }
    report.progress("resident memory");
    memory(report, &processes);
}

#[expect(clippy::disallowed_methods, reason = "idleness has no event")]
fn wait(time: Duration) {
    std::thread::sleep(time);
}

#[expect(clippy::cast_precision_loss, reason = "far below 2^53")]
fn memory(report: &mut Report, processes: &[Process]) {
    let megabytes = |bytes: u64| bytes as f64 / 1e6;
    let sum = |place: Place, bytes: fn(&Process) -> u64| -> f64 {
        megabytes(processes.iter().filter(|process| process.place == place).map(bytes).sum())
    };
    let shared = |place| Some(("shared pages in proportion:", vec![sum(place, Process::proportional)]));
    let resident = |place| vec![sum(place, Process::resident)];
    for (figure, place, limit) in
        [("helper machine, resident", Place::Helper, 100.0), ("host daemons, resident", Place::Host, 60.0)]
    {
        report.add(figure, Unit::Megabytes, resident(place), Budget::AtMost(limit), shared(place));
    }
    let containers = processes.iter().filter(|process| process.name == "arca-init").count().max(1) as f64;
    let of_one = |bytes| sum(Place::Container, bytes) / containers;
    let peer = Some(("shared pages in proportion:", vec![of_one(Process::proportional)]));
    let figure = "arca-init + arca-tapfwd, a container";
    report.add(figure, Unit::Megabytes, vec![of_one(Process::resident)], Budget::AtMost(8.0), peer);

    // Each program, those of one title together.
    let mut titles: BTreeMap<String, Vec<&Process>> = BTreeMap::new();
    for process in processes {
        titles.entry(process.title()).or_default().push(process);
    }
    for (title, of_title) in titles {
        let samples = of_title.iter().map(|process| megabytes(process.resident())).collect();
        let proportional = of_title.iter().map(|process| megabytes(process.proportional())).collect();
        let peer = Some(("in proportion", proportional));
        report.add(format!("  {title}"), Unit::Megabytes, samples, Budget::None, peer);
    }
}
