// SPDX-License-Identifier: Apache-2.0
//! A TAP interface for QEMU, opened by its keeper, which may.

use std::{
    fs::OpenOptions,
    io,
    os::fd::{AsRawFd, OwnedFd},
    os::unix::fs::OpenOptionsExt,
};

use nix::libc;

// linux/if_tun.h
const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const TUNSETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
/// virtio 1.2, section 5.1.6: with the number of buffers.
const HEADER: libc::c_int = 12;

/// The kernel's own back end of network cards, where it has one that may be used.
pub(super) fn vhost() -> Option<OwnedFd> {
    OpenOptions::new().read(true).write(true).open("/dev/vhost-net").ok().map(OwnedFd::from)
}

/// Opens the interface, made if there is none of this name.
pub(super) fn open(interface: &str) -> io::Result<OwnedFd> {
    let device = OpenOptions::new().read(true).write(true).custom_flags(libc::O_NONBLOCK).open("/dev/net/tun")?;
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if interface.is_empty() || interface.len() >= request.ifr_name.len() || interface.contains('\0') {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "no name of an interface"));
    }
    for (place, byte) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *place = byte.cast_signed();
    }
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    request.ifr_ifru.ifru_flags = i16::try_from(flags).map_err(io::Error::other)?;
    let mut header = HEADER;
    // SAFETY: both pointers are to values of the types that the calls want and live across them.
    unsafe {
        if libc::ioctl(device.as_raw_fd(), TUNSETIFF, &raw mut request) == -1
            || libc::ioctl(device.as_raw_fd(), TUNSETVNETHDRSZ, &raw mut header) == -1
        {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(device.into())
}
