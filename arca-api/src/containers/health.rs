// SPDX-License-Identifier: Apache-2.0
//! Health checks: one task per container that has a check, while it runs unfrozen.
//!
//! ```text
//!  start, adoption ──> starting ──success──> healthy <──success── unhealthy
//!                         │                     └──failures──────────^  ^
//!                         └──failures after the start period────────────┘
//!  stop, pause ──> unhealthy, and nobody checks; unpause: somebody checks again
//! ```
//!
//! A check is an exec with its events. Its result lives in the record, but is not worth a write of its own: after a
//! restart of arca-api a running container begins anew, as in Docker.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arca_proto::init::v1::{self as init, attach_output};
use tokio::sync::watch;

use crate::{
    containers::{
        Container, Record, Status,
        attach::Session,
        exec::{self, Exec, ExecConfig},
        signals,
    },
    docker::{
        health::{Health, HealthConfig, HealthResult, HealthStatus},
        time::{go_duration_text, now},
    },
    engine::Engine,
    http::ApiResult,
};

/// Docker's defaults.
const INTERVAL: Duration = Duration::from_secs(30);
const START_INTERVAL: Duration = Duration::from_secs(5);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Bytes of output that are kept.
const OUTPUT: usize = 4096;
/// A killed check is gone within this, or is left to the container's end.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Stops the checks of a container when it is emptied.
#[derive(Debug, Default)]
pub struct Monitor(Mutex<Option<watch::Sender<()>>>);

impl Monitor {
    fn set(&self, stop: Option<watch::Sender<()>>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = stop;
    }
}

/// What the container's check runs.
fn command(record: &Record) -> Option<Vec<String>> {
    record.config.healthcheck.as_ref()?.command(record.config.shell.as_deref())
}

/// A container begins to run: what its last run's checks said stays in the log only.
pub fn begin(record: &mut Record) {
    if command(record).is_some() {
        let health = record.state.health.get_or_insert_default();
        health.status = HealthStatus::Starting;
        health.failing_streak = 0;
    }
}

/// Nobody checks from now on, which Docker calls unhealthy. The caller holds `ops` and stores the record.
pub fn end(record: &mut Record) {
    if let Some(health) = &mut record.state.health {
        health.status = HealthStatus::Unhealthy;
    }
}

/// Lets the checks run, if the container has any and runs unfrozen. The caller holds `ops`, or nobody else can.
pub fn open(engine: &Arc<Engine>, container: &Arc<Container>) {
    let wanted = container.with(|record| {
        let config = record.config.healthcheck.clone().filter(|_| record.state.status == Status::Running);
        config.zip(command(record)).map(|(config, command)| (config, command, record.state.started_at))
    });
    let Some((config, command, started_at)) = wanted else { return };
    let (stop, stopped) = watch::channel(());
    container.monitor.set(Some(stop));
    let checks = Checks { engine: engine.clone(), container: container.clone(), config, command, started_at };
    tokio::spawn(checks.run(stopped));
}

/// Stops the checks; one that runs is killed and its result is nobody's.
pub fn close(container: &Container) {
    container.monitor.set(None);
}

/// A configured duration, or what holds without one.
fn or_default(nanoseconds: i64, default: Duration) -> Duration {
    match u64::try_from(nanoseconds) {
        Ok(set) if set > 0 => Duration::from_nanos(set),
        _ => default,
    }
}

struct Checks {
    engine: Arc<Engine>,
    container: Arc<Container>,
    config: HealthConfig,
    command: Vec<String>,
    started_at: i64,
}

impl Checks {
    /// Checks until `stopped`, whose sender is dropped then.
    async fn run(self, mut stopped: watch::Receiver<()>) {
        loop {
            tokio::select! {
                // Neither is asked again after it answered.
                () = tokio::time::sleep(self.interval()) => {}
                _ = stopped.changed() => return,
            }
            let start = now();
            let (exit_code, output) = match self.check(stopped.clone()).await {
                Ok(Some(result)) => result,
                Ok(None) => return,
                Err(error) => (-1, error.message),
            };
            self.note(HealthResult { start, end: now(), exit_code, output }, &stopped).await;
        }
    }

    /// Until the next check.
    fn interval(&self) -> Duration {
        let starting = || {
            self.container
                .with(|record| record.state.health.as_ref().is_some_and(|known| known.status == HealthStatus::Starting))
        };
        if now() - self.started_at < self.config.start_period && starting() {
            or_default(self.config.start_interval, START_INTERVAL)
        } else {
            or_default(self.config.interval, INTERVAL)
        }
    }

    /// Runs the check once: exit code and output, or `None` if it was stopped.
    async fn check(&self, mut stopped: watch::Receiver<()>) -> ApiResult<Option<(i64, String)>> {
        let (engine, container) = (&self.engine, &self.container);
        let config = ExecConfig {
            attach_stdout: true,
            attach_stderr: true,
            cmd: Some(self.command.clone()),
            ..ExecConfig::default()
        };
        let exec = exec::create(engine, container, &container.id, config)?;
        let live = exec::claim(&exec)?;
        let mut session = exec::start(engine, &exec, &live).await?;
        let mut output = Output::default();
        let timeout = or_default(self.config.timeout, TIMEOUT);
        let late = tokio::select! {
            // The reading may go on after it was left here: no message is half taken.
            code = read(&mut session, &mut output) => {
                exec::end(engine, &exec, code);
                return Ok(Some((i64::from(code), output.text())));
            }
            () = tokio::time::sleep(timeout) => true,
            _ = stopped.changed() => false,
        };
        kill(&exec).await;
        // No check begins before the last one has ended.
        let _ = tokio::time::timeout(KILL_PATIENCE, read(&mut session, &mut output)).await;
        exec::end(engine, &exec, 137);
        let text = format!("Health check exceeded timeout ({})", go_duration_text(nanoseconds(timeout)));
        let said = output.text();
        let text = if said.is_empty() { text } else { format!("{text}: {said}") };
        Ok(late.then_some((-1, text)))
    }

    async fn note(&self, result: HealthResult, stopped: &watch::Receiver<()>) {
        let op = self.container.ops.lock().await;
        if stopped.has_changed().is_err() {
            return;
        }
        let since_start = result.start - self.started_at;
        let (mut before, mut after) = (HealthStatus::default(), HealthStatus::default());
        self.container.update_unsaved(|record| {
            let health = record.state.health.get_or_insert_with(Health::default);
            before = health.status;
            health.note(&self.config, result, since_start);
            after = health.status;
        });
        drop(op);
        if before != after {
            self.container.emit(&self.engine, format!("health_status: {}", after.word()), &[]);
        }
    }
}

fn nanoseconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

async fn kill(exec: &Exec) {
    let Some(live) = exec.container.live() else { return };
    let process = Some(init::ProcessRef { workload_id: exec.container.id.clone(), exec_id: exec.id.clone() });
    let request = init::SignalRequest { process, signal: signals::KILL, all: false };
    if let Err(status) = live.init.clone().signal(request).await {
        tracing::debug!(container_id = exec.container.id, error = status.message(), "end of a health check");
    }
}

/// Collects what the check says until it ends.
async fn read(session: &mut Session, output: &mut Output) -> i32 {
    loop {
        match session.output.message().await.ok().flatten().and_then(|message| message.kind) {
            Some(attach_output::Kind::Stdout(bytes) | attach_output::Kind::Stderr(bytes)) => output.add(&bytes),
            Some(attach_output::Kind::Exit(exit)) => return exit.code,
            Some(attach_output::Kind::Attached(_)) => {}
            // The container's end took it along.
            None => return 137,
        }
    }
}

/// The beginning of what a check says.
#[derive(Debug, Default)]
struct Output {
    kept: Vec<u8>,
    cut: bool,
}

impl Output {
    fn add(&mut self, bytes: &[u8]) {
        let room = OUTPUT - self.kept.len();
        self.cut |= bytes.len() > room;
        self.kept.extend(bytes.iter().take(room));
    }

    fn text(&self) -> String {
        let text = String::from_utf8_lossy(&self.kept).into_owned();
        if self.cut { text + "..." } else { text }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_is_cut() {
        let mut output = Output::default();
        output.add(&[b'a'; 4000]);
        output.add(&[b'b'; 96]);
        assert_eq!((output.text().len(), output.cut), (4096, false));
        output.add(b"c");
        output.add(b"d");
        let text = output.text();
        assert!(text.ends_with("b...") && text.len() == 4099);
    }

    #[test]
    fn durations_have_defaults() {
        assert_eq!(or_default(0, INTERVAL), INTERVAL);
        assert_eq!(or_default(-5, INTERVAL), INTERVAL);
        assert_eq!(or_default(7, INTERVAL), Duration::from_nanos(7));
    }

    #[test]
    fn only_a_container_with_a_check_has_a_health() {
        let mut record = Record::default();
        begin(&mut record);
        end(&mut record);
        assert_eq!(record.state.health, None);
        record.config.healthcheck = Some(HealthConfig { test: vec!["NONE".into()], ..HealthConfig::default() });
        begin(&mut record);
        assert_eq!(record.state.health, None);
        record.config.healthcheck =
            Some(HealthConfig { test: vec!["CMD".into(), "true".into()], ..HealthConfig::default() });
        begin(&mut record);
        assert_eq!(record.state.health.as_ref().map(|health| health.status), Some(HealthStatus::Starting));
        end(&mut record);
        assert_eq!(record.state.health.map(|health| health.status), Some(HealthStatus::Unhealthy));
    }
}
