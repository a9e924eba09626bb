// SPDX-License-Identifier: Apache-2.0
//! `arca daemon run`: starts the host daemons, restarts each that dies, ends them on SIGTERM.
//!
//! Each daemon has a task of its own; none is restarted because of another. Readiness is told over sd_notify, one
//! datagram socket per daemon. Each stops when the one above it has ended: arca-api, arca-netd, arca-relayd. A start that
//! fails leaves what it found: a helper machine that it booted goes again. Daemons ask the kernel for SIGTERM when this process dies, so `kill -9` here leaves no
//! strays (containers and the helper machine are sessions of their own and go on, as after `arca daemon stop`).

use std::{
    fs::{self, OpenOptions},
    io::IsTerminal as _,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arca_daemon::{
    config::{CommonArgs, Config},
    exit::{Failure, Fatal},
    shutdown::Shutdown,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    net::UnixDatagram,
    process::{Child, Command},
    signal::unix::{Signal as Hangups, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinSet,
};

use super::{DAEMONS, lock, preflight};
use crate::cli::print;

/// A daemon that lived this long starts again without delay.
const HEALTHY: Duration = Duration::from_secs(1);
/// Traffic waits for arca-relayd: even one that was killed over and over is back within this.
const LONGEST_DELAY: Duration = Duration::from_secs(1);
/// Between SIGTERM and SIGKILL.
const GRACE: Duration = Duration::from_secs(10);

/// What a daemon's task tells the supervisor.
enum Report {
    Ready,
    /// It ended before it was ever ready.
    Failed(Fatal),
}

/// Runs the engine until SIGTERM or SIGINT.
pub(super) async fn run(config: &Config, common: &CommonArgs) -> anyhow::Result<()> {
    preflight::check(config)?;
    let _lock = lock::take(config)?;
    for directory in [&config.paths.run, &config.paths.log] {
        fs::create_dir_all(directory).with_context(|| format!("create {}", directory.display()))?;
    }
    let (trigger, shutdown) = Shutdown::on_signals()?;
    // On a terminal the signal means that the terminal has gone, and the engine goes with it.
    if !std::io::stderr().is_terminal() {
        common.reload_on_hangup(config)?;
    }
    let found_machines = super::control::machines_left(config);
    let (reports, mut reported) = mpsc::channel(DAEMONS.len());
    let mut tasks = JoinSet::new();
    let started = Instant::now();
    // From the last to the first: each learns of the end of the one that stops before it.
    let mut above = None;
    let mut daemons = Vec::new();
    for name in DAEMONS.into_iter().rev() {
        let (gone, ended) = oneshot::channel();
        daemons.push(Daemon::new(name, config, above.replace(ended), gone)?);
    }
    for daemon in daemons.into_iter().rev() {
        tasks.spawn(daemon.keep(shutdown.clone(), reports.clone()));
    }
    drop(reports);

    let mut waiting = DAEMONS.len();
    let mut failure = None;
    while waiting > 0 && !shutdown.fired() {
        tokio::select! {
            // Cancel-safe: a report not received stays in the channel.
            report = reported.recv() => match report {
                Some(Report::Ready) => waiting -= 1,
                Some(Report::Failed(fatal)) => { failure = Some(fatal); break; }
                None => break,
            },
            () = shutdown.wait() => {}
        }
    }
    if let Some(fatal) = failure {
        trigger.fire();
        while tasks.join_next().await.is_some() {}
        if !found_machines && super::control::machines_left(config) {
            end_helper(config).await;
        }
        return Err(fatal.into());
    }
    if waiting == 0 {
        tracing::info!(milliseconds = started.elapsed().as_millis(), "the engine is up");
        print(&format!("DOCKER_HOST=unix://{}", config.paths.docker_socket.display()));
    }
    while tasks.join_next().await.is_some() {}
    Ok(())
}

/// Ends a helper machine that outlived its arca-netd; a failure is logged, for the one that led here is the one to tell.
async fn end_helper(config: &Config) {
    let ended = async {
        let program = std::env::current_exe()?.with_file_name("arca-netd");
        let flags = flags(config);
        Command::new(program).arg("stop-helper").args(flags).stdin(Stdio::null()).status().await
    };
    match ended.await {
        Ok(status) if status.success() => {}
        Ok(status) => tracing::warn!(%status, "the helper machine of a failed start was not ended"),
        Err(error) => tracing::warn!(%error, "the helper machine of a failed start was not ended"),
    }
}

/// The `-c KEY=VALUE` flags that this process was given, for the programs it starts.
fn flags(config: &Config) -> Vec<String> {
    let flags = config.effective.iter().filter(|(_, (_, source))| *source == arca_daemon::config::Source::Flag);
    flags.flat_map(|(key, (value, _))| ["-c".to_owned(), format!("{key}={value}")]).collect()
}

struct Daemon {
    name: &'static str,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    notify: UnixDatagram,
    notify_path: PathBuf,
    /// SIGHUP of this process, passed on; none on a terminal.
    hangups: Option<Hangups>,
    /// Resolves when the daemon that uses this one has ended; this one stops after it.
    above: Option<oneshot::Receiver<()>>,
    /// Dropped at this one's end, which tells the one below.
    _gone: oneshot::Sender<()>,
}

impl Daemon {
    fn new(
        name: &'static str,
        config: &Config,
        above: Option<oneshot::Receiver<()>>,
        gone: oneshot::Sender<()>,
    ) -> anyhow::Result<Self> {
        let program = std::env::current_exe()?.with_file_name(name);
        if !program.is_file() {
            return Err(Fatal::new(
                Failure::Missing,
                format!("{} is missing: build it with `./dev build`", program.display()),
            )
            .into());
        }
        let notify_path = config.paths.run.join(format!("{name}.notify"));
        let (_guard, short) = arca_proto::dial::with_short_path(&notify_path)?;
        match fs::remove_file(&short) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
            _ => {}
        }
        let notify = UnixDatagram::bind(&short).with_context(|| format!("bind {}", notify_path.display()))?;
        let mut arguments = vec!["serve".to_owned()];
        arguments.extend(flags(config));
        let log = config.paths.log.join(format!("{name}.log"));
        let hangups = match std::io::stderr().is_terminal() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        Ok(Self { name, program, arguments, log, notify, notify_path, hangups, above, _gone: gone })
    }

    /// Keeps the daemon running until shutdown.
    async fn keep(mut self, shutdown: Shutdown, reports: mpsc::Sender<Report>) {
        let mut ever_ready = false;
        let mut delay = Duration::ZERO;
        while !shutdown.fired() {
            let began = Instant::now();
            let mut child = match self.spawn() {
                Ok(child) => child,
                Err(error) => {
                    let text = format!("start {}: {error}", self.program.display());
                    let _ = reports.send(Report::Failed(Fatal::new(Failure::General, text))).await;
                    return;
                }
            };
            let mut ready = false;
            let status = loop {
                let mut buffer = [0; 256];
                tokio::select! {
                    // All are cancel-safe: wait and recv lose nothing when dropped, shutdown is a flag.
                    status = child.wait() => break status,
                    received = self.notify.recv(&mut buffer) => {
                        ready |= received.is_ok_and(|length| buffer[..length].starts_with(b"READY=1"));
                        if ready && !std::mem::replace(&mut ever_ready, ready) {
                            let _ = reports.send(Report::Ready).await;
                        }
                    }
                    // A daemon that is not ready yet may not expect it, and reads the configuration anyway.
                    Some(()) = hangup(&mut self.hangups) => {
                        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()).filter(|_| ready) {
                            let _ = kill(Pid::from_raw(pid), Signal::SIGHUP);
                        }
                    }
                    () = shutdown.wait() => break self.stop(&mut child).await,
                }
            };
            if shutdown.fired() {
                break;
            }
            let code = status.as_ref().ok().and_then(ExitStatus::code).and_then(|code| u8::try_from(code).ok());
            let status = status.map_or_else(|error| error.to_string(), describe);
            if !ever_ready {
                let failure = Failure::from_code(code.unwrap_or(1));
                let _ = reports.send(Report::Failed(self.failure(failure, &status))).await;
                return;
            }
            delay =
                if began.elapsed() > HEALTHY { Duration::ZERO } else { (delay * 2).clamp(FIRST_DELAY, LONGEST_DELAY) };
            tracing::warn!(daemon = self.name, %status, delay_ms = delay.as_millis(), "ended unexpectedly; starting it again");
            tokio::select! {
                // Both are plain waits.
                () = tokio::time::sleep(delay) => {}
                () = shutdown.wait() => {}
            }
        }
        let _ = fs::remove_file(&self.notify_path);
    }

    fn spawn(&self) -> std::io::Result<Child> {
        let log = OpenOptions::new().create(true).append(true).open(&self.log)?;
        let mut command = Command::new(&self.program);
        command
            .args(&self.arguments)
            .env("NOTIFY_SOCKET", &self.notify_path)
            .stdin(Stdio::null())
            .stdout(Stdio::from(log.try_clone()?))
            .stderr(Stdio::from(log))
            .kill_on_drop(true);
        crate::cli::platform::die_with_parent(&mut command);
        command.spawn()
    }

    async fn stop(&mut self, child: &mut Child) -> std::io::Result<ExitStatus> {
        if let Some(above) = self.above.take() {
            // Its sender is only ever dropped.
            let _ = above.await;
        }
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGTERM);
        }
        match tokio::time::timeout(GRACE, child.wait()).await {
            Ok(status) => status,
            Err(_) => {
                tracing::warn!(daemon = self.name, "did not end in ten seconds; killed");
                child.kill().await?;
                child.wait().await
            }
        }
    }

    /// A daemon that never came up: its last log line is the reason, its exit code ours.
    fn failure(&self, failure: Failure, status: &str) -> Fatal {
        let text = fs::read_to_string(&self.log).unwrap_or_default();
        let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("(empty log)");
        Fatal::new(failure, format!("{} {status}: {last} (log: {})", self.name, self.log.display()))
    }
}

async fn hangup(hangups: &mut Option<Hangups>) -> Option<()> {
    match hangups {
        Some(hangups) => hangups.recv().await,
        None => std::future::pending().await,
    }
}

const FIRST_DELAY: Duration = Duration::from_millis(10);

fn describe(status: ExitStatus) -> String {
    use std::os::unix::process::ExitStatusExt as _;
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with code {code}"),
        (None, signal) => format!("was killed by signal {}", signal.unwrap_or(0)),
    }
}

/// Where a daemon's log lies.
pub(super) fn log_path(config: &Config, name: &str) -> PathBuf {
    Path::new(&config.paths.log).join(format!("{name}.log"))
}
