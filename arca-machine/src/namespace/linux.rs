// SPDX-License-Identifier: Apache-2.0
//! Machines made of Linux namespaces.
//!
//! A container machine is arca-init in a network namespace of its own (or the host's); it takes its own mount namespace
//! itself. The helper machine is `arca-helper-agent init` as process 1 of its own pid, mount, network, IPC and UTS
//! namespaces with the helper image as its root.

mod helper;
pub(crate) mod process;
mod spawn;

use std::{
    ffi::CString,
    fs,
    io::{self, Read, Seek, SeekFrom},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arca_proto::{
    dial::{Address, dial},
    ports,
};
use async_trait::async_trait;
use nix::libc;

use self::{
    process::Process,
    spawn::{Program, Step, spawn},
};
use crate::{
    ContainerSpec, Driver, HelperSpec, Kind, Machine, MachineError, Network, Record, Role, machine::Keeper,
    ready::Ready,
};

const LOG: &str = "machine.log";
/// How much of a dead machine's log goes into the error.
const LOG_TAIL: u64 = 2048;
/// The only variables that a machine takes over from its launcher.
const INHERITED: [&str; 2] = ["PATH", "TZ"];

#[derive(Debug)]
pub(crate) struct Namespaces;

pub(crate) fn driver() -> Result<Arc<dyn Driver>, MachineError> {
    Ok(Arc::new(Namespaces))
}

pub(crate) fn open(record: &Record) -> Result<Option<Machine>, MachineError> {
    let process = Process::of(record)?;
    Ok(process.map(|process| Machine::new(record.clone(), Arc::new(process))))
}

/// Removes what a machine that is not running left: processes, cgroups, sockets, record.
pub(crate) async fn sweep(record: &Record) -> Result<(), MachineError> {
    process::sweep(record, Vec::new()).await
}

pub(super) fn cstring(text: impl AsRef<Path>) -> io::Result<CString> {
    CString::new(text.as_ref().as_os_str().as_bytes())
        .map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a NUL byte in a path or argument"))
}

/// What is alike in launching machines of every role and kind that have a process here.
pub(crate) struct Boot<'a> {
    pub(crate) id: &'a str,
    pub(crate) kind: Kind,
    pub(crate) role: Role,
    pub(crate) address: Address,
    pub(crate) socket_directory: &'a Path,
    pub(crate) state_directory: &'a Path,
    pub(crate) guest_directory: &'a Path,
    pub(crate) environment: &'a [(String, String)],
    pub(crate) ready_timeout: Duration,
    pub(crate) namespaces: libc::c_int,
    pub(crate) path: &'a Path,
    pub(crate) arguments: Vec<String>,
    pub(crate) steps: Vec<Step>,
    /// Done when the folders are there and nothing runs yet.
    pub(crate) prepare: &'a (dyn Fn() -> io::Result<()> + Sync),
    /// What keeps its process.
    pub(crate) keeper: &'a (dyn Fn(Process) -> Arc<dyn Keeper> + Sync),
}

/// Nothing to prepare.
const NOTHING: &(dyn Fn() -> io::Result<()> + Sync) = &|| Ok(());
/// The process is the keeper itself.
const ITSELF: &(dyn Fn(Process) -> Arc<dyn Keeper> + Sync) = &|process| Arc::new(process);

#[async_trait]
impl Driver for Namespaces {
    async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError> {
        let program = spec.guest_directory.join("arca-init");
        let sockets = spec.socket_directory.display();
        let mut arguments = vec![
            "arca-init".to_owned(),
            "serve".to_owned(),
            format!("--machine-id={}", spec.id),
            format!("--listen=sockets:{sockets}"),
            format!("--run={sockets}"),
            format!("--log-level={}", spec.log_level),
        ];
        if spec.network == Network::Links {
            arguments.push(format!("--tapfwd={}", spec.guest_directory.join("arca-tapfwd").display()));
        }
        let boot = Boot {
            id: &spec.id,
            kind: Kind::Namespace,
            role: Role::Container,
            address: Address::Sockets(spec.socket_directory.clone()),
            socket_directory: &spec.socket_directory,
            state_directory: &spec.state_directory,
            guest_directory: &spec.guest_directory,
            environment: &spec.environment,
            ready_timeout: spec.ready_timeout,
            namespaces: if spec.network == Network::Host { 0 } else { libc::CLONE_NEWNET },
            path: &program,
            arguments,
            steps: Vec::new(),
            prepare: NOTHING,
            keeper: ITSELF,
        };
        boot.launch().await
    }

    async fn launch_helper(&self, spec: &HelperSpec) -> Result<Machine, MachineError> {
        let file = |operation, path: &Path| {
            let (id, path) = (spec.id.clone(), path.to_path_buf());
            move |source| MachineError::File { id, operation, path, source }
        };
        let mount_point = spec.state_directory.join("mount");
        for folder in [&mount_point, &spec.data_directory] {
            fs::create_dir_all(folder).map_err(file("make folder", folder))?;
        }
        fs::metadata(&spec.root).map_err(file("find the helper image's root", &spec.root))?;
        let agent = spec.guest_directory.join("arca-helper-agent");
        fs::metadata(&agent).map_err(file("find the guest program", &agent))?;
        let steps = helper::steps(spec, &mount_point, &agent).map_err(file("prepare the root of", &spec.root))?;
        let boot = Boot {
            id: &spec.id,
            kind: Kind::Namespace,
            role: Role::Helper,
            address: Address::Sockets(spec.socket_directory.clone()),
            socket_directory: &spec.socket_directory,
            state_directory: &spec.state_directory,
            guest_directory: &spec.guest_directory,
            environment: &spec.environment,
            ready_timeout: spec.ready_timeout,
            namespaces: libc::CLONE_NEWNET
                | libc::CLONE_NEWNS
                | libc::CLONE_NEWPID
                | libc::CLONE_NEWIPC
                | libc::CLONE_NEWUTS,
            path: Path::new(helper::AGENT),
            arguments: vec![
                helper::AGENT.to_owned(),
                "init".to_owned(),
                format!("--listen=sockets:{}", helper::SOCKETS),
                format!("--log-level={}", spec.log_level),
            ],
            steps,
            prepare: NOTHING,
            keeper: ITSELF,
        };
        boot.launch().await
    }

    async fn release_cgroups(&self, guest_directory: &Path, parent: &str) -> Result<(), MachineError> {
        process::run_init(guest_directory, &["sweep".into(), format!("--cgroup={parent}")]).await.map_err(|source| {
            MachineError::Process { id: parent.to_owned(), operation: "release the engine's cgroup", source }
        })
    }
}

impl Boot<'_> {
    fn file(&self, operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
        let (id, path) = (self.id.to_owned(), path.to_path_buf());
        move |source| MachineError::File { id, operation, path, source }
    }

    /// Launches it and waits for READY.
    pub(crate) async fn launch(self) -> Result<Machine, MachineError> {
        self.make_way().await?;
        let launched = self.try_launch().await;
        if launched.is_err() {
            // Whatever was made is removed; the log stays for whoever reads the error.
            let _ = fs::remove_dir_all(self.socket_directory);
        }
        launched
    }

    /// Nothing may be touched of a machine that runs; what a dead one left goes first.
    async fn make_way(&self) -> Result<(), MachineError> {
        let port = match self.role {
            Role::Container => ports::INIT,
            Role::Helper => ports::HELPER,
        };
        if dial(&self.address, port).await.is_ok() {
            return Err(MachineError::Running {
                id: self.id.to_owned(),
                directory: self.socket_directory.to_path_buf(),
            });
        }
        let left = process::sweep_sockets(self.role, self.socket_directory, self.guest_directory).await;
        if left.is_empty() { Ok(()) } else { Err(MachineError::Teardown { id: self.id.to_owned(), failures: left }) }
    }

    async fn try_launch(&self) -> Result<Machine, MachineError> {
        for folder in [self.socket_directory, self.state_directory] {
            fs::create_dir_all(folder).map_err(self.file("make folder", folder))?;
        }
        let log_path = self.state_directory.join(LOG);
        let log = fs::OpenOptions::new().create(true).append(true).open(&log_path);
        let log = log.map_err(self.file("open log", &log_path))?;
        let log_start = log.metadata().map_or(0, |metadata| metadata.len());
        let ready = Ready::bind(self.socket_directory);
        let ready = ready.map_err(self.file("listen for READY in", self.socket_directory))?;
        (self.prepare)().map_err(self.file("prepare", self.state_directory))?;
        let program = self.program(log).map_err(self.file("prepare the arguments of", self.path))?;
        let spawned = spawn(&program).map_err(|error| MachineError::Spawn {
            id: self.id.to_owned(),
            step: error.step,
            source: error.source,
        })?;
        let process = Process::child(spawned).map_err(|source| MachineError::Process {
            id: self.id.to_owned(),
            operation: "watch the new process",
            source,
        })?;
        let record = Record {
            id: self.id.to_owned(),
            kind: self.kind,
            role: self.role,
            address: self.address.clone(),
            pid: process.pid(),
            start_time: process.start_time(),
            log: log_path,
            state_directory: self.state_directory.to_path_buf(),
            guest_directory: self.guest_directory.to_path_buf(),
        };
        let machine = Machine::new(record.clone(), (self.keeper)(process));
        let booted = self.boot(&machine, &record, &ready, log_start).await;
        if booted.is_err()
            && let Err(error) = machine.destroy(Duration::ZERO).await
        {
            tracing::warn!(machine_id = self.id, %error, "undo of a failed launch");
        }
        booted.map(|()| machine)
    }

    async fn boot(&self, machine: &Machine, record: &Record, ready: &Ready, log: u64) -> Result<(), MachineError> {
        // Before READY: a launcher that dies now leaves a machine that the next one finds.
        record.store().map_err(self.file("write the machine record in", self.state_directory))?;
        tokio::select! {
            // Each arm is waited for once; losing the others' progress is the end of the launch anyway.
            said = ready.wait() => said.map_err(self.file("accept READY in", self.socket_directory)),
            () = machine.wait_exit() => {
                Err(MachineError::Died { id: self.id.to_owned(), log: tail(&record.log, log) })
            }
            () = tokio::time::sleep(self.ready_timeout) => Err(MachineError::NotReady {
                id: self.id.to_owned(),
                timeout: self.ready_timeout,
                log: tail(&record.log, log),
            }),
        }
    }

    fn program(&self, log: fs::File) -> io::Result<Program> {
        let inherited = INHERITED.iter().filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)));
        let environment = inherited
            .filter(|(name, _)| !self.environment.iter().any(|(other, _)| other == name))
            .chain(self.environment.iter().cloned());
        Ok(Program {
            path: cstring(self.path)?,
            arguments: self.arguments.iter().map(cstring).collect::<io::Result<_>>()?,
            environment: environment.map(|(k, v)| cstring(format!("{k}={v}"))).collect::<io::Result<_>>()?,
            namespaces: self.namespaces,
            steps: self.steps.clone(),
            log,
        })
    }
}

/// The end of what this launch wrote to the log.
fn tail(path: &PathBuf, from: u64) -> String {
    let read = || -> io::Result<String> {
        let mut file = fs::File::open(path)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(from.max(length.saturating_sub(LOG_TAIL))))?;
        let mut bytes = Vec::new();
        file.take(LOG_TAIL).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).trim_end().to_owned())
    };
    read().unwrap_or_else(|error| format!("(no log: {error})"))
}
