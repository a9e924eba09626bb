// SPDX-License-Identifier: Apache-2.0
//! `docker push`: layers side by side, the config, then the manifest, which makes them an image.

use std::sync::Arc;

use futures_util::StreamExt as _;
use oci_client::{errors::OciDistributionError, manifest::IMAGE_MANIFEST_MEDIA_TYPE};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::Semaphore;
use tokio_util::{io::ReaderStream, task::AbortOnDropHandle};

use super::{Repository, error, progress::Lines};
use crate::{
    engine::Engine,
    http::{ApiError, ApiResult},
    images::{Blob, Compression, Image, hex},
};

/// Layers that are sent at once, Docker's default.
const AT_ONCE: usize = 5;
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Docker's own format has no name for it.
const ZSTD: &str = "application/vnd.docker.image.rootfs.diff.tar.zstd";

/// Pushes one image under the tag of `repository`. Gives the manifest's digest.
///
/// # Errors
/// Docker's texts.
pub async fn push(
    engine: &Arc<Engine>,
    repository: &Repository,
    image: &Image,
    tag: &str,
    lines: &Lines,
) -> ApiResult<String> {
    // The topmost first, as the CLI lists them.
    for layer in image.diff_ids.iter().rev() {
        lines.part(&short(layer), "Preparing");
    }
    let slots = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = Vec::new();
    for (at, layer) in image.diff_ids.iter().rev().enumerate() {
        if at >= AT_ONCE {
            lines.part(&short(layer), "Waiting");
        }
        let (engine, repository, layer) = (engine.clone(), repository.clone(), layer.clone());
        let (slots, lines) = (slots.clone(), lines.clone());
        let sources = sources(&engine, &repository, &layer)?;
        tasks.push(AbortOnDropHandle::new(tokio::spawn(async move {
            let _slot = slots.acquire().await.ok();
            send_layer(&engine, &repository, &layer, &sources, &lines).await
        })));
    }
    let mut blobs = Vec::new();
    for task in tasks {
        blobs.push(task.await.map_err(|error| ApiError::internal(error.to_string()))??);
    }
    blobs.reverse();
    let (images, id) = (engine.images.clone(), image.id.clone());
    let config = Engine::blocking(move || Ok(images.config(&id)?)).await?;
    let size = config.len();
    let (client, place) = (&repository.client, &repository.place);
    if !client.blob_exists(place, &image.id).await.map_err(|error| repository.push_fault(&error))? {
        let once = futures_util::stream::once(async move { Ok(bytes::Bytes::from(config)) });
        let sent = client.push_blob_stream(place, once, &image.id, Some(size as u64)).await;
        sent.map_err(|error| repository.push_fault(&error))?;
    }
    let layers: Vec<_> = blobs
        .iter()
        .map(|blob| {
            let kind = if blob.compression == Compression::Zstd { ZSTD } else { GZIP };
            json!({"mediaType": kind, "size": blob.size, "digest": blob.digest})
        })
        .collect();
    let manifest = indented(&json!({
        "schemaVersion": 2,
        "mediaType": IMAGE_MANIFEST_MEDIA_TYPE,
        "config": {"mediaType": CONFIG, "size": size, "digest": image.id},
        "layers": layers,
    }))
    .map_err(|error| ApiError::internal(error.to_string()))?;
    let digest = format!("sha256:{}", hex(&Sha256::digest(&manifest)));
    let length = manifest.len();
    let kind = IMAGE_MANIFEST_MEDIA_TYPE.parse().map_err(|_| ApiError::internal("a media type is no header"))?;
    client.push_manifest_raw(place, manifest, kind).await.map_err(|error| repository.push_fault(&error))?;
    lines.say(format!("{tag}: digest: {digest} size: {length}"));
    lines.send(json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": length}}));
    Ok(digest)
}

impl Repository {
    fn push_fault(&self, error: &OciDistributionError) -> ApiError {
        error::of_push(error, &format!("{}/v2/{}", self.url, self.place.repository()), self.signed_in)
    }
}

/// Other repositories of this registry that have an image with this layer.
fn sources(engine: &Engine, repository: &Repository, layer: &String) -> ApiResult<Vec<oci_client::Reference>> {
    let registry = repository.place.registry();
    let mut found: Vec<String> = Vec::new();
    for image in engine.images.list()? {
        if !image.diff_ids.contains(layer) {
            continue;
        }
        for digest in &image.repo_digests {
            let name = digest.split('@').next().unwrap_or_default();
            let (host, path) = super::split(name);
            if host == registry && path != repository.place.repository() && !found.contains(&path) {
                found.push(path);
            }
        }
    }
    let reference = |path| oci_client::Reference::with_tag(registry.to_owned(), path, "latest".to_owned());
    Ok(found.into_iter().map(reference).collect())
}

async fn send_layer(
    engine: &Arc<Engine>,
    repository: &Repository,
    layer: &str,
    sources: &[oci_client::Reference],
    lines: &Lines,
) -> ApiResult<Blob> {
    let id = short(layer);
    let (images, diff_id) = (engine.images.clone(), layer.to_owned());
    let (blob, file) = Engine::blocking(move || Ok(images.compressed_blob(&diff_id)?)).await?;
    let (client, place) = (&repository.client, &repository.place);
    let fault = |error: OciDistributionError| repository.push_fault(&error);
    if client.blob_exists(place, &blob.digest).await.map_err(fault)? {
        lines.part(&id, "Layer already exists");
        return Ok(blob);
    }
    for source in sources {
        // A registry that does not let us, or does not have it, gets it sent.
        if client.mount_blob(place, source, &blob.digest).await.is_ok() {
            lines.part(&id, &format!("Mounted from {}", source.repository()));
            return Ok(blob);
        }
    }
    let data = tokio::fs::File::open(&file).await?;
    let bar = lines.bar(&id, "Pushing", blob.size);
    let pieces = ReaderStream::with_capacity(data, 1 << 17).map(move |piece| {
        let piece = piece.map_err(OciDistributionError::from)?;
        bar.add(piece.len() as u64);
        Ok(piece)
    });
    client.push_blob_stream(place, pieces, &blob.digest, Some(blob.size)).await.map_err(fault)?;
    lines.part(&id, "Pushed");
    Ok(blob)
}

/// As Docker writes manifests: other tools compare their digests.
fn indented(value: &serde_json::Value) -> serde_json::Result<Vec<u8>> {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(b"   ");
    serde::Serialize::serialize(value, &mut serde_json::Serializer::with_formatter(&mut out, format))?;
    Ok(out)
}

/// Twelve digits.
fn short(digest: &str) -> String {
    digest.split(':').next_back().unwrap_or_default().chars().take(12).collect()
}
