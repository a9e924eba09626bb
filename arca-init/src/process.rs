// SPDX-License-Identifier: Apache-2.0
//! One process of a workload: its streams, its end, its attached clients.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

use arca_proto::machine::v1::ExitStatus;
use nix::{errno::Errno, sys::signal::Signal, unistd::Pid};
use tokio::{
    sync::{Mutex as AsyncMutex, watch},
    task::{AbortHandle, JoinHandle},
};

use crate::{
    log::{Log, Source},
    output::{ClientOutput, Hub},
    reaper::Ended,
    streams::{self, Streams, Watched},
};

/// A workload's first process or one that was exec'd.
#[derive(Debug)]
pub(crate) struct Process {
    pub(crate) pid: u32,
    hub: Arc<Hub>,
    input: AsyncMutex<Input>,
    terminal: Option<Watched>,
    exited: watch::Sender<bool>,
    reported: watch::Sender<Option<ExitStatus>>,
    tasks: Mutex<Vec<AbortHandle>>,
}

#[derive(Debug)]
enum Input {
    /// /dev/null, or closed.
    None,
    Pipe(Watched),
    Terminal(Watched),
}

/// The tasks that carry a process's output.
pub(crate) type Pumps = Vec<JoinHandle<()>>;

impl Process {
    /// Takes over the streams of process `pid`. `hold`: leave its output in the pipe until somebody attaches.
    pub(crate) fn new(pid: u32, streams: Streams, stdin: bool, log: Option<Log>, hold: bool) -> (Arc<Self>, Pumps) {
        let exited = watch::Sender::new(false);
        let hub = Hub::new(log, exited.subscribe());
        let (input, terminal, outputs) = match streams {
            Streams::Pipes { input, output, error } => {
                let outputs = vec![(output, Source::Stdout), (error, Source::Stderr)];
                (input.map_or(Input::None, Input::Pipe), None, outputs)
            }
            Streams::Terminal(master) => {
                let input = if stdin { Input::Terminal(Arc::clone(&master)) } else { Input::None };
                (input, Some(Arc::clone(&master)), vec![(master, Source::Stdout)])
            }
        };
        let pumps: Pumps = outputs
            .into_iter()
            .map(|(fd, source)| {
                let (hub, exited, terminal) = (Arc::clone(&hub), exited.subscribe(), terminal.is_some());
                tokio::spawn(async move {
                    if hold {
                        hub.until_attached().await;
                    }
                    streams::pump(fd, source, terminal, hub, exited).await;
                })
            })
            .collect();
        let process = Self {
            pid,
            hub,
            input: AsyncMutex::new(input),
            terminal,
            exited,
            reported: watch::Sender::new(None),
            tasks: Mutex::new(pumps.iter().map(JoinHandle::abort_handle).collect()),
        };
        (Arc::new(process), pumps)
    }

    /// The process has ended: its pumps come to their end.
    pub(crate) fn set_exited(&self) {
        self.exited.send_replace(true);
    }

    /// Whether the process runs, as far as we know.
    pub(crate) fn running(&self) -> bool {
        !*self.exited.borrow()
    }

    /// All output is logged.
    pub(crate) fn finish_log(&self) {
        self.hub.finish_log();
    }

    /// Answers those who wait.
    pub(crate) fn report(&self, exit: ExitStatus) {
        self.reported.send_replace(Some(exit));
    }

    /// Ends the streams of those who are attached; all output was published.
    pub(crate) fn finish_output(&self, exit: ExitStatus) {
        self.hub.finish(exit);
    }

    /// Waits for the report of its end.
    pub(crate) async fn wait(&self) -> ExitStatus {
        let mut reported = self.reported.subscribe();
        // The sender is part of self.
        match reported.wait_for(Option::is_some).await.map(|exit| *exit) {
            Ok(Some(exit)) => exit,
            _ => std::future::pending().await,
        }
    }

    pub(crate) fn attach(&self, stdout: bool, stderr: bool) -> ClientOutput {
        self.hub.attach(stdout, stderr)
    }

    /// Gives `data` to standard input; input that nobody can read any more is dropped.
    pub(crate) async fn write_input(&self, data: &[u8]) {
        let mut input = self.input.lock().await;
        let fd = match &*input {
            Input::None => return,
            Input::Pipe(fd) | Input::Terminal(fd) => fd,
        };
        let mut exited = self.exited.subscribe();
        let written = tokio::select! {
            // The write may be cut off only when nobody is left to read it.
            written = streams::write_all(fd, data) => written,
            _ = exited.wait_for(|exited| *exited) => Err(io::ErrorKind::BrokenPipe.into()),
        };
        if let Err(error) = written {
            tracing::debug!(pid = self.pid, %error, "standard input ends");
            *input = Input::None;
        }
    }

    /// End of input. A terminal has none of its own: its user types it.
    pub(crate) async fn close_input(&self) {
        let mut input = self.input.lock().await;
        if matches!(*input, Input::Pipe(_)) {
            *input = Input::None;
        }
    }

    /// Sets the terminal's size; `None` without a terminal.
    pub(crate) fn resize(&self, rows: u32, columns: u32) -> Option<io::Result<()>> {
        self.terminal.as_ref().map(|terminal| streams::resize(terminal, rows, columns))
    }

    /// Sends a signal; `false` if it has ended.
    pub(crate) fn signal(&self, signal: i32) -> Result<bool, Errno> {
        // Not reaped before `exited` is set, so the id is still this process.
        if !self.running() {
            return Ok(false);
        }
        match send_signal(self.pid, signal) {
            Err(Errno::ESRCH) => Ok(false),
            other => other.map(|()| true),
        }
    }

    /// Adds a task that ends with [`Process::abandon`].
    pub(crate) fn own(&self, task: AbortHandle) {
        self.tasks.lock().unwrap_or_else(PoisonError::into_inner).push(task);
    }

    /// Lets go of output that nobody will read.
    pub(crate) fn abandon(&self) {
        for task in self.tasks.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            task.abort();
        }
    }
}

/// kill(2) with any signal number, real-time ones included.
pub(crate) fn send_signal(pid: u32, signal: i32) -> Result<(), Errno> {
    if let Ok(signal) = Signal::try_from(signal) {
        return nix::sys::signal::kill(Pid::from_raw(pid.cast_signed()), signal);
    }
    // SAFETY: kill takes two numbers. (The typed wrapper cannot name real-time signals.)
    Errno::result(unsafe { nix::libc::kill(pid.cast_signed(), signal) }).map(drop)
}

/// The exit status of a process that ended now.
pub(crate) fn status(ended: Ended, oom_killed: bool) -> ExitStatus {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let finished_at_ns = i64::try_from(now.as_nanos()).unwrap_or(i64::MAX);
    ExitStatus { code: ended.code, signal: ended.signal, oom_killed, finished_at_ns }
}
