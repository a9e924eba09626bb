// SPDX-License-Identifier: Apache-2.0
//! What is declared, and the rules by which declarations are accepted: pure, owned by the engine task.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;

use arca_proto::helper::v1 as proto;

use crate::nb::diff::Scope;
use crate::nb::model::{
    Declared, Endpoint, EndpointId, Invalid, Network, Network4, Network6, NetworkId, PublishedPort, PublishedPortId,
};
use crate::nb::observed::{Columns, Observed};
use crate::nb::rows::{Allocated, Desired, ENGINE, Learned, Table};
use crate::nb::rows::{NUMBERS, NUMBERS4};
use crate::ovsdb::Value;

/// Kind of an object, in the order in which they depend on each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Kind {
    /// Network.
    Network,
    /// Endpoint.
    Endpoint,
    /// Published port.
    PublishedPort,
}

/// Name of an object as callers know it; the identifier may be nonsense.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Key {
    /// Kind.
    pub(super) kind: Kind,
    /// Identifier.
    pub(super) id: String,
}

/// Why an object was not accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Refusal {
    /// The object itself, or together with others.
    #[error("{0}")]
    Invalid(String),
    /// Another endpoint has the address.
    #[error("Address already in use: {address} belongs to {owner} on network {network}")]
    AddressInUse {
        /// The address, IP or MAC.
        address: String,
        /// Who has it.
        owner: String,
        /// Where.
        network: String,
    },
    /// The endpoint's network is not declared.
    #[error("network {0} is not declared: apply it first")]
    UnknownNetwork(String),
    /// OVN has no address left.
    #[error("no available {family} addresses on this network's address pools: {subnet}")]
    Exhausted {
        /// "IPv4" or "IPv6".
        family: &'static str,
        /// Where.
        subnet: String,
    },
    /// A database or the kernel refused.
    #[error("{0}")]
    Internal(String),
}

impl From<Invalid> for Refusal {
    fn from(e: Invalid) -> Self {
        Self::Invalid(e.to_string())
    }
}

/// A refusal with the generation that was refused.
pub(super) type Refused = (u64, Refusal);

/// What the database says that matters for accepting.
#[derive(Debug, Default)]
pub(super) struct Live {
    /// Endpoints with their network and addresses.
    pub(super) endpoints: Vec<(EndpointId, String, Allocated)>,
    /// `other_config` of each network's switch, and of those that number its IPv6 and IPv4 addresses.
    pub(super) addressing: BTreeMap<String, [BTreeMap<String, String>; 3]>,
    /// All these endpoints will stay, also those not accepted yet.
    all_stay: bool,
}

impl Live {
    /// Reads the owned rows.
    pub(super) fn of<R: Columns>(observed: &Observed<R>) -> Self {
        let endpoints = observed.endpoints().map(|(id, row)| (id, row.network.to_owned(), row.allocated));
        let switches = observed.rows.iter().filter(|(k, _)| k.table == Table::LogicalSwitch && k.id != ENGINE);
        let mut addressing: BTreeMap<String, [BTreeMap<String, String>; 3]> = BTreeMap::new();
        for (key, found) in switches {
            let config = found.row.get("other_config").into_iter().flat_map(Value::pairs);
            let of_network = addressing.entry(key.id.clone()).or_default();
            let place = [NUMBERS, NUMBERS4].iter().position(|kind| *kind == key.kind).map_or(0, |at| at + 1);
            of_network[place] = config.map(|(k, v)| (k.to_owned(), v.to_owned())).collect();
        }
        Self { endpoints: endpoints.collect(), addressing, all_stay: false }
    }
}

/// Everything declared.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What was accepted.
    pub(super) desired: Desired,
    /// What was refused, until it is accepted or withdrawn.
    pub(super) refused: BTreeMap<Key, Refused>,
    /// Generations of withdrawn objects: what comes late must not bring them back.
    gone: BTreeMap<Key, u64>,
    /// Declared in full once: unknown rows are nobody's then.
    synced: bool,
    /// Before that, identifiers of objects whose rows shall go.
    removed: BTreeSet<String>,
    /// Networks refused in the last full declaration although they live: their rows stay.
    except: BTreeSet<String>,
}

/// An object as sent, sorted out by kind.
#[derive(Clone, Debug)]
pub(super) struct Put {
    /// Its name.
    pub(super) key: Key,
    /// Its generation.
    pub(super) generation: u64,
    object: Object,
}

#[derive(Clone, Debug)]
enum Object {
    Network(Box<proto::Network>),
    Endpoint(Box<proto::Endpoint>),
    PublishedPort(Box<proto::PublishedPort>),
}

impl Put {
    /// `None` for an object without content, as of a newer caller.
    pub(super) fn new(object: proto::Object) -> Option<Self> {
        use proto::object::Kind as Sent;
        let (kind, id, content) = match object.kind? {
            Sent::Network(n) => (Kind::Network, n.id.clone(), Object::Network(Box::new(n))),
            Sent::Endpoint(e) => (Kind::Endpoint, e.id.clone(), Object::Endpoint(Box::new(e))),
            Sent::PublishedPort(p) => (Kind::PublishedPort, p.id.clone(), Object::PublishedPort(Box::new(p))),
        };
        Some(Self { key: Key { kind, id }, generation: object.generation, object: content })
    }
}

impl State {
    /// How the rows that follow from this relate to rows it does not know.
    pub(super) fn scope(&self) -> Scope<'_> {
        if self.synced { Scope::Whole { except: &self.except } } else { Scope::Part { removed: &self.removed } }
    }

    /// Whether everything was declared once.
    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    /// Generation an accepted object has.
    pub(super) fn generation(&self, key: &Key) -> Option<u64> {
        match key.kind {
            Kind::Network => self.desired.networks.get(&NetworkId::new(&key.id).ok()?).map(|d| d.generation),
            Kind::Endpoint => self.desired.endpoints.get(&EndpointId::new(&key.id).ok()?).map(|d| d.generation),
            Kind::PublishedPort => self.desired.ports.get(&PublishedPortId::new(&key.id).ok()?).map(|d| d.generation),
        }
    }

    /// Withdrawals and declarations of one request, in the order in which objects depend on each other.
    pub(super) fn apply(&mut self, mut put: Vec<Put>, mut remove: Vec<(Key, u64)>, live: &Live) {
        remove.sort_by_key(|(key, _)| std::cmp::Reverse(key.kind));
        for (key, generation) in remove {
            self.remove(key, generation);
        }
        put.sort_by_key(|p| p.key.kind);
        for put in put {
            self.put(put, live);
        }
    }

    /// The whole desired state: whatever is not in `objects` is withdrawn.
    pub(super) fn replace(&mut self, mut objects: Vec<Put>, live: &Live) {
        let known = std::mem::take(&mut self.desired);
        self.refused.clear();
        self.gone.clear();
        self.removed.clear();
        self.except.clear();
        self.synced = true;
        objects.sort_by_key(|p| p.key.kind);
        // What is accepted already comes first as it was: so it cannot lose its address to a newcomer, and a refused
        // change leaves it in force.
        let listed: BTreeSet<&Key> = objects.iter().map(|p| &p.key).collect();
        let keep = |kind, id: &str| listed.contains(&Key { kind, id: id.to_owned() });
        self.desired.networks = known.networks;
        self.desired.networks.retain(|id, _| keep(Kind::Network, id.as_str()));
        let networks = &self.desired.networks;
        self.desired.endpoints = known.endpoints;
        self.desired
            .endpoints
            .retain(|id, e| keep(Kind::Endpoint, id.as_str()) && networks.contains_key(&e.object.network));
        let endpoints = &self.desired.endpoints;
        self.desired.ports = known.ports;
        self.desired
            .ports
            .retain(|id, p| keep(Kind::PublishedPort, id.as_str()) && endpoints.contains_key(&p.object.endpoint));
        let listed_endpoints: BTreeSet<String> =
            objects.iter().filter(|p| p.key.kind == Kind::Endpoint).map(|p| p.key.id.clone()).collect();
        let live = Live {
            endpoints: live
                .endpoints
                .iter()
                .filter(|(id, ..)| listed_endpoints.contains(id.as_str()))
                .cloned()
                .collect(),
            addressing: live.addressing.clone(),
            all_stay: true,
        };
        for object in objects {
            let key = object.key.clone();
            self.put(object, &live);
            let lives = key.kind == Kind::Network && live.addressing.contains_key(&key.id);
            if lives && self.generation(&key).is_none() {
                self.except.insert(key.id);
            }
        }
    }

    /// Takes an object out again that the database would not have; the others must not suffer from it.
    pub(super) fn quarantine(&mut self, id: &str, reason: &str) -> bool {
        let keys = [Kind::PublishedPort, Kind::Endpoint, Kind::Network].map(|kind| Key { kind, id: id.to_owned() });
        let Some((key, generation)) = keys.into_iter().find_map(|k| self.generation(&k).map(|g| (k, g))) else {
            return false;
        };
        if key.kind == Kind::Network && self.has_endpoints(&key.id) {
            return false;
        }
        self.forget(&key);
        self.refused.insert(key, (generation, Refusal::Internal(reason.to_owned())));
        true
    }

    fn forget(&mut self, key: &Key) {
        match key.kind {
            Kind::Network => NetworkId::new(&key.id).ok().and_then(|id| self.desired.networks.remove(&id)).map(drop),
            Kind::Endpoint => EndpointId::new(&key.id).ok().and_then(|id| self.desired.endpoints.remove(&id)).map(drop),
            Kind::PublishedPort => {
                PublishedPortId::new(&key.id).ok().and_then(|id| self.desired.ports.remove(&id)).map(drop)
            }
        };
    }

    fn has_endpoints(&self, network: &str) -> bool {
        self.desired.endpoints.values().any(|e| e.object.network.as_str() == network)
    }

    fn remove(&mut self, key: Key, generation: u64) {
        if self.generation(&key).is_some_and(|known| known > generation) {
            return;
        }
        if key.kind == Kind::Network && self.has_endpoints(&key.id) {
            let reason = format!("network {} has endpoints: withdraw them first", short(&key.id));
            self.refused.insert(key, (generation, Refusal::Invalid(reason)));
            return;
        }
        self.forget(&key);
        self.refused.remove(&key);
        if !self.synced {
            self.removed.insert(key.id.clone());
        }
        let newest = self.gone.entry(key).or_default();
        *newest = generation.max(*newest);
    }

    fn put(&mut self, put: Put, live: &Live) {
        let Put { key, generation, object } = put;
        let gone = self.gone.get(&key).copied();
        let known = self.generation(&key);
        if known.is_some_and(|known| known >= generation) || gone.is_some_and(|gone| gone >= generation) {
            return;
        }
        let accepted = match object {
            Object::Network(n) => self.put_network(*n, generation, live),
            Object::Endpoint(e) => self.put_endpoint(*e, generation, live),
            Object::PublishedPort(p) => self.put_port(*p, generation),
        };
        match accepted {
            Ok(()) => {
                self.refused.remove(&key);
                self.gone.remove(&key);
                self.removed.remove(&key.id);
            }
            Err(refusal) => drop(self.refused.insert(key, (generation, refusal))),
        }
    }

    fn put_network(&mut self, sent: proto::Network, generation: u64, live: &Live) -> Result<(), Refusal> {
        let object = Network::try_from(sent)?;
        let numbered6 = object.v6.as_ref().map(Network6::addressing).unwrap_or_default();
        let numbered4 = object.v4.as_ref().map(Network4::numbering).unwrap_or_default();
        let wanted = [object.addressing(), numbered6, numbered4];
        if live.addressing.get(object.id.as_str()).is_some_and(|now| *now != wanted) {
            return Err(invalid(format_args!(
                "network {}: subnet, gateway and excluded addresses of a live network cannot change (OVN would renumber \
                 its endpoints): remove it first",
                object.id.short()
            )));
        }
        let clash = self.desired.networks.values().map(|n| &n.object).find(|other| {
            let both4 = other.v4.as_ref().zip(object.v4.as_ref());
            let overlaps4 = both4.is_some_and(|(a, b)| a.subnet.overlaps(b.subnet));
            let both6 = other.v6.as_ref().zip(object.v6.as_ref());
            let overlaps6 = both6.is_some_and(|(a, b)| a.subnet.overlaps(b.subnet));
            other.id != object.id && (overlaps4 || overlaps6 || other.id.short() == object.id.short())
        });
        if let Some(other) = clash {
            return Err(invalid(format_args!(
                "network {}: its subnet overlaps that of network {}",
                object.name.as_str(),
                other.name.as_str()
            )));
        }
        self.desired.networks.insert(object.id.clone(), Declared { generation, object });
        Ok(())
    }

    fn put_endpoint(&mut self, sent: proto::Endpoint, generation: u64, live: &Live) -> Result<(), Refusal> {
        let object = Endpoint::try_from(sent)?;
        let network = self.desired.networks.get(&object.network).map(|n| &n.object);
        let network = network.ok_or_else(|| Refusal::UnknownNetwork(object.network.short().to_owned()))?;
        if let Some(a) = object.static_v4 {
            let v4 = network.v4.as_ref();
            let v4 = v4.ok_or_else(|| invalid(format_args!("address {a}: the network has no IPv4 subnet")))?;
            if !v4.subnet.contains_host(a) {
                return Err(invalid(format_args!("address {a} is not inside {}", v4.subnet)));
            }
            if a == v4.gateway {
                return Err(in_use(a, "the gateway", network));
            }
        }
        if let Some(a) = object.static_v6 {
            let v6 = network.v6.as_ref();
            let v6 = v6.ok_or_else(|| invalid(format_args!("address {a}: the network has no IPv6 subnet")))?;
            if !v6.subnet.contains(a) {
                return Err(invalid(format_args!("address {a} is not inside {}", v6.subnet)));
            }
            if a == v6.gateway {
                return Err(in_use(a, "the gateway", network));
            }
        }
        for other in self.desired.endpoints.values().map(|e| &e.object).filter(|e| e.id != object.id) {
            if other.link == object.link {
                return Err(invalid(format_args!("link {} belongs to endpoint {}", object.link, other.id.short())));
            }
            if other.network == object.network && other.mac == object.mac {
                return Err(in_use(object.mac, &format!("endpoint {}", other.id.short()), network));
            }
        }
        let wanted = [object.static_v4.map(IpAddr::V4), object.static_v6.map(IpAddr::V6)];
        for address in wanted.into_iter().flatten() {
            if let Some(owner) = self.owner(address, &object, live) {
                return Err(in_use(address, &format!("endpoint {}", owner.short()), network));
            }
        }
        self.desired.endpoints.insert(object.id.clone(), Declared { generation, object });
        Ok(())
    }

    /// Who else on the network has an address: neither OVSDB nor OVN would refuse it twice.
    fn owner(&self, address: IpAddr, object: &Endpoint, live: &Live) -> Option<EndpointId> {
        let others =
            || live.endpoints.iter().filter(|(id, network, _)| *id != object.id && network == object.network.as_str());
        let learned: Learned = others().map(|(id, _, allocated)| (id.clone(), *allocated)).collect();
        let declared = self.desired.endpoints.values().map(|e| &e.object);
        let declared = declared.filter(|e| e.id != object.id && e.network == object.network);
        let has = |e: &&Endpoint| {
            let asked = [e.static_v4.map(IpAddr::V4), e.static_v6.map(IpAddr::V6)];
            asked.contains(&Some(address)) || self.desired.addresses(e, &learned).iter().any(|a| a == address)
        };
        if let Some(owner) = declared.clone().find(has) {
            return Some(owner.id.clone());
        }
        // Before everything was declared, rows of the unknown may belong to somebody.
        let unknown = |id: &EndpointId| {
            let stays = live.all_stay || (!self.synced && !self.removed.contains(id.as_str()));
            stays && !self.desired.endpoints.contains_key(id)
        };
        let mut unknown = others().filter(|(id, ..)| unknown(id));
        unknown.find(|(_, _, a)| a.addresses.iter().any(|a| a == address)).map(|(id, ..)| id.clone())
    }

    fn put_port(&mut self, sent: proto::PublishedPort, generation: u64) -> Result<(), Refusal> {
        let object = PublishedPort::try_from(sent)?;
        if !self.desired.endpoints.contains_key(&object.endpoint) {
            return Err(invalid(format_args!("endpoint {} is not declared: apply it first", object.endpoint.short())));
        }
        let same =
            |p: &&PublishedPort| p.id != object.id && p.vip_port == object.vip_port && p.protocol == object.protocol;
        if let Some(other) = self.desired.ports.values().map(|p| &p.object).find(same) {
            let taken = format_args!(
                "{} port {} belongs to published port {}",
                object.protocol.as_str(),
                object.vip_port,
                other.id.as_str()
            );
            return Err(invalid(taken));
        }
        self.desired.ports.insert(object.id.clone(), Declared { generation, object });
        Ok(())
    }
}

fn short(id: &str) -> String {
    id.chars().take(12).collect()
}

fn invalid(text: fmt::Arguments<'_>) -> Refusal {
    Refusal::Invalid(text.to_string())
}

fn in_use(address: impl fmt::Display, owner: &str, network: &Network) -> Refusal {
    Refusal::AddressInUse {
        address: address.to_string(),
        owner: owner.to_owned(),
        network: network.name.as_str().to_owned(),
    }
}
