// SPDX-License-Identifier: Apache-2.0
//! The pump's thread. Level-triggered epoll: whatever one turn leaves undone, the next one reports again.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    sync::Arc,
    time::{Duration, Instant},
};

use arca_proto::{
    hello::{Carrier, Hello, Kind},
    trace::{Passed, now_ns},
};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use super::{
    HOLD, STUCK, Shared,
    connection::{Broken, Live, Pending, Terms, may_carry},
    lent::Borrowed,
    queue::{ReceiveBuffer, SendQueue},
};
use crate::{slice::short_slices_here, sys};

const WAKE: u64 = 0;
const LISTENER: u64 = 1;
const TAP: u64 = 2;
/// The other end's TAP, while it is lent to us.
pub(super) const BORROWED: u64 = 3;
/// Tokens from here on are connections, never used twice.
const FIRST_CONNECTION: u64 = 4;

/// Connections that may be in their hellos at once; beyond it the oldest is closed.
const MAX_PENDING: usize = 4;
/// How long no connection is accepted after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(250);
/// Frames dropped in one turn while unlinked, so that a flood does not keep the listener waiting.
const DROP_TURN: usize = 256;

pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) epoll: Epoll,
    listener: OwnedFd,
    pub(super) hello: Hello,
    next_token: u64,
    pending: Vec<(u64, Pending)>,
    pub(super) live: Option<Live>,
    /// Terms of the live or the last connection.
    terms: Option<Terms>,
    /// The other end reads our TAP: we do not, also while no connection stands.
    pub(super) lent: bool,
    /// The other end's TAP. Kept when a connection breaks: frames do not need it.
    pub(super) borrowed: Option<Borrowed>,
    pub(super) send: SendQueue,
    receive: ReceiveBuffer,
    /// Unlinked, but frames still wait for a connection.
    hold_until: Option<Instant>,
    /// Out of descriptors: the listener is not watched.
    deaf_until: Option<Instant>,
    tap_watched: bool,
    /// The stream takes nothing: when it is given up.
    blocked_until: Option<Instant>,
    /// Frames since the connection began, those to come out of this end and those that came in, for the trace.
    pub(super) numbers: [u64; 2],
}

/// Indices of `Worker::numbers`.
pub(super) const OUT: usize = 0;
pub(super) const IN: usize = 1;

impl Worker {
    pub(super) fn new(shared: Arc<Shared>, listener: OwnedFd, hello: Hello, lent: bool) -> io::Result<Self> {
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        sys::set_nonblocking(listener.as_fd())?;
        sys::raise_buffers(listener.as_fd());
        epoll.add(&*shared.waker, EpollEvent::new(EpollFlags::EPOLLIN, WAKE))?;
        epoll.add(&listener, EpollEvent::new(EpollFlags::EPOLLIN, LISTENER))?;
        let frames = if lent { EpollFlags::empty() } else { EpollFlags::EPOLLIN };
        epoll.add(&shared.tap, EpollEvent::new(frames, TAP))?;
        Ok(Self {
            shared,
            epoll,
            listener,
            hello,
            next_token: FIRST_CONNECTION,
            pending: Vec::new(),
            live: None,
            terms: None,
            lent,
            borrowed: None,
            send: SendQueue::new(),
            receive: ReceiveBuffer::new(),
            hold_until: None,
            deaf_until: None,
            tap_watched: !lent,
            blocked_until: None,
            numbers: [0; 2],
        })
    }

    pub(super) fn run(mut self) {
        short_slices_here();
        if let Err(error) = self.serve() {
            tracing::error!(link = %self.shared.link, tap = self.shared.tap.name(), %error, "pump ended");
            self.shared.state.send_modify(|state| {
                state.linked = false;
                state.ended = true;
                state.last_error = Some(error.to_string().into());
            });
        }
    }

    /// Until woken to stop. An error means that the TAP or epoll itself is of no more use.
    fn serve(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); 8];
        loop {
            let timeout = self.timeout()?;
            let ready = match self.epoll.wait(&mut events, timeout) {
                Ok(ready) => ready,
                Err(nix::Error::EINTR) => 0,
                Err(error) => return Err(error.into()),
            };
            for event in &events[..ready] {
                match event.data() {
                    WAKE => return Ok(()),
                    LISTENER => self.accept()?,
                    TAP if event.events().contains(EpollFlags::EPOLLERR) => return Err(gone()),
                    TAP => self.pump_tap()?,
                    BORROWED => self.pump_borrowed(event.events())?,
                    token => self.connection(token, event.events())?,
                }
            }
        }
    }

    /// Time left until something is over; does what then follows. Nothing is waited for on an idle link.
    fn timeout(&mut self) -> io::Result<EpollTimeout> {
        let now = Instant::now();
        if self.hold_until.is_some_and(|until| until <= now) {
            self.hold_until = None;
            let (frames, _) = self.send.clear();
            self.shared.to_stream.dropped(frames);
            self.watch_tap(true)?;
        }
        if self.deaf_until.is_some_and(|until| until <= now) {
            self.deaf_until = None;
            modify(&self.epoll, self.listener.as_fd(), EpollFlags::EPOLLIN, LISTENER)?;
        }
        if self.blocked_until.is_some_and(|until| until <= now) {
            self.blocked_until = None;
            self.unlink(&Broken::Stuck)?;
        }
        let times = [self.hold_until, self.deaf_until, self.blocked_until];
        let Some(next) = times.into_iter().flatten().min() else {
            return Ok(EpollTimeout::NONE);
        };
        // Rounded up: a wake-up just before the moment would be a second one.
        let left = next.saturating_duration_since(now).as_millis() + 1;
        Ok(EpollTimeout::try_from(left).unwrap_or(EpollTimeout::NONE))
    }

    fn accept(&mut self) -> io::Result<()> {
        loop {
            let stream = match sys::accept(self.listener.as_fd()) {
                Ok(Some(stream)) => stream,
                Ok(None) => return Ok(()),
                Err(error) => {
                    // The client stays in the backlog; epoll would report it again and again.
                    self.refused(&error.into());
                    self.deaf_until = Some(Instant::now() + ACCEPT_PAUSE);
                    return modify(&self.epoll, self.listener.as_fd(), EpollFlags::empty(), LISTENER);
                }
            };
            if let Err(error) = self.begin(stream) {
                self.refused(&error);
            }
        }
    }

    fn begin(&mut self, stream: OwnedFd) -> Result<(), Broken> {
        let pending = Pending::begin(stream, &self.hello)?;
        let token = self.next_token;
        self.next_token += 1;
        self.epoll.add(&pending, EpollEvent::new(EpollFlags::EPOLLIN, token)).map_err(io::Error::from)?;
        if self.pending.len() == MAX_PENDING {
            self.pending.remove(0);
        }
        self.pending.push((token, pending));
        Ok(())
    }

    fn connection(&mut self, token: u64, events: EpollFlags) -> io::Result<()> {
        if self.live.as_ref().is_some_and(|live| live.token == token) {
            let done = if events.contains(EpollFlags::EPOLLOUT) { self.flush() } else { Ok(()) };
            // A hang-up is read as the end of the stream, after what came before it.
            let read = EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP | EpollFlags::EPOLLERR;
            let done = match self.live.as_ref().map(|live| live.terms.carrier) {
                _ if !events.intersects(read) => done,
                Some(Carrier::Stream) | None => done.and_then(|()| self.pump_stream()),
                Some(_) => done.and_then(|()| self.take_notes()),
            };
            return done.or_else(|error| self.unlink(&error));
        }
        let Some(at) = self.pending.iter().position(|(t, _)| *t == token) else { return Ok(()) };
        let outcome = match self.pending[at].1.proceed(&self.hello) {
            Ok(None) => return Ok(()),
            Ok(Some(terms)) => {
                let (_, pending) = self.pending.remove(at);
                return self.link(token, pending, terms);
            }
            Err(error) => error,
        };
        self.pending.remove(at);
        self.refused(&outcome);
        Ok(())
    }

    fn refused(&self, error: &Broken) {
        tracing::info!(link = %self.shared.link, %error, "connection refused");
        self.shared.state.send_modify(|state| state.last_error = Some(error.to_string().into()));
    }

    fn link(&mut self, token: u64, pending: Pending, terms: Terms) -> io::Result<()> {
        if let Some(live) = &self.live {
            if terms.epoch <= live.terms.epoch {
                self.refused(&Broken::OldEpoch(terms.epoch, live.terms.epoch));
                return Ok(());
            }
            self.unlink(&Broken::Displaced(terms.epoch))?;
        }
        let former = self.terms.map_or(self.hello.offloads, |t| t.agreement.offloads);
        if let Err(error) = self.shared.tap.set_offloads(terms.agreement.offloads) {
            self.refused(&error.into());
            return Ok(());
        }
        if self.borrowed.is_none() && !self.lent && !terms.agreement.offloads.contains(former) {
            // Frames made under the former terms are waiting: the other end cannot take them.
            let (frames, _) = self.send.clear();
            self.shared.to_stream.dropped(frames);
            while self.drop_frames()? {}
        }
        let stream = pending.into_stream();
        let write_cap = sys::write_cap(stream.as_fd())?;
        self.receive.clear();
        // Frames that waited for this connection are its first ones.
        self.numbers = [self.send.frames().0, 0];
        self.blocked_until = None;
        self.live = Some(Live { stream, token, terms, write_cap, blocked: false, notes: Default::default() });
        self.terms = Some(terms);
        self.hold_until = None;
        match (terms.carrier, self.hello.kind) {
            (Carrier::Stream, _) => {
                (self.lent, self.borrowed) = (false, None);
                self.linked(&terms);
                self.watch_tap(true)?;
                self.flush()
            }
            (_, Kind::Container) => {
                self.watch_tap(false)?;
                self.lend()
            }
            // What is to be borrowed comes next.
            (..) => Ok(()),
        }
        .or_else(|error| self.unlink(&error))
    }

    pub(super) fn linked(&self, terms: &Terms) {
        self.shared.state.send_modify(|state| {
            state.linked = true;
            state.epoch = terms.epoch;
            state.offloads = terms.agreement.offloads;
            state.max_frame = terms.agreement.max_frame;
            state.connections += 1;
            state.last_error = None;
        });
        tracing::debug!(link = %self.shared.link, ?terms, "linked");
    }

    pub(super) fn unlink(&mut self, error: &Broken) -> io::Result<()> {
        tracing::info!(link = %self.shared.link, %error, "unlinked");
        self.live = None;
        self.blocked_until = None;
        self.receive.clear();
        if !self.lent && self.borrowed.is_none() {
            self.send.rewind();
            self.hold_until = Some(Instant::now() + HOLD);
            self.watch_tap(false)?;
        }
        self.shared.state.send_modify(|state| {
            state.linked = false;
            state.last_error = Some(error.to_string().into());
        });
        Ok(())
    }

    pub(super) fn watch_tap(&mut self, watch: bool) -> io::Result<()> {
        if self.tap_watched != watch {
            let flags = if watch { EpollFlags::EPOLLIN } else { EpollFlags::empty() };
            self.epoll.modify(&self.shared.tap, &mut EpollEvent::new(flags, TAP))?;
            self.tap_watched = watch;
        }
        Ok(())
    }

    fn pump_tap(&mut self) -> io::Result<()> {
        if self.borrowed.is_some() {
            return self.pump_to_borrowed();
        }
        let Some(live) = &self.live else {
            self.drop_frames()?;
            return Ok(());
        };
        if live.blocked {
            return Ok(());
        }
        let max = live.terms.agreement.max_frame;
        let came = self.shared.tracer.now();
        let (mut frames, mut bytes) = (0, 0);
        while self.send.has_room() {
            let Some(length) = sys::read(self.shared.tap.as_fd(), self.send.slot())? else { break };
            if self.send.push(length, max) {
                frames += 1;
                bytes += (length - arca_proto::frame::VNET_HDR) as u64;
            } else {
                self.shared.to_stream.dropped(1);
            }
        }
        self.shared.to_stream.passed(frames, bytes);
        let flushed = self.flush();
        self.tell(OUT, came, frames, bytes);
        flushed.or_else(|error| self.unlink(&error))
    }

    /// Numbers the frames of one turn, and tells of them if somebody listens.
    pub(super) fn tell(&mut self, way: usize, came: Option<u64>, frames: u64, bytes: u64) {
        let first = self.numbers[way] + 1;
        self.numbers[way] += frames;
        if let (Some(came_ns), Some(terms), 1..) = (came, &self.terms, frames) {
            // Out of the container's end is towards the helper.
            let to_helper = (way == OUT) == (self.hello.kind == Kind::Container);
            let (epoch, went_ns) = (terms.epoch, now_ns());
            self.shared.tracer.tell(Passed { to_helper, epoch, first, frames, bytes, came_ns, went_ns });
        }
    }

    /// Reads frames nobody will get. True: there may be more.
    fn drop_frames(&mut self) -> io::Result<bool> {
        for dropped in 0..DROP_TURN {
            // A few bytes are enough: the kernel discards what does not fit.
            if sys::read(self.shared.tap.as_fd(), &mut [0; 64])?.is_none() {
                self.shared.to_stream.dropped(dropped as u64);
                return Ok(false);
            }
        }
        self.shared.to_stream.dropped(DROP_TURN as u64);
        Ok(true)
    }

    /// Writes what is queued, as far as the stream takes it.
    fn flush(&mut self) -> Result<(), Broken> {
        let Some(live) = &mut self.live else { return Ok(()) };
        let (mut blocked, before) = (false, self.send.pending().len());
        while !self.send.pending().is_empty() {
            let pending = self.send.pending();
            match sys::send(live.stream.as_fd(), &pending[..pending.len().min(live.write_cap)])? {
                Some(sent) => self.send.advance(sent),
                None => {
                    blocked = true;
                    break;
                }
            }
        }
        if !blocked {
            self.blocked_until = None;
        } else if self.blocked_until.is_none() || self.send.pending().len() != before {
            self.blocked_until = Some(Instant::now() + STUCK);
        }
        if live.blocked != blocked {
            live.blocked = blocked;
            // Room is asked for only while it is missed: otherwise every read of the relay would wake this thread.
            let flags = if blocked { EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT } else { EpollFlags::EPOLLIN };
            modify(&self.epoll, live.stream.as_fd(), flags, live.token)?;
            self.watch_tap(!blocked)?;
        }
        Ok(())
    }

    /// One read, then every complete frame in it to the TAP.
    fn pump_stream(&mut self) -> Result<(), Broken> {
        let Some(live) = &self.live else { return Ok(()) };
        let came = self.shared.tracer.now();
        let length = match sys::read(live.stream.as_fd(), self.receive.room())? {
            None => return Ok(()),
            Some(0) => return Err(Broken::Closed),
            Some(length) => length,
        };
        let agreement = &live.terms.agreement;
        let (mut frames, mut bytes, mut drops) = (0, 0, 0);
        let tap = self.shared.tap.as_fd();
        let done = self.receive.take(length, agreement.max_frame, |frame| {
            // A TAP refuses a malformed header, and everything while its interface is down: that frame is lost, the
            // link is not.
            if may_carry(agreement, frame.gso_type()) && matches!(sys::write(tap, frame.payload()), Ok(Some(_))) {
                frames += 1;
                bytes += frame.ethernet().len() as u64;
            } else {
                drops += 1;
            }
        });
        self.shared.from_stream.passed(frames, bytes);
        self.shared.from_stream.dropped(drops);
        // What was dropped here has a number too.
        self.tell(IN, came, frames + drops, bytes);
        Ok(done?)
    }
}

/// drivers/net/tun.c polls as an error when the device is unregistered, and only then.
fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, "the interface was removed")
}

fn modify(epoll: &Epoll, fd: BorrowedFd<'_>, flags: EpollFlags, token: u64) -> io::Result<()> {
    Ok(epoll.modify(fd, &mut EpollEvent::new(flags, token))?)
}
