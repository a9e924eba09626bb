// SPDX-License-Identifier: Apache-2.0
//! The small network between the host and OVN's gateway router: a /29 of the configured range, and an IPv6 /64 of
//! another one.

use std::net::{Ipv4Addr, Ipv6Addr};

use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    error::{Error, Result},
    hostnet, pools,
    store::Store,
};

/// What an engine makes in its host's network namespace, named so that several engines do not meet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    /// Host end of the veth: 13 of the 15 bytes a name may have.
    pub interface: String,
    /// nftables table, families `ip` and `ip6`.
    pub table: String,
}

impl Names {
    /// Those of the engine whose [`arca_daemon::paths::Paths::tag`] this is.
    #[must_use]
    pub fn of(tag: &str) -> Self {
        Self { interface: format!("arca-{tag}"), table: format!("arca_{tag}") }
    }
}

/// Helper end of it.
pub const HELPER_INTERFACE: &str = "up0";
const LENGTH: u8 = 29;
const LENGTH_V6: u8 = 64;
const KEY: &str = "uplink";
const KEY_V6: &str = "uplink6";

/// `.1` host, `.2` OVN's gateway router, `.3` resolver, `.4` whence the helper connects for clients of published ports; `::1` to `::4` in IPv6, where the host has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Uplink {
    v4: Ipv4Net,
    v6: Option<Ipv6Net>,
}

/// Where uplink networks come from (`uplinkRange`, `uplinkRange6`).
#[derive(Clone, Copy, Debug)]
pub struct Ranges {
    /// Range of the /29.
    pub v4: Ipv4Net,
    /// Range of the IPv6 /64.
    pub v6: Ipv6Net,
}

impl Uplink {
    /// The first /29 of `range` that overlaps none of `taken`; without IPv6.
    #[must_use]
    pub fn choose(range: Ipv4Net, taken: &[Ipv4Net]) -> Option<Self> {
        let pool = pools::AddressPool::new(range, LENGTH).ok()?;
        pools::first_free(&[pool], taken).map(|v4| Self { v4, v6: None })
    }

    /// The same with a /64 of `range` beside it: the one that is at the /29's place in its range, so that engines whose
    /// IPv4 networks differ have others too; if that is taken, the first free one.
    #[must_use]
    pub fn with_v6(self, ranges: Ranges, taken: &[Ipv6Net]) -> Self {
        let place = (u32::from(self.v4.network()) - u32::from(ranges.v4.network())) >> (32 - LENGTH);
        let at = u128::from(ranges.v6.network()).saturating_add(u128::from(place) << 64);
        let own = Ipv6Net::new(at.into(), LENGTH_V6).ok();
        let is_free = |net: &Ipv6Net| !taken.iter().any(|other| pools::overlap_v6(other, net));
        let own = own.filter(|net| ranges.v6.contains(net) && is_free(net));
        Self { v6: own.or_else(|| pools::first_free_v6(ranges.v6, taken)), ..self }
    }

    /// The stored one, as long as it lies in the configured ranges and is this engine's own or free; else the first free
    /// networks, stored.
    ///
    /// # Errors
    /// If the range has no room beside the host's routes, or the store fails.
    pub async fn load(store: &Store, ranges: Ranges, names: &Names) -> Result<Self> {
        let range = ranges.v4;
        let own = hostnet::routes_over(&names.interface);
        let host = hostnet::taken(Some(&names.interface));
        let own_v6 = hostnet::routes_over_v6(&names.interface);
        let host_v6 = hostnet::taken_v6(Some(&names.interface));
        let has_ipv6 = hostnet::has_ipv6();
        let uplink = store
            .update(move |draft| {
                let kept = draft.meta.get(KEY).and_then(|text| text.parse::<Ipv4Net>().ok());
                let is_free = |net: &Ipv4Net| !host.iter().any(|other| pools::overlap(other, net));
                let kept = kept.filter(|net| range.contains(net) && (own.contains(net) || is_free(net)));
                let uplink = match kept.and_then(|net| Self::choose(net, &[])) {
                    Some(uplink) => uplink,
                    None => {
                        let networks = draft.networks.values().filter_map(|network| network.v4.as_ref());
                        let taken: Vec<_> = networks.map(|v4| v4.subnet).chain(host.iter().copied()).collect();
                        let uplink = Self::choose(range, &taken).ok_or_else(|| {
                            Error::Failed(format!("uplinkRange {range} has no free /29 beside the host's routes"))
                        })?;
                        draft.put_meta(KEY, uplink.net().to_string());
                        uplink
                    }
                };
                if !has_ipv6 {
                    return Ok(uplink);
                }
                let kept = draft.meta.get(KEY_V6).and_then(|text| text.parse::<Ipv6Net>().ok());
                let is_free = |net: &Ipv6Net| !host_v6.iter().any(|other| pools::overlap_v6(other, net));
                let kept = kept.filter(|net| ranges.v6.contains(net) && (own_v6.contains(net) || is_free(net)));
                if kept.is_some() {
                    return Ok(Self { v6: kept, ..uplink });
                }
                let networks = draft.networks.values().filter_map(|network| network.v6.as_ref());
                let taken: Vec<_> = networks.map(|v6| v6.subnet).chain(host_v6.iter().copied()).collect();
                let uplink = uplink.with_v6(ranges, &taken);
                if let Some(net) = uplink.v6 {
                    draft.put_meta(KEY_V6, net.to_string());
                }
                Ok::<_, Error>(uplink)
            })
            .await?;
        if uplink.v6.is_none() {
            let why =
                if has_ipv6 { "uplinkRange6 has no free /64 beside the host's routes" } else { "this host has none" };
            tracing::warn!(why, "no IPv6 on the uplink: IPv6 networks have no way out and no published ports");
        }
        Ok(uplink)
    }

    /// The same without an IPv6 side.
    #[must_use]
    pub fn v4_only(self) -> Self {
        Self { v6: None, ..self }
    }

    /// The network.
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        self.v4
    }

    /// Its IPv6 side.
    #[must_use]
    pub fn v6(self) -> Option<UplinkV6> {
        self.v6.map(UplinkV6)
    }

    fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.v4.network()) + n)
    }

    /// The host's address.
    #[must_use]
    pub fn host(self) -> Ipv4Addr {
        self.nth(1)
    }

    /// The gateway router's address: SNAT source, and VIP of published ports.
    #[must_use]
    pub fn router(self) -> Ipv4Addr {
        self.nth(2)
    }

    /// The fallback resolver's address.
    #[must_use]
    pub fn resolver(self) -> Ipv4Addr {
        self.nth(3)
    }

    /// Two addresses that nobody has, for a user-mode network that wants to give some.
    #[must_use]
    pub fn spare(self) -> [Ipv4Addr; 2] {
        [self.nth(5), self.nth(6)]
    }

    /// `address` with the network's prefix length.
    #[must_use]
    pub fn with_length(self, address: Ipv4Addr) -> String {
        format!("{address}/{LENGTH}")
    }
}

/// The IPv6 side of an uplink network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UplinkV6(Ipv6Net);

impl UplinkV6 {
    /// The network.
    #[must_use]
    pub fn net(self) -> Ipv6Net {
        self.0
    }

    fn nth(self, n: u128) -> Ipv6Addr {
        Ipv6Addr::from(u128::from(self.0.network()) + n)
    }

    /// See [`Uplink::host`].
    #[must_use]
    pub fn host(self) -> Ipv6Addr {
        self.nth(1)
    }

    /// See [`Uplink::router`].
    #[must_use]
    pub fn router(self) -> Ipv6Addr {
        self.nth(2)
    }

    /// See [`Uplink::resolver`].
    #[must_use]
    pub fn resolver(self) -> Ipv6Addr {
        self.nth(3)
    }

    /// `address` with the network's prefix length.
    #[must_use]
    pub fn with_length(self, address: Ipv6Addr) -> String {
        format!("{address}/{LENGTH_V6}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_free_piece_is_taken() {
        let range = "192.168.127.0/24".parse().unwrap();
        let first = Uplink::choose(range, &[]).unwrap();
        assert_eq!(
            (first.host().to_string(), first.with_length(first.router())),
            ("192.168.127.1".into(), "192.168.127.2/29".into())
        );
        let second = Uplink::choose(range, &["192.168.127.4/32".parse().unwrap()]).unwrap();
        assert_eq!(second.resolver(), Ipv4Addr::new(192, 168, 127, 11));
        assert_eq!(Uplink::choose(range, &["192.168.0.0/16".parse().unwrap()]), None);
    }

    #[test]
    fn the_ipv6_piece_is_at_the_same_place_in_its_range() {
        let ranges = Ranges { v4: "192.168.127.0/24".parse().unwrap(), v6: "fd00:7::/48".parse().unwrap() };
        let second = Uplink::choose(ranges.v4, &["192.168.127.4/32".parse().unwrap()]).unwrap();
        assert_eq!(second.v6(), None);
        let v6 = |taken: &[&str]| {
            let taken: Vec<Ipv6Net> = taken.iter().map(|net| net.parse().unwrap()).collect();
            second.with_v6(ranges, &taken).v6().map(|v6| v6.with_length(v6.router()))
        };
        assert_eq!(v6(&[]).as_deref(), Some("fd00:7:0:1::2/64"));
        assert_eq!(v6(&["fd00:7:0:1::5/128"]).as_deref(), Some("fd00:7::2/64"));
        assert_eq!(v6(&["fd00::/16"]), None);
    }
}
