// SPDX-License-Identifier: Apache-2.0
//! By which rules declarations are accepted.

use std::collections::{BTreeMap, BTreeSet};

use arca_proto::helper::v1::{self as proto, object};
use proptest::prelude::*;

use super::convert;
use super::observe::{Observations, news, observe};
use super::state::{Key, Kind, Live, Put, Refusal, State};
use crate::nb::diff::Scope;
use crate::nb::model::EndpointId;
use crate::nb::observed::Observed;
use crate::nb::tests::{allocated, endpoint, id, network};
use crate::ovsdb;

fn put(generation: u64, kind: object::Kind) -> Put {
    Put::new(proto::Object { generation, kind: Some(kind) }).unwrap()
}

fn net(generation: u64, n: proto::Network) -> Put {
    put(generation, object::Kind::Network(n))
}

fn ep(generation: u64, e: proto::Endpoint) -> Put {
    put(generation, object::Kind::Endpoint(e))
}

fn port(id: &str, endpoint: u8, vip_port: u32) -> Put {
    let endpoint_id = self::id(endpoint);
    let p = proto::PublishedPort { id: id.into(), endpoint_id, protocol: 1, vip_port, target_port: 80 };
    put(1, object::Kind::PublishedPort(p))
}

fn key(kind: Kind, n: u8) -> Key {
    Key { kind, id: id(n) }
}

fn with_ip(n: u8, ip: &str) -> proto::Endpoint {
    proto::Endpoint { static_v4: ip.into(), ..endpoint(n, 18) }
}

fn live(rows: &[(u8, &str)]) -> Live {
    let endpoint = |(n, ip): &(u8, &str)| (EndpointId::new(&id(*n)).unwrap(), id(18), allocated(&format!("m {ip}")));
    let mut live = Live::default();
    live.endpoints.extend(rows.iter().map(endpoint));
    live
}

fn refusal(state: &State, kind: Kind, n: u8) -> Option<&Refusal> {
    state.refused.get(&key(kind, n)).map(|(_, refusal)| refusal)
}

#[test]
fn objects_of_one_request_may_come_in_any_order() {
    let mut state = State::default();
    state.apply(vec![port("p", 100, 80), ep(1, endpoint(100, 18)), net(1, network(18))], vec![], &Live::default());
    assert!(state.refused.is_empty(), "{:?}", state.refused);
    assert_eq!((state.desired.networks.len(), state.desired.endpoints.len(), state.desired.ports.len()), (1, 1, 1));
}

#[test]
fn older_generations_are_ignored() {
    let mut state = State::default();
    let none = Live::default();
    state.apply(vec![net(5, network(18))], vec![], &none);
    state.apply(vec![net(4, proto::Network { internal: true, ..network(18) })], vec![], &none);
    assert!(!state.desired.networks.values().next().unwrap().object.internal);
    state.apply(vec![], vec![(key(Kind::Network, 18), 4)], &none);
    assert_eq!(state.generation(&key(Kind::Network, 18)), Some(5));
    state.apply(vec![], vec![(key(Kind::Network, 18), 6)], &none);
    state.apply(vec![net(6, network(18))], vec![], &none);
    assert_eq!(state.generation(&key(Kind::Network, 18)), None, "a late put does not bring it back");
    state.apply(vec![net(7, network(18))], vec![], &none);
    assert_eq!(state.generation(&key(Kind::Network, 18)), Some(7));
}

#[test]
fn one_bad_object_does_not_hinder_the_others_and_keeps_its_older_self() {
    let mut state = State::default();
    let none = Live::default();
    let bad = proto::Network { mtu: 1, ..network(19) };
    let elsewhere = endpoint(101, 77);
    state.apply(vec![net(1, network(18)), net(1, bad), ep(1, endpoint(100, 18)), ep(1, elsewhere)], vec![], &none);
    assert_eq!(state.desired.endpoints.len(), 1);
    assert!(matches!(refusal(&state, Kind::Network, 19), Some(Refusal::Invalid(_))));
    assert!(matches!(refusal(&state, Kind::Endpoint, 101), Some(Refusal::UnknownNetwork(_))));
    state.apply(vec![ep(2, with_ip(100, "10.0.0.1"))], vec![], &none);
    assert!(matches!(refusal(&state, Kind::Endpoint, 100), Some(Refusal::Invalid(_))));
    assert_eq!(state.generation(&key(Kind::Endpoint, 100)), Some(1));
    // The same generation may be tried again once it can succeed.
    state.apply(vec![ep(2, with_ip(100, "172.18.0.9"))], vec![], &none);
    assert!(refusal(&state, Kind::Endpoint, 100).is_none());
    assert_eq!(state.generation(&key(Kind::Endpoint, 100)), Some(2));
}

#[test]
fn addresses_are_checked_before_they_are_written() {
    let mut state = State::default();
    let live = live(&[(100, "172.18.0.2"), (111, "172.18.0.7")]);
    state.apply(vec![net(1, network(18)), ep(1, endpoint(100, 18))], vec![], &live);
    let in_use = |state: &State, n| matches!(refusal(state, Kind::Endpoint, n), Some(Refusal::AddressInUse { .. }));
    let inputs = [
        (101, "172.18.0.2", true),
        (102, "172.18.0.1", true),
        (103, "172.18.0.7", true),
        (104, "172.18.0.200", false),
        (105, "172.18.0.200", true),
    ];
    for (n, ip, taken) in inputs {
        state.apply(vec![ep(1, with_ip(n, ip))], vec![], &live);
        assert_eq!(in_use(&state, n), taken, "{n} {ip}");
    }
    for ip in ["172.18.0.0", "172.18.0.255", "10.0.0.1", "nonsense"] {
        state.apply(vec![ep(1, with_ip(106, ip))], vec![], &live);
        assert!(matches!(refusal(&state, Kind::Endpoint, 106), Some(Refusal::Invalid(_))), "{ip}");
    }
    let same_mac = proto::Endpoint { mac: endpoint(100, 18).mac, ..endpoint(107, 18) };
    state.apply(vec![ep(1, same_mac)], vec![], &live);
    assert!(in_use(&state, 107));
    let same_link = proto::Endpoint { link: 100, ..endpoint(108, 18) };
    state.apply(vec![ep(1, same_link)], vec![], &live);
    assert!(matches!(refusal(&state, Kind::Endpoint, 108), Some(Refusal::Invalid(_))));
    // Stop and start with the same --ip, in one request: the row is still there, its owner is not.
    state.apply(vec![ep(1, with_ip(109, "172.18.0.2"))], vec![(key(Kind::Endpoint, 100), 2)], &live);
    assert!(refusal(&state, Kind::Endpoint, 109).is_none());
}

#[test]
fn addressing_of_a_live_network_and_overlaps_are_refused() {
    let mut state = State::default();
    let accepted: crate::nb::model::Network = network(18).try_into().unwrap();
    let mut live = Live::default();
    live.addressing.insert(id(18), [accepted.addressing(), BTreeMap::new(), BTreeMap::new()]);
    state.apply(vec![net(1, proto::Network { exclude_v4: vec![], ..network(18) })], vec![], &live);
    assert!(matches!(refusal(&state, Kind::Network, 18), Some(Refusal::Invalid(_))));
    state.apply(vec![net(1, network(18))], vec![], &live);
    let wide = proto::Network {
        subnet_v4: "172.16.0.0/12".into(),
        gateway_v4: "172.16.0.1".into(),
        exclude_v4: vec![],
        ..network(19)
    };
    state.apply(vec![net(1, wide.clone())], vec![], &live);
    assert!(matches!(refusal(&state, Kind::Network, 19), Some(Refusal::Invalid(_))));
    // A full declaration that must be refused for a living network leaves its rows alone.
    state.replace(vec![net(2, proto::Network { exclude_v4: vec![], ..network(18) })], &live);
    assert!(matches!(state.scope(), Scope::Whole { except } if except.is_empty()), "its older self stays declared");
    let mut fresh = State::default();
    fresh.replace(vec![net(2, proto::Network { exclude_v4: vec![], ..network(18) })], &live);
    assert!(matches!(fresh.scope(), Scope::Whole { except } if except.contains(&id(18))));
}

#[test]
fn a_full_declaration_withdraws_the_rest() {
    let mut state = State::default();
    let none = Live::default();
    let first = vec![net(1, network(18)), net(1, network(19)), ep(1, endpoint(100, 18)), ep(1, endpoint(101, 19))];
    state.apply(first, vec![], &none);
    assert!(matches!(state.scope(), Scope::Part { .. }));
    let newer = ep(3, endpoint(100, 18));
    state.apply(vec![newer, port("p", 100, 80)], vec![], &none);
    state.replace(vec![net(1, network(18)), ep(1, endpoint(100, 18))], &none);
    assert!(matches!(state.scope(), Scope::Whole { .. }));
    assert_eq!((state.desired.networks.len(), state.desired.endpoints.len(), state.desired.ports.len()), (1, 1, 0));
    assert_eq!(state.generation(&key(Kind::Endpoint, 100)), Some(3), "the newer generation stays");
    // A new agent: what lives keeps its address although it is listed after whoever wants it.
    let mut fresh = State::default();
    let live = live(&[(101, "172.18.0.2")]);
    fresh.replace(vec![net(1, network(18)), ep(1, with_ip(100, "172.18.0.2")), ep(1, endpoint(101, 18))], &live);
    assert!(matches!(refusal(&fresh, Kind::Endpoint, 100), Some(Refusal::AddressInUse { .. })));
}

#[test]
fn a_network_goes_after_its_endpoints() {
    let mut state = State::default();
    let none = Live::default();
    state.apply(vec![net(1, network(18)), ep(1, endpoint(100, 18)), port("p", 100, 80)], vec![], &none);
    state.apply(vec![], vec![(key(Kind::Network, 18), 2)], &none);
    assert!(matches!(refusal(&state, Kind::Network, 18), Some(Refusal::Invalid(_))));
    assert!(!state.quarantine(&id(18), "x"));
    let both = vec![(key(Kind::Network, 18), 2), (key(Kind::Endpoint, 100), 2)];
    state.apply(vec![], both, &none);
    assert!(state.desired.networks.is_empty() && state.refused.is_empty());
}

#[test]
fn watchers_are_told_of_changes_only() {
    let mut state = State::default();
    let rows: Observed<std::sync::Arc<ovsdb::Row>> = Observed::new([]);
    let look = |state: &State, before: &Observations| observe(state, &rows, &BTreeSet::new(), &BTreeMap::new(), before);
    state.apply(vec![net(1, network(18)), ep(1, endpoint(100, 18))], vec![], &Live::default());
    let first = look(&state, &Observations::new());
    assert_eq!(news(&Observations::new(), &first).len(), 2);
    assert!(news(&first, &look(&state, &first)).is_empty());
    state.apply(vec![ep(1, endpoint(101, 77))], vec![(key(Kind::Endpoint, 100), 2)], &Live::default());
    let second = look(&state, &first);
    let told: Vec<_> = news(&first, &second).iter().map(|o| convert::message(o)).collect();
    assert_eq!(told.len(), 2);
    assert!(told.iter().any(|o| o.removed && o.key.as_ref().unwrap().id == id(100)));
    let unknown = told.iter().find(|o| !o.removed).unwrap();
    assert_eq!(unknown.error_kind(), proto::ErrorKind::UnknownNetwork);
    assert!(unknown.error.contains("not declared"), "{}", unknown.error);
}

proptest! {
    #[test]
    fn no_declaration_crashes(id in "\\PC{0,70}", text in "\\PC{0,30}", number: u32, generation: u64) {
        let mut state = State::default();
        let e = proto::Endpoint {
            id: id.clone(), network_id: text.clone(), link: number, mac: text.clone(), static_v4: text.clone(),
            static_v6: text.clone(), names: vec![text.clone()], hostname: text.clone(), machine_id: id.clone(), carrier: 9,
            links: [(text.clone(), id.clone())].into(), forwarders: vec![text.clone()], extra_addresses: vec![id.clone()],
        };
        let n = proto::Network { id: id.clone(), name: text.clone(), subnet_v4: text.clone(), mtu: number, ..network(18) };
        let p = proto::PublishedPort { id, endpoint_id: text, protocol: 7, vip_port: number, target_port: number };
        let all = [object::Kind::Endpoint(e), object::Kind::Network(n), object::Kind::PublishedPort(p)];
        state.apply(all.into_iter().map(|k| put(generation, k)).collect(), vec![], &Live::default());
        prop_assert_eq!(state.refused.len(), 3);
    }
}
