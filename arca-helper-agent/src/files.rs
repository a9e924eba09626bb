// SPDX-License-Identifier: Apache-2.0
//! Waiting for files and sockets of other programs by events.

use std::io;
use std::path::Path;
use std::time::Duration;

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::net::UnixStream;

/// Events of files appearing in the folder of `path`.
///
/// # Errors
/// No such folder, or no inotify instances left.
pub(crate) fn watch_folder(path: &Path) -> io::Result<EventStream<[u8; 1024]>> {
    let inotify = Inotify::init()?;
    let folder = path.parent().unwrap_or(Path::new("/"));
    inotify.watches().add(folder, WatchMask::CREATE | WatchMask::MOVED_TO | WatchMask::CLOSE_WRITE)?;
    inotify.into_event_stream([0; 1024])
}

/// Waits until a server takes connections at `path`.
///
/// # Errors
/// As [`watch_folder`].
pub(crate) async fn wait_for_server(path: &Path) -> io::Result<()> {
    let mut events = watch_folder(path)?;
    loop {
        match UnixStream::connect(path).await {
            Ok(_) => return Ok(()),
            // Bound and not yet listening: a moment for which there is no event. Or left behind by a dead server.
            Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => {
                // Cancel-safe: an event lost here only shortens a wait that ends by itself.
                let _ = tokio::time::timeout(Duration::from_millis(1), events.next()).await;
            }
            Err(_) => {
                if events.next().await.is_none() {
                    return Err(io::Error::other("inotify ended"));
                }
            }
        }
    }
}
