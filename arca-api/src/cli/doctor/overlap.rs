// SPDX-License-Identifier: Apache-2.0
//! Networks whose addresses the host also routes elsewhere: another tool's networks, a VPN, an office.

use std::process::Command;

use ipnet::IpNet;
use serde_json::Value;

use super::Finding;

/// A network and its subnets.
pub(super) struct Subnets {
    pub(super) name: String,
    pub(super) subnets: Vec<IpNet>,
}

/// A route of the host: where to, and through which interface.
#[derive(Debug, PartialEq, Eq)]
struct Route {
    to: IpNet,
    interface: String,
}

/// Compares with the host's routing table; interfaces whose name has `tag` in it are the engine's own.
pub(super) fn look(networks: &[Subnets], tag: &str) -> Vec<Finding> {
    let mut routes = Vec::new();
    for family in ["-4", "-6"] {
        match Command::new("ip").args(["-json", family, "route", "show"]).output() {
            Ok(output) if output.status.success() => routes.extend(parse(&output.stdout)),
            // A host without IPv6, or without `ip`, which another check names.
            _ => {}
        }
    }
    let own = |route: &Route| route.interface.contains(tag);
    routes.retain(|route| !own(route));
    let found: Vec<Finding> = networks.iter().flat_map(|network| compare(network, &routes)).collect();
    if found.is_empty() {
        return vec![Finding::good("addresses", "no network overlaps a route of this host")];
    }
    found
}

fn parse(json: &[u8]) -> Vec<Route> {
    let routes: Vec<Value> = serde_json::from_slice(json).unwrap_or_default();
    let route = |value: &Value| {
        let to = value["dst"].as_str()?;
        // A host route has no length; "default" is no network.
        let to = to.parse::<IpNet>().ok().or_else(|| to.parse::<std::net::IpAddr>().ok().map(IpNet::from))?;
        Some(Route { to, interface: value["dev"].as_str().unwrap_or("?").to_owned() })
    };
    routes.iter().filter_map(route).filter(|route| !is_link_local(&route.to)).collect()
}

/// Every interface has these; nobody is reached through them.
fn is_link_local(net: &IpNet) -> bool {
    match net {
        IpNet::V4(net) => net.addr().is_link_local(),
        IpNet::V6(net) => net.addr().is_unicast_link_local() || net.addr().is_multicast(),
    }
}

fn compare(network: &Subnets, routes: &[Route]) -> Vec<Finding> {
    let overlap = |subnet: &IpNet, route: &Route| subnet.contains(&route.to) || route.to.contains(subnet);
    let mut findings = Vec::new();
    for subnet in &network.subnets {
        for route in routes.iter().filter(|route| overlap(subnet, route)) {
            findings.push(Finding::odd(
                "addresses",
                format!(
                    "network {} ({subnet}) and this host's route to {} ({}) overlap: its containers do not reach what is \
                     there",
                    network.name, route.to, route.interface
                ),
                "make the network anew with `docker network create --subnet`, or set addressPools for new ones",
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUTES: &[u8] = br#"[{"dst":"default","gateway":"10.0.0.1","dev":"eth0"},{"dst":"10.8.0.0/16","dev":"tun0"},
        {"dst":"172.18.3.7","dev":"eth0"},{"dst":"fe80::/64","dev":"eth0"}]"#;

    fn network(subnet: &str) -> Subnets {
        Subnets { name: "n".into(), subnets: vec![subnet.parse().expect("a subnet")] }
    }

    #[test]
    fn routes_are_read_without_the_default_and_link_local_ones() {
        let routes = parse(ROUTES);
        let seen: Vec<String> = routes.iter().map(|route| format!("{} {}", route.to, route.interface)).collect();
        assert_eq!(seen, ["10.8.0.0/16 tun0", "172.18.3.7/32 eth0"]);
        assert!(parse(b"no json").is_empty());
    }

    #[test]
    fn an_overlap_is_found_whichever_is_the_larger() {
        let routes = parse(ROUTES);
        assert_eq!(compare(&network("10.8.4.0/24"), &routes).len(), 1);
        assert_eq!(compare(&network("10.0.0.0/8"), &routes).len(), 1);
        assert_eq!(compare(&network("172.18.0.0/16"), &routes).len(), 1);
        assert!(compare(&network("172.19.0.0/16"), &routes).is_empty());
    }
}
