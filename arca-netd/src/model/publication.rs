// SPDX-License-Identifier: Apache-2.0
//! A published port: one load-balancer row, one or two host listeners.

use std::{fmt, net::IpAddr};

use serde::{Deserialize, Serialize};

use super::ids::{EndpointId, PublicationId, WorkloadId};

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// One bound host address.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    /// Identifier in arca-relayd.
    pub id: PublicationId,
    /// Address bound.
    pub host_ip: IpAddr,
    /// Port bound; 0 where the endpoint is reached by its own address instead (gateway mode `routed`).
    pub host_port: u16,
}

impl Listener {
    /// Whether there is one at all.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        self.host_port > 0
    }
}

/// A published port as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Publication {
    /// Identifier of the load-balancer row.
    pub id: PublicationId,
    /// Container.
    pub workload: WorkloadId,
    /// Endpoint it leads to: the one with the default route. A workload without a way out has no publications.
    pub endpoint: Option<EndpointId>,
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub container_port: u16,
    /// Port at the router's uplink address, unique per protocol.
    pub vip_port: u16,
    /// Host listeners: `0.0.0.0` and `::`, or one.
    pub listeners: Vec<Listener>,
    /// Generation the helper's agent knows it by.
    pub generation: u64,
    /// Acknowledged to the client; a restart takes back what was not.
    pub active: bool,
}
