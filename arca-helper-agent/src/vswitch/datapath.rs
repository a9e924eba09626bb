// SPDX-License-Identifier: Apache-2.0
//! Which datapath this machine has: the kernel's where the module is, else OVS's own in user space.

use std::fmt;

use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, REQUEST};

// include/uapi/linux/genetlink.h
const GENL_CONTROLLER: u16 = 0x10;
const GET_FAMILY: u8 = 3;
const FAMILY_NAME: u16 = 2;

/// Kind of datapath.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Datapath {
    /// openvswitch.ko: `datapath_type` "system".
    Kernel,
    /// Threads of ovs-vswitchd: `datapath_type` "netdev".
    User,
}

impl Datapath {
    /// Asks the kernel for the family of its datapath, which also loads the module where modules can be loaded.
    pub fn detect() -> Self {
        let mut buffer = Buffer::default();
        buffer.message(GENL_CONTROLLER, REQUEST | ACK, |buffer| {
            buffer.bytes(&[GET_FAMILY, 1, 0, 0]);
            buffer.text(FAMILY_NAME, "ovs_datapath");
        });
        // Without the family the only answer is an error.
        match buffer.exchange(SockProtocol::NetlinkGeneric, 1) {
            Ok(()) => Self::Kernel,
            Err(_) => Self::User,
        }
    }

    /// As in `Bridge.datapath_type`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kernel => "system",
            Self::User => "netdev",
        }
    }
}

impl fmt::Display for Datapath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
