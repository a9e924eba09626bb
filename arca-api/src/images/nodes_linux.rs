// SPDX-License-Identifier: Apache-2.0
//! Special files of a layer and overlayfs marks on Linux. Called by the unpacker of layers.

use std::{fs, io, path::Path};

use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// A special file.
#[derive(Clone, Copy, Debug)]
pub(super) enum Node {
    /// A character device; 0/0 is overlayfs's whiteout.
    Char { major: u32, minor: u32 },
    /// A block device.
    Block { major: u32, minor: u32 },
    /// A named pipe.
    Fifo,
}

/// Makes `node` at `path` with permissions `mode`, in place of what an earlier entry put there.
///
/// # Errors
/// If the kernel refuses: devices need privileges.
pub(super) fn make_node(path: &Path, node: Node, mode: u32) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path)?,
        Ok(_) => fs::remove_file(path)?,
        Err(_) => {}
    }
    let (kind, device) = match node {
        Node::Char { major, minor } => (SFlag::S_IFCHR, makedev(major.into(), minor.into())),
        Node::Block { major, minor } => (SFlag::S_IFBLK, makedev(major.into(), minor.into())),
        Node::Fifo => (SFlag::S_IFIFO, 0),
    };
    Ok(mknod(path, kind, Mode::from_bits_truncate(mode), device)?)
}

/// Marks `directory` opaque: overlayfs then hides what lower layers have there.
///
/// # Errors
/// If the filesystem keeps no such attributes, or without privileges.
pub(super) fn set_opaque(directory: &Path) -> io::Result<()> {
    xattr::set(directory, "trusted.overlay.opaque", b"y")
}
