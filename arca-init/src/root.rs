// SPDX-License-Identifier: Apache-2.0
//! The root file system of a workload: an overlay in arca-init's own mount namespace.

use std::{
    ffi::{CString, c_int, c_uint},
    io,
    os::{
        fd::{AsRawFd, FromRawFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
};

use arca_proto::init::v1::OverlayRoot;
use nix::{
    libc,
    mount::{MntFlags, MsFlags, mount, umount2},
};

/// mount(2) takes one page of options.
const OPTIONS: usize = 4000;

/// Mounts `root` on `target`.
///
/// # Errors
/// As mount(2); `InvalidInput` without a lower directory or with a relative path.
pub(crate) fn mount_overlay(root: &OverlayRoot, target: &Path) -> io::Result<()> {
    let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
    if root.lower_directories.is_empty() {
        return Err(invalid("an overlay needs at least one lower directory"));
    }
    let paths = root.lower_directories.iter().chain([&root.upper_directory, &root.work_directory]);
    if paths.into_iter().any(|path| !path.starts_with('/') || path.contains('\0')) {
        return Err(invalid("every directory of an overlay must be an absolute path"));
    }
    let lower: Vec<String> = root.lower_directories.iter().map(|path| escaped(path, true)).collect();
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        lower.join(":"),
        escaped(&root.upper_directory, false),
        escaped(&root.work_directory, false)
    );
    if options.len() < OPTIONS {
        return Ok(mount(Some("overlay"), target, Some("overlay"), MsFlags::empty(), Some(options.as_str()))?);
    }
    mount_many(root, target)
}

/// Takes the root away; one that is not mounted is fine.
///
/// # Errors
/// As umount(2).
pub(crate) fn unmount(target: &Path) -> io::Result<()> {
    match umount2(target, MntFlags::MNT_DETACH) {
        Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Commas end an option, colons a lower directory, backslashes escape.
fn escaped(path: &str, in_list: bool) -> String {
    let text = path.replace('\\', "\\\\").replace(',', "\\,");
    if in_list { text.replace(':', "\\:") } else { text }
}

/// An image of many layers: their paths do not fit into one page, so each is an option of its own (fsconfig(2),
/// `lowerdir+`, Linux 6.8).
fn mount_many(root: &OverlayRoot, target: &Path) -> io::Result<()> {
    let context = FileSystem::open(c"overlay")?;
    for lower in &root.lower_directories {
        context.set(c"lowerdir+", lower)?;
    }
    context.set(c"upperdir", &root.upper_directory)?;
    context.set(c"workdir", &root.work_directory)?;
    context.mount_on(target)
}

struct FileSystem(OwnedFd);

const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;

impl FileSystem {
    fn open(kind: &std::ffi::CStr) -> io::Result<Self> {
        // SAFETY: a C string and a number; the result is a new descriptor or an error.
        descriptor(unsafe { libc::syscall(libc::SYS_fsopen, kind.as_ptr(), FSOPEN_CLOEXEC) }).map(Self)
    }

    fn set(&self, key: &std::ffi::CStr, value: &str) -> io::Result<()> {
        let value = CString::new(value)?;
        // SAFETY: both strings outlive the call.
        done(unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                self.0.as_raw_fd(),
                FSCONFIG_SET_STRING,
                key.as_ptr(),
                value.as_ptr(),
                0 as c_int,
            )
        })
    }

    fn mount_on(&self, target: &Path) -> io::Result<()> {
        let target = CString::new(target.as_os_str().as_bytes())?;
        let null = std::ptr::null::<u8>();
        // SAFETY: numbers, null pointers where the calls take none, and strings that outlive the calls.
        unsafe {
            let fd = self.0.as_raw_fd();
            done(libc::syscall(libc::SYS_fsconfig, fd, FSCONFIG_CMD_CREATE, null, null, 0 as c_int))?;
            let mounted = descriptor(libc::syscall(libc::SYS_fsmount, fd, FSMOUNT_CLOEXEC, 0 as c_uint))?;
            done(libc::syscall(
                libc::SYS_move_mount,
                mounted.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_FDCWD,
                target.as_ptr(),
                MOVE_MOUNT_F_EMPTY_PATH,
            ))
        }
    }
}

fn done(result: libc::c_long) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

fn descriptor(result: libc::c_long) -> io::Result<OwnedFd> {
    done(result)?;
    let number = c_int::try_from(result).map_err(io::Error::other)?;
    // SAFETY: the system call has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
