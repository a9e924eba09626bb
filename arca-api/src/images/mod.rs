// SPDX-License-Identifier: Apache-2.0
//! The image store: content-addressed, on disk, blocking (callers use `spawn_blocking`).
//!
//! ```text
//! images/index.json                 which images there are, their tags; replaced atomically
//! images/blobs/sha256/<hex>         image configs, as they came
//! images/layers/<diff-id hex>/diff  one unpacked layer: an overlayfs lower directory
//! images/layers/<diff-id hex>/size  bytes of its regular files
//! images/tmp/                       work in progress; emptied when the store is opened
//! ```
//! A layer or config appears by rename only when it is whole and its digest is right, and the index names it only
//! after that: a crash at any moment leaves a consistent store.

mod archive;
mod changes;
mod error;
mod index;
mod layer;
pub mod reference;

#[cfg(target_os = "linux")]
#[path = "nodes_linux.rs"]
mod nodes;
#[cfg(not(target_os = "linux"))]
#[path = "nodes_other.rs"]
mod nodes;
pub(crate) mod special;

use std::{
    fs::{self, File},
    io::{BufReader, Read, Write as _},
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use sha2::{Digest, Sha256};

pub use self::error::ImageError;
use self::{
    index::{Index, Record},
    layer::hex,
    reference::Reference,
};

/// An image, ready to run.
#[derive(Clone, Debug)]
pub struct Image {
    /// "sha256:HEX", the digest of its config.
    pub id: String,
    /// `name:tag`, sorted.
    pub repo_tags: Vec<String>,
    /// When it last got a name, in nanoseconds since the Unix epoch; 0 for never.
    pub tagged: i64,
    /// `name@sha256:...`; known for pulled images only.
    pub repo_digests: Vec<String>,
    /// Its config, typed.
    pub config: oci_spec::image::ImageConfiguration,
    /// Overlay lower directories, topmost first.
    pub layers: Vec<PathBuf>,
    /// Bytes of each layer, bottom first.
    pub layer_sizes: Vec<u64>,
    /// Diff ids, bottom first, as in the config.
    pub diff_ids: Vec<String>,
    /// Bytes of regular files in all layers.
    pub size: u64,
    /// RFC 3339, or empty.
    pub created: String,
    raw: Arc<serde_json::Value>,
}

impl Image {
    /// The config JSON as it came, with Docker's own fields.
    #[must_use]
    pub fn raw_config(&self) -> &serde_json::Value {
        &self.raw
    }
}

/// A container that was made from an image.
#[derive(Clone, Debug)]
pub struct ImageUser {
    /// 64 hex digits.
    pub container_id: String,
    /// "sha256:HEX"
    pub image_id: String,
    /// Running or paused.
    pub running: bool,
}

/// One line of what `docker rmi` prints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Removed {
    /// A `name:tag` went.
    Untagged(String),
    /// An image or layer ("sha256:...") went.
    Deleted(String),
}

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    index: Mutex<Index>,
}

impl Store {
    /// Opens (or creates) the store in `root`.
    ///
    /// # Errors
    /// If the directory cannot be made or the index cannot be read.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for part in ["blobs/sha256", "layers"] {
            let path = root.join(part);
            fs::create_dir_all(&path).map_err(ImageError::io("create", &path))?;
        }
        let work = root.join("tmp");
        // What is there was left by a crash in the middle of a load.
        if work.exists() {
            fs::remove_dir_all(&work).map_err(ImageError::io("clear", &work))?;
        }
        fs::create_dir_all(&work).map_err(ImageError::io("create", &work))?;
        let index = Index::read(&root.join("index.json"))?;
        Ok(Self(Arc::new(Inner { root: root.to_path_buf(), index: Mutex::new(index) })))
    }

    /// Finds an image by name, name and tag, digest, id, or unique id prefix.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] with the reference as Docker prints it, or an ambiguous prefix.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let id = self.lock().find(reference)?.0;
        self.image(&id)
    }

    /// Every image, newest first.
    ///
    /// # Errors
    /// If a config blob cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let ids: Vec<String> = self.lock().images.keys().cloned().collect();
        let mut images: Vec<Image> = ids.iter().map(|id| self.image(id)).collect::<Result<_, _>>()?;
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
    }

    /// Loads what `docker save` wrote. `progress` gets a line per image, as the CLI prints it.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a broken archive; then nothing was added to the index.
    pub fn load(&self, tar: impl Read + 'static, progress: &mut dyn FnMut(String)) -> Result<Vec<String>, ImageError> {
        let spool = self.work_directory()?;
        let mut loaded = Vec::new();
        for found in archive::read(tar, spool.path())? {
            let config: serde_json::Value = serde_json::from_slice(&found.config)
                .map_err(|error| ImageError::Invalid(format!("invalid image config: {error}")))?;
            let diff_ids = diff_ids(&config)?;
            if diff_ids.len() != found.layers.len() {
                return Err(ImageError::Invalid(format!(
                    "invalid image config: {} layers but {} diff ids",
                    found.layers.len(),
                    diff_ids.len()
                )));
            }
            for (file, diff_id) in found.layers.iter().zip(&diff_ids) {
                if !self.layer_path(diff_id).exists() {
                    let file = File::open(file).map_err(ImageError::io("open", file))?;
                    self.add_layer(file, Some(diff_id))?;
                }
            }
            let tags = found.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>()?;
            let tags: Vec<String> = tags.iter().filter_map(Reference::tagged).collect();
            let id = self.add_image(&found.config, diff_ids, &tags)?;
            let named = tags.iter().map(|tag| format!("Loaded image: {tag}"));
            let lines: Vec<String> =
                if tags.is_empty() { vec![format!("Loaded image ID: {id}")] } else { named.collect() };
            for line in lines {
                progress(line.clone());
                loaded.push(line);
            }
        }
        Ok(loaded)
    }

    /// Makes an image of one layer from a file system tar. `changes` are Dockerfile lines (`CMD ...`).
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a broken tar, name or change.
    pub fn import(
        &self,
        tar: impl Read + 'static,
        name: Option<&str>,
        message: &str,
        changes: &[String],
    ) -> Result<String, ImageError> {
        let tag = name.filter(|name| !name.is_empty()).map(Reference::parse).transpose()?;
        let run = changes::apply(changes)?;
        let diff_id = self.add_layer(tar, None)?;
        let now = time::OffsetDateTime::now_utc();
        let created = now.format(&time::format_description::well_known::Rfc3339).unwrap_or_default();
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "created": created, "config": run,
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{
                "created": created, "comment": if message.is_empty() { "Imported from -" } else { message },
            }],
        });
        let tags: Vec<String> = tag.iter().filter_map(Reference::tagged).collect();
        self.add_image(config.to_string().as_bytes(), vec![diff_id], &tags)
    }

    /// Gives an image a further name.
    ///
    /// # Errors
    /// If the image is not there or the name is no reference.
    pub fn tag(&self, reference: &str, target: &str) -> Result<(), ImageError> {
        let target = Reference::parse(target)?;
        let refused = || ImageError::invalid("refusing to create a tag with a digest reference");
        let tag = target.tagged().ok_or_else(refused)?;
        let mut index = self.lock();
        let id = index.find(reference)?.0;
        let mut next = index.clone();
        next.set_tag(&tag, &id);
        self.replace(&mut index, next)
    }

    /// Removes a name, or the image with its layers when no name is left or it was given by id.
    ///
    /// # Errors
    /// [`ImageError::Conflict`] in Docker's words when containers or further names hold it.
    pub fn remove(&self, reference: &str, force: bool, users: &[ImageUser]) -> Result<Vec<Removed>, ImageError> {
        let mut index = self.lock();
        let mut next = index.clone();
        let (removed, dead_layers) = next.remove(reference, force, users)?;
        self.replace(&mut index, next)?;
        // The index no longer names them: what a crash leaves here is only disk space.
        for layer in &dead_layers {
            let path = self.layer_path(layer);
            let grave = self.0.root.join("tmp").join(format!("dead-{}", digest_hex(layer)));
            fs::rename(&path, &grave).map_err(ImageError::io("remove", &path))?;
            fs::remove_dir_all(&grave).map_err(ImageError::io("remove", &grave))?;
        }
        for line in &removed {
            if let Removed::Deleted(id) = line {
                let blob = self.blob_path(id);
                if blob.exists() {
                    fs::remove_file(&blob).map_err(ImageError::io("remove", &blob))?;
                }
            }
        }
        Ok(removed)
    }

    fn add_image(&self, config: &[u8], diff_ids: Vec<String>, tags: &[String]) -> Result<String, ImageError> {
        let id = format!("sha256:{}", hex(&Sha256::digest(config)));
        // Typed parse now: an image that cannot be run is refused when it comes, not when it is started.
        serde_json::from_slice::<oci_spec::image::ImageConfiguration>(config)
            .map_err(|error| ImageError::Invalid(format!("invalid image config: {error}")))?;
        write_atomically(&self.blob_path(&id), config)?;
        let mut index = self.lock();
        let mut next = index.clone();
        next.images.entry(id.clone()).or_insert_with(|| Record { layers: diff_ids, ..Record::default() });
        for tag in tags {
            next.set_tag(tag, &id);
        }
        self.replace(&mut index, next)?;
        Ok(id)
    }

    /// Unpacks a layer, maybe compressed, and moves it into place. Gives its diff id.
    fn add_layer(&self, tar: impl Read + 'static, expected: Option<&str>) -> Result<String, ImageError> {
        let work = self.work_directory()?;
        let reader = archive::decompressed(BufReader::with_capacity(1 << 18, tar)).map_err(ImageError::broken)?;
        let unpacked = layer::unpack(reader, &work.path().join("diff"))?;
        if let Some(expected) = expected.filter(|expected| **expected != unpacked.diff_id) {
            return Err(ImageError::Invalid(format!(
                "layer digest mismatch: config says {expected}, content is {}",
                unpacked.diff_id
            )));
        }
        let size = work.path().join("size");
        fs::write(&size, unpacked.size.to_string()).map_err(ImageError::io("write", &size))?;
        let place = self.layer_path(&unpacked.diff_id);
        match fs::rename(work.path(), &place) {
            Ok(()) => {
                let _moved = work.keep();
            }
            // Somebody else finished the same layer first; theirs is as good.
            Err(_) if place.join("size").exists() => {}
            Err(error) => return Err(ImageError::io("place layer", &place)(error)),
        }
        Ok(unpacked.diff_id)
    }

    fn image(&self, id: &str) -> Result<Image, ImageError> {
        let record = self.lock().images.get(id).cloned().ok_or_else(|| ImageError::NotFound(id.to_owned()))?;
        let blob = self.blob_path(id);
        let bytes = fs::read(&blob).map_err(ImageError::io("read", &blob))?;
        let corrupt = |error| ImageError::Invalid(format!("invalid image config: {error}"));
        let raw: serde_json::Value = serde_json::from_slice(&bytes).map_err(corrupt)?;
        let config = serde_json::from_slice(&bytes).map_err(corrupt)?;
        let mut layer_sizes = Vec::new();
        for layer in &record.layers {
            let file = self.layer_path(layer).join("size");
            let text = fs::read_to_string(&file).map_err(ImageError::io("read", &file))?;
            layer_sizes.push(text.trim().parse::<u64>().unwrap_or(0));
        }
        Ok(Image {
            id: id.to_owned(),
            repo_digests: Vec::new(),
            config,
            layers: record.layers.iter().rev().map(|layer| self.layer_path(layer).join("diff")).collect(),
            size: layer_sizes.iter().sum(),
            layer_sizes,
            created: raw.get("created").and_then(|created| created.as_str()).unwrap_or_default().to_owned(),
            raw: Arc::new(raw),
            tagged: record.tagged,
            repo_tags: record.tags,
            diff_ids: record.layers,
        })
    }

    fn replace(&self, current: &mut Index, next: Index) -> Result<(), ImageError> {
        write_atomically(&self.0.root.join("index.json"), &next.to_json())?;
        *current = next;
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Index> {
        // A panic elsewhere cannot leave the index half changed: it is replaced whole.
        self.0.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn work_directory(&self) -> Result<tempfile::TempDir, ImageError> {
        let work = self.0.root.join("tmp");
        tempfile::tempdir_in(&work).map_err(ImageError::io("create a folder in", &work))
    }

    fn layer_path(&self, diff_id: &str) -> PathBuf {
        self.0.root.join("layers").join(digest_hex(diff_id))
    }

    fn blob_path(&self, digest: &str) -> PathBuf {
        self.0.root.join("blobs/sha256").join(digest_hex(digest))
    }
}

fn digest_hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

fn diff_ids(config: &serde_json::Value) -> Result<Vec<String>, ImageError> {
    let ids = config.pointer("/rootfs/diff_ids").and_then(|ids| ids.as_array());
    let text = |id: &serde_json::Value| {
        let hex = id.as_str()?.strip_prefix("sha256:")?;
        (hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit())).then(|| format!("sha256:{hex}"))
    };
    ids.and_then(|ids| ids.iter().map(text).collect())
        .ok_or_else(|| ImageError::invalid("invalid image config: rootfs.diff_ids is missing or malformed"))
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<(), ImageError> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let write = || {
        let mut file = tempfile::NamedTempFile::new_in(directory)?;
        file.write_all(bytes)?;
        file.as_file().sync_all()?;
        file.persist(path).map_err(|error| error.error)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(ImageError::io("write", path))
}

#[cfg(test)]
mod tests;
