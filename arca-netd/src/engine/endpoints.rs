// SPDX-License-Identifier: Apache-2.0
//! Attach and detach.

use std::{collections::BTreeSet, sync::Arc};

use arca_proto::hello::Carrier;
use futures_util::{StreamExt as _, TryStreamExt as _, stream};

use super::{Engine, EventKind, detached};
use crate::{
    backend::{Addresses, Capabilities, vmnet},
    error::{Error, Result},
    model::{Endpoint, EndpointId, Kind, MacAddr, Network, Phase, Place, WorkloadId},
    names,
    store::Draft,
    validate::endpoint::{self, Wanted},
};

/// Endpoints taken down at a time.
const PARALLEL: usize = 16;

impl Engine {
    /// Checks an attachment without making it.
    ///
    /// # Errors
    /// As [`Engine::attach`].
    pub fn check_attachment(&self, wanted: &Wanted) -> Result<Arc<Network>> {
        let state = self.store.state();
        let network = state.find_network(&wanted.network)?;
        endpoint::check(network, &state, wanted)?;
        Ok(Arc::clone(network))
    }

    /// Makes an endpoint; answers when its address is confirmed and its port is up.
    ///
    /// # Errors
    /// Docker's refusals, or the step that failed; nothing remains then.
    pub async fn attach(self: &Arc<Self>, wanted: Wanted) -> Result<Arc<Endpoint>> {
        let engine = Arc::clone(self);
        detached(async move {
            let workload = wanted.workload.clone();
            let _beside = engine.workloads.shared(&workload).await;
            engine.attach_stored(wanted).await
        })
        .await
    }

    async fn attach_stored(&self, wanted: Wanted) -> Result<Arc<Endpoint>> {
        let id = EndpointId::random().map_err(Error::io("draw an endpoint id"))?;
        let macs: Vec<_> =
            (0..8).map(|_| MacAddr::random()).collect::<Result<_, _>>().map_err(Error::io("draw a MAC address"))?;
        let (network, endpoint) = self.store.update(move |draft| intent(draft, &wanted, id, &macs)).await?;
        let session = self.relay.session();
        let got = match self.backends.of(network.kind) {
            None => Ok(Addresses::default()),
            Some(backend) => backend.attach(&network, &endpoint).await,
        };
        let got = match got {
            Ok(got) => got,
            Err(error) => {
                // Once more, in order: a full set that was drawn up between the undo and here has it, and its link
                // number must not be given out while anybody does.
                self.take_down(&[&endpoint]).await?;
                return Err(error);
            }
        };
        let active = match self.commit(&endpoint.id, got).await {
            Ok(active) => active,
            Err(error) => {
                self.take_down(&[&endpoint]).await?;
                return Err(error);
            }
        };
        if let Err(source) = self.configure_machine_of(&active).await {
            self.take_down(&[&active]).await?;
            let network = network.name().to_owned();
            return Err(Error::Step { network, step: "default route", source: Box::new(source) });
        }
        if self.relay.session() != session {
            // arca-relayd was restarted under the attach: the link it opened may be gone.
            self.relay.kick();
        }
        self.retarget(&active.workload).await?;
        tracing::info!(endpoint_id = %active.id, network_id = %network.id, container_id = %active.workload,
            address = ?active.address_v4, "attached");
        self.tell(EventKind::Attached, &network, Some(&active.workload));
        Ok(active)
    }

    async fn commit(&self, id: &EndpointId, got: Addresses) -> Result<Arc<Endpoint>> {
        let id = id.clone();
        self.store
            .update(move |draft| {
                let edited = draft.edit_endpoint(&id, |endpoint| {
                    endpoint.phase = Phase::Active;
                    endpoint.address_v4 = got.v4;
                    endpoint.address_v6 = got.v6;
                });
                edited.ok_or_else(|| Error::Failed("the endpoint vanished while it was made".into()))
            })
            .await
    }

    async fn forget(&self, endpoints: &[&Endpoint]) -> Result<()> {
        let ids: Vec<_> = endpoints.iter().map(|endpoint| endpoint.id.clone()).collect();
        self.store
            .update(move |draft| {
                ids.iter().for_each(|id| draft.drop_endpoint(id));
                Ok(())
            })
            .await
    }

    /// Takes endpoints of one workload down, whatever their phase; failures of peers are logged and left to
    /// reconciliation.
    pub(super) async fn take_down(&self, endpoints: &[&Endpoint]) -> Result<()> {
        let Some(first) = endpoints.first() else { return Ok(()) };
        let ids: Vec<_> = endpoints.iter().map(|endpoint| endpoint.id.clone()).collect();
        let generation = self
            .store
            .update(move |draft| {
                let generation = draft.next_generation();
                for id in &ids {
                    draft.edit_endpoint(id, |endpoint| {
                        endpoint.phase = Phase::Removing;
                        endpoint.generation = generation;
                    });
                }
                Ok::<_, Error>(generation)
            })
            .await?;
        // Ports first: a load-balancer row must not point at an endpoint that is gone.
        self.retarget(&first.workload).await?;
        let state = self.store.state();
        let removals = endpoints.iter().map(|endpoint| async {
            let network = state.networks.get(&endpoint.network);
            let Some(backend) = network.and_then(|network| self.backends.of(network.kind)) else { return false };
            let failures = backend.detach(endpoint, generation).await;
            for error in &failures {
                tracing::debug!(endpoint_id = %endpoint.id, %error, "part of an endpoint was not taken down");
            }
            !failures.is_empty()
        });
        let in_part = futures_util::future::join_all(removals).await.contains(&true);
        self.forget(endpoints).await?;
        if in_part {
            self.kick();
        }
        if let Err(error) = self.configure_machine_of(first).await {
            tracing::warn!(endpoint_id = %first.id, %error, "default route was not moved after a detach");
        }
        // The default bridge that was kept by its containers follows the configuration once the last has gone.
        let wanted = self.settings.default_kind.kind();
        let kept = |endpoint: &&Endpoint| {
            let network = state.networks.get(&endpoint.network);
            network.is_some_and(|network| network.predefined && network.name() == "bridge" && network.kind != wanted)
        };
        if endpoints.iter().any(kept)
            && let Err(error) = self.follow_config().await
        {
            tracing::warn!(%error, "the default bridge network does not follow the configuration yet");
        }
        Ok(())
    }

    /// Takes one endpoint away.
    ///
    /// # Errors
    /// Docker's refusals.
    pub async fn detach(self: &Arc<Self>, network: String, workload: WorkloadId) -> Result<Arc<Endpoint>> {
        let engine = Arc::clone(self);
        detached(async move {
            let _alone = engine.workloads.alone(&workload).await;
            let state = engine.store.state();
            let network = state.find_network(&network)?;
            if network.kind == Kind::Host {
                return Err(Error::Invalid(
                    "cannot disconnect container from host network - container was created in host network mode".into(),
                ));
            }
            if !Capabilities::of(network.kind).hot_attach {
                return Err(Error::Unsupported(vmnet::NO_DYNAMIC.into()));
            }
            let endpoint = state.endpoint_on(&network.id, &workload).ok_or_else(|| {
                Error::Failed(format!("container {workload} is not connected to network {}", network.name()))
            })?;
            engine.remove(&[endpoint]).await?;
            Ok(Arc::clone(endpoint))
        })
        .await
    }

    async fn remove(&self, endpoints: &[&Endpoint]) -> Result<()> {
        self.take_down(endpoints).await?;
        let state = self.store.state();
        for endpoint in endpoints {
            tracing::info!(endpoint_id = %endpoint.id, network_id = %endpoint.network,
                container_id = %endpoint.workload, "detached");
            if let Some(network) = state.networks.get(&endpoint.network) {
                self.tell(EventKind::Detached, network, Some(&endpoint.workload));
            }
        }
        Ok(())
    }

    /// Takes everything of a workload away: published ports, then endpoints.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn detach_workload(self: &Arc<Self>, workload: WorkloadId) -> Result<Vec<Arc<Endpoint>>> {
        let engine = Arc::clone(self);
        detached(async move {
            let _alone = engine.workloads.alone(&workload).await;
            engine.unpublish_workload(&workload).await?;
            let endpoints: Vec<_> = engine.store.state().endpoints_of_workload(&workload).cloned().collect();
            let all: Vec<&Endpoint> = endpoints.iter().map(|endpoint| &**endpoint).collect();
            engine.remove(&all).await?;
            Ok(endpoints)
        })
        .await
    }

    /// Gives a workload's endpoints a new name.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn set_names(self: &Arc<Self>, workload: WorkloadId, name: String) -> Result<()> {
        let engine = Arc::clone(self);
        detached(async move {
            let _alone = engine.workloads.alone(&workload).await;
            let renamed = engine
                .store
                .update(move |draft| {
                    let ids: Vec<_> = draft.endpoints_of_workload(&workload).map(|e| e.id.clone()).collect();
                    let mut renamed = Vec::new();
                    for id in ids {
                        let generation = draft.next_generation();
                        renamed.extend(draft.edit_endpoint(&id, |endpoint| {
                            endpoint.workload_name.clone_from(&name);
                            endpoint.generation = generation;
                        }));
                    }
                    Ok::<_, Error>(renamed)
                })
                .await?;
            let state = engine.store.state();
            for endpoint in renamed {
                let Some(network) = state.networks.get(&endpoint.network) else { continue };
                if let Some(backend) = engine.backends.of(network.kind) {
                    // It is on disk: a helper that could not be told is told with the next full set.
                    if let Err(error) = backend.rename(network, &endpoint).await {
                        tracing::warn!(endpoint_id = %endpoint.id, %error, "a new name is not answered yet");
                        engine.kick();
                    }
                }
            }
            Ok(())
        })
        .await
    }

    /// Removes endpoints of workloads that are not in `keep`.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn sync_attachments(self: &Arc<Self>, keep: BTreeSet<WorkloadId>) -> Result<Vec<Arc<Endpoint>>> {
        let state = self.store.state();
        let of_endpoints = state.endpoints.values().map(|endpoint| &endpoint.workload);
        let of_ports = state.publications.values().map(|publication| &publication.workload);
        let stale: BTreeSet<_> = of_endpoints.chain(of_ports).filter(|w| !keep.contains(*w)).cloned().collect();
        let removed = stream::iter(stale).map(|workload| self.detach_workload(workload)).buffer_unordered(PARALLEL);
        Ok(removed.try_collect::<Vec<_>>().await?.into_iter().flatten().collect())
    }
}

/// Checks, allocates and stores an endpoint that is about to be made.
fn intent(
    draft: &mut Draft,
    wanted: &Wanted,
    id: EndpointId,
    macs: &[MacAddr],
) -> Result<(Arc<Network>, Arc<Endpoint>)> {
    let network = Arc::clone(draft.find_network(&wanted.network)?);
    let checked = endpoint::check(&network, draft, wanted)?;
    // OVN allocates for its networks; for the native switch it is done here, in the change that stores it.
    let own = network.kind == Kind::Vmnet;
    let address_v4 = if own { vmnet::address::choose_v4(&network, draft, checked.v4)? } else { None };
    let address_v6 = if own { vmnet::address::choose_v6(&network, draft, checked.v6)? } else { None };
    let fitting = address_v4
        .and_then(|net| vmnet::address::mac_for(net.addr()))
        .or_else(|| address_v6.and_then(|net| vmnet::address::mac_for_v6(net.addr())));
    let macs: Vec<_> = fitting.into_iter().chain(macs.iter().copied()).collect();
    let place = match network.kind {
        Kind::Ovs | Kind::Vmnet => Some(place(draft, wanted, &network, &checked, &macs)?),
        Kind::Host | Kind::None | Kind::Config => None,
    };
    let generation = draft.next_generation();
    let endpoint = Endpoint {
        id,
        network: network.id.clone(),
        workload: wanted.workload.clone(),
        workload_name: wanted.workload_name.clone(),
        hostname: wanted.hostname.clone(),
        aliases: wanted.aliases.clone(),
        place,
        static_v4: checked.v4,
        static_v6: checked.v6,
        pinned: false,
        address_v4,
        address_v6,
        gateway_priority: wanted.gateway_priority,
        extras: wanted.extras.clone(),
        phase: Phase::Pending,
        generation,
    };
    draft.put_endpoint(endpoint.clone());
    Ok((network, Arc::new(endpoint)))
}

fn place(
    draft: &Draft,
    wanted: &Wanted,
    network: &Network,
    checked: &endpoint::Checked,
    macs: &[MacAddr],
) -> Result<Place> {
    let Some((machine, address)) = wanted.machine.clone() else {
        return Err(Error::Invalid("machine id and address are missing".into()));
    };
    let link = draft.free_link().ok_or_else(|| Error::Failed("all 9999 link numbers are in use".into()))?;
    let held = |mac: &MacAddr| draft.endpoints.values().filter_map(|e| e.place.as_ref()).any(|p| p.mac == *mac);
    let mac = checked.mac.or_else(|| macs.iter().copied().find(|mac| !held(mac)));
    let mac = mac.ok_or_else(|| Error::Failed("no unused MAC address was drawn".into()))?;
    let interface = match &checked.interface {
        Some(name) if names::interface_is_taken(draft, &machine, name) => {
            return Err(Error::Forbidden(format!("interface name {name} is already in use")));
        }
        Some(name) => name.clone(),
        None => names::next_interface(draft, &machine, network),
    };
    Ok(Place { machine, address, link, interface, mac, carrier: Carrier::default() })
}
