// SPDX-License-Identifier: Apache-2.0
//! How images come into the store: from an archive, from a file system's tar, from parts that a pull or commit made.

use std::{
    cell::RefCell,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::Path,
    rc::Rc,
};

use sha2::{Digest, Sha256};

use super::{
    Blob, ImageError, Store, archive,
    blob::{self},
    changes, hex, layer,
    reference::Reference,
    write_atomically,
};

/// A layer's archive on this file system, maybe compressed; it is moved into the store.
#[derive(Debug)]
pub struct Source<'a> {
    /// The archive.
    pub file: &'a Path,
    /// "sha256:..." that the file must have.
    pub digest: Option<&'a str>,
    /// "sha256:..." that the tar in it must have.
    pub diff_id: Option<&'a str>,
}

/// An image whose layers are all in the store.
#[derive(Debug, Default)]
pub struct NewImage<'a> {
    /// The config, as it came: its digest is the image's id.
    pub config: &'a [u8],
    /// `name:tag`.
    pub tags: Vec<String>,
    /// `name@sha256:...`, if a registry has it.
    pub digest: Option<String>,
    /// Id of the image it was committed from, or empty.
    pub parent: String,
}

impl Store {
    /// Loads what `docker save` wrote. `progress` gets a line per image, as the CLI prints it.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a broken archive; then nothing was added to the index.
    pub fn load(&self, tar: impl Read + 'static, progress: &mut dyn FnMut(String)) -> Result<Vec<String>, ImageError> {
        let spool = self.work_directory()?;
        let mut loaded = Vec::new();
        for found in archive::read(tar, spool.path())? {
            let diff_ids = diff_ids(&found.config)?;
            if diff_ids.len() != found.layers.len() {
                return Err(ImageError::Invalid(format!(
                    "invalid image config: {} layers but {} diff ids",
                    found.layers.len(),
                    diff_ids.len()
                )));
            }
            for (file, diff_id) in found.layers.iter().zip(&diff_ids) {
                if !self.has_layer(diff_id) {
                    // Equal layers of an archive are one file, and the first use took it.
                    self.add_layer(&Source { file, digest: None, diff_id: Some(diff_id) })?;
                }
            }
            let tags = found.tags.iter().map(|tag| Reference::parse(tag)).collect::<Result<Vec<_>, _>>()?;
            let tags: Vec<String> = tags.iter().filter_map(Reference::tagged).collect();
            let new = NewImage { config: &found.config, tags: tags.clone(), ..NewImage::default() };
            let id = self.add_image(&new)?;
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
        mut tar: impl Read + 'static,
        name: Option<&str>,
        message: &str,
        platform: Option<(&str, &str)>,
        changes: &[String],
    ) -> Result<String, ImageError> {
        let tag = name.filter(|name| !name.is_empty()).map(Reference::parse).transpose()?;
        let mut run = serde_json::Map::new();
        changes::apply(&mut run, changes)?;
        let work = self.work_directory()?;
        let file = work.path().join("layer");
        let mut out = File::create(&file).map_err(ImageError::io("create", &file))?;
        io::copy(&mut tar, &mut out).map_err(ImageError::broken)?;
        drop(out);
        let diff_id = self.add_layer(&Source { file: &file, digest: None, diff_id: None })?;
        let created = now();
        let (os, architecture) = platform.unwrap_or(("linux", architecture()));
        let config = serde_json::json!({
            "architecture": architecture, "os": os, "created": created, "config": run,
            "rootfs": { "type": "layers", "diff_ids": [diff_id] },
            "history": [{
                "created": created, "comment": if message.is_empty() { "Imported from -" } else { message },
            }],
        });
        let tags: Vec<String> = tag.iter().filter_map(Reference::tagged).collect();
        self.add_image(&NewImage { config: config.to_string().as_bytes(), tags, ..NewImage::default() })
    }

    /// Adds an image, or gives one that is there further names. Gives its id.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a config that cannot be run; [`ImageError::Conflict`] if a layer is not there, which
    /// happens when the last other image that had it was removed meanwhile: what was done is to be done again.
    pub fn add_image(&self, new: &NewImage<'_>) -> Result<String, ImageError> {
        let id = format!("sha256:{}", hex(&Sha256::digest(new.config)));
        let layers = diff_ids(new.config)?;
        // Typed parse now: an image that cannot be run is refused when it comes, not when it is started.
        serde_json::from_slice::<oci_spec::image::ImageConfiguration>(new.config)
            .map_err(|error| ImageError::Invalid(format!("invalid image config: {error}")))?;
        let mut index = self.lock();
        if let Some(missing) = layers.iter().find(|layer| !self.has_layer(layer)) {
            return Err(ImageError::Conflict(format!("layer {missing} was removed meanwhile: try again")));
        }
        write_atomically(&self.blob_path(&id), new.config)?;
        let mut next = index.clone();
        next.add(&id, layers, &new.parent);
        for tag in &new.tags {
            next.set_tag(tag, &id);
        }
        if let Some(digest) = &new.digest {
            next.set_digest(digest, &id);
        }
        self.replace(&mut index, next)?;
        Ok(id)
    }

    /// Whether a layer is there, whole.
    #[must_use]
    pub fn has_layer(&self, diff_id: &str) -> bool {
        self.layer_path(diff_id).join("size").exists()
    }

    /// Unpacks a layer and moves it into place with its archive. Gives its diff id.
    ///
    /// # Errors
    /// [`ImageError::Invalid`] for a broken or hostile archive, or one with another digest.
    pub fn add_layer(&self, source: &Source<'_>) -> Result<String, ImageError> {
        let work = self.work_directory()?;
        let place = work.path().join("layer");
        let file = File::open(source.file).map_err(ImageError::io("open", source.file))?;
        let size = file.metadata().map_err(ImageError::io("read", source.file))?.len();
        let hash = Rc::new(RefCell::new(Sha256::new()));
        let reader = BufReader::with_capacity(1 << 18, Hashed { file, hash: hash.clone() });
        let (compression, mut tar) = archive::undone(reader).map_err(ImageError::broken)?;
        let unpacked = layer::unpack(&mut tar, &place.join("diff"))?;
        drop(tar);
        let digest = format!("sha256:{}", hex(&hash.borrow().clone().finalize()));
        let differs = |what: &str, wanted: &str, found: &str| {
            ImageError::Invalid(format!("{what} digest mismatch: wanted {wanted}, content is {found}"))
        };
        if let Some(wanted) = source.digest.filter(|wanted| *wanted != digest) {
            return Err(differs("layer verification failed:", wanted, &digest));
        }
        if let Some(wanted) = source.diff_id.filter(|wanted| *wanted != unpacked.diff_id) {
            return Err(differs("layer", wanted, &unpacked.diff_id));
        }
        let facts = Blob { digest, size, compression, tar_size: unpacked.tar_size };
        let write = |name: &str, bytes: &[u8]| {
            let file = place.join(name);
            fs::write(&file, bytes).map_err(ImageError::io("write", &file))
        };
        write("blob.json", &blob::json(&facts))?;
        write("size", unpacked.size.to_string().as_bytes())?;
        let kept = place.join(super::digest_hex(&facts.digest));
        // The file may be needed again when the pull is tried again, until the layer is in place.
        fs::hard_link(source.file, &kept).map_err(ImageError::io("place", &kept))?;
        let target = self.layer_path(&unpacked.diff_id);
        match fs::rename(&place, &target) {
            Ok(()) => {}
            // Somebody else finished the same layer first; theirs is as good.
            Err(_) if self.has_layer(&unpacked.diff_id) => {}
            Err(error) => return Err(ImageError::io("place layer", &target)(error)),
        }
        Ok(unpacked.diff_id)
    }
}

/// Go's name of this machine's architecture.
pub(super) fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

/// Now, RFC 3339.
pub(super) fn now() -> String {
    crate::docker::time::rfc3339(crate::docker::time::now())
}

/// Counts what is read into a digest.
struct Hashed {
    file: File,
    hash: Rc<RefCell<Sha256>>,
}

impl Read for Hashed {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read(buffer)?;
        self.hash.borrow_mut().update(&buffer[..count]);
        Ok(count)
    }
}

/// Diff ids of a config, bottom first.
///
/// # Errors
/// [`ImageError::Invalid`] if they are missing or no digests.
pub fn diff_ids(config: &[u8]) -> Result<Vec<String>, ImageError> {
    let config: serde_json::Value = serde_json::from_slice(config)
        .map_err(|error| ImageError::Invalid(format!("invalid image config: {error}")))?;
    let ids = config.pointer("/rootfs/diff_ids").and_then(|ids| ids.as_array());
    let text = |id: &serde_json::Value| id.as_str().filter(|id| super::is_digest(id)).map(str::to_owned);
    ids.and_then(|ids| ids.iter().map(text).collect())
        .ok_or_else(|| ImageError::invalid("invalid image config: rootfs.diff_ids is missing or malformed"))
}
