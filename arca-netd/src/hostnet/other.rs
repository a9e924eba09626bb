// SPDX-License-Identifier: Apache-2.0
//! Hosts where machines are VMs: their networks never meet the host's routing table, so no route is in the way.

use ipnet::{Ipv4Net, Ipv6Net};

/// None.
pub(super) fn routes() -> Vec<(String, Ipv4Net)> {
    Vec::new()
}

/// None.
pub(super) fn routes_v6() -> Vec<(String, Ipv6Net)> {
    Vec::new()
}

/// A virtual machine's kernel has it.
pub(super) fn has_ipv6() -> bool {
    true
}
