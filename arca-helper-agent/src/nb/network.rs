// SPDX-License-Identifier: Apache-2.0
//! Rows of one network and of the endpoints on it. Called by [`super::rows::rows`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use super::address::{Addresses, MacAddr, reverse_name};
use super::model::{Config, Declared, Endpoint, Name, Network, Network4, Network6, NetworkId, Protocol};
use super::rows::{Owner, PRIVATE4, PRIVATE6, RouterParts, Rows, Table, acl, allow, fold};
use crate::ovsdb::{Atom, Value};

/// Endpoints of a network with the addresses they have.
pub(super) type Members<'a> = Vec<(&'a Declared<Endpoint>, Addresses)>;

/// arca-kind of the switch that numbers IPv6 addresses, and of a port on it.
pub(crate) const NUMBERS: &str = "numbers6";
/// See [`NUMBERS`].
pub(crate) const NUMBER: &str = "number6";
/// The same for IPv4 addresses.
pub(crate) const NUMBERS4: &str = "numbers4";
/// See [`NUMBERS4`].
pub(crate) const NUMBER4: &str = "number4";
/// Seconds; the workload's client never needs to renew within a day.
const LEASE: &str = "86400";

pub(super) fn rows(
    rows: &mut Rows,
    config: &Config,
    network: &Declared<Network>,
    members: &Members<'_>,
    services: [&Atom; 2],
    router: &mut RouterParts,
) {
    let n = &network.object;
    let owner = Owner { id: n.id.as_str(), generation: network.generation, network: Some(&n.id) };
    let short = n.id.short();
    let mac = MacAddr::of_router(fold(n.id.as_str().as_bytes()));

    router.ports.push(router_port(rows, owner, config, n, mac));
    if let Some(v6) = &n.v6 {
        let number = |e: &Endpoint, a: &Addresses| e.static_v6.or(a.v6).map(|address| v6.numbers.number(address));
        numbers(rows, owner, (NUMBERS, NUMBER), v6.addressing(), number, members);
    }
    if let Some(v4) = &n.v4 {
        if let Some(own) = v4.numbers {
            let number = |e: &Endpoint, a: &Addresses| e.static_v4.or(a.v4).map(|address| own.number(address));
            numbers(rows, owner, (NUMBERS4, NUMBER4), v4.numbering(), number, members);
        }
        if let (_, Some(other)) = v4.router() {
            router.routes.push(rows.add(
                owner,
                Table::LogicalRouterStaticRoute,
                "two",
                [
                    ("ip_prefix", v4.subnet.to_string().into()),
                    ("nexthop", other.to_string().into()),
                    ("output_port", format!("gw-{short}").into()),
                ],
            ));
        }
    }
    router.policies.extend(by_the_host(rows, owner, config, n));
    if n.masquerade && !n.internal {
        let mut snat = |kind, external: String, inside: String, exempted: &Atom| {
            let columns = [
                ("type", "snat".into()),
                ("external_ip", external.into()),
                ("logical_ip", inside.into()),
                // The resolver answers by who asks, so it must see the container's own address.
                ("exempted_ext_ips", exempted.clone().into()),
            ];
            rows.add(owner, Table::Nat, kind, columns)
        };
        let hidden4 = n.v4.as_ref().filter(|v4| !v4.reach.keep_source);
        let snat4 =
            hidden4.map(|v4| snat("snat", config.router.address.to_string(), v4.subnet.to_string(), services[0]));
        let snat6 = config
            .v6
            .zip(n.v6.as_ref().filter(|v6| !v6.reach.keep_source))
            .map(|(uplink, v6)| snat("snat6", uplink.router.address.to_string(), v6.subnet.to_string(), services[1]));
        router.nat.extend(snat4.into_iter().chain(snat6));
    }
    let resolver4 = n.v4.as_ref().map(|v4| (IpAddr::V4(v4.gateway), IpAddr::V4(config.resolver.address)));
    let resolver6 = config.v6.zip(n.v6.as_ref());
    let resolver6 = resolver6.map(|(up, v6)| (IpAddr::V6(v6.gateway), IpAddr::V6(up.resolver.address)));
    let resolvers = resolver4.into_iter().chain(resolver6);
    let vips = resolvers.map(|pair| (SocketAddr::new(pair.0, 53).to_string(), SocketAddr::new(pair.1, 53).to_string()));
    let vips: BTreeMap<String, String> = vips.collect();
    for protocol in [Protocol::Udp, Protocol::Tcp] {
        // On the router, never on the switch: there the translation would come before OVN's own answers.
        router.load_balancers.push(rows.add(
            owner,
            Table::LoadBalancer,
            &format!("dns-{}", protocol.as_str()),
            [
                ("name", format!("dns-{short}-{}", protocol.as_str()).into()),
                ("protocol", protocol.as_str().into()),
                ("vips", Value::map(vips.clone())),
            ],
        ));
    }

    let dhcp = Dhcp {
        v4: n.v4.as_ref().map(|v4| dhcp4(rows, owner, n, v4, mac)),
        v6: n.v6.as_ref().map(|v6| dhcp6(rows, owner, config, v6, mac)),
    };
    let dns_records = n.dns.then(|| rows.add(owner, Table::Dns, "dns", [("records", Value::map(records(n, members)))]));

    let ports: Vec<Atom> = members.iter().map(|(e, addresses)| endpoint(rows, n, e, *addresses, &dhcp)).collect();
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

fn router_port(rows: &mut Rows, owner: Owner<'_>, config: &Config, n: &Network, mac: MacAddr) -> Atom {
    let mut networks = Vec::new();
    networks.extend(n.v4.as_ref().map(|v4| v4.router().0));
    let mut advertise = BTreeMap::new();
    if let Some(v6) = &n.v6 {
        networks.push(format!("{}/{}", v6.gateway, v6.subnet.prefix()));
        // Advertisements carry a default route, which an internal network must not have. Addresses come by DHCPv6: one
        // that a workload makes up itself would not pass port security.
        if !n.internal {
            advertise.insert("address_mode", "dhcpv6_stateful".to_owned());
            advertise.insert("send_periodic", "true".to_owned());
            advertise.insert("mtu", n.mtu.to_string());
            if config.v6.is_some() {
                advertise.insert("rdnss", v6.gateway.to_string());
            }
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

/// DHCP rows of a network.
struct Dhcp {
    v4: Option<Atom>,
    v6: Option<Atom>,
}

fn dhcp4(rows: &mut Rows, owner: Owner<'_>, n: &Network, v4: &Network4, mac: MacAddr) -> Atom {
    let gateway = v4.gateway.to_string();
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
        [("cidr", v4.subnet.to_string().into()), ("options", Value::map(options))],
    )
}

fn dhcp6(rows: &mut Rows, owner: Owner<'_>, config: &Config, v6: &Network6, mac: MacAddr) -> Atom {
    let mut options = BTreeMap::from([("server_id", mac.to_string())]);
    if config.v6.is_some() {
        options.insert("dns_server", v6.gateway.to_string());
    }
    rows.add(
        owner,
        Table::DhcpOptions,
        "dhcp6",
        [("cidr", v6.subnet.to_string().into()), ("options", Value::map(options))],
    )
}

/// What other networks send to one that is open goes by way of the host, which says to which ports.
fn by_the_host(rows: &mut Rows, owner: Owner<'_>, config: &Config, n: &Network) -> Vec<Atom> {
    let mut reroute = |kind, family: &str, subnet: String, next_hop: String| {
        let expression = format!("{family}.dst == {subnet} && {family}.src != {subnet}");
        let columns = [
            ("priority", 1000_i64.into()),
            ("match", expression.into()),
            ("action", "reroute".into()),
            ("nexthops", Value::set([next_hop])),
        ];
        rows.add(owner, Table::LogicalRouterPolicy, kind, columns)
    };
    let v4 = n.v4.as_ref().filter(|v4| v4.reach.open);
    let v4 = v4.map(|v4| reroute("open4", "ip4", v4.subnet.to_string(), config.next_hop.to_string()));
    let v6 = config.v6.zip(n.v6.as_ref().filter(|v6| v6.reach.open));
    let v6 = v6.map(|(up, v6)| reroute("open6", "ip6", v6.subnet.to_string(), up.next_hop.to_string()));
    v4.into_iter().chain(v6).collect()
}

/// The switch on which OVN numbers a network's addresses of one family (see [`super::numbers`]). `number` is that of the
/// address which an endpoint has or asks for: fixed as soon as it is known, so it is kept even if the row were lost; an
/// address that has no number needs no row.
fn numbers(
    rows: &mut Rows,
    owner: Owner<'_>,
    (switch, port): (&str, &str),
    addressing: BTreeMap<String, String>,
    number: impl Fn(&Endpoint, &Addresses) -> Option<Option<Ipv4Addr>>,
    members: &Members<'_>,
) {
    let prefix = if switch == NUMBERS { "n6" } else { "n4" };
    let mut ports = Vec::new();
    for (endpoint, addresses) in members {
        let e = &endpoint.object;
        let wanted = match number(e, addresses) {
            Some(Some(number)) => format!("{} {number}", MacAddr::of_router(fold(e.id.as_str().as_bytes()))),
            Some(None) => continue,
            None => "dynamic".to_owned(),
        };
        let owner = Owner { id: e.id.as_str(), generation: endpoint.generation, network: owner.network };
        let none = Value::empty;
        ports.push(rows.add(
            owner,
            Table::LogicalSwitchPort,
            port,
            [
                ("name", format!("{prefix}-{}", e.id.as_str()).into()),
                ("type", "".into()),
                ("addresses", wanted.into()),
                ("port_security", none()),
                ("options", Value::map::<&str, &str>([])),
                ("dhcpv4_options", none()),
                ("dhcpv6_options", none()),
            ],
        ));
    }
    rows.add(
        owner,
        Table::LogicalSwitch,
        switch,
        [
            ("name", format!("{switch}-{}", owner.network.map(NetworkId::short).unwrap_or_default()).into()),
            ("other_config", Value::map(addressing)),
            ("ports", Value::set(ports)),
            ("acls", Value::empty()),
            ("dns_records", Value::empty()),
        ],
    );
}

/// Dropping ACLs on the port group. All are evaluated before the router's DNAT, so published ports keep working.
fn isolation(rows: &mut Rows, owner: Owner<'_>, config: &Config, n: &Network) -> Vec<Atom> {
    let pg = group(n);
    let inside4 = n.v4.as_ref().map(|v4| v4.subnet.to_string());
    let inside6 = n.v6.as_ref().map(|v6| v6.subnet.to_string());
    let but = |family: &str, inside: &Option<String>| {
        inside.iter().map(|inside| format!(" && {family}.dst != {inside}")).collect::<String>()
    };
    let other4 = format!("inport == @{pg} && ip4.dst == ${PRIVATE4}{}", but("ip4", &inside4));
    let other6 = format!("inport == @{pg} && ip6.dst == ${PRIVATE6}{}", but("ip6", &inside6));
    let mut acls = vec![
        acl(rows, owner, "isolate4", "from-lport", 2000, other4),
        acl(rows, owner, "isolate6", "from-lport", 2000, other6),
    ];
    // Published ports stand at the router's own uplink address, also those that the host binds to one of its addresses
    // only: endpoints come to them through the host, as everybody else, and to the resolver through their gateway.
    let uplink4 = format!("inport == @{pg} && ip4.dst == {{{}, {}}}", config.router.address, config.resolver.address);
    acls.push(acl(rows, owner, "uplink4", "from-lport", 2000, uplink4));
    if let Some(v6) = &config.v6 {
        let uplink6 = format!("inport == @{pg} && ip6.dst == {{{}, {}}}", v6.router.address, v6.resolver.address);
        acls.push(acl(rows, owner, "uplink6", "from-lport", 2000, uplink6));
    }
    if n.internal {
        let list = |inside: &Option<String>| inside.iter().map(|s| format!("{s}, ")).collect::<String>();
        let inside = list(&inside4);
        let out4 = format!("inport == @{pg} && ip4 && ip4.dst != {{{inside}255.255.255.255, 224.0.0.0/4}}");
        let inside = list(&inside6);
        let out6 = format!("inport == @{pg} && ip6 && ip6.dst != {{{inside}fe80::/10, ff00::/8}}");
        acls.push(acl(rows, owner, "internal4", "from-lport", 3000, out4));
        acls.push(acl(rows, owner, "internal6", "from-lport", 3000, out6));
    }
    if n.isolated {
        // Names and leases stay; nothing else answers at the gateway's address.
        let gateway4 =
            n.v4.as_ref().map(|v4| ("isolated4", format!("ip4.dst == {}", v4.gateway), "udp.dst == {53, 67}"));
        let gateway6 = n.v6.as_ref();
        let gateway6 =
            gateway6.map(|v6| ("isolated6", format!("ip6.dst == {}", v6.gateway), "nd || udp.dst == {53, 547}"));
        for (kind, gateway, spared) in gateway4.into_iter().chain(gateway6) {
            let spared = format!("inport == @{pg} && {gateway} && ({spared} || tcp.dst == 53)");
            acls.push(allow(rows, owner, &format!("{kind}-spared"), "from-lport", 3100, spared));
            acls.push(acl(rows, owner, kind, "from-lport", 3000, format!("inport == @{pg} && {gateway}")));
        }
    }
    if !n.inter_container {
        // Neighbour discovery stays, and what the router sends: advertisements, answers of the resolver at its address.
        let global = n.v6.as_ref().map(|v6| format!("{}, ", v6.subnet)).unwrap_or_default();
        let peer6 = format!("outport == @{pg} && ip6.src == {{{global}fe80::/10}}");
        let router = n.v6.as_ref().map(|v6| format!("ip6.src == {} || ", v6.gateway)).unwrap_or_default();
        let spared6 = format!("outport == @{pg} && ({router}nd || nd_ra || nd_rs)");
        acls.push(allow(rows, owner, "icc6-spared", "to-lport", 1600, spared6));
        if let Some(Network4 { subnet, gateway, .. }) = &n.v4 {
            let peer4 = format!("outport == @{pg} && ip4.src == {subnet} && ip4.src != {gateway}");
            acls.push(acl(rows, owner, "icc4", "to-lport", 1500, peer4));
        }
        acls.push(acl(rows, owner, "icc6", "to-lport", 1500, peer6));
        // Frames that are no IP come from peers only: the router sends none. ARP is what port security lets through.
        let other = format!("outport == @{pg} && !ip4 && !ip6 && !arp");
        acls.push(acl(rows, owner, "icc-other", "to-lport", 1500, other));
        // Nor by way of the router, which would send them back under its own address.
        if let Some(Network4 { subnet, gateway, .. }) = &n.v4 {
            let turn4 = format!("inport == @{pg} && ip4.dst == {subnet} && ip4.dst != {gateway}");
            acls.push(acl(rows, owner, "icc-turn4", "from-lport", 1500, turn4));
        }
        if let Some(v6) = &n.v6 {
            let spared6 = format!("inport == @{pg} && (ip6.dst == {} || nd)", v6.gateway);
            acls.push(allow(rows, owner, "icc-turn6-spared", "from-lport", 1600, spared6));
            let turn6 = format!("inport == @{pg} && ip6.dst == {}", v6.subnet);
            acls.push(acl(rows, owner, "icc-turn6", "from-lport", 1500, turn6));
        }
    }
    acls
}

fn endpoint(rows: &mut Rows, n: &Network, endpoint: &Declared<Endpoint>, addresses: Addresses, dhcp: &Dhcp) -> Atom {
    let e = &endpoint.object;
    let owner = Owner { id: e.id.as_str(), generation: endpoint.generation, network: Some(&n.id) };
    let known: String = addresses.iter().map(|a| format!(" {a}")).collect();
    // Only with an address of its own: a port without any would otherwise be held to these.
    let extra: String = e.extra.iter().filter(|_| !known.is_empty()).map(|a| format!(" {a}")).collect();
    // Fixed as soon as all is known: OVN allocates nothing for "MAC IP dynamic" and the like, and while a port's address is
    // dynamic ovn-northd computes everything anew for each change of it.
    let complete = addresses != Addresses::default();
    let is_own = n.v4.as_ref().is_some_and(|v4| v4.numbers.is_none());
    let wanted = match e.static_v4 {
        _ if complete => format!("{}{known}", e.mac),
        Some(v4) => format!("{} {v4}", e.mac),
        None if is_own => format!("{} dynamic", e.mac),
        None => e.mac.to_string(),
    };
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
            ("port_security", format!("{}{known}{extra}", e.mac).into()),
            ("options", Value::map(options)),
            ("dhcpv4_options", Value::set(dhcp.v4.clone())),
            ("dhcpv6_options", Value::set(dhcp.v6.clone())),
        ],
    )
}

/// Records of OVN's native DNS. A name of several endpoints is left to the resolver: OVN would give its addresses
/// always in the same order, and drops answers that do not fit into a packet.
fn records(n: &Network, members: &Members<'_>) -> BTreeMap<String, String> {
    // Somebody means another container by such a name: the resolver knows who asks, OVN does not.
    let linked: BTreeSet<&str> = members.iter().flat_map(|(e, _)| e.object.links.keys()).map(Name::as_str).collect();
    let mut owners: BTreeMap<&str, Vec<Addresses>> = BTreeMap::new();
    let mut records = BTreeMap::new();
    for (endpoint, addresses) in members.iter().filter(|(_, a)| *a != Addresses::default()) {
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
        if !linked.contains(name) {
            records.insert(name.to_owned(), text);
        }
    }
    records
}
