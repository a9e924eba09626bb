// SPDX-License-Identifier: Apache-2.0
//! After a restart of arca-api: what runs is taken up again, what ended meanwhile is taken note of.

use std::sync::Arc;

use crate::{
    containers::{Container, Record, Status, exit, health, remove, start},
    engine::Engine,
    machines::{Found, Live},
};

/// Takes the stored containers into the index and finds what became of their machines.
pub async fn adopt(engine: &Arc<Engine>, records: Vec<Record>) {
    let mut starting = Vec::new();
    for record in records {
        if let Err(error) = engine.containers.reserve(&record.name, &record.id) {
            tracing::error!(container_id = record.id, %error, "two stored containers of one name");
        }
        let was_running = record.state.is_running();
        let status = record.state.status;
        let leftover = status == Status::Exited && record.host.auto_remove;
        let container = Container::new(record);
        engine.containers.insert(container.clone());
        if was_running {
            engine.set_attached(&container.id, true);
        }
        let ended = find(engine, &container, was_running).await;
        if leftover {
            // arca-api died between the exit and the automatic removal.
            if let Err(error) = remove::remove(engine, &container, remove::Options::auto()).await {
                tracing::warn!(container_id = container.id, %error, "automatic removal");
            }
            continue;
        }
        if ended || status == Status::Restarting || lost_start(&container) {
            starting.push((container, was_running, ended));
        }
    }
    for (container, was_running, ended) in starting {
        let engine = engine.clone();
        tokio::spawn(async move {
            if was_running && ended {
                let exit = exit::exit_on_disk(&engine.folder(&container.id));
                exit::finish(&engine, &container, None, exit).await;
            } else if let Err(error) = start::start(&engine, &container).await {
                tracing::warn!(container_id = container.id, %error, "the restart policy could not start the container");
            }
        });
    }
}

/// `true`: the record says running and nothing runs.
async fn find(engine: &Arc<Engine>, container: &Arc<Container>, was_running: bool) -> bool {
    match engine.machines.adopt(&container.id).await {
        Ok(Found::Running(machine)) if was_running => {
            tracing::info!(container_id = container.id, "adopted");
            let live = Live::new(machine);
            container.set_live(Some(live.clone()));
            container.update_unsaved(health::begin);
            exit::watch(engine.clone(), container.clone(), live);
            health::open(engine, container);
            false
        }
        Ok(Found::Running(machine)) => {
            // A start that was not acknowledged: arca-api died in the middle of it.
            if let Err(text) = machine.destroy(std::time::Duration::ZERO).await {
                tracing::warn!(container_id = container.id, error = text, "the machine of a start that was cut short");
            }
            false
        }
        Ok(Found::Gone) => was_running,
        Err(text) => {
            tracing::error!(container_id = container.id, error = text, "its machine cannot be found");
            was_running
        }
    }
}

/// A container that should always run and does not, because the whole machine went down: `always` starts it even if a
/// user had stopped it, `unless-stopped` does not.
fn lost_start(container: &Container) -> bool {
    container.with(|record| {
        record.state.status == Status::Exited
            && record.host.restart_policy.name == "always"
            && record.state.stopped_by_user
    })
}
