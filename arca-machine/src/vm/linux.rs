// SPDX-License-Identifier: Apache-2.0
//! Virtual machines of QEMU: the launcher's side. arca-vmm ([`crate::vmm`]) is each machine's keeper.

pub(crate) mod plan;

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use arca_proto::{dial::Address, keeper::Request, ports};
use async_trait::async_trait;
use nix::libc;

use self::plan::{Card, End, Plan};
use crate::{
    ContainerSpec, Driver, HelperSpec, Kind, Machine, MachineError, Network, Overlay, Record, Role, VmFiles, VmState,
    control::Asked,
    files::check_image,
    machine::Keeper,
    namespace::{Boot, Namespaces, process::Process},
};

/// What a guest needs for itself beside what its workload may use: kernel, page tables, arca-init, arca-tapfwd, crun.
const OWN: u64 = 96 << 20;
/// A guest without a limit.
const MEMORY: u64 = 512 << 20;
/// Of the helper machine.
const HELPER_MEMORY: u64 = 256 << 20;
/// A guest that gives no sign of life for this long has hung. A test says otherwise.
const PATIENCE: Duration = Duration::from_secs(60);
const PATIENCE_VARIABLE: &str = "ARCA_VM_PATIENCE_MS";
/// The first of the user ids that machines run as: far from those that people, services and containers are given.
const FIRST_UID: u32 = 0x6a00_0000;
/// What arca-vmm needs beyond the grace that the guest was given: it ends QEMU after ten seconds more.
const CLEANUP: Duration = Duration::from_secs(15);

/// Makes machines of these parts.
#[derive(Debug)]
struct Qemu {
    files: VmFiles,
}

pub(crate) fn driver(files: VmFiles) -> Result<Arc<dyn Driver>, MachineError> {
    Ok(Arc::new(Qemu { files }))
}

/// Whether KVM works here.
pub(crate) fn is_fast() -> bool {
    crate::vmm::Accelerator::find() == crate::vmm::Accelerator::Kvm
}

/// What differs between the two roles.
struct Guest<'a> {
    id: &'a str,
    role: Role,
    image: &'a Path,
    sockets: &'a Path,
    state: &'a Path,
    memory: u64,
    cpus: u32,
    words: Vec<String>,
    card: Option<Card>,
    shares: bool,
    log_level: &'a str,
}

impl Qemu {
    /// Finds every part; whatever is missing is said before anything is made.
    fn plan(&self, guest: Guest<'_>) -> Result<Plan, MachineError> {
        let recipe = match guest.role {
            Role::Container => "make it with `just vminit`, or set initImage",
            Role::Helper => "make it with `just helpervm`, or set helperImage",
        };
        let qemu = if cfg!(target_arch = "aarch64") { "qemu-system-aarch64" } else { "qemu-system-x86_64" };
        let format = self.files.kernel_format()?;
        check_image(guest.image, recipe)?;
        let virtiofsd = || self.files.program("virtiofsd", "install virtiofsd (1.10 or later), or set vmTools");
        let mut words = guest.words;
        words.push(format!("arca.log={}", guest.log_level.replace(char::is_whitespace, "")));
        Ok(Plan {
            id: guest.id.to_owned(),
            role: guest.role,
            kernel: self.files.kernel.clone(),
            format,
            image: guest.image.to_path_buf(),
            words,
            memory: (guest.memory + ((1 << 20) - 1)) & !((1 << 20) - 1),
            cpus: guest.cpus.max(1),
            sockets: guest.sockets.to_path_buf(),
            state: guest.state.to_path_buf(),
            qemu: self.files.program(qemu, "install qemu-system, or set vmTools")?,
            vhost_vsock: self.files.program(
                "vhost-device-vsock",
                "install vhost-device-vsock (Debian: rust-vhost-device-vsock; or cargo install vhost-device-vsock), or set \
                 vmTools",
            )?,
            virtiofsd: guest.shares.then(virtiofsd).transpose()?,
            // As the programs in it name themselves.
            tools: self.files.tools.as_ref().and_then(|tools| tools.canonicalize().ok()),
            uid: uid(guest.id),
            card: guest.card,
            disk: None,
            port: match guest.role {
                Role::Container => ports::INIT,
                Role::Helper => ports::HELPER,
            },
            patience_ms: patience(),
        })
    }

    async fn launch(
        &self,
        plan: &Plan,
        guest_directory: &Path,
        log_level: &str,
        ready_timeout: Duration,
    ) -> Result<Machine, MachineError> {
        let plan_path = Plan::path(&plan.state);
        if !self.files.keeper.is_file() {
            return Err(MachineError::Missing {
                what: format!("the keeper of virtual machines {}", self.files.keeper.display()),
                fix: "arca-vmm belongs beside the other programs".to_owned(),
            });
        }
        let boot = Boot {
            id: &plan.id,
            kind: Kind::Vm,
            role: plan.role,
            address: Address::Hybrid(plan.sockets.join("vsock")),
            socket_directory: &plan.sockets,
            state_directory: &plan.state,
            guest_directory,
            environment: &[("ARCA_LOG_LEVEL".to_owned(), log_level.to_owned())],
            ready_timeout,
            namespaces: libc::CLONE_NEWNS | libc::CLONE_NEWPID,
            path: &self.files.keeper,
            arguments: vec!["arca-vmm".to_owned(), plan_path.display().to_string()],
            steps: Vec::new(),
            prepare: &|| {
                End::remove(&plan.state)?;
                plan.store()?;
                // The vsock daemon makes its sockets there, and nobody else but root comes in.
                fs::set_permissions(&plan.sockets, fs::Permissions::from_mode(0o700))?;
                chown(&plan.sockets, Some(plan.uid), Some(plan.uid))
            },
            keeper: &|process| Arc::new(VmKeeper(process)),
        };
        let launched = boot.launch().await;
        // Its log is long; how it ended is one line.
        launched.map_err(|error| match (error, End::load(&plan.state)) {
            (MachineError::Died { id, .. }, Some(end)) => MachineError::Ended { id, reason: end.reason },
            (error, _) => error,
        })
    }
}

/// A user of its own for each machine, so that none can touch another's QEMU; an engine without privileges has only one.
fn uid(id: &str) -> u32 {
    let own = nix::unistd::geteuid();
    if !own.is_root() {
        return own.as_raw();
    }
    // FNV-1a. Two machines in 16 million share one: no harm beyond that.
    let hash = id.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    FIRST_UID + (hash & 0x00ff_ffff)
}

fn patience() -> u64 {
    let asked = std::env::var(PATIENCE_VARIABLE).ok().and_then(|text| text.parse().ok());
    asked.unwrap_or_else(|| u64::try_from(PATIENCE.as_millis()).unwrap_or(u64::MAX))
}

#[async_trait]
impl Driver for Qemu {
    async fn launch_container(&self, spec: &ContainerSpec) -> Result<Machine, MachineError> {
        let card = match &spec.network {
            Network::Host => {
                return Err(MachineError::Unavailable {
                    kind: "virtual",
                    reason: "the host's network is not a virtual machine's: use the runtime arca-ns",
                });
            }
            Network::Links => None,
            Network::Native(nic) => Some(Card::Tap { interface: nic.wire.clone() }),
        };
        let network = if card.is_none() { "links" } else { "native" };
        let plan = self.plan(Guest {
            id: &spec.id,
            role: Role::Container,
            image: &self.files.init_image,
            sockets: &spec.socket_directory,
            state: &spec.state_directory,
            memory: spec.size.memory.map_or(MEMORY, |limit| limit.saturating_add(OWN)),
            cpus: spec.size.cpus.unwrap_or_else(default_cpus),
            words: vec![format!("arca.network={network}")],
            card,
            shares: true,
            log_level: &spec.log_level,
        })?;
        self.launch(&plan, &spec.guest_directory, &spec.log_level, spec.ready_timeout).await
    }

    async fn launch_helper(&self, spec: &HelperSpec) -> Result<Machine, MachineError> {
        let plan = self.plan(Guest {
            id: &spec.id,
            role: Role::Helper,
            image: &self.files.helper_image,
            sockets: &spec.socket_directory,
            state: &spec.state_directory,
            memory: HELPER_MEMORY,
            cpus: 1,
            words: Vec::new(),
            card: match &spec.card {
                crate::Card::None => None,
                crate::Card::Tap { interface } => Some(Card::Tap { interface: interface.clone() }),
                crate::Card::User { network, host, spare: [dns, first] } => Some(Card::User {
                    options: format!("ipv6=off,net={network},host={host},dns={dns},dhcpstart={first}"),
                }),
            },
            shares: false,
            log_level: &spec.log_level,
        })?;
        self.launch(&plan, &spec.guest_directory, &spec.log_level, spec.ready_timeout).await
    }

    async fn release_cgroups(&self, guest_directory: &Path, parent: &str) -> Result<(), MachineError> {
        // Those of namespace machines, which one engine may have beside virtual ones.
        Namespaces.release_cgroups(guest_directory, parent).await
    }
}

/// As many as the host has where they are real ones; emulated ones only take each other's time.
fn default_cpus() -> u32 {
    let all = std::thread::available_parallelism().map_or(1, |cpus| u32::try_from(cpus.get()).unwrap_or(1));
    if is_fast() { all } else { 1 }
}

pub(crate) fn open(record: &Record) -> Result<Option<Machine>, MachineError> {
    let process = Process::of(record)?;
    Ok(process.map(|process| Machine::new(record.clone(), Arc::new(VmKeeper(process)))))
}

/// Removes what a machine that is not running left. Its processes and mounts went with arca-vmm.
pub(crate) fn sweep(record: &Record, mut failures: Vec<String>) -> Result<(), MachineError> {
    let mount_point = record.state_directory.join("vm");
    if let Err(error) = fs::remove_dir(&mount_point)
        && error.kind() != io::ErrorKind::NotFound
    {
        failures.push(format!("remove {}: {error}", mount_point.display()));
    }
    record.sweep(failures)
}

/// arca-vmm as its launcher, or the next one, sees it.
#[derive(Debug)]
struct VmKeeper(Process);

fn asked(record: &Record) -> Asked<'_> {
    Asked { record, operation: "ask arca-vmm" }
}

#[async_trait]
impl Keeper for VmKeeper {
    async fn wait_exit(&self) {
        self.0.wait_exit().await;
    }

    async fn destroy(&self, record: &Record, grace: Duration) -> Result<(), MachineError> {
        let mut failures = Vec::new();
        if self.0.ended_within(Duration::ZERO).await {
            if let Some(end) = End::load(&record.state_directory).filter(|end| !end.asked) {
                tracing::warn!(machine_id = record.id, reason = end.reason, "the virtual machine ended unasked");
            }
        } else {
            let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
            let told = match record.role {
                // It writes nothing that anybody reads afterwards.
                Role::Helper if grace.is_zero() => Err(MachineError::Process {
                    id: record.id.clone(),
                    operation: "end the machine",
                    source: io::Error::other("no grace"),
                }),
                _ => asked(record).answer(&Request::Stop { grace_ms }).await,
            };
            if let Err(error) = &told {
                tracing::debug!(machine_id = record.id, %error, "machine cannot be asked to end; it is killed");
            }
            if told.is_err() || !self.0.ended_within(grace + CLEANUP).await {
                failures.extend(self.0.kill().await);
            }
        }
        sweep(record, failures)
    }

    async fn expose(&self, record: &Record, path: &Path, read_only: bool) -> Result<PathBuf, MachineError> {
        asked(record).path(&Request::Expose { path: path.to_path_buf(), read_only }).await
    }

    async fn root(&self, record: &Record, name: &str, overlay: &Overlay) -> Result<Option<PathBuf>, MachineError> {
        let Overlay { lower, upper, work } = overlay.clone();
        asked(record).path(&Request::Root { name: name.to_owned(), lower, upper, work }).await.map(Some)
    }

    async fn unroot(&self, record: &Record, name: &str) -> Result<(), MachineError> {
        asked(record).answer(&Request::Unroot { name: name.to_owned() }).await.map(drop)
    }

    fn root_on_host(&self, record: &Record, name: &str) -> Option<PathBuf> {
        Some(record.state_directory.join(format!("vm/share/root-{name}")))
    }

    async fn vm_state(&self, record: &Record) -> Result<Option<VmState>, MachineError> {
        asked(record).state().await.map(Some)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn machines_run_as_users_that_nobody_else_is() {
        if nix::unistd::geteuid().is_root() {
            assert_ne!(uid("a"), uid("b"));
            assert!(uid("a") >= FIRST_UID);
        }
    }
}
