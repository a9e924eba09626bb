// SPDX-License-Identifier: Apache-2.0
//! Rows of one network and of the endpoints on it. Called by [`super::rows::rows`].

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::address::{Addresses, MacAddr, reverse_name};
use super::model::{Config, Declared, Endpoint, Network, Protocol};
use super::rows::{Owner, RouterParts, Rows, SUBNETS4, SUBNETS6, Table, acl, fold};
use crate::ovsdb::{Atom, Value};

/// Endpoints of a network with the addresses they have.
pub(super) type Members<'a> = Vec<(&'a Declared<Endpoint>, Addresses)>;

/// Seconds; the workload's client never needs to renew within a day.
const LEASE: &str = "86400";

pub(super) fn rows(
    rows: &mut Rows,
    config: &Config,
    network: &Declared<Network>,
    members: &Members<'_>,
    services: &Atom,
    router: &mut RouterParts,
) {
    let n = &network.object;
    let owner = Owner { id: n.id.as_str(), generation: network.generation, network: Some(&n.id) };
    let short = n.id.short();
    let mac = MacAddr::of_router(fold(n.id.as_str().as_bytes()));

    router.ports.push(router_port(rows, owner, n, mac));
    if n.masquerade && !n.internal {
        router.nat.push(rows.add(
            owner,
            Table::Nat,
            "snat",
            [
                ("type", "snat".into()),
                ("external_ip", config.router.address.to_string().into()),
                ("logical_ip", n.subnet.to_string().into()),
                // The resolver answers by who asks, so it must see the container's own address.
                ("exempted_ext_ips", services.clone().into()),
            ],
        ));
    }
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        let vip = format!("{}:53", n.gateway);
        let target = format!("{}:53", config.resolver.address);
        // On the router, never on the switch: there the translation would come before OVN's own answers.
        router.load_balancers.push(rows.add(
            owner,
            Table::LoadBalancer,
            &format!("dns-{}", protocol.as_str()),
            [
                ("name", format!("dns-{short}-{}", protocol.as_str()).into()),
                ("protocol", protocol.as_str().into()),
                ("vips", Value::map([(vip, target)])),
            ],
        ));
    }

    let dhcp4 = dhcp4(rows, owner, n, mac);
    let dhcp6 = n.v6.map(|v6| {
        rows.add(
            owner,
            Table::DhcpOptions,
            "dhcp6",
            [("cidr", v6.subnet.to_string().into()), ("options", Value::map([("server_id", mac.to_string())]))],
        )
    });
    let dns_records = n.dns.then(|| rows.add(owner, Table::Dns, "dns", [("records", Value::map(records(n, members)))]));

    let ports: Vec<Atom> =
        members.iter().map(|(e, addresses)| endpoint(rows, n, e, *addresses, &dhcp4, dhcp6.as_ref())).collect();
    let acls = isolation(rows, owner, config, n);
    rows.add(
        owner,
        Table::PortGroup,
        "group",
        [("name", group(n).into()), ("ports", Value::set(ports.clone())), ("acls", Value::set(acls))],
    );

    let to_router = rows.add(
        owner,
        Table::LogicalSwitchPort,
        "router",
        [
            ("name", format!("{short}-gw").into()),
            ("type", "router".into()),
            ("addresses", "router".into()),
            ("port_security", Value::empty()),
            ("options", Value::map([("router-port", format!("gw-{short}"))])),
            ("dhcpv4_options", Value::empty()),
            ("dhcpv6_options", Value::empty()),
        ],
    );
    rows.add(
        owner,
        Table::LogicalSwitch,
        "switch",
        [
            ("name", format!("net-{short}").into()),
            ("other_config", Value::map(n.addressing())),
            ("ports", Value::set(ports.into_iter().chain([to_router]))),
            ("acls", Value::empty()),
            ("dns_records", Value::set(dns_records)),
        ],
    );
}

fn group(n: &Network) -> String {
    format!("net_{}", n.id.short())
}

fn router_port(rows: &mut Rows, owner: Owner<'_>, n: &Network, mac: MacAddr) -> Atom {
    let mut networks = vec![format!("{}/{}", n.gateway, n.subnet.prefix())];
    let mut advertise = BTreeMap::new();
    if let Some(v6) = n.v6 {
        networks.push(format!("{}/64", v6.gateway));
        // Advertisements carry a default route, which an internal network must not have.
        if !n.internal {
            advertise.insert("address_mode", "dhcpv6_stateful".to_owned());
            advertise.insert("send_periodic", "true".to_owned());
            advertise.insert("mtu", n.mtu.to_string());
        }
    }
    rows.add(
        owner,
        Table::LogicalRouterPort,
        "router-port",
        [
            ("name", format!("gw-{}", n.id.short()).into()),
            ("mac", mac.to_string().into()),
            ("networks", Value::set(networks)),
            ("ipv6_ra_configs", Value::map(advertise)),
        ],
    )
}

fn dhcp4(rows: &mut Rows, owner: Owner<'_>, n: &Network, mac: MacAddr) -> Atom {
    let gateway = n.gateway.to_string();
    let mut options = BTreeMap::from([
        ("server_id", gateway.clone()),
        ("server_mac", mac.to_string()),
        ("lease_time", LEASE.to_owned()),
        ("dns_server", gateway.clone()),
        ("mtu", n.mtu.to_string()),
    ]);
    if !n.internal {
        options.insert("router", gateway);
    }
    rows.add(
        owner,
        Table::DhcpOptions,
        "dhcp4",
        [("cidr", n.subnet.to_string().into()), ("options", Value::map(options))],
    )
}

/// Dropping ACLs on the port group. All are evaluated before the router's DNAT, so published ports keep working.
fn isolation(rows: &mut Rows, owner: Owner<'_>, config: &Config, n: &Network) -> Vec<Atom> {
    let (pg, subnet, gateway) = (group(n), n.subnet, n.gateway);
    let inside6 = n.v6.map(|v6| v6.subnet.to_string());
    let other4 = format!("inport == @{pg} && ip4.dst == ${SUBNETS4} && ip4.dst != {subnet}");
    let mut other6 = format!("inport == @{pg} && ip6.dst == ${SUBNETS6}");
    if let Some(inside) = &inside6 {
        other6 += &format!(" && ip6.dst != {inside}");
    }
    let mut acls = vec![
        acl(rows, owner, "isolate4", "from-lport", 2000, other4),
        acl(rows, owner, "isolate6", "from-lport", 2000, other6),
    ];
    // Published ports stand at the router's own uplink address, also those that the host binds to one of its addresses
    // only: endpoints come to them through the host, as everybody else, and to the resolver through their gateway.
    let uplink4 = format!("inport == @{pg} && ip4.dst == {{{}, {}}}", config.router.address, config.resolver.address);
    acls.push(acl(rows, owner, "uplink4", "from-lport", 2000, uplink4));
    if n.internal {
        let out4 = format!("inport == @{pg} && ip4 && ip4.dst != {{{subnet}, 255.255.255.255, 224.0.0.0/4}}");
        let inside = inside6.iter().map(|s| format!("{s}, ")).collect::<String>();
        let out6 = format!("inport == @{pg} && ip6 && ip6.dst != {{{inside}fe80::/10, ff00::/8}}");
        acls.push(acl(rows, owner, "internal4", "from-lport", 3000, out4));
        acls.push(acl(rows, owner, "internal6", "from-lport", 3000, out6));
    }
    if n.isolated {
        // Names and leases stay; nothing else answers at the gateway's address.
        let gateway4 = format!("inport == @{pg} && ip4.dst == {gateway} && !(udp.dst == {{53, 67}} || tcp.dst == 53)");
        acls.push(acl(rows, owner, "isolated4", "from-lport", 3000, gateway4));
        if let Some(v6) = n.v6 {
            let names = "udp.dst == {53, 547} || tcp.dst == 53";
            let gateway6 = format!("inport == @{pg} && ip6.dst == {} && !nd && !({names})", v6.gateway);
            acls.push(acl(rows, owner, "isolated6", "from-lport", 3000, gateway6));
        }
    }
    if !n.inter_container {
        let peer4 = format!("outport == @{pg} && ip4.src == {subnet} && ip4.src != {gateway}");
        // Neighbour discovery stays: the router's own advertisements come from a link-local address.
        let global = n.v6.map(|v6| format!("(ip6.src == {} && ip6.src != {}) || ", v6.subnet, v6.gateway));
        let peer6 = format!(
            "outport == @{pg} && ({}ip6.src == fe80::/10) && !nd && !nd_ra && !nd_rs",
            global.unwrap_or_default()
        );
        acls.push(acl(rows, owner, "icc4", "to-lport", 1500, peer4));
        acls.push(acl(rows, owner, "icc6", "to-lport", 1500, peer6));
        // Frames that are no IP come from peers only: the router sends none. ARP is what port security lets through.
        let other = format!("outport == @{pg} && !ip4 && !ip6 && !arp");
        acls.push(acl(rows, owner, "icc-other", "to-lport", 1500, other));
        // Nor by way of the router, which would send them back under its own address.
        let turn4 = format!("inport == @{pg} && ip4.dst == {subnet} && ip4.dst != {gateway}");
        acls.push(acl(rows, owner, "icc-turn4", "from-lport", 1500, turn4));
        if let Some(v6) = n.v6 {
            let turn6 = format!("inport == @{pg} && ip6.dst == {} && ip6.dst != {} && !nd", v6.subnet, v6.gateway);
            acls.push(acl(rows, owner, "icc-turn6", "from-lport", 1500, turn6));
        }
    }
    acls
}

fn endpoint(
    rows: &mut Rows,
    n: &Network,
    endpoint: &Declared<Endpoint>,
    addresses: Addresses,
    dhcp4: &Atom,
    dhcp6: Option<&Atom>,
) -> Atom {
    let e = &endpoint.object;
    let owner = Owner { id: e.id.as_str(), generation: endpoint.generation, network: Some(&n.id) };
    let known: String = addresses.iter().map(|a| format!(" {a}")).collect();
    // OVN allocates nothing for "MAC IP dynamic" and the like: an endpoint with only --ip6 is fixed once its IPv4
    // address is known.
    let fixed = e.static_v4.is_some() || (e.static_v6.is_some() && addresses.v4.is_some());
    let wanted = if fixed { format!("{}{known}", e.mac) } else { format!("{} dynamic", e.mac) };
    // The value is pasted into an expression of OVN: without the quotes the port would get no DHCP at all.
    let options = e.hostname.iter().map(|h| ("hostname", format!("\"{}\"", h.as_str())));
    rows.add(
        owner,
        Table::LogicalSwitchPort,
        "endpoint",
        [
            ("name", e.id.as_str().into()),
            ("type", "".into()),
            ("addresses", wanted.into()),
            ("port_security", format!("{}{known}", e.mac).into()),
            ("options", Value::map(options)),
            ("dhcpv4_options", dhcp4.clone().into()),
            ("dhcpv6_options", Value::set(dhcp6.cloned())),
        ],
    )
}

/// Records of OVN's native DNS. A name of several endpoints is left to the resolver: OVN would give its addresses
/// always in the same order, and drops answers that do not fit into a packet.
fn records(n: &Network, members: &Members<'_>) -> BTreeMap<String, String> {
    let mut owners: BTreeMap<&str, Vec<Addresses>> = BTreeMap::new();
    let mut records = BTreeMap::new();
    for (endpoint, addresses) in members.iter().filter(|(_, a)| a.v4.is_some()) {
        for name in &endpoint.object.names {
            owners.entry(name.as_str()).or_default().push(*addresses);
        }
        if let Some(first) = endpoint.object.names.first() {
            for address in addresses.iter() {
                records.insert(reverse_name(address), format!("{}.{}", first.as_str(), n.name.as_str()));
            }
        }
    }
    for (name, addresses) in owners {
        let [addresses] = addresses.as_slice() else { continue };
        let text = addresses.iter().map(|a: IpAddr| a.to_string()).collect::<Vec<_>>().join(" ");
        records.insert(format!("{name}.{}", n.name.as_str()), text.clone());
        records.insert(name.to_owned(), text);
    }
    records
}
