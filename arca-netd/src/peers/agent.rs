// SPDX-License-Identifier: Apache-2.0
//! The helper's agent: what is declared there, and what it observes.
//!
//! [`Agent::run`] is one task: it waits for the helper machine, configures, watches, makes a full sync, then takes
//! observations until the watch stream ends, and starts again. Requests go beside it on the same channel; the gate
//! keeps a full sync (which removes what it was not told) and single changes apart.

use std::{collections::HashMap, sync::Arc, time::Duration};

use arca_proto::{
    dial,
    helper::v1::{self as proto, helper_client::HelperClient},
    ports,
};
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::{
    sync::{Notify, RwLock, watch},
    time::{Instant, timeout},
};
use tonic::transport::Channel;

use super::{backoff::Backoff, objects};
use crate::{
    error::{Error, Result},
    helper::{Helper, HelperUp},
    model::{Endpoint, EndpointId, Phase},
    store::Store,
};

type Client = HelperClient<Channel>;

/// A full sync repairs at least this often what no event told of.
const FULL_SYNC: Duration = Duration::from_secs(60);
/// How long a request waits for a helper that is starting.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long the agent may be away before the helper machine is started anew.
const LOST: Duration = Duration::from_secs(15);
/// A machine that hangs is noticed within twice this.
const PULSE: Duration = Duration::from_secs(5);
/// How long after an observation addresses are compared.
const SETTLE: Duration = Duration::from_millis(200);
/// How long a full sync may take; a thousand ports take about six seconds.
const SYNC: Duration = Duration::from_secs(120);
const WHO: &str = "arca-helper-agent";

/// What the agent last said of each endpoint.
pub type Observed = HashMap<String, proto::Observation>;

/// Handle to the agent.
#[derive(Debug)]
pub struct Agent {
    helper: Arc<Helper>,
    store: Store,
    client: watch::Sender<Option<Client>>,
    observed: watch::Sender<Observed>,
    gate: RwLock<()>,
    kick: Notify,
}

impl Agent {
    /// A handle; nothing happens before [`Agent::run`].
    #[must_use]
    pub fn new(helper: Arc<Helper>, store: Store) -> Self {
        Self {
            helper,
            store,
            client: watch::Sender::new(None),
            observed: watch::Sender::new(Observed::new()),
            gate: RwLock::new(()),
            kick: Notify::new(),
        }
    }

    /// An OVN network is about to be used: the helper machine starts if it does not run.
    pub fn need_helper(&self) {
        self.helper.need();
    }

    /// Asks for a full sync soon.
    pub fn kick(&self) {
        self.kick.notify_one();
    }

    /// Whether the agent answers and was given everything.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.client.borrow().is_some()
    }

    /// What the agent last said of an endpoint.
    #[must_use]
    pub fn observation(&self, id: &EndpointId) -> Option<proto::Observation> {
        self.observed.borrow().get(id.as_str()).cloned()
    }

    /// Keeps the connection and the helper's state. Ends only by being dropped.
    pub async fn run(&self) {
        let mut backoff = Backoff::default();
        let mut lost_since: Option<Instant> = None;
        let mut life = None;
        loop {
            let up = self.helper.wait_up().await;
            if life.replace(up.since()) != Some(up.since()) {
                // What was away was another machine.
                lost_since = None;
                if up.is_forgetful()
                    && let Err(error) = self.pin_all().await
                {
                    tracing::warn!(%error, "addresses in use are not stored as fixed ones");
                }
            }
            let ended = self.session(&up, &mut backoff, &mut lost_since).await;
            self.client.send_replace(None);
            let since = *lost_since.get_or_insert_with(Instant::now);
            let error = ended.err().map_or_else(|| "stream ended".to_owned(), |error| error.to_string());
            tracing::warn!(%error, "helper agent is away; reconnecting");
            if since.elapsed() > LOST {
                tracing::error!("helper agent has been away for too long; the helper machine is started anew");
                self.helper.restart();
                lost_since = None;
            }
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn session(&self, up: &HelperUp, backoff: &mut Backoff, lost: &mut Option<Instant>) -> Result<()> {
        let mut client = HelperClient::new(dial::watched_channel(&up.address, ports::HELPER, PULSE));
        // Watch first, then compare: what changes in between is seen.
        client.configure(up.configure.clone()).await.map_err(Error::peer(WHO, "be configured"))?;
        self.helper.configured(up);
        let mut stream =
            client.watch(proto::WatchRequest {}).await.map_err(Error::peer(WHO, "be watched"))?.into_inner();
        self.observed.send_modify(HashMap::clear);
        self.full_sync(&mut client).await?;
        tracing::info!(helper = %up.address, "helper agent is connected and in sync");
        backoff.reset();
        *lost = None;
        let mut next = Instant::now() + FULL_SYNC;
        // What the sync itself changed is compared as well.
        let mut settled = Some(Instant::now() + SETTLE);
        loop {
            tokio::select! {
                // Cancel-safe: tonic keeps a partly received message in the stream.
                message = stream.message() => match message.map_err(Error::peer(WHO, "be watched"))? {
                    Some(observation) => {
                        self.observe(observation);
                        // Others may be about to be told as well: they are repaired together.
                        settled = Some(Instant::now() + SETTLE);
                    }
                    None => return Ok(()),
                },
                // Cancel-safe: only a clock.
                () = tokio::time::sleep_until(settled.unwrap_or(next)), if settled.is_some() => {
                    settled = None;
                    self.repair().await?;
                }
                // Cancel-safe: a permit not taken stays.
                () = self.kick.notified() => self.full_sync(&mut client).await?,
                () = tokio::time::sleep_until(next) => {
                    self.full_sync(&mut client).await?;
                    next = Instant::now() + FULL_SYNC;
                }
            }
        }
    }

    /// The whole desired state. Nothing single is applied meanwhile: what is not in the snapshot would be removed.
    async fn full_sync(&self, client: &mut Client) -> Result<()> {
        let _alone = self.gate.write().await;
        let epoch = self.store.update(|draft| Ok::<_, Error>(draft.next_generation())).await?;
        let objects = objects::desired(&self.store.state());
        let count = objects.len();
        let item = |kind| proto::SyncItem { kind: Some(kind) };
        let items = std::iter::once(item(proto::sync_item::Kind::Epoch(epoch)))
            .chain(objects.into_iter().map(move |object| item(proto::sync_item::Kind::Object(object))))
            .chain(std::iter::once(item(proto::sync_item::Kind::End(proto::SyncEnd {}))));
        let items: Vec<_> = items.collect();
        let answer = timeout(SYNC, client.sync(tokio_stream::iter(items))).await;
        let answer = answer.map_err(|_| Error::Unavailable(format!("{WHO} did not finish a full sync")))?;
        let answer = answer.map_err(Error::peer(WHO, "take the full state"))?.into_inner();
        tracing::debug!(
            count,
            inserted = answer.rows_inserted,
            updated = answer.rows_updated,
            deleted = answer.rows_deleted,
            "full sync with the helper agent"
        );
        answer.observations.into_iter().for_each(|observation| self.observe_answer(observation));
        // Still behind the gate: a change stored meanwhile finds either no client and is in the next sync's snapshot,
        // or this one and is applied singly.
        self.client.send_replace(Some(client.clone()));
        Ok(())
    }

    /// The machine's database is empty: every address in use is declared as a fixed one from now on, so that OVN gives it to
    /// nobody else, not even for a moment.
    async fn pin_all(&self) -> Result<()> {
        let addressed = |endpoint: &Endpoint| endpoint.address_v4.is_some() || endpoint.address_v6.is_some();
        let loose =
            move |endpoint: &Endpoint| endpoint.phase == Phase::Active && !endpoint.pinned && addressed(endpoint);
        if !self.store.state().endpoints.values().any(|endpoint| loose(endpoint)) {
            return Ok(());
        }
        self.store
            .update(move |draft| {
                let ids: Vec<_> = draft.endpoints.values().filter(|e| loose(e)).map(|e| e.id.clone()).collect();
                for id in ids {
                    let generation = draft.next_generation();
                    draft.edit_endpoint(&id, |endpoint| {
                        endpoint.pinned = true;
                        endpoint.generation = generation;
                    });
                }
                Ok::<_, Error>(())
            })
            .await
    }

    /// OVN keeps allocated addresses in its database. If that was lost it has allocated anew, first come first served:
    /// endpoints whose address is not the one in use are then given theirs as a fixed one, all in one request, so that
    /// none of them stands in another's way.
    async fn repair(&self) -> Result<()> {
        let observed = self.observed.borrow().clone();
        let differs = move |endpoint: &Endpoint| {
            let seen = observed.get(endpoint.id.as_str());
            let v4 = seen.and_then(|seen| seen.address_v4.parse::<Ipv4Net>().ok());
            let v6 = seen.and_then(|seen| seen.address_v6.parse::<Ipv6Net>().ok());
            let other = endpoint.address_v4.zip(v4).is_some_and(|(ours, theirs)| ours != theirs)
                || endpoint.address_v6.zip(v6).is_some_and(|(ours, theirs)| ours != theirs);
            endpoint.phase == Phase::Active && !endpoint.pinned && other
        };
        if !self.store.state().endpoints.values().any(|endpoint| differs(endpoint)) {
            return Ok(());
        }
        let (put, remove): (Vec<_>, Vec<_>) = self
            .store
            .update(move |draft| {
                let ids: Vec<_> = draft.endpoints.values().filter(|e| differs(e)).map(|e| e.id.clone()).collect();
                let mut changes = Vec::new();
                for id in ids {
                    let (gone, back) = (draft.next_generation(), draft.next_generation());
                    let pinned = draft.edit_endpoint(&id, |endpoint| {
                        endpoint.pinned = true;
                        endpoint.generation = back;
                    });
                    let key = objects::key(proto::ObjectKind::Endpoint, id.as_str(), gone);
                    changes.extend(pinned.map(|endpoint| (endpoint, key)));
                }
                Ok::<_, Error>(changes)
            })
            .await?
            .into_iter()
            .unzip();
        tracing::warn!(endpoints = put.len(), "OVN has allocated other addresses than those in use; they are pinned");
        let state = self.store.state();
        let object = |endpoint: Arc<Endpoint>| objects::endpoint(&endpoint, state.networks.get(&endpoint.network)?);
        self.apply(put.into_iter().filter_map(object).collect(), remove).await.map(drop)
    }

    /// What an answer says may be older than what the watch has told meanwhile: it counts only where it is about a
    /// later generation.
    fn observe_answer(&self, observation: proto::Observation) {
        if !observation.removed {
            self.note(observation, |last, now| last < now);
        }
    }

    fn observe(&self, observation: proto::Observation) {
        self.note(observation, |_, _| true);
    }

    /// `counts` compares the generation of what is known with that of the observation, in one go with taking it:
    /// answers and the watch are heard by different tasks.
    fn note(&self, observation: proto::Observation, counts: impl FnOnce(u64, u64) -> bool) {
        let Some(key) = observation.key.clone() else { return };
        if !observation.error.is_empty() {
            tracing::warn!(kind = key.kind().as_str_name(), id = key.id, error = observation.error, "helper object");
        }
        if key.kind() != proto::ObjectKind::Endpoint {
            return;
        }
        self.observed.send_modify(|observed| {
            let last = observed.get(&key.id).and_then(|last| last.key.as_ref());
            if last.is_some_and(|last| !counts(last.generation, key.generation)) {
                return;
            }
            if observation.removed {
                observed.remove(&key.id);
            } else {
                observed.insert(key.id, observation);
            }
        });
    }

    /// The connected client, waiting for a helper that is on its way.
    async fn client(&self) -> Result<Client> {
        let mut clients = self.client.subscribe();
        let mut starting = self.helper.is_starting();
        loop {
            match timeout(PATIENCE, clients.wait_for(Option::is_some)).await {
                Ok(Ok(client)) => return client.clone().ok_or_else(|| self.away()),
                Ok(Err(_)) => return Err(self.away()),
                // A virtual machine on an emulated processor takes long to boot, but not for ever; what then runs takes its
                // time once more.
                Err(_) if starting || self.helper.is_starting() => starting = self.helper.is_starting(),
                Err(_) => return Err(self.away()),
            }
        }
    }

    fn away(&self) -> Error {
        Error::Unavailable(format!("the helper machine is not available ({})", self.helper.state_text()))
    }

    /// Declares and withdraws single objects, and gives what the agent says of them.
    ///
    /// # Errors
    /// If the agent is away or refuses the call; objects' own errors are in the observations.
    pub async fn apply(
        &self,
        put: Vec<proto::Object>,
        remove: Vec<proto::ObjectKey>,
    ) -> Result<Vec<proto::Observation>> {
        let mut client = self.client().await?;
        let applied = timeout(PATIENCE, async {
            let _shared = self.gate.read().await;
            let request = proto::ApplyRequest { put: self.still_wanted(put), remove };
            client.apply(request).await
        });
        let answer = applied
            .await
            .map_err(|_| Error::Unavailable(format!("{WHO} did not apply a change within {} s", PATIENCE.as_secs())))?;
        let answer = answer.map_err(Error::peer(WHO, "apply a change"))?.into_inner();
        answer.observations.iter().cloned().for_each(|observation| self.observe_answer(observation));
        Ok(answer.observations)
    }

    /// Whoever waited for the gate may have been overtaken by a removal, and the agent remembers removals only until the
    /// next full set: what is no longer stored would come back there and stay until the set after that.
    fn still_wanted(&self, mut put: Vec<proto::Object>) -> Vec<proto::Object> {
        let state = self.store.state();
        put.retain(|object| objects::is_stored(object, &state));
        put
    }

    /// As [`Agent::apply`], without waiting for an agent that is away: the next full sync does it then.
    pub async fn apply_if_ready(
        &self,
        put: Vec<proto::Object>,
        remove: Vec<proto::ObjectKey>,
    ) -> Result<Vec<proto::Observation>> {
        // A sync under way has taken its snapshot: wait for its end, then the change goes by itself.
        let under_way = self.gate.read().await;
        let ready = self.is_ready();
        drop(under_way);
        if ready { self.apply(put, remove).await } else { Ok(Vec::new()) }
    }

    /// Waits until the agent said something of `id`, at `generation` or later, that `enough` accepts or that is an
    /// error.
    ///
    /// # Errors
    /// After `limit`.
    pub async fn wait(
        &self,
        id: &EndpointId,
        generation: u64,
        limit: Duration,
        enough: impl Fn(&proto::Observation) -> bool,
    ) -> Result<proto::Observation> {
        let mut observed = self.observed.subscribe();
        let fits = |observation: &proto::Observation| {
            let current = observation.key.as_ref().is_none_or(|key| key.generation >= generation);
            current && (!observation.error.is_empty() || enough(observation))
        };
        let seen = timeout(limit, observed.wait_for(|all| all.get(id.as_str()).is_some_and(fits))).await;
        match seen {
            Ok(Ok(all)) => all.get(id.as_str()).cloned().ok_or_else(|| self.away()),
            Ok(Err(_)) => Err(self.away()),
            Err(_) => Err(Error::Failed(format!(
                "nothing was heard from OVN within {} s (is ovn-northd or ovn-controller down?)",
                limit.as_secs()
            ))),
        }
    }
}
