// SPDX-License-Identifier: Apache-2.0
//! `/images/*`. Names contain slashes, so the verb at the end of a path is split off by hand.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    docker::{config::ContainerConfig, time::from_rfc3339},
    engine::{Engine, detached},
    http::{ApiError, ApiResult, filters::Filters, keys, query::Query, upload::Upload},
    images::{Image, ImageError, ImageUser, Removed},
};

type Shared = State<Arc<Engine>>;

impl From<ImageError> for ApiError {
    fn from(error: ImageError) -> Self {
        let status = StatusCode::from_u16(error.status()).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        Self::new(status, crate::machines::chain(&error))
    }
}

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/images/json", get(list))
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/prune", post(|| async { ApiError::absent("image prune") }))
        .route("/images/search", get(|| async { ApiError::absent("image search") }))
        .route("/images/get", get(|| async { ApiError::absent("image save") }))
        .route("/images/{*rest}", get(read).post(write).delete(remove))
}

/// The image's configuration in the form containers have.
pub fn config_of(image: &Image) -> ContainerConfig {
    let raw = image.raw_config().get("config").cloned().unwrap_or_else(|| json!({}));
    // Null fields are Go's zero values. What still does not fit is no configuration that Docker would honour.
    serde_json::from_value(keys::canonical(raw)).unwrap_or_default()
}

fn users(engine: &Engine) -> Vec<ImageUser> {
    let user = |record: &crate::containers::Record| ImageUser {
        container_id: record.id.clone(),
        image_id: record.image_id.clone(),
        running: record.state.is_running(),
    };
    engine.containers.all().iter().map(|container| container.with(user)).collect()
}

/// Filter keys that `GET /images/json` knows.
const FILTERS: &[&str] = &["before", "dangling", "label", "reference", "since", "until"];

async fn list(State(engine): Shared, query: Query) -> ApiResult<Json<Vec<Value>>> {
    let filters = Filters::from_query(&query, FILTERS)?;
    for key in ["before", "since", "until"] {
        if !filters.values(key).is_empty() {
            return Err(ApiError::absent(&format!("the image filter \"{key}\"")));
        }
    }
    let dangling = filters.boolean("dangling")?;
    let images = engine.images.clone();
    let all = Engine::blocking(move || images.list().map_err(Into::into)).await?;
    let chosen = all.iter().filter(|image| {
        dangling.is_none_or(|wanted| image.repo_tags.is_empty() == wanted)
            && filters.any("reference", |pattern| image.repo_tags.iter().any(|tag| reference_matches(tag, pattern)))
            && filters.labels("label", &config_of(image).labels)
    });
    Ok(Json(chosen.map(summary).collect()))
}

/// `name`, `name:tag`, with `*` for anything but a slash.
fn reference_matches(tag: &str, pattern: &str) -> bool {
    let (name, _) = tag.rsplit_once(':').unwrap_or((tag, ""));
    glob(tag, pattern) || glob(name, pattern)
}

fn glob(text: &str, pattern: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some((before, after)) => text.strip_prefix(before).is_some_and(|rest| {
            let ends = rest.char_indices().map(|(index, _)| index).chain([rest.len()]);
            ends.take_while(|&end| !rest[..end].contains('/')).any(|end| glob(&rest[end..], after))
        }),
    }
}

fn summary(image: &Image) -> Value {
    json!({
        "Containers": -1,
        "Created": from_rfc3339(&image.created).unwrap_or(0) / 1_000_000_000,
        "Id": image.id,
        "Labels": config_of(image).labels,
        "ParentId": "",
        "RepoDigests": image.repo_digests,
        "RepoTags": image.repo_tags,
        "SharedSize": -1,
        "Size": image.size,
    })
}

fn json_lines(receiver: mpsc::UnboundedReceiver<Value>) -> Response {
    use tokio_stream::StreamExt;
    let lines = UnboundedReceiverStream::new(receiver)
        .map(|value| Ok::<_, std::convert::Infallible>(Bytes::from(value.to_string() + "\r\n")));
    ([(CONTENT_TYPE, "application/json")], Body::from_stream(lines)).into_response()
}

fn emit(engine: &Engine, action: &str, id: &str, name: &str) {
    engine.events.emit("image", action, id, BTreeMap::from([("name".to_owned(), name.to_owned())]));
}

/// Progress comes while the archive is read; a fault after the headers is a line of the stream, as in Docker.
async fn load(State(engine): Shared, request_body: Body) -> Response {
    let (lines, receiver) = mpsc::unbounded_channel();
    let upload = Upload::new(request_body);
    tokio::task::spawn_blocking(move || {
        let progress = lines.clone();
        let images = engine.images.clone();
        let loaded = images.load(upload, &mut |line| {
            let _ = progress.send(json!({"stream": line + "\n"}));
        });
        match loaded {
            Ok(loaded) => {
                for line in loaded {
                    let name = line.rsplit_once(": ").map_or("", |(_, name)| name);
                    let id = images.resolve(name).map(|image| image.id).unwrap_or_default();
                    emit(&engine, "load", &id, name);
                }
            }
            Err(error) => {
                let text = crate::machines::chain(&error);
                let _ = lines.send(json!({"errorDetail": {"message": text}, "error": text}));
            }
        }
    });
    json_lines(receiver)
}

/// `docker import` (`fromSrc=-`); pulling is not there yet.
async fn create(State(engine): Shared, query: Query, request_body: Body) -> ApiResult<Response> {
    if !query.get("fromImage").is_empty() {
        return Err(ApiError::absent("image pull"));
    }
    match query.get("fromSrc") {
        "-" => {}
        "" => return Err(ApiError::bad_request("fromSrc or fromImage is required")),
        _ => return Err(ApiError::absent("image import from a URL")),
    }
    let upload = Upload::new(request_body);
    let id = detached(async move {
        Engine::blocking(move || {
            let repository = query.get("repo");
            let name = match query.get("tag") {
                "" => repository.to_owned(),
                tag if repository.is_empty() => {
                    return Err(ApiError::bad_request(format!("tag {tag} without a repository")));
                }
                tag => format!("{repository}:{tag}"),
            };
            let message = query.get("message");
            let id = engine.images.import(upload, Some(&name), message, query.all("changes"))?;
            emit(&engine, "import", &id, &name);
            Ok(id)
        })
        .await
    })
    .await?;
    let (lines, receiver) = mpsc::unbounded_channel();
    let _ = lines.send(json!({"status": id}));
    Ok(json_lines(receiver))
}

async fn read(State(engine): Shared, Path(rest): Path<String>) -> ApiResult<Json<Value>> {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let name = name.to_owned();
    match verb {
        "json" => {
            let images = engine.images.clone();
            let image = Engine::blocking(move || images.resolve(&name).map_err(Into::into)).await?;
            Ok(Json(inspect(&image)))
        }
        "history" => Err(ApiError::absent("image history")),
        "get" => Err(ApiError::absent("image save")),
        "attestations" => Err(ApiError::absent("image attestations")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

fn inspect(image: &Image) -> Value {
    let raw = image.raw_config();
    json!({
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": "",
        "Comment": raw["history"].as_array().and_then(|history| history.last()).and_then(|last| last["comment"].as_str()).unwrap_or(""),
        "Created": image.created,
        "DockerVersion": "",
        "Author": raw["author"].as_str().unwrap_or(""),
        "Config": config_of(image),
        "Architecture": raw["architecture"].as_str().unwrap_or("amd64"),
        "Os": raw["os"].as_str().unwrap_or("linux"),
        "Size": image.size,
        "GraphDriver": {
            "Data": {"LowerDir": image.layers.iter().skip(1).map(|layer| layer.to_string_lossy()).collect::<Vec<_>>().join(":"),
                     "UpperDir": image.layers.first().map(|layer| layer.to_string_lossy())},
            "Name": "overlay2",
        },
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": "0001-01-01T00:00:00Z"},
    })
}

async fn write(State(engine): Shared, Path(rest): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let name = name.to_owned();
    match verb {
        "tag" => {
            let target = match query.get("tag") {
                "" => query.get("repo").to_owned(),
                tag => format!("{}:{tag}", query.get("repo")),
            };
            Engine::blocking(move || {
                engine.images.tag(&name, &target)?;
                let id = engine.images.resolve(&target)?.id;
                emit(&engine, "tag", &id, &target);
                Ok(StatusCode::CREATED)
            })
            .await
        }
        "push" => Err(ApiError::absent("image push")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn remove(State(engine): Shared, Path(name): Path<String>, query: Query) -> ApiResult<Json<Vec<Value>>> {
    let force = query.flag("force");
    let removed = detached(Engine::blocking(move || {
        let id = engine.images.resolve(&name)?.id;
        let removed = engine.images.remove(&name, force, &users(&engine))?;
        for line in &removed {
            match line {
                Removed::Untagged(name) => emit(&engine, "untag", &id, name),
                Removed::Deleted(gone) => emit(&engine, "delete", gone, gone),
            }
        }
        Ok(removed)
    }))
    .await?;
    let lines = removed.into_iter().map(|line| match line {
        Removed::Untagged(name) => json!({"Untagged": name}),
        Removed::Deleted(id) => json!({"Deleted": id}),
    });
    Ok(Json(lines.collect()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_match_by_name_tag_and_star() {
        for (pattern, matches) in [
            ("busybox", true),
            ("busybox:1", true),
            ("busy*", true),
            ("*:1", true),
            ("alpine", false),
            ("a/busybox", false),
        ] {
            assert_eq!(reference_matches("busybox:1", pattern), matches, "{pattern}");
        }
        assert!(!reference_matches("a/b:1", "*"), "a star does not cross a slash");
    }
}
