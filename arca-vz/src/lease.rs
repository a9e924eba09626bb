// SPDX-License-Identifier: Apache-2.0
//! Whose death ends a machine.
//!
//! A machine outlives whoever started it: arca-api and arca-netd may restart at any time, and the next one finds the machine
//! by its record. That holds from the moment the launcher has it on record and says so. Until then nobody but the launcher
//! knows of the machine, and if the launcher dies it must not stay: a pipe from the launcher is its *lease*. End of the pipe
//! without the word ends the machine; the word `keep` makes it stand alone, and from then on it ends by being asked to, by a
//! signal, or by itself. (macOS has no PR_SET_PDEATHSIG; a pipe is closed by the kernel however its holder ends.)

use std::future::pending;

use tokio::io::{AsyncBufReadExt as _, AsyncRead, BufReader};

/// What the launcher says once the machine is on record.
pub const KEEP: &str = "keep";

/// The pipe.
pub struct Lease {
    pipe: Option<Box<dyn AsyncRead + Send + Unpin>>,
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("held", &self.pipe.is_some()).finish()
    }
}

impl Lease {
    /// By this pipe.
    #[must_use]
    pub fn of(pipe: impl AsyncRead + Send + Unpin + 'static) -> Self {
        Self { pipe: Some(Box::new(pipe)) }
    }

    /// The machine stands alone from its start.
    #[must_use]
    pub fn none() -> Self {
        Self { pipe: None }
    }

    /// Returns when the launcher has died before it had the machine on record; never otherwise.
    pub async fn lost(self) {
        let Some(pipe) = self.pipe else { return pending().await };
        let mut lines = BufReader::new(pipe).lines();
        while let Ok(Some(line)) = lines.next_line().await {
            if line == KEEP {
                return pending().await;
            }
            tracing::warn!(line, "the launcher says what nobody knows");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncWriteExt as _;

    #[tokio::test]
    async fn the_end_of_the_pipe_counts_until_the_word_has_come() {
        let (launcher, ours) = tokio::io::duplex(64);
        drop(launcher);
        Lease::of(ours).lost().await;

        let (mut launcher, ours) = tokio::io::duplex(64);
        launcher.write_all(b"other\n").await.expect("write");
        drop(launcher);
        Lease::of(ours).lost().await;

        let (mut launcher, ours) = tokio::io::duplex(64);
        launcher.write_all(b"keep\n").await.expect("write");
        drop(launcher);
        // What never comes cannot be waited for: a runtime that has nothing else to do would wait for ever.
        let mut lost = tokio_lost(Lease::of(ours));
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
        assert!(!lost.is_finished());
        lost.abort();
        let _ = (&mut lost).await;
    }

    fn tokio_lost(lease: Lease) -> tokio::task::JoinHandle<()> {
        tokio::spawn(lease.lost())
    }
}
