// SPDX-License-Identifier: Apache-2.0
//! A container's files: `archive` (`docker cp`), `export`, `changes` (`docker diff`).

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderName, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::Value;
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    containers::{
        archive::{self, Extract},
        changes,
    },
    engine::Engine,
    http::{ApiError, ApiResult, query::Query, upload::Upload},
};

type Shared = State<Arc<Engine>>;

const TAR: &str = "application/x-tar";

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/{id}/archive", get(fetch).head(look).put(put))
        .route("/containers/{id}/export", get(export))
        .route("/containers/{id}/changes", get(diff))
}

/// Go's encoding of the facts, and the header they travel in.
fn header(facts: &Value) -> (HeaderName, String) {
    (HeaderName::from_static("x-docker-container-path-stat"), STANDARD.encode(facts.to_string()))
}

fn wanted(query: &Query) -> ApiResult<String> {
    match query.get("path") {
        "" => Err(ApiError::bad_request("bad parameter: pathcannot be empty")),
        path => Ok(path.to_owned()),
    }
}

async fn look(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let path = wanted(&query)?;
    let container = engine.container(&id)?;
    let facts = archive::stat(&engine, &container, &id, &path).await?;
    Ok([header(&facts)].into_response())
}

async fn fetch(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let path = wanted(&query)?;
    let container = engine.container(&id)?;
    let (facts, stream) = archive::read(&engine, &container, &id, &path).await?;
    container.emit(&engine, "archive-path", &[]);
    let body = Body::from_stream(ReceiverStream::new(stream));
    Ok(([(CONTENT_TYPE, TAR)], [header(&facts)], body).into_response())
}

async fn put(State(engine): Shared, Path(id): Path<String>, query: Query, body: Body) -> ApiResult<()> {
    let path = wanted(&query)?;
    let container = engine.container(&id)?;
    let how = Extract { keep_kinds: query.flag("noOverwriteDirNonDir"), to_user: query.flag("copyUIDGID") };
    archive::write(&engine, &container, &id, &path, Upload::new(body), how).await?;
    container.emit(&engine, "extract-to-dir", &[]);
    Ok(())
}

async fn export(State(engine): Shared, Path(id): Path<String>) -> ApiResult<Response> {
    let container = engine.container(&id)?;
    let stream = archive::export(&engine, &container).await?;
    container.emit(&engine, "export", &[]);
    let body = Body::from_stream(ReceiverStream::new(stream));
    Ok(([(CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

async fn diff(State(engine): Shared, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    let container = engine.container(&id)?;
    let upper = engine.folder(&container.id).join("upper");
    let layers = container.with(|record| record.layers.clone());
    Engine::blocking(move || Ok(changes::changes(&upper, &layers)?)).await.map(Json)
}
