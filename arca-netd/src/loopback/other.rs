// SPDX-License-Identifier: Apache-2.0
//! Hosts whose helper is a machine that no interface of theirs leads to.

use std::{io, net::SocketAddr};

use super::Place;

/// There is none.
#[derive(Debug)]
pub(super) enum Forwarding {}

impl Forwarding {
    /// Says that there is no way.
    ///
    /// # Errors
    /// Always.
    #[allow(clippy::unused_async, reason = "as on the platform that has it")]
    pub(super) async fn open(_place: &Place, _server: SocketAddr) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never called.
    pub(super) fn address(&self) -> SocketAddr {
        match *self {}
    }
}
