// SPDX-License-Identifier: Apache-2.0
//! Making, taking up again and deleting persistent TAPs by name, and what else is done to interfaces of links.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;

use arca_link::{Tap, TapConfig, TapError};
use nix::fcntl::{OFlag, open as open_file};
use nix::libc;
use nix::net::if_::{if_nameindex, if_nametoindex};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::sys::stat::Mode;

use super::spec;
use crate::vswitch::delete_link;

nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), libc::ifreq);
nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, libc::ifreq);
nix::ioctl_write_ptr_bad!(ioctl_set_mtu, libc::SIOCSIFMTU, libc::ifreq);

/// The TAP `name`: the one that is there, else a new one. Persistent, so that the bridge keeps it when the agent ends.
pub(super) fn open(name: &str, mtu: u32) -> Result<Tap, TapError> {
    if if_nametoindex(name).is_ok() && !is_tap(name) {
        // A cable of before.
        delete(name);
    }
    let tap = if if_nametoindex(name).is_ok() {
        let tap = take_up(name).map_err(|source| failed("take up", name, source))?;
        tap.set_mtu(mtu)?;
        tap
    } else {
        Tap::open(&TapConfig { name, mac: None, mtu })?
    };
    tap.set_persist(true)?;
    Ok(tap)
}

fn take_up(name: &str) -> io::Result<Tap> {
    let fd = open_file("/dev/net/tun", OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK, Mode::empty())?;
    let mut request = named(name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
    // SAFETY: `request` is an ifreq and lives across the call.
    unsafe { tun_set_iff(fd.as_raw_fd(), &raw const request) }?;
    Tap::from_fd(fd).map_err(io::Error::other)
}

/// ARP off, up: the device never answers for itself.
pub(super) fn no_arp_up(name: &str) -> Result<(), TapError> {
    let set = || -> io::Result<()> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut request = named(name);
        // SAFETY: `request` is an ifreq and lives across the call.
        unsafe { get_flags(socket.as_raw_fd(), &raw mut request) }?;
        // SAFETY: SIOCGIFFLAGS has filled in the flags.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags }) | libc::IFF_NOARP | libc::IFF_UP;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).map_err(io::Error::other)?;
        // SAFETY: `request` is an ifreq and lives across the call.
        unsafe { set_flags(socket.as_raw_fd(), &raw const request) }?;
        Ok(())
    };
    set().map_err(|source| failed("ARP off and up", name, source))
}

/// Whether there is a TAP of this name, and not another kind of interface (`tun_flags` is there for TUN and TAP only).
pub(super) fn is_tap(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).join("tun_flags").exists()
}

/// Deletes an interface that nobody has open any more. What is not there is no error.
pub(super) fn delete(name: &str) {
    let Ok(index) = if_nametoindex(name) else { return };
    if let Err(error) = delete_link(index) {
        tracing::warn!(error = &error as &dyn std::error::Error, interface = name, "an interface stays behind");
    }
}

/// Sets the MTU of an interface of any kind.
pub(super) fn set_mtu(name: &str, mtu: u32) -> Result<(), TapError> {
    let set = || -> io::Result<()> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
        let mut request = named(name);
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).map_err(io::Error::other)?;
        // SAFETY: `request` is an ifreq and lives across the call.
        unsafe { ioctl_set_mtu(socket.as_raw_fd(), &raw const request) }?;
        Ok(())
    };
    set().map_err(|source| failed("set MTU", name, source))
}

/// TAPs of links that exist in this network namespace.
pub(super) fn link_interfaces() -> Vec<String> {
    let Ok(all) = if_nameindex() else { return Vec::new() };
    let names = all.iter().filter_map(|interface| interface.name().to_str().ok());
    names.filter(|name| spec::is_link_name(name)).map(Into::into).collect()
}

fn failed(what: &'static str, name: &str, source: io::Error) -> TapError {
    TapError::Ioctl { what, name: name.to_owned(), source }
}

fn named(name: &str) -> libc::ifreq {
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // The last byte stays zero; names come from `spec::interface` and are shorter.
    for (to, from) in request.ifr_name.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    request
}
