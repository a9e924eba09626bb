// SPDX-License-Identifier: Apache-2.0
//! The network namespace of a namespace machine, for those who put an interface into it from outside.

use std::{
    fs::File,
    io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::net::UnixStream,
    },
    thread,
};

use arca_proto::{
    dial::{Address, with_short_path},
    ports,
};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sched::{CloneFlags, setns},
    sys::socket::{getsockopt, sockopt::PeerCredentials},
};

/// Opens the network namespace of the container machine at `address`.
///
/// The machine's own socket says whose it is, so no process id can be stale: the peer is still there when its namespace
/// has been opened.
///
/// # Errors
/// The machine is gone, or is none on this kernel.
pub fn open(address: &Address) -> io::Result<OwnedFd> {
    let Address::Sockets(directory) = address else {
        return Err(io::Error::new(io::ErrorKind::Unsupported, "the machine has no network namespace on this kernel"));
    };
    let (_guard, path) = with_short_path(&directory.join(ports::INIT.to_string()))?;
    let peer = UnixStream::connect(path)?;
    let pid = getsockopt(&peer, PeerCredentials)?.pid();
    let netns = File::open(format!("/proc/{pid}/ns/net"))?;
    let mut ends = [PollFd::new(peer.as_fd(), PollFlags::empty())];
    poll(&mut ends, PollTimeout::ZERO)?;
    let hung_up = ends[0].revents().is_some_and(|events| events.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
    if hung_up {
        return Err(io::Error::new(io::ErrorKind::NotConnected, "the machine has just ended"));
    }
    Ok(netns.into())
}

/// Runs `work` on a thread of its own inside `netns`: sockets it opens and what it writes below /proc/sys/net belong to
/// that namespace. Blocks; `work` must be short.
///
/// # Errors
/// The namespace cannot be entered (privileges).
pub fn within<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            setns(netns, CloneFlags::CLONE_NEWNET)?;
            Ok(work())
        });
        visitor.join().unwrap_or_else(|_| Err(io::Error::other("the thread inside the namespace panicked")))
    })
}
