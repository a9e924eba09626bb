// SPDX-License-Identifier: Apache-2.0
//! Images come and go: load, save, import, pull, push, commit; login and what a registry has.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use oci_client::{RegistryOperation, secrets::RegistryAuth};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::images::{emit, labels};
use crate::{
    containers::{archive::Sender, commit},
    docker::config::ContainerConfig,
    engine::{Engine, detached},
    http::{
        ApiError, ApiResult,
        filters::Filters,
        json::{self as body, Empty},
        query::Query,
        upload::Upload,
    },
    images::{ImageError, reference::Reference},
    registry::{self, Platform},
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/images/load", post(load))
        .route("/images/create", post(create))
        .route("/images/get", get(|State(engine): Shared, query: Query| save(engine, query.all("names").to_vec())))
        .route("/images/search", get(search))
        .route("/commit", post(commit_container))
        .route("/auth", post(auth))
        .route("/distribution/{*rest}", get(distribution))
}

/// The client's login for a registry.
fn login_of(headers: &HeaderMap) -> RegistryAuth {
    registry::credentials(headers.get("X-Registry-Auth").and_then(|value| value.to_str().ok()))
}

/// Progress comes while the archive is read; a fault after the headers is a line of the stream, as in Docker.
async fn load(State(engine): Shared, query: Query, request_body: Body) -> ApiResult<Response> {
    if query.has("platform") && !query.get("platform").is_empty() {
        return Err(ApiError::absent("loading one platform of an archive"));
    }
    let upload = Upload::new(request_body);
    registry::stream(|lines| async move {
        let told = lines.clone();
        let loaded = Engine::blocking(move || {
            let said = engine.images.load(upload, &mut |line| told.send(json!({"stream": line + "\n"})));
            for line in said.as_deref().unwrap_or_default() {
                let name = line.rsplit_once(": ").map_or("", |(_, name)| name);
                let id = engine.images.resolve(name).map(|image| image.id).unwrap_or_default();
                emit(&engine, "load", &id, &id, &labels(&engine, &id));
            }
            // The status is out by now in Docker.
            if let Err(error) = said {
                let text = crate::machines::chain(&error);
                told.send(json!({"errorDetail": {"message": text}, "error": text}));
            }
            Ok(())
        });
        loaded.await
    })
    .await
}

/// The archive of images by name.
pub(super) async fn save(engine: Arc<Engine>, names: Vec<String>) -> ApiResult<Response> {
    let images = engine.images.clone();
    let found = Engine::blocking(move || {
        images.to_save(&names).map_err(|error| match error {
            // Names as they were given, and no tag put to them.
            ImageError::NotFound(name) => {
                let given = names.iter().find(|given| name.strip_suffix(":latest") == Some(given.as_str()));
                ApiError::not_found(format!("No such image: {}", given.unwrap_or(&name)))
            }
            other => other.into(),
        })
    })
    .await?;
    let (pieces, stream) = mpsc::channel(8);
    tokio::task::spawn_blocking(move || {
        let mut out = std::io::BufWriter::with_capacity(64 << 10, Sender(pieces.clone()));
        match engine.images.save(&found, &mut out) {
            Ok(()) => {
                for saved in &found {
                    emit(&engine, "save", saved.id(), saved.id(), &labels(&engine, saved.id()));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => {}
            // A stream that breaks off is an archive that cannot be read.
            Err(error) => drop(pieces.blocking_send(Err(error))),
        }
    });
    Ok(([(CONTENT_TYPE, "application/x-tar")], Body::from_stream(ReceiverStream::new(stream))).into_response())
}

/// `docker import` (`fromSrc=-`) and `docker pull` (`fromImage`).
async fn create(State(engine): Shared, query: Query, headers: HeaderMap, request_body: Body) -> ApiResult<Response> {
    if !query.get("fromImage").is_empty() {
        return pull(engine, &query, &headers).await;
    }
    match query.get("fromSrc") {
        "-" => import(engine, query, request_body).await,
        "" => Err(ApiError::bad_request("fromSrc or fromImage is required")),
        _ => Err(ApiError::absent("image import from a URL")),
    }
}

async fn import(engine: Arc<Engine>, query: Query, request_body: Body) -> ApiResult<Response> {
    let upload = Upload::new(request_body);
    let platform = Platform::parse(query.get("platform"))?;
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
            let of = platform.as_ref().map(Platform::parts);
            let id = engine.images.import(upload, Some(&name), message, of, query.all("changes"))?;
            emit(&engine, "import", &id, &name, &labels(&engine, &id));
            Ok(id)
        })
        .await
    })
    .await?;
    registry::stream(|lines| async move {
        lines.send(json!({"status": id}));
        Ok(())
    })
    .await
}

/// `fromImage` with a tag or digest; without either every tag of the repository.
async fn pull(engine: Arc<Engine>, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let (image, tag) = (query.get("fromImage"), query.get("tag"));
    let platform = Platform::parse(query.get("platform"))?;
    let text = match tag {
        "" => image.to_owned(),
        tag if tag.contains(':') => format!("{}@{tag}", image.split('@').next().unwrap_or(image)),
        tag => format!("{image}:{tag}"),
    };
    let reference = Reference::parse(&text)?;
    let every = tag.is_empty() && reference.digest.is_none() && !Reference::has_tag(image);
    let login = login_of(headers);
    registry::stream(|lines| async move {
        let repository = registry::open(&reference, login.clone(), RegistryOperation::Pull).await?;
        let names = if every { registry::tags(&repository).await? } else { Vec::new() };
        let mut wanted: Vec<Reference> =
            names.into_iter().map(|tag| Reference { tag: Some(tag), ..reference.clone() }).collect();
        if !every {
            wanted.push(reference);
        }
        for reference in wanted {
            let repository = repository.of(&reference);
            let id = registry::pull(&engine, &repository, &reference, platform.as_ref(), &lines).await?;
            let engine = engine.clone();
            Engine::blocking(move || {
                emit(&engine, "pull", &reference.to_string(), &reference.name, &labels(&engine, &id));
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

/// `docker push`: one tag, or with none every tag of the repository.
pub(super) async fn push(engine: Arc<Engine>, name: &str, query: &Query, headers: &HeaderMap) -> ApiResult<Response> {
    let text = match query.get("tag") {
        "" => name.to_owned(),
        tag => format!("{name}:{tag}"),
    };
    let reference = Reference::parse(&text)?;
    if reference.digest.is_some() {
        return Err(ApiError::bad_request("cannot push a digest reference"));
    }
    if !query.get("platform").is_empty() {
        return Err(ApiError::absent("pushing one platform of an image"));
    }
    let every = query.get("tag").is_empty() && !Reference::has_tag(name);
    let login = login_of(headers);
    registry::stream(|lines| async move {
        lines.say(format!("The push refers to repository [{}]", Reference::canonical(&reference.name)));
        let (images, name) = (engine.images.clone(), reference.name.clone());
        let all = Engine::blocking(move || Ok(images.list()?)).await?;
        let prefix = format!("{name}:");
        let mut chosen = Vec::new();
        for image in &all {
            for tag in image.repo_tags.iter().filter_map(|tag| tag.strip_prefix(&prefix)) {
                if every || reference.tag.as_deref() == Some(tag) {
                    chosen.push((image.clone(), tag.to_owned()));
                }
            }
        }
        if chosen.is_empty() {
            let any = all.iter().flat_map(|image| &image.repo_tags).any(|tag| tag.starts_with(&prefix));
            return Err(ApiError::not_found(if any {
                format!("tag does not exist: {reference}")
            } else {
                format!("An image does not exist locally with the tag: {name}")
            }));
        }
        let repository = registry::open(&reference, login, RegistryOperation::Push).await?;
        for (image, tag) in chosen {
            let reference = Reference { tag: Some(tag.clone()), ..reference.clone() };
            let digest = registry::push(&engine, &repository.of(&reference), &image, &tag, &lines).await?;
            let engine = engine.clone();
            Engine::blocking(move || {
                engine.images.set_digest(&image.id, &format!("{}@{digest}", reference.name))?;
                emit(&engine, "push", &reference.to_string(), &reference.name, &labels(&engine, &image.id));
                Ok(())
            })
            .await?;
        }
        Ok(())
    })
    .await
}

async fn search(query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["is-automated", "is-official", "stars"])?;
    let limit = query.integer("limit")?.filter(|limit| *limit != 0).unwrap_or(25);
    if !(1..=100).contains(&limit) {
        return Err(ApiError::bad_request(format!("limit {limit} is outside the range of [1, 100]")));
    }
    let official = filters.boolean("is-official")?;
    let stars = |text: &String| {
        text.parse::<i64>().map_err(|_| ApiError::bad_request(format!("invalid filter 'stars=[{text}]'")))
    };
    let stars = filters.values("stars").iter().map(stars).collect::<ApiResult<Vec<_>>>()?;
    let automated = filters.boolean("is-automated")?;
    let mut found = registry::search(query.get("term"), limit).await?;
    found.retain(|one| {
        official.is_none_or(|wanted| one.is_official == wanted)
            && stars.iter().all(|least| one.star_count >= *least)
            && automated != Some(true)
    });
    Ok(Json(json!(found)))
}

async fn auth(headers: HeaderMap, request_body: Body) -> ApiResult<Json<Value>> {
    let credentials: registry::Credentials = body::read(&headers, request_body, Empty::Fault).await?;
    Ok(Json(registry::login(&credentials).await?))
}

async fn distribution(Path(rest): Path<String>, headers: HeaderMap) -> ApiResult<Json<Value>> {
    let Some(name) = rest.strip_suffix("/json") else { return Err(ApiError::not_found("page not found")) };
    let reference = Reference::parse(name)?;
    let repository = registry::open(&reference, login_of(&headers), RegistryOperation::Pull).await?;
    Ok(Json(registry::look(&repository, &reference).await?))
}

async fn commit_container(
    State(engine): Shared,
    query: Query,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let config: Option<ContainerConfig> = commit::config(body::read(&headers, request_body, Empty::Object).await?);
    let wanted = commit::Wanted {
        name: match (query.get("repo"), query.get("tag")) {
            ("", _) => String::new(),
            (repository, "") => repository.to_owned(),
            (repository, tag) => format!("{repository}:{tag}"),
        },
        author: query.get("author").to_owned(),
        comment: query.get("comment").to_owned(),
        pause: query.flag_or("pause", true),
        changes: query.all("changes").to_vec(),
        config,
    };
    if query.get("container").is_empty() {
        return Err(ApiError::bad_request("invalid name or ID supplied: \"\""));
    }
    let container = engine.container(query.get("container"))?;
    let id = detached(async move { commit::commit(&engine, &container, wanted).await }).await?;
    Ok((StatusCode::CREATED, Json(json!({"Id": id}))))
}
