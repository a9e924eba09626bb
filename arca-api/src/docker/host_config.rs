// SPDX-License-Identifier: Apache-2.0
//! The host-dependent part of a container's configuration (Docker API `HostConfig`), in Docker's field order.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    docker::config::words,
    http::{ApiError, ApiResult},
};

/// One host address and port of `PortBindings`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)]
pub struct PortBinding {
    pub host_ip: String,
    pub host_port: String,
}

/// When a container that ended is started again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)]
pub struct RestartPolicy {
    pub name: String,
    pub maximum_retry_count: i64,
}

/// Limits, mounts, networks: what depends on the host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct HostConfig {
    pub binds: Option<Vec<String>>,
    #[serde(rename = "ContainerIDFile")]
    pub container_id_file: String,
    pub log_config: Value,
    pub network_mode: String,
    pub port_bindings: BTreeMap<String, Option<Vec<PortBinding>>>,
    pub restart_policy: RestartPolicy,
    pub auto_remove: bool,
    pub volume_driver: String,
    pub volumes_from: Option<Vec<String>>,
    pub console_size: [u32; 2],
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    #[serde(deserialize_with = "words")]
    pub cap_add: Option<Vec<String>>,
    #[serde(deserialize_with = "words")]
    pub cap_drop: Option<Vec<String>>,
    pub cgroupns_mode: String,
    pub dns: Vec<String>,
    pub dns_options: Vec<String>,
    pub dns_search: Vec<String>,
    pub extra_hosts: Option<Vec<String>>,
    pub group_add: Option<Vec<String>>,
    pub ipc_mode: String,
    pub cgroup: String,
    pub links: Option<Vec<String>>,
    pub oom_score_adj: i64,
    pub pid_mode: String,
    pub privileged: bool,
    pub publish_all_ports: bool,
    pub readonly_rootfs: bool,
    pub security_opt: Option<Vec<String>>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_opt: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub tmpfs: BTreeMap<String, String>,
    #[serde(rename = "UTSMode")]
    pub uts_mode: String,
    pub userns_mode: String,
    pub shm_size: i64,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctls: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub runtime: String,
    pub isolation: String,
    pub cpu_shares: i64,
    pub memory: i64,
    pub nano_cpus: i64,
    pub cgroup_parent: String,
    pub blkio_weight: u16,
    pub blkio_weight_device: Value,
    pub blkio_device_read_bps: Value,
    pub blkio_device_write_bps: Value,
    #[serde(rename = "BlkioDeviceReadIOps")]
    pub blkio_device_read_iops: Value,
    #[serde(rename = "BlkioDeviceWriteIOps")]
    pub blkio_device_write_iops: Value,
    pub cpu_period: i64,
    pub cpu_quota: i64,
    pub cpu_realtime_period: i64,
    pub cpu_realtime_runtime: i64,
    pub cpuset_cpus: String,
    pub cpuset_mems: String,
    pub devices: Value,
    pub device_cgroup_rules: Option<Vec<String>>,
    pub device_requests: Value,
    pub memory_reservation: i64,
    pub memory_swap: i64,
    pub memory_swappiness: Option<i64>,
    pub oom_kill_disable: Option<bool>,
    pub pids_limit: Option<i64>,
    pub ulimits: Value,
    pub cpu_count: i64,
    pub cpu_percent: i64,
    #[serde(rename = "IOMaximumIOps")]
    pub io_maximum_iops: u64,
    #[serde(rename = "IOMaximumBandwidth")]
    pub io_maximum_bandwidth: u64,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<Mount>,
    pub masked_paths: Option<Vec<String>>,
    pub readonly_paths: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init: Option<bool>,
}

/// One entry of `Mounts` (`--mount`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)]
pub struct Mount {
    #[serde(rename = "Type")]
    pub kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub source: String,
    pub target: String,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub read_only: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bind_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub volume_options: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tmpfs_options: Option<Value>,
}

impl Mount {
    /// Options of a tmpfs in the words of mount(8): `size` in bytes, `mode` in octal.
    pub fn tmpfs_text(&self) -> String {
        let options = self.tmpfs_options.as_ref();
        let number = |key: &str| options.and_then(|options| options[key].as_u64()).filter(|number| *number > 0);
        let size = number("SizeBytes").map(|bytes| format!("size={bytes}"));
        let mode = number("Mode").map(|mode| format!("mode={mode:o}"));
        let read_only = self.read_only.then(|| "ro".to_owned());
        [read_only, size, mode].into_iter().flatten().collect::<Vec<_>>().join(",")
    }
}

impl Default for HostConfig {
    fn default() -> Self {
        Self {
            binds: None,
            container_id_file: String::new(),
            log_config: json!({"Type": "json-file", "Config": {}}),
            network_mode: String::new(),
            port_bindings: BTreeMap::new(),
            restart_policy: RestartPolicy { name: "no".into(), maximum_retry_count: 0 },
            auto_remove: false,
            volume_driver: String::new(),
            volumes_from: None,
            console_size: [0, 0],
            annotations: BTreeMap::new(),
            cap_add: None,
            cap_drop: None,
            cgroupns_mode: String::new(),
            dns: Vec::new(),
            dns_options: Vec::new(),
            dns_search: Vec::new(),
            extra_hosts: None,
            group_add: None,
            ipc_mode: String::new(),
            cgroup: String::new(),
            links: None,
            oom_score_adj: 0,
            pid_mode: String::new(),
            privileged: false,
            publish_all_ports: false,
            readonly_rootfs: false,
            security_opt: None,
            storage_opt: BTreeMap::new(),
            tmpfs: BTreeMap::new(),
            uts_mode: String::new(),
            userns_mode: String::new(),
            shm_size: 0,
            sysctls: BTreeMap::new(),
            runtime: String::new(),
            isolation: String::new(),
            cpu_shares: 0,
            memory: 0,
            nano_cpus: 0,
            cgroup_parent: String::new(),
            blkio_weight: 0,
            blkio_weight_device: json!([]),
            blkio_device_read_bps: json!([]),
            blkio_device_write_bps: json!([]),
            blkio_device_read_iops: json!([]),
            blkio_device_write_iops: json!([]),
            cpu_period: 0,
            cpu_quota: 0,
            cpu_realtime_period: 0,
            cpu_realtime_runtime: 0,
            cpuset_cpus: String::new(),
            cpuset_mems: String::new(),
            devices: json!([]),
            device_cgroup_rules: None,
            device_requests: Value::Null,
            memory_reservation: 0,
            memory_swap: 0,
            memory_swappiness: None,
            oom_kill_disable: None,
            pids_limit: None,
            ulimits: json!([]),
            cpu_count: 0,
            cpu_percent: 0,
            io_maximum_iops: 0,
            io_maximum_bandwidth: 0,
            mounts: Vec::new(),
            masked_paths: None,
            readonly_paths: None,
            init: None,
        }
    }
}

/// The paths Docker hides from an unprivileged container.
const MASKED: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// The paths Docker makes read-only in an unprivileged container.
const READ_ONLY: &[&str] = &["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

/// Options of the json-file log driver.
const LOG_OPTIONS: &[&str] = &[
    "compress",
    "env",
    "env-regex",
    "labels",
    "labels-regex",
    "max-buffer-size",
    "max-file",
    "max-size",
    "mode",
    "tag",
];
/// Log drivers that Docker has and Arca has not.
const OTHER_LOG_DRIVERS: &[&str] = &["awslogs", "fluentd", "gcplogs", "gelf", "journald", "splunk", "syslog"];

/// Bytes of a text like `10m`, `1.5GB` or `100`, in steps of 1024.
fn size(text: &str) -> Option<u64> {
    let digits = text.find(|sign: char| !sign.is_ascii_digit() && sign != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: f64 = number.parse().ok()?;
    let unit = unit.trim().to_lowercase();
    let unit = unit.strip_suffix("ib").or_else(|| unit.strip_suffix('b')).unwrap_or(&unit);
    let power = ["", "k", "m", "g", "t", "p"].iter().position(|known| *known == unit)?;
    let bytes = number * 1024_f64.powi(i32::try_from(power).ok()?);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the sign is checked, and as saturates"
    )]
    (bytes >= 0.0).then_some(bytes as u64)
}

impl HostConfig {
    /// Fills in Docker's defaults, so that inspect shows what is in force.
    pub fn normalise(&mut self) {
        if matches!(self.network_mode.as_str(), "" | "default") {
            self.network_mode = "bridge".into();
        }
        if self.restart_policy.name.is_empty() {
            self.restart_policy.name = "no".into();
        }
        if self.log_config["Type"].as_str().unwrap_or("").is_empty() {
            // Options without a driver are the default driver's.
            let options = self.log_config.get("Config").filter(|options| options.is_object()).cloned();
            self.log_config = json!({"Type": "json-file", "Config": options.unwrap_or_else(|| json!({}))});
        }
        if self.shm_size == 0 {
            self.shm_size = 64 << 20;
        }
        if self.ipc_mode.is_empty() {
            self.ipc_mode = "private".into();
        }
        if self.cgroupns_mode.is_empty() {
            // As Docker: private where the host has cgroup v2 alone.
            let v2 = std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists();
            self.cgroupns_mode = if v2 { "private" } else { "host" }.into();
        }
        // Clients send these for "not given".
        self.memory_swappiness = self.memory_swappiness.filter(|&value| value != -1);
        self.pids_limit = self.pids_limit.filter(|&limit| limit > 0);
        if self.memory > 0 && self.memory_swap == 0 {
            self.memory_swap = self.memory.saturating_mul(2);
        }
        let list = |paths: &[&str]| Some(paths.iter().map(|&path| path.to_owned()).collect());
        if !self.privileged {
            self.masked_paths = self.masked_paths.take().or_else(|| list(MASKED));
            self.readonly_paths = self.readonly_paths.take().or_else(|| list(READ_ONLY));
        }
        if self.runtime.is_empty() {
            self.runtime = "arca".into();
        }
    }

    /// Refuses what Docker refuses, and what Arca cannot do yet.
    ///
    /// # Errors
    /// 400 with Docker's text; 501 for what is absent.
    pub fn validate(&self) -> ApiResult<()> {
        let bad = |text: &str| Err(ApiError::bad_request(text));
        if self.memory != 0 && self.memory < 6 << 20 {
            return bad("Minimum memory limit allowed is 6MB");
        }
        if self.memory == 0 && self.memory_swap > 0 {
            return bad("You should always set the Memory limit when using Memoryswap limit, see usage");
        }
        if self.memory > 0 && self.memory_reservation > self.memory {
            return bad("Minimum memory limit can not be less than memory reservation limit, see usage");
        }
        if self.memory > 0 && self.memory_swap > 0 && self.memory_swap < self.memory {
            return bad("Minimum memoryswap limit should be larger than memory limit, see usage");
        }
        for (set, what) in [(self.cpu_period > 0, "Period"), (self.cpu_quota > 0, "Quota")] {
            if self.nano_cpus > 0 && set {
                return bad(&format!("Conflicting options: Nano CPUs and CPU {what} cannot both be set"));
            }
        }
        if self.cpu_period != 0 && !(1000..=1_000_000).contains(&self.cpu_period) {
            return bad("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)");
        }
        if self.cpu_quota > 0 && self.cpu_quota < 1000 {
            return bad("CPU cfs quota can not be less than 1ms (i.e. 1000)");
        }
        if self.shm_size < 0 {
            return bad("SHM size can not be less than 0");
        }
        if let Some(swappiness) = self.memory_swappiness.filter(|value| !(0..=100).contains(value)) {
            return bad(&format!("Invalid value: {swappiness}, valid memory swappiness range is 0-100"));
        }
        if !(-1000..=1000).contains(&self.oom_score_adj) {
            return bad(&format!("Invalid value {}, range for oom score adj is [-1000, 1000]", self.oom_score_adj));
        }
        let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let most = i64::try_from(cpus).unwrap_or(i64::MAX).saturating_mul(1_000_000_000);
        if self.nano_cpus < 0 || self.nano_cpus > most {
            return bad(&format!("range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available"));
        }
        self.cpuset(cpus)?;
        if !matches!(self.isolation.as_str(), "" | "default") {
            return bad(&format!("invalid isolation ({}): linux only supports 'default'", self.isolation));
        }
        self.modes()?;
        self.logging()?;
        if let Some(path) = self.tmpfs.keys().find(|path| !path.starts_with('/')) {
            return bad(&format!("invalid mount path: '{path}' mount path must be absolute"));
        }
        match self.restart_policy.name.as_str() {
            "" | "no" | "always" | "unless-stopped" if self.restart_policy.maximum_retry_count != 0 => {
                return bad("invalid restart policy: maximum retry count can only be used with 'on-failure'");
            }
            "on-failure" if self.restart_policy.maximum_retry_count < 0 => {
                return bad("invalid restart policy: maximum retry count cannot be negative");
            }
            "" | "no" | "always" | "unless-stopped" | "on-failure" => {}
            other => {
                return bad(&format!(
                    "invalid restart policy: unknown policy '{other}'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"
                ));
            }
        }
        if self.auto_remove && !matches!(self.restart_policy.name.as_str(), "" | "no") {
            return bad("can't create 'AutoRemove' container with restart policy");
        }
        self.refuse_absent()
    }

    /// `--cpuset-cpus`: a list of numbers and ranges, of CPUs that are there.
    fn cpuset(&self, cpus: usize) -> ApiResult<()> {
        let text = &self.cpuset_cpus;
        for part in text.split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Ok(first), Ok(last)) = (first.parse::<usize>(), last.parse::<usize>()) else {
                return Err(ApiError::bad_request(format!(
                    "Invalid value {text} for cpuset cpus: invalid format: {part}"
                )));
            };
            if last >= cpus || first > last {
                let available = if cpus == 1 { "0".to_owned() } else { format!("0-{}", cpus - 1) };
                return Err(ApiError::bad_request(format!(
                    "Requested CPUs are not available - requested {text}, available: {available}"
                )));
            }
        }
        Ok(())
    }

    /// Words that no namespace mode has.
    fn modes(&self) -> ApiResult<()> {
        let of_container = |mode: &str| mode.starts_with("container:");
        let known = [
            ("PID", &self.pid_mode, self.pid_mode == "host" || of_container(&self.pid_mode)),
            (
                "IPC",
                &self.ipc_mode,
                matches!(self.ipc_mode.as_str(), "private" | "none" | "shareable" | "host")
                    || of_container(&self.ipc_mode),
            ),
            ("UTS", &self.uts_mode, self.uts_mode == "host"),
            ("cgroup namespace", &self.cgroupns_mode, matches!(self.cgroupns_mode.as_str(), "host" | "private")),
        ];
        match known.iter().find(|(_, mode, known)| !mode.is_empty() && !known) {
            Some((what, mode, _)) => Err(ApiError::bad_request(format!("invalid {what} mode: {mode}"))),
            None if !matches!(self.runtime.as_str(), "" | "arca" | "arca-ns" | "arca-vm" | "runc") => {
                Err(ApiError::bad_request(format!("unknown or invalid runtime name: {}", self.runtime)))
            }
            None => Ok(()),
        }
    }

    /// `--log-driver` and `--log-opt`.
    fn logging(&self) -> ApiResult<()> {
        let driver = self.log_config["Type"].as_str().unwrap_or("");
        match driver {
            "" | "none" => return Ok(()),
            "json-file" | "local" => {}
            driver if OTHER_LOG_DRIVERS.contains(&driver) => {
                return Err(ApiError::absent(&format!("the log driver \"{driver}\"")));
            }
            driver => {
                return Err(ApiError::bad_request(format!(
                    "error looking up logging plugin {driver}: plugin \"{driver}\" not found"
                )));
            }
        }
        let options = self.log_config["Config"].as_object();
        match options.and_then(|options| options.keys().find(|key| !LOG_OPTIONS.contains(&key.as_str()))) {
            Some(key) if driver == "local" => {
                Err(ApiError::bad_request(format!("unknown log opt '{key}' for log driver local")))
            }
            Some(key) => Err(ApiError::bad_request(format!("unknown log opt '{key}' for {driver} log driver"))),
            None => Ok(()),
        }
    }

    /// `max-size` and `max-file`: bytes of a log file (0: any), and how many there are.
    ///
    /// # Errors
    /// 500 with Docker's text for what is no size or number; Docker finds out at start.
    pub fn log_limit(&self) -> ApiResult<(u64, u32)> {
        let option = |name: &str| self.log_config["Config"][name].as_str().unwrap_or("");
        // The local driver keeps little by itself.
        let local = self.log_config["Type"] == "local";
        let bytes = match option("max-size") {
            "" if local => 20 << 20,
            "" | "-1" => 0,
            text => size(text)
                .filter(|bytes| *bytes > 0)
                .ok_or_else(|| ApiError::internal(format!("invalid size: '{text}'")))?,
        };
        let files = match option("max-file") {
            "" if local => 5,
            "" => 1,
            text => text
                .parse::<u32>()
                .map_err(|_| ApiError::internal(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")))?,
        };
        if files == 0 {
            return Err(ApiError::internal("max-file cannot be less than 1"));
        }
        if option("compress") == "true" && (files < 2 || bytes == 0) {
            return Err(ApiError::internal(
                "compress cannot be true when max-file is less than 2 or max-size is not set",
            ));
        }
        Ok((bytes, files))
    }

    fn refuse_absent(&self) -> ApiResult<()> {
        let listed = |value: &Value| value.as_array().is_some_and(|items| !items.is_empty());
        let absent = [
            (listed(&self.device_requests), "--gpus"),
            (!self.userns_mode.is_empty() && self.userns_mode != "host", "--userns"),
            (!self.cgroup_parent.is_empty(), "--cgroup-parent"),
            (!self.storage_opt.is_empty(), "--storage-opt"),
            (self.ipc_mode.starts_with("container:"), "--ipc container:NAME"),
        ];
        match absent.iter().find(|(asked, _)| *asked) {
            Some((_, what)) => Err(ApiError::absent(what)),
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn defaults_are_filled_in_and_faults_refused() {
        let mut config = HostConfig::default();
        config.normalise();
        assert_eq!((config.network_mode.as_str(), config.shm_size), ("bridge", 67_108_864));
        assert_eq!(config.validate(), Ok(()));
        config.memory = 1;
        assert_eq!(config.validate().expect_err("memory").message, "Minimum memory limit allowed is 6MB");
        config.memory = 0;
        config.restart_policy.name = "zz".into();
        assert_eq!(config.validate().expect_err("policy").status.as_u16(), 400);
        config.restart_policy.name = "no".into();
        config.cgroup_parent = "x".into();
        assert_eq!(config.validate().expect_err("absent").message, "--cgroup-parent is not implemented by Arca yet");
    }

    #[test]
    fn log_limits() {
        let limit = |kind: &str, options: Value| {
            HostConfig { log_config: json!({"Type": kind, "Config": options}), ..HostConfig::default() }.log_limit()
        };
        assert_eq!(limit("json-file", json!({})), Ok((0, 1)));
        assert_eq!(limit("json-file", json!({"max-size": "10m", "max-file": "3"})), Ok((10 << 20, 3)));
        assert_eq!(limit("json-file", json!({"max-size": "1.5kb"})), Ok((1536, 1)));
        assert_eq!(limit("local", json!({})), Ok((20 << 20, 5)));
        for bad in
            [json!({"max-size": "zz"}), json!({"max-file": "0"}), json!({"max-file": "x"}), json!({"compress": "true"})]
        {
            assert!(limit("json-file", bad.clone()).is_err(), "{bad}");
        }
    }

    #[test]
    fn it_reads_back_what_it_writes() {
        let mut config = HostConfig::default();
        config.normalise();
        let text = serde_json::to_string(&config).expect("serialise");
        assert_eq!(serde_json::from_str::<HostConfig>(&text).expect("parse"), config);
    }
}
