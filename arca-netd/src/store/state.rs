// SPDX-License-Identifier: Apache-2.0
//! The state and the draft of a change to it.

use std::{collections::BTreeMap, sync::Arc};

use arca_proto::ports::LinkNumber;
use serde::Serialize;

use crate::{
    error::{Error, Result},
    model::{Endpoint, EndpointId, Kind, Network, NetworkId, Phase, Protocol, Publication, PublicationId, WorkloadId},
};

/// Key of the generation counter in table `meta`.
pub(super) const GENERATION: &str = "generation";

/// Everything arca-netd wants to be true. Cloning is cheap: rows are shared.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct State {
    /// Networks by id.
    pub networks: BTreeMap<NetworkId, Arc<Network>>,
    /// Endpoints by id.
    pub endpoints: BTreeMap<EndpointId, Arc<Endpoint>>,
    /// Published ports by id.
    pub publications: BTreeMap<PublicationId, Arc<Publication>>,
    /// Small facts: chassis id, chosen uplink.
    pub meta: BTreeMap<String, String>,
    /// Last generation handed out.
    pub generation: u64,
}

impl State {
    /// By full id, full name, or unique id prefix, in this order.
    ///
    /// # Errors
    /// Docker's 404 or, for an ambiguous prefix, 400.
    pub fn find_network(&self, wanted: &str) -> Result<&Arc<Network>> {
        if let Some(network) = self.networks.values().find(|network| network.id.as_str() == wanted) {
            return Ok(network);
        }
        if let Some(network) = self.networks.values().find(|network| network.name() == wanted) {
            return Ok(network);
        }
        let mut matches = self.networks.values().filter(|network| network.id.as_str().starts_with(wanted));
        match (matches.next(), matches.count()) {
            (Some(network), 0) => Ok(network),
            (Some(_), more) => Err(Error::Invalid(format!(
                "{} matches found based on ID prefix: network {wanted} is ambiguous",
                more + 1
            ))),
            _ => Err(Error::NotFound(format!("network {wanted} not found"))),
        }
    }

    /// Who carries an endpoint's frames.
    #[must_use]
    pub fn kind_of(&self, endpoint: &Endpoint) -> Option<Kind> {
        self.networks.get(&endpoint.network).map(|network| network.kind)
    }

    /// Endpoints of a network that are there or on their way.
    pub fn endpoints_of<'a>(&'a self, network: &'a NetworkId) -> impl Iterator<Item = &'a Arc<Endpoint>> {
        self.endpoints.values().filter(move |endpoint| endpoint.network == *network)
    }

    /// Endpoints of a workload that are not being removed.
    pub fn endpoints_of_workload<'a, 'w>(
        &'a self,
        workload: &'w WorkloadId,
    ) -> impl Iterator<Item = &'a Arc<Endpoint>> + use<'a, 'w> {
        self.endpoints
            .values()
            .filter(move |endpoint| endpoint.workload == *workload && endpoint.phase != Phase::Removing)
    }

    /// A workload's endpoint on a network.
    #[must_use]
    pub fn endpoint_on(&self, network: &NetworkId, workload: &WorkloadId) -> Option<&Arc<Endpoint>> {
        self.endpoints_of_workload(workload).find(|endpoint| endpoint.network == *network)
    }

    /// The lowest link number nobody holds.
    #[must_use]
    pub fn free_link(&self) -> Option<LinkNumber> {
        let mut held: Vec<u32> = self.endpoints.values().filter_map(|e| e.link()).map(LinkNumber::get).collect();
        held.sort_unstable();
        let free = held.iter().zip(1..).find(|(held, n)| **held != *n).map(|(_, n)| n);
        let free = free.unwrap_or(u32::try_from(held.len()).ok()?.saturating_add(1));
        LinkNumber::try_from(free).ok()
    }

    /// Whether no publication uses this port of the router's uplink address.
    #[must_use]
    pub fn vip_port_is_free(&self, protocol: Protocol, port: u16) -> bool {
        !self.publications.values().any(|p| p.protocol == protocol && p.vip_port == port)
    }
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Table {
    Meta,
    Networks,
    Endpoints,
    Publications,
}

impl Table {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Meta => "meta",
            Self::Networks => "networks",
            Self::Endpoints => "endpoints",
            Self::Publications => "publications",
        }
    }
}

/// One row written or, without a body, deleted.
pub(super) struct Change {
    pub(super) table: Table,
    pub(super) key: String,
    pub(super) body: Option<serde_json::Result<String>>,
}

/// A state in the making. What is read through it includes what was already changed.
pub struct Draft {
    state: State,
    before: u64,
    changes: Vec<Change>,
}

impl std::ops::Deref for Draft {
    type Target = State;

    fn deref(&self) -> &State {
        &self.state
    }
}

impl Draft {
    pub(crate) fn new(state: State) -> Self {
        Self { before: state.generation, state, changes: Vec::new() }
    }

    pub(super) fn finish(mut self) -> (State, Vec<Change>) {
        if self.state.generation != self.before {
            let body = Some(Ok(self.state.generation.to_string()));
            self.changes.push(Change { table: Table::Meta, key: GENERATION.into(), body });
        }
        (self.state, self.changes)
    }

    fn put(&mut self, table: Table, key: &str, row: &impl Serialize) {
        self.changes.push(Change { table, key: key.into(), body: Some(serde_json::to_string(row)) });
    }

    fn drop(&mut self, table: Table, key: &str) {
        self.changes.push(Change { table, key: key.into(), body: None });
    }

    /// A number greater than any before, on this disk.
    pub fn next_generation(&mut self) -> u64 {
        self.state.generation += 1;
        self.state.generation
    }

    /// Inserts or replaces a network.
    pub fn put_network(&mut self, network: Network) {
        self.put(Table::Networks, network.id.as_str(), &network);
        self.state.networks.insert(network.id.clone(), Arc::new(network));
    }

    /// Removes a network.
    pub fn drop_network(&mut self, id: &NetworkId) {
        self.drop(Table::Networks, id.as_str());
        self.state.networks.remove(id);
    }

    /// Inserts or replaces an endpoint.
    pub fn put_endpoint(&mut self, endpoint: Endpoint) {
        self.put(Table::Endpoints, endpoint.id.as_str(), &endpoint);
        self.state.endpoints.insert(endpoint.id.clone(), Arc::new(endpoint));
    }

    /// Changes an endpoint that is still there.
    pub fn edit_endpoint(&mut self, id: &EndpointId, edit: impl FnOnce(&mut Endpoint)) -> Option<Arc<Endpoint>> {
        let mut endpoint = Endpoint::clone(self.state.endpoints.get(id)?);
        edit(&mut endpoint);
        self.put_endpoint(endpoint);
        self.state.endpoints.get(id).cloned()
    }

    /// Removes an endpoint.
    pub fn drop_endpoint(&mut self, id: &EndpointId) {
        self.drop(Table::Endpoints, id.as_str());
        self.state.endpoints.remove(id);
    }

    /// Inserts or replaces a published port.
    pub fn put_publication(&mut self, publication: Publication) {
        self.put(Table::Publications, publication.id.as_str(), &publication);
        self.state.publications.insert(publication.id.clone(), Arc::new(publication));
    }

    /// Removes a published port.
    pub fn drop_publication(&mut self, id: &PublicationId) {
        self.drop(Table::Publications, id.as_str());
        self.state.publications.remove(id);
    }

    /// Sets a small fact.
    pub fn put_meta(&mut self, key: &str, value: String) {
        self.changes.push(Change { table: Table::Meta, key: key.into(), body: Some(Ok(value.clone())) });
        self.state.meta.insert(key.into(), value);
    }
}
