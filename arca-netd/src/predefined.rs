// SPDX-License-Identifier: Apache-2.0
//! The three networks that are always there. Made once; their ids stay for the life of the database.

use ipnet::Ipv4Net;

use crate::{
    error::{Error, Result},
    model::{Kind, Network, NetworkId, ShownPool, Spec},
    pools::{self, DEFAULT_BRIDGE},
    store::Draft,
    validate::{create::Context, ipam},
};

/// Options that `docker network inspect bridge` shows (Docker API, "inspect / list shape").
const BRIDGE_OPTIONS: [(&str, &str); 6] = [
    ("com.docker.network.bridge.default_bridge", "true"),
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
    ("com.docker.network.bridge.name", "docker0"),
    ("com.docker.network.driver.mtu", "1500"),
];

/// Gives the default bridge the configured backend, if no endpoint is on it; its subnet too, where the host has the usual
/// one. What it was and what it is now.
///
/// # Errors
/// If no subnet is left.
pub fn follow(draft: &mut Draft, context: &Context) -> Result<Option<(Network, Network)>> {
    let Some(before) = draft.networks.values().find(|network| network.predefined && network.name() == "bridge") else {
        return Ok(None);
    };
    let before = Network::clone(before);
    let kind = context.default_kind.kind();
    if before.kind == kind {
        return Ok(None);
    }
    let held = draft.endpoints_of(&before.id).count();
    if held > 0 {
        tracing::info!(
            endpoints = held,
            backend = before.backend(),
            "the default bridge network keeps its backend while containers are on it"
        );
        return Ok(None);
    }
    let mut after = Network { kind, generation: draft.next_generation(), ..before.clone() };
    // An OVN network never meets the host's routes, a native one does.
    let others = draft.networks.values().filter(|network| network.id != before.id);
    let taken: Vec<_> = others.filter_map(|network| network.v4.as_ref()).map(|v4| v4.subnet).collect();
    let taken: Vec<_> = taken.into_iter().chain(context.host.iter().copied()).chain([context.uplink]).collect();
    if kind == Kind::Vmnet && taken.iter().any(|net| pools::overlap(net, &DEFAULT_BRIDGE)) {
        let subnet = pools::first_free(&context.pools, &taken)
            .ok_or_else(|| Error::Invalid("all predefined address pools have been fully subnetted".into()))?;
        place(&mut after, subnet);
    } else {
        place(&mut after, DEFAULT_BRIDGE);
    }
    draft.put_network(after.clone());
    Ok(Some((before, after)))
}

fn place(network: &mut Network, subnet: Ipv4Net) {
    let gateway = ipam::first_host(subnet);
    network.v4 = Some(ipam::default_v4(subnet, gateway, false));
    network.shown_pools =
        vec![ShownPool { subnet: subnet.to_string(), gateway: gateway.to_string(), ..ShownPool::default() }];
}

/// Adds those of `bridge`, `host` and `none` that are missing.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn ensure(draft: &mut Draft, context: &Context) -> Result<()> {
    for (name, driver, kind) in
        [("bridge", "bridge", Kind::Ovs), ("host", "host", Kind::Host), ("none", "null", Kind::None)]
    {
        if draft.networks.values().any(|network| network.name() == name) {
            continue;
        }
        let bridge = kind == Kind::Ovs;
        let gateway = ipam::first_host(DEFAULT_BRIDGE);
        let shown =
            ShownPool { subnet: DEFAULT_BRIDGE.to_string(), gateway: gateway.to_string(), ..ShownPool::default() };
        let options = BRIDGE_OPTIONS.iter().filter(|_| bridge).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let spec = Spec {
            name: name.into(),
            driver: driver.into(),
            scope: "local".into(),
            options: options.collect(),
            ..Spec::default()
        };
        let generation = draft.next_generation();
        draft.put_network(Network {
            id: NetworkId::random().map_err(crate::error::Error::io("draw a network id"))?,
            spec,
            created_at_ns: context.now_ns,
            kind,
            v4: bridge.then(|| ipam::default_v4(DEFAULT_BRIDGE, gateway, false)),
            v6: None,
            shown_pools: if bridge { vec![shown] } else { Vec::new() },
            enable_ipv4: true,
            enable_ipv6: false,
            // Docker has no embedded names on the default bridge; an OVN DNS row would answer whichever server was asked.
            dns: false,
            mtu: 1500,
            inter_container: true,
            masquerade: true,
            predefined: true,
            generation,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        store::State,
        validate::create::{DefaultKind, tests::context},
    };

    fn bridge(draft: &Draft) -> (Kind, String) {
        let bridge = draft.find_network("bridge").unwrap();
        (bridge.kind, bridge.v4.as_ref().unwrap().subnet.to_string())
    }

    #[test]
    fn the_default_bridge_follows_the_configuration_and_steps_around_the_host() {
        let mut draft = Draft::new(State::default());
        ensure(&mut draft, &context()).unwrap();
        assert_eq!(bridge(&draft), (Kind::Ovs, "172.17.0.0/16".into()));
        assert!(follow(&mut draft, &context()).unwrap().is_none());
        let id = draft.find_network("bridge").unwrap().id.clone();
        let native = Context { default_kind: DefaultKind::Vmnet, ..context() };
        let (before, after) = follow(&mut draft, &native).unwrap().unwrap();
        assert_eq!((before.kind, after.kind, &after.id), (Kind::Ovs, Kind::Vmnet, &id));
        assert_eq!(bridge(&draft), (Kind::Vmnet, "172.17.0.0/16".into()));
        follow(&mut draft, &context()).unwrap().unwrap();
        let crowded = Context { host: vec!["172.16.0.0/14".parse().unwrap()], ..native };
        follow(&mut draft, &crowded).unwrap().unwrap();
        assert_eq!(bridge(&draft), (Kind::Vmnet, "172.20.0.0/16".into()));
    }
}
