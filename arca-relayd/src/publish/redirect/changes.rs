// SPDX-License-Identifier: Apache-2.0
//! Waits until somebody else changes the chains of nftables: a firewall that starts may drop what is redirected, one that
//! ends may give the way free. Layout: Linux, include/uapi/linux/netfilter/nf_tables.h.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::netlink::{attribute, messages};

/// `NFNLGRP_NFTABLES`, 7, as a bit.
const GROUP: u32 = 1 << 6;
const SUBSYSTEM: u16 = 10;
/// `NFT_MSG_NEWTABLE` to `NFT_MSG_DELCHAIN`: rules, sets and the rest do not matter.
const LAST_KIND: u16 = 5;
/// `NFTA_TABLE_NAME` and `NFTA_CHAIN_TABLE`.
const TABLE: u16 = 1;
const GENERAL: usize = 4;

/// News of other tables than `own`.
#[derive(Debug)]
pub(in crate::publish) struct Changes {
    socket: AsyncFd<OwnedFd>,
    own: String,
}

impl Changes {
    /// Changes from now on.
    ///
    /// # Errors
    /// No nf_tables in this kernel, or no privileges.
    #[allow(unsafe_code, reason = "AsyncFd's constructors are unsafe for any descriptor")]
    pub(super) fn open(own: &str) -> io::Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, GROUP))?;
        // SAFETY: the descriptor is owned by what it is moved into, and stays open as long as that lives.
        let socket = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { socket, own: own.to_owned() })
    }

    /// Waits for the next change and takes all that are there. Cancel-safe: what was taken is told by the next change.
    ///
    /// # Errors
    /// The socket broke.
    pub(in crate::publish) async fn next(&mut self) -> io::Result<()> {
        let mut datagram = vec![0; 64 << 10];
        loop {
            let mut ready = self.socket.readable().await?;
            let mut matters = false;
            loop {
                match ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut datagram, MsgFlags::empty())?)) {
                    Ok(Ok(read)) => matters |= concerns(&datagram[..read], &self.own),
                    // More came than the kernel keeps for us.
                    Ok(Err(error)) if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => matters = true,
                    Ok(Err(error)) => return Err(error),
                    Err(_drained) => break,
                }
            }
            if matters {
                return Ok(());
            }
        }
    }
}

/// Whether a table or chain came or went that is not of table `own`.
fn concerns(datagram: &[u8], own: &str) -> bool {
    messages(datagram).any(|(kind, payload)| {
        let of_chains = kind >> 8 == SUBSYSTEM && kind & 0xff <= LAST_KIND;
        let table = payload.get(GENERAL..).and_then(|attributes| attribute(attributes, TABLE)).unwrap_or_default();
        of_chains && table.strip_suffix(&[0]) != Some(own.as_bytes())
    })
}
