// SPDX-License-Identifier: Apache-2.0
//! The little netlink that [`super::conntrack`] and [`super::changes`] need: one request at a time over nfnetlink, and
//! attributes. Layouts: Linux, include/uapi/linux/netlink.h and netfilter/nfnetlink.h. What is malformed ends the walk.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, recv, sendto, setsockopt, socket, sockopt,
};
use nix::sys::time::TimeVal;

/// `NLM_F_REQUEST`.
pub(super) const REQUEST: u16 = 0x1;
/// `NLM_F_ACK`.
pub(super) const ACK: u16 = 0x4;
/// `NLM_F_DUMP`.
pub(super) const DUMP: u16 = 0x300;
const ERROR: u16 = 2;
const DONE: u16 = 3;
const HEADER: usize = 16;
/// `struct nfgenmsg`.
const GENERAL: usize = 4;
/// More than the kernel puts into one datagram.
const DATAGRAM: usize = 64 << 10;

/// A socket for requests.
#[derive(Debug)]
pub(super) struct Requests(OwnedFd);

impl Requests {
    /// Needs `CAP_NET_ADMIN` for what is asked later.
    pub(super) fn open() -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        // The kernel answers within the call; the limit only guards against one that does not.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(5, 0))?;
        Ok(Self(fd))
    }

    /// Sends one message and hands each answer's attributes to `each`, up to the acknowledgement or the end of a dump.
    pub(super) fn ask(
        &self,
        kind: u16,
        flags: u16,
        family: u8,
        attributes: &[u8],
        mut each: impl FnMut(&[u8]),
    ) -> io::Result<()> {
        let length = u32::try_from(HEADER + GENERAL + attributes.len()).map_err(io::Error::other)?;
        let mut message = Vec::with_capacity(HEADER + GENERAL + attributes.len());
        message.extend(length.to_ne_bytes());
        message.extend(kind.to_ne_bytes());
        message.extend((REQUEST | flags).to_ne_bytes());
        message.extend([0; 8]);
        message.extend([family, 0, 0, 0]);
        message.extend(attributes);
        sendto(self.0.as_raw_fd(), &message, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        let mut datagram = vec![0; DATAGRAM];
        loop {
            let read = recv(self.0.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
            for (kind, payload) in messages(&datagram[..read]) {
                match kind {
                    DONE => return Ok(()),
                    ERROR => {
                        let code = payload.first_chunk().map_or(0, |code| i32::from_ne_bytes(*code));
                        return if code == 0 { Ok(()) } else { Err(io::Error::from_raw_os_error(-code)) };
                    }
                    _ => each(payload.get(GENERAL..).unwrap_or_default()),
                }
            }
        }
    }
}

/// Messages of a datagram: kind, and what follows the header.
pub(super) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::try_from(u32::from_ne_bytes(*datagram.first_chunk()?)).ok()?;
        let kind = u16::from_ne_bytes([*datagram.get(4)?, *datagram.get(5)?]);
        let payload = datagram.get(HEADER..length)?;
        datagram = datagram.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, payload))
    })
}

/// Attributes: kind without its flags, value.
pub(super) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let length = usize::from(u16::from_ne_bytes(*bytes.first_chunk()?));
        let kind = u16::from_ne_bytes([*bytes.get(2)?, *bytes.get(3)?]) & 0x3fff;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// The value of one attribute.
pub(super) fn attribute(bytes: &[u8], wanted: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(kind, value)| (kind == wanted).then_some(value))
}

/// Appends an attribute.
pub(super) fn put(buffer: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let length = u16::try_from(4 + value.len()).unwrap_or(u16::MAX);
    buffer.extend(length.to_ne_bytes());
    buffer.extend(kind.to_ne_bytes());
    buffer.extend(value);
    buffer.resize(buffer.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_put() {
        let mut buffer = Vec::new();
        put(&mut buffer, 1, b"abc");
        put(&mut buffer, 0x8002, &[]);
        put(&mut buffer, 3, b"defg");
        let all: Vec<_> = attributes(&buffer).collect();
        assert_eq!(all, [(1, b"abc".as_slice()), (2, b""), (3, b"defg")]);
        assert_eq!(attribute(&buffer, 3), Some(b"defg".as_slice()));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_or_go_on_for_ever(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
            // Every step takes four bytes at least.
            assert!(messages(&bytes).count() <= 50 && attributes(&bytes).count() <= 50);
        }
    }
}
