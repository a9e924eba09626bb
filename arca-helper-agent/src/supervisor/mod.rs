// SPDX-License-Identifier: Apache-2.0
//! The `init` process: first process of the helper machine, parent of OVS, OVN and the agent.
//!
//! ```text
//!   mounts ─> database files ─> 3x ovsdb-server ─> first rows ─┬─> ovs-vswitchd ─> br-int ─> ovn-controller
//!                                                              ├─> ovn-northd
//!                                                              └─> agent ─> READY
//! ```
//!
//! Each program restarts by itself, with a delay of its own: none is restarted because of another. All waiting is
//! for events: sockets appear (inotify), children end (SIGCHLD). SIGTERM ends them in the reverse order.

mod boot;
mod child;
mod mounts;
mod programs;
mod report;

use std::time::{Duration, Instant};

use anyhow::Context as _;
use arca_proto::listen::ListenOn;
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;

use crate::layout::Layout;
use crate::ovsdb::Database;
use crate::status::Process;
use crate::vswitch::{self, Datapath};
use boot::Stage;
use child::Child;
use report::Board;

/// How long a program may take to end before it is killed.
const GRACE: Duration = Duration::from_secs(2);

/// An ovn-controller has taken its grace by then.
const RESTARTED: Duration = Duration::from_secs(5);

/// How the machine is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where the agent's ports are.
    pub listen: ListenOn,
    /// Log level word or filter.
    pub log_level: String,
    /// Files and sockets of the machine.
    pub layout: Layout,
}

/// Boots the machine and keeps it running until SIGTERM or SIGINT.
///
/// # Errors
/// Not the first process of its pid namespace; something of the boot failed.
pub async fn run(options: Options) -> anyhow::Result<()> {
    anyhow::ensure!(
        std::process::id() == 1,
        "init must be the first process of a machine (a pid namespace of its own); `agent` is the part for elsewhere"
    );
    let board = Board::new();
    let Options { listen, log_level, layout } = options;
    mounts::prepare(&layout)?;
    let mut ended = signal(SignalKind::child()).context("watch children")?;
    let mut terminate = signal(SignalKind::terminate()).context("watch SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("watch SIGINT")?;
    let status = board.clone();
    let socket = layout.supervisor_socket();
    tokio::spawn(async move {
        if let Err(error) = status.serve(&socket).await {
            tracing::error!(%error, "nobody can ask what runs here");
        }
    });
    boot::loopback_up().await?;
    boot::create_databases(&layout)?;
    board.mark("database files");

    let (restart, mut due) = mpsc::unbounded_channel();
    let mut machine = Machine { children: Vec::new(), restart, board: board.clone(), conf: None };
    for program in programs::databases(&layout) {
        machine.add(program);
    }
    let datapath = Datapath::detect();
    let (go, mut went) = mpsc::unbounded_channel();
    let boot = boot::first_rows(layout.clone(), datapath, board.clone(), go);
    let mut boot = std::pin::pin!(boot);
    let mut booted = false;
    loop {
        tokio::select! {
            // Cancel-safe: signals coalesce, and each time every ended child is collected.
            _ = ended.recv() => machine.reap(&listen, &log_level),
            // Cancel-safe: a message is received or not.
            Some(index) = due.recv() => machine.start(index),
            // Polled to its end, never dropped before.
            result = &mut boot, if !booted => {
                booted = true;
                machine.conf = Some(result.context("first rows of the switch")?);
            }
            // Cancel-safe: a message is received or not.
            Some(stage) = went.recv() => match stage {
                Stage::Databases => {
                    for program in programs::daemons(&layout, datapath) {
                        machine.add(program);
                    }
                    machine.add(programs::agent(&listen, &log_level, true));
                    board.mark("programs started");
                }
                Stage::Bridges => machine.add(programs::controller(&layout)),
            },
            // Cancel-safe: the signal stays pending.
            _ = terminate.recv() => break,
            // Cancel-safe: as above.
            _ = interrupt.recv() => break,
        }
    }
    tracing::info!("ending the machine");
    machine.stop(&mut ended).await;
    Ok(())
}

struct Machine {
    children: Vec<Child>,
    restart: mpsc::UnboundedSender<usize>,
    board: Board,
    /// The switch's database, once the bridges stand.
    conf: Option<Database>,
}

impl Machine {
    fn add(&mut self, program: programs::Program) {
        self.children.push(Child::new(program));
        self.start(self.children.len() - 1);
    }

    fn start(&mut self, index: usize) {
        let Some(child) = self.children.get_mut(index) else { return };
        let name = child.program.name;
        match child.start() {
            Ok(log) => {
                if let Some(log) = log {
                    tokio::spawn(read_log(name, log, self.board.clone()));
                }
            }
            Err(error) => {
                let delay = child.ended(Instant::now());
                tracing::error!(program = name, path = child.program.path, %error, "cannot be started");
                self.later(index, delay);
            }
        }
        self.publish();
    }

    /// Collects every ended child, foreign orphans included: the first process inherits those.
    fn reap(&mut self, listen: &ListenOn, log_level: &str) {
        while let Some((pid, how)) = ended_child() {
            let found = self.children.iter().position(|child| child.pid == Some(pid));
            let Some((index, child)) = found.and_then(|i| Some((i, self.children.get_mut(i)?))) else { continue };
            let delay = child.ended(Instant::now());
            tracing::warn!(program = child.program.name, pid, how, ?delay, "has ended, starting it again");
            if child.program.path == "/proc/self/exe" {
                child.program = programs::agent(listen, log_level, false);
            }
            self.later(index, delay);
        }
        self.publish();
    }

    fn later(&self, index: usize, delay: Duration) {
        let restart = self.restart.clone();
        let controller = self.children.get(index).is_some_and(|child| child.program.name == programs::CONTROLLER);
        let conf = self.conf.clone().filter(|_| controller);
        tokio::spawn(async move {
            if let Some(conf) = &conf {
                give_grace(conf, true).await;
            }
            tokio::time::sleep(delay).await;
            // The receiver lives as long as the machine.
            let _ = restart.send(index);
            if let Some(conf) = &conf {
                tokio::time::sleep(RESTARTED).await;
                give_grace(conf, false).await;
            }
        });
    }

    fn publish(&self) {
        let process = |child: &Child| Process {
            name: child.program.name.into(),
            pid: child.pid.unwrap_or(0),
            restarts: child.starts.saturating_sub(1),
            resident_bytes: 0,
        };
        self.board.processes(self.children.iter().map(process).collect());
    }

    /// Ends the programs, last started first, each with a grace of its own.
    async fn stop(&mut self, ended: &mut tokio::signal::unix::Signal) {
        for child in self.children.iter().rev() {
            let Some(pid) = child.pid else { continue };
            send(pid, Signal::SIGTERM);
            let deadline = tokio::time::sleep(GRACE);
            tokio::pin!(deadline);
            let mut killed = false;
            // Signal 0 finds a zombie too, so ended children are collected first.
            while !collected(pid) {
                tokio::select! {
                    // Cancel-safe: signals coalesce; `collected` looks at the process itself.
                    _ = ended.recv() => {}
                    // Cancel-safe: a timer.
                    () = &mut deadline, if !killed => {
                        tracing::warn!(program = child.program.name, pid, "does not end, killing it");
                        send(pid, Signal::SIGKILL);
                        killed = true;
                    }
                }
            }
        }
    }
}

/// Without it the restart is only rougher on traffic, so failures are logged.
async fn give_grace(conf: &Database, grace: bool) {
    let change = conf.transact(vec![vswitch::grace_for_restart(grace)]);
    match tokio::time::timeout(GRACE, change).await {
        Ok(Ok(_)) => {}
        Ok(Err(error)) => tracing::warn!(%error, grace, "ovn-controller's grace is not set"),
        Err(_) => tracing::warn!(grace, "ovn-controller's grace is not set: the switch's database does not answer"),
    }
}

/// The next ended child, and how it ended.
fn ended_child() -> Option<(u32, String)> {
    loop {
        return match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, code)) => Some((pid.as_raw().unsigned_abs(), format!("exit code {code}"))),
            Ok(WaitStatus::Signaled(pid, signal, _)) => Some((pid.as_raw().unsigned_abs(), signal.to_string())),
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => None,
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => {
                tracing::error!(%error, "cannot wait for children");
                None
            }
        };
    }
}

fn collected(pid: u32) -> bool {
    while ended_child().is_some() {}
    i32::try_from(pid).is_ok_and(|pid| kill(Pid::from_raw(pid), None).is_err())
}

fn send(pid: u32, signal: Signal) {
    if let Ok(pid) = i32::try_from(pid) {
        // It may have ended meanwhile.
        let _ = kill(Pid::from_raw(pid), signal);
    }
}

/// Passes a program's log on and keeps the lines that tell of faults. Ends with the program.
async fn read_log(program: &'static str, log: std::os::fd::OwnedFd, board: Board) {
    let log = match tokio::net::unix::pipe::Receiver::from_owned_fd(log) {
        Ok(log) => log,
        Err(error) => return tracing::error!(program, %error, "its log cannot be read"),
    };
    let mut lines = BufReader::new(log).split(b'\n');
    while let Ok(Some(line)) = lines.next_segment().await {
        let line = String::from_utf8_lossy(&line);
        if programs::is_fault(&line) {
            board.fault(program, &line);
        }
        tracing::info!(program, "{line}");
    }
}
