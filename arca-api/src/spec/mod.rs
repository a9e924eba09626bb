// SPDX-License-Identifier: Apache-2.0
//! From a Docker configuration to OCI: the runtime specification of a container, the process object of an exec.
//!
//! Called by start and exec. Pure but for the look-up of user names, which reads `/etc/passwd` and `/etc/group` of the
//! container through its upper folder and layers. arca-init adds root path, cgroup path and network namespace.

mod capabilities;
mod mounts;
mod profile;
mod resources;
mod seccomp;
mod security;
mod user;

use std::path::PathBuf;

use serde_json::{Value, json};

use crate::docker::{config::ContainerConfig, host_config::HostConfig};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A fault of the configuration that shows only now. Texts are Docker's; all are 400 at start.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SpecError(pub String);

/// One mount from outside: bind, volume or one of the three generated files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BindMount {
    /// Path on the host.
    pub source: PathBuf,
    /// Path in the container.
    pub target: String,
    /// Read-only.
    pub read_only: bool,
    /// `rprivate`, `rshared`, ...
    pub propagation: String,
}

/// Everything `compose` reads.
#[derive(Debug)]
pub struct Input<'a> {
    /// 64 hex digits.
    pub id: &'a str,
    /// Merged with the image's.
    pub config: &'a ContainerConfig,
    /// Normalised.
    pub host: &'a HostConfig,
    /// Bind mounts, volumes, /etc/hostname, /etc/hosts, /etc/resolv.conf, in order.
    pub mounts: &'a [BindMount],
    /// The container's writable folder, then its layers, topmost first: where files are looked up.
    pub root: &'a [PathBuf],
}

/// What `docker exec` adds to or changes of the container's own process.
#[derive(Clone, Debug, Default)]
pub struct ExecOptions {
    /// Executable and arguments.
    pub command: Vec<String>,
    /// `KEY=value`, over the container's.
    pub env: Vec<String>,
    /// "" is the container's.
    pub user: String,
    /// "" is the container's.
    pub working_dir: String,
    /// All capabilities.
    pub privileged: bool,
    /// A terminal.
    pub tty: bool,
}

/// The program that `--init` puts before the command, as Docker names it.
pub const INIT: &str = "/sbin/docker-init";
/// Before the path of a namespace that is joined, in place of `container:ID`.
pub const JOINED: &str = "namespace:";

/// Checks `--cap-add`, `--cap-drop` and `--security-opt`, when the container is created.
///
/// # Errors
/// 400 with Docker's text.
pub fn check(host: &HostConfig) -> crate::http::ApiResult<()> {
    let bad = |error: SpecError| crate::http::ApiError::bad_request(error.to_string());
    security::options(host).map_err(bad)?;
    for (field, names) in [("CapAdd", &host.cap_add), ("CapDrop", &host.cap_drop)] {
        if let Err(name) = capabilities::known(list(names)) {
            return Err(crate::http::ApiError::bad_request(format!("invalid {field}: unknown capability: {name:?}")));
        }
    }
    Ok(())
}

/// The OCI runtime configuration of the container.
///
/// # Errors
/// [`SpecError`] for a user, capability, security option, limit or mount that makes no sense.
pub fn compose(input: &Input<'_>) -> Result<Value, SpecError> {
    let host = input.host;
    let process = process(input.config, host, input.root, host.privileged, true)?;
    let mut namespaces = vec![json!({"type": "mount"})];
    for (kind, mode) in [("pid", &host.pid_mode), ("ipc", &host.ipc_mode)] {
        match mode.strip_prefix(JOINED) {
            Some(path) => namespaces.push(json!({"type": kind, "path": path})),
            None if mode == "host" => {}
            None => namespaces.push(json!({"type": kind})),
        }
    }
    let host_uts = host.uts_mode == "host" || (host.network_mode == "host" && input.config.hostname.is_empty());
    if !host_uts {
        namespaces.push(json!({"type": "uts"}));
    }
    if host.cgroupns_mode == "private" {
        namespaces.push(json!({"type": "cgroup"}));
    }
    let mut linux = json!({
        "namespaces": namespaces,
        "resources": resources::limits(host)?,
        "maskedPaths": host.masked_paths.clone().unwrap_or_default(),
        "readonlyPaths": host.readonly_paths.clone().unwrap_or_default(),
    });
    if host.network_mode == "host"
        && let Some(name) = host.sysctls.keys().find(|name| name.starts_with("net."))
    {
        return Err(SpecError(format!("sysctl {name:?} not allowed in host network namespace")));
    }
    if !host.sysctls.is_empty() {
        linux["sysctl"] = json!(host.sysctls);
    }
    if !host.privileged {
        let held = capabilities::in_force(false, list(&host.cap_add), list(&host.cap_drop))?;
        match security::options(host)?.seccomp.as_deref() {
            Some("unconfined") => {}
            None | Some("builtin") => linux["seccomp"] = seccomp::filter(&held),
            Some(text) => linux["seccomp"] = profile::filter(text, &held)?,
        }
    }
    let devices = resources::devices(host)?;
    if !devices.is_empty() {
        linux["devices"] = json!(devices);
    }
    let mut spec = json!({
        "ociVersion": "1.0.2",
        "process": process,
        "root": {"path": "rootfs", "readonly": host.readonly_rootfs},
        "mounts": mounts::all(input)?,
        "linux": linux,
    });
    if !host_uts {
        spec["hostname"] = json!(input.config.hostname);
        if !input.config.domainname.is_empty() {
            spec["domainname"] = json!(input.config.domainname);
        }
    }
    Ok(spec)
}

/// What a client is told of options that this machine cannot honour, as Docker tells it.
#[must_use]
pub fn warnings(host: &HostConfig) -> Vec<&'static str> {
    let weight = host.blkio_weight > 0 && !resources::weighs_blocks();
    let text = "Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.";
    weight.then_some(text).into_iter().collect()
}

/// User and group that the container's process runs as; `root` as in [`Input`].
///
/// # Errors
/// [`SpecError`] for a user that nobody knows.
pub fn owner(config: &ContainerConfig, host: &HostConfig, root: &[PathBuf]) -> Result<(u32, u32), SpecError> {
    user::resolve(&config.user, list(&host.group_add), root).map(|user| (user.uid, user.gid))
}

/// What of the OCI configuration may change while the container runs: `linux.resources` without the devices.
///
/// # Errors
/// As [`compose`].
pub fn limits(host: &HostConfig) -> Result<Value, SpecError> {
    let mut limits = resources::limits(host)?;
    if let Some(fields) = limits.as_object_mut() {
        fields.remove("devices");
    }
    if host.pids_limit.is_some_and(|limit| limit <= 0) {
        // A limit that was is no more. The runtime passes numbers on as they are, and this is the kernel's greatest.
        limits["pids"] = json!({"limit": 4_194_304});
    }
    Ok(limits)
}

/// The OCI process object of an exec.
///
/// # Errors
/// As [`compose`].
pub fn exec_process(input: &Input<'_>, options: &ExecOptions) -> Result<Value, SpecError> {
    let mut config = input.config.clone();
    config.entrypoint = None;
    config.cmd = Some(options.command.clone());
    config.tty = options.tty;
    config.env.get_or_insert_default().extend(options.env.iter().cloned());
    if !options.user.is_empty() {
        config.user.clone_from(&options.user);
    }
    if !options.working_dir.is_empty() {
        config.working_dir.clone_from(&options.working_dir);
    }
    process(&config, input.host, input.root, options.privileged || input.host.privileged, false)
}

fn process(
    config: &ContainerConfig,
    host: &HostConfig,
    root: &[PathBuf],
    privileged: bool,
    wraps: bool,
) -> Result<Value, SpecError> {
    let user = user::resolve(&config.user, list(&host.group_add), root)?;
    let mut held = capabilities::in_force(privileged, list(&host.cap_add), list(&host.cap_drop))?;
    if privileged || list(&host.cap_add).iter().any(|name| matches!(name.to_uppercase().as_str(), "ALL" | "CAP_ALL")) {
        capabilities::within_bound(&mut held);
    }
    // Docker gives a non-root process its capabilities only as a bound, for set-uid programs.
    let own: &[&str] = if user.uid == 0 { &held } else { &[] };
    let cwd = match config.working_dir.as_str() {
        "" => "/".to_owned(),
        path if path.starts_with('/') => path.to_owned(),
        path => format!("/{path}"),
    };
    // What a layer has there as a file, no folder can be.
    let place = cwd.trim_start_matches('/');
    let there = root.iter().find_map(|layer| std::fs::symlink_metadata(layer.join(place)).ok());
    if !place.is_empty() && there.is_some_and(|metadata| metadata.is_file()) {
        return Err(SpecError(format!("Cannot mkdir: {cwd} is not a directory")));
    }
    let mut args = config.command_line();
    if wraps && host.init == Some(true) {
        args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    Ok(json!({
        "terminal": config.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": user.additional},
        "args": args,
        "env": environment(config, &user.home),
        "cwd": cwd,
        "capabilities": {"bounding": held, "effective": own, "permitted": own},
        "rlimits": resources::rlimits(host)?,
        "oomScoreAdj": host.oom_score_adj,
        "noNewPrivileges": security::options(host)?.no_new_privileges,
    }))
}

/// Docker's order: PATH, HOSTNAME, TERM, then the configured ones (a later one wins over an equal earlier one), HOME.
fn environment(config: &ContainerConfig, home: &str) -> Vec<String> {
    let mut entries = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={}", config.hostname)];
    if config.tty {
        entries.push("TERM=xterm".to_owned());
    }
    let name = |entry: &str| entry.split('=').next().unwrap_or_default().to_owned();
    for entry in config.env.iter().flatten() {
        let same = |other: &String| name(other) == name(entry);
        // `-e NAME` without a value that the client could not fill removes the variable.
        match (entries.iter().position(same), entry.contains('=')) {
            (Some(at), true) => entries[at].clone_from(entry),
            (Some(at), false) => drop(entries.remove(at)),
            (None, true) => entries.push(entry.clone()),
            (None, false) => {}
        }
    }
    if !entries.iter().any(|entry| entry.starts_with("HOME=")) {
        entries.push(format!("HOME={home}"));
    }
    entries
}

fn list(option: &Option<Vec<String>>) -> &[String] {
    option.as_deref().unwrap_or_default()
}

#[cfg(test)]
mod tests;
