// SPDX-License-Identifier: Apache-2.0
//! What arca-init does with itself before anything else runs: its own mount namespace, reaper of orphans.

use std::{io, path::Path};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
};

use crate::cgroup;

const HYBRID: &str = "/sys/fs/cgroup/unified";

/// Which part of it failed.
#[derive(Debug, thiserror::Error)]
#[error("{step} (root privileges are needed)")]
pub(crate) struct IsolationError {
    step: &'static str,
    source: io::Error,
}

/// Takes a private mount namespace, so that every mount made later dies with this process, and becomes the parent of
/// orphans. Call before the first thread: namespaces are a thread's.
///
/// # Errors
/// The step that the system refused.
pub(crate) fn enter() -> Result<(), IsolationError> {
    let fail = |step| move |errno: nix::errno::Errno| IsolationError { step, source: errno.into() };
    unshare(CloneFlags::CLONE_NEWNS).map_err(fail("take a mount namespace"))?;
    let private = MsFlags::MS_REC | MsFlags::MS_PRIVATE;
    mount(None::<&str>, "/", None::<&str>, private, None::<&str>).map_err(fail("make mounts private"))?;
    hide_hybrid().map_err(fail("hide the version 2 mount of a hybrid cgroup host"))?;
    nix::sys::prctl::set_child_subreaper(true).map_err(fail("become reaper of orphans"))
}

/// crun refuses hosts that have both cgroup versions. With the version 2 mount away it uses version 1, but still makes
/// folders where that mount was; a tmpfs of our own takes those, and goes with this mount namespace.
fn hide_hybrid() -> nix::Result<()> {
    if cgroup::is_v2(Path::new("/sys/fs/cgroup")) || !cgroup::is_v2(Path::new(HYBRID)) {
        return Ok(());
    }
    umount2(HYBRID, MntFlags::MNT_DETACH)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("tmpfs"), HYBRID, Some("tmpfs"), flags, Some("mode=755,size=1m"))
}
