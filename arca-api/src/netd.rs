// SPDX-License-Identifier: Apache-2.0
//! The connection to arca-netd: one channel, a keeper that sends the full set of attachments on every connection, and
//! the form Docker shows an endpoint in.

use std::{path::Path, sync::Arc, time::Duration};

use arca_proto::{
    dial,
    netd::v1::{self as netd, netd_client::NetdClient},
};
use tonic::transport::Channel;

use crate::{
    containers::{in_step, native},
    docker::network::{EndpointSettings, split_cidr},
    engine::Engine,
};

/// Client of arca-netd; clones share one connection.
pub type Netd = NetdClient<Channel>;

/// Connects (lazily) to arca-netd's socket.
pub fn connect(socket: &Path) -> Netd {
    NetdClient::new(dial::unix_channel(socket)).max_decoding_message_size(64 << 20)
}

/// Puts what netd made of an attachment into the container's own view.
pub fn observe(settings: &mut EndpointSettings, endpoint: &netd::Endpoint) {
    let (ip_address, ip_prefix_len) = split_cidr(&endpoint.address_v4);
    let (global_ipv6_address, global_ipv6_prefix_len) = split_cidr(&endpoint.address_v6);
    settings.network_id.clone_from(&endpoint.network_id);
    settings.endpoint_id.clone_from(&endpoint.id);
    settings.mac_address.clone_from(&endpoint.mac);
    settings.gateway.clone_from(&endpoint.gateway_v4);
    settings.ipv6_gateway.clone_from(&endpoint.gateway_v6);
    settings.ip_address = ip_address;
    settings.ip_prefix_len = ip_prefix_len;
    settings.global_ipv6_address = global_ipv6_address;
    settings.global_ipv6_prefix_len = global_ipv6_prefix_len;
    settings.dns_names = (!endpoint.dns_names.is_empty()).then(|| endpoint.dns_names.clone());
}

/// First and last pause between attempts to reach arca-netd.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(1));

/// Gives arca-netd the full set; nobody begins to attach from the moment it is drawn up until it has worked.
async fn full_set(engine: &Engine) -> Result<netd::SyncAttachmentsResponse, tonic::Status> {
    let _alone = engine.full_set.write().await;
    let request = netd::SyncAttachmentsRequest { workload_ids: engine.attached() };
    engine.netd.clone().sync_attachments(request).await.map(tonic::Response::into_inner)
}

/// Keeps arca-netd in step for as long as the engine lives: each time it can be reached, it gets the full set of
/// attachments that should be, and removes all others (DESIGN section 8).
pub async fn keep_in_step(engine: Arc<Engine>) {
    let mut pause = BACKOFF.0;
    loop {
        let mut netd = engine.netd.clone();
        match netd.watch_events(netd::WatchEventsRequest {}).await {
            Ok(stream) => {
                pause = BACKOFF.0;
                let mut stream = stream.into_inner();
                match full_set(&engine).await {
                    Ok(answer) => {
                        tracing::info!(
                            kept = answer.endpoints.len(),
                            removed = answer.removed.len(),
                            "arca-netd in step"
                        );
                        in_step::compare(&engine, &answer.endpoints).await;
                        native::refresh_all(&engine, &answer.endpoints).await;
                    }
                    Err(status) => tracing::warn!(error = status.message(), "arca-netd refused the attachments"),
                }
                // Its events tell only that the connection lives: what changed, changed at our own request.
                while let Ok(Some(_)) = stream.message().await {}
                tracing::warn!("arca-netd has gone; connecting again");
            }
            Err(status) => tracing::debug!(error = status.message(), "arca-netd does not answer"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(BACKOFF.1);
    }
}
