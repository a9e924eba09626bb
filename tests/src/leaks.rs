// SPDX-License-Identifier: Apache-2.0
//! What an engine must not leave behind: processes, network interfaces (TAPs among them), mounts, network namespaces,
//! nftables rules, cgroups. A snapshot before and one after; the difference is the leak.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::{engine, isolation};

/// How long a process may take from its last act to its end.
const ON_ITS_WAY_OUT: Duration = Duration::from_secs(2);

/// Everything there is, by kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Snapshot(BTreeSet<(Kind, String)>);

/// Kinds of things that may leak.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// A process other than this one and those above it.
    Process,
    /// A network interface of this namespace.
    Interface,
    /// A mount of this mount namespace.
    Mount,
    /// A network namespace somebody holds: by a process or by a mount.
    NetworkNamespace,
    /// An nftables table.
    Table,
    /// A control group below `arca`: control groups are the machine's, so those of engines that were not started by this
    /// process are somebody else's.
    ControlGroup,
}

impl Snapshot {
    /// Takes stock of this process's namespaces.
    ///
    /// # Errors
    /// If `ip` or `nft` cannot be run.
    pub fn take() -> anyhow::Result<Self> {
        let mut all = BTreeSet::new();
        let own = isolation::network_of(std::process::id())?;
        let above = ancestors();
        for pid in pids() {
            // A zombie that nobody reaps is a leak too; one that the first process is about to reap, or a process that
            // ends meanwhile, is none.
            let Ok(command) = fs::read_to_string(format!("/proc/{pid}/comm")) else { continue };
            if stat(pid).is_some_and(|(state, parent)| state == "Z" && parent == 1) {
                continue;
            }
            if !above.contains(&pid) {
                all.insert((Kind::Process, format!("{} ({pid})", command.trim())));
            }
            if let Ok(network) = isolation::network_of(pid)
                && network != own
            {
                all.insert((Kind::NetworkNamespace, network));
            }
        }
        let links: Vec<serde_json::Value> = serde_json::from_str(&isolation::output("ip", &["-json", "link"])?)?;
        all.extend(links.iter().filter_map(|link| Some((Kind::Interface, link["ifname"].as_str()?.to_owned()))));
        for line in fs::read_to_string("/proc/self/mountinfo")?.lines() {
            let (place, source) =
                (line.split(' ').nth(4).unwrap_or_default(), line.split(" - ").nth(1).unwrap_or_default());
            all.insert((Kind::Mount, place.to_owned()));
            if source.starts_with("nsfs") {
                all.insert((Kind::NetworkNamespace, place.to_owned()));
            }
        }
        let tables = isolation::output("nft", &["list", "tables"])?;
        all.extend(tables.lines().map(|table| (Kind::Table, table.to_owned())));
        for hierarchy in fs::read_dir("/sys/fs/cgroup")?.flatten() {
            for root in [hierarchy.path().join("arca"), PathBuf::from("/sys/fs/cgroup/arca")] {
                engines(&root, &mut all);
            }
        }
        Ok(Self(all))
    }

    /// What stayed since `before`, once processes already on their way out have gone: a daemon that has let go of its lock
    /// is done, but its process is there for a moment more.
    ///
    /// # Errors
    /// As [`Self::take`].
    pub fn left_since(before: &Self) -> anyhow::Result<Vec<(Kind, String)>> {
        let leaked = Self::take()?.leaked_since(before);
        let deadline = Instant::now() + ON_ITS_WAY_OUT;
        let mut processes = leaked.iter().filter(|(kind, _)| *kind == Kind::Process).peekable();
        if processes.peek().is_none() {
            return Ok(leaked);
        }
        for pid in processes.filter_map(|(_, name)| name.rsplit_once('(')?.1.trim_end_matches(')').parse().ok()) {
            isolation::wait_for_end(pid, deadline.saturating_duration_since(Instant::now()))?;
        }
        Ok(Self::take()?.leaked_since(before))
    }

    /// What is here now and was not in `before`.
    #[must_use]
    pub fn leaked_since(&self, before: &Self) -> Vec<(Kind, String)> {
        self.0.difference(&before.0).cloned().collect()
    }
}

/// Control groups of the engines of this process and the one that shows the check a leak, and the empty parent of all.
fn engines(root: &Path, all: &mut BTreeSet<(Kind, String)>) {
    let Ok(entries) = fs::read_dir(root) else { return };
    let folders: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).filter(|path| path.is_dir()).collect();
    if folders.is_empty() {
        all.insert((Kind::ControlGroup, root.display().to_string()));
    }
    let ours = engine::tags();
    for folder in folders {
        let name = folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        if name == "leak-check" || ours.contains(&name) {
            groups(&folder, all);
        }
    }
}

fn groups(folder: &Path, all: &mut BTreeSet<(Kind, String)>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    all.insert((Kind::ControlGroup, folder.display().to_string()));
    for entry in entries.flatten().filter(|entry| entry.path().is_dir()) {
        groups(&entry.path(), all);
    }
}

fn pids() -> Vec<u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
}

/// This process and those above it.
fn ancestors() -> BTreeSet<u32> {
    let mut above = BTreeSet::new();
    let mut pid = std::process::id();
    while pid != 0 && above.insert(pid) {
        pid = stat(pid).map_or(0, |(_, parent)| parent);
    }
    above
}

/// State and parent of a process (proc(5), `/proc/PID/stat`).
fn stat(pid: u32) -> Option<(String, u32)> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The command may hold spaces and brackets: fields are counted behind its last bracket.
    let mut fields = stat.rsplit(')').next()?.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
