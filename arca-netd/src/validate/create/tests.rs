// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::store::Draft;

pub(crate) fn context() -> Context {
    Context {
        id: NetworkId::random().unwrap(),
        now_ns: 1,
        unique_local: pools::unique_local([1, 2, 3, 4, 5]),
        pools: pools::docker_defaults(),
        host: Vec::new(),
        host_v6: Vec::new(),
        uplink: "192.168.127.0/29".parse().unwrap(),
        uplink_v6: Some("fd00:77::/64".parse().unwrap()),
        ipv6: true,
        routes: true,
        default_kind: DefaultKind::Ovs,
    }
}

pub(crate) fn spec(name: &str) -> Spec {
    Spec { name: name.into(), ..Spec::default() }
}

pub(crate) fn make(spec: Spec, state: &State) -> Result<Network> {
    network(spec, state, &context())
}

fn with_pool(name: &str, subnet: &str) -> Spec {
    Spec { ipam_pools: vec![ShownPool { subnet: subnet.into(), ..ShownPool::default() }], ..spec(name) }
}

fn state() -> Draft {
    let mut draft = Draft::new(State::default());
    crate::predefined::ensure(&mut draft, &context()).unwrap();
    draft
}

#[test]
fn refusals_have_dockers_class_and_text() {
    let mut draft = state();
    draft.put_network(make(spec("np_a"), &draft).unwrap());
    let refused = |spec: Spec| match make(spec, &draft).unwrap_err() {
        Error::Invalid(text) => (400, text),
        Error::Forbidden(text) => (403, text),
        Error::NotFound(text) => (404, text),
        Error::Conflict(text) => (409, text),
        Error::Unsupported(text) => (501, text),
        other => (500, other.to_string()),
    };
    let driver = |driver: &str| Spec { driver: driver.into(), ..spec("x") };
    for (spec, code, text) in [
        (spec(" "), 400, "invalid name: name is empty"),
        (spec("host"), 403, "operation is not permitted on predefined host network "),
        (spec("np_a"), 409, "network with name np_a already exists"),
        (driver("nope"), 404, "plugin \"nope\" not found"),
        (driver("null"), 403, "only one instance of \"null\" network is allowed"),
        (driver("overlay"), 403, NO_SWARM),
        (
            driver("macvlan"),
            501,
            "network driver \"macvlan\" is not supported yet; use the ovs backend (driver bridge)",
        ),
        (Spec { ipam_driver: "nope".into(), ..spec("x") }, 404, "plugin \"nope\" not found"),
        (Spec { enable_ipv4: Some(false), ..spec("x") }, 400, "IPv4 or IPv6 must be enabled"),
        (
            Spec { options: [("com.docker.network.enable_ipv6".into(), "zz".into())].into(), ..spec("x") },
            400,
            "driver-opt \"com.docker.network.enable_ipv6\" is not a valid bool",
        ),
        (Spec { config_from: "X".into(), ..spec("x") }, 404, "configuration network \"X\" does not exist"),
        (with_pool("x", "172.17.5.0/24"), 403, OVERLAP),
        (with_pool("x", "172.18.0.0/24"), 403, OVERLAP),
        (with_pool("x", "192.168.127.0/24"), 403, OVERLAP),
    ] {
        assert_eq!(refused(spec), (code, text.to_owned()));
    }
}

#[test]
fn what_was_given_is_shown_as_given_and_what_was_allocated_after() {
    let mut draft = state();
    let plain = make(spec("a"), &draft).unwrap();
    assert_eq!(plain.spec.driver, "bridge");
    assert_eq!(plain.shown_pools, [shown_pool(&"172.18.0.0/16", &"172.18.0.1")]);
    let given = make(with_pool("b", "10.1.0.0/24"), &draft).unwrap();
    assert_eq!(given.shown_pools[0].gateway, "");
    assert_eq!(given.v4.unwrap().gateway.to_string(), "10.1.0.1");
    let six = make(Spec { enable_ipv6: Some(true), ..with_pool("c", "10.1.0.0/24") }, &draft).unwrap();
    assert_eq!(six.shown_pools[1].subnet, "fd01:203:405::/64");
    let only_six = make(Spec { enable_ipv4: Some(false), enable_ipv6: Some(true), ..spec("d") }, &draft);
    let only_six = only_six.unwrap();
    assert!(only_six.v4.is_none() && only_six.route_v4().is_none() && !only_six.enable_ipv4);
    assert_eq!(only_six.shown_pools, [shown_pool(&"fd01:203:405::/64", &"fd01:203:405::1")]);
    draft.put_network(only_six);
    let next = make(Spec { enable_ipv6: Some(true), ..spec("e") }, &draft).unwrap();
    assert_eq!(next.shown_pools[1], shown_pool(&"fd01:203:405:1::/64", &"fd01:203:405:1::1"));
    // Refused before anything is written.
    for subnet in ["fd01:203:405::/80", "fd00::/16", "fd00:77::/64"] {
        let overlapping = make(Spec { enable_ipv6: Some(true), ..with_pool("f", subnet) }, &draft);
        assert_eq!(overlapping.unwrap_err().to_string(), OVERLAP, "{subnet}");
    }
    // A subnet of a family that is off is shown and has no effect.
    let off = Spec { enable_ipv4: Some(false), enable_ipv6: Some(true), ..with_pool("g", "10.9.0.0/24") };
    let off = make(off, &draft).unwrap();
    assert!(off.v4.is_none() && off.shown_pools.len() == 2);
}

#[test]
fn pools_run_out() {
    let mut draft = state();
    for n in 0..29 {
        let network = make(spec(&format!("n{n}")), &draft).unwrap();
        draft.put_network(network);
    }
    // One /20 of the thirty holds the uplink.
    let error = make(spec("last"), &draft).unwrap_err().to_string();
    assert_eq!(error, "all predefined address pools have been fully subnetted");
}

#[test]
fn a_configuration_network_is_copied() {
    let mut draft = state();
    let source =
        Spec { config_only: true, labels: [("a".into(), "1".into())].into(), ..with_pool("cfg", "10.1.0.0/24") };
    let source = make(source, &draft).unwrap();
    assert_eq!((source.spec.driver.as_str(), source.kind), ("null", Kind::Config));
    draft.put_network(source);
    let copy = make(Spec { config_from: "cfg".into(), ..spec("x") }, &draft).unwrap();
    assert_eq!(copy.v4.unwrap().subnet.to_string(), "10.1.0.0/24");
    assert_eq!(copy.spec.labels["a"], "1");
    let own = Spec { config_from: "cfg".into(), ..with_pool("y", "10.2.0.0/24") };
    assert!(make(own, &draft).unwrap_err().to_string().starts_with("user specified configurations"));
}

#[test]
fn without_ipv6_in_the_kernel_a_network_of_it_is_refused_and_others_are_made() {
    let without = Context { ipv6: false, ..context() };
    let six = Spec { enable_ipv6: Some(true), ..spec("six") };
    assert!(matches!(network(six, &State::default(), &without), Err(Error::Unsupported(text)) if text == NO_IPV6));
    assert!(network(spec("four"), &State::default(), &without).is_ok());
}
