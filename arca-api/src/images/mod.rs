// SPDX-License-Identifier: Apache-2.0
//! The image store: content-addressed, on disk, blocking (callers use `spawn_blocking`).
//!
//! ```text
//! images/index.json                 which images there are, their tags; replaced atomically
//! images/blobs/sha256/<hex>         image configs, as they came
//! images/layers/<diff-id hex>/diff  one unpacked layer: an overlayfs lower directory
//! images/layers/<diff-id hex>/size  bytes of its regular files
//! images/layers/<diff-id hex>/blob.json and the file it names: the layer's archive as it came, for push and save
//! images/partial/<digest hex>       a blob on its way from a registry; the next pull goes on where this one ended
//! images/tmp/                       work in progress; emptied when the store is opened
//! ```
//! A layer or config appears by rename only when it is whole and its digest is right, and the index names it only
//! after that: a crash at any moment leaves a consistent store. What no image names is removed when the store is opened.

mod add;
mod archive;
mod blob;
pub mod changes;
mod edit;
mod error;
mod index;
mod layer;
mod partial;
pub mod reference;
mod save;
mod zstd;

#[cfg(target_os = "linux")]
#[path = "nodes_linux.rs"]
mod nodes;
#[cfg(not(target_os = "linux"))]
#[path = "nodes_other.rs"]
mod nodes;
pub(crate) mod special;

use std::{
    collections::HashMap,
    fs::{self, File},
    io::Write as _,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use self::index::Index;
pub use self::{
    add::{NewImage, Source, diff_ids},
    blob::{Blob, Compression},
    error::ImageError,
    index::{ImageUser, Removed},
    layer::{chain_ids, hex},
    save::Saved,
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
    /// `name@sha256:...`: what registries call it, known once it was pulled or pushed.
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
    /// Id of the image it was committed from, or empty.
    pub parent: String,
    raw: Arc<serde_json::Value>,
}

impl Image {
    /// The config JSON as it came, with Docker's own fields.
    #[must_use]
    pub fn raw_config(&self) -> &serde_json::Value {
        &self.raw
    }
}

/// The store. Clones share it.
#[derive(Clone, Debug)]
pub struct Store(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    root: PathBuf,
    index: Mutex<Index>,
    /// Held while a blob of this digest is fetched.
    fetching: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

impl Store {
    /// Opens (or creates) the store in `root`.
    ///
    /// # Errors
    /// If the directory cannot be made or the index cannot be read.
    pub fn open(root: &Path) -> Result<Self, ImageError> {
        for part in ["blobs/sha256", "layers", "partial"] {
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
        let inner = Inner { root: root.to_path_buf(), index: Mutex::new(index), fetching: Mutex::default() };
        let store = Self(Arc::new(inner));
        store.clear_unnamed()?;
        Ok(store)
    }

    /// Finds an image by name, name and tag, digest, id, or unique id prefix.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] with the reference as Docker prints it, or an ambiguous prefix.
    pub fn resolve(&self, reference: &str) -> Result<Image, ImageError> {
        let id = self.lock().find(reference)?.0;
        self.image(&id)
    }

    /// The id that a reference means, without a look at the disk.
    #[must_use]
    pub fn id_of(&self, reference: &str) -> Option<String> {
        self.lock().find(reference).ok().map(|(id, _)| id)
    }

    /// Every image, newest first.
    ///
    /// # Errors
    /// If a config blob cannot be read.
    pub fn list(&self) -> Result<Vec<Image>, ImageError> {
        let ids: Vec<String> = self.lock().shown().map(|(id, _)| id.clone()).collect();
        let mut images: Vec<Image> = ids.iter().map(|id| self.image(id)).collect::<Result<_, _>>()?;
        images.sort_by(|a, b| b.created.cmp(&a.created).then_with(|| a.id.cmp(&b.id)));
        Ok(images)
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
            repo_digests: record.digests,
            parent: record.parent,
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

    /// A config as it came.
    ///
    /// # Errors
    /// If it cannot be read.
    pub fn config(&self, id: &str) -> Result<Vec<u8>, ImageError> {
        let blob = self.blob_path(id);
        fs::read(&blob).map_err(ImageError::io("read", &blob))
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

    /// A folder of one's own on the store's file system; gone when dropped, and after a crash.
    ///
    /// # Errors
    /// The disk's.
    pub fn work_directory(&self) -> Result<tempfile::TempDir, ImageError> {
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

/// Whether a text of elsewhere is a digest that may become a file's name: `sha256:` and 64 hexadecimal digits (OCI image
/// specification, descriptor, "Digests").
#[must_use]
pub fn is_digest(text: &str) -> bool {
    let hex = text.strip_prefix("sha256:").unwrap_or_default();
    hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn digest_hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
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
