// SPDX-License-Identifier: Apache-2.0
//! What is observed of each object: made by the engine after every change, streamed to watchers.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use crate::nb::model::EndpointId;
use crate::nb::observed::{Columns, EndpointRow, Observed};
use crate::vswitch::Installed;

use super::state::{Key, Kind, Refusal, State};

/// State of one object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Observation {
    /// Which object.
    pub(super) key: Key,
    /// Generation this is about.
    pub(super) generation: u64,
    /// Allocated or static address with the prefix length of its subnet.
    pub(super) v4: Option<(Ipv4Addr, u8)>,
    /// The same for IPv6.
    pub(super) v6: Option<(Ipv6Addr, u8)>,
    /// Its flows are installed.
    pub(super) up: bool,
    /// What is wrong.
    pub(super) refusal: Option<Refusal>,
    /// It is gone.
    pub(super) removed: bool,
}

impl Observation {
    fn new(key: Key, generation: u64) -> Self {
        Self { key, generation, v4: None, v6: None, up: false, refusal: None, removed: false }
    }

    /// Of an object that is gone.
    pub(super) fn removed(key: Key, generation: u64) -> Self {
        Self { removed: true, ..Self::new(key, generation) }
    }
}

/// All objects.
pub(super) type Observations = BTreeMap<Key, Arc<Observation>>;

/// Everything that is observed now. Observations that are as in `before` are shared with it.
pub(super) fn observe<R: Columns>(
    state: &State,
    observed: &Observed<R>,
    installed: &Installed,
    failures: &BTreeMap<EndpointId, String>,
    before: &Observations,
) -> Observations {
    let mut all = BTreeMap::new();
    for (id, network) in &state.desired.networks {
        let key = Key { kind: Kind::Network, id: id.as_str().to_owned() };
        all.insert(key.clone(), Observation::new(key, network.generation));
    }
    let learned = observed.learned();
    let rows: BTreeMap<EndpointId, EndpointRow<'_>> = observed.endpoints().collect();
    for (id, endpoint) in &state.desired.endpoints {
        let key = Key { kind: Kind::Endpoint, id: id.as_str().to_owned() };
        let mut observation = Observation::new(key.clone(), endpoint.generation);
        let network = state.desired.networks.get(&endpoint.object.network).map(|n| &n.object);
        // Without its row even a static address is only a wish.
        if let (Some(row), Some(network)) = (rows.get(id), network) {
            let addresses = state.desired.addresses(&endpoint.object, &learned);
            observation.v4 = addresses.v4.zip(network.v4.as_ref()).map(|(a, v4)| (a, v4.subnet.prefix()));
            observation.v6 = addresses.v6.zip(network.v6.as_ref()).map(|(a, v6)| (a, v6.subnet.prefix()));
            observation.up = row.up || installed.contains(id.as_str());
            let subnet4 = network.v4.as_ref().filter(|_| row.exhausted4).map(|v4| ("IPv4", v4.subnet.to_string()));
            let subnet6 = network.v6.as_ref().filter(|_| row.exhausted6).map(|v6| ("IPv6", v6.subnet.to_string()));
            let exhausted = subnet4.or(subnet6);
            observation.refusal = exhausted.map(|(family, subnet)| Refusal::Exhausted { family, subnet });
        }
        if let Some(text) = failures.get(id) {
            observation.refusal = Some(Refusal::Internal(text.clone()));
        }
        all.insert(key, observation);
    }
    for (id, port) in &state.desired.ports {
        let key = Key { kind: Kind::PublishedPort, id: id.as_str().to_owned() };
        all.insert(key.clone(), Observation::new(key, port.generation));
    }
    for (key, (generation, refusal)) in &state.refused {
        let observation = all.entry(key.clone()).or_insert_with(|| Observation::new(key.clone(), *generation));
        observation.generation = *generation;
        observation.refusal = Some(refusal.clone());
    }
    let share = |(key, observation): (Key, Observation)| {
        let shared = before.get(&key).filter(|old| ***old == observation).cloned();
        (key, shared.unwrap_or_else(|| Arc::new(observation)))
    };
    all.into_iter().map(share).collect()
}

/// What a watcher that has seen `old` must be told.
pub(super) fn news(old: &Observations, new: &Observations) -> Vec<Arc<Observation>> {
    let gone = old.iter().filter(|(key, _)| !new.contains_key(key));
    let gone = gone.map(|(key, last)| Arc::new(Observation::removed(key.clone(), last.generation)));
    let changed = new.iter().filter(|(key, now)| !old.get(*key).is_some_and(|last| Arc::ptr_eq(last, now)));
    gone.chain(changed.map(|(_, now)| Arc::clone(now))).collect()
}
