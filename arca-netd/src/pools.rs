// SPDX-License-Identifier: Apache-2.0
//! Docker's default address pools: which subnet a network gets that did not ask for one.
//!
//! `172.17.0.0/16` belongs to the default bridge; then come `172.18` to `172.31` as /16 each and `192.168.0.0/16` in
//! /20s. A subnet is taken if another network, a route of the host, a nameserver or the helper's uplink range
//! overlaps it.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

/// One configured pool: `base` cut into subnets of `size` bits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddressPool {
    /// Range that is cut.
    pub base: Ipv4Net,
    /// Prefix length of each piece.
    pub size: u8,
}

/// A pool whose pieces would be larger than itself.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("default-address-pools: size {size} does not cut {base}")]
pub struct InvalidPool {
    base: Ipv4Net,
    size: u8,
}

impl AddressPool {
    /// # Errors
    /// If `size` is shorter than the base's prefix or longer than 30.
    pub fn new(base: Ipv4Net, size: u8) -> Result<Self, InvalidPool> {
        let base = base.trunc();
        if (base.prefix_len()..=30).contains(&size) { Ok(Self { base, size }) } else { Err(InvalidPool { base, size }) }
    }
}

/// Subnet of the default bridge.
pub const DEFAULT_BRIDGE: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(172, 17, 0, 0), 16);

/// Docker's own pools, without the default bridge's.
#[must_use]
pub fn docker_defaults() -> Vec<AddressPool> {
    let sixteens = (18..=31).map(|second| Ipv4Net::new_assert(Ipv4Addr::new(172, second, 0, 0), 16));
    let mut pools: Vec<_> = sixteens.map(|base| AddressPool { base, size: 16 }).collect();
    pools.push(AddressPool { base: Ipv4Net::new_assert(Ipv4Addr::new(192, 168, 0, 0), 16), size: 20 });
    pools
}

/// Whether two ranges share an address.
#[must_use]
pub fn overlap(a: &Ipv4Net, b: &Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// Whether two ranges share an address.
#[must_use]
pub fn overlap_v6(a: &Ipv6Net, b: &Ipv6Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

/// The first subnet of `pools` that overlaps none of `taken`.
#[must_use]
pub fn first_free(pools: &[AddressPool], taken: &[Ipv4Net]) -> Option<Ipv4Net> {
    pools.iter().find_map(|pool| {
        // A pool may be cut into 2^22 pieces: where one is taken, go on behind what takes it.
        let step = 1_u64 << (32 - pool.size);
        let end = u64::from(u32::from(pool.base.broadcast()));
        let mut at = u64::from(u32::from(pool.base.network()));
        while at <= end {
            let piece = Ipv4Net::new(Ipv4Addr::from(u32::try_from(at).ok()?), pool.size).ok()?;
            match taken.iter().find(|net| overlap(net, &piece)) {
                None => return Some(piece),
                Some(net) => {
                    let behind = u64::from(u32::from(net.broadcast())) + 1;
                    at = behind.next_multiple_of(step).max(at + step);
                }
            }
        }
        None
    })
}

/// A unique local /48 (RFC 4193) of a global identifier.
#[must_use]
pub fn unique_local(global: [u8; 5]) -> Ipv6Net {
    let mut octets = [0; 16];
    octets[0] = 0xfd;
    octets[1..6].copy_from_slice(&global);
    Ipv6Net::new_assert(Ipv6Addr::from(octets), 48)
}

/// The first /64 of `base` that overlaps none of `taken`.
#[must_use]
pub fn first_free_v6(base: Ipv6Net, taken: &[Ipv6Net]) -> Option<Ipv6Net> {
    let mut at = u128::from(base.network());
    let end = u128::from(base.broadcast());
    while at <= end {
        let piece = Ipv6Net::new(Ipv6Addr::from(at), 64).ok()?;
        match taken.iter().find(|net| overlap_v6(net, &piece)) {
            None => return Some(piece),
            // A range may hold more pieces than anybody could try: go on behind what takes this one.
            Some(net) => at = u128::from(net.broadcast().max(piece.broadcast())).checked_add(1)?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn net(text: &str) -> Ipv4Net {
        text.parse().unwrap()
    }

    #[test]
    fn the_order_is_dockers() {
        let mut taken = vec![DEFAULT_BRIDGE];
        let mut given = Vec::new();
        while let Some(subnet) = first_free(&docker_defaults(), &taken) {
            given.push(subnet.to_string());
            taken.push(subnet);
        }
        assert_eq!(given.len(), 14 + 16);
        assert_eq!(given[0], "172.18.0.0/16");
        assert_eq!(given[13], "172.31.0.0/16");
        assert_eq!(given[14], "192.168.0.0/20");
        assert_eq!(given[29], "192.168.240.0/20");
    }

    #[test]
    fn a_host_route_and_the_uplink_are_stepped_over() {
        let taken = [net("172.16.0.0/12"), net("192.168.0.0/21"), net("192.168.127.0/24")];
        assert_eq!(first_free(&docker_defaults(), &taken), Some(net("192.168.16.0/20")));
    }

    #[test]
    fn pieces_of_a_unique_local_prefix_come_one_after_the_other() {
        let base = unique_local([1, 2, 3, 4, 5]);
        assert_eq!(base.to_string(), "fd01:203:405::/48");
        let net = |text: &str| text.parse::<Ipv6Net>().unwrap();
        assert_eq!(first_free_v6(base, &[]), Some(net("fd01:203:405::/64")));
        let taken = [net("fd01:203:405:1::/64"), net("fd01:203:405::/80"), net("fd01:203:405:2::/63")];
        assert_eq!(first_free_v6(base, &taken), Some(net("fd01:203:405:4::/64")));
        assert_eq!(first_free_v6(base, &[net("fd00::/8")]), None);
    }

    #[test]
    fn a_piece_larger_than_the_base_is_refused() {
        assert!(AddressPool::new(net("10.0.0.0/8"), 24).is_ok());
        assert!(AddressPool::new(net("10.0.0.0/24"), 16).is_err());
        assert!(AddressPool::new(net("10.0.0.0/24"), 32).is_err());
    }

    fn nets() -> impl Strategy<Value = Vec<Ipv4Net>> {
        prop::collection::vec((any::<u32>(), 4_u8..=30), 0..40)
            .prop_map(|nets| nets.into_iter().map(|(a, p)| Ipv4Net::new_assert(a.into(), p).trunc()).collect())
    }

    proptest! {
        #[test]
        fn what_is_given_is_in_a_pool_free_and_the_first(taken in nets(), a in any::<u32>(), base in 8_u8..=24, more in 0_u8..=6) {
            let pool = AddressPool::new(Ipv4Net::new_assert(a.into(), base), base + more).unwrap();
            let pieces: Vec<_> = pool.base.subnets(pool.size).unwrap().collect();
            let expected = pieces.into_iter().find(|piece| !taken.iter().any(|net| overlap(net, piece)));
            prop_assert_eq!(first_free(&[pool], &taken), expected);
        }

        #[test]
        fn overlap_is_sharing_an_address(a in any::<u32>(), p in 20_u8..=32, b in any::<u8>(), q in 20_u8..=32) {
            let x = Ipv4Net::new_assert(a.into(), p).trunc();
            let y = Ipv4Net::new_assert((a ^ (u32::from(b) << 4)).into(), q).trunc();
            let shares = x.network().max(y.network()) <= x.broadcast().min(y.broadcast());
            prop_assert_eq!(overlap(&x, &y), shares);
            prop_assert_eq!(overlap(&y, &x), shares);
        }
    }
}
