// SPDX-License-Identifier: Apache-2.0
//! Joins the two streams of a link. Used by arca-relayd, which dials, and redials when a relay ends.
//!
//! A thread blocked in epoll passes bytes both ways as they come. It says the relay's hello to both ends, checks each
//! end's hello and passes it on, and looks at the length fields of what follows only to count and to end a stream that
//! is out of step. A direction whose reader is behind is not read: the pumps' bounds are the only queues.

use std::{
    io,
    os::fd::{AsFd, OwnedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arca_proto::{
    frame::{self, FrameError, MAX_FRAME},
    hello::{Agreement, Hello, HelloError, Kind, Offloads},
    ports::LinkNumber,
    trace::{Passed, Tracer, now_ns},
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use tokio::sync::watch;

use crate::{
    slice::short_slices_here,
    stats::{Counters, Meter},
    sys::{self, Waker},
};

/// Bytes read at once.
const CHUNK: usize = 256 << 10;
/// How long an end may take nothing while there is something for it. A reader that is only slow takes something within
/// this; one that takes nothing is dialled anew, which heals a connection that is up but does not move.
const STUCK: Duration = Duration::from_secs(3);

/// Counters of a link, kept across redials.
#[derive(Debug, Default)]
pub struct RelayCounters {
    to_helper: Meter,
    to_container: Meter,
    stuck: AtomicU64,
    tracer: Arc<Tracer>,
}

impl RelayCounters {
    /// Container to helper.
    pub fn to_helper(&self) -> Counters {
        self.to_helper.read()
    }

    /// Helper to container.
    pub fn to_container(&self) -> Counters {
        self.to_container.read()
    }

    /// Connections that were given up because they stood but moved nothing.
    pub fn stuck(&self) -> u64 {
        self.stuck.load(Relaxed)
    }

    /// Where the relay tells what passes.
    pub fn tracer(&self) -> Arc<Tracer> {
        self.tracer.clone()
    }
}

/// What a relay joins: two connected streams on which nothing has been said.
#[derive(Debug)]
pub struct RelayConfig {
    /// Link number, said and expected in the hellos.
    pub link: LinkNumber,
    /// Greater than that of any earlier connection of this link.
    pub epoch: u64,
    /// Stream to port 20000 + n.
    pub container: OwnedFd,
    /// Stream to port 30000 + n.
    pub helper: OwnedFd,
    /// Where to count.
    pub counters: Arc<RelayCounters>,
}

/// State of one connection pair. `Connecting` leads to `Up` or `Ended`, `Up` to `Ended`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RelayState {
    /// Waiting for the ends' hellos.
    Connecting,
    /// Both hellos are passed on: frames can flow.
    Up(Agreement),
    /// One end broke, or was refused; both are closed. Why, naming the end.
    Ended(Arc<str>),
}

/// A running relay. Dropping it closes both streams.
#[derive(Debug)]
pub struct Relay {
    thread: Option<JoinHandle<()>>,
    waker: Arc<Waker>,
    state: watch::Receiver<RelayState>,
}

impl Relay {
    /// Starts the thread.
    ///
    /// # Errors
    /// Out of descriptors or threads; both streams are closed then.
    pub fn start(config: RelayConfig) -> io::Result<Self> {
        let waker = Arc::new(Waker::new()?);
        let (sender, state) = watch::channel(RelayState::Connecting);
        let name = format!("relay-{}", config.link);
        let worker = Worker::new(config, &waker)?;
        let thread = std::thread::Builder::new().name(name).spawn(move || worker.run(&sender))?;
        Ok(Self { thread: Some(thread), waker, state })
    }

    /// The state and its changes.
    pub fn watch(&self) -> watch::Receiver<RelayState> {
        self.state.clone()
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.waker.wake();
            // A panic in the thread has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

/// Why one end was given up.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("closed the connection")]
    Closed,
    #[error("took nothing for {} s", STUCK.as_secs())]
    Stuck,
    #[error("stream broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error(transparent)]
    Frame(#[from] FrameError),
}

impl From<nix::Error> for Broken {
    fn from(error: nix::Error) -> Self {
        Self::Io(error.into())
    }
}

const CONTAINER: usize = 0;
const HELPER: usize = 1;
const WAKE: u64 = 2;

/// What came from one end.
struct Direction {
    kind: Kind,
    hello: [u8; Hello::SIZE],
    hello_have: usize,
    /// The end's hello, once it is complete and passed on.
    said: Option<Hello>,
    meter: frame::Meter,
    /// Since the connection began.
    frames: u64,
    buffer: Box<[u8]>,
    head: usize,
    tail: usize,
    /// When it is given up, while it is blocked.
    until: Option<Instant>,
}

impl Direction {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            hello: [0; Hello::SIZE],
            hello_have: 0,
            said: None,
            meter: frame::Meter::new(MAX_FRAME),
            frames: 0,
            buffer: vec![0; CHUNK].into_boxed_slice(),
            head: 0,
            tail: 0,
            until: None,
        }
    }

    fn blocked(&self) -> bool {
        self.head < self.tail
    }
}

struct Worker {
    link: LinkNumber,
    epoch: u64,
    counters: Arc<RelayCounters>,
    epoll: Epoll,
    /// Indexed by `CONTAINER` and `HELPER`, as the directions that come from them.
    streams: [OwnedFd; 2],
    interest: [EpollFlags; 2],
    from: [Direction; 2],
}

impl Worker {
    fn new(config: RelayConfig, waker: &Waker) -> io::Result<Self> {
        let RelayConfig { link, epoch, container, helper, counters } = config;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        epoll.add(waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        let streams = [container, helper];
        for (token, stream) in (0..).zip(&streams) {
            sys::set_nonblocking(stream.as_fd())?;
            sys::raise_buffers(stream.as_fd());
            epoll.add(stream, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
        }
        let from = [Direction::new(Kind::Container), Direction::new(Kind::Helper)];
        Ok(Self { link, epoch, counters, epoll, streams, interest: [EpollFlags::EPOLLIN; 2], from })
    }

    fn run(mut self, state: &watch::Sender<RelayState>) {
        short_slices_here();
        let why = match self.serve(state) {
            Ok(()) => "closed".into(),
            Err((end, error)) => {
                if matches!(error, Broken::Stuck) {
                    self.counters.stuck.fetch_add(1, Relaxed);
                }
                let end = if end == CONTAINER { "container" } else { "helper" };
                format!("{end} end: {error}")
            }
        };
        tracing::debug!(link = %self.link, epoch = self.epoch, why, "relay ended");
        // The ends learn of it before the watcher, who redials.
        drop(self);
        state.send_replace(RelayState::Ended(why.into()));
    }

    /// Until woken to stop; otherwise which end broke, and why.
    fn serve(&mut self, state: &watch::Sender<RelayState>) -> Result<(), (usize, Broken)> {
        let hello = Hello::relay(self.link, self.epoch).encode();
        for end in [CONTAINER, HELPER] {
            match sys::send(self.streams[end].as_fd(), &hello) {
                Ok(Some(Hello::SIZE)) => {}
                Ok(_) => return Err((end, Broken::Closed)),
                Err(error) => return Err((end, error.into())),
            }
        }
        let mut events = [EpollEvent::empty(); 3];
        loop {
            let timeout = self.timeout()?;
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err((CONTAINER, error.into())),
            };
            for event in &events[..ready] {
                if event.data() == WAKE {
                    return Ok(());
                }
                let end = if event.data() == 0 { CONTAINER } else { HELPER };
                let other = 1 - end;
                if event.events().contains(EpollFlags::EPOLLOUT) {
                    self.forward(other)?;
                }
                let read = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
                if event.events().intersects(read) && !self.from[end].blocked() {
                    self.take(end, state)?;
                } else if event.events().intersects(EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR) {
                    // Nothing more may be read before the other end takes what is there, and it never ends by itself.
                    return Err((end, Broken::Closed));
                }
            }
        }
    }

    /// Time left for whoever takes nothing; nothing is waited for while nobody is behind.
    fn timeout(&self) -> Result<EpollTimeout, (usize, Broken)> {
        let waiting = [CONTAINER, HELPER].into_iter().filter_map(|end| Some((self.from[end].until?, 1 - end)));
        let Some((until, reader)) = waiting.min() else { return Ok(EpollTimeout::NONE) };
        match until.saturating_duration_since(Instant::now()).as_millis() {
            0 => Err((reader, Broken::Stuck)),
            left => Ok(EpollTimeout::try_from(left + 1).unwrap_or(EpollTimeout::NONE)),
        }
    }

    /// One read from `end`.
    fn take(&mut self, end: usize, state: &watch::Sender<RelayState>) -> Result<(), (usize, Broken)> {
        let direction = &mut self.from[end];
        let stream = self.streams[end].as_fd();
        if direction.said.is_none() {
            // Not a byte beyond the hello: what follows is counted as frames.
            let have = &mut direction.hello_have;
            match sys::read(stream, &mut direction.hello[*have..]).map_err(|e| (end, e.into()))? {
                None => return Ok(()),
                Some(0) => return Err((end, Broken::Closed)),
                Some(n) => *have += n,
            }
            if *have < Hello::SIZE {
                return Ok(());
            }
            let said = Hello::expect(&direction.hello, direction.kind, self.link).map_err(|e| (end, e.into()))?;
            direction.said = Some(said);
            direction.buffer[..Hello::SIZE].copy_from_slice(&direction.hello);
            direction.tail = Hello::SIZE;
            self.forward(end)?;
            if let (Some(a), Some(b)) = (self.from[CONTAINER].said, self.from[HELPER].said) {
                let agreement = Agreement::between(&a, &b);
                for direction in &mut self.from {
                    direction.meter = frame::Meter::new(agreement.max_frame);
                }
                state.send_replace(RelayState::Up(agreement));
            }
            return Ok(());
        }
        let came = self.counters.tracer.now();
        match sys::read(stream, &mut direction.buffer).map_err(|e| (end, e.into()))? {
            None => return Ok(()),
            Some(0) => return Err((end, Broken::Closed)),
            Some(length) => direction.tail = length,
        }
        let seen = direction.meter.feed(&direction.buffer[..direction.tail]).map_err(|e| (end, e.into()))?;
        let counter = if end == CONTAINER { &self.counters.to_helper } else { &self.counters.to_container };
        counter.passed(seen.frames, seen.bytes);
        let first = direction.frames + 1;
        direction.frames += seen.frames;
        self.forward(end)?;
        if let Some(came_ns) = came.filter(|_| seen.frames > 0) {
            let (to_helper, epoch) = (end == CONTAINER, self.epoch);
            let (frames, bytes) = (seen.frames, seen.bytes);
            self.counters.tracer.tell(Passed { to_helper, epoch, first, frames, bytes, came_ns, went_ns: now_ns() });
        }
        Ok(())
    }

    /// Writes what came from `end` to the other, as far as it takes it.
    fn forward(&mut self, end: usize) -> Result<(), (usize, Broken)> {
        let other = 1 - end;
        let direction = &mut self.from[end];
        let before = direction.head;
        while direction.blocked() {
            match sys::send(self.streams[other].as_fd(), &direction.buffer[direction.head..direction.tail]) {
                Ok(Some(sent)) => direction.head += sent,
                Ok(None) => break,
                Err(error) => return Err((other, error.into())),
            }
        }
        if !direction.blocked() {
            (direction.head, direction.tail, direction.until) = (0, 0, None);
        } else if direction.until.is_none() || direction.head != before {
            direction.until = Some(Instant::now() + STUCK);
        }
        for end in [CONTAINER, HELPER] {
            self.update_interest(end)?;
        }
        Ok(())
    }

    fn update_interest(&mut self, end: usize) -> Result<(), (usize, Broken)> {
        let mut wanted = EpollFlags::empty();
        wanted.set(EpollFlags::EPOLLIN, !self.from[end].blocked());
        // Room is asked for only while it is missed: otherwise every read of an end would wake this thread.
        wanted.set(EpollFlags::EPOLLOUT, self.from[1 - end].blocked());
        if self.interest[end] != wanted {
            self.interest[end] = wanted;
            let mut event = EpollEvent::new(wanted, end as u64);
            self.epoll.modify(&self.streams[end], &mut event).map_err(|e| (end, e.into()))?;
        }
        Ok(())
    }
}

impl RelayState {
    /// Offload bits in force, none until up.
    pub fn offloads(&self) -> Offloads {
        match self {
            Self::Up(agreement) => agreement.offloads,
            Self::Connecting | Self::Ended(_) => Offloads::NONE,
        }
    }
}
