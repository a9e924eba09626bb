// SPDX-License-Identifier: Apache-2.0
//! Desired state on disk: SQLite in WAL mode with `synchronous=FULL`.
//!
//! One thread owns the connection and the state. A change is a closure over a [`Draft`]; it checks, allocates and
//! records in one go, and its caller is answered only when the transaction is on disk. Changes that queue up while
//! one commits share the next commit. Readers take snapshots of what is on disk and never wait.

mod schema;
mod state;
#[cfg(test)]
mod tests;

use std::{path::Path, sync::Arc, thread};

use tokio::sync::{mpsc, oneshot, watch};

pub use state::{Draft, State};

/// The database failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// SQLite's own.
    #[error("database {action}")]
    Sqlite {
        /// What was tried.
        action: &'static str,
        /// Cause.
        source: Arc<rusqlite::Error>,
    },
    /// A row that cannot be read or written as JSON.
    #[error("row {key} of table {table}")]
    Row {
        /// Table.
        table: &'static str,
        /// Primary key.
        key: String,
        /// Cause.
        source: Arc<serde_json::Error>,
    },
    /// Written by a later version of Arca.
    #[error("database has schema version {found}, this program knows {known}: use the newer arca-netd that wrote it")]
    Newer {
        /// Version on disk.
        found: i64,
        /// Version known.
        known: i64,
    },
    /// Another arca-netd has it open.
    #[error("database is in use: is another arca-netd running on the same data directory?")]
    Locked,
    /// The writer thread is gone.
    #[error("database writer has stopped")]
    Stopped,
}

type Answer = Box<dyn FnOnce(Result<(), StoreError>) + Send>;
type Job = Box<dyn FnOnce(&mut Draft) -> (bool, Answer) + Send>;

/// Handle to the store; cheap to clone.
#[derive(Clone, Debug)]
pub struct Store {
    jobs: mpsc::UnboundedSender<Job>,
    state: watch::Receiver<Arc<State>>,
}

impl Store {
    /// Opens or creates the database and reads it.
    ///
    /// # Errors
    /// [`StoreError`] if it is locked, newer, or damaged.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let (connection, state) = schema::open(path)?;
        let (sender, receiver) = watch::channel(Arc::new(state));
        let (jobs, queue) = mpsc::unbounded_channel();
        let writer = Writer { connection, sender, queue };
        thread::Builder::new()
            .name("netd-store".into())
            .spawn(move || writer.run())
            .map_err(|_| StoreError::Stopped)?;
        Ok(Self { jobs, state: receiver })
    }

    /// What is on disk now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        Arc::clone(&self.state.borrow())
    }

    /// Checks and changes in one go; answers when the change is on disk. If `change` gives an error, nothing of what
    /// it did to the draft remains.
    ///
    /// # Errors
    /// What `change` gave, or a [`StoreError`].
    pub async fn update<T, E, F>(&self, change: F) -> Result<T, E>
    where
        T: Send + 'static,
        E: From<StoreError> + Send + 'static,
        F: FnOnce(&mut Draft) -> Result<T, E> + Send + 'static,
    {
        let (answer, answered) = oneshot::channel();
        let job: Job = Box::new(move |draft| {
            let result = change(draft);
            let keep = result.is_ok();
            let answer: Answer = Box::new(move |committed| {
                // A caller that went away has no use for the answer; the change stands.
                let _ = answer.send(committed.map_err(E::from).and(result));
            });
            (keep, answer)
        });
        self.jobs.send(job).map_err(|_| StoreError::Stopped)?;
        answered.await.map_err(|_| StoreError::Stopped)?
    }
}

struct Writer {
    connection: rusqlite::Connection,
    sender: watch::Sender<Arc<State>>,
    queue: mpsc::UnboundedReceiver<Job>,
}

impl Writer {
    /// Most changes that share one commit.
    const BATCH: usize = 64;

    fn run(mut self) {
        while let Some(first) = self.queue.blocking_recv() {
            let mut jobs = vec![first];
            while jobs.len() < Self::BATCH
                && let Ok(job) = self.queue.try_recv()
            {
                jobs.push(job);
            }
            let before = Arc::clone(&self.sender.borrow());
            let mut state = State::clone(&before);
            let mut changes = Vec::new();
            let mut answers = Vec::with_capacity(jobs.len());
            for job in jobs {
                let mut draft = Draft::new(state.clone());
                let (keep, answer) = job(&mut draft);
                if keep {
                    let (after, more) = draft.finish();
                    state = after;
                    changes.extend(more);
                }
                answers.push(answer);
            }
            let committed = if changes.is_empty() { Ok(()) } else { schema::commit(&mut self.connection, changes) };
            if committed.is_ok() && *before != state {
                self.sender.send_replace(Arc::new(state));
            }
            for answer in answers {
                answer(committed.clone());
            }
        }
    }
}
