// SPDX-License-Identifier: Apache-2.0
//! `GET /containers/ID/stats` and `POST /containers/ID/update`: what a container uses, and may use.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    containers::{stats, update},
    engine::{Engine, detached},
    http::{
        ApiError, ApiResult,
        json::{self as body, Empty},
        query::Query,
    },
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/{id}/stats", get(container_stats))
        .route("/containers/{id}/update", post(update_container))
}

async fn container_stats(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let (streamed, one_shot) = (query.flag_or("stream", true), query.flag("one-shot"));
    if streamed && one_shot {
        return Err(ApiError::bad_request("cannot have stream=true and one-shot=true"));
    }
    let container = engine.container(&id)?;
    let body = if streamed {
        Body::from_stream(ReceiverStream::new(stats::stream(container)))
    } else {
        Body::from(stats::once(&container, one_shot).await?.to_string() + "\n")
    };
    Ok(([(CONTENT_TYPE, "application/json")], body).into_response())
}

async fn update_container(
    State(engine): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<Json<Value>> {
    let request: Value = body::read(&headers, request_body, Empty::Object).await?;
    let container = engine.container(&id)?;
    detached(async move { update::update(&engine, &container, request).await }).await?;
    Ok(Json(json!({"Warnings": null})))
}
