// SPDX-License-Identifier: Apache-2.0
//! The endpoints of the Docker Engine API, a file per group of them. Handlers read the request, call one verb and word
//! the answer; state lives elsewhere.

pub mod absent;
pub mod archive;
pub mod attach;
pub mod containers;
pub mod events;
pub mod images;
pub mod networks;
pub mod stats;
pub mod system;
pub mod transfer;
pub mod usage;
pub mod volumes;

use std::sync::Arc;

use axum::{
    Router,
    response::{IntoResponse, Response},
};

use crate::{
    engine::Engine,
    http::{ApiError, frame::Bare},
};

/// All endpoints. What no route knows is 404, also a known path with another method: Docker never answers 405.
pub fn router(engine: Arc<Engine>) -> Router {
    Router::new()
        .merge(system::router())
        .merge(containers::router())
        .merge(attach::router())
        .merge(stats::router())
        .merge(archive::router())
        .merge(usage::router())
        .merge(networks::router())
        .merge(volumes::router())
        .merge(images::router())
        .merge(transfer::router())
        .merge(events::router())
        .merge(absent::router())
        .method_not_allowed_fallback(not_found)
        .fallback(not_found)
        .with_state(engine)
}

async fn not_found() -> Response {
    let mut response = ApiError::not_found("page not found").into_response();
    response.extensions_mut().insert(Bare);
    response
}
