// SPDX-License-Identifier: Apache-2.0
//! An endpoint: one workload on one network.
//!
//! ```text
//!  (nothing) --intent stored--> Pending --every step held--> Active --detach asked--> Removing --undone--> (nothing)
//!                                  \_______________a step failed_______________________/
//! ```

use std::net::{Ipv4Addr, Ipv6Addr};

use arca_proto::{dial::Address, hello::Carrier, ports::LinkNumber};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::extras::Extras;
use super::ids::{EndpointId, MacAddr, MachineId, NetworkId, WorkloadId};

/// How far an endpoint has come. Only `Active` ones were ever acknowledged to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// Stored before the first step; a restart takes it back.
    Pending,
    /// Every step held.
    Active,
    /// Being taken down; a restart goes on with it.
    Removing,
}

/// Where an endpoint's frames go: the interface in its machine and the link to the helper.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// Machine.
    pub machine: MachineId,
    /// How it is reached.
    pub address: Address,
    /// Link number, unique on the host.
    #[serde(with = "link_number")]
    pub link: LinkNumber,
    /// Interface name in the machine.
    pub interface: String,
    /// Hardware address.
    pub mac: MacAddr,
    /// How its frames travel.
    #[serde(default)]
    pub carrier: Carrier,
}

/// An endpoint as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Identifier.
    pub id: EndpointId,
    /// Network.
    pub network: NetworkId,
    /// Container.
    pub workload: WorkloadId,
    /// Its name.
    pub workload_name: String,
    /// Its host name.
    pub hostname: String,
    /// Aliases as given.
    pub aliases: Vec<String>,
    /// None on the host and none networks, which have no interface of their own.
    pub place: Option<Place>,
    /// `--ip`.
    pub static_v4: Option<Ipv4Addr>,
    /// `--ip6`.
    pub static_v6: Option<Ipv6Addr>,
    /// The allocated address was pinned after the helper lost its database.
    pub pinned: bool,
    /// Observed address.
    pub address_v4: Option<Ipv4Net>,
    /// Observed address.
    pub address_v6: Option<Ipv6Net>,
    /// `gw-priority`.
    pub gateway_priority: i32,
    /// Links, name servers, further addresses, sysctls.
    #[serde(default)]
    pub extras: Extras,
    /// How far it has come.
    pub phase: Phase,
    /// Generation the helper's agent knows it by.
    pub generation: u64,
}

impl Endpoint {
    /// The address OVN is told, if it may not choose.
    #[must_use]
    pub fn fixed_v4(&self) -> Option<Ipv4Addr> {
        self.static_v4.or_else(|| self.address_v4.filter(|_| self.pinned).map(|net| net.addr()))
    }

    /// The IPv6 address OVN is told, if it may not choose.
    #[must_use]
    pub fn fixed_v6(&self) -> Option<Ipv6Addr> {
        self.static_v6.or_else(|| self.address_v6.filter(|_| self.pinned).map(|net| net.addr()))
    }

    /// Link number, if it has one.
    #[must_use]
    pub fn link(&self) -> Option<LinkNumber> {
        self.place.as_ref().map(|place| place.link)
    }
}

mod link_number {
    use arca_proto::ports::LinkNumber;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(link: &LinkNumber, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(link.get())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<LinkNumber, D::Error> {
        LinkNumber::try_from(u32::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
