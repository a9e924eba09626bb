// SPDX-License-Identifier: Apache-2.0
//! `docker cp` and `docker export`: files of a container as tar streams.
//!
//! Everything here but the verbs at the top runs inside ([`super::root`]), where `/` is the container's.

use std::{
    ffi::OsStr,
    fs,
    io::{self, BufRead as _, Read, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

use crate::{
    containers::{
        Container,
        root::{self, View},
    },
    docker::time::rfc3339,
    engine::Engine,
    http::{ApiError, ApiResult},
    images::special,
    spec,
};

/// Bytes that are sent at once.
const PIECE: usize = 64 << 10;
/// Pieces on their way to a client.
const QUEUE: usize = 8;

/// A tar stream on its way to a client.
pub type Stream = mpsc::Receiver<io::Result<Bytes>>;

/// What `POST` of an archive asks besides.
#[derive(Clone, Copy, Debug, Default)]
pub struct Extract {
    /// A folder takes no file's place, and no file a folder's.
    pub keep_kinds: bool,
    /// Files belong to the container's user afterwards.
    pub to_user: bool,
}

/// Facts of one path, for the header `X-Docker-Container-Path-Stat`.
///
/// # Errors
/// 404 `Could not find the file …`.
pub async fn stat(engine: &Arc<Engine>, container: &Arc<Container>, name: &str, path: &str) -> ApiResult<Value> {
    let missing = missing(path, name);
    let path = path.to_owned();
    root::ask(engine, container, View::Whole, move || facts(&path).map_err(|error| missing(&error))).await
}

/// Facts of one path, and it with all below as a tar stream.
///
/// # Errors
/// As [`stat`].
pub async fn read(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    name: &str,
    path: &str,
) -> ApiResult<(Value, Stream)> {
    let missing = missing(path, name);
    let path = path.to_owned();
    let (pieces, stream) = mpsc::channel(QUEUE);
    let (found, answer) = oneshot::channel();
    root::within(engine.clone(), container.clone(), View::Whole, move |entered| {
        let facts = entered.and_then(|()| facts(&path).map_err(|error| missing(&error)));
        let good = facts.is_ok();
        if found.send(facts).is_ok() && good {
            send(&pieces, |out| pack(out, &path));
        }
    });
    let facts = answer.await.map_err(|_| ApiError::internal("the thread for the container's files ended early"))??;
    Ok((facts, stream))
}

/// Unpacks a tar stream into a folder of the container.
///
/// # Errors
/// 404 for a path that is not there, 400 if it is no folder or may not be written, 500 for what the archive contains.
pub async fn write(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    name: &str,
    path: &str,
    archive: impl Read + Send + 'static,
    how: Extract,
) -> ApiResult<()> {
    let missing = missing(path, name);
    let record = container.record();
    let owner = if how.to_user {
        let layers: Vec<PathBuf> =
            [engine.folder(&record.id).join("upper")].into_iter().chain(record.layers.iter().cloned()).collect();
        let owner = spec::owner(&record.config, &record.host, &layers);
        Some(owner.map_err(|error| ApiError::bad_request(error.to_string()))?)
    } else {
        None
    };
    let path = path.to_owned();
    root::ask(engine, container, View::Whole, move || {
        let folder = fs::canonicalize(clean(&path)).map_err(|error| missing(&error))?;
        if !folder.is_dir() {
            return Err(ApiError::bad_request("extraction point is not a directory"));
        }
        writable(&record, &folder)?;
        unpack(archive, &folder, how.keep_kinds, owner).map_err(ApiError::internal)
    })
    .await
}

/// The whole file system without mounts as a tar stream.
///
/// # Errors
/// If it cannot be entered.
pub async fn export(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<Stream> {
    let (pieces, stream) = mpsc::channel(QUEUE);
    let (entered, answer) = oneshot::channel();
    root::within(engine.clone(), container.clone(), View::Bare, move |inside| {
        let good = inside.is_ok();
        if entered.send(inside).is_ok() && good {
            send(&pieces, |out| {
                let names = children(Path::new("/"))?;
                names.iter().try_for_each(|name| add(out, &Path::new("/").join(name), name.as_bytes()))
            });
        }
    });
    answer.await.map_err(|_| ApiError::internal("the thread for the container's files ended early"))??;
    Ok(stream)
}

fn missing(path: &str, name: &str) -> impl Fn(&io::Error) -> ApiError + Send + 'static + use<> {
    let text = format!("Could not find the file {path} in container {name}");
    move |error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => ApiError::not_found(text.clone()),
        _ => ApiError::internal(format!("{text}: {error}")),
    }
}

/// Docker's rule for read-only places: a volume's own, else the root's.
fn writable(record: &super::Record, folder: &Path) -> ApiResult<()> {
    let points = record.mounts.iter().filter(|point| folder.starts_with(&point.destination));
    match points.max_by_key(|point| point.destination.len()) {
        Some(point) if !point.rw => Err(ApiError::bad_request("mounted volume is marked read-only")),
        None if record.host.readonly_rootfs => Err(ApiError::bad_request("container rootfs is marked read-only")),
        _ => Ok(()),
    }
}

/// An absolute path without dots, as Go's `filepath.Join("/", path)`.
fn clean(path: &str) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in Path::new(path).components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir => drop(clean.pop()),
            _ => {}
        }
    }
    clean
}

/// A path that ends like this means what a link leads to.
fn follows(path: &str) -> bool {
    path.ends_with('/') || path.ends_with("/.") || clean(path) == Path::new("/")
}

/// The path with every link but the last name's resolved, or that one too.
fn resolve(path: &str) -> io::Result<PathBuf> {
    let whole = clean(path);
    if follows(path) {
        let found = fs::canonicalize(whole)?;
        return if found.is_dir() { Ok(found) } else { Err(io::ErrorKind::NotADirectory.into()) };
    }
    let parent = fs::canonicalize(whole.parent().unwrap_or(Path::new("/")))?;
    let found = parent.join(whole.file_name().unwrap_or_default());
    fs::symlink_metadata(&found)?;
    Ok(found)
}

/// The last name of a path, "/" for the root.
fn base(path: &Path) -> &OsStr {
    path.file_name().unwrap_or(OsStr::new("/"))
}

fn facts(path: &str) -> io::Result<Value> {
    let found = resolve(path)?;
    let metadata = fs::symlink_metadata(&found)?;
    let link = if metadata.is_symlink() {
        // Where it leads, as far as that is there.
        fs::canonicalize(&found).or_else(|_| fs::read_link(&found)).unwrap_or_default()
    } else {
        PathBuf::new()
    };
    let whole = clean(path);
    Ok(json!({
        "name": base(&whole).to_string_lossy(),
        "size": metadata.len(),
        "mode": go_mode(&metadata),
        "mtime": rfc3339(metadata.mtime().saturating_mul(1_000_000_000).saturating_add(metadata.mtime_nsec())),
        "linkTarget": link.to_string_lossy(),
    }))
}

/// Go's `os.FileMode`: permissions, and kinds as high bits.
fn go_mode(metadata: &fs::Metadata) -> u32 {
    let (kind, mode) = (metadata.file_type(), metadata.mode());
    let bits = [
        (kind.is_dir(), 31),
        (kind.is_symlink(), 27),
        (kind.is_block_device() || kind.is_char_device(), 26),
        (kind.is_fifo(), 25),
        (kind.is_socket(), 24),
        (mode & 0o4000 != 0, 23),
        (mode & 0o2000 != 0, 22),
        (kind.is_char_device(), 21),
        (mode & 0o1000 != 0, 20),
    ];
    bits.into_iter().filter(|(set, _)| *set).fold(mode & 0o777, |mode, (_, bit)| mode | 1 << bit)
}

type Tar = tar::Builder<io::BufWriter<Sender>>;

/// Sends a tar stream; a client that leaves ends it, any other failure is told in the stream.
fn send(pieces: &mpsc::Sender<io::Result<Bytes>>, pack: impl FnOnce(&mut Tar) -> io::Result<()>) {
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(PIECE, Sender(pieces.clone())));
    tar.follow_symlinks(false);
    let sent = pack(&mut tar).and_then(|()| tar.into_inner()).and_then(|mut out| out.flush());
    if let Err(error) = sent
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        let _ = pieces.blocking_send(Err(error));
    }
}

/// The writing end of a [`Stream`].
#[derive(Debug)]
pub(crate) struct Sender(pub(crate) mpsc::Sender<io::Result<Bytes>>);

impl Write for Sender {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let sent = self.0.blocking_send(Ok(Bytes::copy_from_slice(bytes)));
        sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn pack(out: &mut Tar, path: &str) -> io::Result<()> {
    let found = resolve(path)?;
    // As Docker names them: `./file` of `folder/.`, `/etc` of `/`, else `folder/file`.
    let whole = clean(path);
    let named = if path.ends_with("/.") { OsStr::new(".") } else { base(&whole) };
    add(out, &found, named.as_bytes())
}

fn children(folder: &Path) -> io::Result<Vec<std::ffi::OsString>> {
    let names: io::Result<Vec<_>> = fs::read_dir(folder)?.map(|entry| entry.map(|entry| entry.file_name())).collect();
    let mut names = names?;
    names.sort();
    Ok(names)
}

/// What is gone by now is passed over.
fn there<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}

/// Adds a file, or a folder and what is below it in order of names.
fn add(out: &mut Tar, path: &Path, name: &[u8]) -> io::Result<()> {
    let Some(metadata) = there(fs::symlink_metadata(path))? else { return Ok(()) };
    let kind = metadata.file_type();
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    header.set_size(0);
    if metadata.is_dir() {
        let within = if name.ends_with(b"/") { name.to_vec() } else { [name, b"/"].concat() };
        append(out, header, &within, b"", io::empty())?;
        let names = there(children(path))?.unwrap_or_default();
        return names.iter().try_for_each(|child| add(out, &path.join(child), &[&within, child.as_bytes()].concat()));
    }
    if metadata.is_file() {
        let Some(file) = there(fs::File::open(path))? else { return Ok(()) };
        // A file that changes its size while it is read is cut or filled up to the size it had.
        let size = file.metadata()?.len();
        header.set_size(size);
        return append(out, header, name, b"", file.chain(io::repeat(0)).take(size));
    }
    if metadata.is_symlink() {
        let Some(target) = there(fs::read_link(path))? else { return Ok(()) };
        return append(out, header, name, target.as_os_str().as_bytes(), io::empty());
    }
    if kind.is_socket() {
        // No archive can hold one.
        return Ok(());
    }
    if kind.is_char_device() || kind.is_block_device() {
        let number = |part: u64| u32::try_from(part).unwrap_or_default();
        header.set_device_major(number(special::major(metadata.rdev())))?;
        header.set_device_minor(number(special::minor(metadata.rdev())))?;
    }
    append(out, header, name, b"", io::empty())
}

/// Longest name that a header has room for.
const NAME: usize = 100;

/// Adds an entry with its name as it is: the library would take dots and a leading slash out of it.
fn append(out: &mut Tar, mut header: tar::Header, name: &[u8], link: &[u8], data: impl Read) -> io::Result<()> {
    for (text, kind) in [(name, tar::EntryType::GNULongName), (link, tar::EntryType::GNULongLink)] {
        if text.len() > NAME {
            let mut long = tar::Header::new_gnu();
            long.set_entry_type(kind);
            set(&mut long, b"././@LongLink", b"");
            long.set_size(text.len() as u64 + 1);
            long.set_cksum();
            out.append(&long, text.chain(&b"\0"[..]))?;
        }
    }
    set(&mut header, name, link);
    header.set_cksum();
    out.append(&header, data)
}

/// Puts as much of the names into a header as it takes.
fn set(header: &mut tar::Header, name: &[u8], link: &[u8]) {
    let fields = header.as_old_mut();
    for (field, text) in [(&mut fields.name, name), (&mut fields.linkname, link)] {
        let text = text.get(..NAME).unwrap_or(text);
        field.fill(0);
        field[..text.len()].copy_from_slice(text);
    }
}

/// Unpacks a tar stream, plain or compressed with gzip, into a folder.
fn unpack(archive: impl Read, folder: &Path, keep_kinds: bool, owner: Option<(u32, u32)>) -> Result<(), String> {
    let mut buffered = io::BufReader::new(archive);
    let packed = buffered.fill_buf().map_err(|error| error.to_string())?.starts_with(&[0x1f, 0x8b]);
    let plain: Box<dyn Read> =
        if packed { Box::new(flate2::read::MultiGzDecoder::new(buffered)) } else { Box::new(buffered) };
    let mut archive = tar::Archive::new(plain);
    archive.set_preserve_permissions(true);
    archive.set_preserve_ownerships(true);
    archive.set_preserve_mtime(true);
    archive.set_unpack_xattrs(true);
    let broken = |error: io::Error| error.to_string();
    for entry in archive.entries().map_err(broken)? {
        let mut entry = entry.map_err(broken)?;
        let name = entry.path().map_err(broken)?.into_owned();
        let place = below(folder, &name)?;
        if place == *folder {
            continue;
        }
        let is_folder = entry.header().entry_type().is_dir();
        if let Ok(there) = fs::symlink_metadata(&place) {
            if keep_kinds && there.is_dir() && !is_folder {
                return Err(format!("cannot overwrite directory {place:?} with non-directory {folder:?}"));
            }
            if keep_kinds && !there.is_dir() && is_folder {
                return Err(format!("cannot overwrite non-directory {place:?} with directory {folder:?}"));
            }
            let gone = match (there.is_dir(), is_folder) {
                (true, true) => Ok(()),
                (true, false) => fs::remove_dir_all(&place),
                (false, _) => fs::remove_file(&place),
            };
            gone.map_err(|error| format!("replace {}: {error}", place.display()))?;
        }
        let told = |error: io::Error| format!("unpack {}: {error}", name.display());
        if !special::make(&mut entry, &place).map_err(told)? && !entry.unpack_in(folder).map_err(told)? {
            return Err(outside(&name, folder));
        }
        if let Some((uid, gid)) = owner {
            std::os::unix::fs::lchown(&place, Some(uid), Some(gid)).map_err(told)?;
        }
    }
    Ok(())
}

/// Where an entry goes, links not looked at.
fn below(folder: &Path, name: &Path) -> Result<PathBuf, String> {
    let mut place = folder.to_owned();
    for part in name.components() {
        match part {
            Component::Normal(part) => place.push(part),
            Component::ParentDir => return Err(outside(name, folder)),
            _ => {}
        }
    }
    Ok(place)
}

fn outside(name: &Path, folder: &Path) -> String {
    format!("{:?} is outside of {folder:?}", name.as_os_str().as_bytes().escape_ascii().to_string())
}

#[cfg(test)]
#[path = "archive/tests.rs"]
mod tests;
