// SPDX-License-Identifier: Apache-2.0
//! `GET /system/df`: what images, containers and volumes take on the disk.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Extension, State},
    routing::get,
};
use serde_json::{Value, json};

use crate::{
    containers::view,
    engine::Engine,
    http::{ApiError, ApiResult, frame::ApiVersion, query::Query},
    routes::{containers, images, volumes},
};

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new().route("/system/df", get(usage))
}

async fn usage(
    State(engine): State<Arc<Engine>>,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<Json<Value>> {
    let kinds: BTreeSet<String> =
        if version < ApiVersion::v1(42) { BTreeSet::new() } else { query.all("type").iter().cloned().collect() };
    if let Some(kind) =
        kinds.iter().find(|kind| !["container", "image", "volume", "build-cache"].contains(&kind.as_str()))
    {
        return Err(ApiError::bad_request(format!("unknown object type: {kind}")));
    }
    let asked = |kind: &str| kinds.is_empty() || kinds.contains(kind);
    let mut out = json!({"LayersSize": 0, "Images": null, "Containers": null, "Volumes": null, "BuildCache": null});
    if asked("image") {
        let (layers, list) = of_images(&engine, version).await?;
        out["LayersSize"] = json!(layers);
        out["Images"] = json!(list);
    }
    if asked("container") {
        out["Containers"] = json!(of_containers(&engine).await?);
    }
    if asked("volume") {
        out["Volumes"] = json!(of_volumes(&engine).await?);
    }
    if asked("build-cache") {
        // Arca builds nothing.
        out["BuildCache"] = json!([]);
    }
    Ok(Json(out))
}

/// Bytes of all layers, and each image with what it shares.
async fn of_images(engine: &Arc<Engine>, version: ApiVersion) -> ApiResult<(u64, Vec<Value>)> {
    let store = engine.images.clone();
    let all = Engine::blocking(move || store.list().map_err(Into::into)).await?;
    let mut layers: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for image in &all {
        for (id, size) in image.diff_ids.iter().zip(&image.layer_sizes) {
            layers.entry(id).or_insert((*size, 0)).1 += 1;
        }
    }
    let users = images::users(engine);
    let list = all.iter().map(|image| {
        let count = users.iter().filter(|user| user.image_id == image.id).count();
        let shared: u64 = image
            .diff_ids
            .iter()
            .filter_map(|id| layers.get(id.as_str()).filter(|layer| layer.1 > 1))
            .map(|layer| layer.0)
            .sum();
        let mut summary = images::summary(image, count, version);
        summary["SharedSize"] = json!(shared);
        summary["Containers"] = json!(count);
        summary
    });
    let list = list.collect();
    Ok((layers.values().map(|layer| layer.0).sum(), list))
}

async fn of_containers(engine: &Arc<Engine>) -> ApiResult<Vec<Value>> {
    let mut entries = view::list(engine, &Query::parse("all=1"))?;
    for entry in &mut entries {
        let Ok(container) = engine.container(entry["Id"].as_str().unwrap_or("")) else { continue };
        let (own, all) = containers::sizes(engine, &container).await?;
        if own > 0 {
            entry["SizeRw"] = json!(own);
        }
        entry["SizeRootFs"] = json!(all);
    }
    Ok(entries)
}

async fn of_volumes(engine: &Arc<Engine>) -> ApiResult<Vec<Value>> {
    let mut entries = Vec::new();
    for volume in engine.volumes.all() {
        let folder = engine.volumes.data(&volume.name);
        let size = Engine::blocking(move || Ok(containers::written(&folder)?)).await?;
        let mut entry = volumes::to_json(engine, &volume);
        let count = volumes::users(engine, &volume.name).len();
        entry["UsageData"] = json!({"RefCount": count, "Size": size});
        entries.push(entry);
    }
    Ok(entries)
}
