// SPDX-License-Identifier: Apache-2.0
//! `POST /networks/create`, whole: checks in moby's order, then the network with its pools.

use std::{collections::BTreeMap, net::Ipv4Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use super::{
    ipam::{self, OVERLAP, Pools},
    options::{self, parse_bool},
};
use crate::{
    backend::vmnet,
    error::{Error, Result},
    model::{Kind, Network, NetworkId, ShownPool, Spec},
    pools::{self, AddressPool},
    store::State,
};

/// What a network is made with besides the request.
#[derive(Clone, Debug)]
pub struct Context {
    /// Identifier of the new network.
    pub id: NetworkId,
    /// Nanoseconds since the Unix epoch.
    pub now_ns: i64,
    /// Unique local /48 of this engine, for IPv6 subnets nobody named.
    pub unique_local: Ipv6Net,
    /// Where subnets nobody named come from.
    pub pools: Vec<AddressPool>,
    /// Routes and nameservers of the host.
    pub host: Vec<Ipv4Net>,
    /// IPv6 routes of the host.
    pub host_v6: Vec<Ipv6Net>,
    /// The helper's uplink network: no network may have it.
    pub uplink: Ipv4Net,
    /// Its IPv6 side.
    pub uplink_v6: Option<Ipv6Net>,
    /// The kernel has IPv6.
    pub ipv6: bool,
    /// This host can have routes to networks of the ovs backend.
    pub routes: bool,
    /// What "" and "bridge" mean.
    pub default_kind: DefaultKind,
}

/// Backend of networks that name none (config `networkBackend`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultKind {
    /// OVN.
    Ovs,
    /// The platform's native switch.
    Vmnet,
}

impl DefaultKind {
    /// The kind of network it stands for.
    #[must_use]
    pub const fn kind(self) -> Kind {
        match self {
            Self::Ovs => Kind::Ovs,
            Self::Vmnet => Kind::Vmnet,
        }
    }
}

/// Checks `spec` against `state` and makes the network. `generation` of the result is 0.
///
/// # Errors
/// Docker's refusals.
pub fn network(mut spec: Spec, state: &State, context: &Context) -> Result<Network> {
    if spec.name.trim().is_empty() {
        return Err(Error::Invalid("invalid name: name is empty".into()));
    }
    if matches!(spec.name.as_str(), "bridge" | "host" | "none" | "default") {
        return Err(Error::Forbidden(format!("operation is not permitted on predefined {} network ", spec.name)));
    }
    if state.networks.values().any(|network| network.name() == spec.name) {
        return Err(Error::Conflict(format!("network with name {} already exists", spec.name)));
    }
    if spec.config_only {
        // Whatever driver is named.
        spec.driver = String::new();
    }
    let mut kind = kind_of(&mut spec, context.default_kind)?;
    if spec.ingress {
        return Err(Error::Forbidden("Ingress network can only be global scope network".into()));
    }
    if spec.scope == "swarm" {
        return Err(Error::Forbidden("cannot create a swarm scoped network when swarm is not active".into()));
    }
    configuration_only(&spec)?;
    if spec.scope.is_empty() {
        spec.scope = "local".into();
    }
    if !matches!(spec.ipam_driver.as_str(), "" | "default") {
        return Err(Error::NotFound(format!("plugin \"{}\" not found", spec.ipam_driver)));
    }
    copy_configuration(&mut spec, state)?;
    let enable_ipv4 = switch(spec.enable_ipv4, "com.docker.network.enable_ipv4", &mut spec, true)?;
    let enable_ipv6 = switch(spec.enable_ipv6, "com.docker.network.enable_ipv6", &mut spec, false)?;
    if !enable_ipv4 && !enable_ipv6 {
        return Err(Error::Invalid("IPv4 or IPv6 must be enabled".into()));
    }
    if enable_ipv6 && !spec.config_only && !context.ipv6 {
        return Err(Error::Unsupported(NO_IPV6.into()));
    }
    let mut found = ipam::check(&spec.ipam_pools, enable_ipv6)?;
    // A configuration is checked where it is used.
    let unchecked = BTreeMap::new();
    let options = if spec.config_only { &unchecked } else { &spec.options };
    let checked = options::check(options, spec.internal, kind == Kind::Ovs && context.routes)?;
    bridge_name(&spec, state, context)?;
    let mut shown_pools = spec.ipam_pools.clone();
    if spec.config_only {
        kind = Kind::Config;
        spec.driver = "null".into();
        found = Pools::default();
    } else {
        if !enable_ipv4 {
            // Shown in the network's IPAM, otherwise without effect.
            found.v4 = None;
        }
        // The host's own routes are in the way of a network that the host itself carries.
        let in_the_way = found
            .v4
            .as_ref()
            .is_some_and(|v4| context.host.iter().any(|net| pools::overlap(net, &v4.subnet)))
            || found.v6.as_ref().is_some_and(|v6| context.host_v6.iter().any(|net| pools::overlap_v6(net, &v6.subnet)));
        if kind == Kind::Vmnet && in_the_way {
            return Err(Error::Forbidden(OVERLAP.into()));
        }
        complete(&mut found, &mut shown_pools, (enable_ipv4, enable_ipv6), &spec.scope, state, context)?;
        // RFC 8200 section 5: no link with IPv6 has less.
        if found.v6.is_some() && checked.mtu < 1280 {
            return Err(Error::Invalid(format!("invalid MTU number: {} (IPv6 needs 1280)", checked.mtu)));
        }
    }
    let network = Network {
        id: context.id.clone(),
        spec,
        created_at_ns: context.now_ns,
        kind,
        v4: found.v4,
        v6: found.v6,
        shown_pools,
        enable_ipv4,
        enable_ipv6,
        dns: kind == Kind::Ovs,
        mtu: checked.mtu,
        inter_container: checked.inter_container,
        masquerade: checked.masquerade,
        predefined: false,
        generation: 0,
    };
    // The host's own routes are in the way of one that it is to have to a network.
    let met4 = |subnet: &Ipv4Net| context.host.iter().any(|net| pools::overlap(net, subnet));
    let met6 = |subnet: &Ipv6Net| context.host_v6.iter().any(|net| pools::overlap_v6(net, subnet));
    if network.v4.as_ref().is_some_and(|v4| network.reach(true).direct && met4(&v4.subnet))
        || network.v6.as_ref().is_some_and(|v6| network.reach(false).direct && met6(&v6.subnet))
    {
        return Err(Error::Forbidden(OVERLAP.into()));
    }
    Ok(network)
}

/// Which backend the driver means; sets the driver's shown name.
fn kind_of(spec: &mut Spec, default_kind: DefaultKind) -> Result<Kind> {
    match spec.driver.as_str() {
        "" | "bridge" => {
            spec.driver = "bridge".into();
            Ok(default_kind.kind())
        }
        "ovs" => Ok(Kind::Ovs),
        "vmnet" => Ok(Kind::Vmnet),
        "overlay" if default_kind == DefaultKind::Vmnet => Err(Error::Unsupported(vmnet::NO_OVERLAY.into())),
        driver @ ("host" | "null") => {
            Err(Error::Forbidden(format!("only one instance of \"{driver}\" network is allowed")))
        }
        // Docker's answer where there is no swarm; there is none here.
        "overlay" => Err(Error::Forbidden(NO_SWARM.into())),
        driver @ ("macvlan" | "ipvlan") => Err(not_yet(driver)),
        driver => Err(Error::NotFound(format!("plugin \"{driver}\" not found"))),
    }
}

const NO_IPV6: &str =
    "IPv6 is not available: this host's kernel has none (is it switched off by ipv6.disable=1, or the module missing?)";
const NO_SWARM: &str = "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.";

fn not_yet(driver: &str) -> Error {
    Error::Unsupported(format!("network driver \"{driver}\" is not supported yet; use the ovs backend (driver bridge)"))
}

fn copy_configuration(spec: &mut Spec, state: &State) -> Result<()> {
    if spec.config_from.is_empty() {
        return Ok(());
    }
    let from = state.networks.values().find(|network| network.name() == spec.config_from);
    let Some(from) = from.filter(|network| network.kind == Kind::Config) else {
        return Err(Error::NotFound(format!("configuration network \"{}\" does not exist", spec.config_from)));
    };
    let own = !spec.ipam_pools.is_empty() || !spec.ipam_options.is_empty() || !spec.labels.is_empty();
    if own || spec.enable_ipv6 == Some(true) {
        return Err(Error::Forbidden(
            "user specified configurations are not supported if the network depends on a configuration network".into(),
        ));
    }
    if !spec.options.is_empty() {
        return Err(Error::Forbidden(
            "network driver options are not supported if the network depends on a configuration network".into(),
        ));
    }
    spec.ipam_pools.clone_from(&from.spec.ipam_pools);
    spec.ipam_options.clone_from(&from.spec.ipam_options);
    spec.ipam_options_given = from.spec.ipam_options_given;
    spec.options.clone_from(&from.spec.options);
    spec.enable_ipv6 = from.spec.enable_ipv6;
    spec.labels.clone_from(&from.spec.labels);
    Ok(())
}

/// What a configuration network cannot have.
fn configuration_only(spec: &Spec) -> Result<()> {
    if !spec.config_only {
        return Ok(());
    }
    if spec.internal || spec.attachable || !spec.scope.is_empty() {
        return Err(Error::Forbidden(
            "configuration network can only contain network specific fields. Network operator fields like [ ingress | internal | attachable | scope ] are not supported.".into(),
        ));
    }
    if !spec.config_from.is_empty() {
        return Err(Error::Forbidden("a configuration network cannot depend on another configuration network".into()));
    }
    Ok(())
}

/// Nothing here has a bridge of that name, but two networks that claim one would be in each other's way with Docker.
fn bridge_name(spec: &Spec, state: &State, context: &Context) -> Result<()> {
    const KEY: &str = "com.docker.network.bridge.name";
    let Some(name) = spec.options.get(KEY).filter(|name| !spec.config_only && !name.is_empty()) else { return Ok(()) };
    // dev_valid_name() of Linux.
    if matches!(name.as_str(), "." | "..") || name.contains(['/', ':']) || name.contains(char::is_whitespace) {
        return Err(Error::Failed("invalid argument".into()));
    }
    let other =
        state.networks.values().find(|other| other.kind != Kind::Config && other.spec.options.get(KEY) == Some(name));
    other.map_or(Ok(()), |other| {
        Err(Error::Forbidden(format!(
            "cannot create network {} ({name}): conflicts with network {} ({name}): networks have same bridge name",
            context.id, other.id
        )))
    })
}

fn switch(field: Option<bool>, key: &str, spec: &mut Spec, default: bool) -> Result<bool> {
    match (field, spec.options.get(key)) {
        (Some(value), _) => {
            // The option does not count beside the field, so it is not shown either.
            spec.options.remove(key);
            Ok(value)
        }
        (None, Some(text)) => {
            parse_bool(text).ok_or_else(|| Error::Invalid(format!("driver-opt \"{key}\" is not a valid bool")))
        }
        (None, None) => Ok(default),
    }
}

/// Refuses overlaps, allocates what was not given.
fn complete(
    found: &mut Pools,
    shown: &mut Vec<ShownPool>,
    (enable_ipv4, enable_ipv6): (bool, bool),
    scope: &str,
    state: &State,
    context: &Context,
) -> Result<()> {
    let mut taken: Vec<Ipv4Net> = state.networks.values().filter_map(|n| n.v4.as_ref()).map(|v4| v4.subnet).collect();
    taken.push(context.uplink);
    if let Some(v4) = &found.v4 {
        if taken.iter().any(|net| pools::overlap(net, &v4.subnet)) {
            return Err(Error::Forbidden(OVERLAP.into()));
        }
    } else if enable_ipv4 {
        taken.extend(&context.host);
        // Docker keeps other pools for networks of global scope.
        let global = [AddressPool { base: Ipv4Net::new_assert(Ipv4Addr::new(10, 0, 0, 0), 8), size: 24 }];
        let pools = if scope == "global" { &global[..] } else { &context.pools };
        let subnet = pools::first_free(pools, &taken)
            .ok_or_else(|| Error::Invalid("all predefined address pools have been fully subnetted".into()))?;
        let pool = ipam::default_v4(subnet, ipam::first_host(subnet), false);
        shown.push(shown_pool(&subnet, &pool.gateway));
        found.v4 = Some(pool);
    }
    let mut taken: Vec<Ipv6Net> = state.networks.values().filter_map(|n| n.v6.as_ref()).map(|v6| v6.subnet).collect();
    taken.extend(context.uplink_v6);
    if let Some(v6) = &found.v6 {
        if taken.iter().any(|net| pools::overlap_v6(net, &v6.subnet)) {
            return Err(Error::Forbidden(OVERLAP.into()));
        }
    } else if enable_ipv6 {
        taken.extend(&context.host_v6);
        let subnet = pools::first_free_v6(context.unique_local, &taken)
            .ok_or_else(|| Error::Invalid("all predefined address pools have been fully subnetted".into()))?;
        let pool = ipam::default_v6(subnet, false);
        shown.push(shown_pool(&subnet, &pool.gateway));
        found.v6 = Some(pool);
    }
    Ok(())
}

fn shown_pool(subnet: &impl ToString, gateway: &impl ToString) -> ShownPool {
    ShownPool { subnet: subnet.to_string(), gateway: gateway.to_string(), ..ShownPool::default() }
}

#[cfg(test)]
pub(crate) mod tests;
