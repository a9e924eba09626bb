// SPDX-License-Identifier: Apache-2.0
//! How OVN allocates addresses that it could not allocate by itself.
//!
//! OVN's own IPv6 allocation is EUI-64 in a /64: no other prefix length, no range, nothing set apart. Its IPv4 allocator
//! has all that, but hands out IPv4 addresses only, never the first one of a subnet, and knows neither subnets of two
//! addresses nor those above a /8. So a network that needs more has a second switch for that family, never on any wire,
//! whose ports get numbers: addresses of a class E subnet (RFC 1112 section 4), of which number 2 stands for the first
//! address of the pool. OVN keeps them, as it keeps IPv4 addresses: lowest free first, given back with the port, reserved
//! for who asked for a fixed one. What is decided here is only which address a number means.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;

use super::address::{Range4, Subnet6};

/// First address of the numbers' subnet. It and the next one are never allocated by OVN.
const BASE: u32 = 0xf000_0000;
/// Number of the pool's first address.
const FIRST: u32 = 2;
/// Addresses of a pool that are numbered at most: what lies behind can only be asked for.
const MOST: u32 = 1 << 16;

/// The numbered addresses of a pool of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    first: u128,
    count: u32,
}

fn bits(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => address.to_bits().into(),
        IpAddr::V6(address) => address.to_bits(),
    }
}

impl Numbers {
    /// Of the part of an IPv6 subnet that is allocated from.
    pub fn of(pool: Subnet6) -> Self {
        Self { first: pool.network().to_bits(), count: 1 << (128 - pool.prefix()).min(16) }
    }

    /// Of IPv4 addresses from `first` to `last`, which is not below it.
    pub fn between(first: Ipv4Addr, last: Ipv4Addr) -> Self {
        Self { first: first.to_bits().into(), count: (last.to_bits() - first.to_bits()).min(MOST - 1) + 1 }
    }

    /// Bits of the numbers' subnet: room for two numbers before the first and one after the last.
    fn width(self) -> u32 {
        (self.count + FIRST + 1).next_power_of_two().ilog2().max(3)
    }

    /// The number that stands for an address; none outside the pool or too far behind its beginning.
    pub fn number(self, address: impl Into<IpAddr>) -> Option<Ipv4Addr> {
        let offset = bits(address.into()).checked_sub(self.first)?;
        let offset = u32::try_from(offset).ok().filter(|offset| *offset < self.count)?;
        Some(Ipv4Addr::from_bits(BASE + FIRST + offset))
    }

    fn meant(self, number: Ipv4Addr) -> Option<u128> {
        let offset = number.to_bits().checked_sub(BASE + FIRST).filter(|offset| *offset < self.count)?;
        Some(self.first + u128::from(offset))
    }

    /// The address a number stands for, in a pool of IPv6.
    pub fn address(self, number: Ipv4Addr) -> Option<Ipv6Addr> {
        self.meant(number).map(Ipv6Addr::from_bits)
    }

    /// The address a number stands for, in a pool of IPv4.
    pub fn address4(self, number: Ipv4Addr) -> Option<Ipv4Addr> {
        u32::try_from(self.meant(number)?).ok().map(Ipv4Addr::from_bits)
    }

    /// `other_config` of the numbers' switch; `taken` are addresses that must not be allocated, inside the pool or not.
    pub fn addressing<A: Into<IpAddr>>(
        self,
        taken: impl Iterator<Item = RangeInclusive<A>>,
    ) -> BTreeMap<String, String> {
        let last = self.first + u128::from(self.count) - 1;
        let taken = taken.filter_map(|range| {
            let (from, to) = range.into_inner();
            let (from, to) = (bits(from.into()).max(self.first), bits(to.into()).min(last));
            let number = |bits: u128| u32::try_from(bits - self.first).ok().map(|at| Ipv4Addr::from(BASE + FIRST + at));
            if from > to { None } else { Some(Range4 { first: number(from)?, last: number(to)? }) }
        });
        let behind = Range4 {
            first: Ipv4Addr::from_bits(BASE + FIRST + self.count),
            last: Ipv4Addr::from_bits(BASE + (1 << self.width()) - 2),
        };
        let mut exclude: Vec<Range4> = taken.chain((behind.first <= behind.last).then_some(behind)).collect();
        exclude.sort_unstable();
        exclude.dedup();
        let exclude: Vec<String> = exclude.iter().map(ToString::to_string).collect();
        BTreeMap::from([
            ("subnet".to_owned(), format!("{}/{}", Ipv4Addr::from_bits(BASE), 32 - self.width())),
            ("exclude_ips".to_owned(), exclude.join(" ")),
        ])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn numbers(pool: &str) -> Numbers {
        Numbers::of(pool.parse().unwrap())
    }

    #[test]
    fn the_first_number_is_the_pools_first_address() {
        let numbers = numbers("fd00:18::/64");
        assert_eq!(numbers.number("fd00:18::".parse::<Ipv6Addr>().unwrap()).unwrap().to_string(), "240.0.0.2");
        assert_eq!(numbers.address(Ipv4Addr::new(240, 0, 0, 4)).unwrap().to_string(), "fd00:18::2");
        assert_eq!(numbers.number("fd00:18::ffff".parse::<Ipv6Addr>().unwrap()).unwrap().to_string(), "240.1.0.1");
        assert_eq!(numbers.number("fd00:18::1:0".parse::<Ipv6Addr>().unwrap()), None);
        assert_eq!(numbers.number("fd00:17::1".parse::<Ipv6Addr>().unwrap()), None);
        assert_eq!(numbers.address(Ipv4Addr::new(240, 0, 0, 1)), None);
        assert_eq!(numbers.address(Ipv4Addr::new(172, 18, 0, 2)), None);
    }

    #[test]
    fn what_is_set_apart_and_what_lies_behind_is_excluded() {
        let taken = ["fd00::", "fd00::1", "fd00::1", "fd00:5::1"].map(|a| a.parse().unwrap());
        let taken: [Ipv6Addr; 4] = taken;
        let config = numbers("fd00::/64").addressing(taken.into_iter().map(|a| a..=a));
        assert_eq!(config["subnet"], "240.0.0.0/15");
        assert_eq!(config["exclude_ips"], "240.0.0.2 240.0.0.3 240.1.0.2..240.1.255.254");
        let config = numbers("fd00::8/126").addressing::<Ipv6Addr>(std::iter::empty());
        assert_eq!((config["subnet"].as_str(), config["exclude_ips"].as_str()), ("240.0.0.0/29", "240.0.0.6"));
    }

    #[test]
    fn ipv4_addresses_are_numbered_between_two_ends() {
        let ends = |first: [u8; 4], last: [u8; 4]| Numbers::between(first.into(), last.into());
        let numbers = ends([10, 0, 0, 0], [10, 0, 0, 255]);
        assert_eq!(numbers.number(Ipv4Addr::new(10, 0, 0, 1)), Some(Ipv4Addr::new(240, 0, 0, 3)));
        assert_eq!(numbers.address4(Ipv4Addr::new(240, 0, 0, 3)), Some(Ipv4Addr::new(10, 0, 0, 1)));
        let at = |a, b| Ipv4Addr::new(10, 0, 0, a)..=Ipv4Addr::new(10, 0, 0, b);
        let config = numbers.addressing([at(254, 255), at(0, 0), at(100, 120)].into_iter());
        assert_eq!(config["subnet"], "240.0.0.0/23");
        assert_eq!(
            config["exclude_ips"],
            "240.0.0.2 240.0.0.102..240.0.0.122 240.0.1.0..240.0.1.1 240.0.1.2..240.0.1.254"
        );
        let two = ends([10, 0, 0, 0], [10, 0, 0, 1]).addressing([at(0, 0)].into_iter());
        assert_eq!(
            (two["subnet"].as_str(), two["exclude_ips"].as_str()),
            ("240.0.0.0/29", "240.0.0.2 240.0.0.4..240.0.0.6")
        );
        let many = ends([100, 0, 0, 0], [101, 255, 255, 255]);
        assert!(many.number(Ipv4Addr::new(100, 0, 255, 255)).is_some());
        assert_eq!(many.number(Ipv4Addr::new(100, 1, 0, 0)), None);
    }

    proptest! {
        #[test]
        fn number_and_address_are_each_others_inverse(bits: u128, prefix in 1u8..=128, offset: u32) {
            let shift = 128 - u32::from(prefix);
            let network = Ipv6Addr::from_bits((bits.checked_shr(shift).unwrap_or(0)).checked_shl(shift).unwrap_or(0));
            let Ok(pool) = format!("{network}/{prefix}").parse::<Subnet6>() else { return Ok(()) };
            let numbers = Numbers::of(pool);
            let number = Ipv4Addr::from_bits(BASE.wrapping_add(offset % 0x2_0000));
            if let Some(address) = numbers.address(number) {
                prop_assert!(pool.contains(address));
                prop_assert_eq!(numbers.number(address), Some(number));
                // OVN allocates neither of the first two nor the last of a subnet.
                let last = BASE + (1 << numbers.width()) - 1;
                prop_assert!(number.to_bits() > BASE + 1 && number.to_bits() < last);
            }
        }
    }
}
