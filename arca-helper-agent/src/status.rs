// SPDX-License-Identifier: Apache-2.0
//! What the helper machine says about itself: processes (from the supervisor), databases, versions, faults.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use crate::layout::Layout;
use crate::ovsdb::{Database, Decoder, Monitor};

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
    /// "" while ovs-vswitchd does not answer.
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
    layout: Layout,
}

/// What the agent wants to know of the southbound database.
pub fn sb_monitors() -> Vec<Monitor> {
    vec![Monitor::new("Chassis", &["name", "hostname"])]
}

impl Source {
    /// Reports from these connections, the supervisor and ovs-vswitchd.
    pub fn new(conf: Database, nb: Database, sb: Database, layout: Layout) -> Self {
        Self { conf, nb, sb, layout }
    }

    /// The report of this moment.
    pub async fn collect(&self) -> Status {
        let supervised = supervised(&self.layout.supervisor_socket()).await.unwrap_or_else(|error| {
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
            ovs_version: ovs_version(&self.layout.vswitchd_control()).await.unwrap_or_default(),
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
pub async fn supervised(socket: &Path) -> std::io::Result<Supervised> {
    let ask = async {
        let mut text = Vec::new();
        UnixStream::connect(socket).await?.take(1 << 20).read_to_end(&mut text).await?;
        serde_json::from_slice(&text).map_err(std::io::Error::other)
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await?
}

/// Asks ovs-vswitchd on its control socket (JSON-RPC, ovs-appctl(8)): "ovs-vswitchd (Open vSwitch) 3.5.0".
async fn ovs_version(socket: &Path) -> Option<String> {
    let ask = async {
        let mut stream = UnixStream::connect(socket).await.ok()?;
        stream.write_all(br#"{"id":0,"method":"version","params":[]}"#).await.ok()?;
        let mut decoder = Decoder::with_limit(1 << 16);
        loop {
            if let Some(answer) = decoder.next_message().ok()? {
                let line = answer["result"].as_str()?.lines().next()?.to_owned();
                return Some(line.rsplit(' ').next()?.to_owned());
            }
            if stream.read_buf(decoder.buffer()).await.ok()? == 0 {
                return None;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(1), ask).await.ok()?
}
