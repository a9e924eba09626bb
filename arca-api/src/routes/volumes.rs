// SPDX-License-Identifier: Apache-2.0
//! `/volumes/*`: folders, by name.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    containers::names,
    docker::time::rfc3339,
    engine::{Engine, detached},
    http::{
        ApiError, ApiResult,
        filters::Filters,
        json::{self as body, Empty},
        query::{Query, parse_bool},
    },
    volumes::Volume,
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/volumes", get(list))
        .route("/volumes/create", post(create))
        .route("/volumes/prune", post(prune))
        .route("/volumes/{name}", get(inspect).delete(remove))
}

pub(super) fn to_json(engine: &Engine, volume: &Volume) -> Value {
    let nullable = |map: &BTreeMap<String, String>| if map.is_empty() { Value::Null } else { json!(map) };
    let mut labels = volume.labels.clone();
    if volume.anonymous {
        labels.insert("com.docker.volume.anonymous".into(), String::new());
    }
    json!({
        "CreatedAt": rfc3339(volume.created - volume.created.rem_euclid(1_000_000_000)),
        "Driver": "local",
        "Labels": nullable(&labels),
        "Mountpoint": engine.volumes.data(&volume.name).to_string_lossy(),
        "Name": volume.name,
        "Options": nullable(&volume.options),
        "Scope": "local",
    })
}

pub(super) fn users(engine: &Engine, name: &str) -> Vec<String> {
    let uses = |record: &crate::containers::Record| record.mounts.iter().any(|mount| mount.name == name);
    let all = engine.containers.all();
    all.iter().filter(|container| container.with(uses)).map(|container| container.id.clone()).collect()
}

async fn list(State(engine): Shared, query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["dangling", "driver", "label", "name"])?;
    let dangling = filters.boolean("dangling")?;
    let volumes: Vec<Value> = engine
        .volumes
        .all()
        .iter()
        .filter(|volume| {
            filters.any("name", |wanted| volume.name.contains(wanted.as_str()))
                && filters.any("driver", |wanted| wanted == "local")
                && filters.labels("label", &volume.labels)
                && dangling.is_none_or(|wanted| users(&engine, &volume.name).is_empty() == wanted)
        })
        .map(|volume| to_json(&engine, volume))
        .collect();
    Ok(Json(json!({"Volumes": volumes, "Warnings": null})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateRequest {
    name: String,
    driver: String,
    driver_opts: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

fn emit(engine: &Engine, action: &str, name: &str) {
    engine.events.emit("volume", action, name, BTreeMap::from([("driver".to_owned(), "local".to_owned())]));
}

async fn create(State(engine): Shared, headers: HeaderMap, request_body: Body) -> ApiResult<(StatusCode, Json<Value>)> {
    let request: CreateRequest = body::read(&headers, request_body, Empty::Object).await?;
    if !matches!(request.driver.as_str(), "" | "local") {
        return Err(ApiError::not_found(format!(
            "create {}: error looking up volume plugin {driver}: plugin \"{driver}\" not found",
            request.name,
            driver = request.driver
        )));
    }
    let anonymous = request.name.is_empty();
    let name = if anonymous { names::new_id() } else { request.name };
    let wanted = Volume { name, labels: request.labels, options: request.driver_opts, anonymous, ..Volume::default() };
    let volume = detached({
        let engine = engine.clone();
        async move {
            let (volume, new) = engine.volumes.create(wanted).await?;
            if new {
                emit(&engine, "create", &volume.name);
            }
            Ok(volume)
        }
    })
    .await?;
    Ok((StatusCode::CREATED, Json(to_json(&engine, &volume))))
}

async fn inspect(State(engine): Shared, Path(name): Path<String>) -> ApiResult<Json<Value>> {
    let volume = engine.volumes.get(&name)?;
    Ok(Json(to_json(&engine, &volume)))
}

async fn remove(State(engine): Shared, Path(name): Path<String>, query: Query) -> ApiResult<StatusCode> {
    if engine.volumes.get(&name).is_err() && query.flag("force") {
        return Ok(StatusCode::NO_CONTENT);
    }
    engine.volumes.get(&name)?;
    let users = users(&engine, &name);
    if !users.is_empty() {
        return Err(ApiError::conflict(format!("remove {name}: volume is in use - [{}]", users.join(", "))));
    }
    detached(async move {
        engine.volumes.remove(&name).await?;
        emit(&engine, "destroy", &name);
        Ok(StatusCode::NO_CONTENT)
    })
    .await
}

async fn prune(State(engine): Shared, query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["all", "label", "label!"])?;
    let all = match filters.values("all") {
        [] => false,
        [text] => parse_bool(text).map_err(|error| ApiError::bad_request(format!("invalid filter 'all': {error}")))?,
        _ => return Err(ApiError::bad_request("invalid filter 'all': only one value is expected")),
    };
    let (mut deleted, mut freed) = (Vec::new(), 0);
    for volume in engine.volumes.all() {
        let chosen = (all || volume.anonymous)
            && filters.labels("label", &volume.labels)
            && (filters.values("label!").is_empty() || !filters.labels("label!", &volume.labels));
        if !chosen || !users(&engine, &volume.name).is_empty() {
            continue;
        }
        let folder = engine.volumes.data(&volume.name);
        // A volume that is a folder of the host's frees nothing.
        let size = if folder.is_symlink() {
            0
        } else {
            Engine::blocking(move || Ok(super::containers::written(&folder)?)).await?
        };
        engine.volumes.remove(&volume.name).await?;
        emit(&engine, "destroy", &volume.name);
        freed += size;
        deleted.push(volume.name);
    }
    engine.events.emit("volume", "prune", "", BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]));
    Ok(Json(json!({"VolumesDeleted": deleted, "SpaceReclaimed": freed})))
}
