// SPDX-License-Identifier: Apache-2.0
//! Wire types of `arca.netd.v1` and domain types.

use std::sync::Arc;

use arca_proto::{dial::Address, netd::v1 as proto, relay::v1 as relay};

use crate::{
    engine::{Engine, Event, EventKind},
    error::{Error, Result},
    model::{Endpoint, Extras, Kind, MachineId, Network, Phase, Protocol, Publication, ShownPool, Spec, WorkloadId},
    names,
    publish::Binding,
    store::State,
    validate::endpoint::{Demands, Wanted},
};

pub(super) fn spec(message: proto::CreateNetworkRequest) -> Spec {
    let pool = |pool: proto::IpamPool| ShownPool {
        subnet: pool.subnet,
        ip_range: pool.ip_range,
        gateway: pool.gateway,
        auxiliary: pool.auxiliary_addresses.into_iter().collect(),
    };
    Spec {
        name: message.name,
        driver: message.driver,
        internal: message.internal,
        attachable: message.attachable,
        ingress: message.ingress,
        scope: message.scope,
        enable_ipv4: message.enable_ipv4,
        enable_ipv6: message.enable_ipv6,
        ipam_driver: message.ipam_driver,
        ipam_options: message.ipam_options.into_iter().collect(),
        ipam_options_given: message.ipam_options_given,
        ipam_pools: message.ipam_pools.into_iter().map(pool).collect(),
        options: message.options.into_iter().collect(),
        labels: message.labels.into_iter().collect(),
        config_only: message.config_only,
        config_from: message.config_from,
    }
}

fn pool(pool: &ShownPool) -> proto::IpamPool {
    proto::IpamPool {
        subnet: pool.subnet.clone(),
        ip_range: pool.ip_range.clone(),
        gateway: pool.gateway.clone(),
        auxiliary_addresses: pool.auxiliary.clone().into_iter().collect(),
    }
}

fn spec_message(spec: &Spec) -> proto::CreateNetworkRequest {
    proto::CreateNetworkRequest {
        name: spec.name.clone(),
        driver: spec.driver.clone(),
        internal: spec.internal,
        attachable: spec.attachable,
        ingress: spec.ingress,
        scope: spec.scope.clone(),
        enable_ipv4: spec.enable_ipv4,
        enable_ipv6: spec.enable_ipv6,
        ipam_driver: spec.ipam_driver.clone(),
        ipam_options: spec.ipam_options.clone().into_iter().collect(),
        ipam_options_given: spec.ipam_options_given,
        ipam_pools: spec.ipam_pools.iter().map(pool).collect(),
        options: spec.options.clone().into_iter().collect(),
        labels: spec.labels.clone().into_iter().collect(),
        config_only: spec.config_only,
        config_from: spec.config_from.clone(),
    }
}

pub(super) fn workload(id: String) -> Result<WorkloadId> {
    WorkloadId::try_from(id).map_err(|error| Error::Invalid(error.to_string()))
}

pub(super) fn wanted(message: proto::AttachRequest) -> Result<Wanted> {
    let machine = match (message.machine_id.is_empty(), message.machine) {
        (true, _) | (false, None) => None,
        (false, Some(address)) => {
            let id = MachineId::try_from(message.machine_id).map_err(|error| Error::Invalid(error.to_string()))?;
            Some((id, Address::try_from(address).map_err(|error| Error::Invalid(error.to_string()))?))
        }
    };
    let driver_options = message.driver_options.into_iter().collect();
    let extras = Extras::read(&message.links, &message.dns, &message.link_local, &driver_options)?;
    Ok(Wanted {
        network: message.network,
        machine,
        workload: workload(message.workload_id)?,
        workload_name: message.workload_name.trim_start_matches('/').to_owned(),
        hostname: message.hostname,
        aliases: message.aliases,
        ipv4: message.ipv4,
        ipv6: message.ipv6,
        link_local: message.link_local,
        mac: message.mac,
        gateway_priority: message.gateway_priority,
        driver_options,
        extras,
        demands: Demands { dynamic: message.dynamic, publishes: message.publishes, beside: message.beside },
    })
}

pub(super) fn binding(message: &proto::PortBinding) -> Result<Binding> {
    let port = |number: u32| {
        let invalid = || Error::Invalid(format!("invalid port specification: \"{number}\""));
        u16::try_from(number).map_err(|_| invalid())
    };
    let (first, last) = (port(message.host_port_first)?, port(message.host_port_last)?);
    // A range that only names its first port is that port.
    let last = if last == 0 { first } else { last };
    if first > last || (first == 0 && last > 0) {
        return Err(Error::Invalid(format!("invalid port specification: \"{first}-{last}\"")));
    }
    Ok(Binding {
        protocol: match message.protocol() {
            relay::Protocol::Tcp => Protocol::Tcp,
            relay::Protocol::Udp => Protocol::Udp,
            relay::Protocol::Unspecified => return Err(Error::Failed("unknown protocol".into())),
        },
        container_port: port(message.container_port)?,
        // What is no address is treated as none, as Docker does.
        host_ip: message.host_ip.parse().ok(),
        host_ports: (first > 0).then_some((first, last)),
    })
}

pub(super) fn ports(publication: &Publication) -> Vec<proto::PublishedPort> {
    let port = |listener: &crate::model::Listener| proto::PublishedPort {
        protocol: crate::peers::objects::protocol(publication.protocol).into(),
        container_port: publication.container_port.into(),
        host_ip: listener.host_ip.to_string(),
        host_port: listener.host_port.into(),
    };
    publication.listeners.iter().map(port).collect()
}

pub(super) fn event(event: Event) -> proto::Event {
    proto::Event {
        kind: match event.kind {
            EventKind::Created => proto::event::Kind::NetworkCreated,
            EventKind::Removed => proto::event::Kind::NetworkRemoved,
            EventKind::Attached => proto::event::Kind::EndpointAttached,
            EventKind::Detached => proto::event::Kind::EndpointDetached,
        }
        .into(),
        network_id: event.network.into(),
        network_name: event.network_name,
        driver: event.driver,
        workload_id: event.workload.map(String::from).unwrap_or_default(),
        time_ns: event.time_ns,
    }
}

/// One consistent moment of the engine's state, with what the peers say of it.
pub(super) struct View<'a> {
    engine: &'a Engine,
    pub(super) state: Arc<State>,
}

impl<'a> View<'a> {
    pub(super) fn new(engine: &'a Engine) -> Self {
        Self { engine, state: engine.state() }
    }

    pub(super) fn network(&self, network: &Network) -> proto::Network {
        proto::Network {
            id: network.id.to_string(),
            spec: Some(spec_message(&network.spec)),
            created_at_ns: network.created_at_ns,
            pools: network.shown_pools.iter().map(pool).collect(),
            enable_ipv4: network.enable_ipv4,
            enable_ipv6: network.enable_ipv6,
            endpoints: self.active(self.state.endpoints_of(&network.id)),
            backend: network.backend().to_owned(),
            predefined: network.predefined,
        }
    }

    /// Those that were acknowledged.
    pub(super) fn active<'e>(&self, endpoints: impl Iterator<Item = &'e Arc<Endpoint>>) -> Vec<proto::Endpoint> {
        endpoints.filter(|endpoint| endpoint.phase == Phase::Active).map(|endpoint| self.endpoint(endpoint)).collect()
    }

    pub(super) fn endpoints(&self, endpoints: &[Arc<Endpoint>]) -> Vec<proto::Endpoint> {
        endpoints.iter().map(|endpoint| self.endpoint(endpoint)).collect()
    }

    pub(super) fn endpoint(&self, endpoint: &Endpoint) -> proto::Endpoint {
        let network = self.state.networks.get(&endpoint.network);
        let place = endpoint.place.as_ref();
        let here = |other: &&Arc<Endpoint>| {
            other.place.as_ref().zip(place).is_some_and(|(theirs, ours)| theirs.machine == ours.machine)
        };
        let default = names::default_route(&self.state, self.state.endpoints.values().filter(here));
        let linked = place.is_some() && network.is_some_and(|network| network.kind == Kind::Ovs);
        let (up, error) = if linked { self.condition(endpoint) } else { (true, String::new()) };
        let text = |value: Option<String>| value.unwrap_or_default();
        proto::Endpoint {
            id: endpoint.id.to_string(),
            network_id: endpoint.network.to_string(),
            network_name: text(network.map(|network| network.name().to_owned())),
            machine_id: text(place.map(|place| place.machine.as_str().to_owned())),
            workload_id: endpoint.workload.to_string(),
            workload_name: endpoint.workload_name.clone(),
            link: place.map_or(0, |place| place.link.get()),
            interface: text(place.map(|place| place.interface.clone())),
            mac: text(place.map(|place| place.mac.to_string())),
            address_v4: text(endpoint.address_v4.map(|net| net.to_string())),
            address_v6: text(endpoint.address_v6.map(|net| net.to_string())),
            gateway_v4: text(network.and_then(|n| n.route_v4()).map(|address| address.to_string())),
            gateway_v6: text(network.and_then(|n| n.route_v6()).map(|address| address.to_string())),
            default_route: default.is_some_and(|other| other.id == endpoint.id),
            dns_names: network.map(|network| names::dns_names(endpoint, network)).unwrap_or_default(),
            aliases: endpoint.aliases.clone(),
            up,
            error,
            carrier: place.filter(|_| linked).map_or(0, |place| relay::Carrier::from(place.carrier).into()),
            backend: network.map_or("", |network| network.backend()).to_owned(),
        }
    }

    fn condition(&self, endpoint: &Endpoint) -> (bool, String) {
        let Some(link) = endpoint.link() else { return (true, String::new()) };
        let link = self.engine.relay.trouble(link);
        match self.engine.agent.observation(&endpoint.id) {
            _ if !self.engine.agent.is_ready() => {
                (false, format!("helper machine: {}", self.engine.helper.state_text()))
            }
            Some(seen) if !seen.error.is_empty() => (false, seen.error),
            Some(seen) => (seen.up && link.is_empty(), link),
            None => (false, "OVN does not know this endpoint".into()),
        }
    }
}
