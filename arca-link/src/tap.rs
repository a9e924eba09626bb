// SPDX-License-Identifier: Apache-2.0
//! TAP devices with a virtio_net_hdr before each frame, in the network namespace of the calling thread.
//!
//! Source of the constants and rules: Linux, include/uapi/linux/if_tun.h and drivers/net/tun.c.

use std::{
    ffi::CStr,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use arca_proto::{frame::VNET_HDR, hello::Offloads};
use nix::{
    fcntl::{OFlag, open},
    libc,
    sys::{
        socket::{AddressFamily, SockFlag, SockType, socket},
        stat::Mode,
    },
};

#[allow(missing_docs, unreachable_pub, reason = "generated functions")]
mod ioctl {
    use nix::{libc, libc::ifreq};

    nix::ioctl_write_ptr_bad!(tun_set_iff, nix::request_code_write!(b'T', 202, size_of::<libc::c_int>()), ifreq);
    nix::ioctl_write_int_bad!(tun_set_persist, nix::request_code_write!(b'T', 203, size_of::<libc::c_int>()));
    nix::ioctl_write_int_bad!(tun_set_offload, nix::request_code_write!(b'T', 208, size_of::<libc::c_uint>()));
    nix::ioctl_read_bad!(tun_get_iff, nix::request_code_read!(b'T', 210, size_of::<libc::c_uint>()), ifreq);
    nix::ioctl_write_ptr_bad!(
        tun_set_vnet_hdr_size,
        nix::request_code_write!(b'T', 216, size_of::<libc::c_int>()),
        libc::c_int
    );
    nix::ioctl_none_bad!(tun_get_namespace, nix::request_code_none!(b'T', 227));
    nix::ioctl_readwrite_bad!(get_flags, libc::SIOCGIFFLAGS, ifreq);
    nix::ioctl_write_ptr_bad!(set_flags, libc::SIOCSIFFLAGS, ifreq);
    nix::ioctl_write_ptr_bad!(set_mtu, libc::SIOCSIFMTU, ifreq);
    nix::ioctl_write_ptr_bad!(set_mac, libc::SIOCSIFHWADDR, ifreq);
    nix::ioctl_write_ptr_bad!(set_tx_queue, libc::SIOCSIFTXQLEN, ifreq);
}
use ioctl::*;

/// Frames the kernel keeps for a reader that is behind; beyond that it drops and counts them.
const TX_QUEUE: libc::c_int = 1000;
const HEADER_SIZE: libc::c_int = 12;
const _: () = assert!(HEADER_SIZE as usize == VNET_HDR);

/// What could not be done to which device.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// /dev/net/tun.
    #[error("open /dev/net/tun (is the tun module there, and the device in this mount namespace?)")]
    Open(#[source] io::Error),
    /// Interface names have 1 to 15 bytes, without `/`, `%` and spaces.
    #[error("interface name {0:?} is not valid (1 to 15 bytes)")]
    Name(String),
    /// The descriptor is not a TAP of the kind that [`Tap::open`] makes.
    #[error("adopted descriptor of {0:?} is not a TAP with a virtio_net_hdr")]
    NotATap(String),
    /// An ioctl.
    #[error("{what} of TAP {name}{}", hint(.source))]
    Ioctl {
        /// What was to be set.
        what: &'static str,
        /// Interface name.
        name: String,
        /// Cause.
        source: io::Error,
    },
}

fn hint(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EPERM) => " (needs CAP_NET_ADMIN in this network namespace)",
        Some(libc::EBUSY) => " (the name is in use)",
        _ => "",
    }
}

/// A TAP to be made.
#[derive(Clone, Debug)]
pub struct TapConfig<'a> {
    /// Interface name.
    pub name: &'a str,
    /// Hardware address; `None` lets the kernel choose.
    pub mac: Option<[u8; 6]>,
    /// Bytes of IP packet.
    pub mtu: u32,
}

/// An open TAP. Dropping the last descriptor removes the interface, unless it is persistent.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    name: String,
}

impl Tap {
    /// Makes a TAP in the current network namespace: `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`, 12-byte header, no offloads
    /// yet, MAC and MTU set, still down. An existing interface of that name is an error.
    ///
    /// # Errors
    /// [`TapError`]; nothing is left behind.
    pub fn open(config: &TapConfig<'_>) -> Result<Self, TapError> {
        let mut request = named(config.name)?;
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open("/dev/net/tun", flags, Mode::empty()).map_err(|e| TapError::Open(e.into()))?;
        request.ifr_ifru.ifru_flags =
            interface_flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL);
        let tap = Self { fd, name: config.name.to_owned() };
        // SAFETY: `request` is an ifreq and lives across the call.
        tap.done("create", unsafe { tun_set_iff(tap.fd.as_raw_fd(), &raw const request) })?;
        tap.set_header()?;
        tap.apply_offloads(Offloads::NONE).map_err(|e| tap.failed("set offloads", e))?;
        if let Some(mac) = config.mac {
            tap.set_mac(mac)?;
        }
        tap.set_mtu(config.mtu)?;
        tap.set_queue()?;
        Ok(tap)
    }

    /// Opens the persistent TAP `name` that [`Tap::open`] made in an earlier process. Its address, MTU and flags stay.
    ///
    /// # Errors
    /// [`TapError`] if there is no such interface, it is no TAP of this kind, or another process has it open.
    pub fn attach(name: &str) -> Result<Self, TapError> {
        let mut request = named(name)?;
        // TUNSETIFF would make a new one.
        if let Err(error) = nix::net::if_::if_nametoindex(name) {
            return Err(TapError::Ioctl { what: "attach", name: name.to_owned(), source: error.into() });
        }
        let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK;
        let fd = open("/dev/net/tun", flags, Mode::empty()).map_err(|e| TapError::Open(e.into()))?;
        request.ifr_ifru.ifru_flags = interface_flags(libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR);
        // SAFETY: `request` is an ifreq and lives across the call.
        let attached = unsafe { ioctl::tun_set_iff(fd.as_raw_fd(), &raw const request) };
        attached.map_err(|e| TapError::Ioctl { what: "attach", name: name.to_owned(), source: e.into() })?;
        Self::from_fd(fd)
    }

    /// Takes over a descriptor that [`Tap::open`] made, perhaps in an earlier process.
    ///
    /// # Errors
    /// [`TapError::NotATap`] for any other descriptor.
    pub fn from_fd(fd: OwnedFd) -> Result<Self, TapError> {
        // SAFETY: all-zero is a valid ifreq.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        // SAFETY: `request` is an ifreq, lives across the call, and the kernel writes no more than that.
        let got = unsafe { tun_get_iff(fd.as_raw_fd(), &raw mut request) };
        got.map_err(|e| TapError::NotATap(e.to_string()))?;
        let name: Vec<u8> = request.ifr_name.iter().map(|c| c.to_ne_bytes()[0]).collect();
        let name = CStr::from_bytes_until_nul(&name).unwrap_or_default().to_string_lossy().into_owned();
        // SAFETY: TUNGETIFF has filled in the flags.
        let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(TapError::NotATap(name));
        }
        let tap = Self { fd, name };
        crate::sys::set_nonblocking(tap.fd.as_fd()).map_err(|e| tap.failed("make non-blocking", e))?;
        tap.set_header()?;
        Ok(tap)
    }

    /// Interface name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A second descriptor of the same TAP, to be kept by another process.
    ///
    /// # Errors
    /// Out of descriptors.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        self.fd.try_clone()
    }

    /// Says what the reader of this TAP can take: as much of `wanted` as this kernel knows (USO needs Linux 6.2).
    /// Returns what is in force.
    ///
    /// # Errors
    /// The device is gone.
    pub fn set_offloads(&self, wanted: Offloads) -> Result<Offloads, TapError> {
        let without_uso = Offloads::from_bits(wanted.bits() & Offloads::TSO.bits());
        for offloads in [wanted, without_uso, Offloads::from_bits(wanted.bits() & Offloads::CSUM.bits())] {
            match self.apply_offloads(offloads) {
                Ok(()) => return Ok(offloads),
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {}
                Err(error) => return Err(self.failed("set offloads", error)),
            }
        }
        self.apply_offloads(Offloads::NONE).map_err(|e| self.failed("set offloads", e))?;
        Ok(Offloads::NONE)
    }

    /// Frames that the kernel dropped because the reader was behind. 0 if the calling thread is in another network
    /// namespace than the TAP.
    pub fn kernel_drops(&self) -> u64 {
        if !self.is_here().unwrap_or(false) {
            return 0;
        }
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
        let line = table.lines().find_map(|line| line.trim_start().strip_prefix(&self.name)?.strip_prefix(':'));
        // Eight receive columns, then bytes, packets, errors, drops of the other direction (proc_pid_net(5)).
        line.and_then(|line| line.split_ascii_whitespace().nth(11)?.parse().ok()).unwrap_or(0)
    }

    /// Whether the calling thread is in the TAP's network namespace: another one may have the same interface name.
    fn is_here(&self) -> io::Result<bool> {
        use std::os::unix::fs::MetadataExt;
        // SAFETY: TUNGETDEVNETNS takes no argument and gives a new descriptor.
        let raw = unsafe { ioctl::tun_get_namespace(self.fd.as_raw_fd()) }?;
        // SAFETY: the kernel has just given this descriptor to us alone.
        let theirs = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(raw) });
        Ok(theirs.metadata()?.ino() == std::fs::metadata("/proc/thread-self/ns/net")?.ino())
    }

    fn apply_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let bits = libc::c_int::try_from(offloads.bits()).map_err(io::Error::other)?;
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        unsafe { tun_set_offload(self.fd.as_raw_fd(), bits) }?;
        Ok(())
    }

    fn set_header(&self) -> Result<(), TapError> {
        let size = HEADER_SIZE;
        // SAFETY: TUNSETVNETHDRSZ reads one int.
        self.done("set header size", unsafe { tun_set_vnet_hdr_size(self.fd.as_raw_fd(), &raw const size) })
    }

    /// Keeps the interface when the last descriptor is closed, or no longer.
    ///
    /// # Errors
    /// [`TapError::Ioctl`].
    pub fn set_persist(&self, persist: bool) -> Result<(), TapError> {
        // SAFETY: TUNSETPERSIST takes its argument by value.
        self.done("set persistence", unsafe { tun_set_persist(self.fd.as_raw_fd(), libc::c_int::from(persist)) })
    }

    /// Sets the hardware address.
    ///
    /// # Errors
    /// [`TapError::Ioctl`].
    pub fn set_mac(&self, mac: [u8; 6]) -> Result<(), TapError> {
        let mut request = named(&self.name)?;
        // SAFETY: an ifreq is plain bytes; the hardware address is the union member in use.
        let address = unsafe { &mut request.ifr_ifru.ifru_hwaddr };
        address.sa_family = libc::ARPHRD_ETHER;
        for (to, from) in address.sa_data.iter_mut().zip(mac) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        // SAFETY: `request` is an ifreq and lives across the call.
        self.with_socket("set hardware address", |fd| unsafe { set_mac(fd, &raw const request) })
    }

    /// Sets the MTU, bytes of IP packet.
    ///
    /// # Errors
    /// [`TapError::Ioctl`].
    pub fn set_mtu(&self, mtu: u32) -> Result<(), TapError> {
        let mut request = named(&self.name)?;
        request.ifr_ifru.ifru_mtu = libc::c_int::try_from(mtu).unwrap_or(libc::c_int::MAX);
        // SAFETY: `request` is an ifreq and lives across the call.
        self.with_socket("set MTU", |fd| unsafe { set_mtu(fd, &raw const request) })
    }

    fn set_queue(&self) -> Result<(), TapError> {
        let mut request = named(&self.name)?;
        // The transmit queue length shares the union with the MTU: an int.
        request.ifr_ifru.ifru_mtu = TX_QUEUE;
        // SAFETY: `request` is an ifreq and lives across the call.
        self.with_socket("set queue length", |fd| unsafe { set_tx_queue(fd, &raw const request) })
    }

    /// Sets the interface up or down.
    ///
    /// # Errors
    /// [`TapError::Ioctl`].
    pub fn set_up(&self, up: bool) -> Result<(), TapError> {
        self.set_flag("set up", libc::IFF_UP, up)
    }

    /// Whether the kernel behind the interface asks for and answers with addresses (ARP). Off where a switch owns it.
    ///
    /// # Errors
    /// [`TapError::Ioctl`].
    pub fn set_arp(&self, arp: bool) -> Result<(), TapError> {
        self.set_flag("set ARP", libc::IFF_NOARP, !arp)
    }

    fn set_flag(&self, what: &'static str, flag: libc::c_int, on: bool) -> Result<(), TapError> {
        let mut request = named(&self.name)?;
        self.with_socket(what, |fd| {
            // SAFETY: `request` is an ifreq and lives across the call.
            unsafe { get_flags(fd, &raw mut request) }?;
            // SAFETY: SIOCGIFFLAGS has filled in the flags.
            let flags = unsafe { request.ifr_ifru.ifru_flags };
            let bit = interface_flags(flag);
            request.ifr_ifru.ifru_flags = if on { flags | bit } else { flags & !bit };
            // SAFETY: as above.
            unsafe { set_flags(fd, &raw const request) }
        })
    }

    fn with_socket<T>(
        &self,
        what: &'static str,
        act: impl FnOnce(libc::c_int) -> nix::Result<T>,
    ) -> Result<(), TapError> {
        let socket = socket(AddressFamily::Inet, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None);
        let done = socket.and_then(|socket| act(socket.as_raw_fd()));
        done.map(|_| ()).map_err(|e| self.failed(what, e.into()))
    }

    fn done(&self, what: &'static str, result: nix::Result<libc::c_int>) -> Result<(), TapError> {
        result.map(|_| ()).map_err(|e| self.failed(what, e.into()))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> TapError {
        TapError::Ioctl { what, name: self.name.clone(), source }
    }
}

impl AsFd for Tap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// `ifr_flags` is 16 bits wide; IFF_TUN_EXCL is its top bit.
#[allow(clippy::cast_possible_truncation, reason = "every IFF_* of an ifreq has 16 bits")]
fn interface_flags(flags: libc::c_int) -> libc::c_short {
    flags as libc::c_short
}

/// An ifreq with its name filled in.
fn named(name: &str) -> Result<libc::ifreq, TapError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|b| b.is_ascii_graphic() && !matches!(b, b'/' | b':' | b'%'));
    if !valid {
        return Err(TapError::Name(name.to_owned()));
    }
    // SAFETY: all-zero is a valid ifreq.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_the_kernel_would_refuse_or_expand_are_refused() {
        for bad in ["", "sixteen-bytes-xx", "a/b", "tap%d", "a b", "..", "eth0:1"] {
            assert!(matches!(named(bad), Err(TapError::Name(_))), "{bad:?}");
        }
        assert!(named("fifteen-bytes-x").is_ok());
    }

    #[test]
    fn any_other_descriptor_is_not_adopted() {
        let file = std::fs::File::open("/dev/null").expect("/dev/null");
        assert!(matches!(Tap::from_fd(file.into()), Err(TapError::NotATap(_))));
    }
}
