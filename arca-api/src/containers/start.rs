// SPDX-License-Identifier: Apache-2.0
//! `docker start`: machine, networks, ports, files, workload, waiting attach clients, process. In this order, and
//! undone from the back when a step fails.

use std::{collections::BTreeMap, sync::Arc};

use arca_proto::{init::v1 as init, netd::v1 as netd};
use tonic::Code;

use crate::{
    containers::{
        Container, Record, Status, exit, files, health, inside, links, mounts, namespaces, native, networks, remove,
    },
    docker::time::now,
    engine::Engine,
    http::{ApiError, ApiResult},
    machines::{Kind, Live},
    spec::{self, BindMount},
};

/// What start did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Started {
    /// The process runs now.
    Yes,
    /// It ran already: 304.
    Already,
}

/// Starts a container.
///
/// # Errors
/// Docker's texts; the container is what it was, but for `State.Error` and `State.ExitCode`.
pub async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<Started> {
    let op = container.turn().await?;
    match container.with(|record| record.state.status) {
        Status::Running => return Ok(Started::Already),
        Status::Paused => return Err(ApiError::conflict("cannot start a paused container, try unpause instead")),
        Status::Dead => {
            return Err(ApiError::conflict("container is marked for removal and cannot be started"));
        }
        Status::Created | Status::Exited | Status::Restarting => {}
    }
    let started = start_locked(engine, container).await;
    if let Err(error) = &started {
        container.clients.dismiss();
        let message = error.message.clone();
        let code = failure_code(&message);
        let _ = container
            .update(engine, |record| {
                record.state.error = message;
                if record.state.exit_code == 0 || record.state.status == Status::Created {
                    record.state.exit_code = code;
                }
                if record.state.status == Status::Restarting {
                    record.state.status = Status::Exited;
                }
            })
            .await;
        container.phase.send_modify(|phase| {
            phase.exits += 1;
            phase.exit_code = code;
        });
        drop(op);
        if container.with(|record| record.host.auto_remove)
            && let Err(error) = remove::remove(engine, container, remove::Options::auto()).await
        {
            tracing::warn!(container_id = container.id, %error, "a container that could not start stays");
        }
    }
    started.map(|()| Started::Yes)
}

/// Exit code that Docker gives a container that could not start.
fn failure_code(message: &str) -> i64 {
    if message.contains("executable file not found") || message.contains("no such file or directory") {
        127
    } else if message.contains("permission denied") || message.contains("is a directory") {
        126
    } else {
        128
    }
}

async fn start_locked(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let mut record = container.record();
    let folder = engine.folder(&record.id);
    remove_if_there(&folder.join("exit.json"))?;
    let linked = links::look(engine, &record)?;
    record.link_environment = linked.environment;
    let others = files::Others { host: host_address(engine, &record).await, links: linked.hosts };
    native::prepare(engine, &mut record).await?;
    namespaces::resolve(engine, &mut record)?;
    for point in record.mounts.iter().filter(|point| point.kind == "volume") {
        mounts::part_of(&record.host, &point.destination, &point.source)?;
    }
    let live = move_in(engine, &mut record).await?;
    record.state.machine.clone_from(&live.id);
    let result = bring_up(engine, container, &mut record, &live, &others).await;
    if let Err(error) = result {
        let mounted = error.message.contains("failed to create task");
        networks::tear_down(engine, container, &mut record).await;
        exit::vacate(engine, &live, &record.id).await;
        if mounted {
            announce_volumes(engine, &record, "unmount");
        }
        return Err(error);
    }
    container.set_live(Some(live.clone()));
    let stored = container
        .update(engine, |stored| {
            stored.state = record.state.clone();
            stored.networks = record.networks.clone();
            // Part of a network's id has become the whole.
            stored.host.network_mode.clone_from(&record.host.network_mode);
            stored.published = record.published.clone();
            stored.files_of = record.files_of.clone();
            stored.link_environment = record.link_environment.clone();
            stored.config.hostname = record.config.hostname.clone();
            stored.config.domainname = record.config.domainname.clone();
        })
        .await;
    if let Err(error) = stored {
        // Not on disk is not started: nobody would find it again.
        networks::tear_down(engine, container, &mut record).await;
        container.set_live(None);
        exit::vacate(engine, &live, &record.id).await;
        return Err(error);
    }
    container.phase.send_modify(|phase| phase.running = true);
    links::follow(engine, &record);
    container.emit(engine, "start", &[]);
    health::open(engine, container);
    exit::watch(engine.clone(), container.clone(), live);
    Ok(())
}

/// A machine for the container: one of its own, or that of the container whose network it shares.
async fn move_in(engine: &Arc<Engine>, record: &mut Record) -> ApiResult<Live> {
    if let Some(name) = record.network_of() {
        return share(engine, name.to_owned().as_str(), record);
    }
    record.files_of = None;
    let machine = engine.tenants.open(&record.id);
    let (kind, size) = (inside::kind_of(engine, record), inside::size(&record.host));
    match engine.machines.launch(&machine, kind, native::machine_network(record), size).await {
        Ok(launched) => Ok(Live::new(machine, launched)),
        Err(text) => {
            let _ = engine.tenants.leave(&machine, &record.id);
            engine.tenants.ended(&machine);
            Err(ApiError::internal(format!("failed to start the container's machine: {text}")))
        }
    }
}

/// `--network container:NAME`: the container moves in with another and takes over its names and files.
fn share(engine: &Engine, name: &str, record: &mut Record) -> ApiResult<Live> {
    let other = engine
        .container(name)
        .map_err(|error| ApiError::internal(format!("joining network namespace of container: {}", error.message)))?;
    if other.id == record.id {
        return Err(ApiError::internal("cannot join own network namespace"));
    }
    let theirs = other.record();
    let what = "cannot join network namespace of";
    if theirs.state.status == Status::Restarting {
        let text = format!("{what} container: Container {name} is restarting, wait until the container is running");
        return Err(ApiError::conflict(text));
    }
    let live = other.live().filter(|live| theirs.state.is_running() && engine.tenants.join(&live.id, &record.id));
    let Some(live) = live else {
        // One that is ending just now has not told yet what it is.
        let status = if theirs.state.is_running() { Status::Exited } else { theirs.state.status };
        let text = format!("{what} a non running container: container {} is {}", theirs.name, status.word());
        return Err(ApiError::conflict(text));
    };
    if inside::kind_named(&record.host.runtime).is_some_and(|kind| kind != live.machine.kind()) {
        let _ = engine.tenants.leave(&live.id, &record.id);
        let (theirs, ours) = (inside::runtime_of(live.machine.kind()), &record.host.runtime);
        let text = format!("{what} container {name}: its runtime is {theirs}, which is not {ours}");
        return Err(ApiError::conflict(text));
    }
    if let Err(error) = inside::check(live.machine.kind(), &record.host) {
        let _ = engine.tenants.leave(&live.id, &record.id);
        return Err(error);
    }
    record.files_of = Some(theirs.files_owner().to_owned());
    record.config.hostname.clone_from(&theirs.config.hostname);
    record.config.domainname.clone_from(&theirs.config.domainname);
    Ok(live)
}

/// What `host-gateway` stands for, where something asks for it: the host's end of the engine's uplink, where the host's own
/// servers answer containers. (The address of a network's gateway, which Docker gives, is a router's here.)
async fn host_address(engine: &Engine, record: &Record) -> String {
    if !files::means_host(record) {
        return String::new();
    }
    let status = engine.netd.clone().get_status(netd::GetStatusRequest {}).await;
    status.map(|status| status.into_inner().host_uplink).unwrap_or_default()
}

async fn bring_up(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    record: &mut Record,
    live: &Live,
    others: &files::Others,
) -> ApiResult<()> {
    let folder = engine.folder(&record.id);
    if record.files_of.is_none() {
        files::write_all(record, &folder, networks::on_user_network(record), others)?;
    }
    let request = workload(engine, record, live).await?;
    announce_volumes(engine, record, "mount");
    let mut init = live.init.clone();
    // The runtime prepares the workload while the networks are made; its process waits for both. Neither is cut short
    // when the other fails: undoing needs to know what there is.
    let (created, networks) =
        tokio::join!(init.create_workload(request), networks::set_up(engine, container, record, live));
    networks?;
    let created = created.map_err(|status| runtime_error(&status))?.into_inner();
    networks::announce(engine, container, record).await;
    if record.files_of.is_none() {
        files::write_hosts(record, &folder, others)?;
        native::refresh(engine, record).await;
    }
    container.clients.serve_waiting(live, &record.id).await;
    let started = init
        .start_workload(init::StartWorkloadRequest { workload_id: record.id.clone() })
        .await
        .map_err(|status| runtime_error(&status))?
        .into_inner();
    record.state.status = Status::Running;
    // The number of a process in a virtual machine means nothing here; its keeper's does.
    record.state.pid = if live.machine.kind() == Kind::Vm { live.machine.pid() } else { created.pid };
    record.state.exit_code = 0;
    record.state.error.clear();
    record.state.oom_killed = false;
    health::begin(record);
    record.state.stopped_by_user = false;
    record.state.started_at = if started.started_at_ns > 0 { started.started_at_ns } else { now() };
    Ok(())
}

/// Events of the volumes that a container takes and leaves.
pub fn announce_volumes(engine: &Engine, record: &Record, action: &str) {
    for point in record.mounts.iter().filter(|point| point.kind == "volume") {
        let mut attributes =
            BTreeMap::from([("container".to_owned(), record.id.clone()), ("driver".to_owned(), "local".to_owned())]);
        if action == "mount" {
            attributes.insert("destination".to_owned(), point.destination.clone());
            attributes.insert("propagation".to_owned(), point.propagation.clone());
            attributes.insert("read/write".to_owned(), point.rw.to_string());
        }
        engine.events.emit("volume", action, &point.name, attributes);
    }
}

/// Docker's wording of what the runtime refused; the CLI takes its exit code (125, 126, 127) from it.
fn runtime_error(status: &tonic::Status) -> ApiError {
    // Where the runtime looks for the executable itself its text is longer than Docker's.
    let message = status.message().replace("is a directory: permission denied", "permission denied");
    let text = format!(
        "failed to create task for container: failed to create shim task: OCI runtime create failed: arca create failed: unable to start container process: {message}"
    );
    match status.code() {
        Code::NotFound | Code::PermissionDenied | Code::InvalidArgument | Code::FailedPrecondition => {
            ApiError::bad_request(text)
        }
        _ => ApiError::internal(text),
    }
}

async fn workload(engine: &Engine, record: &Record, live: &Live) -> ApiResult<init::CreateWorkloadRequest> {
    let folder = engine.folder(&record.id);
    let inside = inside::show(engine, record, live).await?;
    let upper = folder.join("upper");
    let root: Vec<_> = [upper.clone()].into_iter().chain(record.layers.iter().cloned()).collect();
    let input = spec::Input {
        id: &record.id,
        config: &record.process_config(),
        host: &record.host,
        mounts: &inside.mounts,
        root: &root,
    };
    let mut spec = spec::compose(&input).map_err(|error| ApiError::bad_request(error.to_string()))?;
    inside::adapt(live.machine.kind(), &inside, &mut spec);
    let text = |path: &std::path::Path| path.to_string_lossy().into_owned();
    let overlay = inside.root.is_none().then(|| init::OverlayRoot {
        lower_directories: record.layers.iter().map(|layer| text(layer)).collect(),
        upper_directory: text(&upper),
        work_directory: text(&folder.join("work")),
    });
    let [rows, columns] = record.host.console_size;
    let (log_max_bytes, log_max_files) = record
        .host
        .log_limit()
        .map_err(|error| error.within("failed to create task for container: failed to initialize logging driver"))?;
    Ok(init::CreateWorkloadRequest {
        workload_id: record.id.clone(),
        oci_spec: spec.to_string().into_bytes(),
        root: overlay,
        state_directory: text(&inside.state),
        stdin: record.config.open_stdin,
        terminal: record.config.tty,
        rows,
        columns,
        log_output: record.host.log_config["Type"] != "none",
        cgroup_path: format!("{}/{}", engine.cgroup_parent, record.id),
        stdin_once: record.config.stdin_once,
        log_max_bytes,
        log_max_files,
    })
}

/// Binds and volumes, then the three generated files where the user did not mount his own.
pub fn bind_mounts(engine: &Engine, record: &Record) -> Vec<BindMount> {
    // A tmpfs is made by the runtime, from the host configuration.
    let user = record.mounts.iter().filter(|point| point.kind != "tmpfs").map(|point| BindMount {
        // One that is not there was told of before.
        source: mounts::part_of(&record.host, &point.destination, &point.source)
            .ok()
            .flatten()
            .unwrap_or_else(|| point.source.clone()),
        target: point.destination.clone(),
        read_only: !point.rw,
        propagation: if point.propagation.is_empty() { "rprivate".into() } else { point.propagation.clone() },
    });
    let folder = engine.folder(record.files_owner());
    let own = files::paths(&folder)
        .filter(|(_, target)| !record.mounts.iter().any(|point| point.destination == *target))
        .map(|(source, target)| BindMount {
            source,
            target: target.to_owned(),
            read_only: record.host.readonly_rootfs,
            propagation: "rprivate".into(),
        });
    let init = (record.host.init == Some(true)).then(|| BindMount {
        source: engine.init_program.clone(),
        target: spec::INIT.to_owned(),
        read_only: true,
        propagation: "rprivate".into(),
    });
    user.chain(own.collect::<Vec<_>>()).chain(init).collect()
}

fn remove_if_there(path: &std::path::Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_carry_the_text_that_the_cli_derives_its_exit_code_from() {
        let missing = runtime_error(&tonic::Status::not_found("exec: \"x\": executable file not found in $PATH"));
        assert_eq!(missing.status.as_u16(), 400);
        assert!(missing.message.ends_with("exec: \"x\": executable file not found in $PATH"));
        assert_eq!(failure_code(&missing.message), 127);
        assert_eq!(failure_code("exec: \"/etc\": permission denied"), 126);
        assert_eq!(failure_code("anything"), 128);
    }
}
