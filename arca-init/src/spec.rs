// SPDX-License-Identifier: Apache-2.0
//! The three things that only arca-init knows of an OCI configuration: root path, cgroup path, network namespace.
//!
//! Everything else is arca-api's decision and passes through untouched.

use std::path::Path;

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
        let got: Value = serde_json::from_slice(&spec.to_json()).expect("valid");
        let want = json!({"ociVersion":"1.0.2",
            "process":{"args":["sh"],"env":["A=1"],"terminal":true,"consoleSize":{"height":24,"width":80}},
            "hostname":"h", "root":{"path":"/b/rootfs"},
            "linux":{"namespaces":[{"type":"pid"}],"resources":{"pids":{"limit":5}},"cgroupsPath":"/arca/e/1"}});
        assert_eq!(got, want);
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
