// SPDX-License-Identifier: Apache-2.0
//! `/containers/*`, but for attach and exec.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    body::Body,
    extract::{Extension, Path, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{delete, get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    containers::{
        Container,
        create::{self, CreateRequest},
        links,
        logs::{self, LogOptions},
        networks,
        remove::{self, Options},
        signals,
        start::{self, Started},
        stop::{self, Condition},
        top, view,
    },
    docker::time::parse_point,
    engine::{Engine, detached},
    http::{
        ApiError, ApiResult,
        filters::Filters,
        frame::ApiVersion,
        hijack,
        json::{self as body, Empty},
        query::Query,
    },
    machines::Kind,
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/json", get(list).delete(|state, query| remove_container(state, Path("json".into()), query)))
        .route("/containers/create", post(create_container))
        .route("/containers/prune", post(prune))
        .route("/containers/{id}/json", get(inspect))
        .route("/containers/{id}/start", post(start_container))
        .route("/containers/{id}/stop", post(stop_container))
        .route("/containers/{id}/restart", post(restart))
        .route("/containers/{id}/kill", post(kill))
        .route("/containers/{id}/pause", post(pause))
        .route("/containers/{id}/unpause", post(unpause))
        .route("/containers/{id}/rename", post(rename))
        .route("/containers/{id}/wait", post(wait))
        .route("/containers/{id}/top", get(container_top))
        .route("/containers/{id}/logs", get(container_logs))
        .route("/containers/{id}", delete(remove_container))
        .route("/containers/{id}/{alias}", delete(remove_link))
        .route("/containers/{id}/{alias}/json", get(inspect_linked))
}

async fn list(State(engine): Shared, query: Query) -> ApiResult<Json<Vec<Value>>> {
    let mut entries = view::list(&engine, &query)?;
    if query.flag("size") {
        for entry in &mut entries {
            let Ok(container) = engine.container(entry["Id"].as_str().unwrap_or("")) else { continue };
            let (own, all) = sizes(&engine, &container).await?;
            if own > 0 {
                entry["SizeRw"] = json!(own);
            }
            entry["SizeRootFs"] = json!(all);
        }
    }
    Ok(Json(entries))
}

/// Bytes a container has written, and with its image's.
pub(super) async fn sizes(engine: &Arc<Engine>, container: &Container) -> ApiResult<(u64, u64)> {
    let upper = engine.folder(&container.id).join("upper");
    let (images, id) = (engine.images.clone(), container.with(|record| record.image_id.clone()));
    Engine::blocking(move || {
        let own = written(&upper)?;
        // An image that was removed by force meanwhile is no fault of the container.
        Ok((own, own + images.resolve(&id).map_or(0, |image| image.size)))
    })
    .await
}

/// Bytes of files and links below a folder; what goes while it is read is passed over.
pub(super) fn written(folder: &std::path::Path) -> std::io::Result<u64> {
    let mut total = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        for entry in entries.flatten() {
            match entry.metadata() {
                Ok(metadata) if metadata.is_dir() => folders.push(entry.path()),
                Ok(metadata) => total += metadata.len(),
                Err(_) => {}
            }
        }
    }
    Ok(total)
}

async fn inspect(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Json<Value>> {
    let container = engine.container(&id)?;
    let mut answer = view::inspect(&engine, &container, version);
    if query.flag("size") {
        let (own, all) = sizes(&engine, &container).await?;
        answer["SizeRw"] = json!(own);
        answer["SizeRootFs"] = json!(all);
    }
    Ok(Json(answer))
}

async fn create_container(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    query: Query,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let mut request: CreateRequest = body::read(&headers, request_body, Empty::Fault).await?;
    if version < ApiVersion::v1(44)
        && let Some(check) = &mut request.config.healthcheck
    {
        // Older clients know no such field; what is there means something else.
        check.start_interval = 0;
    }
    networks::for_version(version, &mut request.networking_config.endpoints_config)?;
    let wide = !request.config.mac_address.is_empty() && version >= ApiVersion::v1(44);
    let mut warnings = crate::spec::warnings(&request.host_config);
    warnings.extend(wide.then_some(networks::WIDE_MAC));
    let container =
        detached(async move { create::create(&engine, query.get("name"), query.get("platform"), request).await })
            .await?;
    Ok((StatusCode::CREATED, Json(json!({"Id": container.id, "Warnings": warnings}))))
}

async fn container_top(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Json<Value>> {
    let container = engine.container(&id)?;
    container.running()?;
    if container.live().is_some_and(|live| live.machine.kind() == Kind::Vm) {
        return Err(ApiError::absent("container top of a virtual machine"));
    }
    let pid = container.with(|record| record.state.pid);
    let arguments = query.get("ps_args").to_owned();
    let answer = Engine::blocking(move || top::top(pid, &arguments)).await?;
    container.emit(&engine, "top", &[]);
    Ok(Json(answer))
}

fn done(changed: bool) -> StatusCode {
    if changed { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED }
}

async fn start_container(State(engine): Shared, Path(id): Path<String>, request_body: Body) -> ApiResult<StatusCode> {
    let sent = axum::body::to_bytes(request_body, 1 << 20).await.unwrap_or_default();
    // Two bytes may be an empty object.
    if sent.len() > 2 {
        return Err(ApiError::bad_request(
            "starting container with non-empty request body was deprecated since API v1.22 and removed in v1.24",
        ));
    }
    let container = engine.container(&id)?;
    let started = detached(async move { start::start(&engine, &container).await }).await?;
    Ok(done(started == Started::Yes))
}

/// Seconds of patience; a signal nobody knows is 500 here, as in Docker.
fn stop_options(id: &str, query: &Query) -> ApiResult<Option<i64>> {
    let signal = query.get("signal");
    if !signal.is_empty() {
        signals::parse(signal)
            .map_err(|error| ApiError::internal(format!("cannot stop container: {id}: {}", error.message)))?;
    }
    query.integer("t")
}

async fn stop_container(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.container(&id)?;
    let seconds = stop_options(&id, &query)?;
    let stopped = detached(async move { stop::stop(&engine, &container, query.get("signal"), seconds).await }).await?;
    Ok(done(stopped))
}

async fn restart(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.container(&id)?;
    let seconds = stop_options(&id, &query)?;
    let within = |error: ApiError| error.within(&format!("Cannot restart container {id}"));
    let restarted = async move { stop::restart(&engine, &container, query.get("signal"), seconds).await };
    detached(restarted).await.map_err(within)?;
    Ok(StatusCode::NO_CONTENT)
}

async fn kill(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.container(&id).map_err(|error| error.within(&format!("cannot kill container: {id}")))?;
    detached(async move { stop::kill(&engine, &container, &id, query.get("signal")).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn pause(State(engine): Shared, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let container = engine.container(&id)?;
    detached(async move { stop::pause(&engine, &container).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn unpause(State(engine): Shared, Path(id): Path<String>) -> ApiResult<StatusCode> {
    let container = engine.container(&id)?;
    detached(async move { stop::unpause(&engine, &container).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn rename(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let container = engine.container(&id)?;
    detached(async move { stop::rename(&engine, &container, query.get("name")).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The headers leave at once: `docker run` starts the container only when it has them.
async fn wait(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Response> {
    let container = engine.container(&id)?;
    let condition = Condition::parse(query.get("condition"))?;
    let code = stop::wait(&container, condition);
    let answer = futures_util::stream::once(async move {
        let text = json!({"StatusCode": code.await}).to_string() + "\n";
        Ok::<_, std::convert::Infallible>(Bytes::from(text))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(answer)).into_response())
}

async fn container_logs(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Query,
) -> ApiResult<Response> {
    let container = engine.container(&id)?;
    let raw = container.with(|record| record.config.tty);
    let mut options = LogOptions::from_query(&query, raw)?;
    if query.flag("details") {
        options.prefix = container.with(logs::details);
    }
    if container.with(|record| record.host.log_config["Type"] == "none") {
        return Err(ApiError::new(StatusCode::NOT_IMPLEMENTED, "configured logging driver does not support reading"));
    }
    let receiver = logs::stream(&container, &engine.folder(&container.id).join("output.log"), options);
    Ok(([(CONTENT_TYPE, content_type(raw, version))], Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

/// Before 1.42 every stream was called raw.
pub(crate) fn content_type(raw: bool, version: ApiVersion) -> &'static str {
    if raw || version < ApiVersion::v1(42) { hijack::RAW } else { hijack::MULTIPLEXED }
}

async fn remove_container(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    if query.flag("link") {
        engine.container(&id)?;
        return Err(ApiError::internal("Conflict, cannot remove the default link name of the container"));
    }
    let container = engine.container(&id)?;
    let options = Options { force: query.flag("force"), volumes: query.flag("v") };
    detached(async move { remove::remove(&engine, &container, options).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The CLI does not escape the slash of PARENT/ALIAS.
async fn remove_link(
    State(engine): Shared,
    Path((parent, alias)): Path<(String, String)>,
    query: Query,
) -> ApiResult<StatusCode> {
    if !query.flag("link") {
        return remove_container(State(engine), Path(format!("{parent}/{alias}")), query).await;
    }
    let missing = |_| ApiError::not_found(format!("No such container: {parent}/{alias}"));
    let container = engine.container(&parent).map_err(missing)?;
    detached(async move { links::remove(&engine, &container, &alias).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn inspect_linked(
    state: Shared,
    version: Extension<ApiVersion>,
    Path((parent, alias)): Path<(String, String)>,
    query: Query,
) -> ApiResult<Json<Value>> {
    inspect(state, version, Path(format!("{parent}/{alias}")), query).await
}

async fn prune(State(engine): Shared, query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["label", "label!", "until"])?;
    let until = match filters.values("until") {
        [] => None,
        [one] => parse_point(one)?,
        _ => return Err(ApiError::bad_request("more than one until filter specified")),
    };
    let mut deleted = Vec::new();
    for container in engine.containers.all() {
        let chosen = container.with(|record| {
            !record.state.is_running()
                && record.state.status != crate::containers::Status::Restarting
                && until.is_none_or(|until| record.created < until)
                && filters.labels("label", &record.config.labels)
                && (filters.values("label!").is_empty() || !filters.labels("label!", &record.config.labels))
        });
        if !chosen {
            continue;
        }
        let engine = engine.clone();
        let id = container.id.clone();
        detached(async move { remove::remove(&engine, &container, Options { force: false, volumes: true }).await })
            .await?;
        deleted.push(id);
    }
    engine.events.emit("container", "prune", "", BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]));
    let deleted = if deleted.is_empty() { Value::Null } else { json!(deleted) };
    Ok(Json(json!({"ContainersDeleted": deleted, "SpaceReclaimed": 0})))
}

/// `POST /networks/{id}/connect` and `disconnect` end here: they are verbs of the container.
pub(crate) async fn connect(
    engine: Arc<Engine>,
    network: String,
    container: &str,
    settings: crate::docker::network::EndpointSettings,
) -> ApiResult<()> {
    if container.is_empty() {
        return Err(ApiError::bad_request("invalid name or ID supplied: \"\""));
    }
    let container = engine.container(container)?;
    detached(async move { networks::connect(&engine, &container, &network, settings).await }).await
}

/// See [`connect`].
pub(crate) async fn disconnect(engine: Arc<Engine>, network: String, container: &str, force: bool) -> ApiResult<()> {
    if container.is_empty() {
        let text = if force { "invalid name: name is empty" } else { "invalid name or ID supplied: \"\"" };
        return Err(ApiError::bad_request(text));
    }
    let found = engine.container(container);
    if force && found.is_err() {
        let request = arca_proto::netd::v1::GetNetworkRequest { name_or_id: network };
        engine.netd.clone().get_network(request).await?;
        return Err(ApiError::not_found(format!("endpoint {container} not found")));
    }
    let container = found?;
    detached(async move { networks::disconnect(&engine, &container, &network, force).await }).await
}
