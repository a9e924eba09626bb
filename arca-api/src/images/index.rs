// SPDX-License-Identifier: Apache-2.0
//! Which images there are and what they are called. Pure: the store reads and writes it.

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::docker::time::now;

use super::{ImageError, ImageUser, Removed, digest_hex, reference::Reference};

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `name:tag`, sorted.
    pub(super) tags: Vec<String>,
    /// Diff ids, bottom first.
    pub(super) layers: Vec<String>,
    /// When it last got a name, in nanoseconds since the Unix epoch; 0 for never.
    #[serde(default)]
    pub(super) tagged: i64,
}

/// All images, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) images: BTreeMap<String, Record>,
}

impl Index {
    pub(super) fn read(path: &Path) -> Result<Self, ImageError> {
        match fs::read(path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map_err(|error| ImageError::io("read", path)(io::Error::new(io::ErrorKind::InvalidData, error))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Self::default()),
            Err(error) => Err(ImageError::io("read", path)(error)),
        }
    }

    pub(super) fn to_json(&self) -> Vec<u8> {
        // Serialising texts and lists of texts cannot fail.
        serde_json::to_vec_pretty(self).unwrap_or_default()
    }

    /// Moves `tag` to the image `id`.
    pub(super) fn set_tag(&mut self, tag: &str, id: &str) {
        for record in self.images.values_mut() {
            record.tags.retain(|other| other != tag);
        }
        if let Some(record) = self.images.get_mut(id) {
            record.tags.push(tag.to_owned());
            record.tags.sort();
            record.tagged = now();
        }
    }

    /// The image a reference means, and the tag it was named by (none when named by id).
    pub(super) fn find(&self, reference: &str) -> Result<(String, Option<String>), ImageError> {
        let hex = digest_hex(reference);
        if hex.len() == 64 && self.images.contains_key(&format!("sha256:{hex}")) {
            return Ok((format!("sha256:{hex}"), None));
        }
        let parsed = Reference::parse(reference);
        if let Ok(parsed) = &parsed {
            if let Some(tag) = parsed.tagged() {
                let named = self.images.iter().find(|(_, record)| record.tags.contains(&tag));
                if let Some((id, _)) = named {
                    return Ok((id.clone(), Some(tag)));
                }
            }
            if let Some(digest) = &parsed.digest
                && self.images.contains_key(digest)
            {
                return Ok((digest.clone(), None));
            }
        }
        if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let mut matches = self.images.keys().filter(|id| digest_hex(id).starts_with(hex));
            match (matches.next(), matches.next()) {
                (Some(id), None) => return Ok((id.clone(), None)),
                (Some(_), Some(_)) => {
                    return Err(ImageError::Invalid(format!("ambiguous reference: {reference}")));
                }
                _ => {}
            }
        }
        Err(ImageError::NotFound(parsed?.to_string()))
    }

    /// Removes a name or an image; gives what `rmi` prints and the layers nobody needs any more.
    pub(super) fn remove(
        &mut self,
        reference: &str,
        force: bool,
        users: &[ImageUser],
    ) -> Result<(Vec<Removed>, Vec<String>), ImageError> {
        let (id, tag) = self.find(reference)?;
        let short = digest_hex(&id).get(..12).unwrap_or_default().to_owned();
        let record = self.images.get(&id).cloned().unwrap_or_default();
        let user = users.iter().filter(|user| user.image_id == id).max_by_key(|user| user.running);
        let used_by = |user: &ImageUser| user.container_id.get(..12).unwrap_or(&user.container_id).to_owned();
        let mut removed = Vec::new();

        if let Some(tag) = &tag
            && record.tags.len() > 1
        {
            self.untag(&id, tag);
            return Ok((vec![Removed::Untagged(tag.clone())], Vec::new()));
        }
        match (&tag, user) {
            (Some(tag), Some(user)) if !force => {
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to remove repository reference \"{}\" (must force) - container {} is using its \
                     referenced image {short}",
                    if reference.contains(':') { tag } else { reference },
                    used_by(user)
                )));
            }
            (None, Some(user)) if user.running => {
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to delete {short} (cannot be forced) - image is being used by running container {}",
                    used_by(user)
                )));
            }
            (None, Some(user)) if !force => {
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to delete {short} (must be forced) - image is being used by stopped container {}",
                    used_by(user)
                )));
            }
            (None, None) if record.tags.len() > 1 && !force => {
                return Err(ImageError::Conflict(format!(
                    "conflict: unable to delete {short} (must be forced) - image is referenced in multiple repositories"
                )));
            }
            _ => {}
        }
        for tag in &record.tags {
            removed.push(Removed::Untagged(tag.clone()));
        }
        if user.is_some() {
            // A container still stands on its layers: only the names go; the image stays, nameless.
            if let Some(record) = self.images.get_mut(&id) {
                record.tags.clear();
            }
            return Ok((removed, Vec::new()));
        }
        self.images.remove(&id);
        removed.push(Removed::Deleted(id));
        let needed = |layer: &String| self.images.values().any(|other| other.layers.contains(layer));
        let mut dead: Vec<String> = record.layers.iter().filter(|layer| !needed(layer)).cloned().collect();
        dead.dedup();
        removed.extend(dead.iter().rev().cloned().map(Removed::Deleted));
        Ok((removed, dead))
    }

    fn untag(&mut self, id: &str, tag: &str) {
        if let Some(record) = self.images.get_mut(id) {
            record.tags.retain(|other| other != tag);
        }
    }
}
