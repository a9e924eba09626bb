// SPDX-License-Identifier: Apache-2.0
//! The probes: ping-pong over UDP and TCP, TCP streams, small UDP datagrams. All run on threads of this process that
//! visit the network namespaces, so every path is probed by the same code.

use std::{
    io::{Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arca_tests::{isolation::in_network_of, measure};

/// An answer that takes longer counts as lost.
const LOST: Duration = Duration::from_secs(2);
const WARM_UP: usize = 50;

/// Where the server listens and where the client finds it, each in the network namespace of a process.
#[derive(Clone, Debug)]
pub(crate) struct Ends {
    pub(crate) server: u32,
    pub(crate) bind: SocketAddr,
    pub(crate) client: u32,
    /// None: where the server listens.
    pub(crate) target: Option<SocketAddr>,
}

impl Ends {
    /// Two namespaces that see each other.
    pub(crate) fn between(client: u32, server: u32, address: &str) -> anyhow::Result<Self> {
        Ok(Self { server, bind: SocketAddr::new(address.parse()?, 0), client, target: None })
    }

    fn listen(&self) -> anyhow::Result<(TcpListener, SocketAddr)> {
        let listener = in_network_of(self.server, || TcpListener::bind(self.bind)).context("listen")?;
        let target = self.target.unwrap_or(listener.local_addr()?);
        Ok((listener, target))
    }

    fn connect(&self, target: SocketAddr) -> anyhow::Result<TcpStream> {
        in_network_of(self.client, || TcpStream::connect_timeout(&target, LOST)).context("connect")
    }
}

/// Round trip times in milliseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Latency {
    pub(crate) p50: f64,
    pub(crate) p99: f64,
    pub(crate) p999: f64,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |per_mille: usize| {
            let index = (times.len() * per_mille / 1000).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3)
        };
        Self { p50: at(500), p99: at(990), p999: at(999) }
    }
}

#[expect(clippy::disallowed_methods, reason = "a probe at a fixed rate has to wait for the clock")]
fn pace(pause: Option<Duration>) {
    if let Some(pause) = pause {
        std::thread::sleep(pause);
    }
}

/// 64 bytes there and back.
pub(crate) fn udp_round_trips(ends: &Ends, pause: Option<Duration>, count: usize) -> anyhow::Result<Latency> {
    let server = in_network_of(ends.server, || UdpSocket::bind(ends.bind))?;
    server.set_read_timeout(Some(LOST))?;
    let target = ends.target.unwrap_or(server.local_addr()?);
    let client = in_network_of(ends.client, || UdpSocket::bind("0.0.0.0:0"))?;
    client.set_read_timeout(Some(LOST))?;
    client.connect(target)?;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2048];
            // An empty datagram, or silence, is the end.
            while let Ok((length @ 1.., peer)) = server.recv_from(&mut buffer) {
                let _ = server.send_to(&buffer[..length], peer);
            }
        });
        let mut times = Vec::with_capacity(count);
        let mut buffer = [0; 64];
        // The first ones may be lost on a path that only finds out who is where.
        client.set_read_timeout(Some(LOST / 10))?;
        for _ in 0..5 {
            client.send(&buffer)?;
            if client.recv(&mut buffer).is_ok() {
                break;
            }
        }
        client.set_read_timeout(Some(LOST))?;
        for number in 0..count + WARM_UP {
            let began = Instant::now();
            client.send(&buffer)?;
            client.recv(&mut buffer).with_context(|| format!("ping {number} was lost"))?;
            if number >= WARM_UP {
                times.push(began.elapsed());
            }
            pace(pause);
        }
        client.send(&[])?;
        Ok(Latency::of(times))
    })
}

/// 64 bytes there and back on one connection.
pub(crate) fn tcp_round_trips(ends: &Ends, pause: Option<Duration>, count: usize) -> anyhow::Result<Latency> {
    let (listener, target) = ends.listen()?;
    let mut client = ends.connect(target)?;
    let (mut server, _) = listener.accept()?;
    for end in [&client, &server] {
        end.set_nodelay(true)?;
        end.set_read_timeout(Some(LOST))?;
    }
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut buffer = [0; 64];
            while server.read_exact(&mut buffer).is_ok() && server.write_all(&buffer).is_ok() {}
        });
        let mut times = Vec::with_capacity(count);
        let mut buffer = [0; 64];
        for number in 0..count + WARM_UP {
            let began = Instant::now();
            client.write_all(&buffer)?;
            client.read_exact(&mut buffer)?;
            if number >= WARM_UP {
                times.push(began.elapsed());
            }
            pace(pause);
        }
        drop(client);
        Ok(Latency::of(times))
    })
}

/// Bytes and bits per second of some TCP streams at once; `back`: from the server to the client.
pub(crate) fn streams(ends: &Ends, count: usize, back: bool, time: Duration) -> anyhow::Result<(u64, f64)> {
    let (listener, target) = ends.listen()?;
    let mut pairs = Vec::new();
    for _ in 0..count {
        let client = ends.connect(target)?;
        let (server, _) = listener.accept()?;
        pairs.push(if back { (server, client) } else { (client, server) });
    }
    let began = Instant::now();
    let end = began + time;
    std::thread::scope(|scope| {
        let mut receivers = Vec::new();
        for (mut from, mut to) in pairs {
            scope.spawn(move || {
                let buffer = vec![0x5a; 1 << 20];
                while Instant::now() < end && from.write_all(&buffer).is_ok() {}
            });
            receivers.push(scope.spawn(move || {
                let mut buffer = vec![0; 1 << 20];
                let mut bytes = 0_u64;
                while let Ok(length @ 1..) = to.read(&mut buffer) {
                    bytes += length as u64;
                }
                bytes
            }));
        }
        let bytes: u64 = receivers.into_iter().map(|receiver| receiver.join().unwrap_or(0)).sum();
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        Ok((bytes, bytes as f64 * 8.0 / began.elapsed().as_secs_f64()))
    })
}

/// Two sockets for datagrams from the client to the server.
fn datagrams(ends: &Ends) -> anyhow::Result<(UdpSocket, UdpSocket)> {
    let server = in_network_of(ends.server, || UdpSocket::bind(ends.bind))?;
    let target = ends.target.unwrap_or(server.local_addr()?);
    let client = in_network_of(ends.client, || UdpSocket::bind("0.0.0.0:0"))?;
    client.connect(target)?;
    Ok((client, server))
}

/// Greatest rate with less than 1 % loss, then goodput at four times that, both in packets per second.
pub(crate) fn small_packets(ends: &Ends) -> anyhow::Result<(f64, f64)> {
    let time = Duration::from_millis(600);
    let load = |rate| {
        let (client, server) = datagrams(ends)?;
        measure::udp_load_over(&client, &server, rate, time)
    };
    let best = measure::udp_capacity_of(load)?;
    let overload = load(best.received * 4.0)?;
    Ok((best.received, overload.received))
}

/// Datagrams at a steady rate; how many arrived.
pub(crate) fn steady(ends: &Ends, rate: f64, time: Duration) -> anyhow::Result<f64> {
    let (client, server) = datagrams(ends)?;
    Ok(measure::udp_load_over(&client, &server, rate, time)?.received * time.as_secs_f64())
}

/// Sends a datagram every millisecond, has `strike` called after some, and gives the longest time in which none arrived,
/// in milliseconds. Those that are there in the end were back; none at the end is an error.
pub(crate) fn longest_gap(ends: &Ends, strike: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    const BEFORE: u32 = 300;
    const ALL: u32 = 3000;
    let (client, server) = datagrams(ends)?;
    server.set_read_timeout(Some(LOST))?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || {
            let (mut longest, mut last, mut buffer) = (Duration::ZERO, None::<Instant>, [0; 64]);
            while server.recv(&mut buffer).is_ok() {
                let now = Instant::now();
                longest = longest.max(last.map_or(Duration::ZERO, |last| now - last));
                last = Some(now);
                if buffer[..4] == ALL.to_le_bytes() {
                    return Some(longest);
                }
            }
            None
        });
        let mut strike = Some(strike);
        for number in 1..=ALL {
            if number == BEFORE
                && let Some(strike) = strike.take()
            {
                strike()?;
            }
            let mut datagram = [0; 64];
            datagram[..4].copy_from_slice(&number.to_le_bytes());
            // Between the death of an interface's other end and its return the kernel may refuse.
            let _ = client.send(&datagram);
            pace(Some(Duration::from_millis(1)));
        }
        let longest = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
        Ok(longest.context("nothing arrives any more")?.as_secs_f64() * 1e3)
    })
}
