// SPDX-License-Identifier: Apache-2.0
//! The portable part of a container's configuration (Docker API `ContainerConfig`).

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::docker::health::HealthConfig;

/// What runs and how, independent of the host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct ContainerConfig {
    pub hostname: String,
    pub domainname: String,
    pub user: String,
    pub attach_stdin: bool,
    pub attach_stdout: bool,
    pub attach_stderr: bool,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub exposed_ports: BTreeMap<String, Value>,
    pub tty: bool,
    pub open_stdin: bool,
    pub stdin_once: bool,
    pub env: Option<Vec<String>>,
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthcheck: Option<HealthConfig>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub args_escaped: bool,
    pub image: String,
    pub volumes: Option<BTreeMap<String, Value>>,
    pub working_dir: String,
    #[serde(deserialize_with = "words")]
    pub entrypoint: Option<Vec<String>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub network_disabled: bool,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub mac_address: String,
    pub on_build: Option<Vec<String>>,
    pub labels: BTreeMap<String, String>,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub stop_signal: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none", deserialize_with = "words")]
    pub shell: Option<Vec<String>>,
}

/// A command is a list of words, or one string.
pub(crate) fn words<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Words {
        One(String),
        Many(Vec<String>),
    }
    Ok(Option::<Words>::deserialize(deserializer)?.map(|words| match words {
        Words::One(word) => vec![word],
        Words::Many(words) => words,
    }))
}

impl ContainerConfig {
    /// Takes from the image what the request left open, as Docker does at create.
    pub fn merge_image(&mut self, image: &Self) {
        if self.user.is_empty() {
            self.user.clone_from(&image.user);
        }
        for (port, value) in &image.exposed_ports {
            self.exposed_ports.entry(port.clone()).or_insert_with(|| value.clone());
        }
        let own = self.env.take().unwrap_or_default();
        let name = |entry: &str| entry.split('=').next().unwrap_or("").to_owned();
        let inherited = image.env.iter().flatten().filter(|entry| !own.iter().any(|mine| name(mine) == name(entry)));
        // Docker appends the image's variables after the container's own.
        let merged: Vec<String> = own.iter().chain(inherited).cloned().collect();
        self.env = Some(merged);
        if self.entrypoint.as_ref().is_none_or(Vec::is_empty) {
            if self.cmd.as_ref().is_none_or(Vec::is_empty) {
                self.cmd.clone_from(&image.cmd);
                self.args_escaped = image.args_escaped;
            }
            // A single empty word (`--entrypoint ""`) is handled by the caller: it means none at all.
            if self.entrypoint.is_none() {
                self.entrypoint.clone_from(&image.entrypoint);
            }
        }
        if let Some(volumes) = &image.volumes {
            let mine = self.volumes.get_or_insert_default();
            for (path, value) in volumes {
                mine.entry(path.clone()).or_insert_with(|| value.clone());
            }
        }
        if self.working_dir.is_empty() {
            self.working_dir.clone_from(&image.working_dir);
        }
        for (label, value) in &image.labels {
            self.labels.entry(label.clone()).or_insert_with(|| value.clone());
        }
        if self.stop_signal.is_empty() {
            self.stop_signal.clone_from(&image.stop_signal);
        }
        match (&mut self.healthcheck, &image.healthcheck) {
            (Some(own), Some(inherited)) => own.merge_image(inherited),
            (own, inherited) => *own = own.take().or_else(|| inherited.clone()),
        }
        if self.shell.is_none() {
            self.shell.clone_from(&image.shell);
        }
    }

    /// Executable and its arguments: entrypoint, then command.
    pub fn command_line(&self) -> Vec<String> {
        let entrypoint = self.entrypoint.iter().flatten().filter(|word| !word.is_empty());
        entrypoint.chain(self.cmd.iter().flatten()).cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_request_wins_over_the_image() {
        let image: ContainerConfig = serde_json::from_value(json!({
            "Env": ["PATH=/bin", "A=image"], "Cmd": ["sh"], "Entrypoint": ["/entry"], "WorkingDir": "/w",
            "Labels": {"a": "image", "b": "image"},
        }))
        .expect("image config");
        let mut config: ContainerConfig =
            serde_json::from_value(json!({"Env": ["A=own"], "Labels": {"a": "own"}, "Cmd": "one"})).expect("config");
        config.merge_image(&image);
        assert_eq!(config.env, Some(vec!["A=own".into(), "PATH=/bin".into()]));
        assert_eq!(config.command_line(), ["/entry", "one"]);
        assert_eq!(config.labels, BTreeMap::from([("a".into(), "own".into()), ("b".into(), "image".into())]));

        let mut entry: ContainerConfig = serde_json::from_value(json!({"Entrypoint": ["/mine"]})).expect("config");
        entry.merge_image(&image);
        // An own entrypoint drops the image's command.
        assert_eq!(entry.command_line(), ["/mine"]);
    }

    #[test]
    fn nulls_and_absent_fields_read_as_dockers() {
        let text = serde_json::to_value(ContainerConfig::default()).expect("serialise");
        assert_eq!(text["Cmd"], Value::Null);
        assert_eq!(text["Labels"], json!({}));
        assert!(text.get("StopTimeout").is_none() && text.get("ExposedPorts").is_none());
    }
}
