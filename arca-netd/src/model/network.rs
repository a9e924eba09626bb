// SPDX-License-Identifier: Apache-2.0
//! A network: what was asked for, and what was made of it.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Serialize};

use super::ids::NetworkId;
use crate::validate::options::{self, Mode};

/// Who carries a network's frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// OVN logical switch (config value `ovs`).
    Ovs,
    /// The platform's native switch.
    Vmnet,
    /// The host's own network namespace.
    Host,
    /// Loopback only.
    None,
    /// Holds settings for others to copy; nothing can be attached.
    Config,
}

/// What the client said, kept as it was said: `docker network inspect` shows it again.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spec {
    /// Name.
    pub name: String,
    /// Driver as `docker network ls` shows it.
    pub driver: String,
    /// No way out.
    pub internal: bool,
    /// Shown only.
    pub attachable: bool,
    /// Shown only.
    pub ingress: bool,
    /// `local`, or as given.
    pub scope: String,
    /// Unset: the default.
    pub enable_ipv4: Option<bool>,
    /// Unset: the default.
    pub enable_ipv6: Option<bool>,
    /// IPAM driver, "" is `default`.
    pub ipam_driver: String,
    /// IPAM options.
    pub ipam_options: BTreeMap<String, String>,
    /// The client sent IPAM options, be they empty.
    #[serde(default)]
    pub ipam_options_given: bool,
    /// Pools as given.
    pub ipam_pools: Vec<ShownPool>,
    /// Driver options.
    pub options: BTreeMap<String, String>,
    /// Labels.
    pub labels: BTreeMap<String, String>,
    /// A configuration-only network.
    pub config_only: bool,
    /// Name of the configuration network this one copies.
    pub config_from: String,
}

/// One IPAM entry in the client's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ShownPool {
    /// CIDR.
    pub subnet: String,
    /// CIDR inside the subnet.
    pub ip_range: String,
    /// Address.
    pub gateway: String,
    /// Reserved addresses by name.
    pub auxiliary: BTreeMap<String, String>,
}

/// IPv4 addressing of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolV4 {
    /// Subnet, without host bits.
    pub subnet: Ipv4Net,
    /// The router's address.
    pub gateway: Ipv4Addr,
    /// Inclusive ranges that OVN must not allocate from.
    pub exclude: Vec<(Ipv4Addr, Ipv4Addr)>,
    /// Whether the client named the subnet: only then may `--ip` be used.
    pub user_defined: bool,
}

impl PoolV4 {
    /// Whether `address` can be a container's: inside, not network, broadcast or gateway.
    #[must_use]
    pub fn is_host(&self, address: Ipv4Addr) -> bool {
        let edge =
            self.subnet.prefix_len() < 31 && (address == self.subnet.network() || address == self.subnet.broadcast());
        self.subnet.contains(&address) && !edge && address != self.gateway
    }
}

/// IPv6 addressing of a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PoolV6 {
    /// Subnet, without host bits.
    pub subnet: Ipv6Net,
    /// The router's address.
    pub gateway: Ipv6Addr,
    /// Part of the subnet that OVN allocates from; none: all of it.
    #[serde(default)]
    pub range: Option<Ipv6Net>,
    /// Addresses that OVN must not allocate, the gateway apart.
    #[serde(default)]
    pub exclude: Vec<Ipv6Addr>,
    /// Whether the client named the subnet: only then may `--ip6` be used.
    pub user_defined: bool,
}

impl PoolV6 {
    /// Whether `address` can be a container's: inside, not the subnet's first one, and not set apart.
    #[must_use]
    pub fn is_host(&self, address: Ipv6Addr) -> bool {
        let own = address == self.subnet.network() || address == self.gateway;
        self.subnet.contains(&address) && !own && !self.exclude.contains(&address)
    }
}

/// A network as stored.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Network {
    /// Identifier.
    pub id: NetworkId,
    /// As asked for.
    pub spec: Spec,
    /// Nanoseconds since the Unix epoch.
    pub created_at_ns: i64,
    /// Who carries it.
    pub kind: Kind,
    /// IPv4, if any.
    pub v4: Option<PoolV4>,
    /// IPv6, if any.
    pub v6: Option<PoolV6>,
    /// Pools as inspect shows them: given ones as given, allocated ones after.
    pub shown_pools: Vec<ShownPool>,
    /// IPv4 is on.
    pub enable_ipv4: bool,
    /// IPv6 is on.
    pub enable_ipv6: bool,
    /// Embedded DNS answers names of endpoints.
    pub dns: bool,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// Containers of this network may talk to each other.
    pub inter_container: bool,
    /// Source NAT to the uplink.
    pub masquerade: bool,
    /// One of the three that are always there.
    pub predefined: bool,
    /// Generation the helper's agent knows it by.
    pub generation: u64,
}

/// How a network's endpoints and the outside reach each other, in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Endpoints keep their addresses on the way out.
    pub keep_source: bool,
    /// This host has a route to them, and says who comes in by it.
    pub direct: bool,
    /// So do other networks (gateway mode `routed`).
    pub open: bool,
}

impl Network {
    /// What the options say of one family.
    #[must_use]
    pub fn reach(&self, is_v4: bool) -> Reach {
        let has = if is_v4 { self.v4.is_some() } else { self.v6.is_some() };
        if !has || self.kind != Kind::Ovs || self.spec.internal {
            return Reach::default();
        }
        let (given, mode) = (&self.spec.options, options::mode(&self.spec.options, is_v4));
        let keep_source = mode == Mode::Routed || !self.masquerade || options::source(given, is_v4).is_some();
        let direct = keep_source || mode == Mode::Unprotected || !options::trusted(given).is_empty();
        Reach { keep_source, direct, open: mode == Mode::Routed }
    }

    /// The family in which there is an address for the gateway and none for an endpoint.
    #[must_use]
    pub fn without_room(&self) -> Option<&'static str> {
        let v4 = self.v4.as_ref().filter(|v4| v4.subnet.prefix_len() > 31).map(|_| "IPv4");
        v4.or_else(|| self.v6.as_ref().filter(|v6| v6.subnet.prefix_len() > 126).map(|_| "IPv6"))
    }

    /// Name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.spec.name
    }

    /// Next hop of the IPv4 default route; none on internal networks.
    #[must_use]
    pub fn route_v4(&self) -> Option<Ipv4Addr> {
        self.v4.as_ref().filter(|_| !self.spec.internal).map(|pool| pool.gateway)
    }

    /// Next hop of the IPv6 default route; none on internal networks.
    #[must_use]
    pub fn route_v6(&self) -> Option<Ipv6Addr> {
        self.v6.as_ref().filter(|_| !self.spec.internal).map(|pool| pool.gateway)
    }

    /// Containers of this network know each other by name: by embedded DNS, or by lines in their hosts files.
    #[must_use]
    pub fn has_names(&self) -> bool {
        self.dns || (self.kind == Kind::Vmnet && !self.predefined)
    }

    /// "ovs", "vmnet", or "" for host, none and configuration networks.
    #[must_use]
    pub fn backend(&self) -> &'static str {
        match self.kind {
            Kind::Ovs => "ovs",
            Kind::Vmnet => "vmnet",
            Kind::Host | Kind::None | Kind::Config => "",
        }
    }
}
