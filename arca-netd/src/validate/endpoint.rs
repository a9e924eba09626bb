// SPDX-License-Identifier: Apache-2.0
//! Endpoint settings of connect and of container start (Docker API, "connect").

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, Ipv6Addr},
};

use arca_proto::dial::Address;

use super::joined;
use crate::{
    backend::{Capabilities, vmnet},
    error::{Error, Result},
    model::{Extras, Kind, MacAddr, MachineId, Network, PoolV4, PoolV6, WorkloadId},
    store::State,
};

/// An attachment as asked for: identifiers are valid, the rest is the client's text.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// Network: id, name or id prefix.
    pub network: String,
    /// Machine and how to reach it; only networks with an interface need it.
    pub machine: Option<(MachineId, Address)>,
    /// Container.
    pub workload: WorkloadId,
    /// Its name.
    pub workload_name: String,
    /// Its host name.
    pub hostname: String,
    /// `--network-alias`.
    pub aliases: Vec<String>,
    /// `--ip`.
    pub ipv4: String,
    /// `--ip6`.
    pub ipv6: String,
    /// `--link-local-ip`.
    pub link_local: Vec<String>,
    /// `--mac-address`.
    pub mac: String,
    /// `gw-priority`.
    pub gateway_priority: i32,
    /// `driver-opt`.
    pub driver_options: BTreeMap<String, String>,
    /// What else was asked for, read.
    pub extras: Extras,
    /// What a backend may not be able to do for it.
    pub demands: Demands,
}

/// What else is asked of the network's backend.
#[derive(Clone, Debug, Default)]
pub struct Demands {
    /// The container runs already.
    pub dynamic: bool,
    /// It publishes ports.
    pub publishes: bool,
    /// Other networks it is to be on: id, name or id prefix.
    pub beside: Vec<String>,
}

/// What of it needed parsing.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Checked {
    /// `--ip`.
    pub v4: Option<Ipv4Addr>,
    /// `--ip6`.
    pub v6: Option<Ipv6Addr>,
    /// `--mac-address`.
    pub mac: Option<MacAddr>,
    /// Interface name asked for.
    pub interface: Option<String>,
}

const IFNAME: &str = "com.docker.network.endpoint.ifname";

/// Checks an attachment against the network and what is attached already.
///
/// # Errors
/// 400, 403 or 501 in Docker's words.
pub fn check(network: &Network, state: &State, wanted: &Wanted) -> Result<Checked> {
    company(network, state, wanted)?;
    let mut faults = Vec::new();
    if network.predefined {
        if !wanted.ipv4.is_empty() || !wanted.ipv6.is_empty() {
            faults.push("user specified IP address is supported on user defined networks only".into());
        }
        if !wanted.aliases.is_empty() {
            faults.push("network-scoped alias is supported only for containers in user defined networks".into());
        }
    }
    let v4 = parse::<Ipv4Addr>(&wanted.ipv4, "IPv4", &mut faults);
    let v6 = parse::<Ipv6Addr>(&wanted.ipv6, "IPv6", &mut faults);
    for text in &wanted.link_local {
        if text.parse::<std::net::IpAddr>().is_err() {
            faults.push(format!("invalid link-local IP address: {text}"));
        }
    }
    // What is no address is in no subnet either: Docker tells both.
    if !wanted.ipv4.is_empty() {
        let pool = network.v4.as_ref().filter(|pool| pool.user_defined);
        let inside = |pool: &PoolV4| v4.is_some_and(|address| pool.subnet.contains(&address));
        faults.extend(outside(&wanted.ipv4, pool.map(inside)));
    }
    if !wanted.ipv6.is_empty() {
        let pool = network.v6.as_ref().filter(|pool| pool.user_defined);
        let inside = |pool: &PoolV6| v6.is_some_and(|address| pool.subnet.contains(&address));
        faults.extend(outside(&wanted.ipv6, pool.map(inside)));
    }
    faults.extend(sysctl_fault(wanted));
    if !faults.is_empty() {
        return Err(Error::Invalid(joined("invalid endpoint settings:", &faults)));
    }
    let mac = match wanted.mac.as_str() {
        "" => None,
        text => Some(text.parse::<MacAddr>().map_err(|error| Error::Invalid(error.to_string()))?),
    };
    let interface = interface(wanted)?;
    if let Some(family) = network.without_room().filter(|_| wanted.machine.is_some()) {
        return Err(Error::Exhausted(format!(
            "no available {family} addresses on this network's address pools: {} ({})",
            network.name(),
            network.id
        )));
    }
    if v4.is_some_and(|address| is_taken_v4(network, state, address))
        || v6.is_some_and(|address| is_taken_v6(network, state, address))
    {
        return Err(Error::Forbidden(ADDRESS_TAKEN.into()));
    }
    Ok(Checked { v4, v6, mac, interface })
}

/// 403 for an address that is somebody's, or the network's own.
pub const ADDRESS_TAKEN: &str = "Address already in use";

/// Which networks a workload may be on together.
fn company(network: &Network, state: &State, wanted: &Wanted) -> Result<()> {
    // A stopped container may have one in its settings; it does not start.
    if network.kind == Kind::Config && wanted.machine.is_some() {
        return Err(Error::Forbidden("cannot create endpoint on configuration-only network".into()));
    }
    let kinds = || state.endpoints_of_workload(&wanted.workload).filter_map(|e| state.networks.get(&e.network));
    if kinds().any(|other| other.id == network.id) {
        let name = &wanted.workload_name;
        return Err(Error::Forbidden(format!(
            "endpoint with name {name} already exists in network {}",
            network.name()
        )));
    }
    let others = kinds().next().is_some();
    if kinds().any(|other| other.kind == Kind::Host) {
        return Err(Error::Invalid(
            "container sharing network namespace with another container or host cannot be connected to any other network"
                .into(),
        ));
    }
    if kinds().any(|other| other.kind == Kind::None) || (others && network.kind == Kind::None) {
        return Err(Error::Invalid(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode".into(),
        ));
    }
    if others && network.kind == Kind::Host {
        return Err(Error::Invalid(
            "cannot connect container to host network - container must be created in host network mode".into(),
        ));
    }
    able(network, state, wanted)
}

/// Whether the backends of all networks that the workload is to be on can do what is asked.
fn able(network: &Network, state: &State, wanted: &Wanted) -> Result<()> {
    let there = state.endpoints_of_workload(&wanted.workload).filter_map(|e| state.networks.get(&e.network));
    let wished = wanted.demands.beside.iter().filter_map(|name| state.find_network(name).ok());
    let others: Vec<_> = there.chain(wished).filter(|other| other.id != network.id).collect();
    let mut all = others.iter().map(|other| other.kind).chain([network.kind]).map(Capabilities::of);
    let several = !others.is_empty();
    let refused = all.find_map(|able| {
        let dynamic = wanted.demands.dynamic && !able.hot_attach;
        let ports = wanted.demands.publishes && !able.port_mapping;
        let count = several && !able.several_networks;
        dynamic.then_some(vmnet::NO_DYNAMIC).or(ports.then_some(vmnet::NO_PORTS)).or(count.then_some(vmnet::NO_SECOND))
    });
    refused.map_or(Ok(()), |text| Err(Error::Unsupported(text.into())))
}

fn parse<T>(text: &str, family: &str, faults: &mut Vec<String>) -> Option<T>
where
    T: std::str::FromStr + Copy + Into<std::net::IpAddr>,
{
    if text.is_empty() {
        return None;
    }
    let address = text.parse().ok().filter(|address: &T| !(*address).into().is_unspecified());
    if address.is_none() {
        faults.push(format!("invalid {family} address: {text}"));
    }
    address
}

/// `inside` is none if the network has no subnet of the family that the user chose.
fn outside(address: impl std::fmt::Display, inside: Option<bool>) -> Option<String> {
    match inside {
        None => Some(
            "user specified IP address is supported only when connecting to networks with user configured subnets"
                .into(),
        ),
        Some(false) => Some(format!("no configured subnet or ip-range contain the IP address {address}")),
        Some(true) => None,
    }
}

const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";

/// The first setting of `endpoint.sysctls` that does not name its interface as IFNAME.
fn sysctl_fault(wanted: &Wanted) -> Option<String> {
    let named = |setting: &str| {
        let (key, _) = setting.split_once('=').unwrap_or((setting, ""));
        let parts: Vec<&str> = key.split('.').collect();
        matches!(parts.as_slice(), ["net", "ipv4" | "ipv6" | "mpls", _, "IFNAME", _])
    };
    let setting = wanted.driver_options.get(SYSCTLS)?.split(',').find(|setting| !named(setting))?;
    Some(format!(
        "unrecognised network interface sysctl '{setting}'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'"
    ))
}

fn interface(wanted: &Wanted) -> Result<Option<String>> {
    let Some(name) = wanted.driver_options.get(IFNAME).filter(|name| !name.is_empty()) else { return Ok(None) };
    // dev_valid_name() of Linux.
    let valid = name.len() < 16
        && !matches!(name.as_str(), "." | ".." | "lo")
        && !name.contains(['/', ':'])
        && !name.chars().any(char::is_whitespace);
    if valid { Ok(Some(name.clone())) } else { Err(Error::Invalid(format!("invalid interface name {name:?}"))) }
}

fn is_taken_v4(network: &Network, state: &State, address: Ipv4Addr) -> bool {
    // Single excluded addresses are the gateway and auxiliary ones; one outside ip-range may be asked for.
    let reserved = network.v4.as_ref().is_some_and(|pool| {
        !pool.is_host(address) || pool.exclude.iter().any(|(first, last)| first == last && *first == address)
    });
    reserved
        || state
            .endpoints_of(&network.id)
            .any(|e| e.static_v4 == Some(address) || e.address_v4.is_some_and(|net| net.addr() == address))
}

fn is_taken_v6(network: &Network, state: &State, address: Ipv6Addr) -> bool {
    network.v6.as_ref().is_some_and(|pool| !pool.is_host(address))
        || state
            .endpoints_of(&network.id)
            .any(|e| e.static_v6 == Some(address) || e.address_v6.is_some_and(|net| net.addr() == address))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        model::ShownPool,
        store::{Draft, State},
        validate::create::tests::{context, make, spec},
    };

    fn wanted() -> Wanted {
        Wanted {
            network: "n".into(),
            machine: None,
            workload: WorkloadId::random().unwrap(),
            workload_name: "np_r".into(),
            hostname: String::new(),
            aliases: Vec::new(),
            ipv4: String::new(),
            ipv6: String::new(),
            link_local: Vec::new(),
            mac: String::new(),
            gateway_priority: 0,
            driver_options: BTreeMap::new(),
            extras: Extras::default(),
            demands: Demands::default(),
        }
    }

    fn with_subnet(subnet: &str) -> Network {
        let mut spec = spec("np_s");
        if !subnet.is_empty() {
            spec.ipam_pools.push(ShownPool { subnet: subnet.into(), ..ShownPool::default() });
        }
        make(spec, &State::default()).unwrap()
    }

    fn refusal(network: &Network, wanted: &Wanted) -> String {
        check(network, &State::default(), wanted).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_told_in_dockers_words() {
        let network = with_subnet("10.98.0.0/24");
        let head = "invalid endpoint settings:\n";
        let ip = |ipv4: &str| Wanted { ipv4: ipv4.into(), ..wanted() };
        let nowhere = "no configured subnet or ip-range contain the IP address";
        for text in ["zz", "0.0.0.0"] {
            let told = format!("{head}* invalid IPv4 address: {text}\n* {nowhere} {text}");
            assert_eq!(refusal(&network, &ip(text)), told);
        }
        assert_eq!(
            refusal(&network, &ip("10.99.0.5")),
            format!("{head}no configured subnet or ip-range contain the IP address 10.99.0.5")
        );
        assert_eq!(
            refusal(&with_subnet(""), &ip("172.18.0.9")),
            format!(
                "{head}user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        );
        let two = Wanted { ipv6: "zz".into(), link_local: vec!["q".into()], ..wanted() };
        assert_eq!(
            refusal(&network, &two),
            format!(
                "{head}* invalid IPv6 address: zz\n* invalid link-local IP address: q\n\
                 * user specified IP address is supported only when connecting to networks with user configured subnets"
            )
        );
        let sysctl =
            |text: &str| Wanted { driver_options: BTreeMap::from([(SYSCTLS.into(), text.into())]), ..wanted() };
        let fault = refusal(&network, &sysctl("net.ipv4.conf.IFNAME.x=1,net.ipv4.conf.eth0.log_martians=1"));
        assert!(
            fault.starts_with(&format!("{head}unrecognised network interface sysctl 'net.ipv4.conf.eth0.")),
            "{fault}"
        );
        assert!(check(&network, &State::default(), &sysctl("net.ipv4.conf.IFNAME.x=1")).is_ok());
        assert_eq!(refusal(&network, &Wanted { mac: "zz".into(), ..wanted() }), "invalid MAC address zz");
        for taken in ["10.98.0.0", "10.98.0.1", "10.98.0.255"] {
            assert_eq!(refusal(&network, &ip(taken)), ADDRESS_TAKEN);
        }
        assert_eq!(check(&network, &State::default(), &ip("10.98.0.7")).unwrap().v4, Some(Ipv4Addr::new(10, 98, 0, 7)));
    }

    #[test]
    fn predefined_networks_take_no_address_and_no_alias() {
        let mut draft = Draft::new(State::default());
        crate::predefined::ensure(&mut draft, &context()).unwrap();
        let bridge = draft.find_network("bridge").unwrap();
        let both = Wanted { ipv4: "172.17.0.9".into(), aliases: vec!["a".into()], ..wanted() };
        assert_eq!(
            refusal(bridge, &both),
            "invalid endpoint settings:\n* user specified IP address is supported on user defined networks only\n\
             * network-scoped alias is supported only for containers in user defined networks\n\
             * user specified IP address is supported only when connecting to networks with user configured subnets"
        );
    }

    fn native(name: &str) -> Network {
        make(crate::model::Spec { driver: "vmnet".into(), ..spec(name) }, &State::default()).unwrap()
    }

    fn demanding(demands: Demands) -> Wanted {
        Wanted { demands, ..wanted() }
    }

    #[test]
    fn what_a_native_network_cannot_do_is_refused_in_its_words() {
        let network = native("n");
        let dynamic = demanding(Demands { dynamic: true, ..Demands::default() });
        let publishes = demanding(Demands { publishes: true, ..Demands::default() });
        assert_eq!(refusal(&network, &dynamic), vmnet::NO_DYNAMIC);
        assert_eq!(refusal(&network, &publishes), vmnet::NO_PORTS);
        assert!(matches!(check(&network, &State::default(), &dynamic), Err(Error::Unsupported(_))));
        let over = with_subnet("10.98.0.0/24");
        for able in [&dynamic, &publishes] {
            assert!(check(&over, &State::default(), able).is_ok());
        }
        // A second network is one too many whichever of the two is native; a wish for one that is not there counts nothing.
        let mut draft = Draft::new(State::default());
        draft.put_network(native("other"));
        let beside = |name: &str| demanding(Demands { beside: vec![name.into()], ..Demands::default() });
        for one in [&network, &over] {
            assert_eq!(check(one, &draft, &beside("other")).unwrap_err().to_string(), vmnet::NO_SECOND);
            assert!(check(one, &draft, &beside("nowhere")).is_ok());
        }
    }
}
