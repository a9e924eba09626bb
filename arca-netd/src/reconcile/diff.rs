// SPDX-License-Identifier: Apache-2.0
//! The difference between what arca-relayd has and what it should have.
//!
//! Rules: removals before additions, because a new listener may need the port of an old one. A link whose endpoint is
//! on its way (`Pending`) belongs to the attach that makes it and is left alone; everything else that is not wanted
//! goes.

use std::collections::{BTreeMap, BTreeSet};

use arca_proto::{dial::Address, ports::LinkNumber};

use crate::{
    model::{Endpoint, EndpointId, Kind, Listener, Phase, Protocol, Publication, PublicationId},
    store::State,
};

/// What arca-relayd has.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// Container end and helper end of each link that is not closed.
    pub links: BTreeMap<LinkNumber, (Address, Address)>,
    /// Listeners.
    pub listeners: BTreeMap<PublicationId, Bound>,
    /// Identifiers no arca-netd of ours can have given.
    pub foreign: BTreeSet<String>,
}

/// A host listener and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bound {
    /// Protocol.
    pub protocol: Protocol,
    /// Address.
    pub host_ip: std::net::IpAddr,
    /// Port.
    pub host_port: u16,
    /// Port at the router's uplink address.
    pub vip_port: u16,
    /// It is the router's IPv6 address.
    pub by_v6: bool,
    /// The helper machine that carries its clients, where this host has no route to the router.
    pub helper: Option<Address>,
}

impl Bound {
    /// Of a stored publication. Clients that come by IPv6 go on by IPv6, if the endpoint has it; `helper` carries them.
    #[must_use]
    pub fn of(publication: &Publication, listener: &Listener, state: &State, helper: Option<&Address>) -> Self {
        let endpoint = publication.endpoint.as_ref().and_then(|id| state.endpoints.get(id));
        Self {
            by_v6: listener.host_ip.is_ipv6() && endpoint.is_some_and(|endpoint| endpoint.address_v6.is_some()),
            protocol: publication.protocol,
            host_ip: listener.host_ip,
            host_port: listener.host_port,
            vip_port: publication.vip_port,
            helper: helper.cloned(),
        }
    }
}

/// What arca-relayd should have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Links of active endpoints.
    pub links: BTreeMap<LinkNumber, (EndpointId, Address)>,
    /// Links whose endpoints are on their way.
    pub pending_links: BTreeSet<LinkNumber>,
    /// Listeners of acknowledged publications.
    pub listeners: BTreeMap<PublicationId, Bound>,
    /// Listeners of publications on their way.
    pub pending_listeners: BTreeSet<PublicationId>,
}

impl Desired {
    /// Of the stored state; `helper` carries the clients of published ports, where this host cannot.
    #[must_use]
    pub fn of(state: &State, helper: Option<&Address>) -> Self {
        let mut desired = Self::default();
        let linked = |endpoint: &&std::sync::Arc<Endpoint>| state.kind_of(endpoint) != Some(Kind::Vmnet);
        for endpoint in state.endpoints.values().filter(linked) {
            match (&endpoint.place, endpoint.phase) {
                (Some(place), Phase::Active) => {
                    desired.links.insert(place.link, (endpoint.id.clone(), place.address.clone()));
                }
                (Some(place), Phase::Pending) => {
                    desired.pending_links.insert(place.link);
                }
                (Some(_), Phase::Removing) | (None, _) => {}
            }
        }
        for publication in state.publications.values() {
            for listener in publication.listeners.iter().filter(|listener| listener.is_bound()) {
                if publication.active {
                    desired.listeners.insert(listener.id.clone(), Bound::of(publication, listener, state, helper));
                } else {
                    desired.pending_listeners.insert(listener.id.clone());
                }
            }
        }
        desired
    }
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Close a link.
    Close(LinkNumber),
    /// Stop listening.
    Unpublish(String),
    /// Open a link, or give it another container end.
    Open(LinkNumber),
    /// Listen.
    Publish(PublicationId),
}

/// What to do, in this order. `helper` is the helper's address; without one no link can be opened yet.
#[must_use]
pub fn diff(observed: &Observed, desired: &Desired, helper: Option<&Address>) -> Vec<Action> {
    let mut actions = Vec::new();
    for link in observed.links.keys() {
        if !desired.links.contains_key(link) && !desired.pending_links.contains(link) {
            actions.push(Action::Close(*link));
        }
    }
    actions.extend(observed.foreign.iter().cloned().map(Action::Unpublish));
    for (id, bound) in &observed.listeners {
        let wanted = desired.listeners.get(id).is_some_and(|wanted| wanted == bound);
        if !wanted && !desired.pending_listeners.contains(id) {
            actions.push(Action::Unpublish(id.to_string()));
        }
    }
    if let Some(helper) = helper {
        for (link, (_, container)) in &desired.links {
            let as_wanted = observed.links.get(link).is_some_and(|ends| ends.0 == *container && ends.1 == *helper);
            if !as_wanted {
                actions.push(Action::Open(*link));
            }
        }
    }
    for (id, wanted) in &desired.listeners {
        if observed.listeners.get(id) != Some(wanted) {
            actions.push(Action::Publish(id.clone()));
        }
    }
    actions
}

#[cfg(test)]
mod tests;
