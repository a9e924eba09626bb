// SPDX-License-Identifier: Apache-2.0
//! Containers: their state, and the verbs that change it.
//!
//! ```text
//!            start ok                exit            remove
//!  created ───────────> running ───────────> exited ────────> (gone)
//!     │ ^                │   ^                │  ^
//!     │ └─ start failed  │   └─ start ok ─────┘  └─ start failed, exit while paused (killed)
//!     │                  │ pause / unpause
//!     │                  └──────> paused
//!     └── remove ──> (gone)          exit with a restart policy: exited ─> restarting ─> running
//! ```
//!
//! A verb holds [`Container::ops`] while it changes state and never while it waits for an exit: the exit itself is such a
//! change ([`exit`]). The durable part is one [`Record`], replaced as a whole and on disk before a verb is acknowledged.
//! A running container is watched by one task (`exit::watch`).

pub mod adopt;
pub mod archive;
pub mod attach;
pub mod bridge;
pub mod changes;
pub mod commit;
pub mod copy_up;
pub mod create;
pub mod detach_keys;
pub mod exec;
pub mod exit;
pub mod files;
pub mod health;
pub mod in_step;
pub mod index;
pub mod inside;
pub mod links;
pub mod logs;
pub mod mounts;
pub mod names;
pub mod namespaces;
pub mod native;
pub mod networks;
pub mod ports;
pub mod record;
pub mod remove;
pub mod resolv;
pub mod root;
pub mod signals;
pub mod start;
pub mod stats;
pub mod stop;
pub mod top;
pub mod update;
pub mod view;

#[cfg(test)]
mod tests;

#[cfg(target_os = "linux")]
#[path = "logs/follow_linux.rs"]
mod follow;
#[cfg(not(target_os = "linux"))]
#[path = "logs/follow_other.rs"]
mod follow;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use tokio::sync::watch;

pub use record::{Record, State, Status};

use crate::{
    engine::Engine,
    http::{ApiError, ApiResult},
    machines::Live,
};

/// A machine whose programs have stopped answering is gone within this, or something else is wrong.
const ENDS_WITHIN: std::time::Duration = std::time::Duration::from_secs(1);

/// What `wait` looks at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Phase {
    /// Starts and exits so far: a waiter for the next exit remembers this.
    pub exits: u64,
    /// A process runs (or is frozen).
    pub running: bool,
    /// Code of the last exit.
    pub exit_code: i64,
    /// The container is gone.
    pub removed: bool,
}

/// One container.
#[derive(Debug)]
pub struct Container {
    /// 64 hex digits.
    pub id: String,
    /// Held by every verb that changes state; see the module's head.
    pub ops: tokio::sync::Mutex<()>,
    record: Mutex<Record>,
    live: Mutex<Option<Live>>,
    /// Followed by `wait`, `logs -f` and `stop`.
    pub phase: watch::Sender<Phase>,
    /// Attach clients that wait for the start, and those that are being served.
    pub clients: attach::Clients,
    /// Its health checks, while they run.
    pub monitor: health::Monitor,
}

impl Container {
    /// A container with this record and no machine yet.
    pub fn new(record: Record) -> Arc<Self> {
        let phase = Phase { exit_code: record.state.exit_code, running: record.state.is_running(), ..Phase::default() };
        Arc::new(Self {
            id: record.id.clone(),
            ops: tokio::sync::Mutex::new(()),
            record: Mutex::new(record),
            live: Mutex::new(None),
            phase: watch::Sender::new(phase),
            clients: attach::Clients::default(),
            monitor: health::Monitor::default(),
        })
    }

    /// The turn of a verb that changes state. Whoever waited while the container was removed finds nothing to change.
    ///
    /// # Errors
    /// 404 `No such container: …`.
    pub async fn turn(&self) -> ApiResult<tokio::sync::MutexGuard<'_, ()>> {
        let turn = self.ops.lock().await;
        if self.phase.borrow().removed {
            return Err(ApiError::not_found(format!("No such container: {}", self.id)));
        }
        Ok(turn)
    }

    /// A copy of what is known now.
    pub fn record(&self) -> Record {
        self.record.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads something small of the record without copying it.
    pub fn with<T>(&self, read: impl FnOnce(&Record) -> T) -> T {
        read(&self.record.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Changes the record: on disk first, then in memory. The caller holds `ops`.
    ///
    /// # Errors
    /// 500 if the database refuses; nothing has changed then.
    pub async fn update<T>(&self, engine: &Engine, edit: impl FnOnce(&mut Record) -> T) -> ApiResult<T> {
        let mut next = self.record();
        let out = edit(&mut next);
        let json = serde_json::to_string(&next).map_err(|error| ApiError::internal(error.to_string()))?;
        engine.store.put("container", &self.id, json).await.map_err(|error| ApiError::internal(error.to_string()))?;
        *self.record.lock().unwrap_or_else(PoisonError::into_inner) = next;
        Ok(out)
    }

    /// Changes the record in memory only. The caller holds `ops` and knows why the disk need not know.
    pub(crate) fn update_unsaved(&self, edit: impl FnOnce(&mut Record)) {
        edit(&mut self.record.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// The machine, while there is one.
    pub fn live(&self) -> Option<Live> {
        self.live.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn set_live(&self, live: Option<Live>) {
        *self.live.lock().unwrap_or_else(PoisonError::into_inner) = live;
    }

    /// The machine of a running container.
    ///
    /// # Errors
    /// 409 `container … is not running`.
    pub fn running(&self) -> ApiResult<Live> {
        let running = self.with(|record| record.state.is_running());
        self.live()
            .filter(|_| running)
            .ok_or_else(|| ApiError::conflict(format!("container {} is not running", self.id)))
    }

    /// Whether this machine has ended, although nobody has taken note of it yet.
    pub(crate) async fn has_ended(&self, live: &Live) -> bool {
        tokio::time::timeout(ENDS_WITHIN, live.machine.wait_exit()).await.is_ok()
    }

    /// Returns when the end of the process that runs now has been taken note of. The caller does not hold `ops`.
    pub(crate) async fn until_noted(&self) {
        let mut phase = self.phase.subscribe();
        // An error means that the container itself is gone, which is ended too.
        let _ = phase.wait_for(|phase| !phase.running).await;
    }

    /// Emits a container event with image, name, labels and `more`.
    pub fn emit(&self, engine: &Engine, action: impl Into<String>, more: &[(&str, String)]) {
        let mut attributes: BTreeMap<String, String> = self.with(|record| {
            let mut attributes = record.config.labels.clone();
            attributes.insert("image".into(), record.config.image.clone());
            attributes.insert("name".into(), record.name.clone());
            attributes
        });
        attributes.extend(more.iter().map(|(key, value)| ((*key).to_owned(), value.clone())));
        engine.events.emit("container", action, &self.id, attributes);
    }
}
