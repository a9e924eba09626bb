// SPDX-License-Identifier: Apache-2.0
//! Joins one TAP with at most one stream connection. Used by arca-tapfwd and arca-helper-agent, one pump per link.
//!
//! The pump owns a TAP and a listener, and a thread that is blocked in epoll:
//!
//! ```text
//!           accept            both hellos             broken, or a newer epoch
//! listener --------> pending -------------> linked -----------------------------> unlinked
//! ```
//!
//! - TAP to stream: drain the TAP until it is empty or 256 KiB are together, then one write. If the stream takes no
//!   more, the TAP is not read until it does: its queue in the kernel is the bound, and frames beyond it are dropped
//!   there, where that is cheapest, and counted as drops of this direction.
//! - Stream to TAP: one read, then every complete frame in it; the incomplete rest is kept for the next read.
//! - Unlinked, frames wait in the kernel's queue for [`HOLD`] (a relay that restarts is back within milliseconds);
//!   after that they are dropped and counted until the next connection.
//! - A stream that takes nothing for [`STUCK`] is up but does not move: it is closed, and the relay dials anew.
//! - Where the relay's hello says `tap-fd` no frame goes over the stream: see `lent`.
//! - A stream that is not a sequence of frames ends the connection with an error. The TAP stays.

mod connection;
mod lent;
mod queue;
mod worker;

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::Arc,
    thread::JoinHandle,
    time::Duration,
};

use arca_proto::{
    frame::MAX_FRAME,
    hello::{Carriers, Hello, Kind, Offloads},
    ports::LinkNumber,
    trace::Tracer,
};
use tokio::sync::watch;

use crate::{
    stats::{Counters, Meter},
    sys::Waker,
    tap::{Tap, TapError},
};

/// How long frames wait for a new connection after one broke.
pub(crate) const HOLD: Duration = Duration::from_millis(250);

/// How long the stream may take nothing while there is something for it. Longer than the relay waits for the other end: who
/// is nearest to what stands still finds it, and an end finds what the relay cannot see, a stream that stands still before
/// it reaches the relay.
pub(crate) const STUCK: Duration = Duration::from_secs(10);

/// What a pump joins.
#[derive(Debug)]
pub struct PumpConfig {
    /// Link number, said and expected in the hello.
    pub link: LinkNumber,
    /// Which end this is: [`Kind::Container`] in arca-tapfwd, [`Kind::Helper`] in arca-helper-agent.
    pub end: Kind,
    /// The TAP. The pump sets its offloads, nothing else.
    pub tap: Tap,
    /// Listening stream socket, AF_UNIX or AF_VSOCK; each connection is a link connection.
    pub listener: OwnedFd,
    /// What this end can take. Less is offered where the kernel knows less.
    pub offered: Offloads,
    /// Greatest frame this end takes, [`MAX_FRAME`] unless there is a reason.
    pub max_frame: u32,
    /// An earlier pump may have lent the TAP: frames are left to the borrower until a connection says otherwise.
    pub lent: bool,
}

impl PumpConfig {
    /// With every offload and the greatest frame.
    pub fn new(link: LinkNumber, end: Kind, tap: Tap, listener: OwnedFd) -> Self {
        Self { link, end, tap, listener, offered: Offloads::ALL, max_frame: MAX_FRAME, lent: false }
    }
}

/// Why a pump could not start.
#[derive(Debug, thiserror::Error)]
pub enum PumpError {
    /// The relay has no TAP.
    #[error("pump of link {0}: an end is the container's or the helper's")]
    NotAnEnd(LinkNumber),
    /// The TAP refused.
    #[error("pump of link {0}")]
    Tap(LinkNumber, #[source] TapError),
    /// epoll, eventfd or thread.
    #[error("pump of link {0}: out of descriptors or threads?")]
    Start(LinkNumber, #[source] io::Error),
}

/// Whether frames can flow, and on which terms. Given by [`Pump::watch`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Both hellos are exchanged and the connection stands.
    pub linked: bool,
    /// Of the present connection, or of the last one.
    pub epoch: u64,
    /// Bits in force, the intersection of both ends'.
    pub offloads: Offloads,
    /// Greatest frame either side sends.
    pub max_frame: u32,
    /// Connections that got through the hello so far; all but the first are reconnects.
    pub connections: u64,
    /// Why the last connection ended or was refused.
    pub last_error: Option<Arc<str>>,
    /// The TAP is gone and the thread has ended; only [`Pump::stop`] is left to do.
    pub ended: bool,
}

#[derive(Debug)]
struct Shared {
    link: LinkNumber,
    tap: Tap,
    waker: Arc<Waker>,
    to_stream: Meter,
    from_stream: Meter,
    tracer: Arc<Tracer>,
    state: watch::Sender<LinkState>,
}

/// A running pump. Dropping it stops the thread and closes connection, listener and TAP.
#[derive(Debug)]
pub struct Pump {
    // First, so that dropping ends the thread before anything it uses.
    thread: Thread,
    shared: Arc<Shared>,
}

/// Ends the thread when dropped.
#[derive(Debug)]
struct Thread {
    handle: Option<JoinHandle<()>>,
    waker: Arc<Waker>,
}

impl Drop for Thread {
    fn drop(&mut self) {
        if let Some(handle) = self.handle.take() {
            self.waker.wake();
            // A panic in the thread has been printed; there is nothing to add.
            let _ = handle.join();
        }
    }
}

impl Pump {
    /// Starts the thread, in the network namespace of the caller.
    ///
    /// # Errors
    /// [`PumpError`]; TAP and listener are closed then.
    pub fn start(config: PumpConfig) -> Result<Self, PumpError> {
        let PumpConfig { link, end, tap, listener, offered, max_frame, lent } = config;
        if end == Kind::Relay {
            return Err(PumpError::NotAnEnd(link));
        }
        let offered = tap.set_offloads(offered).map_err(|e| PumpError::Tap(link, e))?;
        let start = |error| PumpError::Start(link, error);
        let waker = Arc::new(Waker::new().map_err(start)?);
        let shared = Arc::new(Shared {
            link,
            tap,
            waker: waker.clone(),
            to_stream: Meter::default(),
            from_stream: Meter::default(),
            tracer: Arc::default(),
            state: watch::Sender::new(LinkState { offloads: offered, max_frame, ..LinkState::default() }),
        });
        // Descriptors travel between processes of one kernel only.
        let local = crate::sys::is_unix(listener.as_fd()).map_err(start)?;
        let carriers = if local { Carriers::TAP_FD } else { Carriers::STREAM };
        let hello = Hello::end(end, link, max_frame.min(MAX_FRAME), offered).carrying(carriers);
        let worker = worker::Worker::new(shared.clone(), listener, hello, lent).map_err(start)?;
        let thread = std::thread::Builder::new().name(format!("link-{link}")).spawn(move || worker.run());
        Ok(Self { thread: Thread { handle: Some(thread.map_err(start)?), waker }, shared })
    }

    /// Link number.
    pub fn link(&self) -> LinkNumber {
        self.shared.link
    }

    /// The TAP, for its name, MTU and the like. Offloads are the pump's.
    pub fn tap(&self) -> &Tap {
        &self.shared.tap
    }

    /// The present state.
    pub fn state(&self) -> LinkState {
        self.shared.state.borrow().clone()
    }

    /// The state and its changes; `wait_for(|s| s.linked)` waits until frames can flow. Closed when the pump is.
    pub fn watch(&self) -> watch::Receiver<LinkState> {
        self.shared.state.subscribe()
    }

    /// TAP to stream. Drops include those of the TAP's queue in the kernel, if the caller is in the TAP's namespace.
    pub fn to_stream(&self) -> Counters {
        let mut counters = self.shared.to_stream.read();
        counters.drops += self.shared.tap.kernel_drops();
        counters
    }

    /// Stream to TAP.
    pub fn from_stream(&self) -> Counters {
        self.shared.from_stream.read()
    }

    /// Where the pump tells what passes.
    pub fn tracer(&self) -> Arc<Tracer> {
        self.shared.tracer.clone()
    }

    /// Ends connection, listener and thread; gives the TAP back as it is.
    pub fn stop(self) -> Tap {
        let Self { thread, shared } = self;
        drop(thread);
        Arc::into_inner(shared).expect("the thread has ended and held the only other reference").tap
    }
}
