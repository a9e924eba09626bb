// SPDX-License-Identifier: Apache-2.0
//! What the helper machine says about itself: processes (from the supervisor), databases, versions, faults.

use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::ovsdb::{Database, Monitor};

/// One supervised program.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// As "ovn-northd" or "ovsdb-server nb".
    pub name: String,
    /// 0 while it does not run.
    pub pid: u32,
    /// Starts after the first.
    pub restarts: u64,
    /// Bytes.
    pub resident_bytes: u64,
}

/// What the supervisor writes to whoever connects to its socket.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Supervised {
    /// In the order of their first start; the supervisor itself comes first.
    pub processes: Vec<Process>,
    /// Faults that OVN and OVS only log, newest last.
    pub faults: Vec<String>,
    /// Milliseconds from the supervisor's start to named moments of the first boot.
    pub boot_ms: Vec<(String, u64)>,
}

/// A connection to a database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DatabaseState {
    /// Name, as "OVN_Northbound".
    pub name: String,
    /// It stands.
    pub connected: bool,
    /// "" before the first connection.
    pub schema_version: String,
}

/// The whole report.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// Version of the agent.
    pub version: String,
    /// Chassis id, "" before `Configure`.
    pub system_id: String,
    /// "netdev" or "system".
    pub datapath: String,
    /// "" until ovs-vswitchd has written it.
    pub ovs_version: String,
    /// "" until ovn-northd has written it.
    pub ovn_version: String,
    /// From the supervisor; empty when it does not answer.
    pub processes: Vec<Process>,
    /// The agent's three connections.
    pub databases: Vec<DatabaseState>,
    /// Newest last.
    pub faults: Vec<String>,
}

/// Where the report comes from; clones share the connections.
#[derive(Clone, Debug)]
pub struct Source {
    conf: Database,
    nb: Database,
    sb: Database,
    supervisor: PathBuf,
}

/// What the agent wants to know of the southbound database.
pub fn sb_monitors() -> Vec<Monitor> {
    vec![Monitor::new("Chassis", &["name", "hostname"])]
}

impl Source {
    /// Reports from these connections and the supervisor's socket.
    pub fn new(conf: Database, nb: Database, sb: Database, supervisor: PathBuf) -> Self {
        Self { conf, nb, sb, supervisor }
    }

    /// The report of this moment.
    pub async fn collect(&self) -> Status {
        let supervised = supervised(&self.supervisor).await.unwrap_or_else(|error| {
            tracing::warn!(%error, "the supervisor does not say what it runs");
            Supervised::default()
        });
        let conf = self.conf.snapshot();
        let switch = conf.single("Open_vSwitch").map(|(_, row)| row);
        let bridge = conf.find("Bridge", "name", crate::vswitch::BR_INT).map(|(_, row)| row);
        let nb = self.nb.snapshot();
        let global = nb.single("NB_Global").map(|(_, row)| row);
        let databases = [&self.conf, &self.nb, &self.sb].map(|db| {
            let now = db.snapshot();
            DatabaseState {
                name: db.name().to_owned(),
                connected: now.connected,
                schema_version: now.schema.version.clone(),
            }
        });
        Status {
            version: env!("CARGO_PKG_VERSION").into(),
            system_id: switch.and_then(|r| r.key("external_ids", "system-id")).unwrap_or_default().into(),
            datapath: bridge.map(|r| r.str("datapath_type")).unwrap_or_default().into(),
            ovs_version: switch.map(|r| r.str("ovs_version")).unwrap_or_default().into(),
            ovn_version: global.and_then(|r| r.key("options", "northd_internal_version")).unwrap_or_default().into(),
            processes: supervised.processes,
            databases: databases.into(),
            faults: supervised.faults,
        }
    }
}

/// Asks the supervisor; it writes one JSON text and closes.
///
/// # Errors
/// Nobody listens there, or it does not answer within a second.
pub async fn supervised(socket: &std::path::Path) -> std::io::Result<Supervised> {
    let ask = async {
        let mut text = Vec::new();
        UnixStream::connect(socket).await?.take(1 << 20).read_to_end(&mut text).await?;
        serde_json::from_slice(&text).map_err(std::io::Error::other)
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await?
}
