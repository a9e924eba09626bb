// SPDX-License-Identifier: Apache-2.0
//! Where files and sockets lie inside the helper machine. Only the data directory outlives the machine.

use std::path::PathBuf;

/// Paths as the supervisor, the agent and the programs of the image agree on them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layout {
    /// Sockets, pid files and the databases that are made anew at each boot (tmpfs).
    pub run: PathBuf,
    /// What survives the machine: the northbound database and the chassis id.
    pub data: PathBuf,
}

impl Default for Layout {
    fn default() -> Self {
        Self { run: "/run".into(), data: "/var/lib/arca".into() }
    }
}

impl Layout {
    /// Run directory of OVS, compiled into its programs (pid files, control sockets).
    pub fn ovs_run(&self) -> PathBuf {
        self.run.join("openvswitch")
    }

    /// Run directory of OVN.
    pub fn ovn_run(&self) -> PathBuf {
        self.run.join("ovn")
    }

    /// Socket of the Open_vSwitch database.
    pub fn conf_socket(&self) -> PathBuf {
        self.ovs_run().join("db.sock")
    }

    /// Socket of the OVN_Northbound database.
    pub fn nb_socket(&self) -> PathBuf {
        self.ovn_run().join("ovnnb_db.sock")
    }

    /// Socket of the OVN_Southbound database.
    pub fn sb_socket(&self) -> PathBuf {
        self.ovn_run().join("ovnsb_db.sock")
    }

    /// Pid file of ovs-vswitchd; written anew at each of its starts.
    pub fn vswitchd_pid(&self) -> PathBuf {
        self.ovs_run().join("ovs-vswitchd.pid")
    }

    /// Control socket of ovs-vswitchd.
    pub fn vswitchd_control(&self) -> PathBuf {
        self.vswitchd_pid().with_extension("ctl")
    }

    /// OpenFlow socket of a bridge: ovs-vswitchd makes it when the bridge stands.
    pub fn bridge_socket(&self, bridge: &str) -> PathBuf {
        self.ovs_run().join(format!("{bridge}.mgmt"))
    }

    /// The supervisor tells whoever connects here what it runs, as one JSON text.
    pub fn supervisor_socket(&self) -> PathBuf {
        self.run.join("arca-supervisor.sock")
    }

    /// The chassis id of the last `Configure`, so that a boot need not wait for the next.
    pub fn system_id(&self) -> PathBuf {
        self.data.join("system-id")
    }
}
