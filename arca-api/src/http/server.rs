// SPDX-License-Identifier: Apache-2.0
//! Takes connections of the docker socket. `axum::serve` would do, but it cannot keep a half-closed connection open nor
//! hand it over after a 101, and the docker CLI needs both.

use axum::{Router, body::Body};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use tokio::net::{UnixListener, UnixStream};

use crate::http::{frame, hangup::Hangup};

/// Serves `router` until `stop` ends; connections in progress go on by themselves.
pub async fn serve(listener: UnixListener, router: Router, stop: impl Future<Output = ()>) {
    tokio::pin!(stop);
    loop {
        tokio::select! {
            // Cancel-safe: accept loses no connection when dropped.
            accepted = listener.accept() => match accepted {
                Ok((stream, _)) => { tokio::spawn(connection(stream, router.clone())); }
                // EMFILE and friends: the next accept may succeed once a connection has gone.
                Err(error) => {
                    tracing::warn!(%error, "a docker client could not be accepted");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            },
            () = &mut stop => return,
        }
    }
}

async fn connection(stream: UnixStream, router: Router) {
    let hangup = Hangup::of(&stream);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let router = router.clone();
        async move { Ok::<_, std::convert::Infallible>(frame::answer(router, request.map(Body::new)).await) }
    });
    let serving = hyper::server::conn::http1::Builder::new()
        .half_close(true)
        .title_case_headers(true)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    tokio::select! {
        result = serving => if let Err(error) = result {
            tracing::debug!(%error, "a docker client's connection ended");
        },
        // Dropping the connection drops the handler: long answers end with their reader. State changes run in tasks
        // of their own and are not cut short by it.
        () = hangup.happened() => {}
    }
}
