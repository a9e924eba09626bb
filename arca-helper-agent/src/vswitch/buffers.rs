// SPDX-License-Identifier: Apache-2.0
//! Greater receive buffers for the packet sockets of ovs-vswitchd.
//!
//! On the netdev datapath every port is an AF_PACKET socket with the kernel's default buffer (about 200 KiB): three
//! super-frames of TSO fill it. OVS has no option for it, so the sockets are borrowed with `pidfd_getfd(2)`.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};

/// Bytes per socket. A limit, not a reservation: the kernel counts what is queued.
pub const RECEIVE_BUFFER: usize = 8 << 20;

/// Raises the buffers of one ovs-vswitchd process and remembers which sockets are done.
#[derive(Debug)]
pub(super) struct Raiser {
    pid: i32,
    process: OwnedFd,
    done: HashSet<String>,
}

impl Raiser {
    /// For the process `pid`.
    pub(super) fn new(pid: i32) -> io::Result<Self> {
        // SAFETY: pidfd_open takes two integers and returns a new descriptor or -1.
        let process = unsafe { owned(libc::syscall(libc::SYS_pidfd_open, pid, 0)) }?;
        // Its main thread moves every frame there is, and is one more that a frame waits for.
        if let Err(error) = arca_link::short_slices(pid) {
            tracing::debug!(%error, "no short slices for ovs-vswitchd");
        }
        Ok(Self { pid, process, done: HashSet::new() })
    }

    pub(super) fn pid(&self) -> i32 {
        self.pid
    }

    /// Raises every packet socket that it has not raised yet; returns how many.
    pub(super) fn raise(&mut self) -> io::Result<usize> {
        let mut present = HashSet::new();
        let mut raised = 0;
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid))? {
            let entry = entry?;
            // A descriptor may be closed between listing and reading.
            let Ok(target) = std::fs::read_link(entry.path()) else { continue };
            let target = target.to_string_lossy().into_owned();
            if !target.starts_with("socket:") {
                continue;
            }
            let number = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok());
            if let (false, Some(number)) = (self.done.contains(&target), number) {
                raised += usize::from(self.raise_one(number)?);
            }
            present.insert(target);
        }
        self.done = present;
        Ok(raised)
    }

    fn raise_one(&self, number: i32) -> io::Result<bool> {
        // SAFETY: pidfd_getfd takes three integers and returns a new descriptor or -1.
        let socket = unsafe { owned(libc::syscall(libc::SYS_pidfd_getfd, self.process.as_raw_fd(), number, 0)) };
        let socket = match socket {
            Ok(socket) => socket,
            // Closed meanwhile.
            Err(e) if e.raw_os_error() == Some(libc::EBADF) => return Ok(false),
            Err(e) => return Err(e),
        };
        if domain(&socket)? != libc::AF_PACKET {
            return Ok(false);
        }
        setsockopt(&socket.as_fd(), sockopt::RcvBufForce, &RECEIVE_BUFFER)?;
        Ok(true)
    }
}

/// # Safety
/// `result` must be what a system call that makes a descriptor has just returned.
unsafe fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    match i32::try_from(result) {
        // SAFETY: a new descriptor that nobody else owns, says the caller.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

fn domain(socket: &OwnedFd) -> io::Result<libc::c_int> {
    let (mut value, mut length): (libc::c_int, libc::socklen_t) = (0, 4);
    // SAFETY: both pointers are to live variables of the sizes told.
    let done = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_DOMAIN,
            (&raw mut value).cast(),
            &raw mut length,
        )
    };
    if done == 0 { Ok(value) } else { Err(io::Error::last_os_error()) }
}
