// SPDX-License-Identifier: Apache-2.0
//! Limits and devices: cgroup resources, rlimits, device nodes.

use serde_json::{Value, json};

use super::SpecError;
use crate::docker::host_config::HostConfig;

/// `linux.resources`.
pub(super) fn limits(host: &HostConfig) -> Result<Value, SpecError> {
    let mut resources = json!({"devices": device_rules(host)?});
    if host.memory > 0 {
        resources["memory"] = json!({"limit": host.memory});
        if host.memory_swap != 0 {
            resources["memory"]["swap"] = json!(host.memory_swap);
        }
    }
    if host.memory_reservation > 0 {
        resources["memory"]["reservation"] = json!(host.memory_reservation);
    }
    let mut cpu = json!({});
    if host.nano_cpus > 0 {
        // A period of 100 ms; nanoseconds of CPU per second to microseconds per period.
        cpu["period"] = json!(100_000);
        cpu["quota"] = json!(host.nano_cpus / 10_000);
    }
    if host.cpu_period > 0 {
        cpu["period"] = json!(host.cpu_period);
    }
    if host.cpu_quota > 0 {
        cpu["quota"] = json!(host.cpu_quota);
    }
    if host.cpu_shares > 0 {
        cpu["shares"] = json!(host.cpu_shares);
    }
    if !host.cpuset_cpus.is_empty() {
        cpu["cpus"] = json!(host.cpuset_cpus);
    }
    if !host.cpuset_mems.is_empty() {
        cpu["mems"] = json!(host.cpuset_mems);
    }
    if host.cpu_realtime_period > 0 {
        cpu["realtimePeriod"] = json!(host.cpu_realtime_period);
    }
    if host.cpu_realtime_runtime > 0 {
        cpu["realtimeRuntime"] = json!(host.cpu_realtime_runtime);
    }
    if cpu != json!({}) {
        resources["cpu"] = cpu;
    }
    if let Some(swappiness) = host.memory_swappiness {
        resources["memory"]["swappiness"] = json!(swappiness);
    }
    if host.oom_kill_disable == Some(true) {
        resources["memory"]["disableOOMKiller"] = json!(true);
    }
    let blocks = block_io(host)?;
    if blocks != json!({}) {
        resources["blockIO"] = blocks;
    }
    if let Some(pids) = host.pids_limit.filter(|pids| *pids > 0) {
        resources["pids"] = json!({"limit": pids});
    }
    Ok(resources)
}

/// `linux.resources.blockIO`: `--blkio-weight`, `--device-read-bps` and the like.
fn block_io(host: &HostConfig) -> Result<Value, SpecError> {
    let mut out = json!({});
    if host.blkio_weight > 0 && weighs_blocks() {
        out["weight"] = json!(host.blkio_weight);
    }
    let lists = [
        (&host.blkio_weight_device, "weightDevice", "Weight", "weight"),
        (&host.blkio_device_read_bps, "throttleReadBpsDevice", "Rate", "rate"),
        (&host.blkio_device_write_bps, "throttleWriteBpsDevice", "Rate", "rate"),
        (&host.blkio_device_read_iops, "throttleReadIOPSDevice", "Rate", "rate"),
        (&host.blkio_device_write_iops, "throttleWriteIOPSDevice", "Rate", "rate"),
    ];
    for (list, field, theirs, ours) in lists {
        let mut entries = Vec::new();
        for entry in list.as_array().map(Vec::as_slice).unwrap_or_default() {
            use std::os::unix::fs::MetadataExt as _;
            let path = entry["Path"].as_str().unwrap_or_default();
            let metadata =
                std::fs::metadata(path).map_err(|_| SpecError(format!("{path}: no such file or directory")))?;
            let number = metadata.rdev();
            entries.push(json!({"major": major(number), "minor": minor(number), ours: entry[theirs]}));
        }
        if !entries.is_empty() {
            out[field] = json!(entries);
        }
    }
    Ok(out)
}

/// Whether this machine's cgroups can weigh block input and output.
pub(super) fn weighs_blocks() -> bool {
    ["/sys/fs/cgroup/blkio/blkio.weight", "/sys/fs/cgroup/blkio/blkio.bfq.weight"]
        .iter()
        .any(|file| std::path::Path::new(file).exists())
}

/// `--device-cgroup-rule 'c 1:3 rwm'`.
fn rule(text: &str) -> Result<Value, SpecError> {
    let bad = || SpecError(format!("invalid device cgroup rule format: '{text}'"));
    let words: Vec<&str> = text.split(' ').collect();
    let [kind @ ("a" | "b" | "c"), numbers, access] = words.as_slice() else { return Err(bad()) };
    let (major, minor) = numbers.split_once(':').ok_or_else(bad)?;
    let number = |text: &str| match text {
        "*" => Ok(None),
        digits if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse::<u64>().map(Some).map_err(|_| bad())
        }
        _ => Err(bad()),
    };
    let (major, minor) = (number(major)?, number(minor)?);
    if access.is_empty() || access.len() > 3 || !access.bytes().all(|byte| b"rwm".contains(&byte)) {
        return Err(bad());
    }
    let mut rule = json!({"allow": true, "type": kind, "access": access});
    for (field, number) in [("major", major), ("minor", minor)] {
        if let Some(number) = number {
            rule[field] = json!(number);
        }
    }
    Ok(rule)
}

/// Device cgroup rules: Docker's default list, then those of `--device`.
fn device_rules(host: &HostConfig) -> Result<Vec<Value>, SpecError> {
    if host.privileged {
        return Ok(vec![json!({"allow": true, "access": "rwm"})]);
    }
    let allow = |kind: &str, major: Option<u64>, minor: Option<u64>, access: &str| {
        let mut rule = json!({"allow": true, "type": kind, "access": access});
        for (field, number) in [("major", major), ("minor", minor)] {
            if let Some(number) = number {
                rule[field] = json!(number);
            }
        }
        rule
    };
    let mut rules = vec![json!({"allow": false, "access": "rwm"})];
    // mknod of anything, then: null, zero, full, random, urandom, tty, console, ptmx, pts.
    rules.push(allow("c", None, None, "m"));
    rules.push(allow("b", None, None, "m"));
    for (major, minor) in [(1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0), (5, 1), (5, 2)] {
        rules.push(allow("c", Some(major), Some(minor), "rwm"));
    }
    rules.push(allow("c", Some(136), None, "rwm"));
    for device in asked(host)? {
        let number = |field: &str| device[field].as_u64();
        let kind = device["type"].as_str().unwrap_or("c").to_owned();
        let access = device["access"].as_str().unwrap_or("rwm");
        rules.push(allow(&kind, number("major"), number("minor"), access));
    }
    for text in host.device_cgroup_rules.iter().flatten() {
        rules.push(rule(text)?);
    }
    Ok(rules)
}

/// `linux.devices` for `--device`.
pub(super) fn devices(host: &HostConfig) -> Result<Vec<Value>, SpecError> {
    let mut devices = asked(host)?;
    for fields in devices.iter_mut().filter_map(Value::as_object_mut) {
        fields.remove("access");
    }
    Ok(devices)
}

/// Devices with the access that was asked for; of a folder all that are in it.
fn asked(host: &HostConfig) -> Result<Vec<Value>, SpecError> {
    let mut all = Vec::new();
    for entry in host.devices.as_array().map(Vec::as_slice).unwrap_or_default() {
        let access = entry["CgroupPermissions"].as_str().filter(|access| !access.is_empty()).unwrap_or("rwm");
        let path = entry["PathOnHost"].as_str().unwrap_or_default();
        let inside = entry["PathInContainer"].as_str().filter(|inside| !inside.is_empty()).unwrap_or(path);
        let folder = std::path::Path::new(path);
        if !folder.is_dir() {
            let mut one = device(entry)?;
            one["access"] = json!(access);
            all.push(one);
            continue;
        }
        let before = all.len();
        let mut folders = vec![folder.to_owned()];
        while let Some(now) = folders.pop() {
            for entry in std::fs::read_dir(&now).into_iter().flatten().flatten() {
                let found = entry.path();
                if found.is_dir() && !found.is_symlink() {
                    folders.push(found);
                    continue;
                }
                let Ok(below) = found.strip_prefix(folder) else { continue };
                let target = std::path::Path::new(inside).join(below);
                let asked = json!({"PathOnHost": found, "PathInContainer": target});
                // What is no device is passed over.
                if let Ok(mut one) = device(&asked) {
                    one["access"] = json!(access);
                    all.push(one);
                }
            }
        }
        if all.len() == before {
            return Err(SpecError(format!(
                "error gathering device information while adding custom device \"{path}\": no devices found"
            )));
        }
    }
    Ok(all)
}

fn device(entry: &Value) -> Result<Value, SpecError> {
    use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
    let path = entry["PathOnHost"].as_str().unwrap_or_default();
    let inside = entry["PathInContainer"].as_str().filter(|inside| !inside.is_empty()).unwrap_or(path);
    let gather = |cause: String| {
        SpecError(format!("error gathering device information while adding custom device \"{path}\": {cause}"))
    };
    let metadata = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => gather("no such file or directory".to_owned()),
        _ => gather(error.to_string()),
    })?;
    let kind = match metadata.file_type() {
        kind if kind.is_char_device() => "c",
        kind if kind.is_block_device() => "b",
        _ => return Err(gather("not a device node".to_owned())),
    };
    let number = metadata.rdev();
    Ok(json!({
        "path": inside, "type": kind,
        "major": major(number), "minor": minor(number),
        "fileMode": metadata.permissions().mode() & 0o7777, "uid": metadata.uid(), "gid": metadata.gid(),
    }))
}

/// Linux's `dev_t`: 12 + 20 bits, spread for compatibility (makedev(3)).
fn major(device: u64) -> u64 {
    ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff)
}

fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & !0xff)
}

/// `process.rlimits` for `--ulimit`.
pub(super) fn rlimits(host: &HostConfig) -> Result<Vec<Value>, SpecError> {
    let limits = host.ulimits.as_array().map(Vec::as_slice).unwrap_or_default();
    limits
        .iter()
        .map(|limit| {
            let name = limit["Name"].as_str().unwrap_or_default();
            if !NAMES.contains(&name) {
                return Err(SpecError(format!("invalid ulimit type: {name}")));
            }
            // -1 is "unlimited", which OCI writes as the greatest number.
            let value = |field: &str| limit[field].as_i64().map_or(0, |n| u64::try_from(n).unwrap_or(u64::MAX));
            Ok(json!({"type": format!("RLIMIT_{}", name.to_uppercase()), "soft": value("Soft"), "hard": value("Hard")}))
        })
        .collect()
}

const NAMES: &[&str] = &[
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];
