// SPDX-License-Identifier: Apache-2.0
//! Unpacks one layer tar into an overlayfs lower directory (OCI image specification, "layer").
//!
//! Whiteouts become what overlayfs reads: `.wh.NAME` a 0/0 character device, `.wh..wh..opq` an opaque directory.
//! Nothing is ever written outside the target: entries that would leave it, also through links, are refused. Before a
//! tar fills the disk it is refused too, whatever it was compressed to.

use std::{
    ffi::OsStr,
    fs,
    io::{self, Read},
    os::unix::ffi::OsStrExt,
    path::{Component, Path, PathBuf},
};

use sha2::{Digest, Sha256};
use tar::{Archive, Entry, EntryType};

use super::{
    error::ImageError,
    nodes::{Node, make_node, set_opaque},
};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What unpacking found out.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Unpacked {
    /// "sha256:..." of the uncompressed tar.
    pub diff_id: String,
    /// Bytes of regular files and of the texts of symbolic links.
    pub size: u64,
    /// Bytes of the tar.
    pub tar_size: u64,
}

/// Unpacks `tar` (uncompressed) into the new directory `target`.
///
/// # Errors
/// [`ImageError::Invalid`] for a broken or hostile archive, [`ImageError::Io`] if the disk refuses.
pub(super) fn unpack(tar: impl Read, target: &Path) -> Result<Unpacked, ImageError> {
    fs::create_dir_all(target).map_err(ImageError::io("create", target))?;
    let mut reader = Hashing { inner: tar, hash: Sha256::new(), read: 0, target, looked: 0 };
    let mut size = 0;
    {
        let mut archive = Archive::new(&mut reader);
        archive.set_preserve_permissions(true);
        archive.set_preserve_ownerships(true);
        archive.set_preserve_mtime(true);
        archive.set_unpack_xattrs(true);
        archive.set_overwrite(true);
        // Modes and times of directories come last: unpacking into them would change their times.
        let mut directories = Vec::new();
        for entry in archive.entries().map_err(ImageError::broken)? {
            let mut entry = entry.map_err(ImageError::broken)?;
            let kind = entry.header().entry_type();
            if kind.is_file() {
                size += entry.size();
            } else if kind.is_symlink() {
                // As Docker counts: a link is as long as its text.
                size += entry.link_name_bytes().map_or(0, |name| name.len() as u64);
            }
            unpack_entry(&mut entry, target, &mut directories)?;
        }
        for (path, mtime) in directories.into_iter().rev() {
            let time = nix::sys::time::TimeSpec::new(i64::try_from(mtime).unwrap_or(0), 0);
            nix::sys::stat::utimensat(
                nix::fcntl::AT_FDCWD,
                &path,
                &time,
                &time,
                nix::sys::stat::UtimensatFlags::NoFollowSymlink,
            )
            .map_err(|errno| ImageError::io("set time of", &path)(errno.into()))?;
        }
    }
    // The digest covers what stands behind the end-of-archive blocks too.
    io::copy(&mut reader, &mut io::sink()).map_err(ImageError::broken)?;
    Ok(Unpacked { diff_id: format!("sha256:{}", hex(&reader.hash.finalize())), size, tar_size: reader.read })
}

fn unpack_entry(
    entry: &mut Entry<'_, impl Read>,
    target: &Path,
    directories: &mut Vec<(PathBuf, u64)>,
) -> Result<(), ImageError> {
    if let Ok(Some(mut extensions)) = entry.pax_extensions()
        && extensions.any(|one| one.is_ok_and(|one| one.key_bytes().starts_with(b"GNU.sparse.")))
    {
        // Read as a plain file, its map of holes would be taken for content.
        return Err(ImageError::invalid(
            "archive entry in the sparse form of PAX headers: write it with GNU tar's own",
        ));
    }
    let path = relative(&entry.path().map_err(ImageError::broken)?)?;
    let (Some(name), parent) = (path.file_name(), path.parent().unwrap_or(Path::new(""))) else {
        return Ok(()); // the root directory itself
    };
    let place = target.join(parent);
    let kind = entry.header().entry_type();
    if name.as_bytes() == OPAQUE {
        make_parents(target, parent)?;
        return set_opaque(&place).map_err(ImageError::io("mark opaque", &place));
    }
    if let Some(hidden) = name.as_bytes().strip_prefix(WHITEOUT) {
        make_parents(target, parent)?;
        let hidden = place.join(OsStr::from_bytes(hidden));
        return make_node(&hidden, Node::Char { major: 0, minor: 0 }, 0).map_err(ImageError::io("make node", &hidden));
    }
    let header = entry.header();
    let number = |part: io::Result<Option<u32>>| part.map(Option::unwrap_or_default).map_err(ImageError::broken);
    let node = match kind {
        EntryType::Char => {
            Some(Node::Char { major: number(header.device_major())?, minor: number(header.device_minor())? })
        }
        EntryType::Block => {
            Some(Node::Block { major: number(header.device_major())?, minor: number(header.device_minor())? })
        }
        EntryType::Fifo => Some(Node::Fifo),
        _ => None,
    };
    if let Some(node) = node {
        make_parents(target, parent)?;
        let mode = header.mode().map_err(ImageError::broken)? & 0o7777;
        let file = place.join(name);
        make_node(&file, node, mode).map_err(ImageError::io("make node", &file))?;
        let owner = |id: io::Result<u64>| id.map(|id| u32::try_from(id).ok()).map_err(ImageError::broken);
        return std::os::unix::fs::lchown(&file, owner(header.uid())?, owner(header.gid())?)
            .map_err(ImageError::io("set owner of", &file));
    }
    if kind.is_dir() {
        directories.push((target.join(&path), entry.header().mtime().unwrap_or(0)));
    }
    // `unpack_in` refuses what would leave `target`, also through symbolic links inside it.
    match entry.unpack_in(target) {
        Ok(true) => Ok(()),
        Ok(false) => Err(escapes(&path)),
        Err(error) if error.kind() == io::ErrorKind::StorageFull => Err(ImageError::broken(error)),
        // The library's text names only the path; the cause is its source.
        Err(error) => {
            let cause =
                error.get_ref().and_then(std::error::Error::source).map_or(error.to_string(), ToString::to_string);
            Err(ImageError::Invalid(format!("unpack {}: {cause}", path.display())))
        }
    }
}

/// The path below the root, or an error if it would leave it.
fn relative(path: &Path) -> Result<PathBuf, ImageError> {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => clean.push(part),
            Component::RootDir | Component::CurDir => {}
            Component::ParentDir | Component::Prefix(_) => return Err(escapes(path)),
        }
    }
    Ok(clean)
}

/// Creates missing parents one by one and refuses to walk through a link.
fn make_parents(target: &Path, parent: &Path) -> Result<(), ImageError> {
    let mut place = target.to_path_buf();
    for component in parent.components() {
        place.push(component);
        match fs::symlink_metadata(&place) {
            Ok(metadata) if metadata.is_dir() => {}
            Ok(_) => return Err(escapes(parent)),
            Err(_) => fs::create_dir(&place).map_err(ImageError::io("create", &place))?,
        }
    }
    Ok(())
}

fn escapes(path: &Path) -> ImageError {
    ImageError::invalid(format!("archive entry {} leaves the image's root", path.display()))
}

/// Docker's names of the layers of an image: each stands for itself and all below it (OCI image specification, ChainID).
#[must_use]
pub fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let mut chain: Vec<String> = Vec::with_capacity(diff_ids.len());
    for id in diff_ids {
        let next = match chain.last() {
            None => id.clone(),
            Some(below) => format!("sha256:{}", hex(&Sha256::digest(format!("{below} {id}")))),
        };
        chain.push(next);
    }
    chain
}

/// Lower-case hexadecimal digits.
#[must_use]
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// Bytes of a tar between two looks at the disk.
const STRIDE: u64 = 64 << 20;
/// Bytes and files that stay free on it.
const SPARE: (u64, u64) = (256 << 20, 1000);

/// Counts and hashes what is read, and ends it before the disk is full.
struct Hashing<'a, R> {
    inner: R,
    hash: Sha256,
    read: u64,
    target: &'a Path,
    /// Bytes read at the last look at the disk.
    looked: u64,
}

impl<R: Read> Read for Hashing<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.read += read as u64;
        if self.read - self.looked >= STRIDE {
            self.looked = self.read;
            let disk = nix::sys::statvfs::statvfs(self.target)?;
            #[allow(clippy::useless_conversion, reason = "the types differ from platform to platform")]
            let [blocks, size, all, files] = [
                u64::from(disk.blocks_available()),
                u64::from(disk.fragment_size()),
                u64::from(disk.files()),
                u64::from(disk.files_available()),
            ];
            // Some file systems count no files.
            if blocks.saturating_mul(size) < SPARE.0 || (all > 0 && files < SPARE.1) {
                let text =
                    format!("the archive unpacks to more than the disk has room for, after {} MB", self.read >> 20);
                return Err(io::Error::new(io::ErrorKind::StorageFull, text));
            }
        }
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileTypeExt, MetadataExt};

    fn tar_with(build: impl FnOnce(&mut tar::Builder<Vec<u8>>)) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        build(&mut builder);
        builder.into_inner().expect("in memory")
    }

    fn add(builder: &mut tar::Builder<Vec<u8>>, path: &str, kind: EntryType, link: &str, data: &[u8]) {
        let mut header = tar::Header::new_gnu();
        // The safe setter refuses `..`; hostile archives do not ask it.
        let bytes = path.as_bytes();
        header.as_gnu_mut().expect("gnu").name[..bytes.len()].copy_from_slice(bytes);
        if !link.is_empty() {
            header.set_link_name_literal(link).expect("link name");
        }
        header.set_entry_type(kind);
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        header.set_mtime(1_000_000);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        builder.append(&header, data).expect("append");
    }

    #[test]
    fn files_links_and_whiteouts_arrive_and_the_diff_id_is_the_tars_digest() {
        let tar = tar_with(|b| {
            add(b, "d/", EntryType::Directory, "", b"");
            add(b, "d/f", EntryType::Regular, "", b"hello");
            add(b, "d/h", EntryType::Link, "d/f", b"");
            add(b, "d/s", EntryType::Symlink, "/etc/passwd", b"");
            add(b, "d/.wh.gone", EntryType::Regular, "", b"");
            add(b, "p", EntryType::Fifo, "", b"");
        });
        let root = tempfile::tempdir().expect("temporary directory");
        let unpacked = unpack(&tar[..], &root.path().join("l")).expect("valid");
        let tar_size = tar.len() as u64;
        assert_eq!(
            unpacked,
            Unpacked { diff_id: format!("sha256:{}", hex(&Sha256::digest(&tar))), size: 16, tar_size }
        );
        let at = |path: &str| fs::symlink_metadata(root.path().join("l").join(path)).expect(path);
        assert_eq!(at("d/f").ino(), at("d/h").ino());
        assert_eq!(at("d").mtime(), 1_000_000);
        assert!(at("d/s").is_symlink() && at("p").file_type().is_fifo());
        assert!(at("d/gone").file_type().is_char_device() && at("d/gone").rdev() == 0);
    }

    #[test]
    fn what_would_leave_the_root_is_refused_and_nothing_is_written_outside() {
        let outside = tempfile::tempdir().expect("temporary directory");
        let away = outside.path().to_string_lossy().into_owned();
        let hostile: [Vec<u8>; 4] = [
            tar_with(|b| add(b, "../evil", EntryType::Regular, "", b"x")),
            tar_with(|b| {
                add(b, "l", EntryType::Symlink, &away, b"");
                add(b, "l/evil", EntryType::Regular, "", b"x");
            }),
            tar_with(|b| {
                add(b, "l", EntryType::Symlink, &away, b"");
                add(b, "l/.wh.evil", EntryType::Regular, "", b"");
            }),
            b"not a tar, but longer than a block: ".repeat(40),
        ];
        for (i, tar) in hostile.iter().enumerate() {
            let root = tempfile::tempdir().expect("temporary directory");
            let error = unpack(&tar[..], &root.path().join("x/l")).expect_err("hostile");
            assert!(matches!(error.status(), 400 | 500), "archive {i}: {error}");
            assert!(!root.path().join("x/evil").exists());
        }
        assert_eq!(fs::read_dir(outside.path()).expect("list").count(), 0);
    }
}
