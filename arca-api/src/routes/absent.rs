// SPDX-License-Identifier: Apache-2.0
//! Docker endpoints that Arca does not have yet: 501 with a name, so that nothing pretends and nobody has to guess.

use std::sync::Arc;

use axum::{
    Router,
    routing::{MethodFilter, MethodRouter, on},
};

use crate::{engine::Engine, http::ApiError};

/// Method, path, name.
pub const ABSENT: &[(MethodFilter, &str, &str)] = &[
    (MethodFilter::GET, "/containers/{id}/attach/ws", "container attach over WebSocket"),
    (MethodFilter::POST, "/containers/{id}/checkpoints", "container checkpoint"),
    (MethodFilter::GET, "/containers/{id}/checkpoints", "container checkpoint"),
    (MethodFilter::POST, "/build", "image build"),
    (MethodFilter::POST, "/build/prune", "build prune"),
    (MethodFilter::POST, "/build/cancel", "image build"),
    (MethodFilter::POST, "/session", "BuildKit session"),
    (MethodFilter::POST, "/grpc", "BuildKit session"),
    (MethodFilter::GET, "/plugins/privileges", "plugins"),
    (MethodFilter::POST, "/plugins/pull", "plugins"),
    (MethodFilter::POST, "/plugins/create", "plugins"),
    (MethodFilter::PUT, "/volumes/{name}", "volume update"),
    (MethodFilter::POST, "/swarm/init", "swarm"),
    (MethodFilter::POST, "/swarm/join", "swarm"),
    (MethodFilter::POST, "/swarm/leave", "swarm"),
    (MethodFilter::POST, "/swarm/update", "swarm"),
];

/// Swarm's read endpoints answer as a Docker engine that is in no swarm.
const SWARM: &[&str] = &["/swarm", "/nodes", "/services", "/tasks", "/secrets", "/configs"];

/// Routes for all of them.
pub fn router() -> Router<Arc<Engine>> {
    let mut router = Router::new();
    for (method, path, name) in ABSENT {
        router = router.route(path, answer(*method, name));
    }
    for path in SWARM {
        router = router.route(path, axum::routing::get(no_swarm));
    }
    router
}

fn answer(method: MethodFilter, name: &'static str) -> MethodRouter<Arc<Engine>> {
    on(method, move || async move { ApiError::absent(name) })
}

async fn no_swarm() -> ApiError {
    ApiError::new(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}
