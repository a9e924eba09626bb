// SPDX-License-Identifier: Apache-2.0
//! Makes a container's root the root of the calling thread, which has mounts and root of its own from then on. They go
//! with the thread.

use std::{
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
    sys::stat::{Mode, mkdirat},
    unistd::{chdir, chroot, fchdir},
};

use super::{Mount, Place};

/// The longest option text that mount(2) takes.
const OPTIONS: usize = 4000;

/// Enters; on failure the thread is good for nothing more.
pub(super) fn enter(place: &Place) -> io::Result<()> {
    match place {
        Place::There { pid, path, within } => {
            let process = Path::new("/proc").join(pid.to_string());
            let root = folder(&process.join("root").join(path.strip_prefix("/").unwrap_or(path)))?;
            // Asked after the root was opened: the number was the container's all the time then.
            let groups = std::fs::read_to_string(process.join("cgroup"))?;
            if within.as_ref().is_some_and(|name| !groups.contains(name.as_str())) {
                return Err(io::Error::new(io::ErrorKind::NotFound, "its process has ended"));
            }
            unshare(CloneFlags::CLONE_FS)?;
            change_root(&root)
        }
        Place::Kept { pid, path, binds } => {
            let mounts = std::fs::File::open(format!("/proc/{pid}/ns/mnt"))?;
            unshare(CloneFlags::CLONE_FS)?;
            setns(&mounts, CloneFlags::CLONE_NEWNS)?;
            own_mounts()?;
            let root = folder(path)?;
            bind_all(&root, binds)?;
            change_root(&root)
        }
        Place::Mount(wanted) => {
            own_mounts()?;
            match std::fs::create_dir(&wanted.target) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
                _ => {}
            }
            let options = options(wanted)?;
            mount(Some("overlay"), &wanted.target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?;
            let root = folder(&wanted.target)?;
            bind_all(&root, &wanted.binds)?;
            change_root(&root)
        }
    }
}

/// From here on the thread has mounts, root and working directory of its own.
fn own_mounts() -> io::Result<()> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    let nothing = None::<&str>;
    Ok(mount(nothing, "/", nothing, MsFlags::MS_PRIVATE | MsFlags::MS_REC, nothing)?)
}

/// Mounts what a container has mounted over its root.
fn bind_all(root: &OwnedFd, binds: &[(PathBuf, String)]) -> io::Result<()> {
    let nothing = None::<&str>;
    for (source, target) in binds {
        let place = mount_point(root, Path::new(target), source.is_dir())?;
        let place = format!("/proc/self/fd/{}", place.as_raw_fd());
        mount(Some(source), place.as_str(), nothing, MsFlags::MS_BIND | MsFlags::MS_REC, nothing)?;
    }
    Ok(())
}

fn folder(path: &Path) -> io::Result<OwnedFd> {
    Ok(open(path, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

fn change_root(root: &OwnedFd) -> io::Result<()> {
    fchdir(root)?;
    chroot(".")?;
    Ok(chdir("/")?)
}

fn options(wanted: &Mount) -> io::Result<String> {
    let escaped = |path: &Path| path.to_string_lossy().replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:");
    let lower: Vec<String> = wanted.lower.iter().map(|layer| escaped(layer)).collect();
    let options =
        format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), escaped(&wanted.upper), escaped(&wanted.work));
    if options.len() > OPTIONS {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("an image of {} layers cannot be looked into while the container does not run", lower.len()),
        ));
    }
    Ok(options)
}

/// The place of a mount below `root`, made where it is missing; links lead to places below `root` only.
fn mount_point(root: &OwnedFd, target: &Path, is_folder: bool) -> io::Result<OwnedFd> {
    let beneath = |path: &Path, flags: OFlag| {
        let how =
            OpenHow::new().flags(flags | OFlag::O_CLOEXEC).mode(mode_of(flags)).resolve(ResolveFlag::RESOLVE_IN_ROOT);
        openat2(root, path, how)
    };
    let mut path = PathBuf::from(".");
    let names: Vec<_> = target
        .components()
        .filter_map(|part| match part {
            Component::Normal(name) => Some(name),
            _ => None,
        })
        .collect();
    for (at, name) in names.iter().enumerate() {
        let parent = path.clone();
        path.push(name);
        match beneath(&path, OFlag::O_PATH) {
            Ok(_) => {}
            Err(nix::errno::Errno::ENOENT) if at + 1 == names.len() && !is_folder => {
                beneath(&path, OFlag::O_CREAT | OFlag::O_WRONLY)?;
            }
            Err(nix::errno::Errno::ENOENT) => {
                let parent = beneath(&parent, OFlag::O_PATH | OFlag::O_DIRECTORY)?;
                mkdirat(&parent, *name, Mode::from_bits_truncate(0o755))?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(beneath(&path, OFlag::O_PATH)?)
}

/// openat2 refuses a mode where nothing is made.
fn mode_of(flags: OFlag) -> Mode {
    if flags.contains(OFlag::O_CREAT) { Mode::from_bits_truncate(0o644) } else { Mode::empty() }
}
