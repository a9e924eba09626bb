// SPDX-License-Identifier: Apache-2.0
//! UDP from a host port to the VIP: each client has a flow, with a socket of its own towards the VIP, so that answers
//! find back. A flow ends when nothing was sent either way for a minute.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use socket2::SockRef;
use tokio::net::UdpSocket;
use tokio::sync::oneshot;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{Instant, sleep_until};

use super::Meters;
use super::datagram::{Correspondent, DatagramSocket, LARGEST};

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
    upstream: Arc<UdpSocket>,
    clock: Arc<Clock>,
    task: AbortHandle,
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
    vip: SocketAddr,
    meters: Arc<Meters>,
    mut stop: oneshot::Receiver<()>,
    limits: Limits,
) {
    let socket = Arc::new(socket);
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
                    match open(&socket, from, vip, &meters, limits.idle, &mut tasks).await {
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
                    // Not by tokio, which calls a new socket unready until it has looked at it once. Where the socket's
                    // buffer is full, UDP drops; an error is that of an earlier datagram, answered by ICMP.
                    if SockRef::from(flow.upstream.as_ref()).send(&buffer[..length]).is_ok() {
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
    vip: SocketAddr,
    meters: &Arc<Meters>,
    idle: Duration,
    tasks: &mut JoinSet<Key>,
) -> io::Result<Flow> {
    let any = match vip {
        SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let upstream = UdpSocket::bind((any, 0)).await?;
    upstream.connect(vip).await?;
    let upstream = Arc::new(upstream);
    let clock = Arc::new(Clock::new());
    let (socket, meters) = (Arc::clone(socket), Arc::clone(meters));
    let (reader, seen) = (Arc::clone(&upstream), Arc::clone(&clock));
    let task = tasks.spawn(async move {
        answers(&reader, &socket, &client, &meters, &seen, idle).await;
        client.key()
    });
    Ok(Flow { upstream, clock, task })
}

/// Carries answers to one client until both are silent for `idle`.
async fn answers(
    upstream: &UdpSocket,
    socket: &DatagramSocket,
    client: &Correspondent,
    meters: &Meters,
    clock: &Clock,
    idle: Duration,
) {
    loop {
        let deadline = clock.last() + idle;
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
                    clock.touch();
                    match socket.send(&buffer[..length], client).await {
                        Ok(()) => { meters.bytes_out.fetch_add(length as u64, Relaxed); }
                        Err(error) => tracing::debug!(%error, client = %client.client, "an answer is dropped"),
                    }
                }
            }
            // Cancel-safe: a deadline.
            () = sleep_until(deadline) => {
                if clock.last() + idle <= Instant::now() {
                    return;
                }
            }
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
