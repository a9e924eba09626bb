// SPDX-License-Identifier: Apache-2.0
//! What a crash between two disks left: arca-netd made or removed an endpoint and arca-api could not take note of it, or
//! the other way round. Compared whenever arca-netd is connected to, container by container ([`crate::netd`]).
//!
//! An endpoint that no record knows was never acknowledged to anybody: it goes. One that only the record knows was being
//! disconnected: it is.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use arca_proto::netd::v1 as netd;

use crate::{
    containers::{Container, Record, files},
    engine::Engine,
    http::ApiResult,
};

/// Compares `endpoints`, which arca-netd has, with what the records say.
pub async fn compare(engine: &Arc<Engine>, endpoints: &[netd::Endpoint]) {
    let mut attached: BTreeMap<&str, BTreeSet<&str>> = BTreeMap::new();
    for endpoint in endpoints {
        attached.entry(&endpoint.workload_id).or_default().insert(&endpoint.id);
    }
    for container in engine.containers.all() {
        let differs = container.with(|record| {
            let theirs = attached.get(record.id.as_str());
            record.state.is_running()
                && !record.without_endpoints()
                && known(record).collect::<BTreeSet<_>>() != theirs.cloned().unwrap_or_default()
        });
        if differs && let Err(error) = settle(engine, &container).await {
            tracing::warn!(container_id = container.id, %error, "its endpoints differ from arca-netd's");
        }
    }
}

/// Endpoints that the record knows.
fn known(record: &Record) -> impl Iterator<Item = &str> {
    record.networks.values().map(|network| network.settings.endpoint_id.as_str()).filter(|id| !id.is_empty())
}

async fn settle(engine: &Arc<Engine>, container: &Arc<Container>) -> ApiResult<()> {
    let _op = container.turn().await?;
    let record = container.record();
    if !record.state.is_running() {
        return Ok(());
    }
    // Again, with nobody changing either side meanwhile.
    let mut client = engine.netd.clone();
    let request = netd::ListEndpointsRequest { workload_id: record.id.clone() };
    let theirs = client.list_endpoints(request).await?.into_inner().endpoints;
    let ours: BTreeSet<&str> = known(&record).collect();
    for endpoint in theirs.iter().filter(|endpoint| !ours.contains(endpoint.id.as_str())) {
        tracing::info!(container_id = record.id, network = endpoint.network_name, "an endpoint nobody waits for goes");
        let network = endpoint.network_id.clone();
        client.detach(netd::DetachRequest { network, workload_id: record.id.clone(), force: true }).await?;
    }
    let lost = |id: &str| !id.is_empty() && !theirs.iter().any(|endpoint| endpoint.id == id);
    if ours.iter().any(|id| lost(id)) {
        tracing::info!(container_id = record.id, "finishing a disconnect that was cut short");
        let keep = |record: &mut Record| record.networks.retain(|_, network| !lost(&network.settings.endpoint_id));
        container.update(engine, keep).await?;
        let now = container.record();
        for network in record.networks.values().filter(|network| lost(&network.settings.endpoint_id)) {
            files::left(&now, &engine.folder(&container.id), &network.settings)?;
        }
    }
    Ok(())
}
