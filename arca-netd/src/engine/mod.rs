// SPDX-License-Identifier: Apache-2.0
//! What arca-netd does, without RPC: networks here, endpoints in [`endpoints`], default routes in [`routes`],
//! published ports in [`crate::publish`].
//!
//! Every change is stored before it is acted on. Whatever is half done when a client goes away or this process dies
//! is finished or taken back: requests run in tasks of their own, and [`Engine::recover`] picks up what a previous
//! life left.

mod endpoints;
mod locks;
mod routes;

use std::{
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::broadcast;

use crate::{
    backend::Backends,
    error::{Error, Result},
    helper::{Helper, uplink::UplinkV6},
    hostnet,
    model::{Kind, MachineId, Network, NetworkId, Phase, Spec, WorkloadId},
    peers::{agent::Agent, relay::Relay},
    pools::{self, AddressPool},
    predefined,
    store::{State, Store},
    validate::create::{self, Context, DefaultKind},
};
use locks::Locks;

/// What happened, for `docker events`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event {
    /// What.
    pub kind: EventKind,
    /// Network.
    pub network: NetworkId,
    /// Its name.
    pub network_name: String,
    /// Its driver.
    pub driver: String,
    /// Container, for attached and detached.
    pub workload: Option<WorkloadId>,
    /// Nanoseconds since the Unix epoch.
    pub time_ns: i64,
}

/// Kinds of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventKind {
    /// A network was made.
    Created,
    /// A network is gone.
    Removed,
    /// An endpoint is up.
    Attached,
    /// An endpoint is gone.
    Detached,
}

/// What networks are made with.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where subnets nobody named come from.
    pub pools: Vec<AddressPool>,
    /// What "" and "bridge" mean.
    pub default_kind: DefaultKind,
}

impl Settings {
    /// With these pools; without any, Docker's.
    #[must_use]
    pub fn new(default_kind: DefaultKind, pools: Vec<AddressPool>) -> Self {
        Self { pools: if pools.is_empty() { pools::docker_defaults() } else { pools }, default_kind }
    }
}

/// Whom the engine works with.
#[derive(Clone, Debug)]
pub struct Peers {
    /// The helper's agent.
    pub agent: Arc<Agent>,
    /// arca-relayd.
    pub relay: Arc<Relay>,
    /// The helper machine.
    pub helper: Arc<Helper>,
}

/// The engine.
pub struct Engine {
    pub(crate) store: Store,
    pub(crate) backends: Backends,
    pub(crate) agent: Arc<Agent>,
    pub(crate) relay: Arc<Relay>,
    pub(crate) helper: Arc<Helper>,
    settings: Settings,
    events: broadcast::Sender<Event>,
    /// Attaches of one workload go side by side, everything else about it alone.
    workloads: Locks<WorkloadId>,
    /// One default route at a time.
    machines: Locks<MachineId>,
}

/// Nanoseconds since the Unix epoch.
#[must_use]
pub fn now_ns() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

impl Engine {
    /// The host's end of the interface that a machine for this workload has from its boot on, if it has one on this network;
    /// "" where it has none.
    pub(crate) fn wire(&self, network: &Network, workload: &WorkloadId) -> String {
        if network.kind == Kind::Vmnet { self.backends.vmnet.wire(network, workload) } else { String::new() }
    }

    /// Makes the engine and its predefined networks.
    ///
    /// # Errors
    /// If those cannot be stored.
    pub async fn new(store: Store, backends: Backends, peers: Peers, settings: Settings) -> Result<Arc<Self>> {
        let Peers { agent, relay, helper } = peers;
        let engine = Arc::new(Self {
            store,
            backends,
            agent,
            relay,
            helper,
            settings,
            events: broadcast::Sender::new(1024),
            workloads: Locks::default(),
            machines: Locks::default(),
        });
        let context = engine.context(Vec::new(), Vec::new())?;
        engine.store.update(move |draft| predefined::ensure(draft, &context)).await?;
        Ok(engine)
    }

    fn context(&self, host: Vec<Ipv4Net>, host_v6: Vec<Ipv6Net>) -> Result<Context> {
        let uplink = self.helper.uplink();
        Ok(Context {
            id: NetworkId::random().map_err(Error::io("draw a network id"))?,
            now_ns: now_ns(),
            unique_local: self.helper.unique_local(),
            pools: self.settings.pools.clone(),
            host,
            host_v6,
            uplink: uplink.net(),
            uplink_v6: uplink.v6().map(UplinkV6::net),
            ipv6: hostnet::has_ipv6(),
            routes: self.helper.routes(),
            default_kind: self.settings.default_kind,
        })
    }

    /// What is wanted now.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.store.state()
    }

    /// Asks for a comparison with both peers soon.
    pub fn kick(&self) {
        self.agent.kick();
        self.relay.kick();
    }

    /// Whether the helper's agent answers and was given everything.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.agent.is_ready()
    }

    /// Events from now on.
    #[must_use]
    pub fn subscribe(&self) -> broadcast::Receiver<Event> {
        self.events.subscribe()
    }

    /// Nothing else about this workload goes on while the guard lives.
    pub(crate) async fn workload_alone(&self, workload: &WorkloadId) -> tokio::sync::RwLockWriteGuard<'_, ()> {
        self.workloads.alone(workload).await
    }

    fn tell(&self, kind: EventKind, network: &Network, workload: Option<&WorkloadId>) {
        let event = Event {
            kind,
            network: network.id.clone(),
            network_name: network.name().to_owned(),
            driver: network.spec.driver.clone(),
            workload: workload.cloned(),
            time_ns: now_ns(),
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }

    /// Makes a network.
    ///
    /// # Errors
    /// Docker's refusals; what OVN refuses is taken back.
    pub async fn create_network(self: &Arc<Self>, spec: Spec) -> Result<NetworkId> {
        let engine = Arc::clone(self);
        detached(async move {
            let context = engine.context(hostnet::taken(None), hostnet::taken_v6(None))?;
            let network = engine
                .store
                .update(move |draft| {
                    let mut network = create::network(spec, draft, &context)?;
                    network.generation = draft.next_generation();
                    draft.put_network(network.clone());
                    Ok::<_, Error>(network)
                })
                .await?;
            if let Some(backend) = engine.backends.of(network.kind)
                && let Err(error) = backend.put_network(&network).await
            {
                engine.drop_network(&network).await?;
                return Err(error);
            }
            if let Err(error) = engine.helper.settle_host().await {
                engine.drop_network(&network).await?;
                return Err(error);
            }
            tracing::info!(network_id = %network.id, name = network.name(), "network created");
            engine.tell(EventKind::Created, &network, None);
            Ok(network.id)
        })
        .await
    }

    /// Removes a network.
    ///
    /// # Errors
    /// 403 for predefined networks and those with endpoints, 404.
    pub async fn remove_network(self: &Arc<Self>, wanted: String) -> Result<Arc<Network>> {
        let engine = Arc::clone(self);
        detached(async move {
            let network = engine
                .store
                .update(move |draft| {
                    let network = Arc::clone(draft.find_network(&wanted)?);
                    may_go(&network, draft)?;
                    draft.drop_network(&network.id);
                    Ok::<_, Error>(network)
                })
                .await?;
            engine.withdraw(&network).await?;
            tracing::info!(network_id = %network.id, name = network.name(), "network removed");
            engine.tell(EventKind::Removed, &network, None);
            Ok(network)
        })
        .await
    }

    async fn drop_network(&self, network: &Network) -> Result<()> {
        let id = network.id.clone();
        self.store
            .update(move |draft| {
                draft.drop_network(&id);
                Ok::<_, Error>(())
            })
            .await?;
        self.withdraw(network).await
    }

    async fn withdraw(&self, network: &Network) -> Result<()> {
        let generation = self.store.update(|draft| Ok::<_, Error>(draft.next_generation())).await?;
        if let Some(backend) = self.backends.of(network.kind)
            && let Err(error) = backend.remove_network(network, generation).await
        {
            tracing::warn!(network_id = %network.id, %error, "network could not be withdrawn; the next full sync does it");
            self.agent.kick();
        }
        if let Err(error) = self.helper.settle_host().await {
            tracing::warn!(network_id = %network.id, %error, "the host's routes were not changed; the next change does it");
        }
        Ok(())
    }

    /// Lets the default bridge have the configured backend, unless containers are on it: theirs cannot change.
    ///
    /// # Errors
    /// If the database fails; what a backend does not take is logged and done at the next start.
    pub async fn follow_config(&self) -> Result<()> {
        let context = self.context(hostnet::taken(None), Vec::new())?;
        let moved = self.store.update(move |draft| predefined::follow(draft, &context)).await?;
        let Some((before, after)) = moved else { return Ok(()) };
        tracing::info!(
            from = before.backend(),
            to = after.backend(),
            "the default bridge network follows the configuration"
        );
        self.withdraw(&before).await?;
        if let Some(backend) = self.backends.of(after.kind)
            && let Err(error) = backend.put_network(&after).await
        {
            tracing::warn!(%error, "the default bridge network could not be made");
        }
        Ok(())
    }

    /// Ends the helper machine and undoes the host changes; nothing starts it again in this process's life.
    ///
    /// # Errors
    /// While endpoints exist, or what could not be undone.
    pub async fn stop_helper(self: &Arc<Self>) -> Result<()> {
        let in_use = self.store.state().endpoints.values().filter(|endpoint| endpoint.place.is_some()).count();
        if in_use > 0 {
            return Err(Error::Busy(format!(
                "the helper machine carries {in_use} endpoints; stop their containers first"
            )));
        }
        let engine = Arc::clone(self);
        detached(async move {
            let native = engine.backends.vmnet.down().await;
            engine.helper.stop().await.and(native)
        })
        .await
    }

    /// Finishes what a previous life left half done.
    ///
    /// # Errors
    /// If the database fails.
    pub async fn recover(&self) -> Result<()> {
        let state = self.store.state();
        for endpoint in state.endpoints.values().filter(|endpoint| endpoint.phase != Phase::Active) {
            tracing::info!(endpoint_id = %endpoint.id, phase = ?endpoint.phase, "taking back an unfinished endpoint");
            self.take_down(&[endpoint]).await?;
        }
        let stale = state.publications.values().filter(|publication| !publication.active);
        for publication in stale {
            self.withdraw_publication(publication).await?;
        }
        Ok(())
    }
}

fn may_go(network: &Network, state: &State) -> Result<()> {
    if network.predefined {
        return Err(Error::Forbidden(format!("{} is a pre-defined network and cannot be removed", network.name())));
    }
    let refuse = |why: String| Err(Error::Forbidden(format!("error while removing network: {why}")));
    if network.kind == Kind::Config && state.networks.values().any(|other| other.spec.config_from == network.name()) {
        return refuse(format!("configuration network \"{}\" is in use", network.name()));
    }
    let endpoints = state.endpoints_of(&network.id);
    let list: Vec<_> = endpoints.map(|e| format!("name:\"{}\" id:\"{}\"", e.workload_name, e.id.short())).collect();
    if list.is_empty() {
        return Ok(());
    }
    refuse(format!("network {} has active endpoints ({})", network.name(), list.join(", ")))
}

/// Runs a request in a task of its own: a client that goes away does not leave it half done.
pub(crate) async fn detached<T: Send + 'static>(work: impl Future<Output = Result<T>> + Send + 'static) -> Result<T> {
    match tokio::spawn(work).await {
        Ok(result) => result,
        Err(error) => Err(Error::Failed(format!("the request ended abnormally: {error}"))),
    }
}
