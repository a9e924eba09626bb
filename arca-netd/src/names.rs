// SPDX-License-Identifier: Apache-2.0
//! Names an endpoint answers to, and names of interfaces.

use crate::{
    model::{Endpoint, MachineId, Network, Phase},
    store::State,
    validate::options::IFACE_PREFIX,
};

/// Docker's order: container name, aliases, short id, host name; each once. Empty where no names are answered.
#[must_use]
pub fn dns_names(endpoint: &Endpoint, network: &Network) -> Vec<String> {
    if !network.has_names() {
        return Vec::new();
    }
    let short = endpoint.workload.short();
    let all = std::iter::once(endpoint.workload_name.trim_start_matches('/'))
        .chain(endpoint.aliases.iter().map(String::as_str))
        .chain([short, endpoint.hostname.as_str()]);
    let mut names: Vec<String> = Vec::new();
    for name in all.filter(|name| !name.is_empty()) {
        if !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// Whether a name can be asked for in DNS: labels of letters, digits, `-` and `_`, 63 bytes each, 253 in all
/// (RFC 1035 section 2.3.4, and the underscore that container names use).
#[must_use]
pub fn is_dns_name(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| (1..=63).contains(&label.len()) && label.bytes().all(plain);
    name.len() <= 253 && name.split('.').all(label)
}

/// The next free `ethN` (or the network's own prefix) of a machine. A name stays taken until its endpoint is gone.
#[must_use]
pub fn next_interface(state: &State, machine: &MachineId, network: &Network) -> String {
    let prefix = network.spec.options.get(IFACE_PREFIX).map_or("eth", String::as_str);
    // IFNAMSIZ leaves 15 characters, four of them for the number.
    let prefix: String = prefix.chars().filter(char::is_ascii_alphanumeric).take(11).collect();
    let prefix = if prefix.is_empty() { "eth".to_owned() } else { prefix };
    (0_u32..).map(|n| format!("{prefix}{n}")).find(|name| !interface_is_taken(state, machine, name)).unwrap_or(prefix)
}

/// Whether a machine has an interface of this name.
#[must_use]
pub fn interface_is_taken(state: &State, machine: &MachineId, name: &str) -> bool {
    state
        .endpoints
        .values()
        .filter_map(|endpoint| endpoint.place.as_ref())
        .any(|place| place.machine == *machine && place.interface == name)
}

/// The endpoint that carries a machine's default route: highest priority, then the network's name, among those on
/// networks with a way out. `all` are the machine's or the workload's endpoints.
#[must_use]
pub fn default_route<'a>(
    state: &'a State,
    all: impl Iterator<Item = &'a std::sync::Arc<Endpoint>>,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    default_route_of(state, all, |network| network.route_v4().is_some() || network.route_v6().is_some())
}

/// The same among those on networks that `lead_out`, for example in one address family.
#[must_use]
pub fn default_route_of<'a>(
    state: &'a State,
    all: impl Iterator<Item = &'a std::sync::Arc<Endpoint>>,
    leads_out: impl Fn(&Network) -> bool,
) -> Option<&'a std::sync::Arc<Endpoint>> {
    let routed = all.filter(|endpoint| endpoint.place.is_some() && endpoint.phase == Phase::Active);
    routed
        .filter_map(|endpoint| {
            let network = state.networks.get(&endpoint.network)?;
            leads_out(network).then_some((endpoint, network))
        })
        .min_by(|(a, m), (b, n)| b.gateway_priority.cmp(&a.gateway_priority).then_with(|| m.name().cmp(n.name())))
        .map(|(endpoint, _)| endpoint)
}
