// SPDX-License-Identifier: Apache-2.0
//! What `docker rmi` takes away: a name, several names, or an image with those it stands on.

use super::{Index, repository};
use crate::images::{ImageError, digest_hex, layer::chain_ids};

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
    /// A `name:tag` or `name@digest` went.
    Untagged(String),
    /// An image or layer ("sha256:...") went.
    Deleted(String),
}

/// Everything that went.
#[derive(Debug, Default)]
pub(in crate::images) struct Gone {
    /// What is printed, in order.
    pub(in crate::images) lines: Vec<Removed>,
    /// Diff ids of layers that nobody needs any more.
    pub(in crate::images) layers: Vec<String>,
    /// Ids of images that are no more; those of `removed` images are not among them.
    pub(in crate::images) images: Vec<String>,
}

/// Why an image may not go.
struct Conflict {
    hard: bool,
    /// A container is the reason.
    used: bool,
    text: String,
}

impl Index {
    /// Removes a name or an image. With `prune`, parents that nobody names go too.
    pub(in crate::images) fn remove(
        &mut self,
        reference: &str,
        force: bool,
        prune: bool,
        users: &[ImageUser],
    ) -> Result<Gone, ImageError> {
        let (id, name) = self.find(reference)?;
        let mut gone = Gone::default();
        let user = users.iter().find(|user| user.image_id == id);
        let single = self.is_single(&id);
        let mut by_name = false;
        if let Some(name) = name {
            if !force
                && single
                && let Some(user) = user
            {
                let given = if reference.contains(':') { name.as_str() } else { reference };
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to remove repository reference \"{given}\" (must force) - container {} is using \
                     its referenced image {}",
                    short(&user.container_id),
                    short(&id)
                )));
            }
            self.untag(&id, &name, &mut gone);
            let record = self.images.get(&id).cloned().unwrap_or_default();
            if !name.contains('@') && !record.tags.iter().any(|tag| repository(tag) == repository(&name)) {
                // What only a registry calls it is no name on its own.
                for digest in record.digests.iter().filter(|digest| repository(digest) == repository(&name)) {
                    self.untag(&id, digest, &mut gone);
                }
            }
            if self.images.get(&id).is_some_and(|record| record.references().next().is_some()) {
                return Ok(gone);
            }
            by_name = true;
        } else if single {
            // Only names of one repository: they go with it.
            if let Some(conflict) = self.conflict(&id, users, false).filter(|conflict| conflict.hard || !force) {
                return Err(conflict.error(&id));
            }
            let names: Vec<String> =
                self.images.get(&id).map(|record| record.references().cloned().collect()).unwrap_or_default();
            for name in names {
                self.untag(&id, &name, &mut gone);
            }
        }
        self.delete(&id, force, prune, by_name, users, &mut gone)?;
        Ok(gone)
    }

    /// Forgets removed images that no container stands on any more.
    pub(in crate::images) fn sweep(&mut self, users: &[ImageUser]) -> Gone {
        let used = |id: &String| users.iter().any(|user| user.image_id == *id);
        let dead: Vec<String> =
            self.images.iter().filter(|(id, record)| record.removed && !used(id)).map(|(id, _)| id.clone()).collect();
        let mut gone = Gone::default();
        for id in dead {
            self.forget(&id, &mut gone);
        }
        gone
    }

    /// Docker's rule for "one name": at most one tag, and every name of one repository.
    fn is_single(&self, id: &str) -> bool {
        let Some(record) = self.images.get(id) else { return true };
        let mut repositories = record.references().map(|name| repository(name));
        let first = repositories.next();
        record.tags.len() <= 1 && repositories.all(|other| Some(other) == first)
    }

    fn untag(&mut self, id: &str, name: &str, gone: &mut Gone) {
        if let Some(record) = self.images.get_mut(id) {
            record.tags.retain(|other| other != name);
            record.digests.retain(|other| other != name);
            gone.lines.push(Removed::Untagged(name.to_owned()));
        }
    }

    fn delete(
        &mut self,
        id: &str,
        force: bool,
        prune: bool,
        quiet: bool,
        users: &[ImageUser],
        gone: &mut Gone,
    ) -> Result<(), ImageError> {
        let Some(record) = self.images.get(id).cloned() else { return Ok(()) };
        if let Some(conflict) = self.conflict(id, users, true).filter(|conflict| conflict.hard || !force) {
            // A name went, or a parent is not needed by this one any more: that others need it is no fault.
            if quiet && (record.references().next().is_some() || conflict.used || conflict.hard) {
                return Ok(());
            }
            return Err(conflict.error(id));
        }
        for name in record.references() {
            self.untag(id, name, gone);
        }
        gone.lines.push(Removed::Deleted(id.to_owned()));
        if users.iter().any(|user| user.image_id == id) {
            if let Some(record) = self.images.get_mut(id) {
                record.removed = true;
            }
        } else {
            self.forget(id, gone);
        }
        if prune && !record.parent.is_empty() {
            return self.delete(&record.parent, false, true, true, users, gone);
        }
        Ok(())
    }

    /// Takes an image out, with the layers that only it had.
    fn forget(&mut self, id: &str, gone: &mut Gone) {
        let Some(record) = self.images.remove(id) else { return };
        gone.images.push(id.to_owned());
        // Docker names a layer by all that is below it; an equal layer elsewhere may still be needed.
        let chains = chain_ids(&record.layers);
        for count in (1..=record.layers.len()).rev() {
            let stack = &record.layers[..count];
            if !self.images.values().any(|other| other.layers.starts_with(stack))
                && let Some(chain) = chains.get(count - 1)
            {
                gone.lines.push(Removed::Deleted(chain.clone()));
            }
        }
        for layer in &record.layers {
            if !self.images.values().any(|other| other.layers.contains(layer)) && !gone.layers.contains(layer) {
                gone.layers.push(layer.clone());
            }
        }
    }

    /// What keeps an image from being deleted; `names`: whether its names count.
    fn conflict(&self, id: &str, users: &[ImageUser], names: bool) -> Option<Conflict> {
        let user = |running: bool| users.iter().find(|user| user.image_id == id && user.running == running);
        if self.shown().any(|(_, record)| record.parent == id) {
            return Some(Conflict { hard: true, used: false, text: "image has dependent child images".into() });
        }
        if let Some(user) = user(true) {
            let text = format!("image is being used by running container {}", short(&user.container_id));
            return Some(Conflict { hard: true, used: true, text });
        }
        if names && self.images.get(id).is_some_and(|record| record.references().next().is_some()) {
            let text = "image is referenced in multiple repositories".into();
            return Some(Conflict { hard: false, used: false, text });
        }
        let user = user(false)?;
        let text = format!("image is being used by stopped container {}", short(&user.container_id));
        Some(Conflict { hard: false, used: true, text })
    }
}

impl Conflict {
    fn error(&self, id: &str) -> ImageError {
        let how = if self.hard { "cannot be forced" } else { "must be forced" };
        ImageError::Conflict(format!("conflict: unable to delete {} ({how}) - {}", short(id), self.text))
    }
}

fn short(id: &str) -> &str {
    digest_hex(id).get(..12).unwrap_or(id)
}
