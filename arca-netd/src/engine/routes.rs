// SPDX-License-Identifier: Apache-2.0
//! Which endpoint carries a machine's default route and what 127.0.0.11 leads to. Moves on attach and detach.

use std::net::Ipv4Addr;

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
    let default = names::default_route(state, of_machine());
    let gateway = |endpoint: &Endpoint| {
        let network = state.networks.get(&endpoint.network)?;
        let gateway = network.v4.as_ref().filter(|_| network.dns)?.gateway;
        Some((network.name().to_owned(), gateway))
    };
    // The helper's resolver knows all networks of a machine, so any user network's gateway will do; the one that
    // carries the default route spares a change when others come and go.
    let resolver = default.and_then(|endpoint| gateway(endpoint));
    let resolver = resolver.or_else(|| of_machine().filter_map(|endpoint| gateway(endpoint)).min());
    Some(ConfigureRequest {
        default_route_link: default.and_then(|endpoint| endpoint.link()).map_or(0, |link| link.get()),
        resolver_v4: resolver.map(|(_, gateway): (String, Ipv4Addr)| gateway.to_string()).unwrap_or_default(),
    })
}
