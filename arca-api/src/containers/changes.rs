// SPDX-License-Identifier: Apache-2.0
//! `docker diff`: what a container's writable folder has over the layers of its image.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt as _, MetadataExt as _},
    path::{Path, PathBuf},
};

use serde_json::{Value, json};

/// Docker's numbers.
const MODIFIED: u8 = 0;
const ADDED: u8 = 1;
pub(super) const DELETED: u8 = 2;

/// Places that are made for the mounts of every container, which Docker makes out of sight.
const MOUNT_POINTS: &[&str] = &[
    "/dev",
    "/dev/console",
    "/dev/mqueue",
    "/dev/pts",
    "/dev/shm",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/resolv.conf",
    "/proc",
    "/sys",
];

/// Changes as the API shows them, `null` if there are none. Blocking.
///
/// # Errors
/// If the writable folder cannot be read.
pub fn changes(upper: &Path, layers: &[PathBuf]) -> io::Result<Value> {
    let found = paths(upper, layers)?;
    if found.is_empty() {
        return Ok(Value::Null);
    }
    Ok(found.into_iter().map(|(path, kind)| json!({"Path": path, "Kind": kind})).collect())
}

/// Paths that changed, in order, each with Docker's number. Blocking.
///
/// # Errors
/// If the writable folder cannot be read.
pub(super) fn paths(upper: &Path, layers: &[PathBuf]) -> io::Result<BTreeMap<PathBuf, u8>> {
    let mut found = BTreeMap::new();
    walk(upper, Path::new("/"), layers, &mut found)?;
    Ok(found)
}

/// Whether something below `folder` has changed.
fn walk(upper: &Path, folder: &Path, layers: &[PathBuf], found: &mut BTreeMap<PathBuf, u8>) -> io::Result<bool> {
    let inside = |root: &Path, path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
    let mut any = false;
    for entry in fs::read_dir(inside(upper, folder))? {
        let path = folder.join(entry?.file_name());
        let Ok(own) = fs::symlink_metadata(inside(upper, &path)) else { continue };
        let below = layers.iter().find_map(|layer| fs::symlink_metadata(inside(layer, &path)).ok());
        let below = below.filter(|one| !is_whiteout(one));
        if is_whiteout(&own) {
            if below.is_some() {
                found.insert(path, DELETED);
                any = true;
            }
            continue;
        }
        let inner = own.is_dir() && walk(upper, &path, layers, found)?;
        let kind = match below {
            None => Some(ADDED),
            Some(below) if own.is_dir() && below.is_dir() => {
                let same = (own.mode(), own.uid(), own.gid()) == (below.mode(), below.uid(), below.gid());
                (inner || !same).then_some(MODIFIED)
            }
            Some(_) => Some(MODIFIED),
        };
        let Some(kind) = kind else { continue };
        if !inner && MOUNT_POINTS.iter().any(|point| path == Path::new(point)) && (own.is_dir() || own.len() == 0) {
            continue;
        }
        found.insert(path, kind);
        any = true;
    }
    Ok(any)
}

/// overlayfs keeps what was deleted as a character device 0/0.
fn is_whiteout(metadata: &fs::Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_modified_and_what_is_only_a_mount_point() {
        let root = tempfile::tempdir().expect("temporary directory");
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().expect("parent")).expect("folder");
            fs::write(path, text).expect("write");
        };
        let run = || changes(&root.path().join("upper"), &[root.path().join("lower")]).expect("changes");
        write("lower/etc/passwd", "x");
        write("lower/bin/sh", "x");
        write("upper/etc/hosts", "");
        fs::create_dir_all(root.path().join("upper/proc")).expect("folder");
        assert_eq!(run(), Value::Null);
        write("upper/etc/passwd", "y");
        write("upper/new/file", "z");
        assert_eq!(
            run(),
            json!([
                {"Path": "/etc", "Kind": 0}, {"Path": "/etc/passwd", "Kind": 0},
                {"Path": "/new", "Kind": 1}, {"Path": "/new/file", "Kind": 1},
            ])
        );
    }
}
