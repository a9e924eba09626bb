// SPDX-License-Identifier: Apache-2.0
//! What the supervisor tells: one JSON text ([`Supervised`]) to whoever connects to its socket.

use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::io::AsyncWriteExt;
use tokio::net::UnixListener;

use crate::status::{Process, Supervised};

const FAULTS_KEPT: usize = 50;

/// Shared between the supervisor's loop, the log readers and the socket.
#[derive(Clone, Debug)]
pub(super) struct Board {
    started: Instant,
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    processes: Vec<Process>,
    faults: VecDeque<String>,
    boot_ms: Vec<(String, u64)>,
}

impl Board {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), inner: Arc::default() }
    }

    fn with<T>(&self, act: impl FnOnce(&mut Inner) -> T) -> T {
        act(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A moment of the first boot.
    pub(super) fn mark(&self, moment: &str) {
        let ms = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        tracing::info!(moment, ms, "boot");
        self.with(|inner| inner.boot_ms.push((moment.to_owned(), ms)));
    }

    /// A line of a log that tells of a fault.
    pub(super) fn fault(&self, program: &str, line: &str) {
        self.with(|inner| {
            if inner.faults.len() == FAULTS_KEPT {
                inner.faults.pop_front();
            }
            inner.faults.push_back(format!("{program}: {line}"));
        });
    }

    /// The processes as they are now; sizes are read when somebody asks.
    pub(super) fn processes(&self, processes: Vec<Process>) {
        self.with(|inner| inner.processes = processes);
    }

    fn report(&self) -> Supervised {
        let mut report = self.with(|inner| Supervised {
            processes: inner.processes.clone(),
            faults: inner.faults.iter().cloned().collect(),
            boot_ms: inner.boot_ms.clone(),
        });
        let own = Process { name: "init".into(), pid: std::process::id(), restarts: 0, resident_bytes: 0 };
        report.processes.insert(0, own);
        for process in report.processes.iter_mut().filter(|p| p.pid != 0) {
            process.resident_bytes = resident_bytes(process.pid);
        }
        report
    }

    /// Answers on the socket for ever.
    pub(super) async fn serve(self, path: &Path) -> std::io::Result<()> {
        let listener = UnixListener::bind(path)?;
        loop {
            let (mut stream, _) = listener.accept().await?;
            let board = self.clone();
            tokio::spawn(async move {
                let text = serde_json::to_vec(&board.report()).unwrap_or_default();
                // Whoever asked may have gone.
                let _ = stream.write_all(&text).await;
            });
        }
    }
}

/// Resident memory; 0 if the process is gone.
fn resident_bytes(pid: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kilobytes = line.trim().trim_end_matches("kB").trim().parse::<u64>();
    kilobytes.unwrap_or_default() * 1024
}
