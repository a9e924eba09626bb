// SPDX-License-Identifier: Apache-2.0
//! Wires the daemon together, in the order in which its parts must stand.

use arca_daemon::{paths::Paths, serve, shutdown::Shutdown};
use arca_proto::relay::v1::relay_server::RelayServer;
use tonic::service::Routes;

use crate::{links::Links, publish::Publisher, service::Service};

/// Serves the engine whose paths these are until `shutdown`. Links and listeners end with it.
///
/// # Errors
/// The socket is taken or cannot be made.
pub async fn run(paths: &Paths, shutdown: Shutdown) -> anyhow::Result<()> {
    let listener = serve::bind_daemon_socket(&paths.relayd_socket())?;
    let links = Links::new();
    let publisher = Publisher::new(links.helper(), &paths.tag());
    let service = Service::new(links, publisher, shutdown.clone());
    tracing::info!(socket = %paths.relayd_socket().display(), "serving");
    let routes = Routes::new(RelayServer::from_arc(service.clone()));
    serve::serve(listener, routes, &["arca.relay.v1.Relay"], shutdown).await?;
    service.close().await;
    Ok(())
}
