// SPDX-License-Identifier: Apache-2.0
//! Addresses that cannot be invalid: MAC, subnets, interface addresses, ranges. Used by [`super::model`].

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A text that is not the address it should be.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidAddress {
    text: String,
    expected: &'static str,
}

fn invalid(text: &str, expected: &'static str) -> InvalidAddress {
    InvalidAddress { text: text.chars().take(64).collect(), expected }
}

/// A unicast Ethernet address, never all zeroes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// A locally administered address made of five bytes that are unique among router ports.
    pub fn of_router(tail: [u8; 5]) -> Self {
        Self([0x0e, tail[0], tail[1], tail[2], tail[3], tail[4]])
    }

    /// The six bytes.
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl From<[u8; 6]> for MacAddr {
    fn from(octets: [u8; 6]) -> Self {
        Self(octets)
    }
}

impl std::str::FromStr for MacAddr {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "a unicast MAC address such as 02:42:ac:12:00:02";
        let mut bytes = [0; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().filter(|p| p.len() == 2).ok_or_else(|| invalid(text, WHAT))?;
            if !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(invalid(text, WHAT));
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| invalid(text, WHAT))?;
        }
        if parts.next().is_some() || bytes[0] & 1 != 0 || bytes == [0; 6] {
            return Err(invalid(text, WHAT));
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An IPv4 network of two addresses or more, host bits clear.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet4 {
    network: Ipv4Addr,
    prefix: u8,
}

impl Subnet4 {
    /// First address.
    pub fn network(self) -> Ipv4Addr {
        self.network
    }

    /// Prefix length in bits, 1..=31.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Last address.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network.to_bits() | (u32::MAX >> self.prefix))
    }

    /// Whether an address lies inside.
    pub fn contains(self, address: Ipv4Addr) -> bool {
        (self.network..=self.broadcast()).contains(&address)
    }

    /// Whether two subnets share addresses.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }

    /// Whether an address lies inside and is neither the network's nor the broadcast address, of which a subnet of two
    /// addresses has none (RFC 3021).
    pub fn contains_host(self, address: Ipv4Addr) -> bool {
        let edge = self.prefix < 31 && (address == self.network || address == self.broadcast());
        self.contains(address) && !edge
    }
}

impl std::str::FromStr for Subnet4 {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "an IPv4 subnet of prefix 1 to 31 without host bits";
        let interface = Interface4::parse(text, WHAT)?;
        let subnet = interface.subnet();
        if interface.address != subnet.network || !(1..=31).contains(&subnet.prefix) {
            return Err(invalid(text, WHAT));
        }
        Ok(subnet)
    }
}

impl fmt::Display for Subnet4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// An IPv4 address with the prefix of its network: "192.168.127.2/29".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface4 {
    /// The address.
    pub address: Ipv4Addr,
    prefix: u8,
}

impl Interface4 {
    fn parse(text: &str, what: &'static str) -> Result<Self, InvalidAddress> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| invalid(text, what))?;
        let address = address.parse().map_err(|_| invalid(text, what))?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(|| invalid(text, what))?;
        Ok(Self { address, prefix })
    }

    /// The network it is in.
    pub fn subnet(self) -> Subnet4 {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix)).unwrap_or(0);
        Subnet4 { network: Ipv4Addr::from_bits(self.address.to_bits() & mask), prefix: self.prefix }
    }
}

impl std::str::FromStr for Interface4 {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "an IPv4 interface address such as 192.168.127.2/29";
        let interface = Self::parse(text, WHAT)?;
        if !(8..=30).contains(&interface.prefix) || !interface.subnet().contains_host(interface.address) {
            return Err(invalid(text, WHAT));
        }
        Ok(interface)
    }
}

impl fmt::Display for Interface4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// An IPv6 network, host bits clear: a network's subnet or the part of it that is allocated from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Subnet6 {
    network: Ipv6Addr,
    prefix: u8,
}

impl Subnet6 {
    /// First address.
    pub fn network(self) -> Ipv6Addr {
        self.network
    }

    /// Prefix length in bits, 1..=128.
    pub fn prefix(self) -> u8 {
        self.prefix
    }

    /// Whether an address lies inside.
    pub fn contains(self, address: Ipv6Addr) -> bool {
        mask6(address, self.prefix) == self.network
    }

    /// Whether two networks share addresses.
    pub fn overlaps(self, other: Self) -> bool {
        self.contains(other.network) || other.contains(self.network)
    }
}

fn mask6(address: Ipv6Addr, prefix: u8) -> Ipv6Addr {
    let mask = u128::MAX.checked_shl(128 - u32::from(prefix)).unwrap_or(0);
    Ipv6Addr::from_bits(address.to_bits() & mask)
}

impl std::str::FromStr for Subnet6 {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "an IPv6 subnet of unicast addresses without host bits, not link-local";
        let Interface6 { address, prefix } = Interface6::parse(text, WHAT)?;
        let unicast = !address.is_multicast() && !address.is_unspecified() && !address.is_unicast_link_local();
        if !unicast || prefix == 0 || mask6(address, prefix) != address {
            return Err(invalid(text, WHAT));
        }
        Ok(Self { network: address, prefix })
    }
}

impl fmt::Display for Subnet6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.prefix)
    }
}

/// An IPv6 address with the prefix of its network: "fd00:77::2/64".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interface6 {
    /// The address.
    pub address: Ipv6Addr,
    /// Prefix length in bits.
    pub prefix: u8,
}

impl Interface6 {
    fn parse(text: &str, what: &'static str) -> Result<Self, InvalidAddress> {
        let (address, prefix) = text.split_once('/').ok_or_else(|| invalid(text, what))?;
        let address = address.parse().map_err(|_| invalid(text, what))?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 128).ok_or_else(|| invalid(text, what))?;
        Ok(Self { address, prefix })
    }

    /// The network it is in.
    pub fn subnet(self) -> Subnet6 {
        Subnet6 { network: mask6(self.address, self.prefix), prefix: self.prefix }
    }
}

impl std::str::FromStr for Interface6 {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "an IPv6 interface address such as fd00:77::2/64";
        let interface = Self::parse(text, WHAT)?;
        let Self { address, prefix } = interface;
        let unicast = !address.is_multicast() && !address.is_loopback() && !address.is_unicast_link_local();
        if !unicast || !(1..=126).contains(&prefix) || interface.subnet().network == address {
            return Err(invalid(text, WHAT));
        }
        Ok(interface)
    }
}

impl fmt::Display for Interface6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// One address or an inclusive range, as OVN's `exclude_ips` writes it: "a" or "a..b".
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Range4 {
    /// First address.
    pub first: Ipv4Addr,
    /// Last address, not below the first.
    pub last: Ipv4Addr,
}

impl std::str::FromStr for Range4 {
    type Err = InvalidAddress;

    fn from_str(text: &str) -> Result<Self, InvalidAddress> {
        const WHAT: &str = "an IPv4 address or a range `first..last`";
        let parse = |t: &str| t.parse().map_err(|_| invalid(text, WHAT));
        let (first, last) = match text.split_once("..") {
            Some((first, last)) => (parse(first)?, parse(last)?),
            None => (parse(text)?, parse(text)?),
        };
        if last < first {
            return Err(invalid(text, WHAT));
        }
        Ok(Self { first, last })
    }
}

impl fmt::Display for Range4 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last { write!(f, "{}", self.first) } else { write!(f, "{}..{}", self.first, self.last) }
    }
}

/// Name of an address in the reverse tree (RFC 1035 3.5, RFC 3596 2.5), without the final dot.
pub fn reverse_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(a) => {
            let [a, b, c, d] = a.octets();
            format!("{d}.{c}.{b}.{a}.in-addr.arpa")
        }
        IpAddr::V6(a) => {
            let mut name = String::with_capacity(72);
            for byte in a.octets().iter().rev() {
                let digits = [byte & 15, byte >> 4].map(|n| char::from_digit(n.into(), 16).unwrap_or('0'));
                name.extend([digits[0], '.', digits[1], '.']);
            }
            name + "ip6.arpa"
        }
    }
}

/// Addresses an endpoint has, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4 address.
    pub v4: Option<Ipv4Addr>,
    /// IPv6 address.
    pub v6: Option<Ipv6Addr>,
}

impl Addresses {
    /// Reads what OVN writes into `dynamic_addresses` and what Arca writes into `addresses`: "MAC IP4 IP6", "MAC", "MAC dynamic".
    pub fn parse(text: &str) -> Self {
        let mut found = Self::default();
        for word in text.split_ascii_whitespace().skip(1) {
            match word.parse() {
                Ok(IpAddr::V4(a)) => found.v4 = found.v4.or(Some(a)),
                Ok(IpAddr::V6(a)) => found.v6 = found.v6.or(Some(a)),
                Err(_) => {}
            }
        }
        found
    }

    /// All of them, IPv4 first.
    pub fn iter(self) -> impl Iterator<Item = IpAddr> {
        self.v4.map(IpAddr::V4).into_iter().chain(self.v6.map(IpAddr::V6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn texts_that_are_not_addresses_are_refused() {
        for mac in ["", "02:42", "01:00:5e:00:00:01", "00:00:00:00:00:00", "02:42:ac:12:00:02:03", "+2:42:ac:12:00:02"]
        {
            assert!(mac.parse::<MacAddr>().is_err(), "{mac}");
        }
        for subnet in ["172.18.0.1/24", "172.18.0.0", "172.18.0.0/32", "0.0.0.0/0", "172.18.0.0/33", "fd00::/64"] {
            assert!(subnet.parse::<Subnet4>().is_err(), "{subnet}");
        }
        for range in ["10.0.0.1-10.0.0.2", "10.0.0.2..10.0.0.1", ".."] {
            assert!(range.parse::<Range4>().is_err(), "{range}");
        }
        for subnet in
            ["fd00::1/64", "fd00::/0", "ff00::/64", "::/64", "fe80::/64", "fd00::/129", "fd00::", "10.0.0.0/8"]
        {
            assert!(subnet.parse::<Subnet6>().is_err(), "{subnet}");
        }
        for interface in ["fd00::/64", "fe80::1/64", "::1/64", "fd00::1/127", "192.168.127.2/29"] {
            assert!(interface.parse::<Interface6>().is_err(), "{interface}");
        }
        assert!("192.168.127.0/29".parse::<Interface4>().is_err());
        assert!("192.168.127.7/29".parse::<Interface4>().is_err());
    }

    #[test]
    fn reverse_names() {
        assert_eq!(reverse_name("172.18.0.2".parse().unwrap()), "2.0.18.172.in-addr.arpa");
        let v6 = reverse_name("fd00:18::2".parse().unwrap());
        assert!(v6.starts_with("2.0.0.0.0.") && v6.ends_with(".8.1.0.0.0.0.d.f.ip6.arpa"), "{v6}");
    }

    #[test]
    fn dynamic_addresses_are_read() {
        let both = Addresses::parse("02:42:ac:12:00:02 172.18.0.2 fd00:18::2");
        assert_eq!(both.iter().count(), 2);
        assert_eq!(Addresses::parse("8a:00:00:00:00:01 "), Addresses::default());
        assert_eq!(Addresses::parse("02:42:ac:12:00:02 dynamic"), Addresses::default());
    }

    proptest! {
        #[test]
        fn parsers_never_panic_and_print_what_they_read(text in "\\PC{0,40}", bits: u32, prefix in 0u8..=40) {
            let _ = (text.parse::<MacAddr>(), text.parse::<Subnet6>(), text.parse::<Range4>(), Addresses::parse(&text));
            let text = format!("{}/{prefix}", Ipv4Addr::from_bits(bits));
            if let Ok(subnet) = text.parse::<Subnet4>() {
                prop_assert_eq!(subnet.to_string(), text.clone());
            }
            if let Ok(interface) = text.parse::<Interface4>() {
                prop_assert!(interface.subnet().contains_host(interface.address));
            }
        }
    }
}
