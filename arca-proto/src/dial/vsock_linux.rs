// SPDX-License-Identifier: Apache-2.0
//! AF_VSOCK on Linux: guests, and hosts with vhost-vsock.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

pub use tokio_vsock::VsockStream as Stream;
use tokio_vsock::{VsockAddr, VsockListener};

pub(crate) async fn connect(cid: u32, port: u32) -> io::Result<Stream> {
    Stream::connect(VsockAddr::new(cid, port)).await
}

/// The stream's own type does not give its descriptor away, so it is duplicated and the original closed.
pub(crate) fn into_fd(stream: &Stream) -> io::Result<OwnedFd> {
    stream.as_fd().try_clone_to_owned()
}

/// Listens on `port` for every peer; the caller checks the peer's context id.
pub(crate) fn listen(port: u32) -> io::Result<VsockListener> {
    VsockListener::bind(VsockAddr::new(tokio_vsock::VMADDR_CID_ANY, port))
}
