// SPDX-License-Identifier: Apache-2.0
//! UDP from a host port to the VIP: each client has a flow, with a socket of its own towards the VIP, or a stream to the
//! helper machine where the host has no route there, so that answers find back. A flow ends when nothing was sent either
//! way for a minute.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arca_proto::dial::Address;
use arca_proto::publish::{self as wire, Kind, Opening, Transport};
use socket2::SockRef;
use tokio::io::{BufReader, ReadHalf};
use tokio::net::UdpSocket;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::datagram::{Correspondent, DatagramSocket, LARGEST};
use super::helper::Passage;
use super::{Meters, Way};

/// Datagrams of a client that wait for the helper; further ones are dropped, as a full socket's buffer does.
const WAITING: usize = 64;
/// How long a helper that does not answer is tried before the flow is given up.
const PATIENCE: Duration = Duration::from_secs(10);

/// How much one publication may hold.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Silence that ends a flow.
    pub(super) idle: Duration,
    /// Clients at once; a further one takes the place of the one silent for longest.
    pub(super) flows: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self { idle: Duration::from_secs(60), flows: 1024 }
    }
}

type Key = (SocketAddr, [u8; 16]);

/// One client. The task that carries its answers has the other half.
struct Flow {
    upstream: Upstream,
    clock: Arc<Clock>,
    task: AbortHandle,
}

/// Towards the VIP.
enum Upstream {
    Socket(Arc<UdpSocket>),
    Helper(mpsc::Sender<Vec<u8>>),
}

impl Upstream {
    /// Sends at once or drops; gives whether it was sent.
    fn send(&self, datagram: &[u8]) -> bool {
        match self {
            // Not by tokio, which calls a new socket unready until it has looked at it once. Where the socket's buffer is
            // full, UDP drops; an error is that of an earlier datagram, answered by ICMP.
            Self::Socket(socket) => SockRef::from(socket.as_ref()).send(datagram).is_ok(),
            Self::Helper(queue) => queue.try_reserve().map(|place| place.send(datagram.to_vec())).is_ok(),
        }
    }
}

/// When something was last sent, in milliseconds since `start`.
struct Clock {
    start: Instant,
    last: AtomicU64,
}

impl Clock {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        // Half a billion years fit.
        self.last.store(u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
    }

    fn last(&self) -> Instant {
        self.start + Duration::from_millis(self.last.load(Relaxed))
    }
}

/// Serves until `stop`; all sockets are closed when this returns.
pub(super) async fn serve(
    socket: DatagramSocket,
    way: Way,
    meters: Arc<Meters>,
    mut stop: oneshot::Receiver<()>,
    limits: Limits,
) {
    let (socket, vip) = (Arc::new(socket), way.vip);
    let mut buffer = vec![0; LARGEST];
    let mut flows: HashMap<Key, Flow> = HashMap::new();
    let mut tasks: JoinSet<Key> = JoinSet::new();
    loop {
        tokio::select! {
            // Cancel-safe: a oneshot that has not fired keeps its value.
            _ = &mut stop => break,
            // Cancel-safe: see `receive`.
            received = socket.receive(&mut buffer) => {
                let (length, from) = match received {
                    Ok(received) => received,
                    // An ICMP error about an earlier answer, or a spurious wake-up: nothing was taken from anybody.
                    Err(error) => {
                        tracing::debug!(%error, %vip, "published UDP port");
                        continue;
                    }
                };
                // One that has just ended is replaced at once, not when its end is noticed below.
                if flows.get(&from.key()).is_none_or(|flow| flow.task.is_finished()) {
                    if flows.len() >= limits.flows {
                        evict(&mut flows);
                    }
                    match open(&socket, from, &way, &meters, limits.idle, &mut tasks).await {
                        Ok(flow) => {
                            meters.connections.fetch_add(1, Relaxed);
                            flows.insert(from.key(), flow);
                        }
                        Err(error) => {
                            tracing::warn!(%error, %vip, "a client's datagram is dropped (out of descriptors?)");
                            evict(&mut flows);
                        }
                    }
                }
                if let Some(flow) = flows.get(&from.key()) {
                    flow.clock.touch();
                    if flow.upstream.send(&buffer[..length]) {
                        meters.bytes_in.fetch_add(length as u64, Relaxed);
                    }
                }
            }
            // Cancel-safe: a task is taken out only when it is returned. An evicted one returns an error.
            Some(ended) = tasks.join_next() => {
                if let Ok(key) = ended && flows.get(&key).is_some_and(|flow| flow.task.is_finished()) {
                    flows.remove(&key);
                }
            }
        }
    }
    tasks.shutdown().await;
}

/// Ends the flow that was silent for longest.
fn evict(flows: &mut HashMap<Key, Flow>) {
    let oldest = flows.iter().min_by_key(|(_, flow)| flow.clock.last()).map(|(key, _)| *key);
    if let Some(flow) = oldest.and_then(|key| flows.remove(&key)) {
        flow.task.abort();
    }
}

async fn open(
    socket: &Arc<DatagramSocket>,
    client: Correspondent,
    way: &Way,
    meters: &Arc<Meters>,
    idle: Duration,
    tasks: &mut JoinSet<Key>,
) -> io::Result<Flow> {
    let vip = way.vip;
    let clock = Arc::new(Clock::new());
    if let Some(helper) = &way.helper {
        let (queue, datagrams) = mpsc::channel(WAITING);
        let (helper, socket, meters, seen) =
            (helper.clone(), Arc::clone(socket), Arc::clone(meters), Arc::clone(&clock));
        let task = tasks.spawn(async move {
            let answers = Answers { socket: &socket, client: &client, meters: &meters, clock: &seen };
            if let Err(error) = through(&helper, vip, datagrams, &answers, idle).await {
                tracing::debug!(%error, client = %client.client, "a client's flow through the helper broke");
            }
            client.key()
        });
        return Ok(Flow { upstream: Upstream::Helper(queue), clock, task });
    }
    let any = match vip {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let upstream = UdpSocket::bind((any, 0)).await?;
    upstream.connect(vip).await?;
    let upstream = Arc::new(upstream);
    let (socket, meters) = (Arc::clone(socket), Arc::clone(meters));
    let (reader, seen) = (Arc::clone(&upstream), Arc::clone(&clock));
    let task = tasks.spawn(async move {
        Answers { socket: &socket, client: &client, meters: &meters, clock: &seen }.carry(&reader, idle).await;
        client.key()
    });
    Ok(Flow { upstream: Upstream::Socket(upstream), clock, task })
}

/// What answers to one client need.
struct Answers<'a> {
    socket: &'a DatagramSocket,
    client: &'a Correspondent,
    meters: &'a Meters,
    clock: &'a Clock,
}

impl Answers<'_> {
    /// Carries answers until both sides are silent for `idle`.
    async fn carry(&self, upstream: &UdpSocket, idle: Duration) {
        loop {
            tokio::select! {
                // Cancel-safe: it only looks.
                readable = upstream.readable() => {
                    if readable.is_err() {
                        return;
                    }
                    // Held while there is something to read, not for the minute of silence.
                    let mut buffer = vec![0; LARGEST];
                    while let Some(read) = next(upstream, &mut buffer) {
                        // Refused by the VIP (ICMP): the client's next datagram may find it up.
                        let Ok(length) = read else { continue };
                        self.send(&buffer[..length]).await;
                    }
                }
                // Cancel-safe: a clock.
                () = self.silence(idle) => return,
            }
        }
    }

    async fn send(&self, datagram: &[u8]) {
        self.clock.touch();
        match self.socket.send(datagram, self.client).await {
            Ok(()) => {
                self.meters.bytes_out.fetch_add(datagram.len() as u64, Relaxed);
            }
            Err(error) => tracing::debug!(%error, client = %self.client.client, "an answer is dropped"),
        }
    }

    /// Returns when nothing was sent either way for `idle`.
    async fn silence(&self, idle: Duration) {
        loop {
            let deadline = self.clock.last() + idle;
            if deadline <= Instant::now() {
                return;
            }
            sleep_until(deadline).await;
        }
    }
}

/// One client's flow through the helper, until both sides are silent for `idle` or the stream ends.
async fn through(
    helper: &Address,
    vip: SocketAddr,
    mut datagrams: mpsc::Receiver<Vec<u8>>,
    answers: &Answers<'_>,
    idle: Duration,
) -> io::Result<()> {
    let opening = Opening { transport: Transport::Udp, to: vip };
    let asked = async {
        let mut passage = Passage::ask(helper, opening, PATIENCE).await?;
        passage.opened().await?;
        Ok::<_, io::Error>(passage)
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    let Passage { mut reader, mut writer } = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))?;
    let inward = async {
        while let Some(datagram) = datagrams.recv().await {
            wire::send(&mut writer, Kind::Data, &datagram).await?;
        }
        Ok(())
    };
    tokio::select! {
        // Whichever ends first ends the flow, and the stream with it.
        ended = inward => ended,
        ended = received(&mut reader, answers) => ended,
        () = answers.silence(idle) => Ok(()),
    }
}

async fn received(reader: &mut BufReader<ReadHalf<arca_proto::dial::Stream>>, answers: &Answers<'_>) -> io::Result<()> {
    let mut payload = Vec::new();
    loop {
        match wire::receive(reader, &mut payload).await? {
            Some(Kind::Data) => answers.send(&payload).await,
            Some(kind) => return Err(io::Error::other(format!("{kind:?} has no place here"))),
            None => return Ok(()),
        }
    }
}

/// The next datagram that is there already.
fn next(upstream: &UdpSocket, buffer: &mut [u8]) -> Option<io::Result<usize>> {
    match upstream.try_recv(buffer) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
        read => Some(read),
    }
}
