// SPDX-License-Identifier: Apache-2.0
//! File systems that the first process needs. A namespace machine comes with them; a VM boots with none.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::path::Path;

use nix::mount::{MsFlags, mount};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

use crate::layout::Layout;

/// Mounts what is not mounted, and makes the folders and the TUN device node.
///
/// # Errors
/// The first thing that failed, named.
pub(super) fn prepare(layout: &Layout) -> anyhow::Result<()> {
    let quiet = MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC | MsFlags::MS_NODEV;
    let plain = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    for (kind, target, flags, data) in [
        ("proc", "/proc", quiet, ""),
        ("sysfs", "/sys", quiet, ""),
        ("devtmpfs", "/dev", MsFlags::MS_NOSUID, "mode=755"),
        ("tmpfs", "/run", plain, "mode=755"),
        ("tmpfs", "/tmp", plain, "mode=1777"),
    ] {
        let target = Path::new(target);
        if !is_mounted(target) {
            make_folder(target)?;
            mount(Some(kind), target, Some(kind), flags, Some(data))
                .map_err(|e| anyhow::anyhow!("mount {kind} on {}: {e}", target.display()))?;
        }
    }
    for folder in [layout.ovs_run(), layout.ovn_run(), layout.data.clone(), "/dev/net".into()] {
        make_folder(&folder)?;
    }
    let tun = Path::new("/dev/net/tun");
    if !tun.exists() {
        mknod(tun, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(10, 200))
            .map_err(|e| anyhow::anyhow!("make {} (no TUN in this kernel?): {e}", tun.display()))?;
    }
    Ok(())
}

fn make_folder(path: &Path) -> anyhow::Result<()> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o755)
        .create(path)
        .map_err(|e: io::Error| anyhow::anyhow!("make folder {}: {e}", path.display()))
}

/// Another device than the folder above: something is mounted here.
fn is_mounted(path: &Path) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|m| m.dev());
    match (device(path), path.parent().map(device)) {
        (Ok(own), Some(Ok(above))) => own != above,
        _ => false,
    }
}
