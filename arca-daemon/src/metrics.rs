// SPDX-License-Identifier: Apache-2.0
//! Figures for Prometheus, of a host daemon (`metrics` in the configuration; off unless asked for). docs/metrics.md names
//! them all.
//!
//! A daemon hands [`serve`] a way to gather its [`Figures`]; they are gathered when somebody asks and at no other time, so
//! that nothing polls. Programs in guests have no HTTP server: the daemon that speaks to them asks them over their gRPC.
//! OpenMetrics 1.0 text over HTTP/1.1, on a loopback address or a unix socket that only the engine's user may open.

use std::{convert::Infallible, io, net::SocketAddr, path::PathBuf, sync::Arc};

use arca_proto::listen::{Listener, bind_unix};
use bytes::Bytes;
use http::{Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use prometheus_client::{
    encoding::text::encode,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
};

use crate::{config::MetricsPlace, paths::Paths, shutdown::Shutdown};

/// Labels of one row: names and values.
pub type Labels = Vec<(&'static str, String)>;

/// What a daemon shows at one moment.
#[derive(Debug)]
pub struct Figures(Registry);

impl Default for Figures {
    fn default() -> Self {
        Self(Registry::with_prefix("arca"))
    }
}

impl Figures {
    /// Something that only grows. `name` is without `arca_` and `_total`, which are added.
    pub fn counter(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, u64)>) {
        let family = Family::<Labels, Counter>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).inc_by(value);
        }
        self.0.register(name, help, family);
    }

    /// Something that comes and goes. `name` is without `arca_`.
    pub fn gauge(&mut self, name: &str, help: &str, rows: impl IntoIterator<Item = (Labels, i64)>) {
        let family = Family::<Labels, Gauge>::default();
        for (labels, value) in rows {
            family.get_or_create(&labels).set(value);
        }
        self.0.register(name, help, family);
    }

    /// As text.
    #[must_use]
    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String does not fail.
        let _ = encode(&mut text, &self.0);
        text
    }
}

/// Serves what `gather` gives to whoever asks for `/metrics`, where `place` says, until `shutdown`. Returns at once; a place
/// that cannot be had is told in the log and stops nothing.
pub async fn serve<F>(
    place: MetricsPlace,
    paths: &Paths,
    daemon: &'static str,
    gather: impl Fn() -> F + Send + Sync + 'static,
    shutdown: Shutdown,
) where
    F: Future<Output = Figures> + Send + 'static,
{
    let gather = Arc::new(gather);
    let where_to = spot(place, paths, daemon);
    let door = match &where_to {
        None => return,
        Some(Spot::Socket(path)) => bind_unix(path, 0o600).map(Door::Socket),
        Some(Spot::Address(address)) => TcpListener::bind(address).await.map(Door::Address),
    };
    match door {
        Ok(door) => {
            tokio::spawn(attend(door, gather, shutdown));
            tracing::info!(at = ?where_to, "serving metrics");
        }
        Err(error) => tracing::error!(%error, at = ?where_to, "metrics are not served"),
    }
}

/// Where clients come in.
enum Door {
    Socket(Listener),
    Address(TcpListener),
}

trait Client: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Client for T {}

impl Door {
    async fn accept(&self) -> io::Result<Box<dyn Client>> {
        match self {
            Self::Socket(listener) => Ok(Box::new(listener.accept().await?)),
            Self::Address(listener) => Ok(Box::new(listener.accept().await?.0)),
        }
    }
}

async fn attend<F>(door: Door, gather: Arc<impl Fn() -> F + Send + Sync + 'static>, shutdown: Shutdown)
where
    F: Future<Output = Figures> + Send + 'static,
{
    loop {
        let accepted = tokio::select! {
            // Both arms are cancel-safe.
            accepted = door.accept() => accepted,
            () = shutdown.wait() => return,
        };
        match accepted {
            Ok(client) => answer(client, gather.clone()),
            Err(error) => pause(&error).await,
        }
    }
}

/// Where one daemon serves its figures.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Spot {
    Socket(PathBuf),
    Address(SocketAddr),
}

/// Each daemon's own spot; ports in the order in which the configuration names the daemons.
fn spot(place: MetricsPlace, paths: &Paths, daemon: &str) -> Option<Spot> {
    match place {
        MetricsPlace::Off => None,
        MetricsPlace::Sockets => Some(Spot::Socket(paths.metrics_socket(daemon))),
        MetricsPlace::Address(mut address) => {
            let offset = match daemon {
                "arca-api" => 0,
                "arca-netd" => 1,
                _ => 2,
            };
            // The configuration takes no port above 65533.
            address.set_port(address.port().saturating_add(offset));
            Some(Spot::Address(address))
        }
    }
}

/// Out of descriptors, as a rule: the client stays in the backlog.
async fn pause(error: &io::Error) {
    tracing::warn!(%error, "no metrics are served for a moment");
    tokio::time::sleep(std::time::Duration::from_secs(1)).await;
}

fn answer<F>(stream: impl Client + 'static, gather: Arc<impl Fn() -> F + Send + Sync + 'static>)
where
    F: Future<Output = Figures> + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let gather = gather.clone();
        async move { Ok::<_, Infallible>(respond(&request, || gather()).await) }
    });
    tokio::spawn(async move {
        // A client that breaks off has what it wanted.
        let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
    });
}

async fn respond<B, F: Future<Output = Figures>>(
    request: &Request<B>,
    gather: impl Fn() -> F,
) -> Response<Full<Bytes>> {
    let plain = |status, text: &'static str| {
        let mut response = Response::new(Full::from(text));
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics" | "/") => {
            let mut response = Response::new(Full::from(gather().await.text()));
            let kind = header::HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
            response.headers_mut().insert(header::CONTENT_TYPE, kind);
            response
        }
        (&Method::GET, _) => plain(StatusCode::NOT_FOUND, "there is /metrics\n"),
        _ => plain(StatusCode::METHOD_NOT_ALLOWED, "there is only GET\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn figures_are_served_as_text_and_nothing_else_is() {
        let gather = || async {
            let mut figures = Figures::default();
            let labels = |hop: &str| vec![("link", "3".to_owned()), ("hop", hop.to_owned())];
            figures.counter("link_frames", "Frames", [(labels("relayd"), 7), (labels("agent"), 9)]);
            figures.gauge("link_up", "Up", [(vec![("link", "3".to_owned())], 1)]);
            figures
        };
        let ask = |method, path: &str| Request::builder().method(method).uri(path).body(()).unwrap();
        let answer = respond(&ask(Method::GET, "/metrics"), gather).await;
        assert_eq!(answer.status(), StatusCode::OK);
        let text = gather().await.text();
        assert!(text.contains("arca_link_frames_total{link=\"3\",hop=\"agent\"} 9\n"), "{text}");
        assert!(text.contains("# TYPE arca_link_up gauge\n") && text.ends_with("# EOF\n"), "{text}");
        assert_eq!(respond(&ask(Method::GET, "/x"), gather).await.status(), StatusCode::NOT_FOUND);
        assert_eq!(respond(&ask(Method::POST, "/metrics"), gather).await.status(), StatusCode::METHOD_NOT_ALLOWED);
    }
}
