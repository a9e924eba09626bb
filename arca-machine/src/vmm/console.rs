// SPDX-License-Identifier: Apache-2.0
//! The guest's console: to a log of bounded length, because a guest can write without end.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use tokio::{io::AsyncReadExt, net::UnixStream};

/// A log that has grown this long becomes `console.log.1` and a new one begins.
const LENGTH: u64 = 1 << 20;
/// How much is searched for the reason of a guest's end.
const TAIL: usize = 8 << 10;
/// What kernels say last.
const LAST_WORDS: [&str; 3] = ["Kernel panic", "VFS: Unable to mount", "arca-init: "];

/// Writes what the guest says; remembers its end.
#[derive(Clone, Debug, Default)]
pub(super) struct Console {
    tail: Arc<Mutex<Vec<u8>>>,
}

impl Console {
    /// Reads until the guest is gone.
    pub(super) async fn record(self, mut stream: UnixStream, path: PathBuf) -> io::Result<()> {
        let mut log = Log::open(&path)?;
        let mut buffer = [0; 4096];
        loop {
            let length = stream.read(&mut buffer).await?;
            let Some(said) = buffer.get(..length).filter(|said| !said.is_empty()) else { return Ok(()) };
            self.remember(said);
            log.write(said)?;
        }
    }

    fn remember(&self, said: &[u8]) {
        let mut tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        tail.extend_from_slice(said);
        let excess = tail.len().saturating_sub(TAIL);
        tail.drain(..excess);
    }

    /// The line that tells why the guest ended, if there is one.
    pub(super) fn last_words(&self) -> Option<String> {
        let tail = self.tail.lock().unwrap_or_else(PoisonError::into_inner);
        let text = String::from_utf8_lossy(&tail);
        let line = text.lines().find(|line| LAST_WORDS.iter().any(|words| line.contains(words)))?;
        // Without the time in front.
        let line = line.split_once("] ").filter(|(time, _)| time.starts_with('[')).map_or(line, |(_, rest)| rest);
        Some(line.trim().to_owned())
    }
}

#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    length: u64,
}

impl Log {
    fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let length = file.metadata()?.len();
        Ok(Self { path: path.to_path_buf(), file, length })
    }

    fn write(&mut self, said: &[u8]) -> io::Result<()> {
        if self.length >= LENGTH {
            fs::rename(&self.path, self.path.with_extension("log.1"))?;
            *self = Self::open(&self.path)?;
        }
        self.length += said.len() as u64;
        self.file.write_all(said)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn the_log_is_bounded_and_the_reason_of_the_end_is_found() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("console.log");
        let (mut guest, ours) = UnixStream::pair().expect("pair");
        let console = Console::default();
        let recording = tokio::spawn(console.clone().record(ours, path.clone()));
        for _ in 0..(3 * LENGTH / 4096) {
            guest.write_all(&[b'x'; 4096]).await.expect("write");
        }
        guest
            .write_all(b"\n[    1.25] Kernel panic - not syncing: No working init found.\r\nmore\n")
            .await
            .expect("write");
        drop(guest);
        recording.await.expect("task").expect("recorded");
        let length = |name: &str| fs::metadata(folder.path().join(name)).expect("a log").len();
        assert!(length("console.log") + length("console.log.1") <= 2 * LENGTH + 8192);
        assert_eq!(console.last_words().as_deref(), Some("Kernel panic - not syncing: No working init found."));
    }
}
