// SPDX-License-Identifier: Apache-2.0
//! Following single frames of a link from hop to hop.
//!
//! Frames carry no mark and nobody looks into them. A stream keeps their order, so a frame's number since its connection
//! began is the same at both ends and at the relay: each hop tells the numbers and the times, and whoever listens to all of
//! them puts them together. While nobody listens it costs one look at a flag for each batch.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use nix::time::{ClockId, clock_gettime};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use crate::{
    ports::LinkNumber,
    tap::v1::{
        self as proto,
        trace_server::{Trace, TraceServer},
    },
};

/// Batches kept for a listener that is behind; more are not told, and counted.
const BACKLOG: usize = 16_384;
/// Batches in one message.
const AT_ONCE: usize = 256;

/// Frames that passed a hop together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Passed {
    /// Direction: container to helper, or back.
    pub to_helper: bool,
    /// Connection.
    pub epoch: u64,
    /// Number of the first of them since the connection began, from 1.
    pub first: u64,
    /// How many.
    pub frames: u64,
    /// Their Ethernet bytes.
    pub bytes: u64,
    /// When the hop began to read them, nanoseconds of CLOCK_MONOTONIC.
    pub came_ns: u64,
    /// When it had passed them on.
    pub went_ns: u64,
}

impl From<Passed> for proto::Passed {
    fn from(passed: Passed) -> Self {
        let Passed { to_helper, epoch, first, frames, bytes, came_ns, went_ns } = passed;
        Self { to_helper, epoch, first, frames, bytes, came_ns, went_ns }
    }
}

/// Nanoseconds of this kernel's CLOCK_MONOTONIC.
pub fn now_ns() -> u64 {
    // The clock is always there; if not, a trace without times is what is left.
    clock_gettime(ClockId::CLOCK_MONOTONIC)
        .map(|time| u64::try_from(Duration::from(time).as_nanos()).unwrap_or_default())
        .unwrap_or_default()
}

/// Which kernel's clock [`now_ns`] reads; empty if unknown.
pub fn kernel() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

/// Where one hop of one link tells what passes. Has at most one listener.
#[derive(Debug, Default)]
pub struct Tracer {
    on: AtomicBool,
    lost: AtomicU64,
    listener: Mutex<Option<mpsc::Sender<Passed>>>,
}

impl Tracer {
    /// Whether anybody listens.
    pub fn is_on(&self) -> bool {
        self.on.load(Relaxed)
    }

    /// The time, if anybody listens.
    pub fn now(&self) -> Option<u64> {
        self.is_on().then(now_ns)
    }

    /// Tells; ends the trace when the listener has gone.
    pub fn tell(&self, passed: Passed) {
        let mut listener = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        match listener.as_ref().map(|listener| listener.try_send(passed)) {
            Some(Ok(())) => {}
            Some(Err(mpsc::error::TrySendError::Full(_))) => drop(self.lost.fetch_add(1, Relaxed)),
            Some(Err(mpsc::error::TrySendError::Closed(_))) | None => {
                *listener = None;
                self.on.store(false, Relaxed);
            }
        }
    }

    /// Begins to listen. An earlier listener hears nothing more.
    pub fn listen(&self) -> mpsc::Receiver<Passed> {
        let (sender, receiver) = mpsc::channel(BACKLOG);
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = Some(sender);
        self.lost.store(0, Relaxed);
        self.on.store(true, Relaxed);
        receiver
    }

    /// Batches that the present listener was not told.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }
}

/// Whoever has hops of links in it.
#[tonic::async_trait]
pub trait Hop: Send + Sync + 'static {
    /// Where the frames of `link` are told, if any pass here.
    async fn tracer(&self, link: LinkNumber) -> Option<Arc<Tracer>>;
}

/// `arca.tap.v1.Trace` over the hops of one process.
#[derive(Debug)]
pub struct Service<H>(H);

/// The service, to be added to a server.
pub fn server<H: Hop>(hop: H) -> TraceServer<Service<H>> {
    TraceServer::new(Service(hop))
}

#[tonic::async_trait]
impl<H: Hop> Trace for Service<H> {
    type FollowStream = ReceiverStream<Result<proto::TraceEvents, Status>>;

    async fn follow(&self, request: Request<proto::TraceRequest>) -> Result<Response<Self::FollowStream>, Status> {
        let link = request.into_inner().link;
        let number = LinkNumber::try_from(link).map_err(|e| Status::invalid_argument(format!("trace: {e}")))?;
        let tracer = self
            .0
            .tracer(number)
            .await
            .ok_or_else(|| Status::failed_precondition(format!("trace: no frame of link {link} passes here")))?;
        let (sender, receiver) = mpsc::channel(4);
        tokio::spawn(follow(tracer, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// First an empty message, which says that the trace has begun, then what passes. Ends when the listener is displaced.
async fn follow(tracer: Arc<Tracer>, sender: mpsc::Sender<Result<proto::TraceEvents, Status>>) {
    let mut passed = tracer.listen();
    let begun = proto::TraceEvents { kernel: kernel(), passed: Vec::new(), lost: 0 };
    if sender.send(Ok(begun)).await.is_err() {
        return;
    }
    let mut batch = Vec::with_capacity(AT_ONCE);
    loop {
        tokio::select! {
            // Cancel-safe: nothing is taken unless it is returned.
            count = passed.recv_many(&mut batch, AT_ONCE) => if count == 0 { return },
            // Cancel-safe: only tells that the caller has gone.
            () = sender.closed() => return,
        }
        let passed = batch.drain(..).map(proto::Passed::from).collect();
        let events = proto::TraceEvents { kernel: String::new(), passed, lost: tracer.lost() };
        if sender.send(Ok(events)).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passed(first: u64) -> Passed {
        Passed { to_helper: true, epoch: 1, first, frames: 1, bytes: 64, came_ns: 1, went_ns: 2 }
    }

    #[test]
    fn nothing_is_told_before_somebody_listens_and_after_they_went() {
        let tracer = Tracer::default();
        assert!(!tracer.is_on() && tracer.now().is_none());
        let mut listener = tracer.listen();
        assert!(tracer.now().is_some_and(|now| now > 0));
        tracer.tell(passed(1));
        assert_eq!(listener.try_recv(), Ok(passed(1)));
        let mut second = tracer.listen();
        tracer.tell(passed(2));
        assert!(listener.try_recv().is_err(), "displaced");
        assert_eq!(second.try_recv(), Ok(passed(2)));
        drop(second);
        tracer.tell(passed(3));
        assert!(!tracer.is_on());
    }

    #[test]
    fn a_listener_that_is_behind_holds_nobody_up_and_learns_how_much_it_missed() {
        let tracer = Tracer::default();
        let listener = tracer.listen();
        for number in 0..BACKLOG as u64 + 7 {
            tracer.tell(passed(number));
        }
        assert_eq!((tracer.lost(), listener.len()), (7, BACKLOG));
    }
}
