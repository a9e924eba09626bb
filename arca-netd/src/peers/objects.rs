// SPDX-License-Identifier: Apache-2.0
//! Domain types as the helper's agent wants them declared.

use arca_proto::{helper::v1 as proto, relay::v1 as relay};

use crate::{
    model::{Endpoint, Kind, Network, Phase, Protocol, Publication},
    names,
    store::State,
    validate::options,
};

/// A network.
#[must_use]
pub fn network(network: &Network) -> proto::Object {
    let range = |(first, last): &(std::net::Ipv4Addr, std::net::Ipv4Addr)| {
        if first == last { first.to_string() } else { format!("{first}..{last}") }
    };
    let v4 = network.v4.as_ref();
    let v6 = network.v6.as_ref();
    let kind = proto::object::Kind::Network(proto::Network {
        id: network.id.to_string(),
        // Docker takes any text as a network's name; only one that can be asked for is of use in `name.network`.
        name: match network.name() {
            name if names::is_dns_name(name) => name.to_owned(),
            _ => network.id.short().to_owned(),
        },
        subnet_v4: v4.map(|pool| pool.subnet.to_string()).unwrap_or_default(),
        gateway_v4: v4.map(|pool| pool.gateway.to_string()).unwrap_or_default(),
        exclude_v4: v4
            .map(|pool| pool.exclude.iter().filter(|r| **r != (pool.gateway, pool.gateway)).map(range).collect())
            .unwrap_or_default(),
        subnet_v6: v6.map(|pool| pool.subnet.to_string()).unwrap_or_default(),
        gateway_v6: v6.map(|pool| pool.gateway.to_string()).unwrap_or_default(),
        range_v6: v6.and_then(|pool| pool.range).map(|range| range.to_string()).unwrap_or_default(),
        exclude_v6: v6.map(|pool| pool.exclude.iter().map(ToString::to_string).collect()).unwrap_or_default(),
        internal: network.spec.internal,
        isolated: options::is_isolated(&network.spec.options),
        inter_container: network.inter_container,
        masquerade: network.masquerade && !network.spec.internal,
        dns: network.dns,
        mtu: network.mtu,
        keep_source_v4: network.reach(true).keep_source,
        keep_source_v6: network.reach(false).keep_source,
        direct_v4: network.reach(true).direct,
        direct_v6: network.reach(false).direct,
        open_v4: network.reach(true).open,
        open_v6: network.reach(false).open,
    });
    proto::Object { generation: network.generation, kind: Some(kind) }
}

/// An endpoint; none if it has no interface.
#[must_use]
pub fn endpoint(endpoint: &Endpoint, network: &Network) -> Option<proto::Object> {
    let place = endpoint.place.as_ref()?;
    // A name nobody can ask for is shown by inspect and of no use here.
    let names = names::dns_names(endpoint, network).into_iter().filter(|name| names::is_dns_name(name));
    let hostname = [endpoint.hostname.as_str(), endpoint.workload_name.as_str(), endpoint.workload.short()];
    let hostname = hostname.into_iter().find(|name| names::is_dns_name(name));
    let links = endpoint.extras.links.iter().filter(|(alias, name)| {
        // On the default bridge there are no names, so no others for them either.
        network.dns && names::is_dns_name(alias) && names::is_dns_name(name)
    });
    let links = links.map(|(alias, name)| (alias.clone(), name.clone()));
    let kind = proto::object::Kind::Endpoint(proto::Endpoint {
        id: endpoint.id.to_string(),
        network_id: endpoint.network.to_string(),
        link: place.link.get(),
        mac: place.mac.to_string(),
        static_v4: endpoint.fixed_v4().map(|address| address.to_string()).unwrap_or_default(),
        static_v6: endpoint.fixed_v6().map(|address| address.to_string()).unwrap_or_default(),
        names: names.collect(),
        hostname: hostname.unwrap_or_default().to_owned(),
        carrier: relay::Carrier::from(place.carrier).into(),
        machine_id: place.machine.as_str().to_owned(),
        links: links.collect(),
        forwarders: endpoint.extras.dns.iter().map(ToString::to_string).collect(),
        extra_addresses: endpoint.extras.link_local.iter().map(ToString::to_string).collect(),
    });
    Some(proto::Object { generation: endpoint.generation, kind: Some(kind) })
}

/// A published port; none while it leads nowhere, or no port of the host leads there.
#[must_use]
pub fn published_port(publication: &Publication) -> Option<proto::Object> {
    publication.listeners.iter().find(|listener| listener.is_bound())?;
    let kind = proto::object::Kind::PublishedPort(proto::PublishedPort {
        id: publication.id.to_string(),
        endpoint_id: publication.endpoint.as_ref()?.to_string(),
        protocol: protocol(publication.protocol).into(),
        vip_port: publication.vip_port.into(),
        target_port: publication.container_port.into(),
    });
    Some(proto::Object { generation: publication.generation, kind: Some(kind) })
}

/// A key to withdraw an object by.
#[must_use]
pub fn key(kind: proto::ObjectKind, id: &str, generation: u64) -> proto::ObjectKey {
    proto::ObjectKey { kind: kind.into(), id: id.into(), generation }
}

/// On the wire.
#[must_use]
pub fn protocol(protocol: Protocol) -> relay::Protocol {
    match protocol {
        Protocol::Tcp => relay::Protocol::Tcp,
        Protocol::Udp => relay::Protocol::Udp,
    }
}

/// Whether what an object declares is still wanted.
#[must_use]
pub fn is_stored(object: &proto::Object, state: &State) -> bool {
    use proto::object::Kind;
    match &object.kind {
        Some(Kind::Network(network)) => state.networks.keys().any(|id| id.as_str() == network.id),
        Some(Kind::Endpoint(endpoint)) => {
            let stored = state.endpoints.values().find(|stored| stored.id.as_str() == endpoint.id);
            stored.is_some_and(|stored| stored.phase != Phase::Removing)
        }
        Some(Kind::PublishedPort(port)) => state.publications.keys().any(|id| id.as_str() == port.id),
        None => false,
    }
}

/// Everything the helper should hold: networks, then what stands on them. Endpoints on their way belong to it, those
/// being removed do not.
#[must_use]
pub fn desired(state: &State) -> Vec<proto::Object> {
    // One without room for an endpoint is nothing to OVN.
    let declared = |n: &&std::sync::Arc<Network>| n.kind == Kind::Ovs && n.without_room().is_none();
    let networks = state.networks.values().filter(declared).map(|n| network(n));
    let endpoints = state
        .endpoints
        .values()
        .filter(|e| e.phase != Phase::Removing && state.kind_of(e) == Some(Kind::Ovs))
        .filter_map(|e| endpoint(e, state.networks.get(&e.network)?));
    let ports = state.publications.values().filter_map(|p| published_port(p));
    networks.chain(endpoints).chain(ports).collect()
}
