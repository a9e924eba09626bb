// SPDX-License-Identifier: Apache-2.0
//! Published ports: a host listener of arca-relayd, then a load-balancer row of OVN; all of a workload's or none.
//!
//! Error texts are Docker's from `driver failed programming external connectivity on endpoint NAME (ID): ` on; what
//! stands before it (`failed to set up container networking: `) is arca-api's to add.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
};

use crate::{
    backend::{Capabilities, vmnet},
    engine::{Engine, detached},
    error::{Error, Result},
    hostnet,
    model::{Endpoint, Listener, Protocol, Publication, PublicationId, WorkloadId},
    names,
    peers::relay::BindError,
    reconcile::diff::Bound,
    store::{Draft, State},
    validate::options::HOST_BINDING,
};

/// Docker's ephemeral range (Linux: net.ipv4.ip_local_port_range).
const EPHEMERAL: (u16, u16) = (32_768, 60_999);
/// Ports at the uplink address for what cannot have its host port's number.
const OTHER_VIP: (u16, u16) = (20_000, 32_767);

/// One port to publish.
#[derive(Clone, Debug)]
pub struct Binding {
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the container.
    pub container_port: u16,
    /// Host address; none: both families.
    pub host_ip: Option<IpAddr>,
    /// First and last port of the range to take one from; none: ephemeral.
    pub host_ports: Option<(u16, u16)>,
}

impl Binding {
    fn candidates(&self) -> impl Iterator<Item = u16> + use<> {
        let (first, last) = self.host_ports.unwrap_or(EPHEMERAL);
        // Ephemeral ports start anywhere, so that one just given back is not given out again at once.
        let skip = if self.host_ports.is_some() { 0 } else { entropy() % (u32::from(last) - u32::from(first) + 1) };
        let skip = u16::try_from(skip).unwrap_or(0);
        (first..=last).skip(skip.into()).chain((first..=last).take(skip.into()))
    }

    fn is_single(&self) -> bool {
        self.host_ports.is_some_and(|(first, last)| first == last)
    }
}

fn entropy() -> u32 {
    use std::hash::{BuildHasher as _, Hasher as _};
    let hash = std::hash::RandomState::new().build_hasher().finish();
    u32::try_from(hash >> 32).unwrap_or(0)
}

impl Engine {
    /// Publishes all ports of a workload or none. Ports it had before are given back first.
    ///
    /// # Errors
    /// Docker's texts.
    pub async fn publish(
        self: &Arc<Self>,
        workload: WorkloadId,
        bindings: Vec<Binding>,
    ) -> Result<Vec<Arc<Publication>>> {
        let engine = Arc::clone(self);
        detached(async move {
            let _alone = engine.workload_alone(&workload).await;
            engine.unpublish_workload(&workload).await?;
            let state = engine.state();
            let Some(endpoint) = carrier(&state, &workload)? else { return Ok(Vec::new()) };
            let able = state.kind_of(&endpoint).is_none_or(|kind| Capabilities::of(kind).port_mapping);
            if !able && !bindings.is_empty() {
                return Err(Error::Unsupported(vmnet::NO_PORTS.into()));
            }
            let mut done = Vec::new();
            for binding in &bindings {
                match engine.publish_one(&endpoint, binding).await {
                    Ok(publication) => done.push(publication),
                    Err(error) => {
                        for publication in &done {
                            engine.withdraw_publication(publication).await?;
                        }
                        return Err(wrapped(&endpoint, &error));
                    }
                }
            }
            let active = engine.activate(done).await?;
            if let Err(error) = engine.helper.settle_host().await {
                engine.unpublish_workload(&workload).await?;
                return Err(wrapped(&endpoint, &error));
            }
            Ok(active)
        })
        .await
    }

    async fn publish_one(&self, endpoint: &Arc<Endpoint>, binding: &Binding) -> Result<Arc<Publication>> {
        let mut tried = Vec::new();
        loop {
            let (wanted, owner, skip) = (binding.clone(), Arc::clone(endpoint), tried.clone());
            let publication = self.store.update(move |draft| reserve(draft, &owner, &wanted, &skip)).await?;
            match self.bind(&publication).await {
                Ok(()) => {}
                Err((_, BindError::Taken)) if !binding.is_single() => {
                    tried.extend(publication.listeners.iter().find(|l| l.is_bound()).map(|l| l.host_port));
                    self.withdraw_publication(&publication).await?;
                    continue;
                }
                Err((listener, why)) => {
                    self.withdraw_publication(&publication).await?;
                    return Err(refusal(endpoint, &publication, &listener, why));
                }
            }
            if let Err(error) = self.backends.publishing().put_port(&publication).await {
                self.withdraw_publication(&publication).await?;
                return Err(error);
            }
            return Ok(publication);
        }
    }

    async fn bind(&self, publication: &Publication) -> Result<(), (Listener, BindError)> {
        let (state, helper) = (self.state(), self.relay.carries_clients());
        for listener in publication.listeners.iter().filter(|listener| listener.is_bound()) {
            let bound = Bound::of(publication, listener, &state, helper.as_ref());
            self.relay.publish(&listener.id, &bound).await.map_err(|error| (listener.clone(), error))?;
        }
        Ok(())
    }

    async fn activate(&self, publications: Vec<Arc<Publication>>) -> Result<Vec<Arc<Publication>>> {
        self.store
            .update(move |draft| {
                let mut active = Vec::new();
                for publication in publications {
                    // As it is now: its endpoint may have changed.
                    let now = draft.publications.get(&publication.id).unwrap_or(&publication);
                    let row = Publication { active: true, ..Publication::clone(now) };
                    active.push(Arc::new(row.clone()));
                    draft.put_publication(row);
                }
                Ok(active)
            })
            .await
    }

    /// Gives a published port back; failures of peers are logged and left to reconciliation.
    pub(crate) async fn withdraw_publication(&self, publication: &Publication) -> Result<()> {
        let id = publication.id.clone();
        let generation = self
            .store
            .update(move |draft| {
                draft.drop_publication(&id);
                Ok::<_, Error>(draft.next_generation())
            })
            .await?;
        if let Err(error) = self.backends.publishing().remove_port(publication, generation).await {
            tracing::warn!(id = ?publication.id, %error, "load-balancer row was not removed; the next full sync does it");
            self.agent.kick();
        }
        if let Err(error) = self.helper.settle_host().await {
            tracing::warn!(id = ?publication.id, %error, "the host's rules were not changed; the next change does it");
        }
        for listener in publication.listeners.iter().filter(|listener| listener.is_bound()) {
            if let Err(error) = self.relay.unpublish(listener.id.as_str()).await {
                tracing::warn!(port = listener.host_port, %error, "host port was not given back");
                self.relay.kick();
            }
        }
        Ok(())
    }

    /// Gives all published ports of a workload back.
    pub(crate) async fn unpublish_workload(&self, workload: &WorkloadId) -> Result<()> {
        let state = self.state();
        for publication in state.publications.values().filter(|publication| publication.workload == *workload) {
            self.withdraw_publication(publication).await?;
        }
        Ok(())
    }

    /// Lets a workload's published ports lead to the endpoint that carries its default route now. Without one they are
    /// given back, as Docker does; arca-api publishes them again at the next connect.
    pub(crate) async fn retarget(&self, workload: &WorkloadId) -> Result<()> {
        let ports = |state: &State| state.publications.values().any(|p| p.workload == *workload);
        if !ports(&self.state()) {
            return Ok(());
        }
        let state = self.state();
        if names::default_route(&state, state.endpoints_of_workload(workload)).is_none() {
            return self.unpublish_workload(workload).await;
        }
        let workload = workload.clone();
        let moved = self
            .store
            .update(move |draft| {
                let target = names::default_route(draft, draft.endpoints_of_workload(&workload)).map(|e| e.id.clone());
                let stale = draft.publications.values().filter(|p| p.workload == workload && p.endpoint != target);
                let stale: Vec<_> = stale.map(|publication| Publication::clone(publication)).collect();
                let mut moved = Vec::new();
                for mut publication in stale {
                    publication.endpoint.clone_from(&target);
                    publication.generation = draft.next_generation();
                    moved.push(publication.clone());
                    draft.put_publication(publication);
                }
                Ok::<_, Error>(moved)
            })
            .await?;
        if !moved.is_empty() {
            self.helper.settle_host().await?;
            // The new endpoint may have another address family: what the listeners lead to is compared.
            self.relay.kick();
        }
        for publication in moved {
            if let Err(error) = self.backends.publishing().put_port(&publication).await {
                tracing::warn!(id = ?publication.id, %error, "published port was not moved; the next full sync does it");
                self.agent.kick();
            }
        }
        Ok(())
    }
}

/// The endpoint that ports are published through. None: host and none networks and internal ones publish nothing.
fn carrier(state: &State, workload: &WorkloadId) -> Result<Option<Arc<Endpoint>>> {
    if let Some(endpoint) = names::default_route(state, state.endpoints_of_workload(workload)) {
        return Ok(Some(Arc::clone(endpoint)));
    }
    if state.endpoints_of_workload(workload).next().is_some() {
        return Ok(None);
    }
    Err(Error::NotFound(format!("container {workload} is attached to no network")))
}

/// Chooses host port and uplink port, and stores the publication as not yet acknowledged.
fn reserve(draft: &mut Draft, endpoint: &Endpoint, binding: &Binding, tried: &[u16]) -> Result<Arc<Publication>> {
    let ips = host_ips(draft, endpoint, binding);
    let network = draft.networks.get(&endpoint.network);
    // Reached by the endpoint's own address, which has no ports of the host.
    let is_routed = |ip: &IpAddr| network.is_some_and(|network| network.reach(ip.is_ipv4()).open);
    let bound = || ips.iter().copied().filter(|ip| !is_routed(ip));
    let clash = |port: u16| bound().find(|ip| is_ours(draft, binding.protocol, *ip, port));
    let free = binding.candidates().find(|port| !tried.contains(port) && clash(*port).is_none());
    let Some(host_port) = free else {
        let first = binding.host_ports.map_or(0, |(first, _)| first);
        return Err(Error::Failed(match clash(first) {
            Some(ip) if binding.is_single() => {
                // Whoever holds every address is told as such.
                let every = match ip {
                    IpAddr::V4(_) => IpAddr::from([0; 4]),
                    IpAddr::V6(_) => IpAddr::from([0; 16]),
                };
                let held = draft.publications.values().filter(|held| held.protocol == binding.protocol);
                let by_all = held.flat_map(|held| &held.listeners).any(|l| l.host_port == first && l.host_ip == every);
                let ip = if by_all { every } else { ip };
                format!("Bind for {ip}:{first} failed: port is already allocated")
            }
            _ => "all ports are allocated".into(),
        }));
    };
    let vip_port = std::iter::once(host_port)
        .chain(OTHER_VIP.0..=OTHER_VIP.1)
        .find(|port| draft.vip_port_is_free(binding.protocol, *port))
        .ok_or_else(|| Error::Failed("all ports of the uplink address are in use".into()))?;
    let draw = || PublicationId::random().map_err(Error::io("draw an id"));
    let listener = |ip: &IpAddr| {
        let (host_ip, host_port) = match ip {
            IpAddr::V4(_) if is_routed(ip) => (Ipv4Addr::UNSPECIFIED.into(), 0),
            IpAddr::V6(_) if is_routed(ip) => (Ipv6Addr::UNSPECIFIED.into(), 0),
            ip => (*ip, host_port),
        };
        Ok(Listener { id: draw()?, host_ip, host_port })
    };
    let listeners = ips.iter().map(listener).collect::<Result<Vec<_>>>()?;
    let publication = Publication {
        id: draw()?,
        workload: endpoint.workload.clone(),
        endpoint: Some(endpoint.id.clone()),
        protocol: binding.protocol,
        container_port: binding.container_port,
        vip_port,
        listeners,
        generation: draft.next_generation(),
        active: false,
    };
    draft.put_publication(publication.clone());
    Ok(Arc::new(publication))
}

/// Host addresses to bind. A container without IPv4 has none of that family: nothing leads from IPv4 to IPv6, as with
/// Docker's own proxy.
fn host_ips(state: &State, endpoint: &Endpoint, binding: &Binding) -> Vec<IpAddr> {
    let mut ips = wanted_ips(state, endpoint, binding);
    ips.retain(|ip| ip.is_ipv6() || endpoint.address_v4.is_some());
    ips
}

fn wanted_ips(state: &State, endpoint: &Endpoint, binding: &Binding) -> Vec<IpAddr> {
    if let Some(ip) = binding.host_ip {
        return vec![ip];
    }
    let network = state.networks.get(&endpoint.network);
    let bound = network.and_then(|network| network.spec.options.get(HOST_BINDING)?.parse::<IpAddr>().ok());
    match bound.filter(|ip| !ip.is_unspecified()) {
        Some(ip) => vec![ip],
        None if !hostnet::has_ipv6() => vec![Ipv4Addr::UNSPECIFIED.into()],
        None => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
    }
}

/// Whether a container holds this port at this address or at all addresses of its family.
fn is_ours(state: &State, protocol: Protocol, ip: IpAddr, port: u16) -> bool {
    let meets =
        |held: IpAddr| held == ip || (held.is_ipv4() == ip.is_ipv4() && (held.is_unspecified() || ip.is_unspecified()));
    let of_protocol = state.publications.values().filter(|publication| publication.protocol == protocol);
    of_protocol.flat_map(|p| &p.listeners).any(|listener| listener.host_port == port && meets(listener.host_ip))
}

fn refusal(endpoint: &Endpoint, publication: &Publication, listener: &Listener, why: BindError) -> Error {
    let why = match why {
        BindError::Taken => "address already in use",
        BindError::NotLocal => "cannot assign requested address",
        BindError::Other(error) => return error,
    };
    let host = match listener.host_ip {
        IpAddr::V4(ip) => format!("{ip}:{}", listener.host_port),
        IpAddr::V6(ip) => format!("[{ip}]:{}", listener.host_port),
    };
    let container = endpoint.address_v4.map_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED), |net| net.addr().into());
    let Publication { container_port, protocol, .. } = publication;
    Error::Failed(format!("failed to bind host port for {host}:{container}:{container_port}/{protocol}: {why}"))
}

fn wrapped(endpoint: &Endpoint, error: &Error) -> Error {
    let (name, id) = (&endpoint.workload_name, &endpoint.id);
    Error::Failed(format!("driver failed programming external connectivity on endpoint {name} ({id}): {error}"))
}
