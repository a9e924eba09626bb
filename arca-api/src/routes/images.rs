// SPDX-License-Identifier: Apache-2.0
//! `/images/*`, but for what moves images in and out ([`super::transfer`]). Names contain slashes, so the verb at the end
//! of a path is split off by hand.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use axum::{
    Json, Router,
    extract::{Extension, Path, State},
    http::{HeaderMap, StatusCode},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Map, Value, json};

use crate::{
    docker::{
        config::ContainerConfig,
        time::{from_rfc3339, parse_point, rfc3339},
    },
    engine::{Engine, detached},
    http::{ApiError, ApiResult, filters::Filters, frame::ApiVersion, glob, keys, query::Query},
    images::{self, Image, ImageError, ImageUser, Removed, reference::Reference},
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
        .route("/images/prune", post(prune))
        .route("/images/{*rest}", get(read).post(write).delete(remove))
}

/// The image's configuration in the form containers have.
pub fn config_of(image: &Image) -> ContainerConfig {
    let raw = image.raw_config().get("config").cloned().unwrap_or_else(|| json!({}));
    // Null fields are Go's zero values. What still does not fit is no configuration that Docker would honour.
    serde_json::from_value(keys::canonical(raw)).unwrap_or_default()
}

/// Containers and the images they were made from.
pub fn users(engine: &Engine) -> Vec<ImageUser> {
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
    let dangling = filters.boolean("dangling").map_err(|_| {
        ApiError::bad_request(format!("invalid filter 'dangling=[{}]'", filters.values("dangling").join(" ")))
    })?;
    let until = match filters.values("until") {
        [] => None,
        [one] => parse_point(one)?,
        _ => return Err(ApiError::bad_request("more than one until filter specified")),
    };
    if filters.values("reference").iter().any(|pattern| glob::matches("", pattern).is_none()) {
        return Err(ApiError::internal("syntax error in pattern"));
    }
    let hidden = !query.flag("all");
    let images = engine.images.clone();
    let (filters, users) = (filters, users(&engine));
    Engine::blocking(move || {
        let all = images.list()?;
        // Creation times of the images that `before` and `since` name.
        let bound = |key: &str| -> ApiResult<Option<i64>> {
            let Some(name) = filters.values(key).first() else { return Ok(None) };
            Ok(from_rfc3339(&images.resolve(name)?.created))
        };
        let (before, since) = (bound("before")?, bound("since")?);
        let parents: BTreeSet<String> = all.iter().map(|image| image.parent.clone()).collect();
        let mut chosen = Vec::new();
        for mut image in all {
            let created = from_rfc3339(&image.created).unwrap_or(0);
            if before.is_some_and(|before| created >= before)
                || since.is_some_and(|since| created <= since)
                || until.is_some_and(|until| created >= until)
                || !filters.labels("label", &config_of(&image).labels)
            {
                continue;
            }
            if !filters.values("reference").is_empty() {
                // Only the names that were asked for are shown.
                let fits = |name: &String| filters.any("reference", |pattern| reference_matches(name, pattern));
                image.repo_tags.retain(fits);
                image.repo_digests.retain(fits);
                if image.repo_tags.is_empty() && image.repo_digests.is_empty() {
                    continue;
                }
            }
            let nameless = image.repo_tags.is_empty() && image.repo_digests.is_empty();
            if nameless && hidden && parents.contains(&image.id) {
                continue;
            }
            if dangling.is_some_and(|wanted| if wanted { !image.repo_tags.is_empty() } else { nameless }) {
                continue;
            }
            let count = users.iter().filter(|user| user.image_id == image.id).count();
            chosen.push(summary(&image, count, version));
        }
        Ok(Json(chosen))
    })
    .await
}

/// A pattern of names, or of names with tag or digest.
fn reference_matches(tag: &str, pattern: &str) -> bool {
    let (name, _) = tag.split_once('@').or_else(|| tag.rsplit_once(':')).unwrap_or((tag, ""));
    [tag, name].iter().any(|text| glob::matches(text, pattern) == Some(true))
}

/// What older clients get besides, or instead (Docker's version history: 1.43, 1.44, 1.51).
pub(super) fn summary(image: &Image, users: usize, version: ApiVersion) -> Value {
    let labels = config_of(image).labels;
    let mut out = json!({
        "Containers": if version < ApiVersion::v1(51) { json!(-1) } else { json!(users) },
        "Created": from_rfc3339(&image.created).unwrap_or(0) / 1_000_000_000,
        "Id": image.id,
        "Labels": if labels.is_empty() { Value::Null } else { json!(labels) },
        "ParentId": image.parent,
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

/// An event with the image's labels.
pub(crate) fn emit(engine: &Engine, action: &str, id: &str, name: &str, labels: &BTreeMap<String, String>) {
    let mut attributes = labels.clone();
    attributes.insert("name".to_owned(), name.to_owned());
    engine.events.emit("image", action, id, attributes);
}

/// Labels of an image; none if it is gone.
pub(crate) fn labels(engine: &Engine, id: &str) -> BTreeMap<String, String> {
    engine.images.resolve(id).map(|image| config_of(&image).labels).unwrap_or_default()
}

async fn read(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(rest): Path<String>,
) -> ApiResult<Response> {
    let (name, verb) = rest.rsplit_once('/').unwrap_or((&rest, ""));
    let name = name.to_owned();
    match verb {
        "json" => {
            let images = engine.images.clone();
            let image = Engine::blocking(move || images.resolve(&name).map_err(Into::into)).await?;
            Ok(Json(inspect(&image, version)).into_response())
        }
        "history" => {
            let images = engine.images.clone();
            Engine::blocking(move || Ok(Json(history(&images, &images.resolve(&name)?)).into_response())).await
        }
        "get" => super::transfer::save(engine, vec![name]).await,
        "attestations" => Err(ApiError::absent("image attestations")),
        _ => Err(ApiError::not_found("page not found")),
    }
}

/// The steps an image was made by, newest first; the newest has its id, those before it the ids of the images it was
/// committed from.
fn history(images: &images::Store, image: &Image) -> Value {
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
    entries.reverse();
    let mut now = Some(image.clone());
    for entry in &mut entries {
        let Some(image) = now.take() else { break };
        entry["Id"] = json!(image.id);
        entry["Tags"] = if image.repo_tags.is_empty() { Value::Null } else { json!(image.repo_tags) };
        now = (!image.parent.is_empty()).then(|| images.resolve(&image.parent).ok()).flatten();
    }
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
        "Parent": image.parent,
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
        let made_from = raw.get("container_config").filter(|config| config.is_object()).cloned();
        let of: ContainerConfig =
            made_from.and_then(|config| serde_json::from_value(keys::canonical(config)).ok()).unwrap_or_default();
        let empty_labels = of.labels.is_empty() && raw.get("container_config").is_none();
        let mut empty = json!(of);
        if empty_labels {
            empty["Labels"] = Value::Null;
        }
        if let Some(container) = raw.get("container") {
            out["Container"] = container.clone();
        }
        out["ContainerConfig"] = empty;
    }
    if version < ApiVersion::v1(44) {
        out["VirtualSize"] = json!(image.size);
    }
    out
}

async fn write(
    State(engine): Shared,
    Path(rest): Path<String>,
    query: Query,
    headers: HeaderMap,
) -> ApiResult<Response> {
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
                emit(&engine, "tag", &id, &familiar, &labels(&engine, &id));
                Ok(StatusCode::CREATED.into_response())
            })
            .await
        }
        "push" => super::transfer::push(engine, &name, &query, &headers).await,
        _ => Err(ApiError::not_found("page not found")),
    }
}

async fn remove(State(engine): Shared, Path(name): Path<String>, query: Query) -> ApiResult<Json<Vec<Value>>> {
    let (force, prune) = (query.flag("force"), !query.flag("noprune"));
    let removed = detached(Engine::blocking(move || remove_one(&engine, &name, force, prune))).await?;
    Ok(Json(removed.into_iter().map(line).collect()))
}

fn line(removed: Removed) -> Value {
    match removed {
        Removed::Untagged(name) => json!({"Untagged": name}),
        Removed::Deleted(id) => json!({"Deleted": id}),
    }
}

fn remove_one(engine: &Engine, name: &str, force: bool, prune: bool) -> ApiResult<Vec<Removed>> {
    let image = engine.images.resolve(name)?;
    let labels = config_of(&image).labels;
    let known: BTreeSet<String> = engine.images.list()?.into_iter().map(|image| image.id).collect();
    let removed = engine.images.remove(name, force, prune, &users(engine))?;
    let by_tag = matches!(removed.first(), Some(Removed::Untagged(first)) if engine_named(name, first));
    for (at, line) in removed.iter().enumerate() {
        match line {
            // What a registry calls it goes without a word when its last tag of that repository goes.
            Removed::Untagged(other) if by_tag && at > 0 && other.contains('@') => {}
            Removed::Untagged(_) => emit(engine, "untag", &image.id, &image.id, &labels),
            // Layers have no events.
            Removed::Deleted(gone) if known.contains(gone) => emit(engine, "delete", gone, gone, &labels),
            Removed::Deleted(_) => {}
        }
    }
    Ok(removed)
}

/// Whether a request named the image by this very tag.
fn engine_named(given: &str, tag: &str) -> bool {
    Reference::parse(given).ok().and_then(|reference| reference.tagged()).as_deref() == Some(tag)
}

/// Removes images that no container stands on: those without a tag, or with `dangling=false` all.
async fn prune(State(engine): Shared, query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["dangling", "label", "label!", "until"])?;
    let dangling = filters.boolean("dangling").map_err(|_| {
        ApiError::bad_request(format!("invalid filter 'dangling=[{}]'", filters.values("dangling").join(" ")))
    })?;
    let dangling = dangling.unwrap_or(true);
    let until = match filters.values("until") {
        [] => None,
        [one] => parse_point(one)?,
        _ => return Err(ApiError::internal("more than one until filter specified")),
    };
    detached(Engine::blocking(move || {
        let all = engine.images.list()?;
        let mut sizes: BTreeMap<String, u64> = BTreeMap::new();
        for image in &all {
            sizes.extend(images::chain_ids(&image.diff_ids).into_iter().zip(image.layer_sizes.iter().copied()));
        }
        let parents: BTreeSet<&String> = all.iter().map(|image| &image.parent).collect();
        let mut removed = Vec::new();
        for image in &all {
            let own = config_of(image).labels;
            let nameless = image.repo_tags.is_empty() && image.repo_digests.is_empty();
            let chosen = (!dangling || image.repo_tags.is_empty())
                && !(nameless && parents.contains(&image.id))
                && until.is_none_or(|until| from_rfc3339(&image.created).unwrap_or(0) < until)
                && filters.labels("label", &own)
                && (filters.values("label!").is_empty() || !filters.labels("label!", &own));
            if !chosen {
                continue;
            }
            let names: Vec<&String> = image.repo_tags.iter().chain(&image.repo_digests).collect();
            let names = if names.is_empty() { vec![&image.id] } else { names };
            for name in names {
                // In use, or gone with another name: not ours to prune.
                match remove_one(&engine, name, false, true) {
                    Ok(lines) => removed.extend(lines),
                    Err(error) => tracing::debug!(name, %error, "an image was not pruned"),
                }
            }
        }
        let freed: u64 = removed
            .iter()
            .filter_map(|line| match line {
                Removed::Deleted(id) => sizes.get(id),
                Removed::Untagged(_) => None,
            })
            .sum();
        engine.events.emit("image", "prune", "", BTreeMap::from([("reclaimed".to_owned(), freed.to_string())]));
        let deleted: Vec<Value> = removed.into_iter().map(line).collect();
        let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
        Ok(Json(json!({"ImagesDeleted": deleted, "SpaceReclaimed": freed})))
    }))
    .await
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
