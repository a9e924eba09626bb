// SPDX-License-Identifier: Apache-2.0
//! What a load costs: processor time and context switches of the processes on its path.

use std::{collections::BTreeMap, fs};

use serde::Serialize;

/// Seconds of processor time and context switches of one kind of process.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Cost {
    pub(crate) seconds: f64,
    pub(crate) switches: f64,
}

/// Counters at one moment, by process.
pub(crate) struct Meter {
    processes: Vec<(String, u32)>,
    before: BTreeMap<u32, Cost>,
}

impl Meter {
    /// Starts counting.
    pub(crate) fn start(processes: &[(String, u32)]) -> Self {
        let before = processes.iter().map(|(_, pid)| (*pid, read(*pid))).collect();
        Self { processes: processes.to_vec(), before }
    }

    /// By name; processes of one name are added up.
    pub(crate) fn stop(self) -> BTreeMap<String, Cost> {
        let mut costs: BTreeMap<String, Cost> = BTreeMap::new();
        for (name, pid) in &self.processes {
            let (now, before) = (read(*pid), self.before.get(pid).copied().unwrap_or_default());
            let cost = costs.entry(name.clone()).or_default();
            cost.seconds += (now.seconds - before.seconds).max(0.0);
            cost.switches += (now.switches - before.switches).max(0.0);
        }
        costs
    }
}

/// Of all threads (proc_pid_schedstat: nanoseconds on a processor, waiting, times run).
fn read(pid: u32) -> Cost {
    let mut cost = Cost::default();
    for thread in fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten() {
        let text = fs::read_to_string(thread.path().join("schedstat")).unwrap_or_default();
        let mut numbers = text.split_ascii_whitespace().filter_map(|number| number.parse::<f64>().ok());
        cost.seconds += numbers.next().unwrap_or(0.0) / 1e9;
        cost.switches += numbers.nth(1).unwrap_or(0.0);
    }
    cost
}
