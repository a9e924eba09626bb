// SPDX-License-Identifier: Apache-2.0
//! The links this daemon carries.
//!
//! A link is a task that never ends by itself (see [`task`]): it dials both ends, lets a thread move bytes until one
//! end breaks, and dials again. Opening and closing only start and abort that task and read what it publishes.
//!
//! ```text
//!            both hellos                 an end broke
//! Connecting ----------> Up(epoch) ---------------------> Connecting (redial)
//!     any state ---- close, or replaced, or the first connection given up ----> Closed (gone from the list)
//! ```

mod count;
#[cfg(target_os = "linux")]
#[path = "handed_linux.rs"]
mod handed;
#[cfg(not(target_os = "linux"))]
#[path = "handed_other.rs"]
mod handed;
#[cfg(target_os = "linux")]
#[path = "joint_linux.rs"]
mod joint;
#[cfg(not(target_os = "linux"))]
#[path = "joint_other.rs"]
mod joint;
mod task;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use arca_proto::{
    dial::Address,
    hello::{Carrier, Offloads},
    ports::LinkNumber,
    trace::{Hop, Tracer},
};
use futures_util::future::join_all;
use tokio::{
    sync::{Mutex, broadcast, watch},
    task::JoinHandle,
    time::timeout,
};
use tonic::async_trait;

use count::Count;
pub use joint::Counters;

/// Changes kept for a watcher that is behind; beyond it the watcher gets all links anew.
const BACKLOG: usize = 1024;

/// The two ends of a link, and how frames travel between them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// Carrier.
    pub carrier: Carrier,
    /// Machine whose port 20000 + n is dialled.
    pub container: Address,
    /// Machine whose port 30000 + n is dialled.
    pub helper: Address,
}

/// Where a link stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    /// Dialling or saying hello.
    #[default]
    Connecting,
    /// Frames can flow.
    Up,
    /// Gone.
    Closed,
}

/// What a link's task publishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Progress {
    /// Where it stands.
    pub phase: Phase,
    /// Of the present connection, or of the last attempt.
    pub epoch: u64,
    /// In force on both ends while up.
    pub offloads: Offloads,
    /// Connections that came up, without the first.
    pub reconnects: u64,
    /// Why it is not up; empty while it is.
    pub last_error: String,
}

/// A link at one moment.
#[derive(Clone, Debug)]
pub struct Snapshot {
    /// Link number.
    pub link: LinkNumber,
    /// What it joins.
    pub ends: Ends,
    /// Where it stands.
    pub progress: Progress,
    /// Container to helper.
    pub to_helper: Counters,
    /// Helper to container.
    pub to_container: Counters,
    /// Connections that were given up because they stood but moved nothing.
    pub stuck: u64,
}

/// The first connection was given up; the link is closed again if the call opened it.
#[derive(Debug, thiserror::Error)]
#[error("open link {link}: not up within {} ms: {why}", .waited.as_millis())]
pub struct NotUp {
    link: LinkNumber,
    waited: Duration,
    why: String,
}

struct Entry {
    ends: Ends,
    progress: watch::Receiver<Progress>,
    counting: Arc<Count>,
    task: JoinHandle<()>,
}

impl Entry {
    fn snapshot(&self, link: LinkNumber) -> Snapshot {
        Snapshot {
            link,
            ends: self.ends.clone(),
            progress: self.progress.borrow().clone(),
            to_helper: self.counting.to_helper(),
            to_container: self.counting.to_container(),
            stuck: self.counting.here.stuck(),
        }
    }
}

/// All links. Cheap to share.
#[derive(Clone)]
pub struct Links(Arc<Inner>);

struct Inner {
    /// Held only to look up and to start or abort tasks, never while a link connects.
    entries: Mutex<BTreeMap<LinkNumber, Entry>>,
    changes: broadcast::Sender<Snapshot>,
}

impl Default for Links {
    fn default() -> Self {
        Self::new()
    }
}

impl Links {
    /// None yet.
    pub fn new() -> Self {
        Self(Arc::new(Inner { entries: Mutex::default(), changes: broadcast::Sender::new(BACKLOG) }))
    }

    /// Opens a link and waits until it is up. A link that is open with the same ends is only waited for; one with
    /// other ends is replaced.
    ///
    /// # Errors
    /// [`NotUp`] after `patience`, with what the last attempt failed with. A link opened by this call is closed then.
    pub async fn open(&self, link: LinkNumber, ends: Ends, patience: Duration) -> Result<Snapshot, NotUp> {
        let mut entries = self.0.entries.lock().await;
        let known = entries.get(&link).is_some_and(|entry| entry.ends == ends);
        if !known {
            if let Some(entry) = entries.remove(&link) {
                self.end(link, entry).await;
            }
            let entry = self.start(link, ends);
            entries.insert(link, entry);
        }
        let Some(mut progress) = entries.get(&link).map(|entry| entry.progress.clone()) else {
            unreachable!("inserted above, under the same lock")
        };
        drop(entries);

        // The sender lives in the task: an error means that somebody closed the link meanwhile.
        let up = matches!(timeout(patience, progress.wait_for(|p| p.phase == Phase::Up)).await, Ok(Ok(_)));
        let mut entries = self.0.entries.lock().await;
        match entries.get(&link).filter(|entry| entry.progress.same_channel(&progress)) {
            Some(entry) if up => return Ok(entry.snapshot(link)),
            Some(_) if !known => {
                if let Some(entry) = entries.remove(&link) {
                    self.end(link, entry).await;
                }
            }
            _ => {}
        }
        let why = match progress.borrow().last_error.clone() {
            empty if empty.is_empty() => "the ends have not said hello".to_owned(),
            why => why,
        };
        Err(NotUp { link, waited: patience, why })
    }

    fn start(&self, link: LinkNumber, ends: Ends) -> Entry {
        let counting = Arc::new(Count::default());
        let (sender, progress) = watch::channel(Progress::default());
        let publish = task::Publish {
            link,
            ends: ends.clone(),
            counting: counting.clone(),
            progress: sender,
            changes: self.0.changes.clone(),
        };
        let Ends { carrier, container, helper } = &ends;
        tracing::debug!(%link, %carrier, %container, %helper, "link opened");
        Entry { ends, progress, counting, task: tokio::spawn(task::run(publish)) }
    }

    /// Closes a link; false if there is none.
    pub async fn close(&self, link: LinkNumber) -> bool {
        let Some(entry) = self.0.entries.lock().await.remove(&link) else { return false };
        self.end(link, entry).await;
        true
    }

    async fn end(&self, link: LinkNumber, entry: Entry) {
        let mut last = entry.snapshot(link);
        entry.task.abort();
        // Cancelled is what it should be; both streams are closed when this returns.
        let _ = entry.task.await;
        last.progress.phase = Phase::Closed;
        // Nobody may be watching.
        let _ = self.0.changes.send(last);
        tracing::debug!(%link, "link closed");
    }

    /// Closes all links.
    pub async fn close_all(&self) {
        let entries = std::mem::take(&mut *self.0.entries.lock().await);
        for (link, entry) in entries {
            self.end(link, entry).await;
        }
    }

    /// All links, by number.
    pub async fn list(&self) -> Vec<Snapshot> {
        let counts: Vec<_> = self.0.entries.lock().await.values().map(|entry| entry.counting.clone()).collect();
        join_all(counts.iter().map(|count| count.refresh())).await;
        self.0.entries.lock().await.iter().map(|(link, entry)| entry.snapshot(*link)).collect()
    }

    /// Changes of phase from now on; subscribe first, then [`Links::list`].
    pub fn changes(&self) -> broadcast::Receiver<Snapshot> {
        self.0.changes.subscribe()
    }
}

#[async_trait]
impl Hop for Links {
    async fn tracer(&self, link: LinkNumber) -> Option<Arc<Tracer>> {
        // The other carriers' frames do not pass here.
        let entries = self.0.entries.lock().await;
        let entry = entries.get(&link).filter(|entry| entry.ends.carrier == Carrier::Stream)?;
        Some(entry.counting.here.tracer())
    }
}

#[cfg(test)]
mod tests;
