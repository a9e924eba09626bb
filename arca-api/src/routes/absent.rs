// SPDX-License-Identifier: Apache-2.0
//! Docker endpoints that Arca does not have yet: 501 with a name, so that nothing pretends and nobody has to guess.

use std::sync::Arc;

use axum::{
    Json, Router,
    routing::{MethodFilter, MethodRouter, on},
};

use serde_json::{Value, json};

use crate::{engine::Engine, http::ApiError};

/// Method, path, name.
pub const ABSENT: &[(MethodFilter, &str, &str)] = &[
    (MethodFilter::GET, "/containers/{id}/attach/ws", "container attach over WebSocket"),
    (MethodFilter::POST, "/containers/{id}/checkpoints", "container checkpoint"),
    (MethodFilter::GET, "/containers/{id}/checkpoints", "container checkpoint"),
    (MethodFilter::POST, "/build/cancel", "image build"),
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
    router = router.route("/build/prune", axum::routing::post(prune_nothing));
    for path in ["/build", "/session", "/grpc"] {
        router = router.route(path, axum::routing::post(no_builder));
    }
    for path in SWARM {
        router = router.route(path, axum::routing::get(no_swarm));
    }
    router
}

fn answer(method: MethodFilter, name: &'static str) -> MethodRouter<Arc<Engine>> {
    on(method, move || async move { ApiError::absent(name) })
}

/// Nothing is built, so no cache of it is there to prune; `docker system prune` asks.
async fn prune_nothing() -> Json<Value> {
    Json(json!({"CachesDeleted": null, "SpaceReclaimed": 0}))
}

/// The classic builder is not part of Arca; BuildKit in a container is what builds.
async fn no_builder() -> ApiError {
    let text = "Arca has no image builder of its own. Two commands set one up: \"docker buildx create --use --driver docker-container\", then \"docker buildx build --load -t NAME .\"";
    ApiError::new(axum::http::StatusCode::NOT_IMPLEMENTED, text)
}

async fn no_swarm() -> ApiError {
    ApiError::new(
        axum::http::StatusCode::SERVICE_UNAVAILABLE,
        "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
    )
}
