// SPDX-License-Identifier: Apache-2.0
//! What a container is in its machine: which kind of machine that is, how large, and where the machine sees the
//! container's files. A machine on this kernel sees them where they are; a virtual one is shown each of them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::{
    containers::{Record, start},
    docker::host_config::HostConfig,
    engine::Engine,
    http::{ApiError, ApiResult},
    machines::{Kind, Live, Overlay, Size},
    spec::BindMount,
};

/// Runtime names, as `--runtime` takes and `docker info` lists them.
pub const RUNTIMES: [(&str, Kind); 2] = [("arca-ns", Kind::Namespace), ("arca-vm", Kind::Vm)];

/// Character devices that are the same on every Linux, by what they are on the host: what a virtual machine has of its own.
const COMMON_DEVICES: [&str; 8] =
    ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/net/tun", "/dev/fuse"];

/// The kind that a runtime names; `None`: whatever is the default.
pub fn kind_named(runtime: &str) -> Option<Kind> {
    RUNTIMES.iter().find(|(name, _)| *name == runtime).map(|(_, kind)| *kind)
}

/// The runtime that makes machines of a kind.
pub fn runtime_of(kind: Kind) -> &'static str {
    RUNTIMES.iter().find(|(_, of)| *of == kind).map_or("", |(name, _)| name)
}

/// The kind of machine that a container is to have.
pub fn kind_of(engine: &Engine, record: &Record) -> Kind {
    kind_named(&record.host.runtime).unwrap_or_else(|| engine.machines.default_kind())
}

/// Refuses what a virtual machine cannot give.
///
/// # Errors
/// 400 that names it and the way out.
pub fn check(kind: Kind, host: &HostConfig) -> ApiResult<()> {
    if kind != Kind::Vm {
        return Ok(());
    }
    let refuse = |what: &str| {
        let text = format!("conflicting options: {what} and the runtime arca-vm (use --runtime arca-ns)");
        Err(ApiError::bad_request(text))
    };
    if host.network_mode == "host" {
        return refuse("the host's network, which a virtual machine does not have,");
    }
    // In there they would be those of the machine's own first process.
    let apart = |mode: &str| mode == "host" || mode.starts_with("container:");
    for (mode, what) in [(&host.pid_mode, "process"), (&host.ipc_mode, "IPC"), (&host.uts_mode, "UTS")] {
        if apart(mode) {
            return refuse(&format!("the {what} namespace {mode}"));
        }
    }
    let devices = host.devices.as_array().map(Vec::as_slice).unwrap_or_default();
    let path = |device: &Value| device["PathOnHost"].as_str().unwrap_or_default().to_owned();
    match devices.iter().map(path).find(|path| !COMMON_DEVICES.contains(&path.as_str())) {
        Some(path) => refuse(&format!("the host's device {path}")),
        None => Ok(()),
    }
}

/// How large its machine is to be.
pub fn size(host: &HostConfig) -> Size {
    let whole = |part: i64, unit: i64| {
        (part > 0 && unit > 0).then(|| u32::try_from(part.saturating_add(unit - 1) / unit).unwrap_or(1))
    };
    let quota = || whole(host.cpu_quota, if host.cpu_period > 0 { host.cpu_period } else { 100_000 });
    let set = || {
        let count = |part: &str| {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            Some(last.parse::<u32>().ok()?.checked_sub(first.parse().ok()?)?.saturating_add(1))
        };
        let parts = host.cpuset_cpus.split(',').filter(|part| !part.is_empty());
        Some(parts.filter_map(count).fold(0, u32::saturating_add)).filter(|cpus| *cpus > 0)
    };
    Size {
        memory: u64::try_from(host.memory).ok().filter(|memory| *memory > 0),
        cpus: whole(host.nano_cpus, 1_000_000_000).or_else(quota).or_else(set),
    }
}

/// Limits as they hold inside: a virtual machine has processors of its own, numbered anew.
pub fn adapt_limits(kind: Kind, resources: &mut Value) {
    if kind == Kind::Vm
        && let Some(cpu) = resources["cpu"].as_object_mut()
    {
        cpu.remove("cpus");
        cpu.remove("mems");
    }
}

/// Where the machine sees a container's files.
#[derive(Debug)]
pub struct Inside {
    /// Its root file system; `None`: the machine mounts it from layers and upper folder, which it sees.
    pub root: Option<PathBuf>,
    /// Its folder.
    pub state: PathBuf,
    /// Mounts, their sources as the machine sees them.
    pub mounts: Vec<BindMount>,
}

/// Shows the machine all files of a container.
///
/// # Errors
/// 500 with what could not be shown.
pub async fn show(engine: &Engine, record: &Record, live: &Live) -> ApiResult<Inside> {
    let machine = &live.machine;
    let failed = |path: &Path, text: String| {
        ApiError::internal(format!("show {} to the container's machine: {text}", path.display()))
    };
    let folder = engine.folder(&record.id);
    let state = machine.expose(&folder, false).await.map_err(|text| failed(&folder, text))?;
    let mut mounts = start::bind_mounts(engine, record);
    for mount in &mut mounts {
        let shown = machine.expose(&mount.source, mount.read_only).await;
        mount.source = shown.map_err(|text| failed(&mount.source, text))?;
    }
    let overlay = Overlay { lower: record.layers.clone(), upper: folder.join("upper"), work: folder.join("work") };
    let root = machine.root(&record.id, &overlay).await.map_err(|text| failed(&overlay.upper, text))?;
    Ok(Inside { root, state, mounts })
}

/// Changes a runtime configuration into one for the kind of machine.
pub fn adapt(kind: Kind, inside: &Inside, spec: &mut Value) {
    if let Some(root) = &inside.root {
        spec["root"]["path"] = json!(root);
    }
    if kind != Kind::Vm {
        return;
    }
    adapt_limits(kind, &mut spec["linux"]["resources"]);
    // Whatever the host has, the guest has cgroup version 2.
    if let Some(namespaces) = spec["linux"]["namespaces"].as_array_mut()
        && !namespaces.iter().any(|namespace| namespace["type"] == "cgroup")
    {
        namespaces.push(json!({"type": "cgroup"}));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_become_the_size_of_the_machine() {
        let mut host = HostConfig::default();
        assert_eq!(size(&host), Size::default());
        (host.memory, host.nano_cpus) = (64 << 20, 1_500_000_000);
        assert_eq!(size(&host), Size { memory: Some(64 << 20), cpus: Some(2) });
        (host.nano_cpus, host.cpu_quota) = (0, 50_000);
        assert_eq!(size(&host).cpus, Some(1));
        (host.cpu_quota, host.cpuset_cpus) = (0, "0-2,5".into());
        assert_eq!(size(&host).cpus, Some(4));
        // Whoever asks for nonsense gets the hypervisor's word on it.
        (host.cpuset_cpus, host.nano_cpus) = ("0-4294967295,0-9".into(), 0);
        assert_eq!(size(&host).cpus, Some(u32::MAX));
        host.nano_cpus = i64::MAX;
        assert!(size(&host).cpus.is_some());
    }

    #[test]
    fn what_a_virtual_machine_cannot_give_is_refused_with_the_way_out() {
        let mut host = HostConfig { network_mode: "host".into(), ..HostConfig::default() };
        assert!(check(Kind::Namespace, &host).is_ok());
        let error = check(Kind::Vm, &host).expect_err("host network").message;
        assert!(error.contains("host's network") && error.contains("arca-ns"), "{error}");
        host.network_mode = "bridge".into();
        host.pid_mode = "host".into();
        assert!(check(Kind::Vm, &host).expect_err("its processes").message.contains("process namespace host"));
        host.pid_mode.clear();
        host.devices = json!([{"PathOnHost": "/dev/net/tun"}]);
        assert!(check(Kind::Vm, &host).is_ok());
        host.devices = json!([{"PathOnHost": "/dev/sda"}]);
        assert!(check(Kind::Vm, &host).expect_err("a disk").message.contains("/dev/sda"));
    }

    #[test]
    fn a_configuration_for_a_virtual_machine_has_its_paths_and_no_processors_of_the_host() {
        let mut spec = json!({"root": {"path": "rootfs"}, "linux": {"namespaces": [{"type": "pid"}],
            "resources": {"cpu": {"cpus": "3", "quota": 5}}}});
        let inside = Inside { root: Some("/arca/root-1".into()), state: "/arca/0".into(), mounts: Vec::new() };
        adapt(Kind::Vm, &inside, &mut spec);
        assert_eq!(
            spec,
            json!({"root": {"path": "/arca/root-1"}, "linux": {
            "namespaces": [{"type": "pid"}, {"type": "cgroup"}], "resources": {"cpu": {"quota": 5}}}})
        );
    }
}
