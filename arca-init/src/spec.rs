// SPDX-License-Identifier: Apache-2.0
//! The three things that only arca-init knows of an OCI configuration: root path, cgroup path, network namespace.
//!
//! Everything else is arca-api's decision and passes through untouched.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::error::InitError;

/// An OCI runtime configuration, filled in.
#[derive(Debug)]
pub(crate) struct Spec {
    value: Value,
}

/// Size of a terminal in character cells; 0 leaves the runtime's default.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Size {
    pub(crate) rows: u32,
    pub(crate) columns: u32,
}

impl Spec {
    /// Reads config.json.
    pub(crate) fn parse(json: &[u8]) -> Result<Self, InitError> {
        let value: Value =
            serde_json::from_slice(json).map_err(|e| InitError::Invalid(format!("OCI configuration: {e}")))?;
        if value["process"]["args"].as_array().is_none_or(Vec::is_empty) {
            return Err(InitError::Invalid("OCI configuration: process.args is missing".into()));
        }
        for part in ["root", "linux"] {
            if !value[part].is_null() && !value[part].is_object() {
                return Err(InitError::Invalid(format!("OCI configuration: {part} is not an object")));
            }
        }
        Ok(Self { value })
    }

    /// What runs, for error texts.
    pub(crate) fn executable(&self) -> String {
        executable(&self.value["process"])
    }

    /// Whether a root path came with it.
    pub(crate) fn root_path(&self) -> Option<&str> {
        self.value["root"]["path"].as_str()
    }

    pub(crate) fn set_root(&mut self, path: &Path) {
        self.value["root"]["path"] = json!(path);
    }

    pub(crate) fn set_cgroup(&mut self, path: &Path) {
        self.value["linux"]["cgroupsPath"] = json!(Path::new("/").join(path));
    }

    /// The workload's network is the machine's: a namespace entry would give it another.
    pub(crate) fn use_machine_network(&mut self) {
        if let Some(namespaces) = self.value["linux"]["namespaces"].as_array_mut() {
            namespaces.retain(|namespace| namespace["type"] != "network");
        }
    }

    /// Takes out the network's sysctls, as files below /proc/sys with what goes into them: the runtime sets them only in a
    /// network of its own making.
    pub(crate) fn take_network_sysctls(&mut self) -> Vec<(PathBuf, String)> {
        let Some(all) = self.value.pointer_mut("/linux/sysctl").and_then(Value::as_object_mut) else {
            return Vec::new();
        };
        let mut taken = Vec::new();
        all.retain(|name, value| {
            // Dots between, slashes in: `net.ipv4.conf.eth0/1.mtu` is a file of the folder `eth0.1`.
            let parts: PathBuf = name.split('.').map(|part| part.replace('/', ".")).collect();
            let inside = parts.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            match value.as_str().filter(|_| inside && name.starts_with("net.")) {
                Some(value) => {
                    taken.push((Path::new("/proc/sys").join(parts), value.to_owned()));
                    false
                }
                // What is no such name the runtime refuses.
                None => true,
            }
        });
        taken
    }

    pub(crate) fn set_terminal(&mut self, terminal: bool, size: Size) {
        set_terminal(&mut self.value["process"], terminal, size);
    }

    pub(crate) fn to_json(&self) -> Vec<u8> {
        self.value.to_string().into_bytes()
    }
}

/// An OCI process object, filled in, and what it runs.
pub(crate) fn process(json: &[u8], terminal: bool, size: Size) -> Result<(Vec<u8>, String), InitError> {
    let mut value: Value = serde_json::from_slice(json).map_err(|e| InitError::Invalid(format!("OCI process: {e}")))?;
    if value["args"].as_array().is_none_or(Vec::is_empty) {
        return Err(InitError::Invalid("OCI process: args is missing".into()));
    }
    set_terminal(&mut value, terminal, size);
    let executable = executable(&value);
    Ok((value.to_string().into_bytes(), executable))
}

fn executable(process: &Value) -> String {
    process["args"][0].as_str().unwrap_or_default().to_owned()
}

fn set_terminal(process: &mut Value, terminal: bool, size: Size) {
    process["terminal"] = json!(terminal);
    if terminal && size.rows > 0 && size.columns > 0 {
        process["consoleSize"] = json!({"height": size.rows, "width": size.columns});
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_knows_is_changed() {
        let given = r#"{"ociVersion":"1.0.2","process":{"args":["sh"],"env":["A=1"]},"hostname":"h",
            "linux":{"namespaces":[{"type":"pid"},{"type":"network","path":"/x"}],"resources":{"pids":{"limit":5}}}}"#;
        let mut spec = Spec::parse(given.as_bytes()).expect("valid");
        assert_eq!((spec.executable().as_str(), spec.root_path()), ("sh", None));
        spec.set_root(Path::new("/b/rootfs"));
        spec.set_cgroup(Path::new("arca/e/1"));
        spec.use_machine_network();
        spec.set_terminal(true, Size { rows: 24, columns: 80 });
        assert!(spec.take_network_sysctls().is_empty());
        let got: Value = serde_json::from_slice(&spec.to_json()).expect("valid");
        let want = json!({"ociVersion":"1.0.2",
            "process":{"args":["sh"],"env":["A=1"],"terminal":true,"consoleSize":{"height":24,"width":80}},
            "hostname":"h", "root":{"path":"/b/rootfs"},
            "linux":{"namespaces":[{"type":"pid"}],"resources":{"pids":{"limit":5}},"cgroupsPath":"/arca/e/1"}});
        assert_eq!(got, want);
    }

    #[test]
    fn the_networks_sysctls_are_files_below_proc_sys_and_no_others() {
        let given = r#"{"process":{"args":["sh"]},"linux":{"sysctl":{"net.ipv4.ip_forward":"1","kernel.shmmax":"5",
            "net.ipv4.conf.eth0/1.mtu":"9","net.//.//.x":"1"}}}"#;
        let mut spec = Spec::parse(given.as_bytes()).expect("valid");
        let mut taken = spec.take_network_sysctls();
        taken.sort();
        for (path, _) in &taken {
            assert!(
                path.starts_with("/proc/sys/net") && !path.components().any(|part| part.as_os_str() == ".."),
                "{path:?}"
            );
        }
        assert!(taken.contains(&(PathBuf::from("/proc/sys/net/ipv4/ip_forward"), "1".into())));
        assert!(taken.contains(&(PathBuf::from("/proc/sys/net/ipv4/conf/eth0.1/mtu"), "9".into())));
        let rest: Value = serde_json::from_slice(&spec.to_json()).expect("valid");
        assert_eq!(rest["linux"]["sysctl"], json!({"kernel.shmmax": "5", "net.//.//.x": "1"}));
    }

    #[test]
    fn malformed_input_is_an_error() {
        assert!(Spec::parse(br#"{"process":{"args":["x"]},"root":"/"}"#).is_err());
        for bad in [&b""[..], b"{", b"[]", b"{\"process\":{}}", b"\"x\"", b"{\"args\":[]}"] {
            assert!(Spec::parse(bad).is_err());
            assert!(process(bad, false, Size::default()).is_err());
        }
    }
}
