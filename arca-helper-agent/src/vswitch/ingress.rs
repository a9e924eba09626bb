// SPDX-License-Identifier: Apache-2.0
//! Keeps the helper's own kernel out of what belongs to OVS.
//!
//! On the netdev datapath OVS only taps frames (AF_PACKET); the kernel's own stack sees them too and would answer a
//! container that addresses the helper itself, past all of OVN. So each such interface gets IPv6 and ARP off and a
//! netdev-ingress chain that drops everything, before it joins a bridge. Packet sockets see frames before that hook.

use std::io;

use nix::sys::socket::SockProtocol;

use super::netlink::{ACK, Buffer, CREATE, REQUEST};

const TABLE: &str = "arca-ingress";
// include/uapi/linux/netfilter/nfnetlink.h, nf_tables.h, netfilter.h, netfilter_netdev.h
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
const NEW_TABLE: u16 = SUBSYSTEM << 8;
const NEW_CHAIN: u16 = SUBSYSTEM << 8 | 3;
const DEL_CHAIN: u16 = SUBSYSTEM << 8 | 5;
const FAMILY_NETDEV: u8 = 5;
const TABLE_NAME: u16 = 1;
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
const CHAIN_HOOK: u16 = 4;
const CHAIN_POLICY: u16 = 5;
const CHAIN_TYPE: u16 = 7;
const HOOK_NUM: u16 = 1;
const HOOK_PRIORITY: u16 = 2;
const HOOK_DEVICE: u16 = 3;
const NESTED: u16 = 0x8000;
const NETDEV_INGRESS: u32 = 0;
const NF_DROP: u32 = 0;

/// Drops everything that `interface` brings to the kernel's stack. Doing it again changes nothing.
///
/// # Errors
/// No nf_tables, no privileges, no such interface.
pub fn drop_all(interface: &str) -> io::Result<()> {
    let mut buffer = Buffer::default();
    batch(&mut buffer, |buffer| {
        message(buffer, NEW_TABLE, |buffer| buffer.text(TABLE_NAME, TABLE));
        message(buffer, NEW_CHAIN, |buffer| {
            buffer.text(CHAIN_TABLE, TABLE);
            buffer.text(CHAIN_NAME, interface);
            buffer.nested(CHAIN_HOOK | NESTED, |buffer| {
                buffer.attribute(HOOK_NUM, &NETDEV_INGRESS.to_be_bytes());
                buffer.attribute(HOOK_PRIORITY, &0i32.to_be_bytes());
                buffer.text(HOOK_DEVICE, interface);
            });
            buffer.attribute(CHAIN_POLICY, &NF_DROP.to_be_bytes());
            buffer.text(CHAIN_TYPE, "filter");
        });
    });
    buffer.exchange(SockProtocol::NetlinkNetFilter, 2)
}

/// Takes the chain of `interface` away, whether or not the interface still exists. No chain is no error.
///
/// # Errors
/// As [`drop_all`].
pub fn undo(interface: &str) -> io::Result<()> {
    let mut buffer = Buffer::default();
    batch(&mut buffer, |buffer| {
        message(buffer, DEL_CHAIN, |buffer| {
            buffer.text(CHAIN_TABLE, TABLE);
            buffer.text(CHAIN_NAME, interface);
        });
    });
    match buffer.exchange(SockProtocol::NetlinkNetFilter, 1) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}

/// IPv6 off and the ingress drop; ARP goes off with the interface's flags. Call while the interface is down.
///
/// # Errors
/// As [`drop_all`], or /proc/sys cannot be written.
pub fn seal(interface: &str) -> io::Result<()> {
    let ipv6 = format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6");
    match std::fs::write(ipv6, "1") {
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => {}
        done => done?,
    }
    drop_all(interface)
}

fn batch(buffer: &mut Buffer, body: impl FnOnce(&mut Buffer)) {
    let mark = |buffer: &mut Buffer, kind| {
        buffer.message(kind, REQUEST, |buffer| {
            buffer.bytes(&[0, 0]);
            buffer.bytes(&SUBSYSTEM.to_be_bytes());
        });
    };
    mark(buffer, BATCH_BEGIN);
    body(buffer);
    mark(buffer, BATCH_END);
}

fn message(buffer: &mut Buffer, kind: u16, body: impl FnOnce(&mut Buffer)) {
    buffer.message(kind, REQUEST | ACK | CREATE, |buffer| {
        buffer.bytes(&[FAMILY_NETDEV, 0, 0, 0]);
        body(buffer);
    });
}
