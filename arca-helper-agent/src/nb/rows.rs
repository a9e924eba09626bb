// SPDX-License-Identifier: Apache-2.0
//! All rows that should exist for what is declared: pure, called by the service before every transaction.
//!
//! One gateway router `gw` pinned to this chassis, one switch `ext` with the uplink, and what [`super::network`] makes
//! of each network. Every row carries `external_ids` arca-id (of the object), arca-kind (which of its rows), arca-gen
//! (the generation) and arca-network; rows are found again by these.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use super::address::{Addresses, MacAddr};
use super::model::{Config, Declared, Endpoint, EndpointId, Network, NetworkId, PublishedPort, PublishedPortId, Reach};
use super::network::{self, Members};
pub(crate) use super::network::{NUMBERS, NUMBERS4};
use crate::ovsdb::{Atom, Value};

/// Name of the gateway router.
pub const ROUTER: &str = "gw";
/// Name of the localnet port on switch `ext`; the chassis maps its network "ext" to the uplink bridge.
pub const LOCALNET_PORT: &str = "ext-ln";
/// Name of the physical network, key in `ovn-bridge-mappings`.
pub const PHYSICAL_NETWORK: &str = "ext";
/// arca-id of rows that belong to no object.
pub const ENGINE: &str = "engine";
/// Address_Set of the IPv4 subnets that other networks do not reach.
pub(super) const PRIVATE4: &str = "arca_private";
/// The same of IPv6.
pub(super) const PRIVATE6: &str = "arca_private6";
/// Address_Set of the IPv4 subnets that nobody outside reaches.
const CLOSED4: &str = "arca_closed";
/// The same of IPv6.
const CLOSED6: &str = "arca_closed6";
/// Address_Set of the resolver.
const SERVICES: &str = "arca_svc";
/// Address_Set of the resolver's IPv6 address.
const SERVICES6: &str = "arca_svc6";

/// Tables Arca writes, each with all columns it owns there.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[allow(missing_docs)]
pub enum Table {
    Acl,
    AddressSet,
    DhcpOptions,
    Dns,
    LoadBalancer,
    LogicalRouter,
    LogicalRouterPolicy,
    LogicalRouterPort,
    LogicalRouterStaticRoute,
    LogicalSwitch,
    LogicalSwitchPort,
    Nat,
    PortGroup,
}

impl Table {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Acl,
        Self::AddressSet,
        Self::DhcpOptions,
        Self::Dns,
        Self::LoadBalancer,
        Self::LogicalRouter,
        Self::LogicalRouterPolicy,
        Self::LogicalRouterPort,
        Self::LogicalRouterStaticRoute,
        Self::LogicalSwitch,
        Self::LogicalSwitchPort,
        Self::Nat,
        Self::PortGroup,
    ];

    /// Name in the schema.
    pub fn name(self) -> &'static str {
        match self {
            Self::Acl => "ACL",
            Self::AddressSet => "Address_Set",
            Self::DhcpOptions => "DHCP_Options",
            Self::Dns => "DNS",
            Self::LoadBalancer => "Load_Balancer",
            Self::LogicalRouter => "Logical_Router",
            Self::LogicalRouterPolicy => "Logical_Router_Policy",
            Self::LogicalRouterPort => "Logical_Router_Port",
            Self::LogicalRouterStaticRoute => "Logical_Router_Static_Route",
            Self::LogicalSwitch => "Logical_Switch",
            Self::LogicalSwitchPort => "Logical_Switch_Port",
            Self::Nat => "NAT",
            Self::PortGroup => "Port_Group",
        }
    }

    /// Columns to monitor: those that are written and, of ports, what OVN answers.
    pub fn columns(self) -> &'static [&'static str] {
        match self {
            Self::Acl => &["direction", "priority", "match", "action", "external_ids"],
            Self::AddressSet => &["name", "addresses", "external_ids"],
            Self::DhcpOptions => &["cidr", "options", "external_ids"],
            Self::Dns => &["records", "external_ids"],
            Self::LoadBalancer => &["name", "protocol", "vips", "external_ids"],
            Self::LogicalRouter => {
                &["name", "options", "ports", "static_routes", "policies", "nat", "load_balancer", "external_ids"]
            }
            Self::LogicalRouterPolicy => &["priority", "match", "action", "nexthops", "external_ids"],
            Self::LogicalRouterPort => &["name", "mac", "networks", "ipv6_ra_configs", "external_ids"],
            Self::LogicalRouterStaticRoute => &["ip_prefix", "nexthop", "output_port", "external_ids"],
            Self::LogicalSwitch => &["name", "other_config", "ports", "acls", "dns_records", "external_ids"],
            Self::LogicalSwitchPort => &[
                "name",
                "type",
                "addresses",
                "port_security",
                "options",
                "dhcpv4_options",
                "dhcpv6_options",
                "external_ids",
                "dynamic_addresses",
                "up",
            ],
            Self::Nat => &["type", "external_ip", "logical_ip", "exempted_ext_ips", "external_ids"],
            Self::PortGroup => &["name", "ports", "acls", "external_ids"],
        }
    }

    /// Whether its rows stay although nothing refers to them: these are deleted explicitly.
    pub fn is_root(self) -> bool {
        !matches!(
            self,
            Self::Acl
                | Self::LogicalRouterPolicy
                | Self::LogicalRouterPort
                | Self::LogicalRouterStaticRoute
                | Self::LogicalSwitchPort
                | Self::Nat
        )
    }
}

/// What tells an owned row from every other one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RowKey {
    /// Its table.
    pub table: Table,
    /// arca-id: the object's identifier, or [`ENGINE`].
    pub id: String,
    /// arca-kind: which of the object's rows in that table.
    pub kind: String,
}

impl RowKey {
    /// Reference to this row inside desired rows; [`super::diff`] turns it into the row's UUID or a transaction's name.
    pub fn reference(&self) -> Atom {
        Atom::named(format!("{}/{}/{}", self.table.name(), self.kind, self.id))
    }
}

/// A row as it should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// Its identity.
    pub key: RowKey,
    /// Network it belongs to; none for the engine's own.
    pub network: Option<NetworkId>,
    /// All columns Arca owns; references are [`RowKey::reference`].
    pub columns: BTreeMap<&'static str, Value>,
}

/// Everything declared that was accepted: endpoints name networks that are here, published ports endpoints that are here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Networks.
    pub networks: BTreeMap<NetworkId, Declared<Network>>,
    /// Endpoints.
    pub endpoints: BTreeMap<EndpointId, Declared<Endpoint>>,
    /// Published ports.
    pub ports: BTreeMap<PublishedPortId, Declared<PublishedPort>>,
}

/// What the database says of an endpoint's addresses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allocated {
    /// Addresses of its port, allocated or written.
    pub addresses: Addresses,
    /// Its number among the network's IPv6 addresses (see [`super::numbers`]).
    pub number: Option<Ipv4Addr>,
    /// Its number among the network's IPv4 addresses, where these are numbered.
    pub number4: Option<Ipv4Addr>,
}

/// What OVN has allocated, read from the database.
pub type Learned = BTreeMap<EndpointId, Allocated>;

impl Desired {
    /// Addresses an endpoint has: its static ones and what OVN allocated. Nothing until all of them are known.
    pub fn addresses(&self, endpoint: &Endpoint, learned: &Learned) -> Addresses {
        let Some(network) = self.networks.get(&endpoint.network).map(|n| &n.object) else {
            return Addresses::default();
        };
        let learned = learned.get(&endpoint.id).copied().unwrap_or_default();
        let v4 = network.v4.as_ref().map(|v4| {
            let numbered = || learned.number4.and_then(|number| v4.numbers?.address4(number));
            endpoint.static_v4.or(learned.addresses.v4).or_else(numbered)
        });
        let v6 = network.v6.as_ref().map(|v6| {
            // What its port has stays, whatever becomes of the number.
            let numbered = || learned.number.and_then(|number| v6.numbers.address(number));
            endpoint.static_v6.or(learned.addresses.v6).or_else(numbered)
        });
        match (v4, v6) {
            (Some(None), _) | (_, Some(None)) => Addresses::default(),
            (v4, v6) => Addresses { v4: v4.flatten(), v6: v6.flatten() },
        }
    }
}

/// Collects rows; every row gets its `external_ids` here.
#[derive(Default)]
pub(super) struct Rows {
    rows: Vec<Arc<Row>>,
}

/// Object a row belongs to.
#[derive(Clone, Copy)]
pub(super) struct Owner<'a> {
    pub(super) id: &'a str,
    pub(super) generation: u64,
    pub(super) network: Option<&'a NetworkId>,
}

impl Rows {
    /// Adds a row and returns the reference to it.
    pub(super) fn add<const N: usize>(
        &mut self,
        owner: Owner<'_>,
        table: Table,
        kind: &str,
        columns: [(&'static str, Value); N],
    ) -> Atom {
        let key = RowKey { table, id: owner.id.to_owned(), kind: kind.to_owned() };
        let mut ids = BTreeMap::from([
            ("arca-id", owner.id.to_owned()),
            ("arca-kind", kind.to_owned()),
            ("arca-gen", owner.generation.to_string()),
        ]);
        if let Some(network) = owner.network {
            ids.insert("arca-network", network.as_str().to_owned());
        }
        let mut columns = BTreeMap::from(columns);
        columns.insert("external_ids", Value::map(ids));
        let reference = key.reference();
        self.rows.push(Arc::new(Row { key, network: owner.network.cloned(), columns }));
        reference
    }
}

/// What hangs on the gateway router.
#[derive(Clone, Default)]
pub(super) struct RouterParts {
    pub(super) ports: Vec<Atom>,
    pub(super) routes: Vec<Atom>,
    pub(super) policies: Vec<Atom>,
    pub(super) nat: Vec<Atom>,
    pub(super) load_balancers: Vec<Atom>,
}

impl RouterParts {
    fn extend(&mut self, other: Self) {
        let Self { ports, routes, policies, nat, load_balancers } = other;
        self.ports.extend(ports);
        self.routes.extend(routes);
        self.policies.extend(policies);
        self.nat.extend(nat);
        self.load_balancers.extend(load_balancers);
    }
}

/// An endpoint with the addresses it had.
type Member = (Declared<Endpoint>, Addresses);

/// Rows of a network, with all that they follow from beside the configuration.
struct Drawn {
    network: Declared<Network>,
    members: Vec<Member>,
    rows: Vec<Arc<Row>>,
    router: RouterParts,
}

impl Drawn {
    fn is_of(&self, network: &Declared<Network>, members: &Members<'_>) -> bool {
        let same = |known: &Member, (endpoint, addresses): &(&Declared<Endpoint>, Addresses)| {
            known.1 == *addresses && known.0 == **endpoint
        };
        self.network == *network
            && self.members.len() == members.len()
            && self.members.iter().zip(members).all(|(known, member)| same(known, member))
    }
}

/// Draws up rows; those of networks on which nothing has changed are the ones of before.
#[derive(Default)]
pub struct Drawing {
    config: Option<Config>,
    networks: BTreeMap<NetworkId, Drawn>,
}

impl Drawing {
    /// All rows for what is declared.
    pub fn rows(&mut self, config: &Config, desired: &Desired, learned: &Learned) -> Vec<Arc<Row>> {
        if self.config.as_ref() != Some(config) {
            self.networks.clear();
            self.config = Some(config.clone());
        }
        self.networks.retain(|id, _| desired.networks.contains_key(id));
        draw(&mut self.networks, config, desired, learned)
    }
}

/// All rows for what is declared.
pub fn rows(config: &Config, desired: &Desired, learned: &Learned) -> Vec<Arc<Row>> {
    draw(&mut BTreeMap::new(), config, desired, learned)
}

fn draw(
    known: &mut BTreeMap<NetworkId, Drawn>,
    config: &Config,
    desired: &Desired,
    learned: &Learned,
) -> Vec<Arc<Row>> {
    let mut rows = Rows::default();
    let engine = Owner { id: ENGINE, generation: 0, network: None };
    let networks = || desired.networks.values().map(|n| &n.object);

    let resolver = Value::from(config.resolver.address.to_string());
    let services =
        rows.add(engine, Table::AddressSet, "services", [("name", SERVICES.into()), ("addresses", resolver)]);
    let resolver6 = Value::set(config.v6.map(|v6| v6.resolver.address.to_string()));
    let services6 =
        rows.add(engine, Table::AddressSet, "services6", [("name", SERVICES6.into()), ("addresses", resolver6)]);
    let subnets4 = |wanted: fn(Reach) -> bool| -> BTreeSet<String> {
        let sides = networks().filter_map(|n| n.v4.as_ref()).filter(|v4| wanted(v4.reach));
        sides.map(|v4| v4.subnet.to_string()).collect()
    };
    let subnets6 = |wanted: fn(Reach) -> bool| -> BTreeSet<String> {
        let sides = networks().filter_map(|n| n.v6.as_ref()).filter(|v6| wanted(v6.reach));
        sides.map(|v6| v6.subnet.to_string()).collect()
    };
    for (kind, name, subnets) in [
        ("private4", PRIVATE4, subnets4(|reach| !reach.open)),
        ("private6", PRIVATE6, subnets6(|reach| !reach.open)),
        ("closed4", CLOSED4, subnets4(|reach| !reach.direct)),
        ("closed6", CLOSED6, subnets6(|reach| !reach.direct)),
    ] {
        rows.add(engine, Table::AddressSet, kind, [("name", name.into()), ("addresses", Value::set(subnets))]);
    }

    let mut router = RouterParts::default();
    router.ports.push(uplink(&mut rows, engine, config));

    let mut members: BTreeMap<&NetworkId, Members<'_>> = BTreeMap::new();
    for endpoint in desired.endpoints.values() {
        let addresses = desired.addresses(&endpoint.object, learned);
        members.entry(&endpoint.object.network).or_default().push((endpoint, addresses));
    }
    for network in desired.networks.values() {
        let members = members.remove(&network.object.id).unwrap_or_default();
        let id = &network.object.id;
        if !known.get(id).is_some_and(|drawn| drawn.is_of(network, &members)) {
            let (mut own, mut parts) = (Rows::default(), RouterParts::default());
            network::rows(&mut own, config, network, &members, [&services, &services6], &mut parts);
            let members = members.into_iter().map(|(endpoint, addresses)| (endpoint.clone(), addresses)).collect();
            known.insert(id.clone(), Drawn { network: network.clone(), members, rows: own.rows, router: parts });
        }
        if let Some(drawn) = known.get(id) {
            rows.rows.extend(drawn.rows.iter().cloned());
            router.extend(drawn.router.clone());
        }
    }
    for port in desired.ports.values() {
        router.load_balancers.extend(published(&mut rows, config, desired, port, learned));
    }

    if !router.policies.is_empty() {
        // What the host has let in, or sends back.
        let columns = [
            ("priority", 2000_i64.into()),
            ("match", "inport == \"gw-ext\"".into()),
            ("action", "allow".into()),
            ("nexthops", Value::empty()),
        ];
        router.policies.push(rows.add(engine, Table::LogicalRouterPolicy, "from-host", columns));
    }
    let mut default = |kind, prefix: &'static str, next_hop: String| {
        let columns = [("ip_prefix", prefix.into()), ("nexthop", next_hop.into()), ("output_port", "gw-ext".into())];
        rows.add(engine, Table::LogicalRouterStaticRoute, kind, columns)
    };
    let mut routes = vec![default("default", "0.0.0.0/0", config.next_hop.to_string())];
    routes.extend(config.v6.map(|v6| default("default6", "::/0", v6.next_hop.to_string())));
    routes.extend(router.routes);
    rows.add(
        engine,
        Table::LogicalRouter,
        "router",
        [
            ("name", ROUTER.into()),
            // Endpoints announce their addresses, which the router knows from their ports: learning them would only leave
            // a MAC_Binding for every address that ever was.
            (
                "options",
                Value::map([("chassis", config.system_id.as_str()), ("always_learn_from_arp_request", "false")]),
            ),
            ("ports", Value::set(router.ports)),
            ("static_routes", Value::set(routes)),
            ("policies", Value::set(router.policies)),
            ("nat", Value::set(router.nat)),
            ("load_balancer", Value::set(router.load_balancers)),
        ],
    );
    rows.rows
}

/// The switch that leads out; returns the router's port on it.
fn uplink(rows: &mut Rows, engine: Owner<'_>, config: &Config) -> Atom {
    let mac = MacAddr::of_router(fold(config.system_id.as_bytes()));
    let router_port = rows.add(
        engine,
        Table::LogicalRouterPort,
        "ext",
        [
            ("name", "gw-ext".into()),
            ("mac", mac.to_string().into()),
            (
                "networks",
                Value::set(std::iter::once(config.router.to_string()).chain(config.v6.map(|v6| v6.router.to_string()))),
            ),
            ("ipv6_ra_configs", Value::map::<&str, &str>([])),
        ],
    );
    let mut neighbours: BTreeMap<MacAddr, String> = BTreeMap::new();
    for (address, mac) in &config.neighbours {
        neighbours.entry(*mac).or_insert_with(|| mac.to_string()).push_str(&format!(" {address}"));
    }
    // Whoever is not known is asked for; while OVN does that it keeps no more than four packets.
    let addresses = neighbours.into_values().chain(["unknown".to_owned()]);
    let none = Value::empty;
    let localnet = rows.add(
        engine,
        Table::LogicalSwitchPort,
        "ext-localnet",
        [
            ("name", LOCALNET_PORT.into()),
            ("type", "localnet".into()),
            ("addresses", Value::set(addresses)),
            ("port_security", none()),
            ("options", Value::map([("network_name", PHYSICAL_NETWORK)])),
            ("dhcpv4_options", none()),
            ("dhcpv6_options", none()),
        ],
    );
    let to_router = rows.add(
        engine,
        Table::LogicalSwitchPort,
        "ext-router",
        [
            ("name", "ext-gw".into()),
            ("type", "router".into()),
            ("addresses", "router".into()),
            ("port_security", none()),
            ("options", Value::map([("router-port", "gw-ext")])),
            ("dhcpv4_options", none()),
            ("dhcpv6_options", none()),
        ],
    );
    // Nobody outside may address a container directly, unless the host sees to that; answers of the resolver are not
    // translated and must pass.
    let direct4 = format!("inport == \"{LOCALNET_PORT}\" && ip4.dst == ${CLOSED4} && ip4.src != ${SERVICES}");
    let direct6 = format!("inport == \"{LOCALNET_PORT}\" && ip6.dst == ${CLOSED6} && ip6.src != ${SERVICES6}");
    let acls = [("direct4", direct4), ("direct6", direct6)]
        .map(|(kind, expression)| acl(rows, engine, kind, "from-lport", 2000, expression));
    rows.add(
        engine,
        Table::LogicalSwitch,
        "ext",
        [
            ("name", "ext".into()),
            ("other_config", Value::map::<&str, &str>([])),
            ("ports", Value::set([localnet, to_router])),
            ("acls", Value::set(acls)),
            ("dns_records", none()),
        ],
    );
    router_port
}

/// A dropping ACL: it needs no connection tracking.
pub(super) fn acl(
    rows: &mut Rows,
    owner: Owner<'_>,
    kind: &str,
    direction: &'static str,
    priority: i64,
    expression: String,
) -> Atom {
    judge(rows, owner, kind, (direction, priority, "drop"), expression)
}

/// An exception from dropping ACLs of lower priority. OVN 25.03 makes no flow at all of an expression that negates its
/// predicates (`!nd && !nd_ra && !nd_rs`), so what a dropping ACL must spare is said by one of these.
pub(super) fn allow(
    rows: &mut Rows,
    owner: Owner<'_>,
    kind: &str,
    direction: &'static str,
    priority: i64,
    expression: String,
) -> Atom {
    judge(rows, owner, kind, (direction, priority, "allow"), expression)
}

fn judge(
    rows: &mut Rows,
    owner: Owner<'_>,
    kind: &str,
    (direction, priority, action): (&'static str, i64, &'static str),
    expression: String,
) -> Atom {
    rows.add(
        owner,
        Table::Acl,
        kind,
        [
            ("direction", direction.into()),
            ("priority", priority.into()),
            ("match", expression.into()),
            ("action", action.into()),
        ],
    )
}

/// Row of a published port; none while its endpoint has no address, for a VIP without target would only swallow packets.
fn published(
    rows: &mut Rows,
    config: &Config,
    desired: &Desired,
    port: &Declared<PublishedPort>,
    learned: &Learned,
) -> Option<Atom> {
    let endpoint = &desired.endpoints.get(&port.object.endpoint)?.object;
    let target = desired.addresses(endpoint, learned);
    let pair = |vip: IpAddr, target: IpAddr| {
        let at = |address, port| SocketAddr::new(address, port).to_string();
        (at(vip, port.object.vip_port), at(target, port.object.target_port))
    };
    let v4 = target.v4.map(|target| pair(config.router.address.into(), target.into()));
    let v6 = config.v6.zip(target.v6).map(|(uplink, target)| pair(uplink.router.address.into(), target.into()));
    let vips: BTreeMap<String, String> = v4.into_iter().chain(v6).collect();
    if vips.is_empty() {
        return None;
    }
    let id = port.object.id.as_str();
    let owner = Owner { id, generation: port.generation, network: Some(&endpoint.network) };
    Some(rows.add(
        owner,
        Table::LoadBalancer,
        "published",
        [
            ("name", format!("pub-{id}").into()),
            ("protocol", port.object.protocol.as_str().into()),
            ("vips", Value::map(vips)),
        ],
    ))
}

/// Five bytes of a FNV-1a hash: a MAC that stays the same for the same text.
pub(super) fn fold(text: &[u8]) -> [u8; 5] {
    let hash = text.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x100_0000_01b3));
    let [a, b, c, d, e, f, g, h] = hash.to_be_bytes();
    [a ^ f, b ^ g, c ^ h, d, e]
}
