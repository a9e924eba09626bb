// SPDX-License-Identifier: Apache-2.0
//! Wires the program together, in the order in which its parts must stand.

use std::sync::Arc;

use anyhow::Context as _;
use arca_daemon::serve;
use arca_daemon::shutdown::Shutdown;
use arca_proto::fdstore::Client;
use arca_proto::listen::ListenOn;
use arca_proto::tap::v1::tap_server::TapServer;
use arca_proto::{ports, trace};
use tonic::service::Routes;

use crate::kernel::Kernel;
use crate::machine::{Hops, Machine};
use crate::service::Service;

/// Serves until `shutdown`. What is attached then stays with the descriptor store, if there is one.
///
/// # Errors
/// The loopback interface, the store or the gRPC port cannot be had.
pub async fn run(listen_on: ListenOn, store: Option<Client>, shutdown: Shutdown) -> anyhow::Result<()> {
    let kernel = Kernel::open()?;
    kernel.loopback_up().await.context("network namespace (is CAP_NET_ADMIN there?)")?;
    let machine = Arc::new(Machine::new(listen_on.clone(), kernel, store));
    // Before the port is open: nobody may see a machine without the networks it has. Frames flow from here on.
    machine.restore().await.context("descriptor store")?;
    let listener =
        listen_on.bind(ports::TAP).with_context(|| format!("listen on port {} of {listen_on}", ports::TAP))?;
    tracing::info!(on = %listen_on, port = ports::TAP, "serving");
    let routes = Routes::new(trace::server(Hops(machine.clone()))).add_service(TapServer::new(Service::new(machine)));
    serve::serve(listener, routes, &["arca.tap.v1.Tap", "arca.tap.v1.Trace"], shutdown).await?;
    Ok(())
}
