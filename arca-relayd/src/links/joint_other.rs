// SPDX-License-Identifier: Apache-2.0
//! What joins two streams where there is no epoll: two blocking threads, one a direction. Same contract as arca-link's
//! relay, which serves Linux.

use std::{
    io::{self, Read, Write},
    net::Shutdown,
    os::{fd::OwnedFd, unix::net::UnixStream},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use arca_proto::{
    frame::{MAX_FRAME, Meter},
    hello::{Agreement, Hello, Kind},
    ports::LinkNumber,
    trace::{Passed, Tracer, now_ns},
};
use tokio::sync::watch;

const CHUNK: usize = 256 << 10;

/// What went through one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames; a super-frame counts once.
    pub frames: u64,
    /// Ethernet bytes.
    pub bytes: u64,
    /// A relay drops nothing.
    pub drops: u64,
}

impl From<Counters> for arca_proto::tap::v1::Counters {
    fn from(counters: Counters) -> Self {
        Self { frames: counters.frames, bytes: counters.bytes, drops: counters.drops }
    }
}

#[derive(Debug, Default)]
struct Count {
    frames: AtomicU64,
    bytes: AtomicU64,
}

impl Count {
    fn read(&self) -> Counters {
        Counters { frames: self.frames.load(Relaxed), bytes: self.bytes.load(Relaxed), drops: 0 }
    }
}

/// Counters of a link, kept across redials.
#[derive(Debug, Default)]
pub(super) struct Counting {
    to_helper: Count,
    to_container: Count,
    tracer: Arc<Tracer>,
}

impl Counting {
    pub(super) fn to_helper(&self) -> Counters {
        self.to_helper.read()
    }

    pub(super) fn to_container(&self) -> Counters {
        self.to_container.read()
    }

    /// Blocking writes wait as long as it takes: nothing is given up here.
    pub(super) fn stuck(&self) -> u64 {
        0
    }

    pub(super) fn tracer(&self) -> Arc<Tracer> {
        self.tracer.clone()
    }
}

#[derive(Debug)]
pub(super) struct JointConfig {
    pub(super) link: LinkNumber,
    pub(super) epoch: u64,
    pub(super) container: OwnedFd,
    pub(super) helper: OwnedFd,
    pub(super) counters: Arc<Counting>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum State {
    Connecting,
    Up(Agreement),
    Ended(Arc<str>),
}

/// Dropping it closes both streams.
#[derive(Debug)]
pub(super) struct Joint {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    link: LinkNumber,
    epoch: u64,
    container: UnixStream,
    helper: UnixStream,
    counters: Arc<Counting>,
    /// Of the container's and the helper's end.
    hellos: Mutex<(Option<Hello>, Option<Hello>)>,
    state: watch::Sender<State>,
}

impl Joint {
    pub(super) fn start(config: JointConfig) -> io::Result<Self> {
        let JointConfig { link, epoch, container, helper, counters } = config;
        let (container, helper) = (UnixStream::from(container), UnixStream::from(helper));
        for mut stream in [&container, &helper] {
            stream.set_nonblocking(false)?;
            stream.write_all(&Hello::relay(link, epoch).encode())?;
        }
        let state = watch::Sender::new(State::Connecting);
        let shared = Arc::new(Shared { link, epoch, container, helper, counters, hellos: Mutex::default(), state });
        let mut joint = Self { shared: shared.clone(), threads: Vec::new() };
        for kind in [Kind::Container, Kind::Helper] {
            let shared = shared.clone();
            let thread = std::thread::Builder::new().name(format!("relay-{link}")).spawn(move || shared.run(kind))?;
            joint.threads.push(thread);
        }
        Ok(joint)
    }

    pub(super) fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }
}

impl Drop for Joint {
    fn drop(&mut self) {
        self.shared.end("closed");
        for thread in self.threads.drain(..) {
            // A panic in the thread has been printed; there is nothing to add.
            let _ = thread.join();
        }
    }
}

impl Shared {
    /// Everything from one end until one of them breaks.
    fn run(&self, kind: Kind) {
        if let Err(error) = self.pass(kind) {
            self.end(&format!("{kind}: {error}"));
        }
    }

    /// Wakes both threads out of their reads; the first reason counts.
    fn end(&self, why: &str) {
        for stream in [&self.container, &self.helper] {
            // Fails only when it is down already.
            let _ = stream.shutdown(Shutdown::Both);
        }
        self.state.send_if_modified(|state| {
            let first = !matches!(state, State::Ended(_));
            if first {
                *state = State::Ended(why.into());
            }
            first
        });
    }

    fn pass(&self, kind: Kind) -> io::Result<()> {
        let (mut from, mut to, count) = match kind {
            Kind::Container => (&self.container, &self.helper, &self.counters.to_helper),
            Kind::Helper | Kind::Relay => (&self.helper, &self.container, &self.counters.to_container),
        };
        let mut bytes = [0; Hello::SIZE];
        from.read_exact(&mut bytes)?;
        let hello = Hello::expect(&bytes, kind, self.link).map_err(invalid)?;
        to.write_all(&bytes)?;
        {
            let mut hellos = self.hellos.lock().unwrap_or_else(PoisonError::into_inner);
            match kind {
                Kind::Container => hellos.0 = Some(hello),
                Kind::Helper | Kind::Relay => hellos.1 = Some(hello),
            }
            if let (Some(container), Some(helper)) = *hellos {
                self.state.send_if_modified(|state| {
                    let connecting = *state == State::Connecting;
                    if connecting {
                        *state = State::Up(Agreement::between(&container, &helper));
                    }
                    connecting
                });
            }
        }
        let (mut meter, mut buffer, mut passed) = (Meter::new(MAX_FRAME), vec![0; CHUNK], 0);
        loop {
            let length = from.read(&mut buffer)?;
            let came = self.counters.tracer.now();
            if length == 0 {
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "closed the connection"));
            }
            let seen = meter.feed(&buffer[..length]).map_err(invalid)?;
            count.frames.fetch_add(seen.frames, Relaxed);
            count.bytes.fetch_add(seen.bytes, Relaxed);
            to.write_all(&buffer[..length])?;
            let (first, frames, bytes) = (passed + 1, seen.frames, seen.bytes);
            passed += frames;
            if let Some(came_ns) = came.filter(|_| frames > 0) {
                let (to_helper, epoch) = (kind == Kind::Container, self.epoch);
                let went_ns = now_ns();
                self.counters.tracer.tell(Passed { to_helper, epoch, first, frames, bytes, came_ns, went_ns });
            }
        }
    }
}

fn invalid(error: impl std::error::Error + Send + Sync + 'static) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, error)
}
