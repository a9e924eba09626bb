// SPDX-License-Identifier: Apache-2.0
//! The hello: the first bytes on a link's stream, before any frame.
//!
//! Three parties talk over two connections that arca-relayd dialled: the container end (arca-tapfwd), the relay, and
//! the helper end (arca-helper-agent). Every hello has the same fixed size, so nobody reads into the frames behind it.
//!
//! ```text
//! container end                    relay                        helper end
//!      | <--- relay hello {epoch} ---|--- relay hello {epoch} ---> |
//!      | --- container hello ------> | --- container hello ------> |
//!      | <------- helper hello ----- | <------- helper hello ----- |
//!      | <===== frames, bytes passed unchanged by the relay =====> |
//! ```
//!
//! 1. The relay writes a relay hello to each end as soon as it is connected. An end writes its own hello as soon as it
//!    accepts: nobody waits for anybody, so the exchange costs one round trip.
//! 2. The relay checks each end's hello (kind and link number) and passes it on unchanged. The link is up for the relay
//!    when both have been passed on.
//! 3. An end takes the relay's hello first, then its peer's. Both ends compute the same [`Agreement`]: the
//!    intersection of the offload bits and the smaller of the two maximum frames. Frames may follow at once.
//!
//! A mismatch (magic, version, kind, link number, maximum frame) closes the connection on the side that sees it; the
//! relay then closes the other and redials. The epoch orders connections: an end that has a live connection takes
//! another only when its epoch is greater (it then displaces the older), and closes it otherwise; without a live
//! connection any epoch will do. Ends send epoch 0, the relay sends no offloads and no maximum frame.
//!
//! Layout, little-endian, [`Hello::SIZE`] bytes:
//!
//! | offset | size | field |
//! |---|---|---|
//! | 0 | 4 | magic `ARCA` |
//! | 4 | 1 | version, 1 |
//! | 5 | 1 | kind: 1 relay, 2 container end, 3 helper end |
//! | 6 | 1 | carriers, see [`Carriers`]: what an end can do; in the relay's hello the one in use |
//! | 7 | 1 | zero, ignored by the receiver |
//! | 8 | 4 | link number |
//! | 12 | 4 | maximum frame: greatest value of a frame's length field |
//! | 16 | 8 | epoch |
//! | 24 | 4 | offload bits, see [`Offloads`] |
//! | 28 | 4 | zero, ignored by the receiver |

use std::fmt;

use crate::{
    frame::MAX_FRAME,
    ports::{InvalidLinkNumber, LinkNumber},
};

const MAGIC: [u8; 4] = *b"ARCA";

/// Version of the hello and of what follows it. There is no negotiation: both ends come from one release.
pub const VERSION: u8 = 1;

/// Smallest maximum frame an end may offer: virtio_net_hdr, Ethernet header, 1500 bytes of IP.
pub const MIN_MAX_FRAME: u32 = 12 + 14 + 1500;

/// Who speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// arca-relayd; carries the epoch.
    Relay,
    /// arca-tapfwd in the container machine.
    Container,
    /// arca-helper-agent in the helper machine.
    Helper,
}

impl Kind {
    /// The end that an end talks to. The relay has no opposite.
    pub fn opposite(self) -> Option<Self> {
        match self {
            Self::Relay => None,
            Self::Container => Some(Self::Helper),
            Self::Helper => Some(Self::Container),
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Relay => 1,
            Self::Container => 2,
            Self::Helper => 3,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relay => "relay",
            Self::Container => "container end",
            Self::Helper => "helper end",
        })
    }
}

/// Offload bits of a TAP, as in Linux's `TUN_F_*` (include/uapi/linux/if_tun.h): what may be left undone in a frame.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Offloads(u32);

impl Offloads {
    /// No offload: every frame has its checksum and fits the MTU.
    pub const NONE: Self = Self(0);
    /// Checksums may be unfinished.
    pub const CSUM: Self = Self(0x01);
    /// TCP over IPv4 may be longer than the MTU.
    pub const TSO4: Self = Self(0x02);
    /// TCP over IPv6 may be longer than the MTU.
    pub const TSO6: Self = Self(0x04);
    /// Long TCP frames may carry ECN marks.
    pub const TSO_ECN: Self = Self(0x08);
    /// UDP over IPv4 may be longer than the MTU (GSO_UDP_L4). Linux 6.2; goes with [`Offloads::USO6`] only.
    pub const USO4: Self = Self(0x20);
    /// UDP over IPv6 may be longer than the MTU.
    pub const USO6: Self = Self(0x40);
    /// Checksum and TCP segmentation: what OVS's userspace datapath understands with `userspace-tso-enable`.
    pub const TSO: Self = Self(0x0f);
    /// All that a link carries.
    pub const ALL: Self = Self(0x6f);

    /// Takes known bits and drops what cannot stand alone: everything needs CSUM, ECN needs a TSO bit, USO is both
    /// bits or none. The kernel refuses such sets (drivers/net/tun.c, `set_offload`).
    pub fn from_bits(bits: u32) -> Self {
        let mut bits = bits & Self::ALL.0;
        if bits & Self::CSUM.0 == 0 {
            return Self::NONE;
        }
        if bits & (Self::TSO4.0 | Self::TSO6.0) == 0 {
            bits &= !Self::TSO_ECN.0;
        }
        let uso = Self::USO4.0 | Self::USO6.0;
        if bits & uso != uso {
            bits &= !uso;
        }
        Self(bits)
    }

    /// The bits, `TUN_F_*`.
    pub fn bits(self) -> u32 {
        self.0
    }

    /// Whether all bits of `other` are in `self`.
    pub fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// What both sides can do.
    pub fn intersection(self, other: Self) -> Self {
        Self::from_bits(self.0 & other.0)
    }
}

impl fmt::Debug for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Offloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(Offloads, &str); 6] = [
            (Offloads::CSUM, "csum"),
            (Offloads::TSO4, "tso4"),
            (Offloads::TSO6, "tso6"),
            (Offloads::TSO_ECN, "ecn"),
            (Offloads::USO4, "uso4"),
            (Offloads::USO6, "uso6"),
        ];
        let mut separator = "";
        for (_, name) in NAMES.iter().filter(|(bit, _)| self.contains(*bit)) {
            write!(f, "{separator}{name}")?;
            separator = "+";
        }
        if separator.is_empty() { f.write_str("none") } else { Ok(()) }
    }
}

/// How frames of a link travel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Carrier {
    /// Over the two streams that the relay joins. Every end can do it.
    #[default]
    Stream,
    /// The helper end has the container's TAP by descriptor and moves frames from TAP to TAP; see [`crate::note`].
    TapFd,
    /// A veth pair whose other end lies in the helper's network namespace; see [`crate::note`].
    Cable,
}

impl Carrier {
    /// As in the configuration.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stream => "stream",
            Self::TapFd => "tap-fd",
            Self::Cable => "cable",
        }
    }
}

impl fmt::Display for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// No carrier of this contract.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("carrier {0} is unknown")]
pub struct UnknownCarrier(pub i32);

impl TryFrom<i32> for Carrier {
    type Error = UnknownCarrier;

    /// From a message's field; unspecified is the stream.
    fn try_from(number: i32) -> Result<Self, UnknownCarrier> {
        use crate::relay::v1::Carrier as Proto;
        match Proto::try_from(number) {
            Ok(Proto::Unspecified | Proto::Stream) => Ok(Self::Stream),
            Ok(Proto::TapFd) => Ok(Self::TapFd),
            Ok(Proto::Cable) => Ok(Self::Cable),
            Err(_) => Err(UnknownCarrier(number)),
        }
    }
}

impl From<Carrier> for crate::relay::v1::Carrier {
    fn from(carrier: Carrier) -> Self {
        match carrier {
            Carrier::Stream => Self::Stream,
            Carrier::TapFd => Self::TapFd,
            Carrier::Cable => Self::Cable,
        }
    }
}

/// A set of carriers. The stream is in every set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Carriers(u8);

impl Carriers {
    /// The stream alone.
    pub const STREAM: Self = Self(0);
    /// Stream and [`Carrier::TapFd`].
    pub const TAP_FD: Self = Self(1);
    /// Stream and [`Carrier::Cable`].
    pub const CABLE: Self = Self(2);

    fn bit(carrier: Carrier) -> u8 {
        match carrier {
            Carrier::Stream => 0,
            Carrier::TapFd => 1,
            Carrier::Cable => 2,
        }
    }

    /// Whether it is in the set.
    pub fn contains(self, carrier: Carrier) -> bool {
        let bit = Self::bit(carrier);
        self.0 & bit == bit
    }
}

impl From<Carrier> for Carriers {
    fn from(carrier: Carrier) -> Self {
        Self(Self::bit(carrier))
    }
}

/// One hello.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Who speaks.
    pub kind: Kind,
    /// The link it speaks about.
    pub link: LinkNumber,
    /// Greatest length field it accepts; 0 from the relay.
    pub max_frame: u32,
    /// Order of the connection; 0 from an end.
    pub epoch: u64,
    /// What it can take; none from the relay.
    pub offloads: Offloads,
    /// What it can do; from the relay, the one in use.
    pub carriers: Carriers,
}

/// Why a hello was refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum HelloError {
    /// The stream does not begin as a link.
    #[error("hello: magic is {0:02x?}, not \"ARCA\": something else is listening on this port")]
    Magic([u8; 4]),
    /// Another release.
    #[error("hello: version {0}, this program speaks {VERSION}: the two ends come from different releases")]
    Version(u8),
    /// A kind byte that is not 1, 2 or 3.
    #[error("hello: kind {0} is unknown")]
    Kind(u8),
    /// The wrong party.
    #[error("hello: from {found}, expected {expected}: the link's ends are mixed up")]
    Unexpected {
        /// Who should have spoken.
        expected: Kind,
        /// Who spoke.
        found: Kind,
    },
    /// Carriers that exclude each other, or that an end cannot do.
    #[error("hello: {kind} cannot do carrier {carrier}")]
    Carrier {
        /// Who cannot.
        kind: Kind,
        /// What is wanted.
        carrier: Carrier,
    },
    /// A link number out of range.
    #[error("hello: {0}")]
    LinkNumber(InvalidLinkNumber),
    /// Another link.
    #[error("hello: about link {found} on link {expected}: two ends with different numbers were joined")]
    OtherLink {
        /// The link of this end.
        expected: LinkNumber,
        /// The link in the hello.
        found: LinkNumber,
    },
    /// An end that cannot take an ordinary frame.
    #[error("hello: maximum frame {0} is below {MIN_MAX_FRAME}")]
    MaxFrame(u32),
}

impl Hello {
    /// Bytes on the wire.
    pub const SIZE: usize = 32;

    /// The relay's hello.
    pub fn relay(link: LinkNumber, epoch: u64) -> Self {
        Self { kind: Kind::Relay, link, max_frame: 0, epoch, offloads: Offloads::NONE, carriers: Carriers::STREAM }
    }

    /// The hello of an end that takes length fields up to `max_frame` and frames with `offloads`.
    pub fn end(kind: Kind, link: LinkNumber, max_frame: u32, offloads: Offloads) -> Self {
        Self { kind, link, max_frame, epoch: 0, offloads, carriers: Carriers::STREAM }
    }

    /// With these carriers.
    #[must_use]
    pub fn carrying(self, carriers: impl Into<Carriers>) -> Self {
        Self { carriers: carriers.into(), ..self }
    }

    /// The carrier a relay's hello says is in use. A set that names several is read as the stream, which all can do.
    pub fn carrier(&self) -> Carrier {
        match self.carriers {
            Carriers::TAP_FD => Carrier::TapFd,
            Carriers::CABLE => Carrier::Cable,
            _ => Carrier::Stream,
        }
    }

    /// # Errors
    /// If this end cannot do `carrier`.
    pub fn can(&self, carrier: Carrier) -> Result<(), HelloError> {
        if self.carriers.contains(carrier) { Ok(()) } else { Err(HelloError::Carrier { kind: self.kind, carrier }) }
    }

    /// To the wire.
    pub fn encode(&self) -> [u8; Self::SIZE] {
        let mut out = [0; Self::SIZE];
        out[0..4].copy_from_slice(&MAGIC);
        out[4] = VERSION;
        out[5] = self.kind.code();
        out[6] = self.carriers.0;
        out[8..12].copy_from_slice(&self.link.get().to_le_bytes());
        out[12..16].copy_from_slice(&self.max_frame.to_le_bytes());
        out[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        out[24..28].copy_from_slice(&self.offloads.bits().to_le_bytes());
        out
    }

    /// From the wire. Offload bits this release does not know are dropped, which is what the intersection needs.
    pub fn decode(bytes: &[u8; Self::SIZE]) -> Result<Self, HelloError> {
        let [m0, m1, m2, m3, version, kind, carriers, _, rest @ ..] = *bytes;
        let word = |at: usize| u32::from_le_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        if [m0, m1, m2, m3] != MAGIC {
            return Err(HelloError::Magic([m0, m1, m2, m3]));
        }
        if version != VERSION {
            return Err(HelloError::Version(version));
        }
        let kind = match kind {
            1 => Kind::Relay,
            2 => Kind::Container,
            3 => Kind::Helper,
            other => return Err(HelloError::Kind(other)),
        };
        let link = LinkNumber::try_from(word(0)).map_err(HelloError::LinkNumber)?;
        let max_frame = word(4);
        if kind != Kind::Relay && max_frame < MIN_MAX_FRAME {
            return Err(HelloError::MaxFrame(max_frame));
        }
        let epoch = u64::from(word(12)) << 32 | u64::from(word(8));
        // Carriers this release does not know are none it could do.
        let carriers = Carriers(carriers & (Carriers::TAP_FD.0 | Carriers::CABLE.0));
        Ok(Self { kind, link, max_frame, epoch, offloads: Offloads::from_bits(word(16)), carriers })
    }

    /// Decodes and checks who speaks about what.
    pub fn expect(bytes: &[u8; Self::SIZE], kind: Kind, link: LinkNumber) -> Result<Self, HelloError> {
        let hello = Self::decode(bytes)?;
        if hello.kind != kind {
            return Err(HelloError::Unexpected { expected: kind, found: hello.kind });
        }
        if hello.link != link {
            return Err(HelloError::OtherLink { expected: link, found: hello.link });
        }
        Ok(hello)
    }
}

/// What two ends do on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// Bits both can do.
    pub offloads: Offloads,
    /// Greatest length field either side sends.
    pub max_frame: u32,
}

impl Agreement {
    /// Of the two ends' hellos. The same whichever is first.
    pub fn between(a: &Hello, b: &Hello) -> Self {
        Self { offloads: a.offloads.intersection(b.offloads), max_frame: a.max_frame.min(b.max_frame).min(MAX_FRAME) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn link(n: u32) -> LinkNumber {
        LinkNumber::try_from(n).expect("a link number")
    }

    fn any_hello() -> impl Strategy<Value = Hello> {
        let kind = prop_oneof![Just(Kind::Relay), Just(Kind::Container), Just(Kind::Helper)];
        (kind, 1u32..=9999, MIN_MAX_FRAME.., any::<u64>(), any::<u32>(), 0u8..4).prop_map(
            |(kind, n, max_frame, epoch, bits, carriers)| Hello {
                kind,
                link: link(n),
                max_frame,
                epoch,
                offloads: Offloads::from_bits(bits),
                carriers: Carriers(carriers),
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(hello in any_hello()) {
            prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
        }

        #[test]
        fn any_bytes_give_a_hello_or_an_error(bytes in any::<[u8; Hello::SIZE]>()) {
            if let Ok(hello) = Hello::decode(&bytes) {
                prop_assert_eq!(Hello::decode(&hello.encode()), Ok(hello));
            }
        }

        #[test]
        fn both_ends_agree(a in any_hello(), b in any_hello()) {
            let agreement = Agreement::between(&a, &b);
            prop_assert_eq!(agreement, Agreement::between(&b, &a));
            prop_assert!(a.offloads.contains(agreement.offloads) && b.offloads.contains(agreement.offloads));
            prop_assert!(agreement.max_frame <= MAX_FRAME);
        }

        #[test]
        fn offload_sets_are_ones_the_kernel_takes(bits in any::<u32>()) {
            let set = Offloads::from_bits(bits);
            prop_assert_eq!(set, Offloads::from_bits(set.bits()));
            prop_assert!(set == Offloads::NONE || set.contains(Offloads::CSUM));
            prop_assert_eq!(set.contains(Offloads::USO4), set.contains(Offloads::USO6));
        }
    }

    #[test]
    fn the_wire_layout_is_fixed() {
        let bytes = Hello::end(Kind::Helper, link(0x0102), 65_600, Offloads::TSO).encode();
        assert_eq!(&bytes[..12], b"ARCA\x01\x03\0\0\x02\x01\0\0");
        assert_eq!(&bytes[12..], [0x40, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x0f, 0, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn mismatches_say_what_is_wrong() {
        let hello = Hello::end(Kind::Container, link(7), 65_600, Offloads::ALL);
        let refuse = |at: usize, value: u8| {
            let mut bytes = hello.encode();
            bytes[at] = value;
            Hello::expect(&bytes, Kind::Container, link(7)).expect_err("a broken hello")
        };
        assert_eq!(refuse(0, b'x'), HelloError::Magic(*b"xRCA"));
        assert_eq!(refuse(4, 2), HelloError::Version(2));
        assert_eq!(refuse(5, 9), HelloError::Kind(9));
        assert_eq!(refuse(5, 3), HelloError::Unexpected { expected: Kind::Container, found: Kind::Helper });
        assert_eq!(refuse(8, 8), HelloError::OtherLink { expected: link(7), found: link(8) });
        assert_eq!(refuse(11, 1), HelloError::LinkNumber(InvalidLinkNumber(0x0100_0007)));
        assert_eq!(refuse(14, 0), HelloError::MaxFrame(64));
    }

    #[test]
    fn a_carrier_is_in_use_only_where_an_end_can_do_it() {
        let end = Hello::end(Kind::Helper, link(7), 65_600, Offloads::ALL).carrying(Carriers::TAP_FD);
        assert_eq!((end.can(Carrier::Stream), end.can(Carrier::TapFd)), (Ok(()), Ok(())));
        let refused = end.can(Carrier::Cable).expect_err("a veth was not offered");
        assert_eq!(refused.to_string(), "hello: helper end cannot do carrier cable");
        for carrier in [Carrier::Stream, Carrier::TapFd, Carrier::Cable] {
            let hello = Hello::relay(link(7), 1).carrying(carrier);
            assert_eq!(Hello::decode(&hello.encode()).expect("a hello").carrier(), carrier);
            let proto = crate::relay::v1::Carrier::from(carrier);
            assert_eq!(Carrier::try_from(i32::from(proto)), Ok(carrier));
        }
        assert_eq!(Carrier::try_from(9), Err(UnknownCarrier(9)));
    }

    #[test]
    fn offloads_print_their_names() {
        assert_eq!(Offloads::NONE.to_string(), "none");
        assert_eq!(Offloads::TSO.to_string(), "csum+tso4+tso6+ecn");
    }
}
