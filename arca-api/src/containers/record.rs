// SPDX-License-Identifier: Apache-2.0
//! The durable part of a container: one JSON document.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

use crate::docker::{
    config::ContainerConfig,
    health::Health,
    host_config::{HostConfig, PortBinding},
    network::EndpointSettings,
};

/// Where a container is in its life. Names are Docker's `State.Status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Never started.
    #[default]
    Created,
    /// Its process runs.
    Running,
    /// Its processes are frozen.
    Paused,
    /// Ended; a restart policy will start it again.
    Restarting,
    /// Ended.
    Exited,
    /// Removal failed half-way; only remove is left.
    Dead,
}

impl Status {
    /// Docker's word.
    pub fn word(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }
}

/// State as inspect shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct State {
    pub status: Status,
    pub pid: u32,
    pub exit_code: i64,
    pub error: String,
    pub oom_killed: bool,
    /// Nanoseconds since the Unix epoch, 0 for never.
    pub started_at: i64,
    /// As above.
    pub finished_at: i64,
    /// The machine it lives in while it runs.
    #[serde(default)]
    pub machine: String,
    /// A user stopped it: no restart policy applies until it is started again.
    pub stopped_by_user: bool,
    /// Of a container with a health check, from its first start on.
    #[serde(default)]
    pub health: Option<Health>,
}

impl State {
    /// A process exists: running or paused.
    pub fn is_running(&self) -> bool {
        matches!(self.status, Status::Running | Status::Paused)
    }
}

/// An attachment as wished and as observed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attachment {
    /// What inspect shows.
    pub settings: EndpointSettings,
    /// The MAC address is the user's own, not netd's choice.
    pub mac_asked: bool,
    /// Which backend carries the network: learnt at each start, "" before the first.
    #[serde(default)]
    pub backend: String,
    /// The host's end of an interface that a machine has from its boot on, where the backend wants one: learnt likewise.
    #[serde(default)]
    pub wire: String,
    /// Bytes of an IP packet on it.
    #[serde(default)]
    pub mtu: u32,
}

impl Attachment {
    /// A wish not yet fulfilled.
    pub fn wished(settings: EndpointSettings) -> Self {
        let settings = settings.wishes();
        Self { mac_asked: !settings.mac_address.is_empty(), settings, ..Self::default() }
    }
}

/// A container that is linked to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Link {
    /// Its id, which stays what is meant.
    pub id: String,
    /// Its name when the link was made: shown when it is gone.
    pub name: String,
}

/// One mount from outside, as inspect shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
#[allow(missing_docs)]
pub struct MountPoint {
    /// "bind" or "volume".
    #[serde(rename = "Type")]
    pub kind: String,
    /// Volume name; empty for binds.
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub name: String,
    pub source: PathBuf,
    pub destination: String,
    #[serde(skip_serializing_if = "String::is_empty", default)]
    pub driver: String,
    pub mode: String,
    #[serde(rename = "RW")]
    pub rw: bool,
    pub propagation: String,
}

/// Everything of a container that must survive arca-api.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Record {
    pub id: String,
    /// Without the leading slash.
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub created: i64,
    /// `sha256:…`.
    pub image_id: String,
    /// Folders of the image's layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// Merged with the image's.
    pub config: ContainerConfig,
    pub host: HostConfig,
    /// By network name.
    pub networks: BTreeMap<String, Attachment>,
    pub mounts: Vec<MountPoint>,
    /// Names of the anonymous volumes made for this container.
    pub anonymous_volumes: Vec<String>,
    /// Published ports while running: `80/tcp` to host address and port.
    pub published: BTreeMap<String, Vec<PortBinding>>,
    pub state: State,
    pub restart_count: u32,
    /// Containers on the default bridge that it is linked to, by alias.
    #[serde(default)]
    pub links: BTreeMap<String, Link>,
    /// What they add to its environment, since its last start.
    #[serde(default)]
    pub link_environment: Vec<String>,
    /// The container whose hostname, hosts and resolv.conf it has, if not its own (`--network container:ID`).
    #[serde(default)]
    pub files_of: Option<String>,
}

impl Record {
    /// First 12 digits of the id.
    pub fn short_id(&self) -> &str {
        self.id.get(..12).unwrap_or(&self.id)
    }

    /// The container shares the host's network.
    pub fn is_host_network(&self) -> bool {
        self.host.network_mode == "host"
    }

    /// The container, by name or id, whose network this one shares.
    pub fn network_of(&self) -> Option<&str> {
        self.host.network_mode.strip_prefix("container:")
    }

    /// The machine a running container lives in.
    pub fn machine(&self) -> &str {
        if self.state.machine.is_empty() { &self.id } else { &self.state.machine }
    }

    /// Its configuration as its processes see it: what links add comes before its own environment, which wins.
    pub fn process_config(&self) -> ContainerConfig {
        let mut config = self.config.clone();
        let own = config.env.take().unwrap_or_default();
        config.env = Some(self.link_environment.iter().cloned().chain(own).collect());
        config
    }

    /// Whose hostname, hosts and resolv.conf the container has.
    pub fn files_owner(&self) -> &str {
        self.files_of.as_deref().unwrap_or(&self.id)
    }

    /// arca-netd has nothing to do with the container: it is on host or none, or shares another's network.
    pub fn without_endpoints(&self) -> bool {
        self.network_of().is_some() || self.networks.keys().any(|name| matches!(name.as_str(), "host" | "none"))
    }
}
