// SPDX-License-Identifier: Apache-2.0
//! The port plan (DESIGN section 3): one place for every vsock port number.

use std::fmt;

/// gRPC of arca-tapfwd in a container machine.
pub const TAP: u32 = 5555;
/// gRPC of arca-init in a container machine.
pub const INIT: u32 = 5556;
/// Host port a guest dials once to say READY.
pub const READY: u32 = 9000;
/// Datapath of published ports that cannot come in by nftables, in the helper machine.
pub const PUBLISH: u32 = 9998;
/// gRPC of arca-helper-agent in the helper machine.
pub const HELPER: u32 = 9999;

const CONTAINER_BASE: u32 = 20_000;
const HELPER_BASE: u32 = 30_000;

/// Number of a link: one per (container, network), unique on the host, 1..=9999.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LinkNumber(u16);

/// A link number outside 1..=9999.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("link number {0} is outside 1..=9999")]
pub struct InvalidLinkNumber(pub u32);

impl LinkNumber {
    /// Smallest link number.
    pub const MIN: Self = Self(1);
    /// Greatest link number; beyond it the container's and the helper's port ranges would meet.
    pub const MAX: Self = Self(9999);

    /// The plain number.
    pub fn get(self) -> u32 {
        u32::from(self.0)
    }

    /// Port in the container machine: 20000 + n.
    pub fn container_port(self) -> u32 {
        CONTAINER_BASE + self.get()
    }

    /// Port in the helper machine: 30000 + n.
    pub fn helper_port(self) -> u32 {
        HELPER_BASE + self.get()
    }
}

impl TryFrom<u32> for LinkNumber {
    type Error = InvalidLinkNumber;

    fn try_from(n: u32) -> Result<Self, InvalidLinkNumber> {
        u16::try_from(n).ok().filter(|n| (1..=9999).contains(n)).map(Self).ok_or(InvalidLinkNumber(n))
    }
}

impl fmt::Display for LinkNumber {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn link_one_pairs_20001_with_30001() {
        let link = LinkNumber::try_from(1).expect("1 is a link number");
        assert_eq!((link.container_port(), link.helper_port()), (20_001, 30_001));
    }

    #[test]
    fn the_two_ranges_never_meet() {
        assert!(LinkNumber::MAX.container_port() < LinkNumber::MIN.helper_port());
        assert_eq!(LinkNumber::try_from(0), Err(InvalidLinkNumber(0)));
        assert_eq!(LinkNumber::try_from(10_000), Err(InvalidLinkNumber(10_000)));
        assert_eq!(LinkNumber::try_from(65_537), Err(InvalidLinkNumber(65_537)));
    }
}
