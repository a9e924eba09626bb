// SPDX-License-Identifier: Apache-2.0
//! Names come and go, images are removed, and what nobody names any more is cleared away.

use std::{collections::BTreeSet, fs};

use super::{
    ImageError, ImageUser, Removed, Store, digest_hex,
    index::{Gone, Index},
    reference::Reference,
};

impl Store {
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

    /// Remembers what a registry calls an image: `name@sha256:...`.
    ///
    /// # Errors
    /// The disk's.
    pub fn set_digest(&self, id: &str, digest: &str) -> Result<(), ImageError> {
        let mut index = self.lock();
        let mut next = index.clone();
        next.set_digest(digest, id);
        self.replace(&mut index, next)
    }

    /// Removes a name, or the image with its layers when no name is left or it was given by id. With `prune`, parents
    /// that have no name go too.
    ///
    /// # Errors
    /// [`ImageError::Conflict`] in Docker's words when containers or further names hold it.
    pub fn remove(
        &self,
        reference: &str,
        force: bool,
        prune: bool,
        users: &[ImageUser],
    ) -> Result<Vec<Removed>, ImageError> {
        self.change(|index| index.remove(reference, force, prune, users))
    }

    /// Forgets images that were removed while a container stood on them and that no container stands on any more.
    ///
    /// # Errors
    /// The disk's.
    pub fn sweep(&self, users: &[ImageUser]) -> Result<(), ImageError> {
        if !self.lock().images.values().any(|record| record.removed) {
            return Ok(());
        }
        self.change(|index| Ok(index.sweep(users))).map(drop)
    }

    /// Changes the index and takes what nobody needs any more out of its place, under one lock: a layer that is wanted
    /// again a moment later must not go then. Removing the files comes afterwards.
    fn change(&self, with: impl FnOnce(&mut Index) -> Result<Gone, ImageError>) -> Result<Vec<Removed>, ImageError> {
        let mut graves = Vec::new();
        let gone = {
            let mut index = self.lock();
            let mut next = index.clone();
            let gone = with(&mut next)?;
            self.replace(&mut index, next)?;
            let layers = gone.layers.iter().map(|layer| self.layer_path(layer));
            for path in layers.chain(gone.images.iter().map(|id| self.blob_path(id))) {
                let grave = self.work_directory()?;
                match fs::rename(&path, grave.path().join("dead")) {
                    Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                        return Err(ImageError::io("remove", &path)(error));
                    }
                    _ => graves.push(grave),
                }
            }
            gone
        };
        for grave in graves {
            let path = grave.path().to_path_buf();
            grave.close().map_err(ImageError::io("remove", &path))?;
        }
        Ok(gone.lines)
    }

    /// Removes layers and configs that no image names: a crash came before the index was written.
    pub(super) fn clear_unnamed(&self) -> Result<(), ImageError> {
        let (layers, configs): (BTreeSet<String>, BTreeSet<String>) = {
            let index = self.lock();
            let layers = index.images.values().flat_map(|record| &record.layers);
            let hex = |digest: &String| digest_hex(digest).to_owned();
            (layers.map(hex).collect(), index.images.keys().map(hex).collect())
        };
        for (folder, named) in [("layers", &layers), ("blobs/sha256", &configs)] {
            let folder = self.0.root.join(folder);
            for entry in fs::read_dir(&folder).map_err(ImageError::io("list", &folder))?.flatten() {
                if named.contains(entry.file_name().to_string_lossy().as_ref()) {
                    continue;
                }
                let path = entry.path();
                let removed = if path.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) };
                removed.map_err(ImageError::io("remove", &path))?;
                tracing::info!(path = %path.display(), "removed what no image names");
            }
        }
        self.clear_forgotten()
    }
}
