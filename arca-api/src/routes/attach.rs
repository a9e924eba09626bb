// SPDX-License-Identifier: Apache-2.0
//! Endpoints that take a connection over, attach and exec start, and what belongs to them: exec create, inspect, resize.

use std::sync::Arc;

use arca_proto::init::v1 as init;
use axum::{
    Json, Router,
    body::Body,
    extract::{Extension, Path, Request, State},
    http::{HeaderMap, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::AsyncWriteExt;

use crate::{
    containers::{
        Container, Status,
        attach::{self, Serving, Session, Streams},
        bridge::{self, Bridge, Ended},
        detach_keys::DetachKeys,
        exec::{self, ExecConfig},
        logs::{self, LogOptions},
    },
    engine::Engine,
    http::{
        ApiError, ApiResult,
        frame::{ApiVersion, Bare},
        hijack::{self, Input, Output, StreamKind, frame_header},
        json::{self as body, Empty},
        query::Query,
    },
    routes::containers::content_type,
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/containers/{id}/attach", post(attach_container))
        .route("/containers/{id}/resize", post(resize_container))
        .route("/containers/{id}/exec", post(create_exec))
        .route("/exec/{id}/start", post(start_exec))
        .route("/exec/{id}/resize", post(resize_exec))
        .route("/exec/{id}/json", get(inspect_exec))
}

/// Docker has taken the connection over before it looks at anything: its answer is bare, and a fault is text.
async fn attach_container(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    query: Query,
    request: Request,
) -> Response {
    let mut response = attach(engine, version, id, query, request)
        .await
        .unwrap_or_else(|error| (error.status, [(CONTENT_TYPE, hijack::RAW)], error.message + "\r\n").into_response());
    response.extensions_mut().insert(Bare);
    response
}

async fn attach(
    engine: Arc<Engine>,
    version: ApiVersion,
    id: String,
    query: Query,
    request: Request,
) -> ApiResult<Response> {
    let container = engine.container(&id)?;
    let keys = DetachKeys::parse(query.get("detachKeys"))?;
    let (status, tty, open_stdin, stdin_once) = container.with(|record| {
        let config = &record.config;
        (record.state.status, config.tty, config.open_stdin, config.stdin_once)
    });
    match status {
        Status::Paused => {
            return Err(ApiError::conflict(format!("container {id} is paused, unpause the container before attach")));
        }
        Status::Restarting => {
            return Err(ApiError::conflict(format!(
                "container {id} is restarting, wait until the container is running"
            )));
        }
        _ => {}
    }
    let streams = Streams {
        stdin: query.flag("stdin") && open_stdin,
        stdout: query.flag("stdout"),
        stderr: query.flag("stderr"),
    };
    let replay = query.flag("logs");
    let stream = query.flag("stream");
    // The session is made, or the place in the queue taken, before the headers leave: the client starts the container
    // as soon as it sees them.
    let source = match (stream, container.running()) {
        (false, _) => Source::None,
        (true, Ok(live)) => {
            let process = init::ProcessRef { workload_id: container.id.clone(), exec_id: String::new() };
            let serving = container.clients.serving();
            match attach::open(&live.init, process, streams).await {
                Ok(session) => Source::Now(Box::new(session), serving),
                // It ends in this moment: as in Docker, there is nothing more to come, and wait tells the exit code.
                Err(status) => {
                    tracing::debug!(container_id = container.id, error = status.message(), "attach at the end");
                    Source::None
                }
            }
        }
        (true, Err(_)) => Source::AtStart(container.clients.wait(streams)),
    };
    container.emit(&engine, "attach", &[]);
    let keys = tty.then_some(keys);
    Ok(hijack::take_over(request, content_type(tty, version), move |input, output| {
        serve(engine, container, Client { source, streams, replay, tty, stdin_once, keys }, input, output)
    }))
}

enum Source {
    None,
    Now(Box<Session>, Serving),
    AtStart(tokio::sync::oneshot::Receiver<(Session, Serving)>),
}

struct Client {
    source: Source,
    streams: Streams,
    replay: bool,
    tty: bool,
    stdin_once: bool,
    keys: Option<DetachKeys>,
}

async fn serve(engine: Arc<Engine>, container: Arc<Container>, client: Client, input: Input, mut output: Output) {
    if client.replay {
        let options = LogOptions {
            stdout: client.streams.stdout,
            stderr: client.streams.stderr,
            raw: client.tty,
            ..LogOptions::default()
        };
        let mut past = logs::stream(&container, &engine.folder(&container.id).join("output.log"), options);
        while let Some(Ok(piece)) = past.recv().await {
            if output.write_all(&piece).await.is_err() {
                return;
            }
        }
    }
    let session = match client.source {
        Source::None => None,
        Source::Now(session, serving) => Some((*session, serving)),
        // An error: removed, or it could not be started.
        Source::AtStart(receiver) => receiver.await.ok(),
    };
    let Some((session, serving)) = session else {
        let _ = output.shutdown().await;
        return;
    };
    // A process that keeps its input open for the next client is left at the end of this one's.
    let leave_at_end = client.tty || !client.stdin_once;
    let bridge = Bridge { session, serving, raw: client.tty, leave_at_end, keys: client.keys };
    let ended = bridge::run(bridge, input, output).await;
    if ended == Ended::Detached {
        container.emit(&engine, "detach", &[]);
    }
}

fn size(query: &Query) -> ApiResult<(u32, u32)> {
    let side = |key: &str| {
        let text = query.get(key);
        text.parse::<u32>().map_err(|_| {
            ApiError::bad_request(format!(
                "invalid resize {} \"{text}\": invalid syntax",
                if key == "h" { "height" } else { "width" }
            ))
        })
    };
    Ok((side("h")?, side("w")?))
}

async fn resize_container(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let (rows, columns) = size(&query)?;
    let container = engine.container(&id)?;
    let live = container.running()?;
    let process = Some(init::ProcessRef { workload_id: container.id.clone(), exec_id: String::new() });
    live.init
        .clone()
        .resize(init::ResizeRequest { process, rows, columns })
        .await
        .map_err(|status| ApiError::internal(status.message().to_owned()))?;
    container.emit(&engine, "resize", &[("height", rows.to_string()), ("width", columns.to_string())]);
    Ok(StatusCode::OK)
}

async fn create_exec(
    State(engine): Shared,
    Path(id): Path<String>,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let config: ExecConfig = body::read(&headers, request_body, Empty::Object).await?;
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(ApiError::bad_request("No exec command specified"));
    }
    DetachKeys::parse(&config.detach_keys)
        .map_err(|_| ApiError::internal(format!("Invalid escape keys ({}) provided", config.detach_keys)))?;
    let container = engine.container(&id)?;
    let exec = exec::create(&engine, &container, &id, config)?;
    Ok((StatusCode::CREATED, Json(json!({"Id": exec.id}))))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ExecStart {
    detach: bool,
    tty: bool,
}

async fn start_exec(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    Path(id): Path<String>,
    request: Request,
) -> ApiResult<Response> {
    let exec = engine.execs.get(&id)?;
    let headers = request.headers().clone();
    let (parts, request_body) = request.into_parts();
    // Only the JSON object belongs to the request; what follows on the connection is input.
    let options: ExecStart = body::read(&headers, request_body, Empty::Object).await?;
    let request = Request::from_parts(parts, Body::empty());
    let claimed = exec::claim(&exec);
    if options.detach || claimed.as_ref().is_err_and(|error| error.status == StatusCode::NOT_FOUND) {
        let live = claimed?;
        exec::process(&engine, &exec)?;
        let mut session = exec::start(&engine, &exec, &live).await?;
        tokio::spawn(async move { while let Ok(Some(_)) = session.output.message().await {} });
        return Ok(Response::new(Body::empty()));
    }
    let tty = exec.config.tty;
    let keys = tty.then(|| DetachKeys::parse(&exec.config.detach_keys)).transpose()?;
    tracing::trace!(client_tty = options.tty, tty, "exec");
    Ok(hijack::take_over(request, content_type(tty, version), move |input, mut output| async move {
        let serving = exec.container.clients.serving();
        let session = match claimed {
            Ok(live) => exec::start(&engine, &exec, &live).await,
            Err(error) => Err(error),
        };
        match session {
            Ok(session) => {
                let ended = bridge::run_and_then(
                    Bridge { session, serving, raw: tty, leave_at_end: tty, keys },
                    input,
                    output,
                    |ended| {
                        if let Ended::Exited(Some(exit)) = ended {
                            exec::end(&engine, &exec, exit.code);
                        }
                    },
                )
                .await;
                if ended == Ended::Detached {
                    exec.container.emit(&engine, "exec_detach", &[("execID", exec.id.clone())]);
                }
            }
            Err(error) => {
                // The headers are gone already: as Docker, tell it where the output would be.
                let text = format!("{}\r\n", error.message);
                if !tty {
                    let length = u32::try_from(text.len()).unwrap_or(u32::MAX);
                    let _ = output.write_all(&frame_header(StreamKind::Stdout, length)).await;
                }
                let _ = output.write_all(text.as_bytes()).await;
                let _ = output.shutdown().await;
            }
        }
    }))
}

async fn inspect_exec(State(engine): Shared, Path(id): Path<String>) -> ApiResult<Json<Value>> {
    engine.execs.get(&id).map(|exec| Json(exec.to_json()))
}

async fn resize_exec(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<StatusCode> {
    let (rows, columns) = size(&query)?;
    let exec = engine.execs.get(&id)?;
    exec::resize(&exec, rows, columns).await?;
    Ok(StatusCode::OK)
}
