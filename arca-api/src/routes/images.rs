// SPDX-License-Identifier: Apache-2.0
//! `/images/*`. Names contain slashes, so the verb at the end of a path is split off by hand.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Extension, Path, State},
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::{
    docker::{
        config::ContainerConfig,
        time::{from_rfc3339, rfc3339},
    },
    engine::{Engine, detached},
    http::{ApiError, ApiResult, filters::Filters, frame::ApiVersion, keys, query::Query, upload::Upload},
    images::{Image, ImageError, ImageUser, Removed, reference::Reference},
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

pub(super) fn users(engine: &Engine) -> Vec<ImageUser> {
    let user = |record: &crate::containers::Record| ImageUser {
        container_id: record.id.clone(),
        image_id: record.image_id.clone(),
        running: record.state.is_running(),
    };
    engine.containers.all().iter().map(|container| container.with(user)).collect()
}

/// Filter keys that `GET /images/json` knows.
const FILTERS: &[&str] = &["before", "dangling", "label", "reference", "since", "until"];

async fn list(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<Json<Vec<Value>>> {
    let filters = Filters::from_query(&query, FILTERS)?;
    for key in ["before", "since", "until"] {
        if !filters.values(key).is_empty() {
            return Err(ApiError::absent(&format!("the image filter \"{key}\"")));
        }
    }
    let dangling = filters.boolean("dangling").map_err(|_| {
        ApiError::bad_request(format!("invalid filter 'dangling=[{}]'", filters.values("dangling").join(" ")))
    })?;
    let images = engine.images.clone();
    let all = Engine::blocking(move || images.list().map_err(Into::into)).await?;
    let mut chosen = Vec::new();
    for mut image in all {
        if !filters.values("reference").is_empty() {
            // Only the names that were asked for are shown.
            image.repo_tags.retain(|tag| filters.any("reference", |pattern| reference_matches(tag, pattern)));
            if image.repo_tags.is_empty() {
                continue;
            }
        }
        if dangling.is_none_or(|wanted| image.repo_tags.is_empty() == wanted)
            && filters.labels("label", &config_of(&image).labels)
        {
            let users = users(&engine).iter().filter(|user| user.image_id == image.id).count();
            chosen.push(summary(&image, users, version));
        }
    }
    Ok(Json(chosen))
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

/// What older clients get besides, or instead (Docker's version history: 1.43, 1.44, 1.51).
pub(super) fn summary(image: &Image, users: usize, version: ApiVersion) -> Value {
    let labels = config_of(image).labels;
    let mut out = json!({
        "Containers": if version < ApiVersion::v1(51) { json!(-1) } else { json!(users) },
        "Created": from_rfc3339(&image.created).unwrap_or(0) / 1_000_000_000,
        "Id": image.id,
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "ParentId": "",
        "RepoDigests": image.repo_digests,
        "RepoTags": image.repo_tags,
        "SharedSize": -1,
        "Size": image.size,
    });
    if version < ApiVersion::v1(44) {
        out["VirtualSize"] = json!(image.size);
    }
    if version < ApiVersion::v1(43) {
        let nameless = image.repo_tags.is_empty() && image.repo_digests.is_empty();
        if nameless {
            out["RepoTags"] = json!(["<none>:<none>"]);
        }
        out["RepoDigests"] = match image.repo_digests.as_slice() {
            [] if nameless => json!(["<none>@<none>"]),
            [] => Value::Null,
            digests => json!(digests),
        };
    }
    out
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
                    emit(&engine, "load", &id, &id);
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

async fn read(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(rest): Path<String>,
) -> ApiResult<Json<Value>> {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let name = name.to_owned();
    match verb {
        "json" => {
            let images = engine.images.clone();
            let image = Engine::blocking(move || images.resolve(&name).map_err(Into::into)).await?;
            Ok(Json(inspect(&image, version)))
        }
        "history" => {
            let images = engine.images.clone();
            let image = Engine::blocking(move || images.resolve(&name).map_err(Into::into)).await?;
            Ok(Json(history(&image)))
        }
        "get" => Err(ApiError::absent("image save")),
        "attestations" => Err(ApiError::absent("image attestations")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// The steps an image was made by, newest first; only the last has an id here.
fn history(image: &Image) -> Value {
    let steps = image.raw_config()["history"].as_array().cloned().unwrap_or_default();
    let mut sizes = image.layer_sizes.iter();
    let text = |step: &Value, key: &str| step[key].as_str().unwrap_or("").to_owned();
    let mut entries: Vec<Value> = steps
        .iter()
        .map(|step| {
            let empty = step["empty_layer"].as_bool().unwrap_or(false);
            let size = if empty { 0 } else { sizes.next().copied().unwrap_or(0) };
            json!({
                "Comment": text(step, "comment"),
                "Created": from_rfc3339(&text(step, "created")).unwrap_or(0) / 1_000_000_000,
                "CreatedBy": text(step, "created_by"),
                "Id": "<missing>",
                "Size": size,
                "Tags": null,
            })
        })
        .collect();
    if let Some(last) = entries.last_mut() {
        last["Id"] = json!(image.id);
        last["Tags"] = json!(image.repo_tags);
    }
    entries.reverse();
    json!(entries)
}

/// What of a configuration belongs to an image: Docker leaves the rest out since 1.50.
const IMAGE_ONLY: &[&str] = &[
    "ArgsEscaped",
    "Cmd",
    "Entrypoint",
    "Env",
    "ExposedPorts",
    "Healthcheck",
    "Labels",
    "OnBuild",
    "Shell",
    "StopSignal",
    "User",
    "Volumes",
    "WorkingDir",
];

fn image_config(image: &Image, version: ApiVersion) -> Value {
    let mut config = json!(config_of(image));
    if let Some(fields) = config.as_object_mut() {
        if fields.get("Labels").and_then(Value::as_object).is_some_and(Map::is_empty) {
            fields.insert("Labels".into(), Value::Null);
        }
        if version >= ApiVersion::v1(50) {
            fields.retain(|key, _| IMAGE_ONLY.contains(&key.as_str()));
        }
    }
    config
}

fn inspect(image: &Image, version: ApiVersion) -> Value {
    let raw = image.raw_config();
    let mut out = json!({
        "Id": image.id,
        "RepoTags": image.repo_tags,
        "RepoDigests": image.repo_digests,
        "Parent": "",
        "Comment": raw["history"].as_array().and_then(|history| history.last()).and_then(|last| last["comment"].as_str()).unwrap_or(""),
        "Created": image.created,
        "DockerVersion": "",
        "Author": raw["author"].as_str().unwrap_or(""),
        "Config": image_config(image, version),
        "Architecture": raw["architecture"].as_str().unwrap_or("amd64"),
        "Os": raw["os"].as_str().unwrap_or("linux"),
        "Size": image.size,
        "GraphDriver": {
            "Data": {"LowerDir": image.layers.iter().skip(1).map(|layer| layer.to_string_lossy()).collect::<Vec<_>>().join(":"),
                     "UpperDir": image.layers.first().map(|layer| layer.to_string_lossy())},
            "Name": "overlay2",
        },
        "RootFS": {"Type": "layers", "Layers": image.diff_ids},
        "Metadata": {"LastTagTime": rfc3339(image.tagged)},
    });
    if version < ApiVersion::v1(45) {
        let mut empty = json!(ContainerConfig::default());
        empty["Labels"] = Value::Null;
        out["ContainerConfig"] = empty;
    }
    if version < ApiVersion::v1(44) {
        out["VirtualSize"] = json!(image.size);
    }
    out
}

async fn write(State(engine): Shared, Path(rest): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let name = name.to_owned();
    match verb {
        "tag" => {
            let repository = query.get("repo");
            let target = match query.get("tag") {
                "" => repository.to_owned(),
                tag => format!("{repository}:{tag}"),
            };
            if Reference::parse(repository).is_ok() && Reference::parse(&target).is_err() {
                return Err(ApiError::bad_request("invalid tag format"));
            }
            Engine::blocking(move || {
                engine.images.tag(&name, &target)?;
                let id = engine.images.resolve(&target)?.id;
                let familiar = Reference::parse(&target).map_or(target, |reference| reference.to_string());
                emit(&engine, "tag", &id, &familiar);
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
                Removed::Untagged(_) => emit(&engine, "untag", &id, &id),
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
