// SPDX-License-Identifier: Apache-2.0
//! The one task that changes anything: takes declarations, makes the northbound database and the ports follow, tells what
//! is observed.
//!
//! ```text
//!   gRPC calls ──Command──┐                    ┌─transact──> OVN_Northbound
//!   new snapshot ─────────┼──> Engine ─reconcile┤
//!   ports are there ──────┘                    └─Job───────> ports task
//!                                │
//!                                └──> observations (watch), names (resolver)
//! ```
//!
//! What is queued while a transaction is in flight goes into the next one together. A call is answered when its rows are
//! committed and its ports exist. While the database is away everything is kept, and applied when it is back.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, sleep_until};

use crate::nb::diff::{Change, Counts, diff, operations, without_new_names};
use crate::nb::model::{Config, EndpointId};
use crate::nb::observed::Observed;
use crate::nb::rows::{Drawing, Learned, Row};
use crate::ovsdb::{self, Database, Snapshot};
use crate::resolver::{NameTable, Resolver};
use crate::uplink::Subnet;
use crate::vswitch::Installed;

use super::ServiceError;
use super::machine::Machine;
use super::observe::{Observation, Observations, observe};
use super::ports::{self, Done, Job};
use super::state::{Key, Live, Put, State};

/// Pause before something that failed is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// Names are added to OVN's records when nothing has changed for that long, or when they have waited for the other.
const QUIET: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(10);
/// Transactions in a row after which the database is believed to be changed by somebody else.
const ROUNDS: usize = 16;

/// How a call is answered.
pub(super) type Reply<T> = oneshot::Sender<Result<T, ServiceError>>;

/// What a call asks for.
#[derive(Debug)]
pub(super) enum Command {
    /// Answered with the datapath.
    Configure(Box<Config>, Reply<String>),
    /// Some objects.
    Apply { put: Vec<Put>, remove: Vec<(Key, u64)>, reply: Reply<Vec<Arc<Observation>>> },
    /// All objects.
    Sync { epoch: u64, objects: Vec<Put>, reply: Reply<(Counts, Vec<Arc<Observation>>)> },
}

/// A call whose objects are not all in place yet.
#[derive(Debug)]
struct Waiting {
    keys: Vec<(Key, u64)>,
    counts: Counts,
    /// Ports job it waits for; none before its rows are committed.
    job: Option<u64>,
    reply: WaitingReply,
}

/// The owned rows as they are in a snapshot.
struct View {
    snapshot: Arc<Snapshot>,
    observed: Observed<Arc<ovsdb::Row>>,
    /// Something was written since all was found to be as it should be.
    written: bool,
}

impl Default for View {
    fn default() -> Self {
        Self { snapshot: Arc::default(), observed: Observed::new([]), written: true }
    }
}

#[derive(Debug)]
enum WaitingReply {
    Apply(Reply<Vec<Arc<Observation>>>),
    Sync(Reply<(Counts, Vec<Arc<Observation>>)>),
}

pub(super) struct Engine<M> {
    db: Database,
    machine: Arc<M>,
    config: Option<Config>,
    state: State,
    epoch: u64,
    waiting: Vec<Waiting>,
    resolvers: Vec<Resolver>,
    names: watch::Sender<Arc<NameTable>>,
    forwarders: watch::Sender<Vec<SocketAddr>>,
    observations: watch::Sender<Arc<Observations>>,
    routed: Option<BTreeSet<Subnet>>,
    jobs: mpsc::UnboundedSender<Job>,
    job: u64,
    wanted: BTreeMap<arca_proto::ports::LinkNumber, crate::ports::PortSpec>,
    pruned: bool,
    failures: BTreeMap<EndpointId, String>,
    view: View,
    /// Rows that should be, drawn up for these addresses; none after a declaration changed.
    drawn: Option<(Learned, Vec<Arc<Row>>)>,
    drawing: Drawing,
    /// Generation of the snapshot that was found to be as it should be.
    settled: Option<u64>,
    retry: Option<Instant>,
    /// The pause is over: failed ports are tried again.
    again: bool,
    names_wait: Option<NamesWait>,
    installed: watch::Receiver<Installed>,
}

/// Names that OVN does not know yet.
#[derive(Clone, Copy, Debug)]
struct NamesWait {
    since: Instant,
    until: Instant,
}

impl<M: Machine> Engine<M> {
    /// Starts the engine and the ports task; both end when `commands` has no sender left.
    pub(super) fn start(
        db: Database,
        machine: Arc<M>,
        commands: mpsc::Receiver<Command>,
        observations: watch::Sender<Arc<Observations>>,
    ) {
        let (jobs, queue) = mpsc::unbounded_channel();
        let (done, finished) = mpsc::channel(8);
        tokio::spawn(ports::run(Arc::clone(&machine), queue, done));
        let installed = machine.installed();
        let engine = Self {
            db,
            machine,
            config: None,
            state: State::default(),
            epoch: 0,
            waiting: Vec::new(),
            resolvers: Vec::new(),
            names: watch::Sender::default(),
            forwarders: watch::Sender::default(),
            observations,
            routed: None,
            jobs,
            job: 0,
            wanted: BTreeMap::new(),
            pruned: false,
            failures: BTreeMap::new(),
            view: View::default(),
            drawn: None,
            drawing: Drawing::default(),
            settled: None,
            retry: None,
            again: false,
            names_wait: None,
            installed,
        };
        tokio::spawn(engine.run(commands, finished));
    }

    async fn run(mut self, mut commands: mpsc::Receiver<Command>, mut finished: mpsc::Receiver<Done>) {
        // Rows of before must be known before the first declaration is judged.
        while let Err(error) = self.db.ready().await {
            tracing::error!(error = &error as &dyn std::error::Error, "the northbound database is of no use");
            tokio::time::sleep(RETRY).await;
        }
        let mut changes = self.db.changed();
        let mut neighbours = self.machine.neighbours();
        let mut installed = self.installed.clone();
        loop {
            let retry = self.retry;
            let names = self.names_wait.map(|wait| wait.until.min(wait.since + LONGEST));
            let mut names_now = false;
            tokio::select! {
                // Cancel-safe: a command is taken or not.
                command = commands.recv() => {
                    let Some(command) = command else { return };
                    self.command(command).await;
                    // Everything that queued up meanwhile becomes one transaction.
                    while let Ok(command) = commands.try_recv() {
                        self.command(command).await;
                    }
                }
                // Cancel-safe: nothing is taken until it returns.
                snapshot = changes.next() => match snapshot {
                    None => return,
                    // The echo of an own transaction that has been looked at already.
                    Some(snapshot) if Some(snapshot.generation) == self.settled => continue,
                    Some(_) => {}
                },
                // Cancel-safe: only tells that there is something.
                Ok(()) = installed.changed() => {}
                // Cancel-safe: what is there is taken below.
                Ok(()) = neighbours.changed() => {
                    let known = neighbours.borrow_and_update().clone();
                    if let Some(config) = self.config.as_mut().filter(|config| config.neighbours != known) {
                        config.neighbours = known;
                        self.drawn = None;
                    }
                }
                // Cancel-safe: an answer is taken or not.
                done = finished.recv() => {
                    let Some(done) = done else { return };
                    self.ports_done(done);
                }
                // Cancel-safe: only a clock.
                () = sleep_until(retry.unwrap_or_else(Instant::now)), if retry.is_some() => {
                    self.retry = None;
                    self.again = !self.failures.is_empty();
                }
                // Cancel-safe: only a clock.
                () = sleep_until(names.unwrap_or_else(Instant::now)), if names.is_some() => {
                    self.names_wait = None;
                    self.view.written = true;
                    names_now = true;
                }
            }
            // Marked as seen before it is looked at: what comes meanwhile wakes the task again.
            changes.current();
            self.reconcile(names_now).await;
        }
    }

    async fn command(&mut self, command: Command) {
        match command {
            Command::Configure(config, reply) => {
                let result = self.configure(*config).await;
                drop(reply.send(result));
            }
            Command::Apply { reply, .. } if self.config.is_none() => drop(reply.send(Err(ServiceError::NotConfigured))),
            Command::Sync { reply, .. } if self.config.is_none() => drop(reply.send(Err(ServiceError::NotConfigured))),
            Command::Apply { put, remove, reply } => {
                let keys = remove.iter().cloned().chain(put.iter().map(|p| (p.key.clone(), p.generation))).collect();
                self.look();
                let live = self.live();
                self.drawn = None;
                self.state.apply(put, remove, &live);
                self.wait(keys, WaitingReply::Apply(reply));
            }
            Command::Sync { epoch, reply, .. } if epoch < self.epoch => {
                drop(reply.send(Err(ServiceError::StaleSync { epoch, newest: self.epoch })));
            }
            Command::Sync { epoch, objects, reply } => {
                self.epoch = epoch;
                let keys = objects.iter().map(|p| (p.key.clone(), p.generation)).collect();
                self.look();
                let live = self.live();
                self.drawn = None;
                self.state.replace(objects, &live);
                self.pruned = false;
                self.wait(keys, WaitingReply::Sync(reply));
            }
        }
    }

    /// Brings the view up to the newest snapshot.
    fn look(&mut self) {
        let now = self.db.snapshot();
        if !Arc::ptr_eq(&now, &self.view.snapshot) {
            self.view.written |= self.view.observed.follow(&self.view.snapshot, &now);
            self.view.snapshot = now;
        }
    }

    fn live(&self) -> Live {
        Live::of(&self.view.observed)
    }

    fn wait(&mut self, keys: Vec<(Key, u64)>, reply: WaitingReply) {
        self.waiting.push(Waiting { keys, counts: Counts::default(), job: None, reply });
    }

    async fn configure(&mut self, config: Config) -> Result<String, ServiceError> {
        let failed = |what: &str| {
            let what = what.to_owned();
            move |source| ServiceError::Machine { what, source }
        };
        let datapath = self.machine.configure(&config).await.map_err(failed("set up the uplink"))?;
        let v4 = SocketAddr::from((config.resolver.address, 53));
        let v6 = config.v6.map(|v6| SocketAddr::from((v6.resolver.address, 53)));
        let addresses: Vec<SocketAddr> = std::iter::once(v4).chain(v6).collect();
        if !self.resolvers.iter().map(Resolver::address).eq(addresses.iter().copied()) {
            self.resolvers.clear();
            for address in addresses {
                let resolver = Resolver::start(address, self.names.subscribe(), self.forwarders.subscribe()).await;
                let what = format!("listen on {address} as resolver");
                self.resolvers.push(resolver.map_err(|e| failed(&what)(e.into()))?);
            }
        }
        self.forwarders.send_replace(config.forwarders.clone());
        if self.config.as_ref().is_some_and(|now| now.router != config.router || now.v6 != config.v6) {
            self.routed = None;
        }
        let neighbours = self.machine.neighbours().borrow().clone();
        self.config = Some(Config { neighbours, ..config });
        self.drawn = None;
        Ok(datapath)
    }

    fn ports_done(&mut self, done: Done) {
        self.failures = done.failures;
        if !self.failures.is_empty() {
            self.retry_later();
        }
        self.publish();
        let (ready, waiting) =
            std::mem::take(&mut self.waiting).into_iter().partition(|w| w.job.is_some_and(|job| job <= done.number));
        self.waiting = waiting;
        let ready: Vec<Waiting> = ready;
        for waiting in ready {
            self.answer(waiting);
        }
    }

    fn answer(&self, waiting: Waiting) {
        let now = self.observations.borrow();
        let gone = |key: &Key, generation| Arc::new(Observation::removed(key.clone(), generation));
        let observation =
            |(key, generation): &(Key, u64)| now.get(key).cloned().unwrap_or_else(|| gone(key, *generation));
        let observations = waiting.keys.iter().map(observation).collect();
        match waiting.reply {
            WaitingReply::Apply(reply) => drop(reply.send(Ok(observations))),
            WaitingReply::Sync(reply) => drop(reply.send(Ok((waiting.counts, observations)))),
        }
    }

    fn retry_later(&mut self) {
        self.retry = Some(Instant::now() + RETRY);
    }

    /// Makes the database as it should be. Ends at once while the database is away: its return is an event.
    async fn reconcile(&mut self, names_now: bool) {
        let Some(config) = self.config.clone() else { return };
        for round in 0.. {
            self.look();
            if !self.view.snapshot.connected {
                return;
            }
            let learned = self.view.observed.learned();
            let wanted = match self.drawn.take() {
                Some((known, rows)) if known == learned => rows,
                _ => {
                    self.view.written = true;
                    self.drawing.rows(&config, &self.state.desired, &learned)
                }
            };
            // Nothing that matters has changed on either side: OVN has only answered.
            let unchanged = !self.view.written;
            let mut changes =
                if unchanged { Vec::new() } else { diff(&self.view.observed, &wanted, self.state.scope()) };
            if !names_now && without_new_names(&mut changes) {
                let now = Instant::now();
                let since = self.names_wait.map_or(now, |wait| wait.since);
                self.names_wait = Some(NamesWait { since, until: now + QUIET });
            }
            self.drawn = Some((learned, wanted));
            if changes.is_empty() {
                self.view.written = false;
                self.settled = Some(self.view.snapshot.generation);
                break;
            }
            if round == ROUNDS {
                tracing::warn!(row = ?changes.first().map(Change::key), "a row does not stay as it is written");
                self.retry_later();
                break;
            }
            if !self.commit(&changes).await {
                return;
            }
        }
        self.committed().await;
    }

    /// One transaction; false when it is of no use to go on now.
    async fn commit(&mut self, changes: &[Change]) -> bool {
        let (origins, operations): (Vec<usize>, Vec<_>) = operations(changes).into_iter().unzip();
        let counts = Counts::of(changes);
        let error = match self.db.transact(operations).await {
            Ok(_) => {
                tracing::debug!(?counts, "rows changed");
                for waiting in self.waiting.iter_mut().filter(|w| w.job.is_none()) {
                    waiting.counts.add(counts);
                }
                return true;
            }
            Err(error) => error,
        };
        tracing::warn!(error = &error as &dyn std::error::Error, "a transaction failed");
        if error.is_disconnect() {
            return false;
        }
        self.retry_later();
        if error.is_wait_failure() {
            // The snapshot was older than the database; the next one is on its way.
            return false;
        }
        // One bad object must not hinder the others.
        let culprit = match &error {
            ovsdb::Error::Operation { index, .. } => origins.get(*index).and_then(|at| changes.get(*at)),
            ovsdb::Error::Commit { details, .. } => changes.iter().find(|c| details.contains(&c.key().id)),
            _ => None,
        };
        let reason = format!("the northbound database refused its rows: {error}");
        if culprit.is_some_and(|change| self.state.quarantine(&change.key().id, &reason)) {
            self.drawn = None;
            return true;
        }
        let (failed, waiting) = std::mem::take(&mut self.waiting).into_iter().partition(|w| w.job.is_none());
        self.waiting = waiting;
        let failed: Vec<Waiting> = failed;
        for waiting in failed {
            match waiting.reply {
                WaitingReply::Apply(reply) => drop(reply.send(Err(error.clone().into()))),
                WaitingReply::Sync(reply) => drop(reply.send(Err(error.clone().into()))),
            }
        }
        false
    }

    /// The rows are as they should be: routes, ports and observations follow.
    async fn committed(&mut self) {
        self.publish();
        let Some(config) = &self.config else { return };
        let networks = || self.state.desired.networks.values().map(|n| &n.object);
        let v4 = networks().filter_map(|n| n.v4.as_ref()).map(|v4| v4.subnet);
        let v6 = networks().filter(|_| config.v6.is_some()).filter_map(|n| n.v6.as_ref()).map(|v6| v6.subnet);
        let v4 = v4.map(|s| (IpAddr::V4(s.network()), s.prefix()));
        let subnets: BTreeSet<Subnet> = v4.chain(v6.map(|s| (IpAddr::V6(s.network()), s.prefix()))).collect();
        if self.routed.as_ref() != Some(&subnets) {
            match self.machine.routes(&subnets).await {
                Ok(()) => self.routed = Some(subnets),
                Err(error) => {
                    tracing::warn!(%error, "routes from the resolver to the networks are not set");
                    self.retry_later();
                }
            }
        }
        let wanted = ports::wanted(&self.state.desired);
        let prune = self.state.is_synced() && !self.pruned;
        if wanted != self.wanted || prune || self.again {
            self.job += 1;
            self.again = false;
            self.pruned |= prune;
            self.wanted.clone_from(&wanted);
            // The ports task lives as long as the engine.
            let _ = self.jobs.send(Job { number: self.job, wanted, prune });
        } else if self.waiting.iter().any(|w| w.job.is_none()) {
            // Nothing of ports changed: wait only for what is under way.
            self.job += 1;
            let _ = self.jobs.send(Job { number: self.job, wanted, prune: false });
        }
        let number = self.job;
        for waiting in self.waiting.iter_mut().filter(|w| w.job.is_none()) {
            waiting.job = Some(number);
        }
    }

    fn publish(&mut self) {
        self.look();
        let observed = &self.view.observed;
        let names = NameTable::new(&self.state.desired, &observed.learned());
        // Names first: whoever hears of an address may ask for it.
        self.names.send_if_modified(|now| {
            let differs = **now != names;
            if differs {
                *now = Arc::new(names);
            }
            differs
        });
        self.observations.send_if_modified(|now| {
            let new = observe(&self.state, observed, &self.installed.borrow(), &self.failures, now);
            let differs = **now != new;
            if differs {
                *now = Arc::new(new);
            }
            differs
        });
    }
}
