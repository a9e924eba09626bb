// SPDX-License-Identifier: Apache-2.0
//! The workloads of this machine and what is done with them; called by the gRPC service.

use std::{
    collections::HashMap,
    fs, io,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arca_proto::{
    init::v1::{CreateWorkloadRequest, ExecRequest, StatsResponse, WorkloadStatus, workload_status::State},
    machine::v1::ExitStatus,
};
use nix::sys::signal::Signal;
use tokio::sync::{broadcast, oneshot};

use crate::{
    cgroup, crun,
    crun::Crun,
    error::InitError,
    log::{Limit, Log},
    process::{self, Process, Pumps},
    reaper::{Ended, Reaper},
    root,
    spec::{self, Size, Spec},
    stats,
    streams::{self, Console, Streams},
    workload::{self, Parts, Workload},
};

/// Changes that a watcher may lag behind before it is given all states anew.
const EVENTS: usize = 256;

/// All workloads of the machine.
#[derive(Debug)]
pub(crate) struct Workloads {
    crun: Crun,
    reaper: Arc<Reaper>,
    run: PathBuf,
    table: Mutex<HashMap<String, Option<Arc<Workload>>>>,
    events: broadcast::Sender<WorkloadStatus>,
    counter: AtomicU64,
}

impl Workloads {
    /// No workloads yet; sockets, notes and crun's state go below `run`.
    pub(crate) fn new(run: &Path, reaper: Arc<Reaper>) -> Arc<Self> {
        Arc::new(Self {
            crun: Crun::new(run.join("crun"), Arc::clone(&reaper)),
            reaper,
            run: run.to_path_buf(),
            table: Mutex::default(),
            events: broadcast::Sender::new(EVENTS),
            counter: AtomicU64::new(0),
        })
    }

    pub(crate) fn find(&self, id: &str) -> Result<Arc<Workload>, InitError> {
        let found = self.table().get(id).cloned().flatten();
        found.ok_or_else(|| InitError::NoSuchWorkload(id.to_owned()))
    }

    pub(crate) fn all(&self) -> Vec<Arc<Workload>> {
        self.table().values().flatten().cloned().collect()
    }

    /// Every change from now on.
    pub(crate) fn watch(&self) -> broadcast::Receiver<WorkloadStatus> {
        self.events.subscribe()
    }

    /// Creates a workload; on failure nothing of it remains.
    pub(crate) async fn create(self: &Arc<Self>, request: CreateWorkloadRequest) -> Result<u32, InitError> {
        let id = request.workload_id.clone();
        let plain =
            !id.is_empty() && id.len() <= 128 && id.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if !plain || id.starts_with('.') {
            return Err(InitError::Invalid(format!("`{id}` is no workload id")));
        }
        let cgroup = cgroup::checked(&request.cgroup_path).map_err(InitError::Invalid)?;
        let spec = Spec::parse(&request.oci_spec)?;
        if !request.state_directory.starts_with('/') {
            return Err(InitError::Invalid("state_directory must be an absolute path".into()));
        }
        {
            let mut table = self.table();
            if table.contains_key(&id) {
                return Err(InitError::Exists { kind: "workload", id });
            }
            // The place is taken while crun works.
            table.insert(id.clone(), None);
        }
        let made = self.make(request, spec, &cgroup).await;
        match made {
            Ok(workload) => {
                let pid = workload.process.pid;
                self.table().insert(id, Some(Arc::clone(&workload)));
                workload.enter(State::Created);
                Ok(pid)
            }
            Err(error) => {
                self.table().remove(&id);
                Err(error)
            }
        }
    }

    async fn make(
        self: &Arc<Self>,
        request: CreateWorkloadRequest,
        mut spec: Spec,
        cgroup: &Path,
    ) -> Result<Arc<Workload>, InitError> {
        let state_directory = PathBuf::from(&request.state_directory);
        let bundle = state_directory.join("bundle");
        let made = self.try_make(&request, &mut spec, cgroup, &state_directory, &bundle).await;
        if made.is_err() {
            // A refused create may have left a cgroup or a half-made container.
            for failure in self.clean_up(&request.workload_id, &bundle, cgroup).await {
                tracing::warn!(workload_id = request.workload_id, "undo of a failed create: {failure}");
            }
        }
        made
    }

    async fn try_make(
        self: &Arc<Self>,
        request: &CreateWorkloadRequest,
        spec: &mut Spec,
        cgroup: &Path,
        state_directory: &Path,
        bundle: &Path,
    ) -> Result<Arc<Workload>, InitError> {
        let id = &request.workload_id;
        let size = Size { rows: request.rows, columns: request.columns };
        let rootfs = Workload::root(bundle);
        fs::create_dir_all(&rootfs).map_err(InitError::file("make folder", &rootfs))?;
        match &request.root {
            Some(overlay) => {
                root::mount_overlay(overlay, &rootfs)
                    .map_err(InitError::file("mount the root file system on", &rootfs))?;
                spec.set_root(&rootfs);
            }
            None if spec.root_path().is_some_and(|path| path.starts_with('/')) => {}
            None => return Err(InitError::Invalid("neither an overlay root nor an absolute root.path".into())),
        }
        spec.set_cgroup(cgroup);
        spec.use_machine_network();
        for (file, value) in spec.take_network_sysctls() {
            fs::write(&file, value).map_err(InitError::file("set the sysctl", &file))?;
        }
        spec.set_terminal(request.terminal, size);
        let config = bundle.join("config.json");
        fs::write(&config, spec.to_json()).map_err(InitError::file("write", &config))?;
        self.note(id, cgroup)?;
        let log = state_directory.join("output.log");
        let limit = Limit { bytes: request.log_max_bytes, files: request.log_max_files };
        let log =
            request.log_output.then(|| Log::open(&log, limit).map_err(InitError::file("open", &log))).transpose()?;
        let executable = spec.executable();
        let (pid, streams) = if request.terminal {
            let console = self.console()?;
            let child = Console::child_streams();
            let create = self.crun.create(id, bundle, Some(console.path()), child, &executable);
            console.receive_from(size, create).await?
        } else {
            let (streams, child) = streams::pipes(request.stdin).map_err(InitError::file("make pipes for", bundle))?;
            (self.crun.create(id, bundle, None, child, &executable).await?, streams)
        };
        let ended = self.reaper.expect(pid);
        let (process, pumps) = Process::new(pid, streams, request.stdin, log, false);
        let parts = Parts {
            id: id.clone(),
            bundle: bundle.to_path_buf(),
            state_directory: state_directory.to_path_buf(),
            cgroup: cgroup.to_path_buf(),
            process,
            stdin_once: request.stdin_once,
            executable,
        };
        let workload = Workload::created(parts, self.events.clone());
        tokio::spawn(attend(Arc::clone(&workload), ended, pumps));
        Ok(workload)
    }

    /// Lets a created workload run; gives the time of its start in nanoseconds since 1970.
    pub(crate) async fn start(&self, id: &str) -> Result<i64, InitError> {
        let workload = self.find(id)?;
        let _gate = workload.gate.lock().await;
        workload.require(&[State::Created])?;
        let started = process::status(Ended { code: 0, signal: 0 }, false).finished_at_ns;
        workload.set_started(started);
        self.crun.start(id, &workload.bundle, &workload.executable).await?;
        // The gate is held: if it has ended already, its end is told after this.
        workload.enter(State::Running);
        Ok(started)
    }

    /// Starts a further process in a running workload; gives its process id.
    pub(crate) async fn exec(&self, request: &ExecRequest) -> Result<u32, InitError> {
        let target = request.process.clone().unwrap_or_default();
        let workload = self.find(&target.workload_id)?;
        workload.require(&[State::Running])?;
        if target.exec_id.is_empty() {
            return Err(InitError::Invalid("exec_id is empty".into()));
        }
        if workload.find(&target.exec_id).is_ok() {
            return Err(InitError::Exists { kind: "exec", id: target.exec_id });
        }
        let size = Size { rows: request.rows, columns: request.columns };
        let (json, executable) = spec::process(&request.oci_process, request.terminal, size)?;
        let folder = workload.bundle.join(format!("exec-{}", self.counter.fetch_add(1, Ordering::Relaxed)));
        fs::create_dir(&folder).map_err(InitError::file("make folder", &folder))?;
        let made = self.run_exec(request, &workload, &folder, &json, &executable, size).await;
        let _ = fs::remove_dir_all(&folder);
        let (pid, streams) = made?;
        let ended = self.reaper.expect(pid);
        // Its client attaches after this answers: until then its output waits in the pipe.
        let (process, pumps) = Process::new(pid, streams, request.stdin, None, true);
        let task = tokio::spawn(attend_exec(Arc::clone(&process), ended, pumps));
        process.own(task.abort_handle());
        workload.add_exec(target.exec_id, process);
        Ok(pid)
    }

    async fn run_exec(
        &self,
        request: &ExecRequest,
        workload: &Workload,
        folder: &Path,
        json: &[u8],
        executable: &str,
        size: Size,
    ) -> Result<(u32, Streams), InitError> {
        let file = folder.join("process.json");
        fs::write(&file, json).map_err(InitError::file("write", &file))?;
        if request.terminal {
            let console = self.console()?;
            let child = Console::child_streams();
            let exec = self.crun.exec(&workload.id, folder, Some(console.path()), child, executable);
            return console.receive_from(size, exec).await;
        }
        let (streams, child) = streams::pipes(request.stdin).map_err(InitError::file("make pipes for", folder))?;
        let pid = self.crun.exec(&workload.id, folder, None, child, executable).await?;
        Ok((pid, streams))
    }

    /// Sends a signal to a process or to all of a workload.
    pub(crate) fn signal(&self, id: &str, exec_id: &str, signal: i32, all: bool) -> Result<(), InitError> {
        let workload = self.find(id)?;
        let process = workload.find(exec_id)?;
        if !(0..=64).contains(&signal) {
            return Err(InitError::Invalid(format!("{signal} is no signal")));
        }
        let gone = || InitError::State { id: id.to_owned(), state: "not running" };
        if all {
            workload.require(&[State::Created, State::Running, State::Paused])?;
            for pid in cgroup::processes(&workload.cgroup) {
                let _ = process::send_signal(pid, signal);
            }
            return Ok(());
        }
        match process.signal(signal) {
            Ok(true) => Ok(()),
            Ok(false) => Err(gone()),
            Err(errno) => Err(InitError::Runtime(format!("signal {signal} to {id}: {}", errno.desc()))),
        }
    }

    /// Freezes or thaws a workload. Doing it twice is an error, as in Docker.
    pub(crate) async fn pause(&self, id: &str, frozen: bool) -> Result<(), InitError> {
        let workload = self.find(id)?;
        let _gate = workload.gate.lock().await;
        let (wanted, verb, next) =
            if frozen { (State::Running, "pause", State::Paused) } else { (State::Paused, "resume", State::Running) };
        workload.require(&[wanted])?;
        self.crun.simple(&[verb], id, &workload.bundle).await?;
        workload.enter(next);
        Ok(())
    }

    /// What a workload uses now.
    pub(crate) fn stats(&self, id: &str) -> Result<StatsResponse, InitError> {
        let workload = self.find(id)?;
        workload.require(&[State::Created, State::Running, State::Paused])?;
        Ok(stats::read(&workload.cgroup, workload.process.pid))
    }

    /// Changes a workload's limits.
    pub(crate) async fn update(&self, id: &str, resources: &[u8]) -> Result<(), InitError> {
        let workload = self.find(id)?;
        let _gate = workload.gate.lock().await;
        workload.require(&[State::Created, State::Running, State::Paused])?;
        let file = workload.bundle.join("resources.json");
        fs::write(&file, resources).map_err(InitError::file("write", &file))?;
        let path = file.to_string_lossy();
        let updated = self.crun.simple(&["update", "--resources", &path], id, &workload.bundle).await;
        let _ = fs::remove_file(&file);
        updated
    }

    /// Removes a workload that has ended, or ends it first if `force`.
    pub(crate) async fn delete(&self, id: &str, force: bool) -> Result<(), InitError> {
        let workload = self.find(id)?;
        let mut failures = Vec::new();
        if workload.state() != State::Stopped {
            if !force {
                workload.require(&[State::Stopped])?;
            }
            // The first process ends first, so that its status says so, then whoever is left.
            let _ = workload.process.signal(Signal::SIGKILL as i32);
            if let Err(failure) = cgroup::kill(&workload.cgroup).await {
                failures.push(failure);
            } else {
                workload.process.wait().await;
            }
        }
        let gate = workload.gate.lock().await;
        if self.table().remove(id).is_none() {
            return Err(InitError::NoSuchWorkload(id.to_owned()));
        }
        failures.extend(self.clean_up(id, &workload.bundle, &workload.cgroup).await);
        workload.abandon();
        workload.enter(State::Deleted);
        drop(gate);
        if failures.is_empty() { Ok(()) } else { Err(InitError::Leftovers { id: id.to_owned(), failures }) }
    }

    /// Ends every workload: SIGTERM, `grace` later SIGKILL, then removal.
    pub(crate) async fn end_all(&self, grace: Duration) {
        let workloads = self.all();
        for workload in &workloads {
            let _ = workload.process.signal(Signal::SIGTERM as i32);
        }
        let ended = async {
            for workload in &workloads {
                workload.process.wait().await;
            }
        };
        let _ = tokio::time::timeout(grace, ended).await;
        for workload in &workloads {
            if let Err(error) = self.delete(&workload.id, true).await {
                tracing::warn!(workload_id = workload.id, %error, "end of the machine");
            }
        }
    }

    /// Removes what a container is made of and goes on past failures, which it lists.
    async fn clean_up(&self, id: &str, bundle: &Path, cgroup: &Path) -> Vec<String> {
        let mut failures = Vec::new();
        // Without crun's own state there is nothing to delete: its create has failed.
        if self.run.join("crun").join(id).exists()
            && let Err(error) = self.crun.simple(&["delete", "--force"], id, bundle).await
        {
            failures.push(format!("crun delete: {error}"));
        }
        failures.extend(cgroup::remove(cgroup));
        let rootfs = Workload::root(bundle);
        // Without this unmount the removal below would empty the workload's own file system.
        match root::unmount(&rootfs) {
            Ok(()) => {
                if let Err(error) = fs::remove_dir(&rootfs)
                    && !crun::is_missing(&error)
                {
                    failures.push(format!("remove {}: {error}", rootfs.display()));
                } else if let Err(error) = fs::remove_dir_all(bundle)
                    && !crun::is_missing(&error)
                {
                    failures.push(format!("remove {}: {error}", bundle.display()));
                }
            }
            Err(error) => failures.push(format!("unmount {}: {error}", rootfs.display())),
        }
        let _ = fs::remove_file(self.notes().join(id));
        failures
    }

    /// Leaves word of a workload's cgroup for whoever sweeps up if this process is killed.
    fn note(&self, id: &str, cgroup: &Path) -> Result<(), InitError> {
        let note = self.notes().join(id);
        fs::create_dir_all(self.notes())
            .and_then(|()| fs::write(&note, cgroup.as_os_str().as_encoded_bytes()))
            .map_err(InitError::file("write", note))
    }

    fn notes(&self) -> PathBuf {
        notes(&self.run)
    }

    fn console(&self) -> Result<Console, InitError> {
        Console::listen(self.run.join(format!("tty-{}", self.counter.fetch_add(1, Ordering::Relaxed))))
    }

    fn table(&self) -> MutexGuard<'_, HashMap<String, Option<Arc<Workload>>>> {
        // Every change is one insert or remove.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where the notes of workloads lie.
pub(crate) fn notes(run: &Path) -> PathBuf {
    run.join("workloads")
}

/// Kills and removes what the workloads of a dead arca-init left; for `arca-init sweep`.
pub(crate) async fn sweep(run: &Path) -> io::Result<Vec<String>> {
    let mut failures = Vec::new();
    let entries = match fs::read_dir(notes(run)) {
        Err(error) if crun::is_missing(&error) => return Ok(failures),
        entries => entries?,
    };
    for entry in entries {
        let note = entry?.path();
        match cgroup::checked(&fs::read_to_string(&note)?) {
            Ok(path) => {
                failures.extend(cgroup::kill(&path).await.err());
                failures.extend(cgroup::remove(&path));
            }
            Err(error) => failures.push(format!("{}: {error}", note.display())),
        }
        fs::remove_file(note)?;
    }
    Ok(failures)
}

/// Sees a workload's first process to its end.
async fn attend(workload: Arc<Workload>, ended: oneshot::Receiver<Ended>, pumps: Pumps) {
    // The reaper lives as long as the machine.
    let Ok(ended) = ended.await else { return };
    let process = &workload.process;
    process.set_exited();
    let oom = cgroup::oom_kills(&workload.cgroup) > 0;
    for pump in pumps {
        let _ = pump.await;
    }
    process.finish_log();
    let exit = process::status(ended, oom);
    record(&workload, exit).await;
    let gate = workload.gate.lock().await;
    workload.stopped(exit);
    drop(gate);
    process.finish_output(exit);
    process.report(exit);
    tracing::info!(workload_id = workload.id, code = exit.code, oom_killed = oom, "workload ended");
}

async fn record(workload: &Workload, exit: ExitStatus) {
    let folder = workload.state_directory.clone();
    // Waits for the disk, which others need not.
    let written = tokio::task::spawn_blocking(move || workload::write_exit(&folder, exit)).await;
    if let Err(error) = written.unwrap_or_else(|error| Err(io::Error::other(error))) {
        tracing::error!(workload_id = workload.id, %error, "the exit record cannot be written");
    }
}

/// Sees an exec'd process to its end. Its status is there at once, the end of its output when that was read.
async fn attend_exec(process: Arc<Process>, ended: oneshot::Receiver<Ended>, pumps: Pumps) {
    let Ok(ended) = ended.await else { return };
    process.set_exited();
    let exit = process::status(ended, false);
    process.report(exit);
    for pump in pumps {
        let _ = pump.await;
    }
    process.finish_output(exit);
}
