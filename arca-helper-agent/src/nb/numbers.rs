// SPDX-License-Identifier: Apache-2.0
//! How OVN allocates IPv6 addresses that it could not allocate by itself.
//!
//! OVN's own IPv6 allocation is EUI-64 in a /64: no other prefix length, no range, nothing set apart. Its IPv4 allocator
//! has all that, but hands out IPv4 addresses. So each network with IPv6 has a second switch, never on any wire, whose
//! ports get numbers: addresses of a class E subnet (RFC 1112 section 4), of which number 2 stands for the first address
//! of the IPv6 pool. OVN keeps them, as it keeps IPv4 addresses: lowest free first, given back with the port, reserved
//! for who asked for a fixed one. What is decided here is only which address a number means.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr};

use super::address::{Range4, Subnet6};

/// First address of the numbers' subnet. It and the next one are never allocated by OVN.
const BASE: u32 = 0xf000_0000;
/// Number of the pool's first address.
const FIRST: u32 = 2;
/// Addresses of a pool that are numbered, as a power of two: what lies behind can only be asked for.
const MOST_BITS: u8 = 16;

/// The numbered addresses of an IPv6 pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Numbers {
    first: Ipv6Addr,
    bits: u8,
}

impl Numbers {
    /// Of the part of a subnet that is allocated from.
    pub fn of(pool: Subnet6) -> Self {
        Self { first: pool.network(), bits: (128 - pool.prefix()).min(MOST_BITS) }
    }

    fn count(self) -> u32 {
        1 << self.bits
    }

    /// Bits of the numbers' subnet: room for two numbers before the first and one after the last.
    fn width(self) -> u8 {
        (self.bits + 1).max(3)
    }

    /// The number that stands for an address; none outside the pool or too far behind its beginning.
    pub fn number(self, address: Ipv6Addr) -> Option<Ipv4Addr> {
        let offset = address.to_bits().checked_sub(self.first.to_bits())?;
        let offset = u32::try_from(offset).ok().filter(|offset| *offset < self.count())?;
        Some(Ipv4Addr::from_bits(BASE + FIRST + offset))
    }

    /// The address a number stands for.
    pub fn address(self, number: Ipv4Addr) -> Option<Ipv6Addr> {
        let offset = number.to_bits().checked_sub(BASE + FIRST).filter(|offset| *offset < self.count())?;
        Some(Ipv6Addr::from_bits(self.first.to_bits() + u128::from(offset)))
    }

    /// `other_config` of the numbers' switch; `taken` are addresses that must not be allocated, inside the pool or not.
    pub fn addressing(self, taken: impl Iterator<Item = Ipv6Addr>) -> BTreeMap<String, String> {
        let behind = Range4 {
            first: Ipv4Addr::from_bits(BASE + FIRST + self.count()),
            last: Ipv4Addr::from_bits(BASE + (1 << self.width()) - 2),
        };
        let taken = taken.filter_map(|address| self.number(address)).map(|n| Range4 { first: n, last: n });
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
        assert_eq!(numbers.number("fd00:18::".parse().unwrap()).unwrap().to_string(), "240.0.0.2");
        assert_eq!(numbers.address(Ipv4Addr::new(240, 0, 0, 4)).unwrap().to_string(), "fd00:18::2");
        assert_eq!(numbers.number("fd00:18::ffff".parse().unwrap()).unwrap().to_string(), "240.1.0.1");
        assert_eq!(numbers.number("fd00:18::1:0".parse().unwrap()), None);
        assert_eq!(numbers.number("fd00:17::1".parse().unwrap()), None);
        assert_eq!(numbers.address(Ipv4Addr::new(240, 0, 0, 1)), None);
        assert_eq!(numbers.address(Ipv4Addr::new(172, 18, 0, 2)), None);
    }

    #[test]
    fn what_is_set_apart_and_what_lies_behind_is_excluded() {
        let taken = ["fd00::", "fd00::1", "fd00::1", "fd00:5::1"].map(|a| a.parse().unwrap());
        let config = numbers("fd00::/64").addressing(taken.into_iter());
        assert_eq!(config["subnet"], "240.0.0.0/15");
        assert_eq!(config["exclude_ips"], "240.0.0.2 240.0.0.3 240.1.0.2..240.1.255.254");
        let config = numbers("fd00::8/126").addressing(std::iter::empty());
        assert_eq!((config["subnet"].as_str(), config["exclude_ips"].as_str()), ("240.0.0.0/29", "240.0.0.6"));
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
