// SPDX-License-Identifier: Apache-2.0
//! `docker pull`: the manifest, the config, then layers side by side; they are unpacked in order as they come.

use std::{collections::BTreeMap, sync::Arc};

use oci_client::{
    errors::OciDistributionError,
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    },
};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use super::{Repository, error, progress::Lines, receive};
use crate::{
    engine::Engine,
    http::{ApiError, ApiResult},
    images::{self, ImageError, NewImage, Source, hex, reference::Reference},
};

/// Layers that are fetched at once, Docker's default.
const AT_ONCE: usize = 3;
/// Bytes a config may have.
const CONFIG: u64 = 8 << 20;
const ACCEPTED: &[&str] =
    &[IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE];

/// `--platform`, or this machine's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// Reads `os[/architecture[/variant]]`; "" is this machine's.
    ///
    /// # Errors
    /// 400 for more parts, or empty ones.
    pub fn parse(text: &str) -> ApiResult<Option<Self>> {
        if text.is_empty() {
            return Ok(None);
        }
        let parts: Vec<&str> = text.split('/').collect();
        let good =
            |part: &&str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b));
        if parts.len() > 3 || !parts.iter().all(good) {
            return Err(ApiError::bad_request(format!(
                "\"{text}\": cannot parse platform specifier: invalid argument"
            )));
        }
        let part = |at: usize| parts.get(at).copied().unwrap_or_default();
        let arch = |name: &str| match name {
            "x86_64" | "x86-64" => "amd64".to_owned(),
            "aarch64" => "arm64".to_owned(),
            name => name.to_lowercase(),
        };
        let own = Self::own();
        Ok(Some(match parts.len() {
            1 if ["linux", "windows", "darwin", "freebsd"].contains(&part(0)) => Self { os: part(0).to_owned(), ..own },
            1 => Self { os: own.os, architecture: arch(part(0)), variant: String::new() },
            _ => Self { os: part(0).to_lowercase(), architecture: arch(part(1)), variant: part(2).to_owned() },
        }))
    }

    /// Operating system and architecture.
    #[must_use]
    pub fn parts(&self) -> (&str, &str) {
        (&self.os, &self.architecture)
    }

    fn own() -> Self {
        let architecture = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
        Self { os: "linux".to_owned(), architecture: architecture.to_owned(), variant: String::new() }
    }

    fn fits(&self, other: &Self) -> bool {
        let variant = |one: &Self| match (one.architecture.as_str(), one.variant.as_str()) {
            ("arm64", "") => "v8".to_owned(),
            ("arm", "") => "v7".to_owned(),
            (_, variant) => variant.to_owned(),
        };
        self.os == other.os && self.architecture == other.architecture && variant(self) == variant(other)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        match self.variant.as_str() {
            "" => Ok(()),
            variant => write!(f, "/{variant}"),
        }
    }
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Descriptor {
    media_type: String,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    annotations: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Manifest {
    media_type: String,
    manifests: Vec<Descriptor>,
    config: Option<Descriptor>,
    layers: Vec<Descriptor>,
}

/// A manifest, and what the registry calls it.
impl Manifest {
    /// Digests become names of files, and the registry is not to be trusted with those.
    fn parse(bytes: &[u8]) -> Result<Self, OciDistributionError> {
        let manifest: Self = serde_json::from_slice(bytes)
            .map_err(|error| OciDistributionError::ManifestParsingError(error.to_string()))?;
        let mut descriptors = manifest.manifests.iter().chain(&manifest.config).chain(&manifest.layers);
        match descriptors.find(|descriptor| !images::is_digest(&descriptor.digest)) {
            None => Ok(manifest),
            Some(odd) => Err(OciDistributionError::ManifestParsingError(format!(
                "invalid checksum digest format: {:?}",
                odd.digest
            ))),
        }
    }
}

struct Found {
    manifest: Manifest,
    digest: String,
    size: usize,
}

impl Repository {
    fn fault(&self, error: &OciDistributionError, reference: &str) -> ApiError {
        let asked = self.place.digest().or(self.place.tag()).unwrap_or_default();
        let url = format!("{}/v2/{}/manifests/{asked}", self.url, self.place.repository());
        error::of_pull(error, reference, &self.name, &url, self.signed_in)
    }

    async fn manifest(&self, place: &oci_client::Reference) -> Result<Found, OciDistributionError> {
        let (bytes, _) = self.client.pull_manifest_raw(place, &self.auth, ACCEPTED).await?;
        let manifest = Manifest::parse(&bytes)?;
        let digest = format!("sha256:{}", hex(&Sha256::digest(&bytes)));
        Ok(Found { manifest, digest, size: bytes.len() })
    }
}

/// Tags of a repository, for `docker pull -a`.
///
/// # Errors
/// The registry's.
pub async fn tags(repository: &Repository) -> ApiResult<Vec<String>> {
    let mut all: Vec<String> = Vec::new();
    loop {
        let last = all.last().map(String::as_str);
        let listed = repository.client.list_tags(&repository.place, &repository.auth, Some(100), last).await;
        let name = &repository.name;
        let more = match listed {
            Ok(listed) => listed.tags,
            Err(error) => match error::told(&error) {
                Some((code, message)) if code.ends_with("unknown") => {
                    return Err(ApiError::not_found(format!("repository {name} not found: {code}: {message}")));
                }
                _ => return Err(repository.fault(&error, name)),
            },
        };
        let whole = more.len() < 100;
        all.extend(more);
        if whole {
            return Ok(all);
        }
    }
}

/// `GET /distribution/NAME/json`: what a registry has under a name.
///
/// # Errors
/// The registry's.
pub async fn look(repository: &Repository, reference: &Reference) -> ApiResult<serde_json::Value> {
    let text = reference.to_string();
    let found = repository.manifest(&repository.place).await.map_err(|error| match error::told(&error) {
        Some((code, message)) if code.ends_with("unknown") => ApiError::not_found(format!("{code}: {message}")),
        _ => repository.fault(&error, &text),
    })?;
    let platforms: Vec<serde_json::Value> = match &found.manifest.config {
        Some(config) => {
            let bytes = config_of(repository, config).await.map_err(|error| repository.fault(&error, &text))?;
            let value: serde_json::Value = serde_json::from_slice(&bytes).unwrap_or_default();
            vec![serde_json::json!({"architecture": value["architecture"], "os": value["os"]})]
        }
        None => {
            let known = found.manifest.manifests.iter().filter_map(|one| one.platform.as_ref());
            known.map(|one| serde_json::json!({"architecture": one.architecture, "os": one.os})).collect()
        }
    };
    Ok(serde_json::json!({
        "Descriptor": {"mediaType": found.manifest.media_type, "digest": found.digest, "size": found.size},
        "Platforms": platforms,
    }))
}

/// Pulls one image; `name:tag` and what the registry calls it name it afterwards. Gives its id.
///
/// # Errors
/// Docker's texts; the store has whole layers only, and what came of others for the next try.
pub async fn pull(
    engine: &Arc<Engine>,
    repository: &Repository,
    reference: &Reference,
    platform: Option<&Platform>,
    lines: &Lines,
) -> ApiResult<String> {
    let text = reference.to_string();
    let fault = |error: OciDistributionError| repository.fault(&error, &text);
    let top = repository.manifest(&repository.place).await.map_err(fault)?;
    let shown = reference.tag.clone().or_else(|| reference.digest.clone()).unwrap_or_default();
    lines.send(serde_json::json!({"status": format!("Pulling from {}", full_path(&reference.name)), "id": shown}));
    let own = Platform::own();
    let chosen = if top.manifest.config.is_some() {
        None
    } else {
        let wanted = platform.unwrap_or(&own);
        let entry = choose(&top.manifest.manifests, wanted).ok_or_else(|| {
            ApiError::not_found(format!("no matching manifest for {wanted} in the manifest list entries"))
        })?;
        Some(repository.manifest(&repository.place.clone_with_digest(entry.digest.clone())).await.map_err(fault)?)
    };
    let manifest = &chosen.as_ref().unwrap_or(&top).manifest;
    let config = manifest.config.as_ref().ok_or_else(|| {
        ApiError::internal(format!("unsupported manifest media type and no default available: {}", manifest.media_type))
    })?;
    let foreign =
        manifest.layers.iter().find(|layer| !layer.media_type.is_empty() && !layer.media_type.contains("tar"));
    if let Some(layer) = foreign {
        return Err(ApiError::bad_request(format!(
            "invalid rootfs in image configuration: a layer of {text} is {}, which is no file system",
            layer.media_type
        )));
    }
    let config = config_of(repository, config).await.map_err(fault)?;
    let diff_ids = images::diff_ids(&config)?;
    if diff_ids.len() != manifest.layers.len() {
        return Err(ApiError::bad_request(format!(
            "invalid rootfs in image configuration: {} layers but {} diff ids",
            manifest.layers.len(),
            diff_ids.len()
        )));
    }
    let before = Engine::blocking({
        let (images, text) = (engine.images.clone(), text.clone());
        move || Ok(images.resolve(&text).ok().map(|image| image.id))
    })
    .await?;
    let digest = format!("{}@{}", reference.name, top.digest);
    let whole = format!("sha256:{}", hex(&Sha256::digest(&config)));
    // With the image its layers are there, and nothing is to be told of them.
    let mut known = engine.images.id_of(&whole).is_some();
    let mut again = true;
    let id = loop {
        if !known {
            layers(engine, repository, &manifest.layers, &diff_ids, &text, lines).await?;
        }
        let (images, config) = (engine.images.clone(), config.clone());
        let new = (reference.digest.is_none().then(|| reference.tagged()).flatten(), digest.clone());
        let added = tokio::task::spawn_blocking(move || {
            let tags = new.0.into_iter().collect();
            images.add_image(&NewImage { config: &config, tags, digest: Some(new.1), parent: String::new() })
        })
        .await
        .map_err(|error| ApiError::internal(error.to_string()))?;
        match added {
            // Another image that had a layer was removed while we believed to have it.
            Err(ImageError::Conflict(_)) if again => (again, known) = (false, false),
            added => break added?,
        }
    };
    lines.say(format!("Digest: {}", top.digest));
    let news = if before.as_ref() == Some(&id) { "Image is up to date for" } else { "Downloaded newer image for" };
    lines.say(format!("Status: {news} {text}"));
    let has: Platform = serde_json::from_slice(&config).unwrap_or_default();
    if let Some(wanted) = platform.filter(|wanted| !wanted.fits(&has)) {
        lines.say(format!(
            "WARNING: image with reference {text} was found but its platform ({has}) does not match the specified \
             platform ({wanted})"
        ));
    }
    Ok(id)
}

/// `library/busybox`, as the first line of a pull names it.
fn full_path(name: &str) -> String {
    super::split(name).1
}

/// The entry of a list that fits best: the same variant, else any of this architecture.
fn choose<'a>(entries: &'a [Descriptor], wanted: &Platform) -> Option<&'a Descriptor> {
    let runs = |entry: &&Descriptor| !entry.annotations.contains_key("vnd.docker.reference.type");
    let of = |entry: &Descriptor| entry.platform.clone().unwrap_or_default();
    let exact = entries.iter().filter(runs).find(|entry| wanted.fits(&of(entry)));
    exact.or_else(|| {
        let any = |entry: &&Descriptor| {
            let has = of(entry);
            wanted.variant.is_empty() && has.os == wanted.os && has.architecture == wanted.architecture
        };
        entries.iter().filter(runs).find(any)
    })
}

async fn config_of(repository: &Repository, config: &Descriptor) -> Result<Vec<u8>, OciDistributionError> {
    if config.size > CONFIG {
        let text = format!("the image's config has {} bytes, and {CONFIG} are the most", config.size);
        return Err(OciDistributionError::SpecViolationError(text));
    }
    let mut bytes = Vec::new();
    repository.client.pull_blob(&repository.place, config.digest.as_str(), &mut bytes).await?;
    Ok(bytes)
}

/// Brings the layers that are not there.
async fn layers(
    engine: &Arc<Engine>,
    repository: &Repository,
    blobs: &[Descriptor],
    diff_ids: &[String],
    reference: &str,
    lines: &Lines,
) -> ApiResult<()> {
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut coming = Vec::new();
    for (blob, diff_id) in blobs.iter().zip(diff_ids) {
        let id = short(&blob.digest);
        if engine.images.has_layer(diff_id) {
            lines.part(&id, "Already exists");
            continue;
        }
        lines.part(&id, "Pulling fs layer");
        coming.push((blob, diff_id, id));
    }
    let mut tasks = Vec::new();
    for (at, (blob, diff_id, id)) in coming.iter().enumerate() {
        if at >= AT_ONCE {
            lines.part(id, "Waiting");
        }
        let (engine, blob, id, diff_id) = (engine.clone(), (*blob).clone(), id.clone(), (*diff_id).clone());
        let (slots, lines, repository) = (slots.clone(), lines.clone(), repository.clone());
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let _slot = slots.acquire().await.ok();
            let partial = engine.images.partial(&blob.digest).await;
            // Whoever fetched it before us may have unpacked it.
            if !engine.images.has_layer(&diff_id) {
                receive::receive(&repository, &blob.digest, blob.size, &partial.path, &id, &lines).await?;
                lines.part(&id, "Verifying Checksum");
            }
            lines.part(&id, "Download complete");
            Ok::<_, OciDistributionError>(partial)
        })));
    }
    for ((blob, diff_id, id), task) in coming.into_iter().zip(tasks) {
        let fetched = task.await.map_err(|error| ApiError::internal(error.to_string()))?;
        let partial = fetched.map_err(|error| repository.fault(&error, reference))?;
        let (images, digest, diff_id) = (engine.images.clone(), blob.digest.clone(), diff_id.clone());
        let bar = lines.bar(&id, "Extracting", blob.size);
        let size = blob.size;
        Engine::blocking(move || {
            if images.has_layer(&diff_id) {
                return Ok(());
            }
            let source = Source { file: &partial.path, digest: Some(&digest), diff_id: Some(&diff_id) };
            let added = images.add_layer(&source);
            // In the store, or not what it should be: either way nobody goes on with it.
            if !matches!(added, Err(ImageError::Io { .. })) {
                let _ = std::fs::remove_file(&partial.path);
            }
            added?;
            bar.add(size);
            Ok(())
        })
        .await?;
        lines.part(&id, "Pull complete");
    }
    Ok(())
}

/// Twelve digits.
fn short(digest: &str) -> String {
    digest.split(':').next_back().unwrap_or_default().chars().take(12).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_manifest_cannot_name_a_file_elsewhere() {
        let hex = "a".repeat(64);
        let manifest = |layer: &str| {
            let text = serde_json::json!({
                "config": {"digest": format!("sha256:{hex}")},
                "layers": [{"digest": layer, "size": 1}],
            });
            Manifest::parse(text.to_string().as_bytes())
        };
        assert!(manifest(&format!("sha256:{hex}")).is_ok());
        for odd in ["", "sha256:", "sha256:../../../x", "../x", "/x", &format!("sha256:{}/", "a".repeat(63)), &hex] {
            let error = manifest(odd).expect_err(odd).to_string();
            assert!(error.contains("invalid checksum digest format"), "{error}");
        }
    }

    #[test]
    fn the_platform_that_fits_is_chosen() {
        let entry = |text: &str, digest: &str| Descriptor {
            digest: digest.to_owned(),
            platform: Platform::parse(text).expect("platform"),
            ..Descriptor::default()
        };
        let mut attested = entry("linux/amd64", "attestation");
        attested.annotations.insert("vnd.docker.reference.type".into(), "attestation-manifest".into());
        let list = [
            attested,
            entry("linux/amd64", "amd"),
            entry("linux/arm/v6", "arm6"),
            entry("linux/arm64/v8", "arm8"),
            entry("windows/amd64", "win"),
        ];
        let chosen = |text: &str| {
            let wanted = Platform::parse(text).expect("platform").expect("given");
            choose(&list, &wanted).map(|entry| entry.digest.clone())
        };
        assert_eq!(chosen("linux/amd64").as_deref(), Some("amd"));
        assert_eq!(chosen("x86_64").as_deref(), Some("amd"));
        assert_eq!(chosen("linux/aarch64").as_deref(), Some("arm8"));
        assert_eq!(chosen("linux/arm").as_deref(), Some("arm6"));
        assert_eq!(chosen("linux/arm/v7"), None);
        assert_eq!(chosen("linux/s390x"), None);
        assert_eq!(Platform::parse(""), Ok(None));
        for bad in ["a/b/c/d", "linux/", "/", "linux/am d64"] {
            assert!(Platform::parse(bad).is_err(), "{bad}");
        }
    }
}
