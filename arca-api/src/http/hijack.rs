// SPDX-License-Identifier: Apache-2.0
//! Taking a connection over for raw streams: attach and exec start.
//!
//! A client that asks (`Connection: Upgrade`, `Upgrade: tcp`) gets `101 UPGRADED` and the bare socket. One that does
//! not gets 200, its request body as input and the response body as output. Without a terminal, output is cut into
//! frames of an 8-byte header (stream number, three zeros, big-endian length) and payload.

use std::{future::Future, io, pin::Pin};

use axum::{
    body::Body,
    http::{
        HeaderValue, Request, StatusCode,
        header::{CONNECTION, CONTENT_TYPE, UPGRADE},
    },
    response::Response,
};
use futures_util::TryStreamExt;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::io::{ReaderStream, StreamReader};

/// Input side of a taken-over connection.
pub type Input = Pin<Box<dyn AsyncRead + Send>>;
/// Output side of a taken-over connection.
pub type Output = Pin<Box<dyn AsyncWrite + Send>>;

/// Content type of a terminal's output: bytes as they are.
pub const RAW: &str = "application/vnd.docker.raw-stream";
/// Content type of framed output.
pub const MULTIPLEXED: &str = "application/vnd.docker.multiplexed-stream";

/// Room between `run` and a client without upgrade.
const PIPE: usize = 64 << 10;

/// Answers `request` and hands its connection to `run` in a task of its own.
pub fn take_over<F, Fut>(mut request: Request<Body>, content_type: &'static str, run: F) -> Response
where
    F: FnOnce(Input, Output) -> Fut + Send + 'static,
    Fut: Future<Output = ()> + Send + 'static,
{
    let mut response = Response::new(Body::empty());
    let headers = response.headers_mut();
    // Framed output has a name of its own only where the client asked for an upgrade.
    let kind = if request.headers().contains_key(UPGRADE) { content_type } else { RAW };
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    if request.headers().contains_key(UPGRADE) {
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        response.extensions_mut().insert(hyper::ext::ReasonPhrase::from_static(b"UPGRADED"));
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            match upgrade.await {
                Ok(connection) => {
                    let (input, output) = tokio::io::split(TokioIo::new(connection));
                    run(Box::pin(input), Box::pin(output)).await;
                }
                Err(error) => tracing::debug!(%error, "a client left before its connection was taken over"),
            }
        });
    } else {
        let (near, far) = tokio::io::duplex(PIPE);
        *response.body_mut() = Body::from_stream(ReaderStream::new(far));
        let input = StreamReader::new(request.into_body().into_data_stream().map_err(io::Error::other));
        tokio::spawn(run(Box::pin(input), Box::pin(near)));
    }
    response
}

/// Which of a process's streams a piece of output belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Standard output.
    Stdout = 1,
    /// Standard error.
    Stderr = 2,
}

/// The 8-byte header before `length` bytes of `kind`.
pub fn frame_header(kind: StreamKind, length: u32) -> [u8; 8] {
    let mut header = [kind as u8, 0, 0, 0, 0, 0, 0, 0];
    header[4..].copy_from_slice(&length.to_be_bytes());
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_big_endian() {
        assert_eq!(frame_header(StreamKind::Stdout, 6), [1, 0, 0, 0, 0, 0, 0, 6]);
        assert_eq!(frame_header(StreamKind::Stderr, 0x0102_0304), [2, 0, 0, 0, 1, 2, 3, 4]);
    }
}
