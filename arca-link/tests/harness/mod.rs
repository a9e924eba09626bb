// SPDX-License-Identifier: Apache-2.0
//! Two network namespaces joined by pump, relay and pump, for the tests and the bench.
//!
//! A namespace is a thread that left the process's own: nothing is named, mounted or left behind, and the end of the
//! process ends everything.
#![allow(dead_code, unreachable_pub, reason = "each user takes what it needs")]

use std::{
    io::{self, Read, Write},
    net::{Ipv4Addr, TcpListener, TcpStream},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
        unix::net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::Command,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use arca_link::{
    Kind, LinkNumber, Pump, PumpConfig, Relay, RelayConfig, RelayState, Tap, TapConfig, relay::RelayCounters,
};
use arca_proto::{
    hello::{Carrier, Hello},
    note::{self, Note},
};
use nix::libc;
use tokio::sync::watch::Receiver;

pub const LINK: u32 = 7;
pub const CONTAINER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
pub const HELPER_IP: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 2);

pub fn link_number() -> LinkNumber {
    LinkNumber::try_from(LINK).expect("a link number")
}

type Job = Box<dyn FnOnce() + Send>;

/// A thread in a network namespace of its own.
pub struct Netns {
    jobs: mpsc::Sender<Job>,
    tid: libc::pid_t,
}

impl Netns {
    /// `None`, with the reason printed: this machine does not let us.
    pub fn new() -> Option<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (ready, answer) = mpsc::channel();
        std::thread::spawn(move || {
            let entered = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
            let _ = ready.send(entered.map(|()| nix::unistd::gettid().as_raw()));
            for job in queue {
                job();
            }
        });
        match answer.recv().expect("the namespace's thread") {
            Ok(tid) => Some(Self { jobs, tid }),
            Err(error) => {
                eprintln!("SKIP no network namespace: {error} (needs root)");
                None
            }
        }
    }

    /// Runs something in the namespace; sockets made there stay in it, threads and commands started there too.
    pub fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (done, result) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(done.send(job())))).expect("the namespace's thread");
        result.recv().expect("the job did not panic")
    }

    /// Runs `ip` with the words of `arguments`.
    pub fn ip(&self, arguments: &str) {
        let words: Vec<String> = arguments.split_whitespace().map(str::to_owned).collect();
        let output = self.run(move || Command::new("ip").args(words).output()).expect("ip of iproute2");
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    }

    /// For `ip link add ... netns`.
    pub fn tid(&self) -> libc::pid_t {
        self.tid
    }
}

/// One end: a namespace with a TAP, and the pump that listens at `socket`.
pub struct End {
    pub netns: Netns,
    pub pump: Option<Pump>,
    pub socket: PathBuf,
    /// A second descriptor of the listener, as arca-init keeps it.
    pub listener: OwnedFd,
}

impl End {
    pub fn new(directory: &Path, kind: Kind, adjust: impl FnOnce(&mut PumpConfig) + Send + 'static) -> Option<Self> {
        let netns = Netns::new()?;
        let (address, octet) = if kind == Kind::Container { (CONTAINER_IP, 1) } else { (HELPER_IP, 2) };
        // Named as in the socket directory of a namespace machine.
        let port = if octet == 1 { link_number().container_port() } else { link_number().helper_port() };
        let socket = directory.join(port.to_string());
        let listener = OwnedFd::from(UnixListener::bind(&socket).expect("a short path in a directory of our own"));
        let kept = listener.try_clone().expect("a descriptor");
        let pump = netns.run(move || {
            let tap = TapConfig { name: "eth0", mac: Some([2, 0, 0, 0, 0, octet]), mtu: 1500 };
            let tap = Tap::open(&tap).expect("a TAP as root");
            tap.set_up(true).expect("up");
            let mut config = PumpConfig::new(link_number(), kind, tap, listener);
            adjust(&mut config);
            Pump::start(config).expect("a pump")
        });
        netns.ip("link set lo up");
        netns.ip(&format!("addr add {address}/24 dev eth0"));
        Some(Self { netns, pump: Some(pump), socket, listener: kept })
    }

    pub fn pump(&self) -> &Pump {
        self.pump.as_ref().expect("a running pump")
    }
}

/// Lets time pass: pacing a load, or striking at some moment.
#[allow(clippy::disallowed_methods, reason = "time itself is what is waited for")]
pub fn pace(time: Duration) {
    std::thread::sleep(time);
}

/// Waits for counters, which tell nobody when they change.
pub fn until(what: &str, mut reached: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !reached() {
        assert!(Instant::now() < deadline, "{what}: not within ten seconds");
        pace(Duration::from_millis(1));
    }
}

/// Waits for `reached` of a watched value.
pub fn wait<T: Clone>(receiver: Receiver<T>, reached: impl FnMut(&T) -> bool) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
    runtime.block_on(wait_in_runtime(receiver, reached))
}

/// The same from within a runtime.
pub async fn wait_in_runtime<T: Clone>(mut receiver: Receiver<T>, reached: impl FnMut(&T) -> bool) -> T {
    // Longer than any clock in the code: a pump gives up a stream that stands still after ten seconds.
    let waited = tokio::time::timeout(Duration::from_secs(25), receiver.wait_for(reached)).await;
    waited.expect("within 25 seconds").expect("a living sender").clone()
}

/// Both ends and whatever relay joins them.
pub struct Rig {
    pub container: End,
    pub helper: End,
    pub counters: Arc<RelayCounters>,
    pub epoch: u64,
    pub directory: tempfile::TempDir,
}

impl Rig {
    pub fn new() -> Option<Self> {
        Self::adjusted(|_| {}, |_| {})
    }

    pub fn adjusted(
        container: impl FnOnce(&mut PumpConfig) + Send + 'static,
        helper: impl FnOnce(&mut PumpConfig) + Send + 'static,
    ) -> Option<Self> {
        let directory = tempfile::tempdir().expect("a directory");
        Some(Self {
            container: End::new(directory.path(), Kind::Container, container)?,
            helper: End::new(directory.path(), Kind::Helper, helper)?,
            counters: Arc::default(),
            epoch: 100,
            directory,
        })
    }

    /// Joins the ends with the next epoch; waits until frames can flow.
    pub fn join(&mut self) -> Relay {
        self.epoch += 1;
        let relay = self.start_relay(self.epoch);
        let state = wait(relay.watch(), |state| *state != RelayState::Connecting);
        assert!(matches!(state, RelayState::Up(_)), "{state:?}");
        for end in [&self.container, &self.helper] {
            let epoch = self.epoch;
            wait(end.pump().watch(), |state| state.linked && state.epoch == epoch);
        }
        relay
    }

    pub fn start_relay(&self, epoch: u64) -> Relay {
        let connect = |end: &End| OwnedFd::from(UnixStream::connect(&end.socket).expect("a listening pump"));
        Relay::start(RelayConfig {
            link: link_number(),
            epoch,
            container: connect(&self.container),
            helper: connect(&self.helper),
            counters: self.counters.clone(),
        })
        .expect("a relay")
    }

    /// Has the container's end lend its TAP to the helper's, as arca-relayd does for the carrier `tap-fd`; waits until
    /// frames can flow. The streams are the connection.
    pub fn hand_over(&mut self) -> [UnixStream; 2] {
        self.epoch += 1;
        let ends = [&self.container, &self.helper];
        let [container, helper] = ends.map(|end| UnixStream::connect(&end.socket).expect("a listening pump"));
        let hello = |mut from: &UnixStream| {
            let mut said = [0; Hello::SIZE];
            from.read_exact(&mut said).expect("a hello");
            said
        };
        for (mut to, other) in [(&container, &helper), (&helper, &container)] {
            let relay = Hello::relay(link_number(), self.epoch).carrying(Carrier::TapFd);
            to.write_all(&relay.encode()).expect("written");
            to.write_all(&hello(other)).expect("written");
        }
        let note = |from: &UnixStream| note::Reader::default().read(from).expect("a note").expect("a blocking stream");
        let (said, lent) = note(&container);
        assert_eq!(said, Note::Lend);
        let lent = lent.expect("a TAP");
        note::send(&helper, &Note::Lend, Some(lent.as_fd())).expect("written");
        assert_eq!(note(&helper).0, Note::Taken);
        note::send(&container, &Note::Taken, None).expect("written");
        assert_eq!(note(&container).0, Note::Taken);
        note::send(&helper, &Note::Taken, None).expect("written");
        for end in ends {
            let epoch = self.epoch;
            wait(end.pump().watch(), |state| state.linked && state.epoch == epoch);
        }
        [container, helper]
    }

    /// A TCP connection from the container to the helper.
    pub fn tcp(&self) -> (TcpStream, TcpStream) {
        tcp(&self.container.netns, &self.helper.netns, HELPER_IP)
    }

    /// Round-trip times of `count` pings, `pause` after each, sorted.
    pub fn ping(&self, count: u16, pause: Duration) -> Vec<Duration> {
        ping(&self.container.netns, HELPER_IP, count, pause)
    }
}

pub fn tcp(from: &Netns, to: &Netns, address: Ipv4Addr) -> (TcpStream, TcpStream) {
    let listener = to.run(move || TcpListener::bind((address, 0)).expect("an address of our own"));
    let port = listener.local_addr().expect("bound").port();
    let client = from.run(move || TcpStream::connect((address, port)).expect("the path works"));
    (client, listener.accept().expect("the connection").0)
}

/// Echo requests over a raw socket, answered by the other kernel.
pub fn ping(from: &Netns, to: Ipv4Addr, count: u16, pause: Duration) -> Vec<Duration> {
    let socket = from.run(|| {
        // SAFETY: no pointers; the descriptor is new and ours.
        let raw = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, libc::IPPROTO_ICMP) };
        assert!(raw >= 0, "raw socket: {}", io::Error::last_os_error());
        // SAFETY: as above.
        std::net::UdpSocket::from(unsafe { OwnedFd::from_raw_fd(raw) })
    });
    socket.set_read_timeout(Some(Duration::from_secs(2))).expect("a socket");
    let mut times = Vec::new();
    for sequence in 0..count {
        let mut packet = [0; 64];
        packet[0] = 8;
        packet[4..8].copy_from_slice(&[0xa7, 0xca, sequence.to_be_bytes()[0], sequence.to_be_bytes()[1]]);
        let sum: u32 = packet.chunks(2).map(|w| u32::from(u16::from_be_bytes([w[0], w[1]]))).sum();
        let folded = !u16::try_from((sum & 0xffff) + (sum >> 16)).expect("few words");
        packet[2..4].copy_from_slice(&folded.to_be_bytes());
        let start = Instant::now();
        socket.send_to(&packet, (to, 0)).expect("a route");
        let mut answer = [0; 256];
        // A raw socket gives the IP header too.
        while let Ok(n) = socket.recv(&mut answer) {
            if n >= 28 && answer[20] == 0 && answer[24..28] == packet[4..8] {
                times.push(start.elapsed());
                break;
            }
        }
        if !pause.is_zero() {
            pace(pause);
        }
    }
    times.sort();
    times
}

/// Sends pseudo-random bytes until told to stop; gives how many, and their checksum.
pub fn send_until(mut stream: TcpStream, stop: mpsc::Receiver<()>) -> JoinHandle<(u64, u64)> {
    std::thread::spawn(move || {
        let (mut state, mut sum, mut total) = (1u64, 0u64, 0u64);
        let mut block = vec![0; 64 << 10];
        while stop.try_recv().is_err() {
            for word in block.chunks_exact_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                word.copy_from_slice(&state.to_le_bytes());
            }
            sum = checksum(sum, &block);
            stream.write_all(&block).expect("the connection survives");
            total += block.len() as u64;
        }
        (total, sum)
    })
}

/// Receives to the end; gives how many bytes, and their checksum.
pub fn receive(mut stream: TcpStream) -> JoinHandle<(u64, u64)> {
    std::thread::spawn(move || {
        let (mut sum, mut total) = (0, 0);
        let mut block = vec![0; 64 << 10];
        loop {
            let mut have = 0;
            while have < block.len() {
                match stream.read(&mut block[have..]).expect("the connection survives") {
                    0 => break,
                    n => have += n,
                }
            }
            if have == 0 {
                return (total, sum);
            }
            sum = checksum(sum, &block[..have]);
            total += have as u64;
        }
    })
}

/// Order matters.
fn checksum(sum: u64, block: &[u8]) -> u64 {
    block.chunks_exact(8).fold(sum, |sum, word| {
        let word = u64::from_le_bytes(word.try_into().expect("eight bytes"));
        (sum ^ word).rotate_left(7).wrapping_mul(0x9e37_79b9_7f4a_7c15)
    })
}

/// Every frame that passes the interface of the calling thread's namespace, as the kernel sees it.
pub fn capture(interface: &str) -> OwnedFd {
    let protocol = u16::try_from(libc::ETH_P_ALL).expect("a protocol").to_be();
    // SAFETY: no pointers; the descriptor is new and ours.
    let raw = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(protocol)) };
    assert!(raw >= 0, "packet socket: {}", io::Error::last_os_error());
    // SAFETY: as above.
    let socket = unsafe { OwnedFd::from_raw_fd(raw) };
    let index = nix::net::if_::if_nametoindex(interface).expect("the interface");
    // SAFETY: all-zero is a valid sockaddr_ll.
    let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
    address.sll_family = u16::try_from(libc::AF_PACKET).expect("a family");
    address.sll_protocol = protocol;
    address.sll_ifindex = i32::try_from(index).expect("an index");
    let size = u32::try_from(size_of::<libc::sockaddr_ll>()).expect("small");
    // SAFETY: the pointer and the size describe `address`.
    let bound = unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size) };
    assert_eq!(bound, 0, "{}", io::Error::last_os_error());
    socket
}
