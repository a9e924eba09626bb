// SPDX-License-Identifier: Apache-2.0
//! `docker save`: one archive that is an OCI image layout and a docker-archive at once, as Docker's since 25.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::{Image, ImageError, Store, digest_hex, hex, reference::Reference};

/// What is written for one image.
#[derive(Clone, Debug)]
pub struct Saved {
    image: Image,
    /// `name:tag` that the archive gives it.
    tags: Vec<String>,
}

impl Saved {
    /// "sha256:HEX"
    #[must_use]
    pub fn id(&self) -> &str {
        &self.image.id
    }
}

impl Store {
    /// Finds what `names` mean: a name without a tag means all its tags, an id none.
    ///
    /// # Errors
    /// As [`Store::resolve`].
    pub fn to_save(&self, names: &[String]) -> Result<Vec<Saved>, ImageError> {
        let mut found: Vec<Saved> = Vec::new();
        for name in names {
            for (image, tag) in self.meant(name)? {
                let known = found.iter().position(|saved| saved.image.id == image.id);
                let at = known.unwrap_or_else(|| {
                    found.push(Saved { image, tags: Vec::new() });
                    found.len() - 1
                });
                let tags = &mut found[at].tags;
                tags.extend(tag.filter(|tag| !tags.contains(tag)));
            }
        }
        Ok(found)
    }

    fn meant(&self, name: &str) -> Result<Vec<(Image, Option<String>)>, ImageError> {
        if let Ok(reference) = Reference::parse(name)
            && !Reference::has_tag(name)
            && reference.digest.is_none()
        {
            let prefix = format!("{}:", reference.name);
            let mut all = Vec::new();
            for image in self.list()? {
                let tags: Vec<String> =
                    image.repo_tags.iter().filter(|tag| tag.starts_with(&prefix)).cloned().collect();
                all.extend(tags.into_iter().map(|tag| (image.clone(), Some(tag))));
            }
            if !all.is_empty() {
                return Ok(all);
            }
        }
        let image = self.resolve(name)?;
        let tag = Reference::parse(name).ok().and_then(|reference| reference.tagged());
        let tag = tag.filter(|tag| image.repo_tags.contains(tag));
        Ok(vec![(image, tag)])
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// `out`'s, or the store's.
    pub fn save(&self, images: &[Saved], out: &mut impl Write) -> io::Result<()> {
        let plain = |error: ImageError| io::Error::other(error.to_string());
        let mut tar = tar::Builder::new(out);
        folder(&mut tar, "blobs/")?;
        folder(&mut tar, "blobs/sha256/")?;
        let (mut index, mut manifest, mut repositories) = (Vec::new(), Vec::new(), BTreeMap::new());
        let mut written = Vec::new();
        for Saved { image, tags } in images {
            let config = self.config(&image.id).map_err(plain)?;
            let mut layers = Vec::new();
            for layer in &image.diff_ids {
                let (blob, _) = self.blob(layer).map_err(plain)?;
                layers.push(json!({
                    "mediaType": "application/vnd.oci.image.layer.v1.tar", "size": blob.tar_size, "digest": layer,
                }));
                if !written.contains(layer) {
                    written.push(layer.clone());
                    let data = self.layer_tar(layer).map_err(plain)?;
                    file(&mut tar, &path(layer), blob.tar_size, data)?;
                }
            }
            let whole = json!({
                "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
                "config": {
                    "mediaType": "application/vnd.oci.image.config.v1+json", "digest": image.id, "size": config.len(),
                },
                "layers": layers,
            })
            .to_string();
            let digest = format!("sha256:{}", hex(&Sha256::digest(&whole)));
            for (name, bytes) in [(&image.id, config.as_slice()), (&digest, whole.as_bytes())] {
                if !written.contains(name) {
                    written.push(name.clone());
                    file(&mut tar, &path(name), bytes.len() as u64, bytes)?;
                }
            }
            let descriptor = json!({
                "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": whole.len(),
            });
            if tags.is_empty() {
                index.push(descriptor.clone());
            }
            for tag in tags {
                let (name, version) = tag.rsplit_once(':').unwrap_or((tag, ""));
                let mut named = descriptor.clone();
                named["annotations"] = json!({
                    "io.containerd.image.name": Reference::canonical(tag), "org.opencontainers.image.ref.name": version,
                });
                index.push(named);
                let top = image.diff_ids.last().map(|layer| digest_hex(layer).to_owned()).unwrap_or_default();
                repositories.entry(name.to_owned()).or_insert_with(BTreeMap::new).insert(version.to_owned(), top);
            }
            manifest.push(json!({
                "Config": path(&image.id),
                "RepoTags": if tags.is_empty() { Value::Null } else { json!(tags) },
                "Layers": image.diff_ids.iter().map(|layer| path(layer)).collect::<Vec<_>>(),
                "LayerSources": image.diff_ids.iter().zip(&layers).collect::<BTreeMap<_, _>>(),
            }));
        }
        let index = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": index,
        });
        let last = [
            ("index.json", index),
            ("manifest.json", json!(manifest)),
            ("oci-layout", json!({"imageLayoutVersion": "1.0.0"})),
            ("repositories", json!(repositories)),
        ];
        for (name, value) in last {
            let text = value.to_string();
            file(&mut tar, name, text.len() as u64, text.as_bytes())?;
        }
        tar.into_inner()?.flush()
    }
}

fn path(digest: &str) -> String {
    format!("blobs/sha256/{}", digest_hex(digest))
}

fn header(kind: tar::EntryType, mode: u32, size: u64) -> tar::Header {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header
}

fn folder(tar: &mut tar::Builder<impl Write>, name: &str) -> io::Result<()> {
    tar.append_data(&mut header(tar::EntryType::Directory, 0o755, 0), name, io::empty())
}

fn file(tar: &mut tar::Builder<impl Write>, name: &str, size: u64, data: impl io::Read) -> io::Result<()> {
    tar.append_data(&mut header(tar::EntryType::Regular, 0o644, size), name, data)
}
