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

/// UDP datagrams with 64 bytes of payload, for a time.
#[derive(Clone, Copy, Debug, Default)]
pub struct Load {
    /// Sent, packets per second. Less than asked for where the sender could not keep up.
    pub offered: f64,
    /// Received, packets per second of the same time.
    pub received: f64,
}

impl Load {
    /// Share of the packets that did not arrive, 0 to 1.
    #[must_use]
    pub fn loss(&self) -> f64 {
        if self.offered > 0.0 { 1.0 - self.received / self.offered } else { 0.0 }
    }
}

/// Sends UDP at `rate` packets per second (infinite: as fast as one thread can) for `time`.
///
/// # Errors
/// If a socket fails.
pub fn udp_load(from: u32, to: u32, address: &str, rate: f64, time: Duration) -> anyhow::Result<Load> {
    let server = in_network_of(to, || UdpSocket::bind((address, 0)))?;
    let client = in_network_of(from, || UdpSocket::bind(("0.0.0.0", 0)))?;
    client.connect(server.local_addr()?)?;
    udp_load_over(&client, &server, rate, time)
}

/// The same with sockets of the caller's, of which the client is connected.
///
/// # Errors
/// If a socket fails.
pub fn udp_load_over(client: &UdpSocket, server: &UdpSocket, rate: f64, time: Duration) -> anyhow::Result<Load> {
    /// What is on the way when the sender ends arrives within this.
    const DRAIN: Duration = Duration::from_millis(200);
    // The receiver is not what is measured: its queue takes what comes while its thread waits for a core.
    nix::sys::socket::setsockopt(server, nix::sys::socket::sockopt::RcvBufForce, &(16 << 20))?;
    server.set_read_timeout(Some(DRAIN))?;
    let done = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let (mut received, mut buffer) = (0_u64, [0; 128]);
            loop {
                match server.recv(&mut buffer) {
                    Ok(_) => received += 1,
                    Err(_) if done.load(std::sync::atomic::Ordering::Acquire) => return received,
                    Err(_) => {}
                }
            }
        });
        let sent = send_paced(client, rate, time);
        done.store(true, std::sync::atomic::Ordering::Release);
        let received = receiver.join().map_err(|_| anyhow::anyhow!("the receiver panicked"))?;
        let (sent, taken) = sent?;
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_second = |count: u64| count as f64 / taken.as_secs_f64();
        Ok(Load { offered: per_second(sent), received: per_second(received) })
    })
}

/// Packets sent, and in what time.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "far below 2^53")]
fn send_paced(client: &UdpSocket, rate: f64, time: Duration) -> anyhow::Result<(u64, Duration)> {
    /// What a sender that was kept from the processor makes up for at once. Queues hold more; the rest is not offered.
    const BURST: u64 = 128;
    let (mut sent, mut tries, mut forgone, began) = (0_u64, 0_u64, 0_u64, Instant::now());
    loop {
        let passed = began.elapsed();
        if passed >= time {
            return Ok((sent, passed));
        }
        let due = if rate.is_finite() { (rate * passed.as_secs_f64()) as u64 - forgone } else { tries + 64 };
        forgone += due.saturating_sub(tries + BURST);
        let due = due.min(tries + BURST);
        if due <= tries {
            pace(Duration::from_micros(200));
        }
        while tries < due {
            tries += 1;
            match client.send(&[0; 64]) {
                Ok(_) => sent += 1,
                // A full queue of the sender's own interface is loss, and the packet counts as offered.
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => sent += 1,
                Err(error) => return Err(error).context("send"),
            }
        }
    }
}

/// The greatest rate with less than 1 % loss, found by offering more until it is lost and then halving the step.
///
/// # Errors
/// If a socket fails.
pub fn udp_capacity(from: u32, to: u32, address: &str, time: Duration) -> anyhow::Result<Load> {
    udp_capacity_of(|rate| udp_load(from, to, address, rate, time))
}

/// The same, of whatever `load` sends at a rate.
///
/// # Errors
/// Those of `load`.
pub fn udp_capacity_of(load: impl Fn(f64) -> anyhow::Result<Load>) -> anyhow::Result<Load> {
    const STEPS: usize = 5;
    // A trial is repeated once: another program's moment on the processor is not the path's limit.
    let trial = |rate: f64| -> anyhow::Result<Option<Load>> {
        for _ in 0..2 {
            let load = load(rate)?;
            if load.loss() < 0.01 && load.offered > rate * 0.9 {
                return Ok(Some(load));
            }
        }
        Ok(None)
    };
    let (mut best, mut low, mut high) = (Load::default(), 0.0, 20_000.0);
    while let Some(load) = trial(high)? {
        (best, low, high) = (load, high, high * 1.5);
    }
    for _ in 0..STEPS {
        let middle = f64::midpoint(low, high);
        match trial(middle)? {
            Some(load) => (best, low) = (load, middle),
            None => high = middle,
        }
    }
    Ok(best)
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
    // What is on the way may just be coming back, and the second question goes out after three seconds only.
    let mut client = in_network_of(from, || TcpStream::connect_timeout(&target, Duration::from_secs(30)))?;
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
