// SPDX-License-Identifier: Apache-2.0
//! Special files of a layer where the host has no overlayfs: none can be made. Called by the unpacker of layers.

use std::{io, path::Path};

/// A special file.
#[derive(Clone, Copy, Debug)]
#[expect(dead_code, reason = "said by the archive, asked for on Linux only")]
pub(super) enum Node {
    /// A character device; 0/0 is overlayfs's whiteout.
    Char { major: u32, minor: u32 },
    /// A block device.
    Block { major: u32, minor: u32 },
    /// A named pipe.
    Fifo,
}

/// Refuses: layers are overlayfs directories, which only Linux reads.
///
/// # Errors
/// Always [`io::ErrorKind::Unsupported`].
pub(super) fn make_node(_path: &Path, _node: Node, _mode: u32) -> io::Result<()> {
    Err(unsupported())
}

/// Refuses, as [`make_node`].
///
/// # Errors
/// Always [`io::ErrorKind::Unsupported`].
pub(super) fn set_opaque(_directory: &Path) -> io::Result<()> {
    Err(unsupported())
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "device files and opaque directories of layers need Linux")
}
