// SPDX-License-Identifier: Apache-2.0
//! After a restart of arca-api: what runs is taken up again, what ended meanwhile is taken note of.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use arca_proto::init::v1 as init;

use crate::{
    containers::{Container, Record, Status, exit, health, remove, start},
    engine::Engine,
    machines::{Found, Live},
};

/// Takes the stored containers into the index and finds what became of their machines.
pub async fn adopt(engine: &Arc<Engine>, records: Vec<Record>) {
    let mut all = Vec::new();
    let mut tenants: BTreeMap<String, Vec<Arc<Container>>> = BTreeMap::new();
    for record in records {
        if let Err(error) = engine.containers.reserve(&record.name, &record.id) {
            tracing::error!(container_id = record.id, %error, "two stored containers of one name");
        }
        let machine = record.state.is_running().then(|| record.machine().to_owned());
        let container = Container::new(record);
        engine.containers.insert(container.clone());
        if let Some(machine) = machine {
            engine.set_attached(&container.id, true);
            tenants.entry(machine).or_default().push(container.clone());
        }
        all.push(container);
    }
    end_others(engine, &tenants).await;
    let mut lost = BTreeSet::new();
    for (machine, containers) in tenants {
        lost.extend(take_up(engine, &machine, containers).await.into_iter().map(|container| container.id.clone()));
    }
    let mut starting = Vec::new();
    for container in all {
        let (status, auto_remove) = container.with(|record| (record.state.status, record.host.auto_remove));
        if status == Status::Exited && auto_remove {
            // arca-api died between the exit and the automatic removal.
            if let Err(error) = remove::remove(engine, &container, remove::Options::auto()).await {
                tracing::warn!(container_id = container.id, %error, "automatic removal");
            }
        } else if lost.contains(&container.id) {
            let engine = engine.clone();
            tokio::spawn(async move {
                let exit = exit::exit_on_disk(&engine.folder(&container.id));
                exit::finish(&engine, &container, None, exit).await;
            });
        } else if status == Status::Restarting || lost_start(&container) {
            starting.push(container);
        }
    }
    // Who shares another's network can only start after it.
    let (guests, hosts): (Vec<_>, Vec<_>) =
        starting.into_iter().partition(|container| container.with(|record| record.network_of().is_some()));
    let engine = engine.clone();
    tokio::spawn(async move {
        for group in [hosts, guests] {
            let starts = group.iter().map(|container| start::start(&engine, container));
            for (container, started) in group.iter().zip(futures_util::future::join_all(starts).await) {
                if let Err(error) = started {
                    let id = &container.id;
                    tracing::warn!(container_id = id, %error, "the restart policy could not start the container");
                }
            }
        }
    });
}

/// Ends machines of starts that were not acknowledged: arca-api died in the middle of them.
async fn end_others(engine: &Arc<Engine>, tenants: &BTreeMap<String, Vec<Arc<Container>>>) {
    let left = engine.machines.left().await.unwrap_or_else(|error| {
        tracing::error!(error, "machines of an earlier run cannot be looked for");
        Vec::new()
    });
    for id in left.iter().filter(|id| !tenants.contains_key(*id)) {
        let ended = match engine.machines.adopt(id).await {
            Ok(Found::Running(machine)) => machine.destroy(Duration::ZERO).await,
            Ok(Found::Gone) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = ended {
            tracing::warn!(machine_id = id, error, "the machine of a start that was cut short");
        }
    }
}

/// Finds the machine of these containers; gives those that do not run in it any more.
async fn take_up(engine: &Arc<Engine>, id: &str, containers: Vec<Arc<Container>>) -> Vec<Arc<Container>> {
    let machine = match engine.machines.adopt(id).await {
        Ok(Found::Running(machine)) => machine,
        Ok(Found::Gone) => return containers,
        Err(error) => {
            tracing::error!(machine_id = id, error, "the machine cannot be found");
            return containers;
        }
    };
    let live = Live::new(id, machine);
    let mut init = live.init.clone();
    let held = match init.get_machine(init::GetMachineRequest {}).await {
        Ok(answer) => answer.into_inner().workloads.into_iter().map(|workload| workload.workload_id).collect(),
        Err(status) => {
            tracing::warn!(machine_id = id, error = status.message(), "its workloads cannot be asked for");
            containers.iter().map(|container| container.id.clone()).collect::<BTreeSet<_>>()
        }
    };
    for other in held.iter().filter(|held| !containers.iter().any(|container| container.id == **held)) {
        // Of a start, or of an end, that was cut short.
        let request = init::DeleteWorkloadRequest { workload_id: other.clone(), force: true };
        if let Err(status) = init.delete_workload(request).await {
            tracing::warn!(machine_id = id, container_id = other, error = status.message(), "a workload too many");
        }
    }
    let (present, lost): (Vec<_>, Vec<_>) = containers.into_iter().partition(|one| held.contains(&one.id));
    for container in &present {
        engine.tenants.adopt(id, &container.id);
    }
    for container in &present {
        tracing::info!(container_id = container.id, machine_id = id, "adopted");
        container.set_live(Some(live.clone()));
        container.update_unsaved(health::begin);
        exit::watch(engine.clone(), container.clone(), live.clone());
        health::open(engine, container);
    }
    if present.is_empty()
        && let Err(error) = live.machine.destroy(Duration::ZERO).await
    {
        tracing::warn!(machine_id = id, error, "something of the machine remains");
    }
    lost
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
