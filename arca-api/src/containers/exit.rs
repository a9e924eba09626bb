// SPDX-License-Identifier: Apache-2.0
//! The end of a container's process: noticed by one task per running container, then networks, machine, record, events,
//! restart policy, automatic removal. In this order.

use std::{io, path::Path, sync::Arc, time::Duration};

use arca_proto::{init::v1 as init, machine::v1::ExitStatus};
use serde::Deserialize;

use crate::{
    containers::{Container, Status, health, networks, remove, start},
    docker::time::now,
    engine::Engine,
    machines::Live,
};

/// How long attach clients may take to fetch the last output before their machine goes.
const DRAIN: Duration = Duration::from_secs(5);
/// Pauses between attempts to reach an arca-init that does not answer.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));
/// Docker's restart policy: first pause, doubled each time, back to the first after a run of ten seconds.
const RESTART_PAUSE: Duration = Duration::from_millis(100);
const RESTART_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Follows a running container to its end.
pub fn watch(engine: Arc<Engine>, container: Arc<Container>, live: Live) {
    tokio::spawn(async move {
        let folder = engine.folder(&container.id);
        let exit = wait_for_exit(&container.id, &live, &folder).await;
        finish(&engine, &container, Some(live), exit).await;
    });
}

async fn wait_for_exit(id: &str, live: &Live, folder: &Path) -> ExitStatus {
    let mut pause = BACKOFF.0;
    loop {
        let mut init = live.init.clone();
        let process = Some(init::ProcessRef { workload_id: id.to_owned(), exec_id: String::new() });
        tokio::select! {
            // Cancel-safe: Wait asks again and gets the same answer.
            answer = init.wait(init::WaitRequest { process }) => match answer {
                Ok(answer) => if let Some(exit) = answer.into_inner().exit { return exit },
                Err(status) => tracing::debug!(container_id = id, error = status.message(), "wait for the exit again"),
            },
            // Cancel-safe: it only looks.
            () = live.machine.wait_exit() => return exit_on_disk(folder),
        }
        // Its arca-init did not answer although the machine lives.
        tokio::select! {
            () = tokio::time::sleep(pause) => pause = (pause * 2).min(BACKOFF.1),
            () = live.machine.wait_exit() => return exit_on_disk(folder),
        }
    }
}

/// The record that arca-init writes; a machine that ended without one was killed.
#[derive(Debug, Deserialize)]
struct ExitRecord {
    code: i32,
    #[serde(default)]
    signal: i32,
    #[serde(default)]
    oom_killed: bool,
    #[serde(default)]
    finished_at_ns: i64,
}

/// Reads `exit.json`; 137 if there is none.
pub fn exit_on_disk(folder: &Path) -> ExitStatus {
    let read = std::fs::read(folder.join("exit.json")).and_then(|text| {
        serde_json::from_slice::<ExitRecord>(&text).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))
    });
    match read {
        Ok(record) => ExitStatus {
            code: record.code,
            signal: record.signal,
            oom_killed: record.oom_killed,
            finished_at_ns: record.finished_at_ns,
        },
        Err(error) => {
            tracing::info!(folder = %folder.display(), %error, "no exit record: taken as killed");
            ExitStatus { code: 137, signal: 9, oom_killed: false, finished_at_ns: now() }
        }
    }
}

/// Takes note of an exit: called by the watch, and at adoption for containers that ended unwatched.
pub async fn finish(engine: &Arc<Engine>, container: &Arc<Container>, live: Option<Live>, exit: ExitStatus) {
    let op = container.ops.lock().await;
    health::close(container);
    container.clients.drained(DRAIN).await;
    let mut record = container.record();
    let machine_gone = async {
        if let Some(live) = live {
            vacate(engine, &live, &container.id).await;
        }
    };
    tokio::join!(networks::tear_down(engine, container, &mut record), machine_gone);
    container.set_live(None);
    let finished_at = if exit.finished_at_ns > 0 { exit.finished_at_ns } else { now() };
    let restart = wants_restart(&record, exit.code);
    let code = i64::from(exit.code);
    let note = |stored: &mut crate::containers::Record| {
        stored.networks = record.networks.clone();
        stored.published.clear();
        stored.state.status = if restart { Status::Restarting } else { Status::Exited };
        stored.state.pid = 0;
        stored.state.machine.clear();
        health::end(stored);
        stored.state.exit_code = code;
        stored.state.oom_killed = exit.oom_killed;
        stored.state.finished_at = finished_at;
    };
    let stored = if record.host.auto_remove {
        // Its document goes in a moment. Should arca-api die before, the next one finds the exit record and comes here.
        container.update_unsaved(note);
        Ok(())
    } else {
        container.update(engine, note).await
    };
    if let Err(error) = stored {
        // The next arca-api finds the exit record on disk and comes here again.
        tracing::error!(container_id = container.id, %error, "an exit could not be stored");
    }
    let seconds = (finished_at - record.state.started_at).max(0) / 1_000_000_000;
    if exit.oom_killed {
        container.emit(engine, "oom", &[]);
    }
    start::announce_volumes(engine, &record, "unmount");
    container.emit(engine, "die", &[("execDuration", seconds.to_string()), ("exitCode", exit.code.to_string())]);
    container.phase.send_modify(|phase| {
        phase.running = false;
        phase.exits += 1;
        phase.exit_code = code;
    });
    drop(op);
    if restart {
        schedule_restart(engine.clone(), container.clone(), seconds);
    } else if record.host.auto_remove
        && let Err(error) = remove::remove(engine, container, remove::Options::auto()).await
    {
        tracing::warn!(container_id = container.id, %error, "automatic removal");
    }
}

/// Takes a container out of its machine, which ends with the last one in it.
pub async fn vacate(engine: &Engine, live: &Live, id: &str) {
    if engine.tenants.leave(&live.id, id) {
        if let Err(text) = live.machine.destroy(Duration::ZERO).await {
            tracing::warn!(container_id = id, error = text, "something of the machine remains");
        }
        engine.tenants.ended(&live.id);
        return;
    }
    let request = init::DeleteWorkloadRequest { workload_id: id.to_owned(), force: true };
    match live.init.clone().delete_workload(request).await {
        Err(status) if status.code() != tonic::Code::NotFound => {
            tracing::warn!(container_id = id, error = status.message(), "something of it remains in a shared machine");
        }
        _ => {}
    }
    live.machine.unroot(id).await;
}

fn wants_restart(record: &crate::containers::Record, code: i32) -> bool {
    let policy = &record.host.restart_policy;
    if record.state.stopped_by_user {
        return false;
    }
    match policy.name.as_str() {
        "always" | "unless-stopped" => true,
        "on-failure" => {
            code != 0
                && (policy.maximum_retry_count == 0 || i64::from(record.restart_count) < policy.maximum_retry_count)
        }
        _ => false,
    }
}

fn schedule_restart(engine: Arc<Engine>, container: Arc<Container>, ran_seconds: i64) {
    tokio::spawn(restart_later(engine, container, ran_seconds));
}

/// Boxed by its signature: start comes here again through `watch`, and an `async fn` would contain itself.
fn restart_later(
    engine: Arc<Engine>,
    container: Arc<Container>,
    ran_seconds: i64,
) -> std::pin::Pin<Box<dyn Future<Output = ()> + Send>> {
    Box::pin(async move {
        let count = container.with(|record| record.restart_count);
        let doubled = RESTART_PAUSE.saturating_mul(1 << count.min(10)).min(RESTART_PAUSE_MAX);
        tokio::time::sleep(if ran_seconds >= 10 { RESTART_PAUSE } else { doubled }).await;
        if container.with(|record| record.state.status) != Status::Restarting {
            // Stopped, removed or started by hand meanwhile.
            return;
        }
        let counted = container.update(&engine, |record| record.restart_count += 1).await;
        let started = match counted {
            Ok(()) => start::start(&engine, &container).await.map(|_| ()),
            Err(error) => Err(error),
        };
        if let Err(error) = started {
            tracing::warn!(container_id = container.id, %error, "the restart policy could not start the container");
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Record;

    #[test]
    fn an_exit_record_is_read_and_a_missing_one_means_killed() {
        let folder = tempfile::tempdir().expect("temporary directory");
        assert_eq!(exit_on_disk(folder.path()).code, 137);
        std::fs::write(
            folder.path().join("exit.json"),
            r#"{"code":3,"signal":0,"oom_killed":false,"finished_at_ns":5}"#,
        )
        .expect("write");
        let exit = exit_on_disk(folder.path());
        assert_eq!((exit.code, exit.finished_at_ns), (3, 5));
        std::fs::write(folder.path().join("exit.json"), "{").expect("write");
        assert_eq!(exit_on_disk(folder.path()).code, 137);
    }

    #[test]
    fn restart_policies() {
        let mut record = Record::default();
        record.host.restart_policy.name = "on-failure".into();
        record.host.restart_policy.maximum_retry_count = 2;
        assert!(wants_restart(&record, 1) && !wants_restart(&record, 0));
        record.restart_count = 2;
        assert!(!wants_restart(&record, 1));
        record.host.restart_policy.name = "always".into();
        assert!(wants_restart(&record, 0));
        record.state.stopped_by_user = true;
        assert!(!wants_restart(&record, 0));
    }
}
