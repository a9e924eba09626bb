// SPDX-License-Identifier: Apache-2.0
//! `GET /events`: the past from `since`, then what comes, until `until` or until the client leaves.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::Body,
    extract::State,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
    routing::get,
};
use bytes::Bytes;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use crate::{
    docker::time::{now, parse_timestamp},
    engine::Engine,
    events::Event,
    http::{ApiError, ApiResult, filters::Filters, query::Query},
};

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new().route("/events", get(events))
}

async fn events(State(engine): State<Arc<Engine>>, query: Query) -> ApiResult<Response> {
    // Unknown filters are no fault here, and filter nothing.
    let filters = Filters::parse(query.get("filters"))?;
    let since = parse_timestamp(query.get("since"))?;
    let until = parse_timestamp(query.get("until"))?;
    if let (Some(since), Some(until)) = (since, until)
        && since > until
    {
        return Err(ApiError::bad_request("`since` time cannot be after `until` time"));
    }
    let (past, live) = engine.events.subscribe(since);
    let (out, receiver) = mpsc::channel(64);
    tokio::spawn(async move {
        let pump = pump(past, live, &filters, until, &out);
        let left = match until {
            Some(until) => Duration::from_nanos(u64::try_from(until - now()).unwrap_or(0)),
            // A client does not stay for a century.
            None => Duration::from_secs(u64::from(u32::MAX)),
        };
        tokio::select! {
            () = pump => {}
            () = tokio::time::sleep(left) => {}
            () = out.closed() => {}
        }
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(ReceiverStream::new(receiver))).into_response())
}

async fn pump(
    past: Vec<Event>,
    mut live: broadcast::Receiver<Event>,
    filters: &Filters,
    until: Option<i64>,
    out: &mpsc::Sender<std::io::Result<Bytes>>,
) {
    for event in past {
        if until.is_some_and(|until| event.time > until) {
            return;
        }
        if !send(&event, filters, out).await {
            return;
        }
    }
    if until.is_some_and(|until| until <= now()) {
        return;
    }
    loop {
        match live.recv().await {
            Ok(event) => {
                if !send(&event, filters, out).await {
                    return;
                }
            }
            // A client that reads too slowly misses the oldest, as with any ring.
            Err(broadcast::error::RecvError::Lagged(missed)) => tracing::debug!(missed, "a slow reader of events"),
            Err(broadcast::error::RecvError::Closed) => return,
        }
    }
}

async fn send(event: &Event, filters: &Filters, out: &mpsc::Sender<std::io::Result<Bytes>>) -> bool {
    !event.matches(filters) || out.send(Ok(Bytes::from(event.to_json().to_string() + "\n"))).await.is_ok()
}
