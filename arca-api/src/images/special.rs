// SPDX-License-Identifier: Apache-2.0
//! Device nodes and pipes of any archive; the tar library makes the other kinds. Called by `docker cp`.

use std::{
    io::{self, Read},
    path::Path,
};

use tar::{Entry, EntryType};

use super::nodes::{Node, make_node};

/// Makes what the entry says at `place`; `false` if it is none of these kinds.
///
/// # Errors
/// As mknod(2) and lchown(2), or a header that is no tar header.
pub(crate) fn make(entry: &mut Entry<'_, impl Read>, place: &Path) -> io::Result<bool> {
    let header = entry.header();
    let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default);
    let node = match header.entry_type() {
        EntryType::Char => Node::Char { major: number(header.device_major())?, minor: number(header.device_minor())? },
        EntryType::Block => {
            Node::Block { major: number(header.device_major())?, minor: number(header.device_minor())? }
        }
        EntryType::Fifo => Node::Fifo,
        _ => return Ok(false),
    };
    make_node(place, node, header.mode()? & 0o7777)?;
    let owner = |id: io::Result<u64>| id.map(|id| u32::try_from(id).ok());
    std::os::unix::fs::lchown(place, owner(header.uid())?, owner(header.gid())?)?;
    Ok(true)
}

/// Major number of a device (makedev(3): 12 and 20 bits, spread).
pub(crate) fn major(device: u64) -> u64 {
    ((device >> 8) & 0xfff) | ((device >> 32) & !0xfff)
}

/// Minor number of a device.
pub(crate) fn minor(device: u64) -> u64 {
    (device & 0xff) | ((device >> 12) & !0xff)
}
