// SPDX-License-Identifier: Apache-2.0
//! Round-trip times and one TCP stream through pump, relay and pump, beside a veth pair in the same run.
//!
//! `cargo run --release -p arca-link --example bench [ROUNDS]`, as root. Rounds alternate, so that other load on the
//! machine meets both; the best of each is printed too.
#![allow(clippy::print_stdout, reason = "this is what a bench is for")]

#[path = "../tests/harness/mod.rs"]
mod harness;

use std::{
    io::{Read, Write},
    net::{Ipv4Addr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use harness::{HELPER_IP, Netns, Rig, ping, tcp};

const VETH_IP: Ipv4Addr = Ipv4Addr::new(10, 78, 0, 2);

fn main() {
    let rounds = std::env::args().nth(1).and_then(|n| n.parse().ok()).unwrap_or(3);
    let Some(mut rig) = Rig::new() else { return };
    let _relay = rig.join();
    let (a, b) = (&rig.container.netns, &rig.helper.netns);
    a.ip(&format!("link add veth0 type veth peer name veth0 netns {}", b.tid()));
    a.ip("addr add 10.78.0.1/24 dev veth0");
    b.ip(&format!("addr add {VETH_IP}/24 dev veth0"));
    a.ip("link set veth0 up");
    b.ip("link set veth0 up");

    for address in [HELPER_IP, VETH_IP] {
        // ARP and caches.
        ping(a, address, 50, Duration::ZERO);
    }
    println!("link: offloads {}", rig.helper.pump().state().offloads);
    for round in 1..=rounds {
        for (name, address) in [("link", HELPER_IP), ("veth", VETH_IP)] {
            let paced = ping(a, address, 200, Duration::from_millis(10));
            let flat = ping(a, address, 5000, Duration::ZERO);
            let cpu = cpu_seconds();
            let rate = stream(a, b, address, Duration::from_secs(3));
            let cpu = cpu_seconds() - cpu;
            let reverse = stream(
                b,
                a,
                if name == "link" { harness::CONTAINER_IP } else { Ipv4Addr::new(10, 78, 0, 1) },
                Duration::from_secs(2),
            );
            println!(
                "round {round} {name}: 100/s p50 {} p99 {}; flat out p50 {} p99 {}; TCP {rate:.2} Gbit/s ({cpu:.1} s CPU in 3 s), reverse {reverse:.2}",
                micros(&paced, 50),
                micros(&paced, 99),
                micros(&flat, 50),
                micros(&flat, 99)
            );
        }
        let (sent, got) = small_packets(a, b, HELPER_IP, Duration::from_secs(2));
        println!(
            "round {round} link: 64-byte UDP as fast as one sender can: offered {sent:.0} kpps, arrived {got:.0} kpps"
        );
    }
    println!("to stream {:?}, from stream {:?}", rig.container.pump().to_stream(), rig.helper.pump().from_stream());
}

fn micros(sorted: &[Duration], percentile: usize) -> String {
    sorted
        .get(sorted.len() * percentile / 100)
        .map_or("lost".into(), |time| format!("{:.0} us", time.as_secs_f64() * 1e6))
}

/// Of this process, all threads.
fn cpu_seconds() -> f64 {
    let usage = nix::sys::resource::getrusage(nix::sys::resource::UsageWho::RUSAGE_SELF).expect("getrusage");
    let seconds = |time: nix::sys::time::TimeVal| {
        Duration::new(time.tv_sec().unsigned_abs(), 0).as_secs_f64() + time.tv_usec() as f64 / 1e6
    };
    seconds(usage.user_time()) + seconds(usage.system_time())
}

/// Gbit/s of one connection.
fn stream(from: &Netns, to: &Netns, address: Ipv4Addr, time: Duration) -> f64 {
    let (client, mut server) = tcp(from, to, address);
    let sender = std::thread::spawn(move || send(client, time));
    let (mut total, mut block) = (0, vec![0; 256 << 10]);
    let start = Instant::now();
    while let Ok(n @ 1..) = server.read(&mut block) {
        total += n;
    }
    sender.join().expect("the sender");
    total as f64 * 8.0 / start.elapsed().as_secs_f64() / 1e9
}

fn send(mut stream: TcpStream, time: Duration) {
    let (block, start) = (vec![0; 128 << 10], Instant::now());
    while start.elapsed() < time && stream.write_all(&block).is_ok() {}
}

/// Offered and received, in thousands a second.
fn small_packets(from: &Netns, to: &Netns, address: Ipv4Addr, time: Duration) -> (f64, f64) {
    let receiver = to.run(move || UdpSocket::bind((address, 0)).expect("an address"));
    let target = receiver.local_addr().expect("bound");
    let sender = from.run(|| UdpSocket::bind("0.0.0.0:0").expect("any"));
    receiver.set_read_timeout(Some(Duration::from_millis(200))).expect("a socket");
    let sending = std::thread::spawn(move || {
        let (mut sent, start) = (0u64, Instant::now());
        while start.elapsed() < time {
            for _ in 0..32 {
                sent += u64::from(sender.send_to(&[0; 22], target).is_ok());
            }
        }
        sent
    });
    let (mut got, mut block) = (0u64, [0; 64]);
    let start = Instant::now();
    while receiver.recv(&mut block).is_ok() || start.elapsed() < time {
        got += 1;
    }
    let sent = sending.join().expect("the sender");
    (sent as f64 / time.as_secs_f64() / 1e3, got as f64 / time.as_secs_f64() / 1e3)
}
