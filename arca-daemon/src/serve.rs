// SPDX-License-Identifier: Apache-2.0
//! A gRPC server as every Arca process runs it: with health and reflection, for allowed peers only, until shutdown.

use std::{path::Path, time::Duration};

use arca_proto::listen::{Listener, bind_unix};
use tonic::service::Routes;
use tower::util::MapResponseLayer;

use crate::{
    drain::UntilShutdown,
    exit::{Failure, Fatal},
    notify,
    shutdown::Shutdown,
};

/// How long calls that are being worked on may go on after shutdown was asked for.
const DRAIN: Duration = Duration::from_secs(2);

/// Why a server ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The descriptors compiled into this program are unusable.
    #[error("set up gRPC reflection")]
    Reflection(#[from] tonic_reflection::server::Error),
    /// The transport failed.
    #[error("serve gRPC")]
    Transport(#[from] tonic::transport::Error),
}

/// Binds a host daemon's unix socket.
pub(crate) fn bind_socket(path: &Path, mode: u32) -> Result<Listener, Fatal> {
    if let Some(directory) = path.parent() {
        std::fs::create_dir_all(directory).map_err(|error| {
            Fatal::new(
                Failure::Privileges,
                format!("create {}: {error} (run as root, or set ARCA_HOME)", directory.display()),
            )
        })?;
    }
    bind_unix(path, mode).map_err(|error| {
        let (failure, hint) = match error.kind() {
            std::io::ErrorKind::AddrInUse => {
                (Failure::SocketTaken, " (another engine? `arca daemon status`; or set ARCA_HOME or socketPath)")
            }
            std::io::ErrorKind::PermissionDenied => (Failure::Privileges, " (run as root, or set ARCA_HOME)"),
            _ => (Failure::General, ""),
        };
        Fatal::new(failure, format!("listen on {}: {error}{hint}", path.display()))
    })
}

/// Serves `routes` plus health and reflection on `listener` until `shutdown` fires. Then streams end, and calls that are
/// being worked on have two seconds.
/// `services` are full names such as `arca.netd.v1.Netd`; health answers SERVING for each.
///
/// # Errors
/// [`ServeError`] if the listener breaks.
pub async fn serve(
    listener: Listener,
    routes: Routes,
    services: &[&str],
    shutdown: Shutdown,
) -> Result<(), ServeError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    for service in services {
        health.set_service_status(service, tonic_health::ServingStatus::Serving).await;
    }
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(arca_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let routes = routes.add_service(health_service).add_service(reflection);
    // The socket is bound: whoever connects from now on is served.
    notify::ready();
    let (drained, streams) = (shutdown.clone(), shutdown.clone());
    let end_streams = MapResponseLayer::new(move |response: http::Response<tonic::body::Body>| {
        response.map(|body| UntilShutdown::wrap(body, streams.clone()))
    });
    let server = tonic::transport::Server::builder()
        .layer(end_streams)
        .add_routes(routes)
        .serve_with_incoming_shutdown(listener.incoming(), async move { drained.wait().await });
    let deadline = async move {
        shutdown.wait().await;
        tokio::time::sleep(DRAIN).await;
    };
    tokio::select! {
        served = server => served?,
        () = deadline => tracing::debug!("open calls were cut at the end of the drain time"),
    }
    Ok(())
}
