// SPDX-License-Identifier: Apache-2.0
//! Probes between two network namespaces: ping-pong, one stream, and a transfer whose two ends compare digests.
//!
//! They run in this process, on threads that visit the namespaces: nothing has to be installed in a container.

use std::{
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream, UdpSocket},
    sync::mpsc,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use rand::{RngCore as _, SeedableRng as _, rngs::SmallRng};
use sha2::{Digest as _, Sha256};

use crate::isolation::in_network_of;

/// An answer that takes longer counts as lost.
const LOST: Duration = Duration::from_secs(2);

/// Round trip times.
#[derive(Clone, Copy, Debug)]
pub struct Latency {
    /// Median.
    pub p50: Duration,
    /// 99th percentile.
    pub p99: Duration,
    /// Greatest.
    pub max: Duration,
}

impl Latency {
    fn of(mut times: Vec<Duration>) -> anyhow::Result<Self> {
        times.sort_unstable();
        let at = |share: f64| {
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "share is within 0..1")]
            let index = (times.len() as f64 * share) as usize;
            times.get(index.min(times.len().saturating_sub(1))).copied().context("no round trips")
        };
        Ok(Self { p50: at(0.5)?, p99: at(0.99)?, max: at(1.0)? })
    }
}

/// UDP ping-pong of 64 bytes from the namespace of process `from` to `to`, whose address is `address`.
/// `pause` lies between two pings (10 ms: 100 per second); none is flat out.
///
/// # Errors
/// If a ping is lost or a socket fails.
pub fn ping_pong(from: u32, to: u32, address: &str, pause: Option<Duration>, count: usize) -> anyhow::Result<Latency> {
    let server = in_network_of(to, || UdpSocket::bind((address, 0)))?;
    server.set_read_timeout(Some(LOST))?;
    let target = server.local_addr()?;
    let client = in_network_of(from, || UdpSocket::bind(("0.0.0.0", 0)))?;
    client.set_read_timeout(Some(LOST))?;
    client.connect(target)?;
    let warm_up = 20;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut buffer = [0; 2048];
            for _ in 0..count + warm_up {
                let Ok((length, peer)) = server.recv_from(&mut buffer) else { return };
                let _ = server.send_to(&buffer[..length], peer);
            }
        });
        let mut times = Vec::with_capacity(count);
        let mut buffer = [0; 64];
        for number in 0..count + warm_up {
            let began = Instant::now();
            client.send(&buffer)?;
            client.recv(&mut buffer).with_context(|| format!("ping {number} was lost"))?;
            if number >= warm_up {
                times.push(began.elapsed());
            }
            if let Some(pause) = pause {
                pace(pause);
            }
        }
        Latency::of(times)
    })
}

#[expect(clippy::disallowed_methods, reason = "a probe at a fixed rate has to wait for the clock")]
fn pace(pause: Duration) {
    std::thread::sleep(pause);
}

/// One TCP stream for `time`; gives bits per second as the receiver saw them.
///
/// # Errors
/// If the connection fails.
pub fn stream(from: u32, to: u32, address: &str, time: Duration) -> anyhow::Result<f64> {
    let listener = in_network_of(to, || TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let mut client = in_network_of(from, || TcpStream::connect_timeout(&target, LOST))?;
    let (mut server, _) = listener.accept()?;
    std::thread::scope(|scope| {
        let receiver = scope.spawn(move || -> io::Result<f64> {
            let mut buffer = vec![0; 1 << 20];
            let (mut bytes, began) = (0_u64, Instant::now());
            loop {
                match server.read(&mut buffer)? {
                    0 => break,
                    length => bytes += length as u64,
                }
            }
            #[expect(clippy::cast_precision_loss, reason = "a rate")]
            Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64())
        });
        let buffer = vec![0x5a; 1 << 20];
        let end = Instant::now() + time;
        while Instant::now() < end {
            client.write_all(&buffer)?;
        }
        drop(client);
        receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?.context("receive")
    })
}

/// Sends `megabytes` of random bytes over one TCP connection and compares the digests of both ends. `strike` is called
/// with the number of each sent megabyte, on the sender's thread: that is where tests kill daemons.
///
/// # Errors
/// If the connection breaks or a byte arrived wrong.
pub fn transfer(
    from: u32,
    to: u32,
    address: &str,
    megabytes: usize,
    mut strike: impl FnMut(usize) -> anyhow::Result<()>,
) -> anyhow::Result<Duration> {
    let listener = in_network_of(to, || TcpListener::bind((address, 0)))?;
    let target = listener.local_addr()?;
    let mut client = in_network_of(from, || TcpStream::connect_timeout(&target, LOST))?;
    let (mut server, _) = listener.accept()?;
    // A transfer that stands still for so long has failed: better an error than a hang.
    server.set_read_timeout(Some(Duration::from_secs(30)))?;
    client.set_write_timeout(Some(Duration::from_secs(30)))?;
    let began = Instant::now();
    let (digest, received) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut hash = Sha256::new();
            let mut buffer = vec![0; 1 << 18];
            let end = loop {
                match server.read(&mut buffer) {
                    Ok(0) => break Ok(hash.finalize()),
                    Ok(length) => hash.update(&buffer[..length]),
                    Err(error) => break Err(error),
                }
            };
            let _ = digest.send(end);
        });
        let mut random = SmallRng::seed_from_u64(7);
        let (mut hash, mut buffer) = (Sha256::new(), vec![0; 1 << 20]);
        for number in 0..megabytes {
            random.fill_bytes(&mut buffer);
            hash.update(&buffer);
            client.write_all(&buffer).with_context(|| format!("send megabyte {number}"))?;
            strike(number)?;
        }
        drop(client);
        let received = received.recv().context("the receiver panicked")?.context("receive")?;
        if received != hash.finalize() {
            bail!("what arrived is not what was sent");
        }
        Ok(began.elapsed())
    })
}

/// Gigabits per second with one decimal.
#[must_use]
pub fn gigabits(bits_per_second: f64) -> String {
    format!("{:.1} Gbit/s", bits_per_second / 1e9)
}

/// Milliseconds with three decimals.
#[must_use]
pub fn milliseconds(time: Duration) -> String {
    format!("{:.3} ms", time.as_secs_f64() * 1e3)
}
