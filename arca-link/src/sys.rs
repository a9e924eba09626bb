// SPDX-License-Identifier: Apache-2.0
//! The few calls that nix does not wrap as the pumps need them: non-blocking reads and writes whose "not now" is a
//! value, socket buffers, accept with the peer's vsock context id, and a wake-up descriptor.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd},
};

use nix::libc;

/// Socket buffers of a link: room for about ten milliseconds at line rate.
const SOCKET_BUFFER: libc::c_int = 4 << 20;
/// Window of a vsock connection in a guest; the default of 256 KiB stalls and, since Linux 6.12.92, resets the
/// connection under many small packets.
const VSOCK_WINDOW: u64 = 8 << 20;
/// Behind vhost-device-vsock a guest's write well above 32 KiB is lost and the stream stalls.
const VSOCK_WRITE: usize = 16 << 10;

/// Reads once. `None`: nothing there now. `Some(0)`: end of stream.
pub(crate) fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<usize>> {
    match nix::unistd::read(fd, buffer) {
        Ok(n) => Ok(Some(n)),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes once. `None`: no room now.
pub(crate) fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    match nix::unistd::write(fd, bytes) {
        Ok(n) => Ok(Some(n)),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Writes once to a socket; a peer that is gone is an error, not a signal.
pub(crate) fn send(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<Option<usize>> {
    match nix::sys::socket::send(fd.as_raw_fd(), bytes, nix::sys::socket::MsgFlags::MSG_NOSIGNAL) {
        Ok(n) => Ok(Some(n)),
        Err(nix::Error::EAGAIN | nix::Error::EINTR) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

#[allow(clippy::cast_possible_truncation, reason = "socket options and addresses are a few bytes")]
const fn size<T>() -> libc::socklen_t {
    size_of::<T>() as libc::socklen_t
}

fn family(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    get_option(fd, libc::SOL_SOCKET, libc::SO_DOMAIN)
}

fn get_option(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int) -> io::Result<libc::c_int> {
    let mut value: libc::c_int = 0;
    let mut length = size::<libc::c_int>();
    // SAFETY: `value` and `length` live across the call and `length` says how large `value` is.
    let rc = unsafe { libc::getsockopt(fd.as_raw_fd(), level, name, (&raw mut value).cast(), &raw mut length) };
    nix::Error::result(rc)?;
    Ok(value)
}

fn set_option<T>(fd: BorrowedFd<'_>, level: libc::c_int, name: libc::c_int, value: &T) -> io::Result<()> {
    // SAFETY: the pointer and the size describe `value`, which lives across the call and is only read.
    let rc = unsafe {
        let length = size::<T>();
        libc::setsockopt(fd.as_raw_fd(), level, name, std::ptr::from_ref(value).cast(), length)
    };
    nix::Error::result(rc)?;
    Ok(())
}

/// Whether the socket is AF_VSOCK, where one write is capped.
pub(crate) fn write_cap(fd: BorrowedFd<'_>) -> io::Result<usize> {
    Ok(if family(fd)? == libc::AF_VSOCK { VSOCK_WRITE } else { usize::MAX })
}

/// Whether the socket is AF_UNIX, which passes descriptors.
pub(crate) fn is_unix(fd: BorrowedFd<'_>) -> io::Result<bool> {
    Ok(family(fd)? == libc::AF_UNIX)
}

/// Raises the buffers of a stream or of a listener, whose connections inherit a vsock window. As far as allowed: a
/// smaller buffer is slower, not wrong.
pub(crate) fn raise_buffers(fd: BorrowedFd<'_>) {
    // vm_sockets.h: the maximum must be raised before the size.
    const SO_VM_SOCKETS_BUFFER_SIZE: libc::c_int = 0;
    const SO_VM_SOCKETS_BUFFER_MAX_SIZE: libc::c_int = 2;
    if family(fd).is_ok_and(|family| family == libc::AF_VSOCK) {
        for option in [SO_VM_SOCKETS_BUFFER_MAX_SIZE, SO_VM_SOCKETS_BUFFER_SIZE] {
            if let Err(error) = set_option(fd, libc::AF_VSOCK, option, &VSOCK_WINDOW) {
                tracing::debug!(%error, "vsock window not raised");
            }
        }
        return;
    }
    for (forced, plain) in [(libc::SO_SNDBUFFORCE, libc::SO_SNDBUF), (libc::SO_RCVBUFFORCE, libc::SO_RCVBUF)] {
        let raised = set_option(fd, libc::SOL_SOCKET, forced, &SOCKET_BUFFER)
            .or_else(|_| set_option(fd, libc::SOL_SOCKET, plain, &SOCKET_BUFFER));
        if let Err(error) = raised {
            tracing::debug!(%error, "socket buffer not raised");
        }
    }
}

pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    use nix::fcntl::{FcntlArg, OFlag, fcntl};
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Accepts one connection, non-blocking. `None`: nobody is waiting. A vsock peer other than the host is closed.
pub(crate) fn accept(listener: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    // SAFETY: all-zero is a valid sockaddr_vm.
    let mut peer: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
    loop {
        let mut length = size::<libc::sockaddr_vm>();
        // SAFETY: `peer` and `length` live across the call; a longer address (AF_UNIX) is cut to `length` bytes.
        let rc = unsafe {
            let flags = libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
            libc::accept4(listener.as_raw_fd(), (&raw mut peer).cast(), &raw mut length, flags)
        };
        let raw = match nix::Error::result(rc) {
            Ok(raw) => raw,
            Err(nix::Error::EAGAIN) => return Ok(None),
            // The client is already gone, or a signal: the next one may be fine.
            Err(nix::Error::ECONNABORTED | nix::Error::EINTR) => continue,
            Err(error) => return Err(error.into()),
        };
        // SAFETY: accept4 has just given this descriptor to us alone.
        let stream = unsafe { OwnedFd::from_raw_fd(raw) };
        if libc::c_int::from(peer.svm_family) == libc::AF_VSOCK && peer.svm_cid != libc::VMADDR_CID_HOST {
            tracing::warn!(cid = peer.svm_cid, "connection from another guest refused");
            continue;
        }
        return Ok(Some(stream));
    }
}

/// Wakes a thread out of epoll.
#[derive(Debug)]
pub(crate) struct Waker(nix::sys::eventfd::EventFd);

impl Waker {
    pub(crate) fn new() -> io::Result<Self> {
        use nix::sys::eventfd::{EfdFlags, EventFd};
        Ok(Self(EventFd::from_value_and_flags(0, EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?))
    }

    pub(crate) fn wake(&self) {
        // Fails only if the counter is full, and then the thread is awake.
        let _ = self.0.write(1);
    }
}

impl AsFd for Waker {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
