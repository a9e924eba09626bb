// SPDX-License-Identifier: Apache-2.0
//! One workload: a container and the processes in it.
//!
//! ```text
//! CREATED ──start──> RUNNING <──pause/thaw──> PAUSED
//!    │                  │                        │
//!    └──────ended───────┴────────────────────────┴──> STOPPED ──delete──> DELETED
//! ```
//!
//! A task of each workload owns its end: output drained, `exit.json` on disk, then the change is told.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use arca_proto::{
    init::v1::{WorkloadStatus, workload_status::State},
    machine::v1::ExitStatus,
};
use tokio::sync::{Mutex as AsyncMutex, broadcast};

use crate::{error::InitError, process::Process};

/// Ended exec'd processes that are kept for whoever still wants their output or status.
const ENDED_EXECS: usize = 128;

/// A workload. Made whole by [`crate::workloads::Workloads::create`].
#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) state_directory: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) process: Arc<Process>,
    pub(crate) stdin_once: bool,
    /// What its first process executes, for error texts.
    pub(crate) executable: String,
    /// Held while its state changes, by operations and by the task that owns its end.
    pub(crate) gate: AsyncMutex<()>,
    inner: Mutex<Inner>,
    events: broadcast::Sender<WorkloadStatus>,
}

#[derive(Debug)]
struct Inner {
    state: State,
    started_at_ns: i64,
    exit: Option<ExitStatus>,
    execs: Vec<(String, Arc<Process>)>,
}

/// What a new workload is made of.
pub(crate) struct Parts {
    pub(crate) id: String,
    pub(crate) bundle: PathBuf,
    pub(crate) state_directory: PathBuf,
    pub(crate) cgroup: PathBuf,
    pub(crate) process: Arc<Process>,
    pub(crate) stdin_once: bool,
    pub(crate) executable: String,
}

impl Workload {
    /// A workload whose process waits for its start.
    pub(crate) fn created(parts: Parts, events: broadcast::Sender<WorkloadStatus>) -> Arc<Self> {
        let Parts { id, bundle, state_directory, cgroup, process, stdin_once, executable } = parts;
        let inner = Inner { state: State::Created, started_at_ns: 0, exit: None, execs: Vec::new() };
        let gate = AsyncMutex::new(());
        let inner = Mutex::new(inner);
        Arc::new(Self { id, bundle, state_directory, cgroup, process, stdin_once, executable, gate, inner, events })
    }

    pub(crate) fn root(bundle: &Path) -> PathBuf {
        bundle.join("rootfs")
    }

    pub(crate) fn state(&self) -> State {
        self.lock().state
    }

    pub(crate) fn status(&self) -> WorkloadStatus {
        let inner = self.lock();
        WorkloadStatus {
            workload_id: self.id.clone(),
            state: inner.state.into(),
            pid: if inner.exit.is_none() { self.process.pid } else { 0 },
            started_at_ns: inner.started_at_ns,
            exit: inner.exit,
        }
    }

    /// Takes a state and tells the watchers. STOPPED is final but for DELETED.
    pub(crate) fn enter(&self, state: State) {
        {
            let mut inner = self.lock();
            if inner.state == State::Stopped && state != State::Deleted {
                return;
            }
            inner.state = state;
        }
        self.tell();
    }

    /// Entered RUNNING at `now`.
    pub(crate) fn set_started(&self, now: i64) {
        self.lock().started_at_ns = now;
    }

    /// Entered STOPPED.
    pub(crate) fn stopped(&self, exit: ExitStatus) {
        {
            let mut inner = self.lock();
            inner.state = State::Stopped;
            inner.exit = Some(exit);
        }
        self.tell();
    }

    /// Err with the state unless it is one of `wanted`.
    pub(crate) fn require(&self, wanted: &[State]) -> Result<(), InitError> {
        let state = self.state();
        if wanted.contains(&state) {
            return Ok(());
        }
        let name = match state {
            State::Created => "created, not running",
            State::Running => "running",
            State::Paused => "paused",
            State::Stopped => "not running",
            State::Deleted | State::Unspecified => "deleted",
        };
        Err(InitError::State { id: self.id.clone(), state: name })
    }

    /// The first process for an empty id, else the exec'd one.
    pub(crate) fn find(&self, exec_id: &str) -> Result<Arc<Process>, InitError> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.process));
        }
        let inner = self.lock();
        let found = inner.execs.iter().find(|(id, _)| id == exec_id);
        found.map(|(_, process)| Arc::clone(process)).ok_or_else(|| InitError::NoSuchExec(exec_id.to_owned()))
    }

    /// Keeps an exec'd process and forgets the oldest of too many that have ended.
    pub(crate) fn add_exec(&self, id: String, process: Arc<Process>) {
        let mut inner = self.lock();
        inner.execs.push((id, process));
        while inner.execs.iter().filter(|(_, process)| !process.running()).count() > ENDED_EXECS {
            let Some(oldest) = inner.execs.iter().position(|(_, process)| !process.running()) else { break };
            let (_, process) = inner.execs.remove(oldest);
            process.abandon();
        }
    }

    /// Ends every task of its processes.
    pub(crate) fn abandon(&self) {
        let execs = std::mem::take(&mut self.lock().execs);
        for (_, process) in execs {
            process.abandon();
        }
        self.process.abandon();
    }

    fn tell(&self) {
        // Nobody watching is fine.
        let _ = self.events.send(self.status());
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // Changes are single assignments, whole at any time.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Writes `exit.json` in one step; a reader sees the whole record or none, also after a power cut.
pub(crate) fn write_exit(folder: &Path, exit: ExitStatus) -> std::io::Result<()> {
    let text = serde_json::json!({
        "code": exit.code,
        "signal": exit.signal,
        "oom_killed": exit.oom_killed,
        "finished_at_ns": exit.finished_at_ns,
    });
    let temporary = folder.join("exit.json.new");
    let mut file = fs::File::create(&temporary)?;
    std::io::Write::write_all(&mut file, text.to_string().as_bytes())?;
    file.sync_data()?;
    fs::rename(temporary, folder.join("exit.json"))
}
