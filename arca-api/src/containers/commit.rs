// SPDX-License-Identifier: Apache-2.0
//! `docker commit`: what a container has written becomes a layer over its image's.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    io::{self, Write},
    os::unix::{
        ffi::OsStrExt as _,
        fs::{FileTypeExt as _, MetadataExt as _},
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use serde_json::{Map, Value, json};

use crate::{
    containers::{Container, Status, changes, stop},
    docker::{
        config::ContainerConfig,
        time::{now, rfc3339},
    },
    engine::Engine,
    http::{ApiError, ApiResult},
    images::{NewImage, Source, changes as lines, reference::Reference, special},
};

/// What `docker commit` was given.
#[derive(Debug, Default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct Wanted {
    /// `repository[:tag]`, or empty.
    pub name: String,
    pub author: String,
    pub comment: String,
    pub pause: bool,
    /// Dockerfile lines.
    pub changes: Vec<String>,
    /// In the place of the container's own.
    pub config: Option<ContainerConfig>,
}

/// A body without fields is none.
#[must_use]
pub fn config(body: ContainerConfig) -> Option<ContainerConfig> {
    (body != ContainerConfig::default()).then_some(body)
}

/// Makes the image. Gives its id.
///
/// # Errors
/// 400 for a bad name or change, 409 for a container that is being removed.
pub async fn commit(engine: &Arc<Engine>, container: &Arc<Container>, wanted: Wanted) -> ApiResult<String> {
    let tag = match wanted.name.as_str() {
        "" => None,
        name => Some(Reference::parse(name)?),
    };
    if tag.as_ref().is_some_and(|reference| reference.digest.is_some()) {
        return Err(ApiError::bad_request("cannot commit to digest reference"));
    }
    let record = container.record();
    if record.state.status == Status::Dead {
        return Err(ApiError::conflict(format!("You cannot commit container {} which is Dead", record.id)));
    }
    let mut run = match serde_json::to_value(wanted.config.as_ref().unwrap_or(&record.config)) {
        Ok(Value::Object(fields)) => fields,
        _ => Map::new(),
    };
    lines::apply(&mut run, &wanted.changes)?;
    // What neither the request nor a change sets is the container's.
    let mut merged: ContainerConfig =
        serde_json::from_value(Value::Object(run)).map_err(|error| ApiError::bad_request(error.to_string()))?;
    merged.merge_image(&record.config);
    let merged = of_image(merged);
    let frozen = wanted.pause && record.state.status == Status::Running && stop::pause(engine, container).await.is_ok();
    let (upper, work_engine, comment, author) =
        (engine.folder(&record.id).join("upper"), engine.clone(), wanted.comment.clone(), wanted.author.clone());
    let image_record = record.clone();
    let made = Engine::blocking(move || {
        let images = &work_engine.images;
        let work = images.work_directory()?;
        let file = work.path().join("layer");
        let any = pack(&upper, &image_record.layers, &file)
            .map_err(|error| ApiError::internal(format!("read what the container wrote: {error}")))?;
        let layer =
            if any { Some(images.add_layer(&Source { file: &file, digest: None, diff_id: None })?) } else { None };
        let parent = images.resolve(&image_record.image_id).ok();
        let base = parent.as_ref().map(|image| image.raw_config().clone()).unwrap_or_else(|| json!({}));
        let config = compose(&base, &merged, &image_record, layer, &author, &comment).to_string();
        let new = NewImage {
            config: config.as_bytes(),
            tags: tag.iter().filter_map(Reference::tagged).collect(),
            digest: None,
            parent: parent.map(|image| image.id).unwrap_or_default(),
        };
        Ok(images.add_image(&new)?)
    })
    .await;
    let told = made.inspect(|id| {
        let reference =
            Reference::parse(&wanted.name).ok().and_then(|reference| reference.tagged()).unwrap_or_default();
        let labels = crate::routes::images::labels(engine, id);
        crate::routes::images::emit(engine, "create", id, id, &labels);
        if !reference.is_empty() {
            crate::routes::images::emit(engine, "tag", id, &reference, &labels);
        }
        let facts = [("comment", wanted.comment), ("imageID", id.clone()), ("imageRef", reference)];
        container.emit(engine, "commit", &facts);
    });
    if frozen && let Err(error) = stop::unpause(engine, container).await {
        tracing::warn!(container_id = container.id, %error, "a container that was committed stays frozen");
    }
    told
}

/// What of a container's configuration an image keeps.
fn of_image(config: ContainerConfig) -> ContainerConfig {
    ContainerConfig {
        hostname: String::new(),
        domainname: String::new(),
        attach_stdin: false,
        attach_stdout: false,
        attach_stderr: false,
        tty: false,
        open_stdin: false,
        stdin_once: false,
        image: String::new(),
        network_disabled: false,
        mac_address: String::new(),
        stop_timeout: None,
        ..config
    }
}

/// The new image's config: the old one's platform, layers and history, and one step more.
fn compose(
    base: &Value,
    run: &ContainerConfig,
    record: &crate::containers::Record,
    layer: Option<String>,
    author: &str,
    comment: &str,
) -> Value {
    let created = rfc3339(now());
    let list = |path: &str| base.pointer(path).and_then(Value::as_array).cloned().unwrap_or_default();
    let (mut layers, mut history) = (list("/rootfs/diff_ids"), list("/history"));
    let mut step = json!({"created": created});
    if !author.is_empty() {
        step["author"] = json!(author);
    }
    step["created_by"] = json!(record.config.cmd.iter().flatten().cloned().collect::<Vec<_>>().join(" "));
    if !comment.is_empty() {
        step["comment"] = json!(comment);
    }
    match layer {
        Some(layer) => layers.push(json!(layer)),
        None => step["empty_layer"] = json!(true),
    }
    history.push(step);
    let mut out = json!({
        "architecture": base["architecture"].as_str().unwrap_or("amd64"), "os": base["os"].as_str().unwrap_or("linux"),
        "author": author, "container": record.id, "container_config": record.config, "config": run,
        "created": created, "history": history, "rootfs": {"type": "layers", "diff_ids": layers},
    });
    if let Some(variant) = base.get("variant") {
        out["variant"] = variant.clone();
    }
    if author.is_empty()
        && let Some(fields) = out.as_object_mut()
    {
        fields.remove("author");
    }
    out
}

/// Writes the tar of what changed; `false` if nothing did.
fn pack(upper: &Path, layers: &[PathBuf], file: &Path) -> io::Result<bool> {
    let found = changes::paths(upper, layers)?;
    let mut tar = tar::Builder::new(io::BufWriter::with_capacity(1 << 18, File::create(file)?));
    tar.follow_symlinks(false);
    // Files with several names, by device and number.
    let mut first: BTreeMap<(u64, u64), PathBuf> = BTreeMap::new();
    let any = !found.is_empty();
    for (path, kind) in found {
        let name = path.strip_prefix("/").unwrap_or(&path);
        if kind == changes::DELETED {
            let hidden = marker(name);
            tar.append_data(&mut plain(tar::EntryType::Regular), hidden, io::empty())?;
            continue;
        }
        add(&mut tar, &upper.join(name), name, &mut first)?;
    }
    tar.into_inner()?.flush()?;
    Ok(any)
}

fn plain(kind: tar::EntryType) -> tar::Header {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(0o600);
    header.set_size(0);
    header
}

/// `.wh.NAME` beside where NAME was.
fn marker(name: &Path) -> PathBuf {
    let mut hidden = OsString::from(".wh.");
    hidden.push(name.file_name().unwrap_or_default());
    name.with_file_name(hidden)
}

type Tar = tar::Builder<io::BufWriter<File>>;

fn add(tar: &mut Tar, path: &Path, name: &Path, first: &mut BTreeMap<(u64, u64), PathBuf>) -> io::Result<()> {
    let metadata = match fs::symlink_metadata(path) {
        // Gone while it was read.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        found => found?,
    };
    let kind = metadata.file_type();
    if kind.is_socket() {
        // No archive can hold one.
        return Ok(());
    }
    let attributes = attributes(path)?;
    let pairs = attributes.iter().map(|(name, value)| (name.as_str(), value.as_slice()));
    tar.append_pax_extensions(pairs)?;
    let mut header = tar::Header::new_gnu();
    header.set_metadata(&metadata);
    header.set_size(0);
    if kind.is_dir() {
        tar.append_data(&mut header, name, io::empty())?;
        if xattr::get(path, "trusted.overlay.opaque")?.as_deref() == Some(b"y") {
            tar.append_data(&mut plain(tar::EntryType::Regular), name.join(".wh..wh..opq"), io::empty())?;
        }
        return Ok(());
    }
    if kind.is_symlink() {
        return tar.append_link(&mut header, name, fs::read_link(path)?);
    }
    if kind.is_char_device() || kind.is_block_device() {
        let number = |part: u64| u32::try_from(part).unwrap_or_default();
        header.set_device_major(number(special::major(metadata.rdev())))?;
        header.set_device_minor(number(special::minor(metadata.rdev())))?;
        return tar.append_data(&mut header, name, io::empty());
    }
    if kind.is_file() && metadata.nlink() > 1 {
        match first.get(&(metadata.dev(), metadata.ino())) {
            Some(earlier) => {
                header.set_entry_type(tar::EntryType::Link);
                return tar.append_link(&mut header, name, earlier);
            }
            None => drop(first.insert((metadata.dev(), metadata.ino()), name.to_owned())),
        }
    }
    if kind.is_file() {
        let file = File::open(path)?;
        let size = file.metadata()?.len();
        header.set_size(size);
        // A file that changes its size while it is read is cut or filled up to the size it had.
        return tar.append_data(&mut header, name, io::Read::take(io::Read::chain(file, io::repeat(0)), size));
    }
    tar.append_data(&mut header, name, io::empty())
}

/// Extended attributes as PAX headers; overlayfs's own stay behind.
fn attributes(path: &Path) -> io::Result<Vec<(String, Vec<u8>)>> {
    let mut found = Vec::new();
    let names = match xattr::list(path) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported => return Ok(found),
        names => names?,
    };
    for name in names {
        if name.as_bytes().starts_with(b"trusted.overlay.") {
            continue;
        }
        if let (Some(text), Some(value)) = (name.to_str(), xattr::get(path, &name)?) {
            found.push((format!("SCHILY.xattr.{text}"), value));
        }
    }
    Ok(found)
}
