// SPDX-License-Identifier: Apache-2.0
//! File systems of a machine that booted from an initramfs.

use std::{
    fs::{self, OpenOptions},
    io,
    os::{
        fd::{AsRawFd, IntoRawFd},
        unix::fs::MetadataExt,
    },
    path::Path,
};

use nix::{
    libc,
    mount::{MsFlags, mount},
    unistd::{chdir, chroot},
};

use super::EarlyBootError;

/// Tag of the virtiofs share, and where it is mounted.
const SHARE: (&str, &str) = ("arca", "/arca");
/// Any folder of the image that is empty.
const NEW_ROOT: &str = "/newroot";
const CGROUPS: &str = "/sys/fs/cgroup";

/// Everything that comes from the kernel alone.
pub(super) fn kernel_file_systems() -> Result<(), EarlyBootError> {
    leave_initial_root()?;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    let quiet = plain | MsFlags::MS_NOEXEC;
    let device = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    for (kind, target, flags, data) in [
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"),
        ("devpts", "/dev/pts", device, "mode=620,ptmxmode=666"),
        ("tmpfs", "/dev/shm", plain, "mode=1777"),
        ("mqueue", "/dev/mqueue", quiet, ""),
        ("tmpfs", "/run", plain, "mode=755"),
        ("tmpfs", "/tmp", plain, "mode=1777"),
    ] {
        make(kind, kind, Path::new(target), flags, data)?;
    }
    standard_streams()
}

/// pivot_root(2) refuses to leave the initial root, so no container could start there. The same files, mounted over it,
/// are a root like any other.
fn leave_initial_root() -> Result<(), EarlyBootError> {
    make_folder(Path::new(NEW_ROOT)).map_err(|source| EarlyBootError::Step { step: "make a folder", source })?;
    mount(Some("/"), NEW_ROOT, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(EarlyBootError::step("bind the root"))?;
    chdir(NEW_ROOT).map_err(EarlyBootError::step("enter the root"))?;
    mount(Some("."), "/", None::<&str>, MsFlags::MS_MOVE, None::<&str>)
        .map_err(EarlyBootError::step("move the root"))?;
    chroot(".").map_err(EarlyBootError::step("change the root"))?;
    chdir("/").map_err(EarlyBootError::step("enter the root"))
}

/// Version 2, with every controller that the kernel has handed down to the groups of workloads.
pub(super) fn control_groups() -> Result<(), EarlyBootError> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    make("cgroup2", "cgroup2", Path::new(CGROUPS), quiet, "nsdelegate,memory_recursiveprot")?;
    let failed = |source| EarlyBootError::Step { step: "hand cgroup controllers down", source };
    let controllers = fs::read_to_string(Path::new(CGROUPS).join("cgroup.controllers")).map_err(failed)?;
    for controller in controllers.split_ascii_whitespace() {
        // One by one: a controller that cannot be had must not take the others with it.
        if let Err(error) = fs::write(Path::new(CGROUPS).join("cgroup.subtree_control"), format!("+{controller}")) {
            tracing::warn!(controller, %error, "a cgroup controller cannot be handed down");
        }
    }
    Ok(())
}

/// Mounts the host's share. Without one (a helper, a boot by hand) the folder stays empty.
pub(super) fn share() {
    let (tag, target) = SHARE;
    match make("virtiofs", tag, Path::new(target), MsFlags::MS_NODEV, "") {
        Ok(()) => tracing::debug!(tag, target, "the host's share is mounted"),
        Err(error) => tracing::info!(tag, error = &error as &dyn std::error::Error, "no share of the host"),
    }
}

fn make(kind: &'static str, source: &str, target: &Path, flags: MsFlags, data: &str) -> Result<(), EarlyBootError> {
    let failed = |source| EarlyBootError::Mount { kind, target: target.into(), source };
    make_folder(target).map_err(failed)?;
    if is_mounted(target) {
        return Ok(());
    }
    mount(Some(source), target, Some(kind), flags, Some(data)).map_err(|errno| failed(errno.into()))
}

/// Another device than the folder above: something is mounted here.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(above))) => own != above,
        _ => false,
    }
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The kernel gives its first process the console, if the image had a node for it; otherwise log lines would go where
/// the next opened file is.
fn standard_streams() -> Result<(), EarlyBootError> {
    let failed = |source| EarlyBootError::Step { step: "open the console", source };
    let console = OpenOptions::new().read(true).write(true).open("/dev/console");
    // A machine without a console (none was asked for) logs to nowhere.
    let stream = console.or_else(|_| OpenOptions::new().read(true).write(true).open("/dev/null")).map_err(failed)?;
    for number in 0..=2 {
        if stream.as_raw_fd() == number {
            continue;
        }
        // SAFETY: two descriptor numbers; the standard streams belong to the whole process.
        nix::errno::Errno::result(unsafe { libc::dup2(stream.as_raw_fd(), number) })
            .map_err(EarlyBootError::step("set the standard streams"))?;
    }
    if stream.as_raw_fd() <= 2 {
        // It is one of them now and stays open.
        let _ = stream.into_raw_fd();
    }
    Ok(())
}
