// SPDX-License-Identifier: Apache-2.0
//! The little that `arca` itself asks of the Docker Engine API socket.

use std::path::Path;

use anyhow::{Context as _, bail};
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1};
use hyper_util::rt::TokioIo;

/// One request; gives status and body.
pub(super) async fn request(socket: &Path, method: Method, path: &str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream =
        arca_proto::dial::connect_unix(socket).await.with_context(|| format!("connect to {}", socket.display()))?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let request = Request::builder().method(method).uri(path).header("Host", "arca").body(Empty::<Bytes>::new())?;
    let response = sender.send_request(request).await?;
    let status = response.status();
    Ok((status, response.into_body().collect().await?.to_bytes()))
}

/// Stops every running container, as `docker stop` would, all at once.
pub(super) async fn stop_all(socket: &Path) -> anyhow::Result<()> {
    let (status, body) = request(socket, Method::GET, "/containers/json").await?;
    if status != StatusCode::OK {
        bail!("list containers: {status}");
    }
    let containers: Vec<serde_json::Value> = serde_json::from_slice(&body)?;
    let mut stops = tokio::task::JoinSet::new();
    for id in containers.iter().filter_map(|container| container["Id"].as_str().map(str::to_owned)) {
        let socket = socket.to_path_buf();
        stops.spawn(async move {
            let (status, body) = request(&socket, Method::POST, &format!("/containers/{id}/stop")).await?;
            match status {
                // 304: it had ended by itself. 404: it was removed by itself (--rm).
                status if status.is_success() || matches!(status.as_u16(), 304 | 404) => anyhow::Ok(()),
                status => bail!("stop {}: {status} {}", &id[..12.min(id.len())], String::from_utf8_lossy(&body)),
            }
        });
    }
    let mut failures = Vec::new();
    while let Some(stopped) = stops.join_next().await {
        if let Err(error) = stopped? {
            failures.push(format!("{error:#}"));
        }
    }
    if failures.is_empty() { Ok(()) } else { bail!("{}", failures.join("; ")) }
}
