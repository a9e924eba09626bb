// SPDX-License-Identifier: Apache-2.0
//! Where AF_VSOCK does not exist (macOS): machines are reached by hybrid sockets, so this always refuses.

use std::{io, os::fd::OwnedFd};

/// Never constructed.
pub type Stream = tokio::net::UnixStream;

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this host has no AF_VSOCK; use the hybrid transport")
}

pub(crate) async fn connect(_cid: u32, _port: u32) -> io::Result<Stream> {
    Err(unsupported())
}

pub(crate) fn into_fd(_stream: &Stream) -> io::Result<OwnedFd> {
    Err(unsupported())
}
