// SPDX-License-Identifier: Apache-2.0
//! What of this machine an engine stands on.

use std::{fs, process::Command};

use arca_daemon::config::Config;
use time::OffsetDateTime;

use super::Finding;
use crate::cli::daemon::preflight;

/// `sun_path` of unix(7), without the zero byte at its end.
const SUN_PATH: usize = 107;

pub(super) fn look(config: &Config) -> Vec<Finding> {
    let mut findings: Vec<Finding> = preflight::checks(config)
        .into_iter()
        .map(|check| match check.result {
            Ok(found) => Finding::good(check.what, found),
            Err(fatal) => {
                // The text names the way out after the first colon that follows the fault.
                let (found, fix) = fatal.text.rsplit_once(": ").unwrap_or((&fatal.text, "see above"));
                Finding::bad(check.what, found, fix)
            }
        })
        .collect();
    findings.extend([overlay(), nftables(), cgroups(), sockets(config), clock(OffsetDateTime::now_utc())]);
    findings
}

fn overlay() -> Finding {
    let known = fs::read_to_string("/proc/filesystems").unwrap_or_default();
    match known.split_whitespace().any(|word| word == "overlay") {
        true => Finding::good("overlayfs", "the kernel has it"),
        false => Finding::bad("overlayfs", "the kernel does not have it (yet)", "modprobe overlay"),
    }
}

fn nftables() -> Finding {
    let what = "nftables";
    match Command::new("nft").args(["list", "tables"]).output() {
        Ok(output) if output.status.success() => Finding::good(what, "the kernel answers"),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Finding::bad(
                what,
                format!("nft list tables: {said}"),
                "modprobe nf_tables, or a kernel with CONFIG_NF_TABLES",
            )
        }
        Err(error) => Finding::bad(what, format!("nft: {error}"), "install it, on Debian `apt-get install nftables`"),
    }
}

/// Controllers that limits and statistics of containers need (cgroups(7)).
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

fn cgroups() -> Finding {
    let version2 = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers");
    let (version, known) = match &version2 {
        Ok(list) => ("2", list.split_whitespace().map(str::to_owned).collect::<Vec<_>>()),
        Err(_) => ("1", version1()),
    };
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|name| !known.iter().any(|known| known == name)).collect();
    match missing.is_empty() {
        true => Finding::good("cgroups", format!("version {version} with {}", CONTROLLERS.join(", "))),
        false => Finding::bad(
            "cgroups",
            format!("version {version} without {}", missing.join(", ")),
            "mount the controllers, or enable them on the kernel's command line (cgroup_enable=memory)",
        ),
    }
}

/// The mounted hierarchies of version 1: `/proc/cgroups` also lists controllers that nothing can be limited with.
fn version1() -> Vec<String> {
    let entries = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.path().join("cgroup.procs").exists())
        .flat_map(|entry| entry.file_name().to_string_lossy().split(',').map(str::to_owned).collect::<Vec<_>>())
        .collect()
}

/// The longest path below the run folder is that of a helper's or container's port.
fn sockets(config: &Config) -> Finding {
    let longest = config.paths.machine_sockets("0123456789ab").join("20000");
    let length = longest.as_os_str().len();
    match length <= SUN_PATH {
        true => Finding::good("socket paths", format!("up to {length} bytes of {SUN_PATH}")),
        false => Finding::odd(
            "socket paths",
            format!("up to {length} bytes, unix sockets hold {SUN_PATH}: detours through /proc/self/fd are taken"),
            "set ARCA_HOME to a shorter path",
        ),
    }
}

/// Certificates of registries are judged by it.
fn clock(now: OffsetDateTime) -> Finding {
    let shown = format!("{} {:02}:{:02} UTC", now.date(), now.hour(), now.minute());
    match now.year() >= 2025 {
        true => Finding::good("clock", shown),
        false => Finding::bad("clock", shown, "set it, for example with `timedatectl set-ntp true`"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_clock_before_this_program_was_written_is_wrong() {
        assert_eq!(clock(OffsetDateTime::UNIX_EPOCH).verdict, Verdict::Bad);
        assert_eq!(clock(OffsetDateTime::now_utc()).verdict, Verdict::Good);
    }
}
