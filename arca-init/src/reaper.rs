// SPDX-License-Identifier: Apache-2.0
//! The only place where exit statuses are taken.
//!
//! arca-init is a child subreaper: the processes of containers become its children when crun has ended, beside the
//! children that it starts itself. One task turns each SIGCHLD into statuses; nobody else may call wait.

use std::{
    collections::{HashMap, VecDeque},
    io,
    process::{Child, Command},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use nix::{errno::Errno, libc, sys::signal::kill, unistd::Pid};
use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
};

/// Statuses of processes that nobody has asked for yet: a container may end before crun has said its process id.
const EARLY: usize = 1024;

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// Exit code, or 128 + signal.
    pub(crate) code: i32,
    /// Signal that ended it, or 0.
    pub(crate) signal: i32,
}

/// Gives out exit statuses.
#[derive(Debug, Default)]
pub(crate) struct Reaper {
    table: Mutex<Table>,
}

#[derive(Debug, Default)]
struct Table {
    waiting: HashMap<i32, oneshot::Sender<Ended>>,
    early: VecDeque<(i32, Ended)>,
}

impl Reaper {
    /// Starts reaping. Call once, in the runtime, before the first child.
    ///
    /// # Errors
    /// The signal handler cannot be set.
    pub(crate) fn start() -> io::Result<Arc<Self>> {
        let reaper = Arc::new(Self::default());
        let mut children = signal(SignalKind::child())?;
        let task = Arc::clone(&reaper);
        tokio::spawn(async move {
            loop {
                // Signals merge: one may stand for many children, so each turn takes all that have ended.
                task.collect();
                if children.recv().await.is_none() {
                    return;
                }
            }
        });
        Ok(reaper)
    }

    /// Starts a child; its end arrives at the receiver.
    ///
    /// # Errors
    /// As [`Command::spawn`].
    pub(crate) fn spawn(&self, command: &mut Command) -> io::Result<(Child, oneshot::Receiver<Ended>)> {
        // Held over the spawn: the standard library waits itself for a child whose exec failed, and a child that ends
        // at once must find its entry.
        let mut table = self.lock();
        let child = command.spawn()?;
        let (sender, receiver) = oneshot::channel();
        // Process ids fit: pid_t is an i32.
        table.waiting.insert(child.id().cast_signed(), sender);
        Ok((child, receiver))
    }

    /// Starts a child and waits for its end.
    ///
    /// # Errors
    /// As [`Command::spawn`]; `Other` if the reaper is gone.
    pub(crate) async fn run(&self, command: &mut Command) -> io::Result<Ended> {
        let (_child, ended) = self.spawn(command)?;
        ended.await.map_err(|_| io::Error::other("the reaper is gone"))
    }

    /// The end of a process that was or will be reparented to us. One that has ended already is found as well.
    pub(crate) fn expect(&self, pid: u32) -> oneshot::Receiver<Ended> {
        let pid = pid.cast_signed();
        let (sender, receiver) = oneshot::channel();
        let mut table = self.lock();
        if let Some(index) = table.early.iter().position(|(early, _)| *early == pid) {
            let (_, ended) = table.early.remove(index).unwrap_or((pid, Ended { code: 255, signal: 0 }));
            // If such a process lives now, the status is that of an older one with the same id.
            if kill(Pid::from_raw(pid), None) == Err(Errno::ESRCH) {
                let _ = sender.send(ended);
                return receiver;
            }
        }
        table.waiting.insert(pid, sender);
        receiver
    }

    fn collect(&self) {
        let mut table = self.lock();
        loop {
            let mut status = 0;
            // SAFETY: waitpid writes one int, which is ours. (The typed wrapper cannot name real-time signals.)
            let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
            if pid <= 0 {
                match Errno::last() {
                    Errno::EINTR if pid < 0 => continue,
                    Errno::ECHILD => return,
                    error if pid < 0 => tracing::error!(%error, "cannot take exit statuses"),
                    _ => {}
                }
                return;
            }
            let signal = if libc::WIFSIGNALED(status) { libc::WTERMSIG(status) } else { 0 };
            let code = if signal == 0 { libc::WEXITSTATUS(status) } else { 128 + signal };
            table.ended(pid, Ended { code, signal });
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        // Every change is one insert or remove, so a panic elsewhere leaves the table whole.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn ended(&mut self, pid: i32, ended: Ended) {
        match self.waiting.remove(&pid) {
            Some(sender) => {
                // A receiver that was dropped did not care.
                let _ = sender.send(ended);
            }
            None => {
                self.early.push_back((pid, ended));
                if self.early.len() > EARLY {
                    self.early.pop_front();
                }
            }
        }
    }
}
