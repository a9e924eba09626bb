// SPDX-License-Identifier: Apache-2.0
//! A private network namespace for each test, the real program in it, and a peer for its links.

// Each test binary uses its part of this.
#![allow(dead_code, unreachable_pub)]

pub mod gateway;

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use arca_proto::dial::{Address, channel};
use arca_proto::fdstore::{FdStoreError, Store};
use arca_proto::frame::{MAX_FRAME, length_field};
use arca_proto::hello::{Hello, Kind, Offloads};
use arca_proto::ports::{self, LinkNumber};
use arca_proto::tap::v1::tap_client::TapClient;
use arca_proto::tap::v1::{AttachNetworkRequest, AttachProgress};
use arca_tapfwd::udp;
use dhcproto::v4::{Decodable, Decoder, DhcpOption, Encodable, Message, MessageType, Opcode, OptionCode};
use nix::sched::{CloneFlags, unshare};
use serde_json::Value;
use tonic::transport::Channel;

pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const GATEWAY_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// Runs `test` on a thread with a network namespace of its own; that and all in it goes when the test ends.
pub fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let thread = thread::spawn(move || {
        if let Err(error) = unshare(CloneFlags::CLONE_NEWNET) {
            println!("SKIP no private network namespace ({error}): needs root");
            return;
        }
        if !Path::new("/dev/net/tun").exists() {
            println!("SKIP no /dev/net/tun");
            return;
        }
        let directory = tempfile::Builder::new().prefix("x-tap-").tempdir_in("/tmp").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(test(directory.path().to_owned()));
    });
    if let Err(panic) = thread.join() {
        std::panic::resume_unwind(panic);
    }
}

/// arca-tapfwd as arca-init runs it.
pub struct Tapfwd {
    child: Child,
    session: Option<JoinHandle<Result<(), FdStoreError>>>,
    directory: PathBuf,
}

impl Tapfwd {
    pub async fn start(directory: &Path, store: &Arc<Store>) -> Self {
        let session = store.session().unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_arca-tapfwd"));
        command.arg("serve").arg("--listen").arg(format!("sockets:{}", directory.display()));
        command.env("ARCA_LOG_LEVEL", "arca_tapfwd=debug,arca_link=debug,info");
        session.pass_to(&mut command);
        // SAFETY: prctl only, async-signal-safe: the program must not outlive a test that panics.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL)?));
        }
        let child = command.spawn().unwrap();
        let session = Some(thread::spawn(move || session.serve()));
        let tapfwd = Self { child, session, directory: directory.to_owned() };
        let socket = directory.join(ports::TAP.to_string());
        until("arca-tapfwd serves", || UnixStream::connect(&socket).is_ok()).await;
        tapfwd
    }

    pub fn client(&self) -> TapClient<Channel> {
        TapClient::new(channel(&Address::Sockets(self.directory.clone()), ports::TAP))
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// kill -9; returns when the store has read what was put before.
    pub fn kill(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        if let Some(session) = self.session.take() {
            session.join().unwrap().unwrap();
        }
    }
}

impl Drop for Tapfwd {
    fn drop(&mut self) {
        if self.session.is_some() {
            self.end();
        }
    }
}

/// Waits for what has no event for us, up to twenty seconds.
pub async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < deadline, "not within 20 s: {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub fn request(link: u32) -> AttachNetworkRequest {
    AttachNetworkRequest {
        link,
        interface: format!("eth{}", link - 1),
        mac: "02:42:ac:12:00:02".into(),
        mtu: 1442,
        addresses: vec![format!("{ADDRESS}/16"), "fd00:18::2/64".into()],
        gateway_v4: GATEWAY.to_string(),
        gateway_v6: "fd00:18::1".into(),
        confirm_dhcp: true,
        timeout_ms: 3000,
        cable: false,
    }
}

/// All progress, or the error after it.
pub async fn attach(
    client: &mut TapClient<Channel>,
    request: AttachNetworkRequest,
) -> Result<Vec<AttachProgress>, tonic::Status> {
    let mut stream = client.attach_network(request).await?.into_inner();
    let mut steps = Vec::new();
    while let Some(step) = stream.message().await? {
        steps.push(step);
    }
    Ok(steps)
}

/// Output of `ip -j ARGUMENTS`; null when it fails.
pub fn ip(arguments: &str) -> Value {
    let output = Command::new("ip").arg("-j").args(arguments.split(' ')).output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
}

pub fn run(command: &str) -> String {
    let output = Command::new("sh").arg("-ec").arg(command).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Addresses of an interface that are not link-local.
pub fn addresses(interface: &str) -> Vec<String> {
    let of = |a: &Value| format!("{}/{}", a["local"].as_str().unwrap(), a["prefixlen"]);
    let link = ip(&format!("addr show dev {interface}"));
    link[0]["addr_info"].as_array().unwrap().iter().filter(|a| a["scope"] == "global").map(of).collect()
}

/// What the peer answers to a DHCP request.
#[derive(Clone, Copy)]
pub enum Dhcp {
    Ack,
    Nak,
    Silence,
    /// An ACK to the request of this number, counted from 1; silence before.
    AckFrom(u32),
}

/// Relay and helper end in one, on the connection that it dials.
pub struct Peer {
    stream: UnixStream,
    thread: Option<JoinHandle<()>>,
    announcements: Arc<Mutex<Vec<Vec<u8>>>>,
}

impl Peer {
    /// Dials link `n` as soon as it listens.
    pub async fn dial(directory: &Path, link: u32, epoch: u64, dhcp: Dhcp) -> Self {
        let link = LinkNumber::try_from(link).unwrap();
        let path = directory.join(link.container_port().to_string());
        let mut dialled = None;
        until("the link listens", || {
            dialled = UnixStream::connect(&path).ok();
            dialled.is_some()
        })
        .await;
        let mut stream = dialled.unwrap();
        stream.write_all(&Hello::relay(link, epoch).encode()).unwrap();
        stream.write_all(&Hello::end(Kind::Helper, link, MAX_FRAME, Offloads::TSO).encode()).unwrap();
        let mut reader = stream.try_clone().unwrap();
        let mut writer = stream.try_clone().unwrap();
        let announcements = Arc::<Mutex<Vec<Vec<u8>>>>::default();
        let heard = Arc::clone(&announcements);
        let thread = thread::spawn(move || {
            let mut hello = [0; Hello::SIZE];
            if reader.read_exact(&mut hello).is_err() {
                return;
            }
            Hello::expect(&hello, Kind::Container, link).unwrap();
            let mut requests = 0;
            loop {
                let mut length = [0; 4];
                if reader.read_exact(&mut length).is_err() {
                    return;
                }
                let mut payload = vec![0; u32::from_le_bytes(length) as usize];
                if reader.read_exact(&mut payload).is_err() {
                    return;
                }
                let frame = &payload[12..];
                if frame[12..14] == [8, 6] || (frame.len() > 54 && frame[12..14] == [0x86, 0xdd] && frame[54] == 136) {
                    heard.lock().unwrap().push(frame.to_vec());
                }
                if let Some(answer) = answer(&payload[12..], dhcp, &mut requests)
                    && write_frame(&mut writer, &answer).is_err()
                {
                    return;
                }
            }
        });
        Self { stream, thread: Some(thread), announcements }
    }

    /// ARP packets and neighbour advertisements heard so far, as whole frames; they are forgotten.
    pub fn announcements(&self) -> Vec<Vec<u8>> {
        std::mem::take(&mut self.announcements.lock().unwrap())
    }

    /// Sends an IPv4 packet to the container's MAC.
    pub fn send(&mut self, packet: &[u8]) {
        write_frame(&mut self.stream, &ethernet([0x02, 0x42, 0xac, 0x12, 0, 2], packet)).unwrap();
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.stream.shutdown(std::net::Shutdown::Both);
        if let Some(thread) = self.thread.take() {
            let joined = thread.join();
            assert!(thread::panicking() || joined.is_ok());
        }
    }
}

fn ethernet(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    [&to[..], &GATEWAY_MAC, &[8, 0], packet].concat()
}

fn write_frame(stream: &mut UnixStream, frame: &[u8]) -> std::io::Result<()> {
    let length = length_field(12 + frame.len()).unwrap();
    stream.write_all(&[&length[..], &[0; 12], frame].concat())
}

fn answer(frame: &[u8], dhcp: Dhcp, requests: &mut u32) -> Option<Vec<u8>> {
    let (header, packet) = frame.split_at_checked(14)?;
    let asked = Message::decode(&mut Decoder::new(udp::payload(packet, 68, 67)?)).ok()?;
    assert_eq!(header[..6], [0xff; 6], "INIT-REBOOT is broadcast");
    *requests += 1;
    let kind = match dhcp {
        Dhcp::Ack => MessageType::Ack,
        Dhcp::Nak => MessageType::Nak,
        Dhcp::AckFrom(n) if *requests >= n => MessageType::Ack,
        Dhcp::Silence | Dhcp::AckFrom(_) => return None,
    };
    let Some(DhcpOption::RequestedIpAddress(yours)) = asked.opts().get(OptionCode::RequestedIpAddress) else {
        panic!("no requested address: {asked:?}");
    };
    let mut reply = Message::default();
    reply.set_opcode(Opcode::BootReply).set_xid(asked.xid()).set_chaddr(asked.chaddr());
    let options = reply.opts_mut();
    options.insert(DhcpOption::MessageType(kind));
    options.insert(DhcpOption::ServerIdentifier(GATEWAY));
    if kind == MessageType::Ack {
        options.insert(DhcpOption::Router(vec![GATEWAY]));
        options.insert(DhcpOption::DomainNameServer(vec![GATEWAY]));
        options.insert(DhcpOption::InterfaceMtu(1442));
        options.insert(DhcpOption::AddressLeaseTime(3600));
        reply.set_yiaddr(*yours);
    }
    let packet = udp::packet(GATEWAY, 67, Ipv4Addr::BROADCAST, 68, &reply.to_vec().unwrap());
    let to = <[u8; 6]>::try_from(&header[6..12]).unwrap();
    Some(ethernet(to, &packet))
}
