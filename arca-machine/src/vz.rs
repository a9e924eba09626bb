// SPDX-License-Identifier: Apache-2.0
//! Virtual machines of Apple's Virtualization.framework: the launcher's side. arca-vz is each machine's keeper, and its face is
//! that of QEMU's machines: `<sockets>/vsock` (hybrid), `<sockets>/vmm` (control), `<state>/vm.json`, `<state>/vm-exit.json`.
//!
//! ```text
//! launch ── bind <sockets>/vsock_9000 ── spawn arca-vz (standard input: its lease) ── record ── READY ── `keep` ──> Machine
//! ```
//!
//! The lease ends the machine with its launcher until the launcher has it on record and says so; from then on it stands alone.
//! Whether arca-vz lives is told by a connection that it holds open, so nothing here is macOS's own and all of it is tested over
//! a stand-in. It has not yet run on a Mac.

use std::{
    fs, io,
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use arca_proto::{
    dial::{Address, dial, with_short_path},
    keeper::{self, Request},
    ports,
};
use async_trait::async_trait;
use nix::{
    libc,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
    process::{Child, ChildStdin, Command},
    sync::watch,
};

use crate::{
    ContainerSpec, Driver, HelperSpec, Kind, Machine, MachineError, Network, Overlay, Record, Role, VmFiles, VmState,
    control::Asked, files::check_image, machine::Keeper, ready::Ready,
};

/// Name of the keeper's program, beside the others.
const PROGRAM: &str = "arca-vz";
const FACE: &str = "vsock";
/// What a guest needs for itself beside what its workload may use.
const OWN: u64 = 96 << 20;
/// A guest without a limit.
const MEMORY: u64 = 512 << 20;
/// Of the helper machine.
const HELPER_MEMORY: u64 = 256 << 20;
/// What arca-vz needs beyond the grace that the guest was given: it stops the machine, and that may take ten seconds.
const CLEANUP: Duration = Duration::from_secs(15);

/// Makes machines of these parts.
#[derive(Debug)]
struct Vz {
    files: VmFiles,
}

#[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "virtual machines are made otherwise elsewhere"))]
pub(crate) fn driver(files: VmFiles) -> Result<Arc<dyn Driver>, MachineError> {
    Ok(Arc::new(Vz { files }))
}

/// The same by itself, for whoever has a stand-in for the program arca-vz: its tests, on every platform.
#[derive(Debug)]
pub struct Launcher(Vz);

impl Launcher {
    /// Machines made of these parts; `arca-vz` lies beside [`VmFiles::keeper`].
    #[must_use]
    pub fn new(files: VmFiles) -> Self {
        Self(Vz { files })
    }

    /// As [`crate::Machines::launch_container`].
    ///
    /// # Errors
    /// See [`MachineError`].
    pub async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError> {
        self.0.launch_container(spec).await
    }

    /// The machine that somebody else launched, if it runs.
    ///
    /// # Errors
    /// The record cannot be read.
    pub fn adopt(&self, state_directory: &Path) -> Result<Option<Machine>, MachineError> {
        Record::find(state_directory)?.map_or(Ok(None), |record| open(&record))
    }
}

/// What differs between the two roles.
struct Guest<'a> {
    id: &'a str,
    role: Role,
    image: &'a Path,
    sockets: &'a Path,
    state: &'a Path,
    guest_directory: &'a Path,
    memory: u64,
    cpus: u32,
    words: Vec<String>,
    nic: Option<Value>,
    log_level: &'a str,
    ready_timeout: Duration,
}

#[async_trait]
impl Driver for Vz {
    async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError> {
        let (network, nic) = match &spec.network {
            Network::Host => {
                return Err(MachineError::Unavailable {
                    kind: "virtual",
                    reason: "the host's network is not a virtual machine's",
                });
            }
            Network::Links => ("links", None),
            Network::Native(nic) => ("native", Some(json!({"wire": nic.wire, "mtu": nic.mtu}))),
        };
        self.launch(Guest {
            id: &spec.id,
            role: Role::Container,
            image: &self.files.init_image,
            sockets: &spec.socket_directory,
            state: &spec.state_directory,
            guest_directory: &spec.guest_directory,
            memory: spec.size.memory.map_or(MEMORY, |limit| limit.saturating_add(OWN)),
            cpus: spec.size.cpus.unwrap_or_else(all_cpus),
            words: vec![format!("arca.network={network}")],
            nic,
            log_level: &spec.log_level,
            ready_timeout: spec.ready_timeout,
        })
        .await
    }

    async fn launch_helper(&self, spec: &HelperSpec) -> Result<Machine, MachineError> {
        if spec.card != crate::Card::None {
            return Err(MachineError::Unavailable {
                kind: "virtual",
                reason: "a helper machine has no way out by a network card on this platform yet",
            });
        }
        self.launch(Guest {
            id: &spec.id,
            role: Role::Helper,
            image: &self.files.helper_image,
            sockets: &spec.socket_directory,
            state: &spec.state_directory,
            guest_directory: &spec.guest_directory,
            memory: HELPER_MEMORY,
            cpus: 1,
            words: Vec::new(),
            nic: None,
            log_level: &spec.log_level,
            ready_timeout: spec.ready_timeout,
        })
        .await
    }

    async fn release_cgroups(&self, _guest_directory: &Path, _parent: &str) -> Result<(), MachineError> {
        // Cgroups are in the guests, and go with them.
        Ok(())
    }
}

fn all_cpus() -> u32 {
    std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1))
}

impl Guest<'_> {
    fn file(&self, operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> MachineError {
        let (id, path) = (self.id.to_owned(), path.to_path_buf());
        move |source| MachineError::File { id, operation, path, source }
    }

    /// What arca-vz is told.
    fn spec(&self, kernel: &Path) -> Value {
        let role = if self.role == Role::Container { "container" } else { "helper" };
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let log = self.log_level.replace(char::is_whitespace, "");
        // The framework's console is a virtio one. What reboots is booted again there, so a panic stays visible instead.
        let mut line = format!("console=hvc0 quiet panic=0 NO_COLOR=1 arca.role={role} arca.id={}", self.id);
        for word in [format!("arca.log={log}"), format!("arca.time={since}")].iter().chain(&self.words) {
            line.push(' ');
            line.push_str(word);
        }
        json!({
            "id": self.id, "role": role, "kernel": kernel, "image": self.image, "command_line": line,
            "memory": (self.memory + ((1 << 20) - 1)) & !((1 << 20) - 1), "cpus": self.cpus.max(1),
            "sockets": self.sockets, "state": self.state, "nic": self.nic,
        })
    }
}

impl Vz {
    async fn launch(&self, guest: Guest<'_>) -> Result<Machine, MachineError> {
        self.files.kernel_format()?;
        let recipe = match guest.role {
            Role::Container => "make it with `just vminit`, or set initImage",
            Role::Helper => "make it with `just helpervm`, or set helperImage",
        };
        check_image(guest.image, recipe)?;
        let program = self.files.keeper.with_file_name(PROGRAM);
        if !program.is_file() {
            return Err(MachineError::Missing {
                what: format!("the keeper of virtual machines {}", program.display()),
                fix: "arca-vz belongs beside the other programs, signed with its entitlement (`just sign`)".to_owned(),
            });
        }
        let address = Address::Hybrid(guest.sockets.join(FACE));
        if dial(&address, if guest.role == Role::Container { ports::INIT } else { ports::HELPER }).await.is_ok() {
            return Err(MachineError::Running { id: guest.id.to_owned(), directory: guest.sockets.to_path_buf() });
        }
        let _ = fs::remove_dir_all(guest.sockets);
        let launched = self.try_launch(&guest, &program, address).await;
        if launched.is_err() {
            // Whatever was made is removed; the logs stay for whoever reads the error.
            let _ = fs::remove_dir_all(guest.sockets);
        }
        // Its log is long; how it ended is one line.
        launched.map_err(|error| match (error, reason(guest.state)) {
            (MachineError::Died { id, .. }, Some(reason)) => MachineError::Ended { id, reason },
            (error, _) => error,
        })
    }

    async fn try_launch(&self, guest: &Guest<'_>, program: &Path, address: Address) -> Result<Machine, MachineError> {
        for folder in [guest.sockets, guest.state] {
            fs::create_dir_all(folder).map_err(guest.file("make folder", folder))?;
        }
        let _ = fs::remove_file(guest.state.join("vm-exit.json"));
        let plan = guest.state.join("vm.json");
        fs::write(&plan, guest.spec(&self.files.kernel).to_string()).map_err(guest.file("write", &plan))?;
        let ready = Ready::bind_at(&guest.sockets.join(format!("{FACE}_{}", ports::READY)));
        let ready = ready.map_err(guest.file("listen for READY in", guest.sockets))?;
        let log = guest.state.join("machine.log");
        let (mut child, lease) = start(program, &plan, guest.log_level, &log).map_err(|source| {
            MachineError::Spawn { id: guest.id.to_owned(), step: format!("execute {}", program.display()), source }
        })?;
        let record = Record {
            id: guest.id.to_owned(),
            kind: Kind::Vm,
            role: guest.role,
            address,
            pid: child.id().unwrap_or_default(),
            // Not needed: whether this is still that process is told by the connection that it holds.
            start_time: 0,
            log,
            state_directory: guest.state.to_path_buf(),
            guest_directory: guest.guest_directory.to_path_buf(),
        };
        let booted = async {
            record.store().map_err(guest.file("write the machine record in", guest.state))?;
            tokio::select! {
                // Each arm is waited for once; losing the others' progress is the end of the launch anyway.
                said = ready.wait() => said.map_err(guest.file("accept READY in", guest.sockets)),
                _ = child.wait() => Err(MachineError::Died { id: guest.id.to_owned(), log: String::new() }),
                () = tokio::time::sleep(guest.ready_timeout) => Err(MachineError::NotReady {
                    id: guest.id.to_owned(),
                    timeout: guest.ready_timeout,
                    log: format!("see {} and console.log beside it", record.log.display()),
                }),
            }
        };
        let kept = match booted.await {
            Ok(()) => keep(lease, &record).await,
            Err(error) => Err(error),
        };
        match kept {
            Ok(keeper) => {
                // Its exit status is taken, or it would stay as a zombie; what it says stands in its record.
                tokio::spawn(async move { child.wait().await });
                Ok(Machine::new(record, Arc::new(keeper)))
            }
            Err(error) => {
                // The lease went with `keep`, or goes now with this process's end of the pipe.
                let _ = child.kill().await;
                let _ = record.remove();
                Err(error)
            }
        }
    }
}

/// Says that the machine is on record: from here on it stands alone.
async fn keep(mut lease: ChildStdin, record: &Record) -> Result<VzKeeper, MachineError> {
    let failed = |source| MachineError::Process { id: record.id.clone(), operation: "reach arca-vz", source };
    let keeper = VzKeeper::of(record).map_err(failed)?;
    lease.write_all(b"keep\n").await.map_err(failed)?;
    lease.flush().await.map_err(failed)?;
    Ok(keeper)
}

/// Starts arca-vz, leader of a session of its own: no terminal's end and no daemon's reaches it.
fn start(program: &Path, plan: &Path, log_level: &str, log: &Path) -> io::Result<(Child, ChildStdin)> {
    let log = fs::OpenOptions::new().create(true).append(true).open(log)?;
    let mut command = std::process::Command::new(program);
    command.arg("--spec").arg(plan).arg("--lease").env("ARCA_LOG_LEVEL", log_level);
    command.stdin(Stdio::piped()).stdout(log.try_clone()?).stderr(log);
    // SAFETY: one system call, on no memory at all.
    unsafe {
        command.pre_exec(|| if libc::setsid() == -1 { Err(io::Error::last_os_error()) } else { Ok(()) });
    }
    let mut child = Command::from(command).spawn()?;
    let lease = child.stdin.take().ok_or_else(|| io::Error::other("no pipe to arca-vz"))?;
    Ok((child, lease))
}

fn reason(state: &Path) -> Option<String> {
    let end: Value = serde_json::from_slice(&fs::read(state.join("vm-exit.json")).ok()?).ok()?;
    end["reason"].as_str().map(str::to_owned)
}

/// Whether any virtual machine here runs on the processor itself: the framework has no other.
#[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "asked of what makes virtual machines here"))]
pub(crate) fn is_fast() -> bool {
    true
}

/// Finds the machine of a record: none if nobody answers for it.
pub(crate) fn open(record: &Record) -> Result<Option<Machine>, MachineError> {
    match VzKeeper::of(record) {
        Ok(keeper) => Ok(Some(Machine::new(record.clone(), Arc::new(keeper)))),
        Err(error) => {
            tracing::debug!(machine_id = record.id, %error, "nobody keeps this machine");
            Ok(None)
        }
    }
}

/// Removes what a machine that is not running left.
pub(crate) fn sweep(record: &Record, failures: Vec<String>) -> Result<(), MachineError> {
    record.sweep(failures)
}

/// arca-vz as its launcher, or the next one, sees it.
#[derive(Debug)]
struct VzKeeper {
    /// True once it has ended.
    ended: watch::Receiver<bool>,
}

impl VzKeeper {
    /// By a connection that says nothing: arca-vz waits for a question there as long as it lives.
    fn of(record: &Record) -> io::Result<Self> {
        let sockets = record.sockets().ok_or_else(|| io::Error::other("the record has no socket directory"))?;
        let (_guard, path) = with_short_path(&sockets.join(keeper::SOCKET))?;
        let held = std::os::unix::net::UnixStream::connect(path)?;
        held.set_nonblocking(true)?;
        let mut held = UnixStream::from_std(held)?;
        let (tell, ended) = watch::channel(false);
        tokio::spawn(async move {
            let _ = held.read(&mut [0; 1]).await;
            tell.send_replace(true);
        });
        Ok(Self { ended })
    }

    async fn ended_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, self.wait_exit()).await.is_ok()
    }
}

fn asked(record: &Record) -> Asked<'_> {
    Asked { record, operation: "ask arca-vz" }
}

#[async_trait]
impl Keeper for VzKeeper {
    async fn wait_exit(&self) {
        // An error: the task that tells went with the runtime.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }

    async fn destroy(&self, record: &Record, grace: Duration) -> Result<(), MachineError> {
        let mut failures = Vec::new();
        if !*self.ended.borrow() {
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            let told = asked(record).answer(&Request::Stop { grace_ms }).await;
            if told.is_err() || !self.ended_within(grace + CLEANUP).await {
                // Its connection is still open, so the number is still its own.
                let killed = i32::try_from(record.pid).map(|pid| kill(Pid::from_raw(pid), Signal::SIGKILL));
                if !matches!(killed, Ok(Ok(()))) || !self.ended_within(CLEANUP).await {
                    failures.push(format!("process {} does not end", record.pid));
                }
            }
        }
        sweep(record, failures)
    }

    async fn expose(&self, record: &Record, path: &Path, read_only: bool) -> Result<PathBuf, MachineError> {
        asked(record).path(&Request::Expose { path: path.to_path_buf(), read_only }).await
    }

    async fn root(&self, _record: &Record, _name: &str, _overlay: &Overlay) -> Result<Option<PathBuf>, MachineError> {
        Err(MachineError::Unavailable {
            kind: "virtual",
            reason: "a container's root file system is not made on macOS yet, which has no overlay file system",
        })
    }

    async fn vm_state(&self, record: &Record) -> Result<Option<VmState>, MachineError> {
        asked(record).state().await.map(Some)
    }
}
