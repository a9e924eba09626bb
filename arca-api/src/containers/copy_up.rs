// SPDX-License-Identifier: Apache-2.0
//! A fresh volume gets what the image has at its mount point, as Docker's does at create.
//!
//! The image's layers are overlayfs lower folders: read from the bottom up, whiteouts and opaque folders take away what
//! is below them.

use std::{
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, lchown, symlink},
    path::{Component, Path},
};

/// Copies the content of `target` (absolute, in the container) from `layers` (topmost first) into the empty folder
/// `volume`; one that has content stays as it is.
///
/// # Errors
/// The disk's.
pub fn copy_up(layers: &[std::path::PathBuf], target: &Path, volume: &Path) -> io::Result<()> {
    if fs::read_dir(volume)?.next().is_some() {
        return Ok(());
    }
    for layer in layers.iter().rev() {
        let mut place = layer.clone();
        let mut there = true;
        for part in target.components() {
            let Component::Normal(part) = part else { continue };
            place.push(part);
            match fs::symlink_metadata(&place) {
                Ok(metadata) if metadata.is_dir() => {
                    if is_opaque(&place) {
                        clear(volume)?;
                    }
                }
                // Hidden here, or a link: what is below it is not what the container sees.
                Ok(_) => {
                    clear(volume)?;
                    there = false;
                    break;
                }
                Err(_) => {
                    there = false;
                    break;
                }
            }
        }
        if there {
            merge(&place, volume)?;
            like(&fs::symlink_metadata(&place)?, volume)?;
        }
    }
    Ok(())
}

fn is_opaque(folder: &Path) -> bool {
    let value = |name: &str| xattr::get(folder, name).ok().flatten();
    ["trusted.overlay.opaque", "user.overlay.opaque"].iter().any(|name| value(name).as_deref() == Some(b"y"))
}

fn clear(folder: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        remove(&entry?.path())?;
    }
    Ok(())
}

fn remove(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(metadata) if metadata.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(_) => Ok(()),
    }
}

/// Puts one layer's folder over what is there.
fn merge(from: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let (source, place) = (entry.path(), to.join(entry.file_name()));
        let metadata = fs::symlink_metadata(&source)?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !place.is_dir() || place.is_symlink() || is_opaque(&source) {
                remove(&place)?;
                fs::create_dir(&place)?;
            }
            merge(&source, &place)?;
        } else {
            remove(&place)?;
            if kind.is_file() {
                fs::copy(&source, &place)?;
            } else if kind.is_symlink() {
                symlink(fs::read_link(&source)?, &place)?;
                lchown(&place, Some(metadata.uid()), Some(metadata.gid()))?;
                continue;
            } else if !kind.is_fifo() {
                // A whiteout took it away; sockets and devices have no place in a volume.
                continue;
            } else {
                let mode = nix::sys::stat::Mode::from_bits_truncate(0o600);
                nix::unistd::mkfifo(&place, mode)?;
            }
        }
        like(&metadata, &place)?;
    }
    Ok(())
}

/// Owner, mode and times of `metadata`.
fn like(metadata: &fs::Metadata, place: &Path) -> io::Result<()> {
    lchown(place, Some(metadata.uid()), Some(metadata.gid()))?;
    fs::set_permissions(place, fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
    let time = nix::sys::time::TimeSpec::new(metadata.mtime(), metadata.mtime_nsec());
    let flags = nix::sys::stat::UtimensatFlags::NoFollowSymlink;
    Ok(nix::sys::stat::utimensat(nix::fcntl::AT_FDCWD, place, &time, &time, flags)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(root: &Path, name: &str, files: &[(&str, &str)]) -> std::path::PathBuf {
        let layer = root.join(name);
        for (path, text) in files {
            let file = layer.join(path);
            fs::create_dir_all(file.parent().expect("parent")).expect("create");
            fs::write(&file, text).expect("write");
        }
        layer
    }

    #[test]
    fn upper_layers_win_and_a_volume_with_content_is_left_alone() {
        let root = tempfile::tempdir().expect("temporary directory");
        let lower = layer(root.path(), "lower", &[("v/a", "low"), ("v/d/b", "low"), ("v/d/c", "low")]);
        let upper = layer(root.path(), "upper", &[("v/a", "up"), ("v/d/n", "up")]);
        symlink("a", upper.join("v/l")).expect("link");
        fs::set_permissions(upper.join("v"), fs::Permissions::from_mode(0o701)).expect("mode");
        let volume = root.path().join("volume");
        fs::create_dir(&volume).expect("create");
        let layers = [upper, lower];
        copy_up(&layers, Path::new("/v"), &volume).expect("copy");
        let text = |path: &str| fs::read_to_string(volume.join(path)).expect(path);
        assert_eq!(
            (text("a"), text("d/b"), text("d/n"), text("l")),
            ("up".into(), "low".into(), "up".into(), "up".into())
        );
        assert_eq!(fs::metadata(&volume).expect("volume").mode() & 0o777, 0o701);

        fs::write(volume.join("a"), "own").expect("write");
        copy_up(&layers, Path::new("/v"), &volume).expect("nothing to do");
        assert_eq!(text("a"), "own");
    }

    #[test]
    fn a_link_on_the_way_is_not_followed() {
        let root = tempfile::tempdir().expect("temporary directory");
        let secret = layer(root.path(), "secret", &[("f", "x")]);
        let only = layer(root.path(), "layer", &[("other", "x")]);
        symlink(&secret, only.join("v")).expect("link");
        let volume = root.path().join("volume");
        fs::create_dir(&volume).expect("create");
        copy_up(&[only], Path::new("/v"), &volume).expect("copy");
        assert_eq!(fs::read_dir(&volume).expect("list").count(), 0);
    }
}
