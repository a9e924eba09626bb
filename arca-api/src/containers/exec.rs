// SPDX-License-Identifier: Apache-2.0
//! `docker exec`: further processes in a running container. An exec lives in memory only: it cannot outlive what would
//! ask for it.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use arca_proto::init::v1 as init;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    containers::{
        Container, Status,
        attach::{self, Session, Streams},
        names,
        start::bind_mounts,
    },
    docker::config::words,
    engine::Engine,
    http::{ApiError, ApiResult},
    machines::Live,
    spec,
};

/// Body of `POST /containers/ID/exec`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct ExecConfig {
    pub user: String,
    pub privileged: bool,
    pub tty: bool,
    pub console_size: Option<[u32; 2]>,
    pub attach_stdin: bool,
    pub attach_stderr: bool,
    pub attach_stdout: bool,
    pub detach_keys: String,
    pub env: Option<Vec<String>>,
    pub working_dir: String,
    #[serde(deserialize_with = "words")]
    pub cmd: Option<Vec<String>>,
}

/// Where an exec is in its life.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct ExecState {
    pub started: bool,
    pub running: bool,
    pub pid: u32,
    pub exit_code: Option<i32>,
}

/// One exec.
#[derive(Debug)]
pub struct Exec {
    /// 64 hex digits.
    pub id: String,
    /// Its container.
    pub container: Arc<Container>,
    /// As asked for.
    pub config: ExecConfig,
    state: Mutex<ExecState>,
}

impl Exec {
    /// What is known now.
    pub fn state(&self) -> ExecState {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change(&self, edit: impl FnOnce(&mut ExecState)) {
        edit(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner));
    }

    fn process(&self) -> init::ProcessRef {
        init::ProcessRef { workload_id: self.container.id.clone(), exec_id: self.id.clone() }
    }

    /// As `GET /exec/ID/json` shows it.
    pub fn to_json(&self) -> Value {
        let state = self.state();
        let words = self.config.cmd.clone().unwrap_or_default();
        let mut out = json!({
            "ID": self.id,
            "Running": state.running,
            "ExitCode": state.exit_code,
            "ProcessConfig": {
                "tty": self.config.tty,
                "entrypoint": words.first(),
                "arguments": words.get(1..).unwrap_or_default(),
                "privileged": self.config.privileged,
            },
            "OpenStdin": self.config.attach_stdin,
            "OpenStderr": self.config.attach_stderr,
            "OpenStdout": self.config.attach_stdout,
            "CanRemove": false,
            "ContainerID": self.container.id,
            "DetachKeys": "",
            "Pid": state.pid,
        });
        if !self.config.user.is_empty() {
            out["ProcessConfig"]["user"] = json!(self.config.user);
        }
        out
    }
}

/// All execs.
#[derive(Debug, Default)]
pub struct Execs(Mutex<BTreeMap<String, Arc<Exec>>>);

impl Execs {
    /// The exec `id`.
    ///
    /// # Errors
    /// 404 `No such exec instance: …`.
    pub fn get(&self, id: &str) -> ApiResult<Arc<Exec>> {
        let execs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        execs.get(id).cloned().ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }

    /// Ids of the execs of a container that run.
    pub fn of(&self, container_id: &str) -> Vec<String> {
        let execs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let running = execs.values().filter(|exec| exec.container.id == container_id && exec.state().running);
        running.map(|exec| exec.id.clone()).collect()
    }

    /// Forgets the ended execs of containers that are gone or ended, and the oldest beyond a bound: a client asks for
    /// the exit code right after the end or never.
    fn sweep(&self) {
        const KEPT: usize = 512;
        let mut execs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if execs.len() > KEPT {
            execs.retain(|_, exec| exec.state().running || !exec.state().started);
        }
    }
}

/// Checks that a container, called `name` by the client, can take an exec.
fn usable(container: &Container, name: &str) -> ApiResult<Live> {
    let live = container.running()?;
    match container.with(|record| record.state.status) {
        Status::Paused => {
            Err(ApiError::conflict(format!("Container {name} is paused, unpause the container before exec")))
        }
        _ => Ok(live),
    }
}

/// The OCI process of an exec.
///
/// # Errors
/// 400 for a user that the container does not know.
pub fn process(engine: &Engine, exec: &Exec) -> ApiResult<Value> {
    let config = &exec.config;
    let record = exec.container.record();
    let mounts = bind_mounts(engine, &record);
    let root: Vec<_> =
        [engine.folder(&record.id).join("upper")].into_iter().chain(record.layers.iter().cloned()).collect();
    let input = spec::Input {
        id: &record.id,
        config: &record.process_config(),
        host: &record.host,
        mounts: &mounts,
        root: &root,
    };
    let options = spec::ExecOptions {
        command: config.cmd.clone().unwrap_or_default(),
        env: config.env.clone().unwrap_or_default(),
        user: config.user.clone(),
        working_dir: config.working_dir.clone(),
        privileged: config.privileged,
        tty: config.tty,
    };
    spec::exec_process(&input, &options).map_err(|error| ApiError::bad_request(error.to_string()))
}

/// `POST /containers/ID/exec`: checks and remembers.
///
/// # Errors
/// 409 if the container does not run.
pub fn create(engine: &Engine, container: &Arc<Container>, name: &str, config: ExecConfig) -> ApiResult<Arc<Exec>> {
    usable(container, name)?;
    engine.execs.sweep();
    let line = command_line(config.cmd.as_deref().unwrap_or_default());
    let exec = Arc::new(Exec { id: names::new_id(), container: container.clone(), config, state: Mutex::default() });
    if !exec.config.user.is_empty() {
        // A user nobody knows is told now, not when the headers of the start have left.
        process(engine, &exec)?;
    }
    engine.execs.0.lock().unwrap_or_else(PoisonError::into_inner).insert(exec.id.clone(), exec.clone());
    container.emit(engine, format!("exec_create: {line}"), &[("execID", exec.id.clone())]);
    Ok(exec)
}

/// As events show it: the arguments follow a space, also when there are none.
fn command_line(words: &[String]) -> String {
    let (first, rest) = words.split_first().map_or(("", [].as_slice()), |(first, rest)| (first.as_str(), rest));
    format!("{first} {}", rest.join(" "))
}

/// Claims the exec for its one start.
///
/// # Errors
/// 404 if its container stopped meanwhile, 409 if it was started.
pub fn claim(exec: &Exec) -> ApiResult<Live> {
    let gone = |error: ApiError| match exec.container.live() {
        Some(_) => error,
        None => ApiError::not_found(format!("No such exec instance: {}", exec.id)),
    };
    let live = usable(&exec.container, &exec.container.id).map_err(gone)?;
    let mut state = exec.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.started {
        return Err(ApiError::conflict(format!("exec command {} has already run", exec.id)));
    }
    state.started = true;
    Ok(live)
}

/// Starts a claimed exec and attaches to it.
///
/// # Errors
/// `OCI runtime exec failed: …`; the exec then has exit code 126 or 127.
pub async fn start(engine: &Arc<Engine>, exec: &Arc<Exec>, live: &Live) -> ApiResult<Session> {
    let config = &exec.config;
    let words = config.cmd.clone().unwrap_or_default();
    let process = process(engine, exec)?;
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        exec.change(|state| state.exit_code = Some(128));
        return Err(ApiError::bad_request("OCI runtime exec failed: exec failed: Cwd must be an absolute path"));
    }
    let [rows, columns] = config.console_size.unwrap_or_default();
    let request = init::ExecRequest {
        process: Some(exec.process()),
        oci_process: process.to_string().into_bytes(),
        stdin: config.attach_stdin,
        terminal: config.tty,
        rows,
        columns,
    };
    exec.container.emit(engine, format!("exec_start: {}", command_line(&words)), &[("execID", exec.id.clone())]);
    let started = match live.init.clone().exec(request).await {
        Ok(started) => started.into_inner(),
        Err(status) => {
            let code = match status.code() {
                tonic::Code::NotFound => 127,
                _ => 126,
            };
            exec.change(|state| state.exit_code = Some(code));
            return Err(ApiError::bad_request(format!(
                "OCI runtime exec failed: exec failed: unable to start container process: {}",
                status.message().replace("is a directory: permission denied", "permission denied")
            )));
        }
    };
    exec.change(|state| {
        state.running = true;
        state.pid = started.pid;
    });
    watch(engine.clone(), exec.clone(), live.clone());
    let streams = Streams { stdin: config.attach_stdin, stdout: config.attach_stdout, stderr: config.attach_stderr };
    // A detached exec is attached to as well: its output is read and dropped, so that it never blocks on a full pipe.
    let streams =
        if streams == Streams::default() { Streams { stdin: false, stdout: true, stderr: true } } else { streams };
    attach::open(&live.init, exec.process(), streams)
        .await
        .map_err(|status| ApiError::internal(format!("attach to the exec: {}", status.message())))
}

fn watch(engine: Arc<Engine>, exec: Arc<Exec>, live: Live) {
    tokio::spawn(async move {
        let request = init::WaitRequest { process: Some(exec.process()) };
        let mut init = live.init.clone();
        let exit = tokio::select! {
            // Neither is asked again.
            answer = init.wait(request) => answer.ok().and_then(|answer| answer.into_inner().exit),
            () = live.machine.wait_exit() => None,
        };
        // The container's end took it along.
        end(&engine, &exec, exit.map_or(137, |exit| exit.code));
    });
}

/// Takes note of the end; the first to know wins, so that a client that asks right after its stream ended gets the code.
pub fn end(engine: &Engine, exec: &Exec, code: i32) {
    let mut first = false;
    exec.change(|state| {
        first = state.exit_code.is_none();
        if first {
            state.running = false;
            state.exit_code = Some(code);
        }
    });
    if first {
        let facts = [("execID", exec.id.clone()), ("exitCode", code.to_string())];
        exec.container.emit(engine, "exec_die", &facts);
    }
}

/// `POST /exec/ID/resize`.
///
/// # Errors
/// 404 if it does not run.
pub async fn resize(exec: &Exec, rows: u32, columns: u32) -> ApiResult<()> {
    let live = exec.container.running()?;
    live.init
        .clone()
        .resize(init::ResizeRequest { process: Some(exec.process()), rows, columns })
        .await
        .map(|_| ())
        .map_err(|status| match status.code() {
            tonic::Code::NotFound | tonic::Code::FailedPrecondition => {
                ApiError::not_found(format!("NotFound: process does not exist {}: not found", exec.id))
            }
            _ => ApiError::internal(status.message().to_owned()),
        })
}
