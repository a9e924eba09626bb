// SPDX-License-Identifier: Apache-2.0
//! `/_ping`, `/version`, `/info`.

use std::sync::Arc;

use arca_proto::netd::v1 as netd;
use axum::{
    Json, Router,
    extract::{Path, State},
    http::header::{CACHE_CONTROL, CONTENT_TYPE, PRAGMA},
    response::IntoResponse,
    routing::get,
};
use serde_json::{Value, json};

use crate::{
    containers::{Status, inside},
    docker::time::{now, rfc3339},
    engine::Engine,
    http::{
        ApiError, ApiResult,
        frame::{MAX_VERSION, MIN_VERSION},
    },
};

type Shared = State<Arc<Engine>>;

const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/_ping", get(ping))
        .route("/version", get(version))
        .route("/info", get(info))
        .route("/plugins", get(|| async { Json(json!([])) }))
        .route("/plugins/{name}/json", get(plugin))
}

/// There are no plugins, so none has any name; `docker inspect NAME` asks here last.
async fn plugin(Path(name): Path<String>) -> ApiError {
    ApiError::not_found(format!("plugin \"{name}\" not found"))
}

async fn ping() -> impl IntoResponse {
    (
        [
            (CONTENT_TYPE.as_str(), "text/plain; charset=utf-8"),
            (CACHE_CONTROL.as_str(), "no-cache, no-store, must-revalidate"),
            (PRAGMA.as_str(), "no-cache"),
            // 1: the classic builder; BuildKit's session endpoint is not there.
            ("builder-version", "1"),
            ("swarm", "inactive"),
        ],
        "OK",
    )
}

/// Go's names of this machine.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel() -> (String, String) {
    let name = nix::sys::utsname::uname();
    name.map(|name| (name.release().to_string_lossy().into_owned(), name.nodename().to_string_lossy().into_owned()))
        .unwrap_or_default()
}

async fn version() -> Json<Value> {
    let (release, _) = kernel();
    Json(json!({
        "Platform": {"Name": "Arca"},
        "Components": [{
            "Name": "Engine",
            "Version": VERSION,
            "Details": {
                "ApiVersion": MAX_VERSION.to_string(),
                "Arch": architecture(),
                "BuildTime": "",
                "Experimental": "false",
                "GitCommit": "",
                "GoVersion": "",
                "KernelVersion": release,
                "MinAPIVersion": MIN_VERSION.to_string(),
                "Os": "linux",
            },
        }],
        "Version": VERSION,
        "ApiVersion": MAX_VERSION.to_string(),
        "MinAPIVersion": MIN_VERSION.to_string(),
        "GitCommit": "",
        "GoVersion": "",
        "Os": "linux",
        "Arch": architecture(),
        "KernelVersion": release,
        "BuildTime": "",
    }))
}

fn memory_total() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"));
    line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<u64>().ok()).unwrap_or(0) * 1024
}

/// A value of os-release(5).
fn os_release(key: &str) -> Option<String> {
    let text = std::fs::read_to_string("/etc/os-release").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
    Some(value.trim_matches('"').to_owned())
}

async fn info(State(engine): Shared) -> ApiResult<Json<Value>> {
    let (mut running, mut paused, mut stopped) = (0, 0, 0);
    for container in engine.containers.all() {
        match container.with(|record| record.state.status) {
            Status::Running => running += 1,
            Status::Paused => paused += 1,
            _ => stopped += 1,
        }
    }
    let images = engine.images.clone();
    let images = Engine::blocking(move || Ok(images.list()?.len())).await?;
    let warnings: Vec<String> = match engine.netd.clone().get_status(netd::GetStatusRequest {}).await {
        Ok(status) => {
            let state = status.into_inner().helper_state;
            if state.starts_with("down") { vec![format!("WARNING: the network helper is {state}")] } else { Vec::new() }
        }
        Err(_) => vec!["WARNING: arca-netd does not answer: no container with a network can start".into()],
    };
    let (release, host) = kernel();
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    Ok(Json(json!({
        "ID": engine.id,
        "Containers": running + paused + stopped,
        "ContainersRunning": running,
        "ContainersPaused": paused,
        "ContainersStopped": stopped,
        "Images": images,
        "Driver": "overlay2",
        "DriverStatus": [],
        "Plugins": {
            "Volume": ["local"], "Network": ["bridge", "host", "null", "ovs"], "Authorization": null,
            "Log": ["json-file"],
        },
        "MemoryLimit": true,
        "SwapLimit": true,
        "CpuCfsPeriod": true,
        "CpuCfsQuota": true,
        "CPUShares": true,
        "CPUSet": true,
        "PidsLimit": true,
        "IPv4Forwarding": true,
        "Debug": false,
        "NFd": 0,
        "OomKillDisable": false,
        "NGoroutines": 0,
        "SystemTime": rfc3339(now()),
        "LoggingDriver": "json-file",
        "CgroupDriver": "cgroupfs",
        "CgroupVersion": if std::path::Path::new("/sys/fs/cgroup/cgroup.controllers").exists() { "2" } else { "1" },
        "NEventsListener": 0,
        "KernelVersion": release,
        "OperatingSystem": os_release("PRETTY_NAME").unwrap_or_else(|| std::env::consts::OS.to_owned()),
        "OSVersion": os_release("VERSION_ID").unwrap_or_default(),
        "OSType": "linux",
        "Architecture": std::env::consts::ARCH,
        "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {
            "IndexConfigs": {"docker.io": {"Mirrors": [], "Name": "docker.io", "Official": true, "Secure": true}},
            "InsecureRegistryCIDRs": ["::1/128", "127.0.0.0/8"],
            "Mirrors": null,
        },
        "NCPU": cpus,
        "MemTotal": memory_total(),
        "GenericResources": null,
        "DockerRootDir": engine.paths.data.to_string_lossy(),
        "HttpProxy": "",
        "HttpsProxy": "",
        "NoProxy": "",
        "Name": host,
        "Labels": [],
        "ExperimentalBuild": false,
        "ServerVersion": VERSION,
        "Runtimes": {"arca-ns": {"path": "arca-init"}, "arca-vm": {"path": "arca-vmm"}},
        "DefaultRuntime": inside::runtime_of(engine.machines.default_kind()),
        "Swarm": {
            "NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false, "Error": "",
            "RemoteManagers": null,
        },
        "LiveRestoreEnabled": true,
        "Isolation": "",
        "InitBinary": "",
        "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""},
        "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin"],
        "CDISpecDirs": null,
        "Warnings": if warnings.is_empty() { Value::Null } else { json!(warnings) },
    })))
}
