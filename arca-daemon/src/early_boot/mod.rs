// SPDX-License-Identifier: Apache-2.0
//! The first process of a virtual machine: what a kernel leaves to do before a program may run as elsewhere.
//!
//! arca-init and arca-helper-agent are each `/init` of an image; both call [`prepare`] before their first thread and
//! [`power_off`] at their end. In a namespace machine nothing of this happens: its launcher has done it all.

mod command_line;
mod modules;
mod mounts;

use std::{
    io,
    path::PathBuf,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use nix::{
    libc,
    sys::resource::{Resource, setrlimit},
    sys::time::TimeSpec,
    time::{ClockId, clock_gettime, clock_settime},
    unistd::sethostname,
};

pub use command_line::{CommandLine, Role};

/// Where the program lies that the kernel runs first.
const INIT: &str = "/init";
/// As many files as a process may have by default (fs.nr_open): workloads inherit it, as they do from Docker.
const FILES: u64 = 1 << 20;
/// Longest host name (uname(2)).
const HOST_NAME: usize = 64;

/// What the kernel did not let us do.
#[derive(Debug, thiserror::Error)]
pub enum EarlyBootError {
    /// A file system.
    #[error("mount {kind} on {} (is it in this kernel? kernel-config/ lists what is needed)", target.display())]
    Mount {
        /// Type, as in mount(8).
        kind: &'static str,
        /// Where.
        target: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// Any other step.
    #[error("{step}")]
    Step {
        /// What was tried.
        step: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// The image is not the one for this kind of machine.
    #[error("this image is a {image} machine's, but the kernel command line says arca.role={asked}")]
    Role {
        /// What the program is.
        image: Role,
        /// What was asked for.
        asked: String,
    },
}

impl EarlyBootError {
    fn step(step: &'static str) -> impl FnOnce(nix::errno::Errno) -> Self {
        move |errno| Self::Step { step, source: errno.into() }
    }
}

/// Whether this process was started by a kernel and not by a person or a launcher.
#[must_use]
pub fn is_first_process() -> bool {
    std::process::id() == 1 && std::env::args_os().next().is_some_and(|name| name == INIT)
}

/// Mounts the kernel's file systems, starts the log, loads modules, sets name, clock and limits, and mounts the host's
/// share if there is one. Call in a process of one thread.
///
/// # Errors
/// What a machine cannot be without; the text names it.
pub fn prepare(role: Role) -> Result<CommandLine, EarlyBootError> {
    mounts::kernel_file_systems()?;
    let text = std::fs::read_to_string("/proc/cmdline")
        .map_err(|source| EarlyBootError::Step { step: "read /proc/cmdline", source })?;
    let line = CommandLine::parse(&text);
    crate::logging::init(line.log_level());
    if let Some(asked) = line.get("role").filter(|asked| *asked != role.as_str()) {
        return Err(EarlyBootError::Role { image: role, asked: asked.to_owned() });
    }
    modules::load();
    set_clock(line.time());
    // A name too long for the kernel is cut: it is only for people.
    let name: String = line.id().chars().take(HOST_NAME).collect();
    sethostname(&name).map_err(EarlyBootError::step("set the host name"))?;
    setrlimit(Resource::RLIMIT_NOFILE, FILES, FILES).map_err(EarlyBootError::step("raise the limit of open files"))?;
    if role == Role::Container {
        mounts::control_groups()?;
    }
    mounts::share();
    Ok(line)
}

/// A machine without a clock of its own starts in 1970. The host's time at the launch is the earliest that it can be; a
/// clock that is later is a real one.
fn set_clock(launched: Option<SystemTime>) {
    let Some(launched) = launched.filter(|launched| SystemTime::now() < *launched) else { return };
    let up = clock_gettime(ClockId::CLOCK_BOOTTIME).map_or(Duration::ZERO, Duration::from);
    let now = (launched + up).duration_since(UNIX_EPOCH).unwrap_or_default();
    if let Err(error) = clock_settime(ClockId::CLOCK_REALTIME, TimeSpec::from_duration(now)) {
        tracing::warn!(%error, "the clock cannot be set");
    }
}

/// Ends the machine; does not return while the kernel works.
///
/// On x86 without ACPI nothing can switch the power off: there the machine reboots, which its VMM takes for the end
/// (QEMU: `-no-reboot`).
pub fn power_off() -> ! {
    let can_switch_off = cfg!(not(target_arch = "x86_64")) || std::path::Path::new("/sys/firmware/acpi").exists();
    let how = if can_switch_off { libc::RB_POWER_OFF } else { libc::RB_AUTOBOOT };
    // SAFETY: sync takes nothing; reboot takes a number and, as the first process has the right, does not return.
    unsafe {
        libc::sync();
        libc::reboot(how);
    }
    // Ending process 1 makes the kernel panic, which ends the machine as well (`panic=-1`).
    std::process::exit(1)
}
