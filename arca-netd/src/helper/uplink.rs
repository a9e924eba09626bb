// SPDX-License-Identifier: Apache-2.0
//! The small network between the host and OVN's gateway router: a /29 of the configured range.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

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
    /// nftables table, family `ip`.
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
const KEY: &str = "uplink";

/// `.1` host, `.2` OVN's gateway router, `.3` resolver.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Uplink(Ipv4Net);

impl Uplink {
    /// The first /29 of `range` that overlaps none of `taken`.
    #[must_use]
    pub fn choose(range: Ipv4Net, taken: &[Ipv4Net]) -> Option<Self> {
        let pool = pools::AddressPool::new(range, LENGTH).ok()?;
        pools::first_free(&[pool], taken).map(Self)
    }

    /// The stored one, as long as it lies in the configured `range` and is this engine's own or free; else the first free
    /// /29, stored.
    ///
    /// # Errors
    /// If the range has no room beside the host's routes, or the store fails.
    pub async fn load(store: &Store, range: Ipv4Net, names: &Names) -> Result<Self> {
        let own = hostnet::routes_over(&names.interface);
        let host = hostnet::taken(Some(&names.interface));
        store
            .update(move |draft| {
                let kept = draft.meta.get(KEY).and_then(|text| text.parse::<Ipv4Net>().ok());
                let is_free = |net: &Ipv4Net| !host.iter().any(|other| pools::overlap(other, net));
                let kept = kept.filter(|net| range.contains(net) && (own.contains(net) || is_free(net)));
                if let Some(uplink) = kept.and_then(|net| Self::choose(net, &[])) {
                    return Ok(uplink);
                }
                let networks = draft.networks.values().filter_map(|network| network.v4.as_ref());
                let taken: Vec<_> = networks.map(|v4| v4.subnet).chain(host.iter().copied()).collect();
                let uplink = Self::choose(range, &taken).ok_or_else(|| {
                    Error::Failed(format!("uplinkRange {range} has no free /29 beside the host's routes"))
                })?;
                draft.put_meta(KEY, uplink.net().to_string());
                Ok(uplink)
            })
            .await
    }

    /// The network.
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        self.0
    }

    fn nth(self, n: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.0.network()) + n)
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

    /// `address` with the network's prefix length.
    #[must_use]
    pub fn with_length(self, address: Ipv4Addr) -> String {
        format!("{address}/{LENGTH}")
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
}
