// SPDX-License-Identifier: Apache-2.0
//! Reads what `docker save` writes: a docker-archive (`manifest.json`) or an OCI image layout (`index.json`), plain or
//! compressed, from a stream. Entries come in any order, so files are spooled to a folder first and read from there.

use std::{
    collections::HashMap,
    fs::{self, File},
    io::{self, BufReader, Read},
    path::{Path, PathBuf},
};

use flate2::read::MultiGzDecoder;
use serde::Deserialize;

use super::{blob::Compression, error::ImageError, zstd};

/// One image found in an archive.
#[derive(Debug)]
pub(super) struct Found {
    /// Config JSON, as in the archive: its digest is the image id.
    pub(super) config: Vec<u8>,
    /// Layer files, bottom first; maybe compressed.
    pub(super) layers: Vec<PathBuf>,
    /// `name:tag` texts.
    pub(super) tags: Vec<String>,
}

/// Spools `archive` into the empty folder `spool` and finds the images in it.
pub(super) fn read(archive: impl Read + 'static, spool: &Path) -> Result<Vec<Found>, ImageError> {
    let files = Files::spool(decompressed(BufReader::new(archive)).map_err(ImageError::broken)?, spool)?;
    if let Some(manifest) = files.get("manifest.json") {
        docker_archive(&files, manifest)
    } else if let Some(index) = files.get("index.json") {
        oci_layout(&files, index)
    } else {
        Err(ImageError::invalid("invalid archive: does not contain a manifest.json or an index.json"))
    }
}

/// Gzip and zstd are undone, a plain tar passes. An empty stream stays empty.
pub(super) fn decompressed<R: Read + 'static>(reader: BufReader<R>) -> io::Result<Box<dyn Read>> {
    undone(reader).map(|(_, reader)| reader)
}

/// As [`decompressed`], with what was undone.
pub(super) fn undone<R: Read + 'static>(mut reader: BufReader<R>) -> io::Result<(Compression, Box<dyn Read>)> {
    use io::BufRead as _;
    let start = reader.fill_buf()?;
    if start.starts_with(&[0x1f, 0x8b]) {
        Ok((Compression::Gzip, Box::new(MultiGzDecoder::new(reader))))
    } else if start.starts_with(&zstd::MAGIC) {
        Ok((Compression::Zstd, Box::new(zstd::Decoder::new(reader))))
    } else if let Some((_, name)) = FOREIGN.iter().find(|(magic, _)| start.starts_with(magic)) {
        Err(io::Error::new(io::ErrorKind::InvalidData, format!("compressed with {name}: unpack it first, or use gzip")))
    } else {
        Ok((Compression::None, Box::new(reader)))
    }
}

/// Compressions that are told by name, and not undone.
const FOREIGN: &[(&[u8], &str)] = &[(b"BZh", "bzip2"), (&[0xfd, b'7', b'z', b'X', b'Z'], "xz")];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ManifestEntry {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn docker_archive(files: &Files, manifest: &Path) -> Result<Vec<Found>, ImageError> {
    let entries: Vec<ManifestEntry> = json(manifest, "manifest.json")?;
    entries
        .into_iter()
        .map(|entry| {
            let config = read_file(files.require(&entry.config)?)?;
            let layers = entry.layers.unwrap_or_default();
            let layers = layers.iter().map(|name| files.require(name).map(Path::to_path_buf));
            Ok(Found { config, layers: layers.collect::<Result<_, _>>()?, tags: entry.repo_tags.unwrap_or_default() })
        })
        .collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    digest: String,
    #[serde(default)]
    media_type: String,
    #[serde(default)]
    annotations: HashMap<String, String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciIndex {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct OciManifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

fn oci_layout(files: &Files, index: &Path) -> Result<Vec<Found>, ImageError> {
    let mut found = Vec::new();
    let mut queue: Vec<(Descriptor, Vec<String>)> = Vec::new();
    let top: OciIndex = json(index, "index.json")?;
    queue.extend(top.manifests.into_iter().map(|descriptor| {
        let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
        let tag = names.iter().find_map(|name| descriptor.annotations.get(*name)).cloned();
        (descriptor, tag.into_iter().collect())
    }));
    // An index may hold an index (several platforms); attestations have no layers we could run and are passed over.
    while let Some((descriptor, tags)) = queue.pop() {
        let blob = files.require(&blob_path(&descriptor.digest)?)?;
        if descriptor.media_type.ends_with("index.v1+json") || descriptor.media_type.ends_with("list.v2+json") {
            let inner: OciIndex = json(blob, &descriptor.digest)?;
            let attestation = |d: &Descriptor| d.annotations.contains_key("vnd.docker.reference.type");
            queue.extend(inner.manifests.into_iter().filter(|d| !attestation(d)).map(|d| (d, tags.clone())));
            continue;
        }
        let manifest: OciManifest = json(blob, &descriptor.digest)?;
        let config = read_file(files.require(&blob_path(&manifest.config.digest)?)?)?;
        let layers = manifest.layers.iter().map(|layer| Ok(files.require(&blob_path(&layer.digest)?)?.to_path_buf()));
        found.push(Found { config, layers: layers.collect::<Result<_, ImageError>>()?, tags });
    }
    Ok(found)
}

fn blob_path(digest: &str) -> Result<String, ImageError> {
    match digest.split_once(':') {
        Some((_, hex)) if super::is_digest(digest) => Ok(format!("blobs/sha256/{hex}")),
        _ => Err(ImageError::Invalid(format!("invalid archive: unsupported digest {digest}"))),
    }
}

/// Regular files of the archive by name; links resolved when asked for.
struct Files {
    regular: HashMap<String, PathBuf>,
    links: HashMap<String, String>,
}

impl Files {
    fn spool(archive: impl Read, spool: &Path) -> Result<Self, ImageError> {
        let mut files = Self { regular: HashMap::new(), links: HashMap::new() };
        let mut tar = tar::Archive::new(archive);
        for (number, entry) in tar.entries().map_err(ImageError::broken)?.enumerate() {
            let mut entry = entry.map_err(ImageError::broken)?;
            let name = normal(&entry.path().map_err(ImageError::broken)?.to_string_lossy());
            match entry.header().entry_type() {
                kind if kind.is_file() => {
                    // Spooled under a number: names of the archive never become paths on this machine.
                    let path = spool.join(number.to_string());
                    let mut file = File::create(&path).map_err(ImageError::io("create", &path))?;
                    io::copy(&mut entry, &mut file).map_err(ImageError::broken)?;
                    files.regular.insert(name, path);
                }
                kind if kind.is_symlink() || kind.is_hard_link() => {
                    let target = entry
                        .link_name()
                        .map_err(ImageError::broken)?
                        .unwrap_or_default()
                        .to_string_lossy()
                        .into_owned();
                    let base = if kind.is_symlink() { name.rsplit_once('/').map_or("", |(d, _)| d) } else { "" };
                    files.links.insert(name.clone(), normal(&format!("{base}/{target}")));
                }
                _ => {}
            }
        }
        Ok(files)
    }

    fn get(&self, name: &str) -> Option<&Path> {
        let mut name = normal(name);
        // Old archives link equal layers to each other; a chain longer than this is a loop.
        for _ in 0..16 {
            match (self.regular.get(&name), self.links.get(&name)) {
                (Some(path), _) => return Some(path),
                (None, Some(target)) => name.clone_from(target),
                (None, None) => return None,
            }
        }
        None
    }

    fn require(&self, name: &str) -> Result<&Path, ImageError> {
        self.get(name).ok_or_else(|| ImageError::Invalid(format!("invalid archive: {name} is named but not there")))
    }
}

/// `./a/../b` to `b`; never climbs above the top.
fn normal(name: &str) -> String {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn json<T: serde::de::DeserializeOwned>(path: &Path, name: &str) -> Result<T, ImageError> {
    serde_json::from_slice(&read_file(path)?).map_err(|error| ImageError::Invalid(format!("invalid {name}: {error}")))
}

fn read_file(path: &Path) -> Result<Vec<u8>, ImageError> {
    fs::read(path).map_err(ImageError::io("read", path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_without_leaving_the_top() {
        assert_eq!(normal("./a/../b//c"), "b/c");
        assert_eq!(normal("../../etc/passwd"), "etc/passwd");
    }

    #[test]
    fn garbage_and_an_archive_without_manifest_are_refused() {
        let spool = tempfile::tempdir().expect("temporary directory");
        let empty = tar::Builder::new(Vec::new()).into_inner().expect("in memory");
        for bytes in [b"garbage".repeat(200), empty, Vec::new(), vec![0x1f, 0x8b, 0, 1, 2]] {
            let error = read(io::Cursor::new(bytes), spool.path()).expect_err("no archive");
            assert!(matches!(error.status(), 400 | 500), "{error}");
        }
    }
}
