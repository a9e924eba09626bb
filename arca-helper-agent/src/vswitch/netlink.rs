// SPDX-License-Identifier: Apache-2.0
//! Just enough netlink for what no library here offers: nfnetlink batches and one question to generic netlink.
//! Layouts: Linux, include/uapi/linux/netlink.h and genetlink.h.

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
/// `NLM_F_CREATE`.
pub(super) const CREATE: u16 = 0x400;

const NLMSG_ERROR: u16 = 2;
const HEADER: usize = 16;

/// Messages in the making.
#[derive(Default)]
pub(super) struct Buffer(Vec<u8>);

impl Buffer {
    /// Appends a message; `body` fills it. Its sequence number is its position in bytes.
    pub(super) fn message(&mut self, kind: u16, flags: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        let sequence = u32::try_from(start).unwrap_or_default();
        self.bytes(&[0; 4]);
        self.bytes(&kind.to_ne_bytes());
        self.bytes(&flags.to_ne_bytes());
        self.bytes(&sequence.to_ne_bytes());
        self.bytes(&[0; 4]);
        body(self);
        let length = u32::try_from(self.0.len() - start).unwrap_or_default();
        self.0[start..start + 4].copy_from_slice(&length.to_ne_bytes());
    }

    /// Appends raw bytes.
    pub(super) fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
    }

    /// Appends an attribute with these bytes.
    pub(super) fn attribute(&mut self, kind: u16, bytes: &[u8]) {
        self.nested(kind, |buffer| buffer.bytes(bytes));
    }

    /// Appends a text attribute.
    pub(super) fn text(&mut self, kind: u16, text: &str) {
        self.nested(kind, |buffer| {
            buffer.bytes(text.as_bytes());
            buffer.bytes(&[0]);
        });
    }

    /// Appends an attribute that `body` fills.
    pub(super) fn nested(&mut self, kind: u16, body: impl FnOnce(&mut Self)) {
        let start = self.0.len();
        self.bytes(&[0; 2]);
        self.bytes(&kind.to_ne_bytes());
        body(self);
        let length = u16::try_from(self.0.len() - start).unwrap_or_default();
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        while !self.0.len().is_multiple_of(4) {
            self.0.push(0);
        }
    }

    /// Sends everything and waits for `answers` acknowledgements or answers. The first error wins.
    pub(super) fn exchange(&self, protocol: SockProtocol, mut answers: usize) -> io::Result<()> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)?;
        // The kernel answers within the call; the limit only guards against a kernel that does not.
        setsockopt(&fd, sockopt::ReceiveTimeout, &TimeVal::new(1, 0))?;
        sendto(fd.as_raw_fd(), &self.0, &NetlinkAddr::new(0, 0), MsgFlags::empty())?;
        while answers > 0 {
            answers = answers.saturating_sub(receive(&fd)?);
        }
        Ok(())
    }
}

/// Deletes the interface of this index; one that is gone is no error.
///
/// # Errors
/// The kernel refuses.
pub fn delete_link(index: u32) -> io::Result<()> {
    // include/uapi/linux/rtnetlink.h: RTM_DELLINK, struct ifinfomsg with the index at byte 4.
    const DELETE_LINK: u16 = 17;
    let mut buffer = Buffer::default();
    buffer.message(DELETE_LINK, REQUEST | ACK, |buffer| {
        buffer.bytes(&[0; 4]);
        buffer.bytes(&index.to_ne_bytes());
        buffer.bytes(&[0; 8]);
    });
    match buffer.exchange(SockProtocol::NetlinkRoute, 1) {
        Err(error) if error.raw_os_error() == Some(nix::libc::ENODEV) => Ok(()),
        done => done,
    }
}

/// One datagram: number of messages in it.
fn receive(fd: &OwnedFd) -> io::Result<usize> {
    let mut datagram = vec![0u8; 16 << 10];
    let read = recv(fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?;
    let mut rest = &datagram[..read];
    let mut count = 0;
    while let (Some(length), Some(kind)) = (int(rest, 0), rest.get(4..6)) {
        let length = usize::try_from(length).unwrap_or_default();
        if length < HEADER {
            break;
        }
        if u16::from_ne_bytes([kind[0], kind[1]]) == NLMSG_ERROR {
            let code = int(rest, HEADER).unwrap_or_default();
            if code != 0 {
                return Err(io::Error::from_raw_os_error(-code));
            }
        }
        count += 1;
        rest = rest.get((length + 3) & !3..).unwrap_or_default();
    }
    Ok(count)
}

fn int(bytes: &[u8], at: usize) -> Option<i32> {
    Some(i32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}
