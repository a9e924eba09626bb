// SPDX-License-Identifier: Apache-2.0
//! Wires the daemon together, in the order in which its parts must stand.

use arca_daemon::{config::Config, metrics, serve, services, shutdown::Shutdown};
use arca_proto::{relay::v1::relay_server::RelayServer, trace};
use tonic::service::Routes;

use crate::{links::Links, publish::Publisher, service::Service};

/// Serves the engine of this configuration until `shutdown`. Links and listeners end with it.
///
/// # Errors
/// The socket is taken or cannot be made.
pub async fn run(config: &Config, shutdown: Shutdown) -> anyhow::Result<()> {
    raise_open_files();
    let paths = &config.paths;
    let listener = services::RELAYD.listen(paths)?.listener;
    let links = Links::new();
    let publisher = Publisher::new(&paths.tag());
    let traced = trace::server(links.clone());
    let service = Service::new(links, publisher, shutdown.clone());
    tracing::info!(socket = %paths.relayd_socket().display(), "serving");
    let routes = Routes::new(RelayServer::from_arc(service.clone())).add_service(traced);
    let neighbours = tokio::spawn({
        let service = service.clone();
        async move { service.follow_neighbours().await }
    });
    let gather = {
        let service = service.clone();
        move || {
            let service = service.clone();
            async move { service.figures().await }
        }
    };
    metrics::serve(config.metrics, paths, "arca-relayd", gather, shutdown.clone()).await;
    let served = serve::serve(listener, routes, &["arca.relay.v1.Relay", "arca.tap.v1.Trace"], shutdown).await;
    neighbours.abort();
    served?;
    service.close().await;
    Ok(())
}

/// A link takes some descriptors, a connection of a published port two: the usual soft limit of 1024 is soon reached.
/// Nothing here uses select(2), which is why there is such a limit.
fn raise_open_files() {
    use nix::sys::resource::{Resource, getrlimit, setrlimit};
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
        Ok(hard)
    });
    match raised {
        Ok(limit) => tracing::debug!(limit, "open files"),
        Err(error) => tracing::warn!(%error, "the limit of open files stays as it is"),
    }
}
