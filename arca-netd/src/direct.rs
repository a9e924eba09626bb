// SPDX-License-Identifier: Apache-2.0
//! Networks whose endpoints the outside reaches by their own addresses, or sees them: what this host lets in, and where it
//! leads. A pure plan of the stored state; [`crate::helper::host`] makes the host's routes and rules follow it.
//!
//! | option of a network | its endpoints outside | new connections from outside |
//! |---|---|---|
//! | gateway mode `routed` | own addresses | to published ports, and echo requests |
//! | gateway mode `nat-unprotected` | hidden | to every port |
//! | `enable_ip_masquerade=false` | own addresses | none: answers only |
//! | `host_ipv4`, `host_ipv6` | that address of the host | none: answers only |
//! | `trusted_host_interfaces` | hidden | to published ports, by these interfaces |
//!
//! The packet filter of the host is the one that knows connections, so OVN leaves these subnets to it.

use std::{collections::BTreeSet, net::IpAddr};

use ipnet::IpNet;

use crate::{
    model::{Network, Protocol},
    store::State,
    validate::options::{self, Mode},
};

/// What the host does for such networks. Sets, so that two plans can be compared.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Subnets that the host has a route to, by the helper's router.
    pub routes: BTreeSet<IpNet>,
    /// Those whose endpoints keep their addresses on the way out.
    pub kept: BTreeSet<IpNet>,
    /// Those where everything is let in.
    pub unprotected: BTreeSet<IpNet>,
    /// Those where echo requests are let in, and which other networks reach.
    pub routed: BTreeSet<IpNet>,
    /// Source addresses on the way out.
    pub sources: BTreeSet<(IpNet, IpAddr)>,
    /// Ports that are let in from everywhere.
    pub ports: BTreeSet<Port>,
    /// Ports that are let in from one interface.
    pub trusted: BTreeSet<(String, Port)>,
}

/// A port of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Port {
    /// The endpoint's address.
    pub address: IpAddr,
    /// Protocol.
    pub protocol: Protocol,
    /// Number.
    pub number: u16,
}

impl Plan {
    /// Of everything that is stored.
    #[must_use]
    pub fn of(state: &State) -> Self {
        let mut plan = Self::default();
        for network in state.networks.values() {
            let v4 = network.v4.as_ref().map(|v4| IpNet::V4(v4.subnet));
            let v6 = network.v6.as_ref().map(|v6| IpNet::V6(v6.subnet));
            for subnet in v4.into_iter().chain(v6) {
                plan.add(network, subnet);
            }
        }
        for publication in state.publications.values() {
            let endpoint = publication.endpoint.as_ref().and_then(|id| state.endpoints.get(id));
            let Some(endpoint) = endpoint else { continue };
            let Some(network) = state.networks.get(&endpoint.network) else { continue };
            let v4 = endpoint.address_v4.map(|net| IpAddr::V4(net.addr()));
            let v6 = endpoint.address_v6.map(|net| IpAddr::V6(net.addr()));
            for address in v4.into_iter().chain(v6) {
                let port = Port { address, protocol: publication.protocol, number: publication.container_port };
                if !network.reach(address.is_ipv4()).direct {
                    continue;
                }
                if options::mode(&network.spec.options, address.is_ipv4()) == Mode::Routed {
                    plan.ports.insert(port);
                }
                let trusted = options::trusted(&network.spec.options);
                plan.trusted.extend(trusted.into_iter().map(|interface| (interface, port)));
            }
        }
        plan
    }

    fn add(&mut self, network: &Network, subnet: IpNet) {
        let is_v4 = matches!(subnet, IpNet::V4(_));
        let reach = network.reach(is_v4);
        if !reach.direct {
            return;
        }
        self.routes.insert(subnet);
        if reach.keep_source {
            self.kept.insert(subnet);
        }
        match options::mode(&network.spec.options, is_v4) {
            Mode::Unprotected => drop(self.unprotected.insert(subnet)),
            Mode::Routed => drop(self.routed.insert(subnet)),
            Mode::Nat | Mode::Isolated => {}
        }
        if let Some(source) =
            options::source(&network.spec.options, is_v4).filter(|_| network.masquerade && !reach.open)
        {
            self.sources.insert((subnet, source));
        }
    }

    /// Rules of the chain where source addresses are changed, before those of the engine; `net` is the uplink's network.
    #[must_use]
    pub fn sources_script(&self, chain: &str, family: &str, interface: &str, net: &str) -> String {
        let own = |subnet: &IpNet| is_of(family, subnet.addr());
        let mut script = String::new();
        for subnet in self.kept.iter().filter(|subnet| own(subnet)) {
            // What turns back here must come back here.
            script += &format!("add rule {chain} {family} saddr {subnet} oifname \"{interface}\" masquerade\n");
        }
        for subnet in self.routed.iter().filter(|subnet| own(subnet)) {
            // Of another network, and hidden already: the router would not take its own address for a source.
            script += &format!(
                "add rule {chain} {family} saddr {net} {family} daddr {subnet} oifname \"{interface}\" masquerade\n"
            );
        }
        for (subnet, source) in self.sources.iter().filter(|(subnet, _)| own(subnet)) {
            script +=
                &format!("add rule {chain} {family} saddr {subnet} oifname != \"{interface}\" snat to {source}\n");
        }
        script
    }

    /// Rules of the chain that guards the way in, before those of the engine.
    #[must_use]
    pub fn guard_script(&self, chain: &str, family: &str, interface: &str) -> String {
        let own = |address: IpAddr| is_of(family, address);
        let mut script = String::new();
        for subnet in self.routes.iter().filter(|subnet| own(subnet.addr())) {
            script += &format!("add rule {chain} iifname != \"{interface}\" {family} saddr {subnet} drop\n");
        }
        let mut accept = |condition: String| {
            script += &format!("add rule {chain} oifname \"{interface}\" {condition} accept\n");
        };
        for subnet in self.unprotected.iter().filter(|subnet| own(subnet.addr())) {
            accept(format!("{family} daddr {subnet}"));
        }
        let echo = if family == "ip" { "icmp type echo-request" } else { "icmpv6 type echo-request" };
        for subnet in self.routed.iter().filter(|subnet| own(subnet.addr())) {
            accept(format!("{family} daddr {subnet} {echo}"));
        }
        for port in self.ports.iter().filter(|port| own(port.address)) {
            accept(port.condition(family));
        }
        for (from, port) in self.trusted.iter().filter(|(_, port)| own(port.address)) {
            accept(format!("iifname \"{from}\" {}", port.condition(family)));
        }
        script
    }
}

fn is_of(family: &str, address: IpAddr) -> bool {
    address.is_ipv4() == (family == "ip")
}

impl Port {
    fn condition(&self, family: &str) -> String {
        format!("{family} daddr {} {} dport {}", self.address, self.protocol, self.number)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::{
        model::{ShownPool, Spec},
        store::Draft,
        validate::create::tests::make,
    };

    fn state(options: &[(&str, &str)]) -> Draft {
        let mut draft = Draft::new(State::default());
        let options: BTreeMap<_, _> =
            options.iter().map(|(key, value)| (format!("com.docker.network.{key}"), (*value).to_owned())).collect();
        let pool = |subnet: &str| ShownPool { subnet: subnet.into(), ..ShownPool::default() };
        let ipam_pools = vec![pool("10.91.0.0/24"), pool("fd00:91::/64")];
        let spec = Spec { name: "n".into(), options, ipam_pools, enable_ipv6: Some(true), ..Spec::default() };
        let network = make(spec, &draft).unwrap();
        draft.put_network(network);
        draft
    }

    fn scripts(options: &[(&str, &str)]) -> (String, String, Plan) {
        let plan = Plan::of(&state(options));
        (plan.sources_script("C", "ip", "up", "192.168.127.0/29"), plan.guard_script("C", "ip", "up"), plan)
    }

    #[test]
    fn ordinary_networks_need_nothing_of_the_host() {
        let (sources, guard, plan) = scripts(&[("bridge.gateway_mode_ipv4", "nat")]);
        assert_eq!((sources.as_str(), guard.as_str(), plan), ("", "", Plan::default()));
    }

    #[test]
    fn each_option_has_its_rules() {
        let (sources, guard, plan) = scripts(&[("bridge.gateway_mode_ipv4", "routed")]);
        assert_eq!(plan.routes, BTreeSet::from(["10.91.0.0/24".parse().unwrap()]));
        assert!(sources.starts_with("add rule C ip saddr 10.91.0.0/24 oifname \"up\" masquerade\n"), "{sources}");
        assert!(
            sources.contains("saddr 192.168.127.0/29 ip daddr 10.91.0.0/24 oifname \"up\" masquerade"),
            "{sources}"
        );
        assert!(guard.contains("icmp type echo-request accept") && guard.contains("drop"), "{guard}");
        let (sources, guard, _) = scripts(&[("bridge.gateway_mode_ipv4", "nat-unprotected")]);
        assert_eq!(sources, "");
        assert!(guard.ends_with("add rule C oifname \"up\" ip daddr 10.91.0.0/24 accept\n"), "{guard}");
        let (sources, guard, plan) = scripts(&[("bridge.enable_ip_masquerade", "false")]);
        assert!(!guard.contains("accept") && sources.contains("masquerade"), "{sources}{guard}");
        assert_eq!(plan.kept.len(), 2);
        let (sources, guard, _) = scripts(&[("host_ipv4", "192.0.2.22")]);
        assert!(sources.ends_with("ip saddr 10.91.0.0/24 oifname != \"up\" snat to 192.0.2.22\n"), "{sources}");
        assert!(!guard.contains("accept"), "{guard}");
        let plan = scripts(&[("bridge.gateway_mode_ipv6", "routed"), ("host_ipv6", "fd00::1")]).2;
        assert_eq!((plan.routed.len(), plan.sources.len()), (1, 0));
        assert!(plan.guard_script("C", "ip6", "up").contains("icmpv6 type echo-request accept"));
    }
}
