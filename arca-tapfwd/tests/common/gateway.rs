// SPDX-License-Identifier: Apache-2.0
//! A real peer: a TAP in a second namespace, joined with the container's by arca-link's own relay.

use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread;

use arca_link::relay::RelayCounters;
use arca_link::{Kind, LinkNumber, Pump, PumpConfig, Relay, RelayConfig, RelayState, Tap, TapConfig};
use nix::sched::{CloneFlags, unshare};

use super::{GATEWAY, run, until};

/// A second namespace behind the link, as helper end: the gateway, with a UDP and a TCP server on port 53, and one on
/// port 80 that answers with length and sum of what it got.
pub struct Gateway {
    _stop: mpsc::Sender<()>,
}

impl Gateway {
    pub fn start(directory: PathBuf) -> Self {
        let (stop, stopped) = mpsc::channel::<()>();
        let (ready, is_ready) = mpsc::channel();
        thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            let tap = Tap::open(&TapConfig { name: "gw", mac: Some([2, 0, 0, 0, 0, 1]), mtu: 1442 }).unwrap();
            run(&format!("ip link set lo up; ip addr add {GATEWAY}/16 dev gw; ip link set gw up"));
            let listener = UnixListener::bind(directory.join("30001")).unwrap();
            let link = LinkNumber::try_from(1).unwrap();
            let _pump = Pump::start(PumpConfig::new(link, Kind::Helper, tap, listener.into())).unwrap();
            let udp = UdpSocket::bind((GATEWAY, 53)).unwrap();
            thread::spawn(move || {
                let mut buffer = [0; 512];
                while let Ok((length, from)) = udp.recv_from(&mut buffer) {
                    let text = format!("gateway saw {from}: {}", String::from_utf8_lossy(&buffer[..length]));
                    let _ = udp.send_to(text.as_bytes(), from);
                }
            });
            let tcp = TcpListener::bind((GATEWAY, 53)).unwrap();
            thread::spawn(move || {
                for mut stream in tcp.incoming().flatten() {
                    let mut text = String::new();
                    let _ = stream.read_to_string(&mut text);
                    let _ = write!(stream, "gateway saw {}: {text}", stream.peer_addr().unwrap().ip());
                }
            });
            let sink = TcpListener::bind((GATEWAY, 80)).unwrap();
            thread::spawn(move || {
                for mut stream in sink.incoming().flatten() {
                    let (mut length, mut sum, mut buffer) = (0u64, 0u64, vec![0; 1 << 16]);
                    while let Ok(read @ 1..) = stream.read(&mut buffer) {
                        // Depends on the place of each byte.
                        for byte in &buffer[..read] {
                            sum = sum.wrapping_mul(31).wrapping_add(u64::from(*byte));
                        }
                        length += read as u64;
                    }
                    let _ = write!(stream, "{length} {sum}");
                }
            });
            ready.send(()).unwrap();
            let _ = stopped.recv();
        });
        is_ready.recv().unwrap();
        Self { _stop: stop }
    }
}

/// What arca-relayd does for link 1.
pub async fn relay(directory: &Path, epoch: u64) -> Relay {
    let mut container = None;
    until("the link listens", || {
        container = UnixStream::connect(directory.join("20001")).ok();
        container.is_some()
    })
    .await;
    let relay = Relay::start(RelayConfig {
        link: LinkNumber::try_from(1).unwrap(),
        epoch,
        container: container.unwrap().into(),
        helper: UnixStream::connect(directory.join("30001")).unwrap().into(),
        counters: Arc::new(RelayCounters::default()),
    })
    .unwrap();
    relay.watch().wait_for(|state| matches!(state, RelayState::Up(_))).await.unwrap();
    relay
}
