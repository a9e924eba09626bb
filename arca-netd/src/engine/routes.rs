// SPDX-License-Identifier: Apache-2.0
//! Which endpoint carries a machine's default route and what 127.0.0.11 leads to. Moves on attach and detach.

use std::sync::Arc;

use arca_proto::tap::v1::ConfigureRequest;

use super::Engine;
use crate::{
    error::Result,
    model::{Endpoint, Kind, MachineId, Phase},
    names,
    peers::tap::Tap,
    store::State,
};

impl Engine {
    /// Tells the endpoint's machine its default route and resolver, if it has an interface left.
    pub(super) async fn configure_machine_of(&self, endpoint: &Endpoint) -> Result<()> {
        let Some(place) = &endpoint.place else { return Ok(()) };
        // What is read inside the lock is what is sent last.
        let _alone = self.machines.alone(&place.machine).await;
        match settings(&self.store.state(), &place.machine) {
            Some(request) => Tap::new(&place.address).configure(request).await,
            None => Ok(()),
        }
    }
}

/// None: the machine has no interface.
fn settings(state: &State, machine: &MachineId) -> Option<ConfigureRequest> {
    let of_machine = || {
        let here = |endpoint: &Endpoint| endpoint.place.as_ref().is_some_and(|place| place.machine == *machine);
        // Interfaces of the native switch are none of arca-tapfwd's.
        let linked = |endpoint: &Endpoint| state.kind_of(endpoint) == Some(Kind::Ovs);
        let active = state.endpoints.values().filter(|endpoint| endpoint.phase == Phase::Active);
        active.filter(move |endpoint| here(endpoint) && linked(endpoint))
    };
    of_machine().next()?;
    let by_v4 = names::default_route_of(state, of_machine(), |network| network.route_v4().is_some());
    let by_v6 = names::default_route_of(state, of_machine(), |network| network.route_v6().is_some());
    let link = |endpoint: Option<&Arc<Endpoint>>| endpoint.and_then(|e| e.link()).map_or(0, |link| link.get());
    // The helper's resolver knows all networks of a machine, so any user network's gateway will do; the one that
    // carries the default route spares a change when others come and go.
    let of_network = |endpoint: &Endpoint| state.networks.get(&endpoint.network).filter(|network| network.dns);
    let v4 = |endpoint: &Endpoint| {
        let network = of_network(endpoint)?;
        Some((network.name().to_owned(), network.v4.as_ref()?.gateway.to_string()))
    };
    let v6 = |endpoint: &Endpoint| {
        let network = of_network(endpoint)?;
        Some((network.name().to_owned(), network.v6.as_ref()?.gateway.to_string()))
    };
    let resolver_v4 = by_v4.and_then(|e| v4(e)).or_else(|| of_machine().filter_map(|e| v4(e)).min());
    let resolver_v6 = by_v6.and_then(|e| v6(e)).or_else(|| of_machine().filter_map(|e| v6(e)).min());
    let address = |resolver: Option<(String, String)>| resolver.map(|(_, gateway)| gateway).unwrap_or_default();
    // After the last user network a container still asks 127.0.0.11, as in Docker: for foreign names any gateway will do.
    let kept = by_v4.and_then(|endpoint| state.networks.get(&endpoint.network)?.v4.as_ref().map(|v4| v4.gateway));
    Some(ConfigureRequest {
        default_route_link: link(by_v4),
        default_route_link_v6: Some(link(by_v6)),
        // One way to the resolver is enough.
        resolver_v6: if resolver_v4.is_none() { address(resolver_v6) } else { String::new() },
        resolver_kept_v4: kept.map(|gateway| gateway.to_string()).unwrap_or_default(),
        resolver_v4: address(resolver_v4),
    })
}
