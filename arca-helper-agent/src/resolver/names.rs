// SPDX-License-Identifier: Apache-2.0
//! Who may ask for which names: made by the service from what is declared and learned, read by the resolver for each query.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use crate::nb::address::{Subnet4, Subnet6, reverse_name};
use crate::nb::model::NetworkId;
use crate::nb::rows::{Desired, Learned};

/// Names of all networks, and what each machine sees of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct NameTable {
    machines: HashMap<IpAddr, Arc<View>>,
    networks: Vec<NetworkNames>,
}

/// What one machine may resolve.
#[derive(Debug, Default, PartialEq, Eq)]
struct View {
    /// Indices into `NameTable::networks`, in the order its interfaces were attached.
    networks: Vec<usize>,
    /// Some network of it leads out, so unknown names are forwarded.
    forward: bool,
    /// Who is asked for them; empty: the configured servers.
    forwarders: Vec<SocketAddr>,
    /// Aliases that only this machine knows: the network, and the name they stand for there.
    links: HashMap<String, (usize, String)>,
}

#[derive(Debug, Default, PartialEq, Eq)]
struct NetworkNames {
    addresses: HashMap<String, Vec<IpAddr>>,
    reverse: HashMap<String, String>,
    subnet4: Option<Subnet4>,
    subnet6: Option<Subnet6>,
}

/// What the table knows of a name.
#[derive(Debug, PartialEq, Eq)]
pub enum Known<'a> {
    /// A host name with these addresses.
    Host(&'a [IpAddr]),
    /// The reverse name of an address of this host name.
    Reverse(&'a str),
    /// A reverse name inside a subnet, of an address nobody has.
    Vacant,
    /// Not a name of this engine.
    Unknown {
        /// It may be asked elsewhere.
        forward: bool,
    },
}

impl NameTable {
    /// The table for what is declared.
    pub fn new(desired: &Desired, learned: &Learned) -> Self {
        let mut table = Self::default();
        let mut index: BTreeMap<&NetworkId, usize> = BTreeMap::new();
        for network in desired.networks.values().map(|n| &n.object).filter(|n| n.dns) {
            index.insert(&network.id, table.networks.len());
            table.networks.push(NetworkNames {
                subnet4: network.v4.as_ref().map(|v4| v4.subnet),
                subnet6: network.v6.as_ref().map(|v6| v6.subnet),
                ..NetworkNames::default()
            });
        }
        let mut endpoints: Vec<_> = desired.endpoints.values().map(|e| &e.object).collect();
        endpoints.sort_by_key(|e| e.link);
        let mut views: BTreeMap<&str, (View, Vec<IpAddr>)> = BTreeMap::new();
        for endpoint in endpoints {
            let Some(network) = desired.networks.get(&endpoint.network).map(|n| &n.object) else { continue };
            let addresses = desired.addresses(endpoint, learned);
            let (view, sources) = views.entry(&endpoint.machine).or_default();
            view.forward |= !network.internal;
            if view.forwarders.is_empty() {
                view.forwarders.clone_from(&endpoint.forwarders);
            }
            sources.extend(addresses.iter());
            let Some(position) = index.get(&endpoint.network) else { continue };
            view.networks.push(*position);
            for (alias, name) in &endpoint.links {
                let link = (*position, name.as_str().to_owned());
                view.links.entry(alias.as_str().to_owned()).or_insert(link);
            }
            let names = &mut table.networks[*position];
            for name in &endpoint.names {
                for name in [name.as_str().to_owned(), format!("{}.{}", name.as_str(), network.name.as_str())] {
                    names.addresses.entry(name).or_default().extend(addresses.iter());
                }
            }
            if let Some(first) = endpoint.names.first() {
                for address in addresses.iter() {
                    let name = format!("{}.{}", first.as_str(), network.name.as_str());
                    names.reverse.insert(reverse_name(address), name);
                }
            }
        }
        // A name is known only once there is an address to answer with.
        for network in &mut table.networks {
            network.addresses.retain(|_, addresses| !addresses.is_empty());
        }
        for (view, sources) in views.into_values() {
            let view = Arc::new(view);
            table.machines.extend(sources.into_iter().map(|source| (source, Arc::clone(&view))));
        }
        table
    }

    /// Who is asked for what nobody here knows, for who asks; empty: the configured servers.
    pub fn forwarders(&self, source: IpAddr) -> &[SocketAddr] {
        self.machines.get(&source).map_or(&[], |view| &view.forwarders)
    }

    /// Looks a name up for who asks: lower case, no final dot. `None` when nobody is known to have the source address.
    pub fn lookup(&self, source: IpAddr, name: &str) -> Option<Known<'_>> {
        let view = self.machines.get(&source)?;
        if let Some((network, meant)) = view.links.get(name)
            && let Some(addresses) = self.networks.get(*network).and_then(|network| network.addresses.get(meant))
        {
            return Some(Known::Host(addresses));
        }
        let mut vacant = false;
        for network in view.networks.iter().filter_map(|n| self.networks.get(*n)) {
            if let Some(addresses) = network.addresses.get(name) {
                return Some(Known::Host(addresses));
            }
            if let Some(host) = network.reverse.get(name) {
                return Some(Known::Reverse(host));
            }
            vacant |= network.covers_reverse(name);
        }
        if vacant {
            return Some(Known::Vacant);
        }
        Some(Known::Unknown { forward: view.forward })
    }
}

impl NetworkNames {
    /// Whether `name` is the reverse name of an address inside the subnets: nobody else can know it.
    fn covers_reverse(&self, name: &str) -> bool {
        if let Some(labels) = name.strip_suffix(".in-addr.arpa") {
            let address: String = labels.rsplit('.').collect::<Vec<_>>().join(".");
            return address.parse().is_ok_and(|a| self.subnet4.is_some_and(|s| s.contains(a)));
        }
        let Some(labels) = name.strip_suffix(".ip6.arpa") else { return false };
        let digits: String = labels.rsplit('.').filter(|l| l.len() == 1).collect();
        digits.len() == 32
            && u128::from_str_radix(&digits, 16).is_ok_and(|a| self.subnet6.is_some_and(|s| s.contains(a.into())))
    }
}
