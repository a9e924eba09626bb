// SPDX-License-Identifier: Apache-2.0
//! Redirected connections that outlive their rule: the kernel translates a connection as it first did, whatever became
//! of the rules. Those of a rule that goes are forgotten, so that their next packet meets the host as it is then: it is
//! refused, or comes to whoever has the port. Layout: Linux, include/uapi/linux/netfilter/nfnetlink_conntrack.h.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use nix::libc;

use super::netlink::{ACK, DUMP, Requests, attribute, put};

const SUBSYSTEM: u16 = 1 << 8;
const GET: u16 = SUBSYSTEM | 1;
const DELETE: u16 = SUBSYSTEM | 2;
const ORIGINAL: u16 = 1;
const REPLY: u16 = 2;
const ID: u16 = 12;
const ZONE: u16 = 18;
const NESTED: u16 = 0x8000;
const TUPLE_IP: u16 = 1;
const TUPLE_PROTOCOL: u16 = 2;
const IP_V4_SOURCE: u16 = 1;
const IP_V4_TARGET: u16 = 2;
const IP_V6_SOURCE: u16 = 3;
const IP_V6_TARGET: u16 = 4;
const PROTOCOL_NUMBER: u16 = 1;
const PROTOCOL_SOURCE: u16 = 2;
const PROTOCOL_TARGET: u16 = 3;

/// A tracked connection of TCP or UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Flow {
    /// IP protocol number.
    pub(super) protocol: u8,
    /// Where the client sent to.
    pub(super) asked: SocketAddr,
    /// Who answers.
    pub(super) served: SocketAddr,
}

/// Forgets the connections of one family that `stale` picks; how many. Blocks.
///
/// # Errors
/// No connection tracking in this kernel, or no privileges.
pub(super) fn forget(v6: bool, stale: impl Fn(&Flow) -> bool) -> io::Result<usize> {
    let requests = Requests::open()?;
    let family = u8::try_from(if v6 { libc::AF_INET6 } else { libc::AF_INET }).map_err(io::Error::other)?;
    let mut found = Vec::new();
    requests.ask(GET, DUMP, family, &[], |attributes| {
        if flow(attributes).is_some_and(|flow| stale(&flow)) {
            found.push(handle(attributes));
        }
    })?;
    for handle in &found {
        match requests.ask(DELETE, ACK, family, handle, |_| {}) {
            // It ended by itself.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            done => done?,
        }
    }
    Ok(found.len())
}

fn flow(attributes: &[u8]) -> Option<Flow> {
    let (original, reply) = (attribute(attributes, ORIGINAL)?, attribute(attributes, REPLY)?);
    let number = attribute(attribute(original, TUPLE_PROTOCOL)?, PROTOCOL_NUMBER)?;
    Some(Flow {
        protocol: *number.first()?,
        asked: end(original, [IP_V4_TARGET, IP_V6_TARGET], PROTOCOL_TARGET)?,
        served: end(reply, [IP_V4_SOURCE, IP_V6_SOURCE], PROTOCOL_SOURCE)?,
    })
}

fn end(tuple: &[u8], [v4, v6]: [u16; 2], port: u16) -> Option<SocketAddr> {
    let ip = attribute(tuple, TUPLE_IP)?;
    let address: IpAddr = match attribute(ip, v4) {
        Some(v4) => Ipv4Addr::from(*v4.first_chunk()?).into(),
        None => Ipv6Addr::from(*attribute(ip, v6)?.first_chunk::<16>()?).into(),
    };
    let port = attribute(attribute(tuple, TUPLE_PROTOCOL)?, port)?;
    Some(SocketAddr::new(address, u16::from_be_bytes(*port.first_chunk()?)))
}

/// What names a connection to the kernel: its first tuple, and its number, so that one which took its place stays.
fn handle(attributes: &[u8]) -> Vec<u8> {
    let mut handle = Vec::new();
    for (kind, flags) in [(ORIGINAL, NESTED), (ID, 0), (ZONE, 0)] {
        if let Some(value) = attribute(attributes, kind) {
            put(&mut handle, kind | flags, value);
        }
    }
    handle
}
