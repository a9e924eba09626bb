// SPDX-License-Identifier: Apache-2.0
//! One supervised program: when it may start again, and its log.
//!
//! ```text
//!   waiting ──start──> running ──end──> waiting (10 ms, 20 ms, ... its patience; forgotten after 10 s of running)
//! ```

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use super::programs::{Program, RESTART_MIN, SETTLED};

/// A program and what became of its starts.
#[derive(Debug)]
pub(super) struct Child {
    pub(super) program: Program,
    /// Process id while it runs.
    pub(super) pid: Option<u32>,
    /// Starts so far.
    pub(super) starts: u64,
    started: Instant,
    delay: Duration,
}

impl Child {
    pub(super) fn new(program: Program) -> Self {
        Self { program, pid: None, starts: 0, started: Instant::now(), delay: RESTART_MIN }
    }

    /// Starts the program; gives the reading end of its standard error if that is captured. The process is waited for
    /// by the supervisor's one reaper, so the standard library's handle is dropped.
    pub(super) fn start(&mut self) -> io::Result<Option<OwnedFd>> {
        let mut command = Command::new(self.program.path);
        // What ps shows: a path such as /proc/self/exe says nothing there.
        command.arg0(if self.program.path.starts_with("/proc/") { self.program.name } else { self.program.path });
        command.args(&self.program.arguments).env_clear().env("PATH", "/usr/sbin:/usr/bin");
        // Logs that nobody colours stay so (https://no-color.org).
        command.envs(std::env::var_os("NO_COLOR").map(|value| ("NO_COLOR", value)));
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command.stderr(if self.program.captured { Stdio::piped() } else { Stdio::inherit() });
        self.started = Instant::now();
        self.starts += 1;
        let mut process = command.spawn()?;
        self.pid = Some(process.id());
        Ok(process.stderr.take().map(Into::into))
    }

    /// It has ended, or could not start: how long to wait before the next start.
    pub(super) fn ended(&mut self, now: Instant) -> Duration {
        self.pid = None;
        if now.duration_since(self.started) >= SETTLED {
            self.delay = RESTART_MIN;
        }
        let delay = self.delay;
        self.delay = (delay * 2).min(self.program.patience);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn early_ends_make_it_wait_longer_up_to_its_patience_and_are_forgotten() {
        let program = Program {
            name: "x",
            path: "/x",
            arguments: Vec::new(),
            patience: Duration::from_millis(100),
            captured: false,
        };
        let mut child = Child::new(program);
        let start = child.started;
        let delays: Vec<_> = (0..6).map(|_| child.ended(start).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 80, 100, 100]);
        assert_eq!(child.ended(start + SETTLED).as_millis(), 10);
    }
}
