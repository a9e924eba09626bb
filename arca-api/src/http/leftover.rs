// SPDX-License-Identifier: Apache-2.0
//! Request bodies that a handler does not read to the end: they are read away, so that the answer reaches a client that
//! is still sending. hyper would close the connection under it, and the client would report a broken pipe.

use std::{
    pin::Pin,
    task::{Context, Poll},
};

use axum::body::{Body, HttpBody};
use bytes::Bytes;
use futures_util::StreamExt as _;
use hyper::body::{Frame, SizeHint};

/// Most bytes that are read away; whoever sends more is cut off.
const LIMIT: usize = 1 << 30;

/// A request body that is read to its end when it is dropped.
#[derive(Debug)]
struct Leftover(Body);

/// Wraps the body of a request.
pub fn kept(body: Body) -> Body {
    if body.is_end_stream() { body } else { Body::new(Leftover(body)) }
}

impl HttpBody for Leftover {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.0).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.0.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.0.size_hint()
    }
}

impl Drop for Leftover {
    fn drop(&mut self) {
        let body = std::mem::take(&mut self.0);
        if body.is_end_stream() {
            return;
        }
        // Dropped outside of the runtime, at its end, there is nobody left to answer.
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                let mut pieces = body.into_data_stream();
                let mut read = 0;
                while let Some(Ok(piece)) = pieces.next().await {
                    read += piece.len();
                    if read > LIMIT {
                        return;
                    }
                }
            });
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    };

    use super::*;

    #[tokio::test]
    async fn what_nobody_reads_is_read_away() {
        let polled = Arc::new(AtomicUsize::new(0));
        let count = polled.clone();
        let pieces = futures_util::stream::iter(0..3).map(move |_| {
            count.fetch_add(1, Ordering::SeqCst);
            Ok::<_, std::io::Error>(Bytes::from_static(b"x"))
        });
        drop(kept(Body::from_stream(pieces)));
        while polled.load(Ordering::SeqCst) < 3 {
            tokio::task::yield_now().await;
        }
    }
}
