// SPDX-License-Identifier: Apache-2.0
//! Ends open streams of a gRPC server at shutdown: calls are finished, watches are told to go.
//!
//! A watch never ends by itself. Left open it would hold up a graceful shutdown until the drain time cuts it.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use http_body::{Body, Frame};
use tonic::Status;

use crate::shutdown::Shutdown;

/// A response's body that, once shutdown fires, ends where it would have to wait for more. An answer that is complete
/// passes whole; a stream ends with UNAVAILABLE, which tells its client to connect again.
pub(crate) struct UntilShutdown {
    inner: tonic::body::Body,
    fired: Pin<Box<dyn Future<Output = ()> + Send>>,
    ended: bool,
}

impl UntilShutdown {
    pub(crate) fn wrap(inner: tonic::body::Body, shutdown: Shutdown) -> tonic::body::Body {
        tonic::body::Body::new(Self { inner, fired: Box::pin(async move { shutdown.wait().await }), ended: false })
    }
}

impl Body for UntilShutdown {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        if let Poll::Ready(frame) = Pin::new(&mut self.inner).poll_frame(context) {
            return Poll::Ready(frame);
        }
        if self.fired.as_mut().poll(context).is_pending() {
            return Poll::Pending;
        }
        self.ended = true;
        // gRPC over HTTP/2: status 14 is UNAVAILABLE.
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from_static("14"));
        trailers.insert("grpc-message", HeaderValue::from_static("the server is shutting down"));
        Poll::Ready(Some(Ok(Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended || self.inner.is_end_stream()
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    /// Sends one chunk and then waits for ever.
    struct Watch(bool);

    impl Body for Watch {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            match std::mem::take(&mut self.0) {
                true => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(b"state"))))),
                false => Poll::Pending,
            }
        }
    }

    async fn next(body: &mut tonic::body::Body) -> Option<Result<Frame<Bytes>, Status>> {
        poll_fn(|context| Pin::new(&mut *body).poll_frame(context)).await
    }

    #[tokio::test]
    async fn a_watch_ends_with_unavailable_when_shutdown_fires_and_not_before() {
        let (trigger, shutdown) = Shutdown::manual();
        let mut body = UntilShutdown::wrap(tonic::body::Body::new(Watch(true)), shutdown);
        let first = next(&mut body).await.expect("a frame").expect("no error");
        assert_eq!(first.into_data().expect("data"), Bytes::from_static(b"state"));
        let waits = poll_fn(|context| Poll::Ready(Pin::new(&mut body).poll_frame(context).is_pending()));
        assert!(waits.await, "nobody asked it to end");
        trigger.fire();
        let last = next(&mut body).await.expect("a frame").expect("no error");
        let trailers = last.into_trailers().expect("trailers");
        assert_eq!(trailers.get("grpc-status").map(HeaderValue::as_bytes), Some(&b"14"[..]));
        assert!(next(&mut body).await.is_none());
    }

    #[tokio::test]
    async fn an_answer_that_is_complete_passes_whole_during_shutdown() {
        let (trigger, shutdown) = Shutdown::manual();
        trigger.fire();
        let whole = Whole(Some(Bytes::from_static(b"answer")));
        let mut body = UntilShutdown::wrap(tonic::body::Body::new(whole), shutdown);
        let frame = next(&mut body).await.expect("a frame").expect("no error");
        assert_eq!(frame.into_data().expect("data"), Bytes::from_static(b"answer"));
        assert!(next(&mut body).await.is_none());
    }

    /// One chunk, then the end.
    struct Whole(Option<Bytes>);

    impl Body for Whole {
        type Data = Bytes;
        type Error = Status;

        fn poll_frame(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
            Poll::Ready(self.0.take().map(|chunk| Ok(Frame::data(chunk))))
        }
    }
}
