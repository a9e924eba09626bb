// SPDX-License-Identifier: Apache-2.0
//! Listening on Linux.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
};

use super::Listener;

pub(super) fn bind_vsock(port: u32) -> io::Result<Listener> {
    Ok(Listener::Vsock(crate::dial::vsock::listen(port)?))
}

pub(super) fn duplicate(listener: &tokio_vsock::VsockListener) -> io::Result<OwnedFd> {
    listener.as_fd().try_clone_to_owned()
}
