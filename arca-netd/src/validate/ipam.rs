// SPDX-License-Identifier: Apache-2.0
//! IPAM entries of `POST /networks/create` (Docker API, "create: IPAM.Config").

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::joined;
use crate::{
    error::{Error, Result},
    model::{PoolV4, PoolV6, ShownPool},
};

/// The entries, parsed.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pools {
    /// IPv4, at most one: Docker's bridge driver takes no more.
    pub v4: Option<PoolV4>,
    /// IPv6.
    pub v6: Option<PoolV6>,
}

struct Entry {
    subnet: IpNet,
    range: Option<IpNet>,
    gateway: Option<IpAddr>,
    auxiliary: Vec<(String, IpAddr)>,
}

/// Checks all entries and gives what they mean.
///
/// # Errors
/// 400 with every fault in it; 403 for several subnets of one family; 500 for an auxiliary address that is taken.
pub fn check(entries: &[ShownPool], enable_ipv6: bool) -> Result<Pools> {
    let mut faults = Vec::new();
    let mut parsed = Vec::new();
    for entry in entries {
        parsed.extend(parse(entry, enable_ipv6, &mut faults));
    }
    if !faults.is_empty() {
        return Err(Error::Invalid(joined("invalid network config:", &faults)));
    }
    let mut pools = Pools::default();
    for entry in parsed {
        match entry.subnet {
            IpNet::V4(subnet) => {
                if let Some(first) = &pools.v4 {
                    return Err(second(crate::pools::overlap(&first.subnet, &subnet)));
                }
                pools.v4 = Some(pool_v4(subnet, &entry)?);
            }
            IpNet::V6(subnet) => {
                if let Some(first) = &pools.v6 {
                    return Err(second(crate::pools::overlap_v6(&first.subnet, &subnet)));
                }
                pools.v6 = Some(pool_v6(subnet, &entry)?);
            }
        }
    }
    Ok(pools)
}

fn second(overlaps: bool) -> Error {
    Error::Forbidden(if overlaps { OVERLAP.into() } else { "bridge driver doesn't support multiple subnets".into() })
}

/// 403 when a subnet shares addresses with another network's.
pub const OVERLAP: &str = "invalid pool request: Pool overlaps with other one on this address space";

/// An address and a prefix length, neither with leading zeros: `10.07.0.0/16` may mean octal elsewhere.
fn cidr(text: &str) -> Option<IpNet> {
    let (address, length) = text.split_once('/')?;
    let plain = length.bytes().all(|byte| byte.is_ascii_digit()) && (length == "0" || !length.starts_with('0'));
    IpNet::new(address.parse().ok()?, length.parse().ok().filter(|_| plain)?).ok()
}

fn parse(entry: &ShownPool, enable_ipv6: bool, faults: &mut Vec<String>) -> Option<Entry> {
    let Some(subnet) = cidr(&entry.subnet) else {
        faults.push(format!("invalid subnet {}: invalid CIDR block notation", entry.subnet));
        return None;
    };
    if matches!(subnet, IpNet::V6(_)) && !enable_ipv6 {
        // Docker does not look at what has no effect.
        return None;
    }
    let mut fault = |text: String| faults.push(text);
    if subnet != subnet.trunc() {
        fault(format!("invalid subnet {subnet}: it should be {}", subnet.trunc()));
    }
    let parent = subnet.trunc();
    let range = (!entry.ip_range.is_empty()).then(|| range(&entry.ip_range, parent, &mut fault)).flatten();
    let mut address = |what: String, text: &str| {
        let (problem, address) = match text.parse::<IpAddr>() {
            Err(_) => ("invalid address".to_owned(), None),
            Ok(address) if address.is_ipv4() != parent.network().is_ipv4() => (family(parent), None),
            Ok(address) if !parent.contains(&address) => {
                (format!("parent subnet {parent} doesn't contain this address"), None)
            }
            Ok(address) => return Some(address),
        };
        fault(format!("{what} {problem}"));
        address
    };
    let gateway = (!entry.gateway.is_empty())
        .then(|| address(format!("invalid gateway {}:", entry.gateway), &entry.gateway))
        .flatten();
    let auxiliary = entry
        .auxiliary
        .iter()
        .filter_map(|(name, text)| Some((name.clone(), address(format!("invalid auxiliary address {name}:"), text)?)))
        .collect();
    Some(Entry { subnet: parent, range, gateway, auxiliary })
}

fn family(parent: IpNet) -> String {
    format!("parent subnet is an {} block", if matches!(parent, IpNet::V4(_)) { "IPv4" } else { "IPv6" })
}

fn range(text: &str, parent: IpNet, fault: &mut impl FnMut(String)) -> Option<IpNet> {
    let mut refuse = |problem: String| fault(format!("invalid ip-range {text}: {problem}"));
    let Some(range) = cidr(text) else {
        refuse("invalid CIDR block notation".into());
        return None;
    };
    if matches!(range, IpNet::V4(_)) != matches!(parent, IpNet::V4(_)) {
        refuse(family(parent));
        return None;
    }
    if range.prefix_len() < parent.prefix_len() {
        refuse(format!("CIDR block is bigger than its parent subnet {parent}"));
    }
    if range != range.trunc() {
        refuse(format!("it should be {}", range.trunc()));
    }
    if !parent.contains(&range.network()) && !range.contains(&parent.network()) {
        refuse(format!("parent subnet {parent} doesn't contain ip-range"));
    }
    Some(range.trunc())
}

fn pool_v4(subnet: Ipv4Net, entry: &Entry) -> Result<PoolV4> {
    let range = match entry.range {
        Some(IpNet::V4(range)) => Some(range),
        _ => None,
    };
    let gateway = match entry.gateway {
        Some(IpAddr::V4(gateway)) => gateway,
        // The first that can be given out: of the range, if there is one.
        _ => {
            range.map(|range| range.network()).filter(|first| *first != subnet.network()).unwrap_or(first_host(subnet))
        }
    };
    // RFC 3021: a subnet of two addresses has neither network nor broadcast address.
    let has_edges = subnet.prefix_len() < 31;
    if has_edges && (gateway == subnet.network() || gateway == subnet.broadcast()) {
        return Err(Error::Failed(format!("failed to allocate gateway ({gateway}): Address already in use")));
    }
    let mut pool = default_v4(subnet, gateway, true);
    if let Some(range) = range {
        // Network and broadcast address are never allocated; OVN stops reading at a range it deems outside.
        let edge = u32::from(has_edges);
        let (low, high) = (u32::from(subnet.network()) + edge, u32::from(subnet.broadcast()) - edge);
        let (from, to) = (u32::from(range.network()), u32::from(range.broadcast()));
        let mut outside = |a: u32, b: u32| pool.exclude.push((a.into(), b.into()));
        if from > low {
            outside(low, from - 1);
        }
        if to < high {
            outside(to + 1, high);
        }
    }
    let mut reserved = vec![gateway];
    for (name, address) in &entry.auxiliary {
        let IpAddr::V4(address) = *address else { continue };
        if reserved.contains(&address) {
            return Err(Error::Failed(format!(
                "failed to allocate secondary ip address ({name}:{address}): Address already in use"
            )));
        }
        reserved.push(address);
        pool.exclude.push((address, address));
    }
    Ok(pool)
}

/// An IPv4 pool with nothing but its gateway set apart.
#[must_use]
pub fn default_v4(subnet: Ipv4Net, gateway: Ipv4Addr, user_defined: bool) -> PoolV4 {
    PoolV4 { subnet, gateway, exclude: vec![(gateway, gateway)], user_defined }
}

/// The address a gateway has by default.
#[must_use]
pub fn first_host(subnet: Ipv4Net) -> Ipv4Addr {
    subnet.hosts().next().unwrap_or(subnet.network())
}

/// The address a gateway has by default: `::1` of the prefix.
#[must_use]
pub fn first_host_v6(subnet: Ipv6Net) -> Ipv6Addr {
    Ipv6Addr::from(u128::from(subnet.network()) | 1)
}

/// An IPv6 pool with nothing but its gateway set apart.
#[must_use]
pub fn default_v6(subnet: Ipv6Net, user_defined: bool) -> PoolV6 {
    PoolV6 { subnet, gateway: first_host_v6(subnet), range: None, exclude: Vec::new(), user_defined }
}

fn pool_v6(subnet: Ipv6Net, entry: &Entry) -> Result<PoolV6> {
    let refused = |why: &str| Err(Error::Unsupported(format!("IPv6 subnet {subnet}: the ovs backend takes {why}")));
    let first = subnet.network();
    if first.is_multicast() || first.is_unicast_link_local() || first.is_unspecified() || first.is_loopback() {
        return refused("no link-local, multicast, unspecified or loopback prefix");
    }
    if subnet.prefix_len() > 127 {
        return Err(Error::Failed("failed to allocate gateway (): no available addresses on this pool".into()));
    }
    let range = match entry.range {
        Some(IpNet::V6(range)) => Some(range),
        _ => None,
    };
    let mut pool = PoolV6 { range, ..default_v6(subnet, true) };
    match (entry.gateway, range) {
        (Some(IpAddr::V6(gateway)), _) => pool.gateway = gateway,
        // The first that can be given out: of the range, if there is one.
        (_, Some(range)) if range.network() != first => pool.gateway = range.network(),
        _ => {}
    }
    let Some(gateway) = Some(pool.gateway).filter(|gateway| *gateway != first) else {
        return Err(Error::Failed(format!("failed to allocate gateway ({}): Address already in use", pool.gateway)));
    };
    for (name, address) in &entry.auxiliary {
        let IpAddr::V6(address) = *address else { continue };
        if address == gateway || address == first || pool.exclude.contains(&address) {
            return Err(Error::Failed(format!(
                "failed to allocate secondary ip address ({name}:{address}): Address already in use"
            )));
        }
        pool.exclude.push(address);
    }
    Ok(pool)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(subnet: &str, range: &str, gateway: &str) -> ShownPool {
        ShownPool { subnet: subnet.into(), ip_range: range.into(), gateway: gateway.into(), ..ShownPool::default() }
    }

    fn refusal(entries: &[ShownPool]) -> String {
        check(entries, false).unwrap_err().to_string()
    }

    #[test]
    fn faults_are_told_in_dockers_words() {
        for (entry, fault) in [
            (entry("nope", "", ""), "invalid subnet nope: invalid CIDR block notation"),
            (entry("", "", "10.0.0.1"), "invalid subnet : invalid CIDR block notation"),
            (entry("10.77.0.5/16", "", ""), "invalid subnet 10.77.0.5/16: it should be 10.77.0.0/16"),
            (entry("10.77.0.0/16", "zz", ""), "invalid ip-range zz: invalid CIDR block notation"),
            (entry("10.77.0.0/16", "10.77.5.9/24", ""), "invalid ip-range 10.77.5.9/24: it should be 10.77.5.0/24"),
            (
                entry("10.77.0.0/16", "10.0.0.0/8", ""),
                "invalid ip-range 10.0.0.0/8: CIDR block is bigger than its parent subnet 10.77.0.0/16",
            ),
            (entry("10.077.0.0/16", "", ""), "invalid subnet 10.077.0.0/16: invalid CIDR block notation"),
            (
                entry("10.77.0.0/16", "10.78.0.0/24", ""),
                "invalid ip-range 10.78.0.0/24: parent subnet 10.77.0.0/16 doesn't contain ip-range",
            ),
            (entry("10.77.0.0/16", "fd00::/64", ""), "invalid ip-range fd00::/64: parent subnet is an IPv4 block"),
            (entry("10.77.0.0/16", "", "10.77.0.1/16"), "invalid gateway 10.77.0.1/16: invalid address"),
            (
                entry("10.77.0.0/16", "", "10.78.0.1"),
                "invalid gateway 10.78.0.1: parent subnet 10.77.0.0/16 doesn't contain this address",
            ),
            (entry("10.77.0.0/16", "", "fd00::1"), "invalid gateway fd00::1: parent subnet is an IPv4 block"),
        ] {
            assert_eq!(refusal(&[entry]), format!("invalid network config:\n{fault}"));
        }
    }

    #[test]
    fn several_faults_become_a_list() {
        let both = entry("10.77.0.5/16", "", "zz");
        assert_eq!(
            refusal(&[both]),
            "invalid network config:\n* invalid subnet 10.77.0.5/16: it should be 10.77.0.0/16\n* invalid gateway zz: invalid address"
        );
    }

    #[test]
    fn a_second_subnet_is_refused_and_an_overlapping_one_by_another_text() {
        let two = [entry("10.1.0.0/16", "", ""), entry("10.2.0.0/16", "", "")];
        assert_eq!(refusal(&two), "bridge driver doesn't support multiple subnets");
        let same = [entry("10.1.0.0/16", "", ""), entry("10.1.0.0/24", "", "")];
        assert_eq!(refusal(&same), OVERLAP);
    }

    #[test]
    fn a_range_gateway_and_auxiliary_address_become_exclusions() {
        let mut pool = entry("10.1.0.0/24", "10.1.0.128/25", "10.1.0.9");
        pool.auxiliary.insert("a".into(), "10.1.0.130".into());
        let v4 = check(std::slice::from_ref(&pool), false).unwrap().v4.unwrap();
        let shown: Vec<_> = v4.exclude.iter().map(|(a, b)| format!("{a}..{b}")).collect();
        assert_eq!(shown, ["10.1.0.9..10.1.0.9", "10.1.0.1..10.1.0.127", "10.1.0.130..10.1.0.130"]);
        pool.auxiliary.insert("b".into(), "10.1.0.9".into());
        assert_eq!(refusal(&[pool]), "failed to allocate secondary ip address (b:10.1.0.9): Address already in use");
    }

    #[test]
    fn the_gateway_is_the_first_address_unless_given() {
        let v4 = check(&[entry("10.1.0.0/24", "", "")], false).unwrap().v4.unwrap();
        assert_eq!(v4.gateway, Ipv4Addr::new(10, 1, 0, 1));
        assert!(!v4.is_host(Ipv4Addr::new(10, 1, 0, 0)) && !v4.is_host(Ipv4Addr::new(10, 1, 0, 255)));
        assert!(!v4.is_host(v4.gateway) && v4.is_host(Ipv4Addr::new(10, 1, 0, 2)));
        let ranged = check(&[entry("10.1.0.0/16", "10.1.9.0/24", "")], false).unwrap().v4.unwrap();
        assert_eq!(ranged.gateway, Ipv4Addr::new(10, 1, 9, 0));
        let first = check(&[entry("10.1.0.0/16", "10.1.0.0/24", "")], false).unwrap().v4.unwrap();
        assert_eq!(first.gateway, Ipv4Addr::new(10, 1, 0, 1));
        let broadcast = entry("10.77.0.0/16", "", "10.77.255.255");
        assert_eq!(refusal(&[broadcast]), "failed to allocate gateway (10.77.255.255): Address already in use");
        // What has no effect is not looked at.
        for (subnet, range, gateway) in [("fd00::/64", "", ""), ("fd00::5/64", "10.0.0.0/8", "zz")] {
            assert_eq!(check(&[entry(subnet, range, gateway)], false).unwrap(), Pools::default());
        }
        assert!(check(&[entry("fd00::/64", "", "")], true).unwrap().v6.is_some());
    }
    #[test]
    fn an_ipv6_pool_has_any_prefix_a_range_and_addresses_set_apart() {
        let six = |entry: ShownPool| check(&[entry], true).map(|pools| pools.v6.unwrap());
        for prefix in ["fd00::/48", "fd00::/64", "fd00::/80", "fd00::/126"] {
            let pool = six(entry(prefix, "", "")).unwrap();
            assert_eq!((pool.gateway.to_string(), pool.range), ("fd00::1".to_owned(), None), "{prefix}");
        }
        assert!(six(entry("fd00::/127", "", "")).is_ok());
        for prefix in ["fe80::/64", "ff02::/64", "::/64"] {
            assert!(matches!(six(entry(prefix, "", "")), Err(Error::Unsupported(_))), "{prefix}");
        }
        let mut pool = entry("fd00::/64", "fd00::5:0/112", "");
        pool.auxiliary.insert("a".into(), "fd00::5:1".into());
        let ranged = six(pool.clone()).unwrap();
        assert_eq!((ranged.gateway.to_string(), ranged.range), ("fd00::5:0".to_owned(), "fd00::5:0/112".parse().ok()));
        assert_eq!(ranged.exclude, ["fd00::5:1".parse::<Ipv6Addr>().unwrap()]);
        let host = |text: &str| ranged.is_host(text.parse().unwrap());
        assert!(host("fd00::5:2") && host("fd00::2") && !host("fd00::") && !host("fd00::5:0") && !host("fd00::5:1"));
        let refused = |gateway: &str| six(entry("fd00::/64", "", gateway)).unwrap_err().to_string();
        assert_eq!(refused("fd00::"), "failed to allocate gateway (fd00::): Address already in use");
        assert_eq!(
            refused("fd01::1"),
            "invalid network config:\ninvalid gateway fd01::1: parent subnet fd00::/64 doesn't contain this address"
        );
        pool.auxiliary.insert("b".into(), "fd00::5:0".into());
        let taken = "failed to allocate secondary ip address (b:fd00::5:0): Address already in use";
        assert_eq!(six(pool).unwrap_err().to_string(), taken);
    }
}
