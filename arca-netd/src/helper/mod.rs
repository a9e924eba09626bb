// SPDX-License-Identifier: Apache-2.0
//! The helper machine's life: adopted if it runs, launched if not, launched again when it dies.
//!
//! ```text
//!  not needed --an OVN network is used--> Starting
//!  Starting --machine ready, uplink made--> Running --agent took Configure--> up
//!      ^                                       |
//!      +-------------- back-off <--------------+  machine ended, or the agent was away for too long
//! ```
//!
//! A restart of arca-netd restarts nothing: [`Boot::up`] adopts. What the machine really is hides behind [`Boot`];
//! [`machine`] is the real one, tests bring their own.

pub mod machine;
pub mod uplink;

#[cfg(target_os = "linux")]
#[path = "host_linux.rs"]
pub mod host;
#[cfg(not(target_os = "linux"))]
#[path = "host_other.rs"]
pub mod host;

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Instant,
};

use arca_proto::{dial::Address, helper::v1::ConfigureRequest};
use async_trait::async_trait;
use tokio::sync::{Mutex, Notify, mpsc, oneshot, watch};

use crate::{
    error::{Error, Result},
    loopback::{Loopback, Place},
    peers::backoff::Backoff,
    pools,
};
pub use uplink::Uplink;

/// A helper that can be dialled.
#[derive(Clone, Debug)]
pub struct HelperUp {
    /// How.
    pub address: Address,
    /// What its agent is configured with.
    pub configure: ConfigureRequest,
    /// When its start began.
    since: Instant,
    /// It was running already.
    adopted: bool,
    /// OVN will allocate anew: whoever has an address is told it.
    forgetful: bool,
}

impl HelperUp {
    /// Tells one life of the machine from another.
    #[must_use]
    pub fn since(&self) -> Instant {
        self.since
    }

    /// Whether what an earlier machine had allocated is not known inside.
    #[must_use]
    pub fn is_forgetful(&self) -> bool {
        self.forgetful
    }
}

/// Makes the helper machine. Called by one task at a time.
#[async_trait]
pub trait Boot: Send + Sync + std::fmt::Debug {
    /// Adopts or launches the machine and makes its uplink. On failure nothing new remains.
    async fn up(&self) -> Result<Booted>;
    /// Returns when the machine that `up` gave has ended.
    async fn ended(&self);
    /// Ends it and undoes what `up` changed on the host.
    async fn down(&self) -> Result<()>;
    /// As `down`, of a machine that does not answer: it is not asked to end.
    async fn give_up(&self) -> Result<()> {
        self.down().await
    }
    /// The uplink network. It may change while `up` runs, if another engine took it meanwhile.
    fn uplink(&self) -> Uplink;
    /// Whether the helper is on this kernel, so that descriptors and interfaces can be given to it.
    fn is_on_this_kernel(&self) -> bool;
    /// The machine whose port 9998 carries clients of published ports, where this host has no route to the uplink or shall
    /// not use it. Known before the machine runs.
    fn carries_clients(&self) -> Option<Address> {
        None
    }
    /// What the uplink is called inside.
    fn interface_inside(&self) -> &'static str {
        uplink::HELPER_INTERFACE
    }
    /// Whether the host's address on the uplink is its loopback's (a user-mode network).
    fn uplink_is_loopback(&self) -> bool {
        false
    }
    /// The host's end of the uplink, where the host has one.
    fn uplink_interface(&self) -> Option<String> {
        None
    }
    /// Makes the host's routes and rules follow what is stored of networks that it has a route to (see [`crate::direct`]).
    async fn settle_host(&self) -> Result<()> {
        Ok(())
    }
    /// Whether a machine of an earlier life is there, so that it is to be adopted though nothing needs it.
    async fn is_there(&self) -> bool {
        false
    }
}

/// What [`Boot::up`] gives.
#[derive(Clone, Debug)]
pub struct Booted {
    /// How the machine is dialled.
    pub address: Address,
    /// It was running already.
    pub adopted: bool,
    /// It knows nothing of what an earlier one had allocated.
    pub forgetful: bool,
}

#[derive(Clone, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is one of it in a process")]
enum State {
    Idle,
    Starting,
    Running(HelperUp),
    Down(String),
}

/// The helper machine as the rest of arca-netd sees it.
#[derive(Debug)]
pub struct Helper {
    boot: Arc<dyn Boot>,
    system_id: String,
    /// Name servers that unknown names are asked of.
    servers: Vec<SocketAddr>,
    loopback: Mutex<Loopback>,
    state: watch::Sender<State>,
    /// Milliseconds from start to the first answered Configure; 0 before.
    boot_ms: watch::Sender<u64>,
    restart: Notify,
    needed: watch::Sender<bool>,
    /// Held while the machine is being booted.
    booting: Mutex<()>,
    stop: mpsc::Sender<oneshot::Sender<Result<()>>>,
    stops: Mutex<mpsc::Receiver<oneshot::Sender<Result<()>>>>,
}

impl Helper {
    /// A handle; nothing happens before [`Helper::run`].
    #[must_use]
    pub fn new(boot: Arc<dyn Boot>, system_id: String, servers: Vec<SocketAddr>) -> Self {
        let (stop, stops) = mpsc::channel(1);
        Self {
            stop,
            stops: Mutex::new(stops),
            boot,
            system_id,
            servers,
            loopback: Mutex::default(),
            state: watch::Sender::new(State::Idle),
            boot_ms: watch::Sender::new(0),
            restart: Notify::new(),
            needed: watch::Sender::new(false),
            booting: Mutex::new(()),
        }
    }

    /// See [`Boot::uplink`].
    #[must_use]
    pub fn uplink(&self) -> Uplink {
        self.boot.uplink()
    }

    /// Unique local /48 of this engine (RFC 4193), for IPv6 subnets nobody named: of its chassis id, so always the same.
    #[must_use]
    pub fn unique_local(&self) -> ipnet::Ipv6Net {
        let mut global = [0; 5];
        for (at, byte) in self.system_id.bytes().enumerate() {
            let to = &mut global[at % 5];
            *to = u8::rotate_left(*to, 3) ^ byte;
        }
        pools::unique_local(global)
    }

    /// See [`Boot::is_on_this_kernel`].
    #[must_use]
    pub fn is_on_this_kernel(&self) -> bool {
        self.boot.is_on_this_kernel()
    }

    /// See [`Boot::carries_clients`].
    #[must_use]
    pub fn carries_clients(&self) -> Option<Address> {
        self.boot.carries_clients()
    }

    /// Whether this host can have routes to networks of the helper.
    #[must_use]
    pub fn routes(&self) -> bool {
        self.boot.uplink_interface().is_some()
    }

    /// See [`Boot::settle_host`].
    ///
    /// # Errors
    /// The route or rule that could not be made.
    pub async fn settle_host(&self) -> Result<()> {
        self.boot.settle_host().await
    }

    /// From now on the machine is needed: [`Helper::run`] starts it.
    pub fn need(&self) {
        self.needed.send_if_modified(|needed| !std::mem::replace(needed, true));
    }

    /// Whether [`Helper::need`] was called.
    #[must_use]
    pub fn is_needed(&self) -> bool {
        *self.needed.borrow()
    }

    /// Keeps the machine running, once it is needed, until it is told to stop. Dropping the future leaves the machine as
    /// it is.
    pub async fn run(&self) {
        let mut stops = self.stops.lock().await;
        let mut needed = self.needed.subscribe();
        tokio::select! {
            // Both cancel-safe: waiting changes nothing, and an order not received stays queued.
            () = async { drop(needed.wait_for(|needed| *needed).await) } => {}
            Some(answer) = stops.recv() => {
                stops.close();
                return self.obey(answer).await;
            }
        }
        let mut backoff = Backoff::default();
        loop {
            self.state.send_replace(State::Starting);
            let since = Instant::now();
            let up = {
                let _busy = self.booting.lock().await;
                self.boot.up().await
            };
            match up {
                Ok(booted) => {
                    tracing::info!(address = %booted.address, adopted = booted.adopted, "helper machine runs");
                    let forwarders = self.open_loopback().await;
                    self.state.send_replace(State::Running(self.up(booted, since, forwarders)));
                    tokio::select! {
                        // All cancel-safe: waiting changes nothing, and an order not received stays queued.
                        () = self.boot.ended() => tracing::error!("helper machine has ended; starting it again"),
                        () = self.restart.notified() => {
                            if let Err(error) = self.boot.give_up().await {
                                tracing::warn!(%error, "helper machine was not taken down cleanly");
                            }
                        }
                        Some(answer) = stops.recv() => {
                            stops.close();
                            return self.obey(answer).await;
                        }
                    }
                    self.state.send_replace(State::Down("the helper machine has ended".into()));
                    if since.elapsed().as_secs() > 10 {
                        backoff.reset();
                    }
                }
                Err(error) => {
                    tracing::error!(%error, "helper machine does not start; trying again");
                    self.state.send_replace(State::Down(error.to_string()));
                }
            }
            tokio::select! {
                // Cancel-safe, as above.
                () = tokio::time::sleep(backoff.pause()) => {}
                Some(answer) = stops.recv() => {
                            stops.close();
                            return self.obey(answer).await;
                        }
            }
        }
    }

    async fn obey(&self, answer: oneshot::Sender<Result<()>>) {
        self.state.send_replace(State::Down("stopped".into()));
        let down = self.boot.down().await;
        tracing::info!(clean = down.is_ok(), "helper machine stopped on request");
        // Whoever asked may have gone.
        let _ = answer.send(down);
    }

    /// Lets the helper's resolver ask name servers on this host's loopback. Gives what it is told of all servers.
    async fn open_loopback(&self) -> Vec<String> {
        let uplink = self.uplink();
        let interface = self.boot.uplink_interface();
        let local = self.boot.uplink_is_loopback();
        let place = if local {
            Some(Place { address: Ipv4Addr::LOCALHOST, interface: "lo".into(), client: Ipv4Addr::LOCALHOST })
        } else {
            interface.map(|interface| Place { address: uplink.host(), interface, client: uplink.resolver() })
        };
        let mut loopback = self.loopback.lock().await;
        // What was open belongs to an uplink that may be gone.
        *loopback = Loopback::default();
        let (open, told) = Loopback::open(&self.servers, place.as_ref()).await;
        *loopback = open;
        // Inside, this host's loopback is called by the uplink's address.
        let renamed = |server: String| match server.parse::<SocketAddr>() {
            Ok(address) if local && address.ip().is_loopback() => format!("{}:{}", uplink.host(), address.port()),
            _ => server,
        };
        told.into_iter().map(renamed).collect()
    }

    fn up(&self, booted: Booted, since: Instant, forwarders: Vec<String>) -> HelperUp {
        let uplink = self.uplink();
        let v6 = uplink.v6();
        let configure = ConfigureRequest {
            system_id: self.system_id.clone(),
            uplink_interface: self.boot.interface_inside().into(),
            router_address: uplink.with_length(uplink.router()),
            next_hop: uplink.host().to_string(),
            resolver_address: uplink.with_length(uplink.resolver()),
            forwarders,
            router_address_v6: v6.map(|v6| v6.with_length(v6.router())).unwrap_or_default(),
            next_hop_v6: v6.map(|v6| v6.host().to_string()).unwrap_or_default(),
            resolver_address_v6: v6.map(|v6| v6.with_length(v6.resolver())).unwrap_or_default(),
        };
        HelperUp { address: booted.address, configure, since, adopted: booted.adopted, forgetful: booted.forgetful }
    }

    /// Ends the machine for good and undoes what was changed on the host. Stopping twice is no error.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn stop(&self) -> Result<()> {
        let (answer, answered) = oneshot::channel();
        match self.stop.send(answer).await {
            Ok(()) => answered.await.map_err(|_| Error::Failed("the helper machine's task has ended".into()))?,
            // Closed: it was stopped before.
            Err(_) => Ok(()),
        }
    }

    /// Returns when no boot is under way, and keeps further ones from beginning while what it gives is held: whoever ends
    /// this process then leaves either no machine or one that the next life finds.
    pub async fn settled(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.booting.lock().await
    }

    /// Ends the machine; [`Helper::run`] starts it again.
    pub fn restart(&self) {
        self.restart.notify_one();
    }

    /// Waits until the machine can be dialled.
    pub async fn wait_up(&self) -> HelperUp {
        let mut states = self.state.subscribe();
        loop {
            if let State::Running(up) = &*states.borrow_and_update() {
                return up.clone();
            }
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// Wakes at each change of the machine's state; what it then is, [`Helper::current`] tells.
    pub(crate) fn changes(&self) -> impl Future<Output = ()> + use<> {
        let mut states = self.state.subscribe();
        async move {
            if states.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    /// The machine, if it can be dialled.
    #[must_use]
    pub fn current(&self) -> Option<HelperUp> {
        match &*self.state.borrow() {
            State::Running(up) => Some(up.clone()),
            State::Idle | State::Starting | State::Down(_) => None,
        }
    }

    /// The agent has taken its configuration.
    pub fn configured(&self, up: &HelperUp) {
        let elapsed = u64::try_from(up.since.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        self.boot_ms.send_if_modified(|ms| {
            let first = *ms == 0 && !up.adopted;
            if first {
                *ms = elapsed;
                tracing::info!(boot_ms = elapsed, "helper machine booted and configured");
            }
            first
        });
    }

    /// Milliseconds from launch to the first answered Configure; 0 if adopted or not there yet.
    #[must_use]
    pub fn boot_ms(&self) -> u64 {
        *self.boot_ms.borrow()
    }

    /// Whether the machine is on its way, with nothing wrong so far.
    #[must_use]
    pub fn is_starting(&self) -> bool {
        matches!(&*self.state.borrow(), State::Starting)
    }

    /// "up", "starting", "not needed", or "down: why".
    #[must_use]
    pub fn state_text(&self) -> String {
        match &*self.state.borrow() {
            State::Idle => "not needed".into(),
            State::Starting => "starting".into(),
            State::Running(_) => "up".into(),
            State::Down(why) => format!("down: {why}"),
        }
    }
}
