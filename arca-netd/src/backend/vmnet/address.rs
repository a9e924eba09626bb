// SPDX-License-Identifier: Apache-2.0
//! The one allocator of vmnet addresses, of both families. It runs inside a change of the store, which one thread makes at a time: what is
//! chosen and what is stored are the same act, so no address is given twice, not even by a later life of the daemon.

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, Ipv6Addr},
};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    error::{Error, Result},
    model::{MacAddr, Network, PoolV4, PoolV6},
    store::State,
};

/// The IPv4 address of a new endpoint: `asked`, which the caller has checked, or the lowest that nobody has.
///
/// # Errors
/// 500 in Docker's words when none is left.
pub fn choose_v4(network: &Network, state: &State, asked: Option<Ipv4Addr>) -> Result<Option<Ipv4Net>> {
    let Some(pool) = &network.v4 else { return Ok(None) };
    let held = state.endpoints_of(&network.id).filter_map(|e| e.address_v4.map(|net| net.addr()).or(e.static_v4));
    let address = asked.or_else(|| lowest(pool, &held.collect())).ok_or_else(|| {
        let (name, id) = (network.name(), &network.id);
        Error::Exhausted(format!("no available IPv4 addresses on this network's address pools: {name} ({id})"))
    })?;
    // A pool's prefix length is one an address may have.
    Ok(Ipv4Net::new(address, pool.subnet.prefix_len()).ok())
}

/// As [`choose_v4`], of IPv6.
///
/// # Errors
/// 500 in Docker's words when none is left.
pub fn choose_v6(network: &Network, state: &State, asked: Option<Ipv6Addr>) -> Result<Option<Ipv6Net>> {
    let Some(pool) = &network.v6 else { return Ok(None) };
    let held = state.endpoints_of(&network.id).filter_map(|e| e.address_v6.map(|net| net.addr()).or(e.static_v6));
    let address = asked.or_else(|| lowest_v6(pool, &held.collect())).ok_or_else(|| {
        let (name, id) = (network.name(), &network.id);
        Error::Exhausted(format!("no available IPv6 addresses on this network's address pools: {name} ({id})"))
    })?;
    Ok(Ipv6Net::new(address, pool.subnet.prefix_len()).ok())
}

/// The lowest address of the pool's range that can be a container's and is not held. Each step passes an address that
/// somebody has or that is set apart, so there are no more steps than of those.
fn lowest_v6(pool: &PoolV6, held: &BTreeSet<Ipv6Addr>) -> Option<Ipv6Addr> {
    let range = pool.range.unwrap_or(pool.subnet);
    let (mut at, last) = (u128::from(range.network()), u128::from(range.broadcast()));
    while at <= last {
        let address = Ipv6Addr::from(at);
        if pool.is_host(address) && !held.contains(&address) {
            return Some(address);
        }
        at = at.checked_add(1)?;
    }
    None
}

/// The lowest address of the pool that can be a container's and is neither held nor excluded.
fn lowest(pool: &PoolV4, held: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
    let last = u32::from(pool.subnet.broadcast());
    let mut at = u32::from(pool.subnet.network());
    while at <= last {
        let address = Ipv4Addr::from(at);
        // An excluded range may hold millions: it is stepped over in one.
        let behind = pool.exclude.iter().find(|(first, end)| (*first..=*end).contains(&address)).map(|(_, end)| *end);
        match behind {
            Some(end) => at = u32::from(end).checked_add(1)?,
            None if pool.is_host(address) && !held.contains(&address) => return Some(address),
            None => at = at.checked_add(1)?,
        }
    }
    None
}

/// As [`mac_for`], of an endpoint with an IPv6 address alone: its last four bytes.
#[must_use]
pub fn mac_for_v6(address: Ipv6Addr) -> Option<MacAddr> {
    let [.., a, b, c, d] = address.octets();
    mac_for(Ipv4Addr::new(a, b, c, d))
}

/// The hardware address that goes with an IPv4 address: whoever gets a former container's address gets its hardware
/// address too, and no neighbour's table is out of date.
#[must_use]
pub fn mac_for(address: Ipv4Addr) -> Option<MacAddr> {
    let [a, b, c, d] = address.octets();
    format!("02:42:{a:02x}:{b:02x}:{c:02x}:{d:02x}").parse().ok()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pool(subnet: Ipv4Net, exclude: Vec<(Ipv4Addr, Ipv4Addr)>) -> PoolV4 {
        let gateway = Ipv4Addr::from(u32::from(subnet.network()) + 1);
        PoolV4 { subnet, gateway, exclude, user_defined: true }
    }

    #[test]
    fn a_huge_excluded_range_is_one_step() {
        let subnet: Ipv4Net = "10.0.0.0/8".parse().unwrap();
        let range = (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(10, 200, 0, 9));
        assert_eq!(lowest(&pool(subnet, vec![range]), &BTreeSet::new()), Some(Ipv4Addr::new(10, 200, 0, 10)));
        let all = (Ipv4Addr::new(10, 0, 0, 0), Ipv4Addr::new(255, 255, 255, 255));
        assert_eq!(lowest(&pool(subnet, vec![all]), &BTreeSet::new()), None);
    }

    #[test]
    fn ipv6_addresses_are_the_lowest_in_the_range_and_all_are_given_before_none_is_left() {
        let pool = |range: &str, exclude: &[&str]| PoolV6 {
            subnet: "fd00:1::/64".parse().unwrap(),
            gateway: "fd00:1::1".parse().unwrap(),
            range: Some(range.parse().unwrap()),
            exclude: exclude.iter().map(|text| text.parse().unwrap()).collect(),
            user_defined: true,
        };
        let wide = pool("fd00:1::/64", &["fd00:1::2"]);
        let mut held = BTreeSet::from(["fd00:1::3".parse().unwrap()]);
        assert_eq!(lowest_v6(&wide, &held), Some("fd00:1::4".parse().unwrap()));
        let narrow = pool("fd00:1::/126", &[]);
        for text in ["fd00:1::2", "fd00:1::3"] {
            held.remove(&text.parse().unwrap());
        }
        for expected in ["fd00:1::2", "fd00:1::3"] {
            let given = lowest_v6(&narrow, &held).unwrap();
            assert_eq!(given, expected.parse::<Ipv6Addr>().unwrap());
            held.insert(given);
        }
        assert_eq!(lowest_v6(&narrow, &held), None);
        // The last range there is does not run over its end.
        let last = PoolV6 {
            subnet: "ffff::/16".parse().unwrap(),
            range: Some("ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe/127".parse().unwrap()),
            ..wide
        };
        let all = ["ffff:ffff:ffff:ffff:ffff:ffff:ffff:fffe", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"];
        assert_eq!(lowest_v6(&last, &all.iter().map(|text| text.parse().unwrap()).collect()), None);
    }

    #[derive(Clone, Debug)]
    enum Act {
        Take,
        Ask(u8),
        Give(usize),
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            3 => Just(Act::Take),
            1 => any::<u8>().prop_map(Act::Ask),
            2 => any::<usize>().prop_map(Act::Give)
        ];
        prop::collection::vec(act, 0..120)
    }

    proptest! {
        /// Against a model that looks at every address.
        #[test]
        fn what_is_given_is_free_inside_and_the_lowest(
            acts in acts(), base in any::<u32>(), length in 24_u8..=30, ranges in prop::collection::vec((any::<u8>(), any::<u8>()), 0..4)
        ) {
            let subnet = Ipv4Net::new_assert(base.into(), length).trunc();
            let nth = |n: u8| Ipv4Addr::from(u32::from(subnet.network()) + u32::from(n) % (1 << (32 - length)));
            let exclude: Vec<_> = ranges.iter().map(|(a, b)| (nth(*a).min(nth(*b)), nth(*a).max(nth(*b)))).collect();
            let pool = pool(subnet, exclude.clone());
            let mut held = BTreeSet::new();
            for act in acts {
                match act {
                    Act::Take => {
                        let fits = |a: &Ipv4Addr| pool.is_host(*a) && !held.contains(a)
                            && !exclude.iter().any(|(first, end)| (*first..=*end).contains(a));
                        let expected = (u32::from(subnet.network())..=u32::from(subnet.broadcast())).map(Ipv4Addr::from).find(fits);
                        let given = lowest(&pool, &held);
                        prop_assert_eq!(given, expected);
                        if let Some(address) = given { prop_assert!(held.insert(address), "given twice"); }
                    }
                    Act::Ask(n) => { held.insert(nth(n)); }
                    Act::Give(n) => {
                        let one = held.iter().nth(n % held.len().max(1)).copied();
                        one.map(|address| held.remove(&address));
                    }
                }
            }
        }
    }

    #[test]
    fn hardware_addresses_follow_addresses() {
        assert_eq!(mac_for(Ipv4Addr::new(172, 18, 0, 2)).unwrap().to_string(), "02:42:ac:12:00:02");
        assert_eq!(mac_for_v6("fd00::a:b".parse().unwrap()).unwrap().to_string(), "02:42:00:0a:00:0b");
    }
}
