// SPDX-License-Identifier: Apache-2.0
//! Which images there are and what they are called. Pure: the store reads and writes it.

mod remove;

use std::{collections::BTreeMap, fs, io, path::Path};

use serde::{Deserialize, Serialize};

use crate::docker::time::now;

pub(super) use self::remove::Gone;
pub use self::remove::{ImageUser, Removed};
use super::{ImageError, digest_hex, reference::Reference};

/// One image.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    /// `name:tag`, sorted.
    pub(super) tags: Vec<String>,
    /// `name@sha256:...`, sorted.
    #[serde(default)]
    pub(super) digests: Vec<String>,
    /// Diff ids, bottom first.
    pub(super) layers: Vec<String>,
    /// When it last got a name, in nanoseconds since the Unix epoch; 0 for never.
    #[serde(default)]
    pub(super) tagged: i64,
    /// Id of the image it was committed from, or empty.
    #[serde(default)]
    pub(super) parent: String,
    /// Removed by force while containers stand on its layers: nobody sees it, and it goes with the last of them.
    #[serde(default)]
    pub(super) removed: bool,
}

impl Record {
    /// Names of every kind.
    fn references(&self) -> impl Iterator<Item = &String> {
        self.tags.iter().chain(&self.digests)
    }
}

/// All images, by id.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Index {
    pub(super) images: BTreeMap<String, Record>,
}

/// Repository of `name:tag` or `name@digest`.
pub(super) fn repository(reference: &str) -> &str {
    match reference.split_once('@') {
        Some((name, _)) => name,
        None => reference.rsplit_once(':').map_or(reference, |(name, _)| name),
    }
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

    /// Images that were not removed.
    pub(super) fn shown(&self) -> impl Iterator<Item = (&String, &Record)> {
        self.images.iter().filter(|(_, record)| !record.removed)
    }

    /// Adds an image, or brings back one that was removed.
    pub(super) fn add(&mut self, id: &str, layers: Vec<String>, parent: &str) {
        let fresh = Record { layers, parent: parent.to_owned(), ..Record::default() };
        self.images.entry(id.to_owned()).or_insert(fresh).removed = false;
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

    /// A registry calls the image `id` so (`name@sha256:...`).
    pub(super) fn set_digest(&mut self, digest: &str, id: &str) {
        for record in self.images.values_mut() {
            record.digests.retain(|other| other != digest);
        }
        if let Some(record) = self.images.get_mut(id) {
            record.digests.push(digest.to_owned());
            record.digests.sort();
        }
    }

    /// The image a reference means, and the name (tag or digest) it was named by; none when named by id.
    pub(super) fn find(&self, reference: &str) -> Result<(String, Option<String>), ImageError> {
        let hex = digest_hex(reference);
        let whole = format!("sha256:{hex}");
        if hex.len() == 64 && self.shown().any(|(id, _)| *id == whole) {
            return Ok((whole, None));
        }
        let parsed = Reference::parse(reference);
        if let Ok(parsed) = &parsed {
            let name = match &parsed.digest {
                Some(digest) => Some(format!("{}@{digest}", parsed.name)),
                None => parsed.tagged(),
            };
            let named = |record: &Record| record.references().any(|other| Some(other) == name.as_ref());
            if let Some((id, _)) = self.shown().find(|(_, record)| named(record)) {
                return Ok((id.clone(), name));
            }
            if let Some(digest) = &parsed.digest
                && self.shown().any(|(id, _)| id == digest)
            {
                return Ok((digest.clone(), None));
            }
        }
        if !hex.is_empty() && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b)) {
            let mut matches = self.shown().map(|(id, _)| id).filter(|id| digest_hex(id).starts_with(hex));
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
}
