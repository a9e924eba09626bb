// SPDX-License-Identifier: Apache-2.0
//! The small network between the host and OVN's gateway router: a /29 of the configured range.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Serialize};

use crate::pools;

/// Host end of the veth.
pub const HOST_INTERFACE: &str = "arca-up0";
/// Helper end of it.
pub const HELPER_INTERFACE: &str = "up0";
const LENGTH: u8 = 29;

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
