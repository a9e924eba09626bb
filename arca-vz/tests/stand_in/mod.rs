// SPDX-License-Identifier: Apache-2.0
//! A machine without a hypervisor: stands in for the framework. Its guest is whatever the test puts behind a port.

use std::{
    collections::HashMap,
    os::unix::net::UnixStream as StdStream,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
};

use arca_vz::{
    framework::{Connection, Ended, Framework, FrameworkError},
    shares::{Folder, Shares},
};
use async_trait::async_trait;
use tokio::{
    net::UnixStream,
    sync::{mpsc, watch},
};

/// What serves a port of the guest.
type Service = Arc<dyn Fn(UnixStream) + Send + Sync>;

#[derive(Default)]
struct State {
    /// Calls in order.
    said: Vec<String>,
    services: HashMap<u32, Service>,
    calls: HashMap<u32, mpsc::UnboundedSender<Connection>>,
    shared: Vec<(String, Folder)>,
    /// What the next call of this name answers.
    refusals: HashMap<&'static str, &'static str>,
    running: bool,
}

/// The machine. Clones are the same one.
#[derive(Clone)]
pub(crate) struct StandIn {
    state: Arc<Mutex<State>>,
    ended: watch::Sender<Ended>,
    /// Objects of connections that are alive.
    pub(crate) held: Arc<AtomicUsize>,
}

impl std::fmt::Debug for StandIn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StandIn")
    }
}

/// The object of a connection: counted while it lives.
struct Held(Arc<AtomicUsize>);

impl Drop for Held {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl StandIn {
    pub(crate) fn new() -> Self {
        Self { state: Arc::default(), ended: watch::channel(None).0, held: Arc::default() }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("lock")
    }

    /// The guest serves a port from now on.
    pub(crate) fn serve(&self, port: u32, service: impl Fn(UnixStream) + Send + Sync + 'static) {
        self.state().services.insert(port, Arc::new(service));
    }

    /// The guest calls a port of its host; `None` if nobody there listens.
    pub(crate) fn call(&self, port: u32) -> Option<UnixStream> {
        let (ours, theirs) = self.pair();
        self.state().calls.get(&port)?.send(theirs).ok()?;
        Some(ours)
    }

    pub(crate) fn refuse(&self, call: &'static str, reason: &'static str) {
        self.state().refusals.insert(call, reason);
    }

    /// The guest ends, or the framework gives up.
    pub(crate) fn end(&self, how: Result<(), String>) {
        self.state().running = false;
        self.ended.send_replace(Some(how));
    }

    pub(crate) fn said(&self) -> Vec<String> {
        self.state().said.clone()
    }

    pub(crate) fn shared(&self) -> Vec<(String, Folder)> {
        self.state().shared.clone()
    }

    fn pair(&self) -> (UnixStream, Connection) {
        let (ours, theirs) = StdStream::pair().expect("pair");
        ours.set_nonblocking(true).expect("non-blocking");
        self.held.fetch_add(1, Ordering::SeqCst);
        let connection = Connection::new(theirs, Box::new(Held(Arc::clone(&self.held)))).expect("connection");
        (UnixStream::from_std(ours).expect("stream"), connection)
    }

    fn asked(&self, call: &'static str) -> Result<(), FrameworkError> {
        let mut state = self.state();
        state.said.push(call.to_owned());
        state
            .refusals
            .remove(call)
            .map_or(Ok(()), |reason| Err(FrameworkError { action: call, reason: reason.to_owned() }))
    }
}

#[async_trait]
impl Framework for StandIn {
    async fn start(&self) -> Result<(), FrameworkError> {
        self.asked("start")?;
        self.state().running = true;
        Ok(())
    }

    async fn connect(&self, port: u32) -> Result<Connection, FrameworkError> {
        self.asked("connect")?;
        let (guest, connection) = self.pair();
        let service =
            Some(self.state()).filter(|state| state.running).and_then(|state| state.services.get(&port).cloned());
        let reason = || FrameworkError { action: "connect", reason: format!("nobody serves port {port}") };
        // Not with the lock held: a guest may end at this very call.
        service.ok_or_else(reason)?(guest);
        Ok(connection)
    }

    async fn listen(&self, port: u32) -> Result<mpsc::UnboundedReceiver<Connection>, FrameworkError> {
        self.asked("listen")?;
        let (calls, taken) = mpsc::unbounded_channel();
        self.state().calls.insert(port, calls);
        Ok(taken)
    }

    async fn share(&self, shares: &Shares) -> Result<(), FrameworkError> {
        self.asked("share")?;
        self.state().shared = shares.folders().map(|(name, folder)| (name, folder.clone())).collect();
        Ok(())
    }

    async fn balloon(&self, bytes: u64) -> Result<(), FrameworkError> {
        self.asked("balloon")?;
        self.state().said.push(bytes.to_string());
        Ok(())
    }

    async fn state(&self) -> String {
        if StandIn::state(self).running { "running" } else { "stopped" }.to_owned()
    }

    async fn stop(&self) -> Result<(), FrameworkError> {
        self.asked("stop")?;
        self.end(Ok(()));
        Ok(())
    }

    fn ended(&self) -> watch::Receiver<Ended> {
        self.ended.subscribe()
    }
}
