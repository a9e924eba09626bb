// SPDX-License-Identifier: Apache-2.0
//! Tells when a log file has grown, by inotify on its folder (the file may not exist yet).

use std::{ffi::OsString, io, path::Path};

use futures_util::StreamExt;
use inotify::{EventStream, Inotify, WatchMask};

/// Changes of one file.
pub(super) struct Changes {
    events: EventStream<[u8; 4096]>,
    name: OsString,
}

impl Changes {
    pub(super) fn of(path: &Path) -> io::Result<Self> {
        let inotify = Inotify::init()?;
        let folder = path.parent().unwrap_or_else(|| Path::new("/"));
        inotify.watches().add(folder, WatchMask::MODIFY | WatchMask::CREATE | WatchMask::MOVED_TO)?;
        Ok(Self {
            events: inotify.into_event_stream([0; 4096])?,
            name: path.file_name().map(OsString::from).unwrap_or_default(),
        })
    }

    /// Returns at the next change.
    pub(super) async fn next(&mut self) -> io::Result<()> {
        while let Some(event) = self.events.next().await {
            if event?.name.as_ref() == Some(&self.name) {
                return Ok(());
            }
        }
        Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the log is no longer watched"))
    }
}
