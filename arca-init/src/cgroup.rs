// SPDX-License-Identifier: Apache-2.0
//! Control groups of workloads, on version 1, version 2 and hybrid hosts.
//!
//! crun makes them; here they are read, emptied and removed, because a workload must leave nothing behind whoever was
//! killed on the way.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::Duration,
};

use nix::sys::{
    signal::Signal,
    statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs},
};

use crate::{crun::is_missing, process::send_signal};

/// Where the hierarchies are mounted.
pub(crate) const ROOT: &str = "/sys/fs/cgroup";
/// A killed process ends at its next return from the kernel; these many rounds are seconds.
const ROUNDS: u32 = 200;
const ROUND: Duration = Duration::from_millis(20);

/// The path below each hierarchy's root of what a request named, or why that is no such path.
pub(crate) fn checked(path: &str) -> Result<PathBuf, String> {
    let relative = Path::new(path.trim_start_matches('/'));
    let plain = relative.components().all(|part| matches!(part, std::path::Component::Normal(_)));
    if relative.as_os_str().is_empty() || !plain {
        return Err(format!("cgroup path `{path}` is empty or has dots in it"));
    }
    Ok(relative.to_path_buf())
}

/// Whether `path` is the root of a version 2 hierarchy.
pub(crate) fn is_v2(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == CGROUP2_SUPER_MAGIC)
}

/// The root folder of each hierarchy.
fn hierarchies() -> Vec<PathBuf> {
    let root = Path::new(ROOT);
    if is_v2(root) {
        return vec![root.to_path_buf()];
    }
    let Ok(entries) = fs::read_dir(root) else { return Vec::new() };
    // Symbolic links (cpu -> cpu,cpuacct) name a hierarchy a second time; a folder that is no mount is no hierarchy.
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    let is_cgroup = |path: &PathBuf| {
        statfs(path).is_ok_and(|stat| [CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&stat.filesystem_type()))
    };
    folders.map(|entry| entry.path()).filter(is_cgroup).collect()
}

/// How often the kernel's out-of-memory killer struck in the cgroup.
pub(crate) fn oom_kills(path: &Path) -> u64 {
    let root = Path::new(ROOT);
    let file = if is_v2(root) {
        root.join(path).join("memory.events")
    } else {
        root.join("memory").join(path).join("memory.oom_control")
    };
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .find_map(|line| line.strip_prefix("oom_kill "))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}

/// Every process in the cgroup and below.
pub(crate) fn processes(path: &Path) -> Vec<u32> {
    let mut found = Vec::new();
    for hierarchy in hierarchies() {
        collect(&hierarchy.join(path), &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

fn collect(folder: &Path, found: &mut Vec<u32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<u32>().ok()).filter(|pid| *pid != 0));
    for child in children(folder) {
        collect(&child, found);
    }
}

fn children(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|e| e.path()).collect()
}

/// Kills every process of the cgroup, frozen ones too, and waits for their end.
pub(crate) async fn kill(path: &Path) -> Result<(), String> {
    for hierarchy in hierarchies() {
        let folder = hierarchy.join(path);
        for (file, value) in [("freezer.state", "THAWED"), ("cgroup.freeze", "0")] {
            if folder.join(file).exists() {
                // A group that cannot be thawed shows below, as processes that do not end.
                let _ = fs::write(folder.join(file), value);
            }
        }
    }
    for _ in 0..ROUNDS {
        let left = processes(path);
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            // One that has ended meanwhile is no failure.
            let _ = send_signal(pid, Signal::SIGKILL as i32);
        }
        // A cgroup has no event for "empty" on version 1; this ends within a round or two.
        tokio::time::sleep(ROUND).await;
    }
    Err(format!("processes {:?} in cgroup {} do not end after SIGKILL", processes(path), path.display()))
}

/// Removes the cgroup and what is below it from every hierarchy; lists what could not be removed.
pub(crate) fn remove(path: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    for hierarchy in hierarchies() {
        remove_tree(&hierarchy.join(path), &mut failures);
    }
    failures
}

fn remove_tree(folder: &Path, failures: &mut Vec<String>) {
    for child in children(folder) {
        remove_tree(&child, failures);
    }
    if let Err(error) = fs::remove_dir(folder)
        && !is_missing(&error)
    {
        failures.push(format!("remove cgroup {}: {error}", folder.display()));
    }
}

/// Removes `path` and its parents as far up as they are empty. What is still used stays, without an error.
pub(crate) fn release(path: &Path) -> io::Result<()> {
    for hierarchy in hierarchies() {
        let mut part = Some(path);
        while let Some(folder) = part.filter(|folder| !folder.as_os_str().is_empty()) {
            match fs::remove_dir(hierarchy.join(folder)) {
                Ok(()) => {}
                Err(error) if is_missing(&error) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::EBUSY) => break,
                Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => break,
                Err(error) => return Err(error),
            }
            part = folder.parent();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_root_are_cgroup_paths() {
        assert_eq!(checked("/arca/x/1"), Ok("arca/x/1".into()));
        assert_eq!(checked("arca/x"), Ok("arca/x".into()));
        for bad in ["", "/", "arca/../..", "..", "./x"] {
            assert!(checked(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_cgroup_that_does_not_exist_is_empty_and_removable() {
        let none = Path::new("arca-no-such/cgroup");
        assert_eq!(processes(none), Vec::<u32>::new());
        assert_eq!(oom_kills(none), 0);
        assert_eq!(remove(none), Vec::<String>::new());
        release(none).expect("nothing to do");
    }
}
