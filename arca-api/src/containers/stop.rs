// SPDX-License-Identifier: Apache-2.0
//! Verbs on a running container: stop, kill, restart, pause, unpause; rename and wait besides.

use std::{sync::Arc, time::Duration};

use arca_proto::{init::v1 as init, netd::v1 as netd};
use tokio::sync::watch;

use crate::{
    containers::{Container, Phase, Status, health, names, native, signals, start},
    engine::Engine,
    http::{ApiError, ApiResult},
    machines::Live,
};

/// Seconds between the stop signal and SIGKILL, when nobody says otherwise.
const STOP_SECONDS: i64 = 10;
/// A killed process is gone within this, or something is wrong with the machine and it is ended.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

async fn signal(container: &Container, live: &Live, number: i32) -> Result<(), tonic::Status> {
    let process = Some(init::ProcessRef { workload_id: container.id.clone(), exec_id: String::new() });
    live.init.clone().signal(init::SignalRequest { process, signal: number, all: false }).await.map(|_| ())
}

/// Waits until the process that runs now has ended.
async fn ended(mut phase: watch::Receiver<Phase>) {
    // An error means that the container itself is gone, which is ended too.
    let _ = phase.wait_for(|phase| !phase.running).await;
}

/// `docker stop`: the stop signal, then SIGKILL. `false`: it was not running (304).
///
/// # Errors
/// 400 for an invalid signal; 500 if the machine does not answer.
pub async fn stop(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal_name: &str,
    seconds: Option<i64>,
) -> ApiResult<bool> {
    let (status, configured, patience) = container.with(|record| {
        (record.state.status, record.config.stop_signal.clone(), seconds.or(record.config.stop_timeout))
    });
    let name = [signal_name, configured.as_str()].into_iter().find(|name| !name.is_empty());
    let number = name.map_or(Ok(signals::TERM), signals::parse)?;
    if status == Status::Restarting {
        let _op = container.turn().await?;
        container
            .update(engine, |record| {
                record.state.status = Status::Exited;
                record.state.stopped_by_user = true;
            })
            .await?;
        return Ok(true);
    }
    let Ok(live) = container.running() else { return Ok(false) };
    let phase = container.phase.subscribe();
    mark_stopped(engine, container).await?;
    if container.with(|record| record.state.status) == Status::Paused {
        // A frozen process takes no signal but SIGKILL.
        thaw(engine, container).await?;
    }
    let sent = signal(container, &live, number).await;
    container.emit(engine, "kill", &[("signal", number.to_string())]);
    if let Err(status) = sent {
        tracing::debug!(container_id = container.id, error = status.message(), "stop signal");
    }
    let patience = patience.unwrap_or(STOP_SECONDS);
    let in_time = match u64::try_from(patience) {
        Ok(seconds) => tokio::time::timeout(Duration::from_secs(seconds), ended(phase.clone())).await.is_ok(),
        // A negative time is for ever.
        Err(_) => {
            ended(phase.clone()).await;
            true
        }
    };
    if !in_time {
        container.emit(engine, "kill", &[("signal", signals::KILL.to_string())]);
        force(container, &live, phase).await;
    }
    container.emit(engine, "stop", &[]);
    Ok(true)
}

async fn mark_stopped(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let _op = container.turn().await?;
    if container.with(|record| record.host.restart_policy.name == "no") {
        // Nobody will ask; this saves a write to the disk.
        return Ok(());
    }
    container.update(engine, |record| record.state.stopped_by_user = true).await
}

/// SIGKILL, and if that is not enough the end of the machine.
async fn force(container: &Container, live: &Live, phase: watch::Receiver<Phase>) {
    let sent = signal(container, live, signals::KILL).await;
    let answered = sent.is_ok() && tokio::time::timeout(KILL_PATIENCE, ended(phase.clone())).await.is_ok();
    if !answered {
        if let Err(text) = live.machine.destroy(Duration::ZERO).await {
            tracing::warn!(container_id = container.id, error = text, "ending a machine that does not answer");
        }
        ended(phase).await;
    }
}

/// `docker kill`.
///
/// # Errors
/// 400 for an invalid signal, 409 if it does not run.
pub async fn kill(engine: &Arc<Engine>, container: &Arc<Container>, name: &str, signal_name: &str) -> ApiResult<()> {
    let within = |error: ApiError| error.within(&format!("cannot kill container: {name}"));
    let number = if signal_name.is_empty() { signals::KILL } else { signals::parse(signal_name).map_err(within)? };
    let live = container.running().map_err(within)?;
    let phase = container.phase.subscribe();
    if number == signals::KILL {
        mark_stopped(engine, container).await?;
    }
    container.emit(engine, "kill", &[("signal", number.to_string())]);
    if number == signals::KILL {
        force(container, &live, phase).await;
        return Ok(());
    }
    match signal(container, &live, number).await {
        Ok(()) => Ok(()),
        Err(status) if status.code() == tonic::Code::FailedPrecondition => {
            Err(within(ApiError::conflict(format!("container {} is not running", container.id))))
        }
        Err(status) => Err(within(ApiError::internal(status.message().to_owned()))),
    }
}

/// `docker restart`.
///
/// # Errors
/// As stop and start.
pub async fn restart(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal_name: &str,
    seconds: Option<i64>,
) -> ApiResult<()> {
    stop(engine, container, signal_name, seconds).await?;
    start::start(engine, container).await?;
    container.emit(engine, "restart", &[]);
    Ok(())
}

async fn freeze(engine: &Arc<Engine>, container: &Arc<Container>, frozen: bool) -> ApiResult<()> {
    let _op = container.turn().await?;
    let status = container.with(|record| record.state.status);
    match (status, frozen) {
        (Status::Paused, true) => {
            return Err(ApiError::conflict(format!("Container {} is already paused", container.id)));
        }
        (Status::Paused, false) | (_, true) => {}
        (_, false) => return Err(ApiError::internal(format!("Container {} is not paused", container.id))),
    }
    let live = container.running()?;
    live.init
        .clone()
        .pause(init::PauseRequest { workload_id: container.id.clone(), frozen })
        .await
        .map_err(|status| ApiError::internal(status.message().to_owned()))?;
    let next = if frozen { Status::Paused } else { Status::Running };
    container
        .update(engine, |record| {
            record.state.status = next;
            if frozen {
                health::end(record);
            }
        })
        .await?;
    if frozen {
        health::close(container);
    } else {
        health::open(engine, container);
    }
    container.emit(engine, if frozen { "pause" } else { "unpause" }, &[]);
    Ok(())
}

/// `docker pause`.
///
/// # Errors
/// 409 if it does not run or is frozen already.
pub async fn pause(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    freeze(engine, container, true).await
}

/// `docker unpause`.
///
/// # Errors
/// 500 if it is not frozen, as Docker.
pub async fn unpause(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    freeze(engine, container, false).await
}

async fn thaw(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    freeze(engine, container, false).await
}

/// `docker rename`.
///
/// # Errors
/// 400 for a bad name, 409 for a taken one.
pub async fn rename(engine: &Arc<Engine>, container: &Arc<Container>, name: &str) -> ApiResult<()> {
    if name.is_empty() {
        return Err(ApiError::bad_request("Neither old nor new names may be empty"));
    }
    let within = |error: ApiError| error.within("Error when allocating new name");
    let name = names::check(name).map_err(|_| names::invalid(&format!("/{name}"))).map_err(within)?;
    let _op = container.turn().await?;
    let old = container.with(|record| record.name.clone());
    if old == name {
        return Err(ApiError::bad_request("Renaming a container with the same name as its current name"));
    }
    engine.containers.reserve(&name, &container.id).map_err(within)?;
    let known_to_netd = container.with(|record| record.state.is_running() && !record.without_endpoints());
    let mut renamed = Ok(());
    if known_to_netd {
        let request = netd::SetNamesRequest { workload_id: container.id.clone(), workload_name: name.clone() };
        renamed = engine.netd.clone().set_names(request).await.map(|_| ()).map_err(ApiError::from);
    }
    if renamed.is_ok() {
        renamed = container
            .update(engine, |record| {
                record.name.clone_from(&name);
                for network in record.networks.values_mut() {
                    for known in network.settings.dns_names.iter_mut().flatten().filter(|known| **known == old) {
                        known.clone_from(&name);
                    }
                }
            })
            .await;
    }
    if let Err(error) = renamed {
        engine.containers.release(&name);
        return Err(error);
    }
    if known_to_netd {
        native::refresh(engine, &container.record()).await;
    }
    engine.containers.release(&old);
    container.emit(engine, "rename", &[("oldName", format!("/{old}"))]);
    Ok(())
}

/// What `docker wait` waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// It does not run (at once if it does not).
    NotRunning,
    /// The next exit from now on.
    NextExit,
    /// It is gone.
    Removed,
}

impl Condition {
    /// Reads `condition=`.
    ///
    /// # Errors
    /// 400 `invalid condition: "…"`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        match text {
            "" | "not-running" => Ok(Self::NotRunning),
            "next-exit" => Ok(Self::NextExit),
            "removed" => Ok(Self::Removed),
            _ => Err(ApiError::bad_request(format!("invalid condition: \"{text}\""))),
        }
    }
}

/// The future that ends with the exit code. Made at once, so that nothing between now and its first poll is missed.
pub fn wait(container: &Container, condition: Condition) -> impl Future<Output = i64> + Send + use<> {
    let mut phase = container.phase.subscribe();
    let exits = phase.borrow().exits;
    async move {
        let done = phase
            .wait_for(|phase| match condition {
                Condition::NotRunning => !phase.running || phase.removed,
                Condition::NextExit => phase.exits > exits || phase.removed,
                Condition::Removed => phase.removed,
            })
            .await
            .map(|phase| phase.exit_code);
        done.unwrap_or(0)
    }
}
