// SPDX-License-Identifier: Apache-2.0
//! The OVS side of the helper machine: its bridges and their ports, through the Open_vSwitch database.
//!
//! ```text
//!   arca<n> ──┐                          ┌── up0 (uplink)
//!             ├─ br-int ═ patch ═ br-ex ─┤
//!   arca<m> ──┘   (ovn-controller)       └── br-ex (the helper's own address: resolver)
//! ```
//!
//! The supervisor writes the first rows ([`first_rows`]); [`Vswitch`] is the agent's handle. ovs-vswitchd answers a
//! change by raising `cur_cfg` to the `next_cfg` it has worked through ([`Vswitch::settle`]).

pub mod buffers;
mod datapath;
pub mod ingress;
mod installed;
mod netlink;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, watch};

use crate::layout::Layout;
use crate::ovsdb::{Atom, Database, Error, Monitor, Mutator, Op, Uuid, Value};

use buffers::Raiser;
pub use datapath::Datapath;
pub use installed::Installed;
pub use netlink::delete_link;

/// Integration bridge: link TAPs, and OVN's flows.
pub const BR_INT: &str = "br-int";
/// Uplink bridge.
pub const BR_EX: &str = "br-ex";
/// Name by which a localnet port of OVN means the uplink bridge (`options:network_name`).
pub const UPLINK_NETWORK: &str = "ext";

/// How long ovs-vswitchd may take for a change before the agent gives up on waiting.
const SETTLE: Duration = Duration::from_secs(5);
/// Grace of ovn-controller after its restart until it deletes flows it has not computed again, milliseconds: twice the
/// time it needs at 500 ports. Without it every ovn-controller restart interrupts traffic.
const WAIT_BEFORE_CLEAR: &str = "700";

/// What a change of the switch can fail with.
#[derive(Debug, thiserror::Error)]
pub enum VswitchError {
    /// The Open_vSwitch database.
    #[error("write the Open_vSwitch database")]
    Database(#[from] Error),
    /// ovs-vswitchd does not follow.
    #[error("ovs-vswitchd did not apply a change within {} s (is it running?)", SETTLE.as_secs())]
    Stuck,
}

/// Tables and columns of the Open_vSwitch database that the supervisor and the agent look at.
pub fn monitors() -> Vec<Monitor> {
    vec![
        Monitor::new("Open_vSwitch", &["bridges", "external_ids", "other_config", "cur_cfg", "next_cfg"]),
        Monitor::new("Bridge", &["name", "ports", "datapath_type"]),
        Monitor::new("Port", &["name", "interfaces", "external_ids"]),
        Monitor::new("Interface", &["name", "type", "external_ids", "ofport", "error", "mtu_request"]),
    ]
}

/// The first transaction of a new database: bridges, and all that OVS and OVN read at their start. `system_id` is
/// left out when it is not known yet; ovn-controller waits for it.
pub fn first_rows(datapath: Datapath, layout: &Layout, system_id: Option<&str>, hostname: &str) -> Vec<Op> {
    let mut ids = vec![
        ("hostname", hostname.to_owned()),
        ("ovn-remote", format!("unix:{}", layout.sb_socket().display())),
        ("ovn-encap-type", "geneve".into()),
        ("ovn-encap-ip", "127.0.0.1".into()),
        ("ovn-bridge-mappings", format!("{UPLINK_NETWORK}:{BR_EX}")),
        ("ovn-bridge-datapath-type", datapath.as_str().into()),
        ("ovn-monitor-all", "true".into()),
        // Unix sockets break audibly; probes only cost wake-ups, and kill a busy peer.
        ("ovn-remote-probe-interval", "0".into()),
        ("ovn-openflow-probe-interval", "0".into()),
    ];
    if let Some(id) = system_id {
        ids.push(("system-id", id.into()));
    }
    // TSO must be on before ovs-vswitchd's first start: without it half-masked offloads stall TCP.
    // Statistics in rows are for nobody here, and written every five seconds for each port.
    let config = [("userspace-tso-enable", "true"), ("stats-update-interval", "3600000")];
    let mut ops = vec![
        Op::wait("Open_vSwitch", &["bridges"], &[]),
        Op::insert("Open_vSwitch")
            .set("bridges", Value::set([Atom::named("br_int"), Atom::named("br_ex")]))
            .set("other_config", Value::map(config))
            .set("external_ids", Value::map(ids)),
    ];
    for (bridge, name, fail_mode) in [(BR_INT, "int", "secure"), (BR_EX, "ex", "standalone")] {
        let [bridge_id, port_id, interface_id] = ["br", "port", "interface"].map(|kind| format!("{kind}_{name}"));
        ops.extend([
            Op::insert("Bridge")
                .named(bridge_id)
                .set("name", bridge)
                .set("datapath_type", datapath.as_str())
                .set("fail_mode", fail_mode)
                .set("other_config", Value::map([("disable-in-band", "true")]))
                .set("ports", Atom::named(&port_id)),
            Op::insert("Port").named(port_id).set("name", bridge).set("interfaces", Atom::named(&interface_id)),
            Op::insert("Interface").named(interface_id).set("name", bridge).set("type", "internal"),
        ]);
    }
    ops
}

/// Gives an ovn-controller that restarts time to compute its flows before it deletes those of before, or takes it back:
/// one whose ovs-vswitchd has restarted, or that starts for the first time, has nothing to keep and should not wait.
pub fn grace_for_restart(grace: bool) -> Op {
    const KEY: &str = "ovn-ofctrl-wait-before-clear";
    let op = Op::mutate("Open_vSwitch").mutation("external_ids", Mutator::Delete, Value::set([KEY]));
    if grace { op.mutation("external_ids", Mutator::Insert, Value::map([(KEY, WAIT_BEFORE_CLEAR)])) } else { op }
}

/// A port to be on a bridge.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BridgePort {
    /// Interface of the kernel, also the port's name.
    pub interface: String,
    /// `external_ids` of the Interface row.
    pub external_ids: Vec<(String, String)>,
}

/// The agent's handle of the switch; clones share it.
#[derive(Clone, Debug)]
pub struct Vswitch {
    conf: Database,
    datapath: Datapath,
    pid_file: PathBuf,
    raiser: Arc<Mutex<Option<Raiser>>>,
}

impl Vswitch {
    /// A switch behind the connection `conf` (see [`monitors`]). Waits for the first rows.
    ///
    /// # Errors
    /// The schema lacks something.
    pub async fn open(conf: Database, layout: &Layout) -> Result<Self, VswitchError> {
        conf.ready().await?;
        let kind = conf.wait_for(|s| Some(s.find("Bridge", "name", BR_INT)?.1.str("datapath_type").to_owned())).await?;
        let datapath = if kind == Datapath::Kernel.as_str() { Datapath::Kernel } else { Datapath::User };
        Ok(Self { conf, datapath, pid_file: layout.vswitchd_pid(), raiser: Arc::default() })
    }

    /// The datapath in use.
    pub fn datapath(&self) -> Datapath {
        self.datapath
    }

    /// `iface-id`s of the ports whose flows the switch has, and every change of them.
    pub fn installed(&self) -> watch::Receiver<Installed> {
        installed::follow(&self.conf)
    }

    /// Connection to the Open_vSwitch database.
    pub fn database(&self) -> &Database {
        &self.conf
    }

    /// Puts ports on a bridge, or brings what is there up to date, and takes others away, in one transaction. Returns
    /// when it is committed; ovs-vswitchd follows within milliseconds ([`Vswitch::settle`]).
    ///
    /// # Errors
    /// The database refused or is away; nothing is changed then.
    pub async fn change(&self, bridge: &str, put: &[BridgePort], remove: &[String]) -> Result<(), VswitchError> {
        let now = self.conf.snapshot();
        let Some((bridge_id, _)) = now.find("Bridge", "name", bridge) else {
            return Err(Error::NotConnected(self.conf.name().into()).into());
        };
        let mut ops = Vec::new();
        let mut added = Vec::new();
        for (index, port) in put.iter().enumerate() {
            let ids = Value::map(port.external_ids.iter().map(|(k, v)| (k.as_str(), v.as_str())));
            if let Some((uuid, row)) = now.find("Interface", "name", &port.interface) {
                if row.get("external_ids") != Some(&ids) {
                    ops.push(Op::update("Interface").row(uuid).set("external_ids", ids));
                }
                continue;
            }
            let [port_name, interface_name] = ["port", "interface"].map(|kind| format!("{kind}_{index}"));
            added.push(Atom::named(&port_name));
            ops.extend([
                Op::insert("Port")
                    .named(port_name)
                    .set("name", port.interface.as_str())
                    .set("interfaces", Atom::named(&interface_name)),
                Op::insert("Interface")
                    .named(interface_name)
                    .set("name", port.interface.as_str())
                    .set("external_ids", ids),
            ]);
        }
        let gone = remove.iter().filter_map(|name| now.find("Port", "name", name)).map(|(uuid, _)| uuid);
        let gone: Vec<Uuid> = gone.collect();
        let mut mutate = Op::mutate("Bridge").row(bridge_id);
        if !gone.is_empty() {
            mutate = mutate.mutation("ports", Mutator::Delete, Value::set(gone.iter().copied()));
        }
        if !added.is_empty() {
            mutate = mutate.mutation("ports", Mutator::Insert, Value::set(added.iter().cloned()));
        }
        if !gone.is_empty() || !added.is_empty() {
            ops.push(mutate);
        }
        if !ops.is_empty() {
            // ovs-vswitchd is told that somebody waits; the answer is awaited by `settle`.
            ops.push(Op::mutate("Open_vSwitch").mutation("next_cfg", Mutator::Add, 1));
            self.conf.transact(ops).await?;
        }
        Ok(())
    }

    /// Merges pairs into `Open_vSwitch.external_ids`.
    ///
    /// # Errors
    /// The database is away.
    pub async fn set_external_ids(&self, pairs: &[(&str, &str)]) -> Result<(), VswitchError> {
        let now = self.conf.snapshot();
        let same = |(key, value): &(&str, &str)| {
            now.single("Open_vSwitch").is_some_and(|(_, row)| row.key("external_ids", key) == Some(value))
        };
        if pairs.iter().all(same) {
            return Ok(());
        }
        let keys = Value::set(pairs.iter().map(|(key, _)| *key));
        let op = Op::mutate("Open_vSwitch").mutation("external_ids", Mutator::Delete, keys).mutation(
            "external_ids",
            Mutator::Insert,
            Value::map(pairs.iter().copied()),
        );
        self.conf.transact(vec![op]).await?;
        Ok(())
    }

    /// Waits until ovs-vswitchd has applied all that was committed before, then raises the receive buffers of packet
    /// sockets that are new. Returns how many.
    ///
    /// # Errors
    /// [`VswitchError::Stuck`] after five seconds.
    pub async fn settle(&self) -> Result<usize, VswitchError> {
        tokio::time::timeout(SETTLE, async {
            let ops = vec![
                Op::mutate("Open_vSwitch").mutation("next_cfg", Mutator::Add, 1),
                Op::select("Open_vSwitch").columns(&["next_cfg"]),
            ];
            let results = self.conf.transact(ops).await?;
            let wanted = results.get(1).and_then(|r| r.rows.first()?.integer("next_cfg")).unwrap_or_default();
            let done = |s: &crate::ovsdb::Snapshot| {
                let (_, row) = s.single("Open_vSwitch")?;
                (row.integer("cur_cfg")? >= wanted).then_some(())
            };
            self.conf.wait_for(done).await
        })
        .await
        .map_err(|_| VswitchError::Stuck)??;
        Ok(self.raise_buffers().await)
    }

    /// Only with the netdev datapath; failures are logged, traffic is slower then and not wrong.
    async fn raise_buffers(&self) -> usize {
        if self.datapath == Datapath::Kernel {
            return 0;
        }
        let mut raiser = self.raiser.lock().await;
        let pid = match tokio::fs::read_to_string(&self.pid_file).await {
            Ok(text) => text.trim().parse().unwrap_or_default(),
            Err(error) => {
                tracing::warn!(%error, path = %self.pid_file.display(), "no pid file of ovs-vswitchd");
                return 0;
            }
        };
        let raised = match raiser.as_mut() {
            Some(known) if known.pid() == pid => known.raise(),
            _ => Raiser::new(pid).and_then(|new| raiser.insert(new).raise()),
        };
        raised.unwrap_or_else(|error| {
            tracing::warn!(%error, pid, "receive buffers of ovs-vswitchd stay small: expect TCP retransmissions");
            *raiser = None;
            0
        })
    }

    /// Ports of a bridge with the `external_ids` of their interfaces.
    pub fn ports(&self, bridge: &str) -> Vec<BridgePort> {
        let now = self.conf.snapshot();
        let Some((_, row)) = now.find("Bridge", "name", bridge) else { return Vec::new() };
        let interfaces =
            row.uuids("ports").filter_map(|port| now.row("Port", port)).flat_map(|p| p.uuids("interfaces"));
        let pairs = |value: &Value| value.pairs().map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        interfaces
            .filter_map(|uuid| now.row("Interface", uuid))
            .map(|row| BridgePort {
                interface: row.str("name").to_owned(),
                external_ids: row.get("external_ids").map(pairs).unwrap_or_default(),
            })
            .collect()
    }

    /// Error text that ovs-vswitchd wrote for an interface, "" if none.
    pub fn interface_error(&self, interface: &str) -> String {
        let now = self.conf.snapshot();
        now.find("Interface", "name", interface).map(|(_, row)| row.str("error").to_owned()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_rows_name_what_ovn_needs_and_leave_an_unknown_chassis_id_out() {
        let layout = Layout::default();
        let ops = |id| {
            first_rows(Datapath::User, &layout, id, "h").iter().map(|op| op.to_json().to_string()).collect::<String>()
        };
        let without = ops(None);
        assert!(without.contains("userspace-tso-enable") && without.contains("\"ext:br-ex\""));
        assert!(without.contains("unix:/run/ovn/ovnsb_db.sock") && !without.contains("system-id"));
        assert!(ops(Some("x")).contains("[\"system-id\",\"x\"]"));
    }
}
