// SPDX-License-Identifier: Apache-2.0
//! Where no epoll is: a vanished client is noticed at the next write to it.

use tokio::net::UnixStream;

/// Watches nothing.
pub(crate) struct Hangup;

impl Hangup {
    pub(crate) fn of(_: &UnixStream) -> Self {
        Self
    }

    /// Never ends.
    pub(crate) async fn happened(&self) {
        std::future::pending().await
    }
}
