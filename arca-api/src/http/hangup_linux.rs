// SPDX-License-Identifier: Apache-2.0
//! Notices that a client has gone for good.
//!
//! A half-closed client still wants its answer, and reading cannot tell the two apart. epoll can: a fully closed peer
//! raises EPOLLHUP, which is reported whatever was asked for. Used by `server` so that an idle `events` or `logs -f`
//! ends with its client.

use std::{future::pending, os::fd::OwnedFd};

use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

/// A duplicate of the client's socket that watches for its end.
pub(crate) struct Hangup(Option<AsyncFd<OwnedFd>>);

impl Hangup {
    pub(crate) fn of(stream: &UnixStream) -> Self {
        use std::os::fd::AsFd;
        let watched = stream.as_fd().try_clone_to_owned().ok().and_then(|fd| {
            // PRIORITY asks for nothing a unix socket ever sends, so only the unasked-for EPOLLHUP arrives.
            // SAFETY: the AsyncFd owns this descriptor, nobody else knows its number, and it stays open until the
            // AsyncFd is dropped.
            unsafe { AsyncFd::register_with_interest(fd, Interest::PRIORITY) }.ok()
        });
        Self(watched)
    }

    /// Ends when both directions are closed. Without a watch (no descriptor left) it never does.
    pub(crate) async fn happened(&self) {
        match &self.0 {
            Some(fd) => loop {
                match fd.ready(Interest::PRIORITY).await {
                    Ok(mut guard) if !guard.ready().is_read_closed() => guard.clear_ready(),
                    _ => return,
                }
            },
            None => pending().await,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::io::AsyncWriteExt;

    use super::*;

    #[tokio::test]
    async fn half_close_and_data_are_no_hangup_and_a_close_is() {
        let (mut client, server) = UnixStream::pair().expect("socket pair");
        let hangup = Hangup::of(&server);
        client.write_all(b"x").await.expect("write");
        client.shutdown().await.expect("half close");
        assert!(tokio::time::timeout(Duration::from_millis(50), hangup.happened()).await.is_err());
        drop(client);
        tokio::time::timeout(Duration::from_secs(5), hangup.happened()).await.expect("hangup is seen");
    }
}
