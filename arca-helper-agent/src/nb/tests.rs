// SPDX-License-Identifier: Apache-2.0
//! Rows and differences against a stateful fake of the northbound database: references, garbage collection of
//! unreferenced rows and weak references as OVSDB has them (RFC 7047 section 3.2).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use proptest::prelude::*;

use super::address::{Addresses, MacAddr};
use super::diff::{Change, Counts, Scope, diff, operations, without_new_names};
use super::model::{Config, Declared, Endpoint, Name, Network, PublishedPort};
use super::observed::{Columns, Observed};
use super::rows::{Allocated, Desired, Drawing, Learned, Row, Table, rows};
use crate::ovsdb::{Atom, Mutator, Uuid, Value};
use arca_proto::helper::v1 as proto;

type FakeRow = BTreeMap<String, Value>;

impl Columns for &FakeRow {
    fn get(&self, column: &str) -> Option<&Value> {
        BTreeMap::get(self, column)
    }
}

#[derive(Default)]
struct Fake {
    rows: BTreeMap<Uuid, (Table, FakeRow)>,
    next: u128,
}

impl Fake {
    fn observed(&self) -> Observed<&FakeRow> {
        Observed::new(self.rows.iter().map(|(uuid, (table, row))| (*table, *uuid, row)))
    }

    fn insert(&mut self, table: Table, row: FakeRow) -> Uuid {
        self.next += 1;
        let uuid = Uuid::from_u128(self.next);
        self.rows.insert(uuid, (table, row));
        uuid
    }

    fn apply(&mut self, changes: &[Change]) {
        let mut names: BTreeMap<Atom, Atom> = BTreeMap::new();
        for change in changes {
            if let Change::Insert { key, .. } = change {
                let uuid = self.insert(key.table, FakeRow::new());
                names.insert(key.reference(), Atom::Uuid(uuid));
            }
        }
        let value = |value: &Value| match value {
            Value::Set(set) => Value::set(set.iter().map(|a| match a {
                Atom::Named(_) => names[a].clone(),
                other => other.clone(),
            })),
            other => other.clone(),
        };
        for change in changes {
            match change {
                Change::Insert { key, columns } => {
                    let Atom::Uuid(uuid) = names[&key.reference()] else { unreachable!() };
                    self.rows.get_mut(&uuid).unwrap().1 =
                        columns.iter().map(|(c, v)| ((*c).to_owned(), value(v))).collect();
                }
                Change::Update { uuid, set, elements, .. } => {
                    let row = &mut self.rows.get_mut(uuid).expect("an updated row exists").1;
                    row.extend(set.iter().map(|(c, v)| ((*c).to_owned(), value(v))));
                    for (column, mutator, v) in elements {
                        mutate(row.get_mut(*column).unwrap(), *mutator, value(v));
                    }
                }
                Change::Delete { uuid, .. } => assert!(self.rows.remove(uuid).is_some(), "a deleted row exists"),
            }
        }
        self.commit();
    }

    /// Referential integrity and garbage collection.
    fn commit(&mut self) {
        loop {
            let weak = |table: Table, column: &str| table == Table::PortGroup && column == "ports";
            let mut strong = BTreeSet::new();
            for (table, row) in self.rows.values() {
                for (column, value) in row {
                    let refs = value.uuids();
                    if !weak(*table, column) {
                        strong.extend(refs);
                    }
                }
            }
            for uuid in &strong {
                assert!(self.rows.contains_key(uuid), "a strong reference dangles: {uuid}");
            }
            let garbage: Vec<_> =
                self.rows.iter().filter(|(u, (t, _))| !t.is_root() && !strong.contains(u)).map(|(u, _)| *u).collect();
            for uuid in &garbage {
                self.rows.remove(uuid);
            }
            let alive: BTreeSet<Uuid> = self.rows.keys().copied().collect();
            for (table, row) in self.rows.values_mut() {
                if *table == Table::PortGroup
                    && let Some(Value::Set(ports)) = row.get_mut("ports")
                {
                    ports.retain(|p| matches!(p, Atom::Uuid(u) if alive.contains(u)));
                }
            }
            if garbage.is_empty() {
                return;
            }
        }
    }

    /// Owned rows in the form of desired ones.
    fn contents(&self) -> BTreeMap<String, BTreeMap<String, Value>> {
        let observed = self.observed();
        let reference = |a: &Atom| match a {
            Atom::Uuid(u) => observed.keys[u].reference(),
            other => other.clone(),
        };
        let value = |v: &Value| match v {
            Value::Set(set) => Value::set(set.iter().map(reference)),
            other => other.clone(),
        };
        let owned = observed.rows.iter();
        owned
            .map(|(k, f)| {
                let columns = f.row.iter().filter(|(c, _)| *c != "dynamic_addresses");
                (format!("{k:?}"), columns.map(|(c, v)| (c.clone(), value(v))).collect())
            })
            .collect()
    }
}

fn mutate(current: &mut Value, mutator: Mutator, by: Value) {
    match (current, mutator, by) {
        (Value::Set(set), Mutator::Insert, Value::Set(by)) => set.extend(by),
        (Value::Set(set), Mutator::Delete, Value::Set(by)) => set.retain(|a| !by.contains(a)),
        (Value::Map(map), Mutator::Delete, Value::Set(by)) => map.retain(|k, _| !by.contains(k)),
        (Value::Map(map), Mutator::Insert, Value::Map(by)) => {
            for (k, v) in by {
                map.entry(k).or_insert(v);
            }
        }
        other => panic!("no such mutation: {other:?}"),
    }
}

fn contents_of(rows: &[Arc<Row>]) -> BTreeMap<String, BTreeMap<String, Value>> {
    let columns = |r: &Row| r.columns.iter().map(|(c, v)| ((*c).to_owned(), v.clone())).collect();
    rows.iter().map(|r| (format!("{:?}", r.key), columns(r))).collect()
}

pub(crate) fn config() -> Config {
    let request = proto::ConfigureRequest {
        system_id: "helper-1".into(),
        uplink_interface: "up0".into(),
        router_address: "192.168.127.2/29".into(),
        next_hop: "192.168.127.1".into(),
        resolver_address: "192.168.127.3/29".into(),
        forwarders: vec!["10.0.0.53:53".into()],
        router_address_v6: "fd00:77::2/64".into(),
        next_hop_v6: "fd00:77::1".into(),
        resolver_address_v6: "fd00:77::3/64".into(),
    };
    request.try_into().expect("a valid configuration")
}

pub(crate) fn id(n: u8) -> String {
    format!("{n:02x}").repeat(32)
}

pub(crate) fn network(n: u8) -> proto::Network {
    proto::Network {
        id: id(n),
        name: format!("Net{n}"),
        subnet_v4: format!("172.{n}.0.0/24"),
        gateway_v4: format!("172.{n}.0.1"),
        exclude_v4: vec![format!("172.{n}.0.128..172.{n}.0.254")],
        inter_container: true,
        masquerade: true,
        dns: true,
        mtu: 1442,
        ..Default::default()
    }
}

pub(crate) fn endpoint(n: u8, network: u8) -> proto::Endpoint {
    proto::Endpoint {
        id: id(n),
        network_id: id(network),
        link: u32::from(n),
        mac: format!("02:42:ac:12:00:{n:02x}"),
        names: vec![format!("Web{n}"), "shared".into()],
        hostname: format!("web{n}"),
        machine_id: format!("machine{n}"),
        ..Default::default()
    }
}

fn desired(
    networks: Vec<proto::Network>,
    endpoints: Vec<proto::Endpoint>,
    ports: Vec<proto::PublishedPort>,
) -> Desired {
    let mut desired = Desired::default();
    for object in networks {
        let object: Network = object.try_into().expect("a valid network");
        desired.networks.insert(object.id.clone(), Declared { generation: 1, object });
    }
    for object in endpoints {
        let object: Endpoint = object.try_into().expect("a valid endpoint");
        desired.endpoints.insert(object.id.clone(), Declared { generation: 1, object });
    }
    for object in ports {
        let object: PublishedPort = object.try_into().expect("a valid port");
        desired.ports.insert(object.id.clone(), Declared { generation: 1, object });
    }
    desired
}

/// What the database shows of a port with these addresses.
pub(crate) fn allocated(text: &str) -> Allocated {
    Allocated { addresses: Addresses::parse(text), ..Allocated::default() }
}

/// The same with a number: the `n`th address of the IPv6 pool, counted from nought.
fn numbered(text: &str, n: u8) -> Allocated {
    Allocated { number: Some(std::net::Ipv4Addr::new(240, 0, 0, n + 2)), ..allocated(text) }
}

fn dual(n: u8) -> proto::Network {
    proto::Network { subnet_v6: format!("fd00:{n}::/64"), gateway_v6: format!("fd00:{n}::1"), ..network(n) }
}

fn v6_only(n: u8) -> proto::Network {
    proto::Network { subnet_v4: String::new(), gateway_v4: String::new(), exclude_v4: vec![], ..dual(n) }
}

fn find<'a>(rows: &'a [Arc<Row>], table: Table, kind: &str) -> &'a Row {
    rows.iter().find(|r| r.key.table == table && r.key.kind == kind).unwrap_or_else(|| panic!("{table:?} {kind}"))
}

fn has(rows: &[Arc<Row>], kind: &str) -> bool {
    rows.iter().any(|r| r.key.kind == kind)
}

const WHOLE: BTreeSet<String> = BTreeSet::new();

#[test]
fn an_endpoint_is_dynamic_first_and_fixed_named_and_guarded_when_its_address_is_known() {
    let port =
        proto::PublishedPort { id: "p".into(), endpoint_id: id(100), protocol: 1, vip_port: 8080, target_port: 80 };
    let desired = desired(vec![network(18)], vec![endpoint(100, 18)], vec![port]);
    let before = rows(&config(), &desired, &Learned::new());
    let lsp = find(&before, Table::LogicalSwitchPort, "endpoint");
    assert_eq!(lsp.columns["addresses"], "02:42:ac:12:00:64 dynamic".into());
    assert_eq!(lsp.columns["port_security"], "02:42:ac:12:00:64".into());
    assert_eq!(lsp.columns["options"].get("hostname"), Some("\"web100\""));
    assert!(find(&before, Table::Dns, "dns").columns["records"].is_empty());
    assert!(!has(&before, "published"));

    let learned =
        Learned::from([(desired.endpoints.keys().next().unwrap().clone(), allocated("02:42:ac:12:00:64 172.18.0.2"))]);
    let after = rows(&config(), &desired, &learned);
    let lsp = find(&after, Table::LogicalSwitchPort, "endpoint");
    assert_eq!(lsp.columns["addresses"], "02:42:ac:12:00:64 172.18.0.2".into());
    assert_eq!(lsp.columns["port_security"], "02:42:ac:12:00:64 172.18.0.2".into());
    let records = &find(&after, Table::Dns, "dns").columns["records"];
    assert_eq!(records.get("web100"), Some("172.18.0.2"));
    assert_eq!(records.get("web100.net18"), Some("172.18.0.2"));
    assert_eq!(records.get("2.0.18.172.in-addr.arpa"), Some("web100.net18"));
    let vips = &find(&after, Table::LoadBalancer, "published").columns["vips"];
    assert_eq!(vips.get("192.168.127.2:8080"), Some("172.18.0.2:80"));
}

#[test]
fn a_name_of_several_endpoints_is_left_to_the_resolver() {
    let desired = desired(vec![network(18)], vec![endpoint(100, 18), endpoint(101, 18)], vec![]);
    let learned = desired.endpoints.keys().zip(["172.18.0.2", "172.18.0.3"]);
    let learned = learned.map(|(id, ip)| (id.clone(), allocated(&format!("mac {ip}")))).collect();
    let all = rows(&config(), &desired, &learned);
    let records = &find(&all, Table::Dns, "dns").columns["records"];
    assert_eq!((records.get("shared"), records.get("web101")), (None, Some("172.18.0.3")));
}

#[test]
fn addresses_with_ipv6_are_fixed_once_all_are_known() {
    let with = |v4: &str, v6: &str| proto::Endpoint { static_v4: v4.into(), static_v6: v6.into(), ..endpoint(100, 18) };
    let written = |network: proto::Network, endpoint: proto::Endpoint, learned: Allocated| {
        let desired = desired(vec![network], vec![endpoint], vec![]);
        let id = desired.endpoints.keys().next().unwrap().clone();
        let rows = rows(&config(), &desired, &Learned::from([(id, learned)]));
        let text = |kind| {
            let row = rows.iter().find(|r| r.key.table == Table::LogicalSwitchPort && r.key.kind == kind)?;
            Some(row.columns["addresses"].as_str()?.to_owned())
        };
        (text("endpoint").unwrap(), text("number6").unwrap_or_default())
    };
    let mac = "02:42:ac:12:00:64";
    let number = |n: u8| format!("0e:4c:3a:1e:c3:88 240.0.0.{}", n + 2);
    let none = Allocated::default();
    let pair = |a: &str, b: &str| (format!("{mac} {a}"), b.to_owned());
    // Nothing known, one of two, both.
    assert_eq!(written(dual(18), with("", ""), none), pair("dynamic", "dynamic"));
    assert_eq!(written(dual(18), with("", ""), allocated("m 172.18.0.2")), pair("dynamic", "dynamic"));
    let known = numbered("m 172.18.0.2", 2);
    assert_eq!(written(dual(18), with("", ""), known).0, format!("{mac} 172.18.0.2 fd00:18::2"));
    // What a port has stays, though its number were lost or became another.
    let other = numbered("m 172.18.0.2 fd00:18::2", 7);
    let (port, row) = written(dual(18), with("", ""), other);
    assert_eq!(port, format!("{mac} 172.18.0.2 fd00:18::2"));
    assert!(row.ends_with(" 240.0.0.4"), "{row} against {}", number(2));
    // Asked for: reserved at once; one without a number needs no row.
    assert_eq!(written(dual(18), with("172.18.0.9", ""), none), pair("172.18.0.9", "dynamic"));
    assert_eq!(written(dual(18), with("172.18.0.9", "fd00:18::9"), none).0, format!("{mac} 172.18.0.9 fd00:18::9"));
    let (port, row) = written(dual(18), with("", "fd00:18::9"), none);
    assert!(port.ends_with(" dynamic") && row.ends_with(" 240.0.0.11"), "{port}, {row}");
    assert_eq!(written(dual(18), with("", "fd00:18::1:0:9"), none), pair("dynamic", ""));
    // Without IPv4.
    assert_eq!(written(v6_only(18), with("", ""), none), (mac.to_owned(), "dynamic".to_owned()));
    assert_eq!(written(v6_only(18), with("", ""), numbered("m", 2)).0, format!("{mac} fd00:18::2"));
}

#[test]
fn an_ipv6_pool_is_numbered_with_what_is_set_apart() {
    let pool = proto::Network {
        subnet_v6: "fd00:18::/48".into(),
        gateway_v6: "fd00:18::5:1".into(),
        range_v6: "fd00:18::5:0/120".into(),
        exclude_v6: vec!["fd00:18::5:4".into(), "fd00:18::9".into()],
        ..v6_only(18)
    };
    let all = rows(&config(), &desired(vec![pool], vec![], vec![]), &Learned::new());
    let numbers = &find(&all, Table::LogicalSwitch, "numbers6").columns["other_config"];
    assert_eq!(numbers.get("subnet"), Some("240.0.0.0/23"));
    assert_eq!(numbers.get("exclude_ips"), Some("240.0.0.3 240.0.0.6 240.0.1.2..240.0.1.254"));
    assert!(find(&all, Table::LogicalSwitch, "switch").columns["other_config"].is_empty());
    let port = find(&all, Table::LogicalRouterPort, "router-port");
    assert_eq!(port.columns["networks"], "fd00:18::5:1/48".into());
}

#[test]
fn ipv4_addresses_that_ovn_cannot_give_out_are_numbered() {
    let of = |subnet: &str, gateway: &str, exclude: &[&str]| {
        let exclude_v4 = exclude.iter().map(|text| (*text).to_owned()).collect();
        let network =
            proto::Network { subnet_v4: subnet.into(), gateway_v4: gateway.into(), exclude_v4, ..network(18) };
        desired(vec![network], vec![endpoint(100, 18)], vec![])
    };
    let own = |d: &Desired| !has(&rows(&config(), d, &Learned::new()), "numbers4");
    assert!(own(&of("172.18.0.0/24", "172.18.0.1", &[])));
    assert!(own(&of("172.18.0.0/24", "172.18.0.9", &["172.18.0.1..172.18.0.8"])));
    // The gateway is elsewhere: the first address is an endpoint's.
    let far = of("172.18.0.0/24", "172.18.0.254", &["172.18.0.7"]);
    let before = rows(&config(), &far, &Learned::new());
    let numbers = &find(&before, Table::LogicalSwitch, "numbers4").columns["other_config"];
    let (subnet, apart) = (numbers.get("subnet"), numbers.get("exclude_ips"));
    assert_eq!(subnet, Some("240.0.0.0/23"));
    assert_eq!(apart, Some("240.0.0.8 240.0.0.255 240.0.1.0 240.0.1.1..240.0.1.254"));
    assert_eq!(find(&before, Table::LogicalSwitch, "switch").columns["other_config"], Value::map::<&str, &str>([]));
    assert_eq!(find(&before, Table::LogicalSwitchPort, "number4").columns["addresses"], "dynamic".into());
    let mac = "02:42:ac:12:00:64";
    assert_eq!(find(&before, Table::LogicalSwitchPort, "endpoint").columns["addresses"], mac.into());
    let number4 = Some(std::net::Ipv4Addr::new(240, 0, 0, 2));
    let learned =
        Learned::from([(far.endpoints.keys().next().unwrap().clone(), Allocated { number4, ..allocated(mac) })]);
    let after = rows(&config(), &far, &learned);
    let port = find(&after, Table::LogicalSwitchPort, "endpoint");
    assert_eq!(port.columns["addresses"], format!("{mac} 172.18.0.1").into());
    assert_eq!(port.columns["addresses"], port.columns["port_security"]);
    // Two addresses: OVN must not take either for a broadcast.
    for (gateway, other, prefix) in [("172.18.0.6", "172.18.0.7", 28), ("172.18.0.7", "172.18.0.6", 28)] {
        let two = rows(&config(), &of("172.18.0.6/31", gateway, &[]), &Learned::new());
        let networks = &find(&two, Table::LogicalRouterPort, "router-port").columns["networks"];
        assert_eq!(networks, &Value::set([format!("{gateway}/{prefix}")]));
        let route = find(&two, Table::LogicalRouterStaticRoute, "two");
        assert_eq!((&route.columns["nexthop"], &route.columns["ip_prefix"]), (&other.into(), &"172.18.0.6/31".into()));
    }
    // A pool that begins far behind the subnet's beginning, of a subnet that is too large for OVN.
    let large = rows(&config(), &of("100.0.0.0/7", "100.9.0.0", &["100.0.0.1..100.8.255.255"]), &Learned::new());
    assert!(
        find(&large, Table::LogicalSwitch, "numbers4").columns["other_config"]
            .get("exclude_ips")
            .unwrap()
            .starts_with("240.0.0.2 ")
    );
}

#[test]
fn a_network_that_the_host_lets_in_is_not_closed_by_ovn() {
    let open = proto::Network { keep_source_v4: true, direct_v4: true, open_v4: true, ..dual(18) };
    let all = rows(&config(), &desired(vec![open, dual(19)], vec![], vec![]), &Learned::new());
    let set = |kind: &str| find(&all, Table::AddressSet, kind).columns["addresses"].clone();
    assert_eq!((set("private4"), set("closed4")), (Value::set(["172.19.0.0/24"]), Value::set(["172.19.0.0/24"])));
    assert_eq!(set("closed6"), Value::set(["fd00:18::/64", "fd00:19::/64"]));
    let sources = |kind: &str| all.iter().filter(|row| row.key.kind == kind).count();
    assert_eq!((sources("snat"), sources("snat6")), (1, 2));
    let policy = find(&all, Table::LogicalRouterPolicy, "open4");
    assert_eq!(policy.columns["nexthops"], Value::set(["192.168.127.1"]));
    assert!(!has(&all, "open6"));
    // What comes from the host is not sent there again.
    let back = find(&all, Table::LogicalRouterPolicy, "from-host");
    assert_eq!((&back.columns["priority"], &back.columns["action"]), (&2000_i64.into(), &"allow".into()));
    assert_eq!(policy.columns["priority"], 1000_i64.into());
}

#[test]
fn a_network_of_ipv6_alone_has_the_rows_of_that_family() {
    let port =
        proto::PublishedPort { id: "p".into(), endpoint_id: id(100), protocol: 1, vip_port: 8080, target_port: 80 };
    let apart = proto::Network { inter_container: false, ..v6_only(18) };
    let desired = desired(vec![apart], vec![endpoint(100, 18)], vec![port]);
    let id = desired.endpoints.keys().next().unwrap().clone();
    let all = rows(&config(), &desired, &Learned::from([(id, numbered("m", 2))]));
    assert!(has(&all, "snat6") && !has(&all, "snat") && has(&all, "dhcp6") && !has(&all, "dhcp4"));
    assert!(has(&all, "icc6") && !has(&all, "icc4") && has(&all, "isolate4") && has(&all, "default6"));
    let lsp = find(&all, Table::LogicalSwitchPort, "endpoint");
    assert!(lsp.columns["dhcpv4_options"].is_empty() && !lsp.columns["dhcpv6_options"].is_empty());
    assert_eq!(lsp.columns["port_security"], "02:42:ac:12:00:64 fd00:18::2".into());
    let vips = &find(&all, Table::LoadBalancer, "published").columns["vips"];
    assert_eq!(vips.get("[fd00:77::2]:8080"), Some("[fd00:18::2]:80"));
    let vips = &find(&all, Table::LoadBalancer, "dns-udp").columns["vips"];
    assert_eq!(vips.get("[fd00:18::1]:53"), Some("[fd00:77::3]:53"));
    let records = &find(&all, Table::Dns, "dns").columns["records"];
    assert_eq!(records.get("web100"), Some("fd00:18::2"));
    // Where the host has no IPv6 there is no way out either.
    let four = Config { v6: None, ..config() };
    let all = rows(&four, &desired, &Learned::new());
    assert!(!has(&all, "snat6") && !has(&all, "default6"));
}

#[test]
fn names_come_late_and_go_at_once() {
    let mut fake = Fake::default();
    let both = desired(vec![network(18)], vec![endpoint(100, 18), endpoint(101, 18)], vec![]);
    let addresses = [("02:42:ac:12:00:64 172.18.0.2", 0), ("02:42:ac:12:00:65 172.18.0.3", 1)];
    let mut ids = both.endpoints.keys().cloned();
    let learned: Learned = addresses.iter().map(|(text, _)| (ids.next().unwrap(), allocated(text))).collect();
    let mut follow = |wanted: &[Arc<Row>], late: bool| {
        let mut changes = diff(&fake.observed(), wanted, Scope::Whole { except: &WHOLE });
        let held = late && without_new_names(&mut changes);
        fake.apply(&changes);
        let observed = fake.observed();
        let (_, found) = observed.rows.iter().find(|(key, _)| key.table == Table::Dns).unwrap();
        let names = ["web100", "web101"].map(|name| found.row["records"].get(name).is_some());
        (held, names)
    };
    let [none, all] = [Learned::new(), learned.clone()].map(|learned| rows(&config(), &both, &learned));
    assert_eq!(follow(&none, true), (false, [false, false]));
    assert_eq!(follow(&all, true), (true, [false, false]));
    assert_eq!(follow(&all, false), (false, [true, true]));
    let one = desired(vec![network(18)], vec![endpoint(101, 18)], vec![]);
    // What both were called is the other's alone now: that is a new name.
    assert_eq!(follow(&rows(&config(), &one, &learned), true), (true, [false, true]));
}

#[test]
fn ovn_need_not_ask_for_a_neighbour_that_is_known() {
    let addresses = |config: &Config| {
        let rows = rows(config, &Desired::default(), &Learned::new());
        find(&rows, Table::LogicalSwitchPort, "ext-localnet").columns["addresses"].clone()
    };
    assert_eq!(addresses(&config()), "unknown".into());
    let [host, own] = [1, 3].map(|n| MacAddr::from([2, 0, 0, 0, 0, n]));
    let at = |text: &str, mac| (text.parse().unwrap(), mac);
    let neighbours = [at("192.168.127.1", host), at("fd00:77::1", host), at("192.168.127.3", own)].into();
    let known = ["unknown", "02:00:00:00:00:01 192.168.127.1 fd00:77::1", "02:00:00:00:00:03 192.168.127.3"];
    assert_eq!(addresses(&Config { neighbours, ..config() }), Value::set(known));
}

#[test]
fn an_internal_network_has_a_resolver_but_no_way_out() {
    let (subnet_v6, gateway_v6) = ("fd00:18::/64".to_owned(), "fd00:18::1".to_owned());
    let closed = proto::Network { internal: true, isolated: true, inter_container: false, ..network(18) };
    let internal = proto::Network { subnet_v6, gateway_v6, ..closed };
    let rows = rows(&config(), &desired(vec![internal], vec![], vec![]), &Learned::new());
    assert!(has(&rows, "isolated4") && has(&rows, "isolated6") && has(&rows, "icc-other") && has(&rows, "uplink4"));
    assert!(has(&rows, "icc-turn4") && has(&rows, "icc-turn6"));
    assert!(!has(&rows, "snat") && has(&rows, "internal4") && has(&rows, "internal6") && has(&rows, "icc4"));
    assert!(has(&rows, "dns-udp") && has(&rows, "dns-tcp"));
    assert_eq!(find(&rows, Table::DhcpOptions, "dhcp4").columns["options"].get("router"), None);
    let open = desired(vec![proto::Network { dns: false, ..network(18) }], vec![], vec![]);
    let rows = super::rows::rows(&config(), &open, &Learned::new());
    assert!(has(&rows, "snat") && !has(&rows, "internal4") && !has(&rows, "icc4") && !has(&rows, "dns"));
    assert!(!has(&rows, "isolated4") && !has(&rows, "icc-other"));
    let uplink = &find(&rows, Table::Acl, "uplink4").columns["match"];
    assert_eq!(uplink.as_str(), Some("inport == @net_121212121212 && ip4.dst == {192.168.127.2, 192.168.127.3}"));
    assert_eq!(find(&rows, Table::DhcpOptions, "dhcp4").columns["options"].get("router"), Some("172.18.0.1"));
}

#[test]
fn addressing_of_a_live_switch_is_never_edited() {
    let mut fake = Fake::default();
    let first = rows(&config(), &desired(vec![network(18)], vec![], vec![]), &Learned::new());
    fake.apply(&diff(&fake.observed(), &first, Scope::Whole { except: &WHOLE }));
    let other = proto::Network { exclude_v4: vec![], ..network(18) };
    let second = rows(&config(), &desired(vec![other], vec![], vec![]), &Learned::new());
    assert_eq!(diff(&fake.observed(), &second, Scope::Whole { except: &WHOLE }), vec![]);
}

#[test]
fn before_the_first_sync_nothing_unknown_goes() {
    let mut fake = Fake::default();
    let learned: Learned = [(100, "m 172.18.0.2"), (101, "m 172.18.0.3")]
        .map(|(n, a)| (super::model::EndpointId::new(&id(n)).unwrap(), allocated(a)))
        .into();
    let both = desired(vec![network(18), network(19)], vec![endpoint(100, 18), endpoint(101, 18)], vec![]);
    let both = rows(&config(), &both, &learned);
    fake.apply(&diff(&fake.observed(), &both, Scope::Whole { except: &WHOLE }));
    let before = fake.contents();

    // A new agent knows one network and one endpoint of it.
    let part = rows(&config(), &desired(vec![network(18)], vec![endpoint(100, 18)], vec![]), &learned);
    let none = BTreeSet::new();
    let changes = diff(&fake.observed(), &part, Scope::Part { removed: &none });
    // Only the name both share is new: this agent believes it to have one owner.
    assert_eq!(Counts::of(&changes), Counts { updated: 1, ..Counts::default() }, "{changes:?}");
    fake.apply(&changes);
    let removed = BTreeSet::from([id(101)]);
    fake.apply(&diff(&fake.observed(), &part, Scope::Part { removed: &removed }));
    let after = fake.contents();
    assert_eq!(before.len() - 1, after.len(), "the withdrawn endpoint's port is all that went");

    // The full state may except a network that was refused.
    let except = BTreeSet::from([id(18)]);
    let empty = rows(&config(), &Desired::default(), &learned);
    fake.apply(&diff(&fake.observed(), &empty, Scope::Whole { except: &except }));
    let observed = fake.observed();
    assert!(observed.rows.values().any(|r| r.network == id(18)) && observed.rows.values().all(|r| r.network != id(19)));
}

#[test]
fn foreign_rows_and_doubles() {
    let mut fake = Fake::default();
    let wanted = rows(&config(), &desired(vec![network(18)], vec![], vec![]), &Learned::new());
    fake.apply(&diff(&fake.observed(), &wanted, Scope::Whole { except: &WHOLE }));
    let foreign = fake.insert(Table::Acl, FakeRow::from([("match".into(), "1".into())]));
    let (_, group) = fake.rows.values_mut().find(|(t, _)| *t == Table::PortGroup).unwrap();
    mutate(group.get_mut("acls").unwrap(), Mutator::Insert, Value::from(foreign));
    let double = fake.rows.values().find(|(t, _)| *t == Table::Dns).unwrap().1.clone();
    let double = fake.insert(Table::Dns, double);
    let changes = diff(&fake.observed(), &wanted, Scope::Whole { except: &WHOLE });
    assert_eq!(Counts::of(&changes), Counts { deleted: 1, ..Counts::default() }, "{changes:?}");
    fake.apply(&changes);
    assert!(fake.rows.contains_key(&foreign) && !fake.rows.contains_key(&double));
}

#[test]
fn operations_name_new_rows_and_guard_root_ones() {
    let changes = diff(
        &Fake::default().observed(),
        &rows(&config(), &desired(vec![network(18)], vec![endpoint(100, 18)], vec![]), &Learned::new()),
        Scope::Whole { except: &WHOLE },
    );
    let text: Vec<String> = operations(&changes).iter().map(|(_, op)| op.to_json().to_string()).collect();
    assert!(text[0].contains("\"wait\"") && text[0].contains("arca-id"), "{}", text[0]);
    assert!(text.iter().all(|op| !op.contains("named-uuid\",\"Logical")), "a reference is left unresolved");
    let inserts = text.iter().filter(|op| op.contains("\"uuid-name\":\"row")).count();
    assert_eq!(inserts, changes.len());
}

#[test]
fn bad_objects_are_refused() {
    type Edit = fn(&mut proto::Network);
    let edits: [Edit; 12] = [
        |n| n.id = "x".into(),
        |n| n.name = "a\"b".into(),
        |n| n.gateway_v4 = "10.0.0.1".into(),
        |n| n.exclude_v4 = vec!["10.9.9.9".into()],
        |n| n.exclude_v4 = vec!["172.18.0.4-172.18.0.9".into()],
        |n| (n.subnet_v6, n.gateway_v6) = ("fd00::/127".into(), "fd00::1".into()),
        |n| (n.subnet_v6, n.gateway_v6) = ("fd00::/80".into(), "fd00::".into()),
        |n| (n.subnet_v6, n.gateway_v6, n.range_v6) = ("fd00::/80".into(), "fd00::1".into(), "fd00::/64".into()),
        |n| {
            (n.subnet_v6, n.gateway_v6) = ("fd00::/80".into(), "fd00::1".into());
            n.exclude_v6 = vec!["fd00:1::1".into()];
        },
        |n| (n.subnet_v4, n.gateway_v4) = (String::new(), String::new()),
        |n| n.mtu = 70_000,
        |n| n.mtu = 0,
    ];
    for (i, edit) in edits.iter().enumerate() {
        let mut n = network(18);
        edit(&mut n);
        assert!(Network::try_from(n).is_err(), "edit {i}");
    }
    assert!(Name::new("name", "a\\b").is_err() && Name::new("name", "a..b").is_err());
    assert_eq!(Name::new("name", "API.Example").unwrap().as_str(), "api.example");
}

fn any_desired() -> impl Strategy<Value = (Desired, Learned)> {
    let network = (1u8..6, any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    let networks = proptest::collection::btree_map(1u8..6, network, 0..5);
    let endpoints = proptest::collection::btree_map(100u8..120, (1u8..6, any::<bool>(), any::<bool>(), 1u64..3), 0..12);
    let ports = proptest::collection::btree_map(0u16..5, (100u8..120, 1i32..3), 0..4);
    (networks, endpoints, ports).prop_map(|(networks, endpoints, ports)| {
        let networks: Vec<_> = networks
            .into_iter()
            .map(|(n, (_, internal, icc, masquerade, dns, six))| proto::Network {
                internal,
                inter_container: icc,
                masquerade,
                dns,
                subnet_v6: if six { format!("fd00:{n}::/64") } else { String::new() },
                gateway_v6: if six { format!("fd00:{n}::1") } else { String::new() },
                ..network_of(n)
            })
            .collect();
        let mut learned = Learned::new();
        let mut declared = Vec::new();
        let mut generations = BTreeMap::new();
        for (n, (net, known, fixed, generation)) in endpoints {
            if !networks.iter().any(|x| x.id == id(net)) {
                continue;
            }
            let mut e = endpoint(n, net);
            if fixed {
                e.static_v4 = format!("172.{net}.0.{n}");
            } else if known {
                let id = super::model::EndpointId::new(&e.id).unwrap();
                learned.insert(id, numbered(&format!("m 172.{net}.0.{n}"), n));
            }
            generations.insert(e.id.clone(), generation);
            declared.push(e);
        }
        let ports = ports.into_iter().filter(|(_, (e, _))| declared.iter().any(|d| d.id == id(*e)));
        let ports = ports
            .map(|(n, (e, protocol))| proto::PublishedPort {
                id: format!("port{n}"),
                endpoint_id: id(e),
                protocol,
                vip_port: 8000 + u32::from(n),
                target_port: 80,
            })
            .collect();
        let mut desired = desired(networks, declared, ports);
        for e in desired.endpoints.values_mut() {
            e.generation = generations[e.object.id.as_str()];
        }
        (desired, learned)
    })
}

fn network_of(n: u8) -> proto::Network {
    network(n)
}

proptest! {
    #[test]
    fn applying_a_difference_gives_the_desired_rows_and_twice_changes_nothing(steps in proptest::collection::vec(any_desired(), 1..5)) {
        let mut fake = Fake::default();
        let mut drawing = Drawing::default();
        for (desired, learned) in steps {
            let mut wanted = rows(&config(), &desired, &learned);
            prop_assert_eq!(&drawing.rows(&config(), &desired, &learned), &wanted);
            let changes = diff(&fake.observed(), &wanted, Scope::Whole { except: &WHOLE });
            // Addressing of a network that lives on stays as it was first written.
            let kept = fake.contents();
            fake.apply(&changes);
            for row in &mut wanted {
                if row.key.table == Table::LogicalSwitch
                    && let Some(live) = kept.get(&format!("{:?}", row.key)) {
                    Arc::make_mut(row).columns.insert("other_config", live["other_config"].clone());
                }
            }
            prop_assert_eq!(fake.contents(), contents_of(&wanted));
            let again = diff(&fake.observed(), &wanted, Scope::Whole { except: &WHOLE });
            prop_assert_eq!(again, vec![]);
        }
    }
}
