// SPDX-License-Identifier: Apache-2.0
//! What the engine's processes take: resident memory, processor time, wake-ups. Read from /proc.

use std::{collections::BTreeMap, fs};

/// One process of the engine.
pub(crate) struct Process {
    pid: u32,
    pub(crate) name: String,
    pub(crate) place: Place,
}

/// What a process belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// Host daemons.
    Host,
    /// The helper machine.
    Helper,
    /// Container machines; workloads are not counted.
    Container,
}

/// Everything of the engine in this process namespace.
pub(crate) fn of_engine() -> Vec<Process> {
    let all: BTreeMap<u32, (u32, String)> = fs::read_dir("/proc")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let status = fs::read_to_string(entry.path().join("status")).ok()?;
            let parent = field(&status, "PPid")?;
            // Longer than the 15 bytes of `comm`.
            let command = fs::read(entry.path().join("cmdline")).ok()?;
            let program = String::from_utf8_lossy(command.split(|byte| *byte == 0).next()?).into_owned();
            let name = program.rsplit('/').next()?.to_owned();
            Some((pid, (u32::try_from(parent).ok()?, name)))
        })
        .collect();
    let in_helper = |pid: u32| {
        let mut at = pid;
        while let Some((parent, name)) = all.get(&at) {
            if name == "arca-helper-agent" {
                return true;
            }
            at = *parent;
        }
        false
    };
    let place = |pid: u32, name: &str| match name {
        "arca" | "arca-api" | "arca-netd" | "arca-relayd" => Some(Place::Host),
        "arca-init" | "arca-tapfwd" => Some(Place::Container),
        _ if in_helper(pid) => Some(Place::Helper),
        _ => None,
    };
    let of_engine = all
        .iter()
        .filter_map(|(pid, (_, name))| Some(Process { pid: *pid, name: name.clone(), place: place(*pid, name)? }));
    of_engine.collect()
}

impl Process {
    /// A name that tells the helper's processes of one program apart.
    pub(crate) fn title(&self) -> String {
        let command = fs::read(format!("/proc/{}/cmdline", self.pid)).unwrap_or_default();
        let words = String::from_utf8_lossy(&command).replace('\0', " ");
        let of = [" init", " agent", "ovnnb", "ovnsb", "conf.db", " serve", " daemon"];
        let of = of.into_iter().find(|word| words.contains(word)).unwrap_or_default();
        format!("{} {}", self.name, of.trim()).trim_end().to_owned()
    }

    /// Process id.
    #[allow(dead_code, reason = "the other bench takes the rest")]
    pub(crate) fn id(&self) -> u32 {
        self.pid
    }

    /// Resident bytes.
    pub(crate) fn resident(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid)).unwrap_or_default();
        field(&status, "VmRSS").unwrap_or(0) * 1024
    }

    /// Resident bytes, those shared with others in proportion.
    pub(crate) fn proportional(&self) -> u64 {
        let rollup = fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid)).unwrap_or_default();
        field(&rollup, "Pss").unwrap_or(0) * 1024
    }

    /// Processor time, in ticks of 10 ms (proc_pid_stat(5)).
    pub(crate) fn ticks(&self) -> u64 {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.pid)).unwrap_or_default();
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
    }

    /// Times any of its threads gave the processor away by itself: each is a wake-up.
    pub(crate) fn wakeups(&self) -> u64 {
        let threads = fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let status = threads.filter_map(|thread| fs::read_to_string(thread.path().join("status")).ok());
        status.filter_map(|status| field(&status, "voluntary_ctxt_switches")).sum()
    }

    /// Whether it is a program of this project.
    pub(crate) fn is_arca(&self) -> bool {
        // The helper machine starts its agent from its own file.
        self.name.starts_with("arca") || self.name == "exe"
    }
}

/// `Name:   123 kB`
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
