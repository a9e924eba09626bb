// SPDX-License-Identifier: Apache-2.0
//! The task that owns the link TAPs: told by the engine which should exist, it makes it so. While it works, newer wishes
//! replace older ones.

use std::collections::BTreeMap;
use std::sync::Arc;

use arca_proto::ports::LinkNumber;
use tokio::sync::mpsc;

use crate::nb::model::EndpointId;
use crate::nb::rows::Desired;
use crate::ports::PortSpec;

use super::machine::Machine;

/// Ports that should exist.
#[derive(Debug)]
pub(super) struct Job {
    /// Grows with each job.
    pub(super) number: u64,
    pub(super) wanted: BTreeMap<LinkNumber, PortSpec>,
    /// Everything is declared, so all others go.
    pub(super) prune: bool,
}

/// Answer to all jobs up to a number.
#[derive(Debug)]
pub(super) struct Done {
    pub(super) number: u64,
    /// Endpoints without a port, and why.
    pub(super) failures: BTreeMap<EndpointId, String>,
}

/// Ports of the declared endpoints.
pub(super) fn wanted(desired: &Desired) -> BTreeMap<LinkNumber, PortSpec> {
    let spec = |e: &crate::nb::model::Endpoint| {
        let network = desired.networks.get(&e.network)?;
        let id = e.id.as_str().to_owned();
        let mtu = u32::from(network.object.mtu);
        let (iface_id, mac) = (id.clone(), e.mac.octets());
        Some((e.link, PortSpec { link: e.link, endpoint_id: id, iface_id, mtu, mac, carrier: e.carrier }))
    };
    desired.endpoints.values().filter_map(|e| spec(&e.object)).collect()
}

/// Works until the engine is gone.
pub(super) async fn run<M: Machine>(machine: Arc<M>, mut jobs: mpsc::UnboundedReceiver<Job>, done: mpsc::Sender<Done>) {
    let mut applied: BTreeMap<LinkNumber, PortSpec> = BTreeMap::new();
    while let Some(mut job) = jobs.recv().await {
        while let Ok(newer) = jobs.try_recv() {
            job = newer;
        }
        let same = |link: &LinkNumber, endpoint: &str| job.wanted.get(link).is_some_and(|w| w.endpoint_id == endpoint);
        let stale = applied.iter().filter(|(link, spec)| !same(link, &spec.endpoint_id));
        let mut gone: Vec<LinkNumber> = stale.map(|(link, _)| *link).collect();
        if job.prune {
            let unknown = machine.links().await.into_iter();
            gone.extend(unknown.filter(|link| !job.wanted.contains_key(link) && !applied.contains_key(link)));
        }
        if !gone.is_empty() {
            if let Err(error) = machine.remove(&gone).await {
                tracing::warn!(%error, "removing ports failed");
            }
            applied.retain(|link, _| !gone.contains(link));
        }
        let fresh: Vec<PortSpec> =
            job.wanted.iter().filter(|(link, spec)| applied.get(link) != Some(spec)).map(|(_, s)| s.clone()).collect();
        let mut failures = BTreeMap::new();
        if !fresh.is_empty() {
            for (link, result) in machine.ensure(fresh).await {
                let Some(spec) = job.wanted.get(&link) else { continue };
                match result {
                    Ok(()) => drop(applied.insert(link, spec.clone())),
                    Err(error) => {
                        let text = chain(error.as_ref());
                        tracing::warn!(link = link.get(), error = text, "a port could not be made");
                        failures.extend(EndpointId::new(&spec.endpoint_id).ok().map(|id| (id, text)));
                    }
                }
            }
        }
        if done.send(Done { number: job.number, failures }).await.is_err() {
            return;
        }
    }
}

/// The error's text with its causes.
pub(super) fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}
