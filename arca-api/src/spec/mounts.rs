// SPDX-License-Identifier: Apache-2.0
//! The mounts of a container: what every one has, then those asked for.

use serde_json::{Value, json};

use super::{Input, SpecError};

/// All mounts, in the order they are made: parents before children.
pub(super) fn all(input: &Input<'_>) -> Result<Vec<Value>, SpecError> {
    let host = input.host;
    let sys = if host.privileged { "rw" } else { "ro" };
    let shm = if host.shm_size > 0 { host.shm_size } else { 64 << 20 };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let plain = ["nosuid", "noexec", "nodev"];
    let mut mounts = vec![
        mount("/proc", "proc", "proc", &plain),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", sys]),
        mount("/dev/mqueue", "mqueue", "mqueue", &plain),
    ];
    let shm = format!("size={shm}");
    let others = (host.ipc_mode == "host").then_some("/dev/shm");
    match others {
        // Who shares the namespace shares what is named in it.
        Some(source) => mounts.push(mount("/dev/shm", "bind", source, &["rbind", "nosuid", "noexec", "nodev"])),
        None if host.ipc_mode == "none" => {}
        None => mounts.push(mount("/dev/shm", "tmpfs", "shm", &["nosuid", "noexec", "nodev", "mode=1777", &shm])),
    }
    for wanted in host.mounts.iter().filter(|wanted| wanted.kind == "tmpfs") {
        mounts.push(tmpfs(&wanted.target, &wanted.tmpfs_text())?);
    }
    for (destination, options) in &host.tmpfs {
        mounts.push(tmpfs(destination, options)?);
    }
    for bind in input.mounts {
        let access = if bind.read_only { "ro" } else { "rw" };
        let propagation = if bind.propagation.is_empty() { "rprivate" } else { &bind.propagation };
        mounts.retain(|earlier| earlier["destination"] != bind.target);
        mounts.push(json!({
            "destination": bind.target, "type": "bind", "source": bind.source,
            "options": ["rbind", access, propagation],
        }));
    }
    Ok(mounts)
}

fn tmpfs(destination: &str, options: &str) -> Result<Value, SpecError> {
    if !destination.starts_with('/') {
        return Err(SpecError(format!("invalid mount path: '{destination}' mount path must be absolute")));
    }
    let mut all = vec!["nosuid", "nodev", "noexec"];
    for option in options.split(',').map(str::trim).filter(|option| !option.is_empty()) {
        match option {
            "exec" | "suid" | "dev" => all.retain(|other| *other != format!("no{option}")),
            option => all.push(option),
        }
    }
    Ok(json!({"destination": destination, "type": "tmpfs", "source": "tmpfs", "options": all}))
}
