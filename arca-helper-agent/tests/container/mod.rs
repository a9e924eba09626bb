// SPDX-License-Identifier: Apache-2.0
//! A container for tests: a network namespace with an eth0 whose frames go through a real link into the helper machine.
//! Sockets of the test are opened inside it.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use arca_link::{Kind, Pump, PumpConfig, Tap, TapConfig};
use arca_proto::dial::dial;
use arca_proto::hello::Hello;
use arca_proto::ports::LinkNumber;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::{Name, RecordType};
use tokio::io::AsyncWriteExt;

use crate::machine::{Machine, run};

const TIMEOUT: Duration = Duration::from_secs(1);

pub struct Container {
    holder: Child,
    namespace: File,
    _pump: Pump,
    pub ip: Ipv4Addr,
    pub ip6: Option<Ipv6Addr>,
}

/// Runs something in a network namespace; what it opens stays there.
fn within<T: Send>(namespace: Option<&File>, what: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let inside = move || {
            if let Some(namespace) = namespace {
                nix::sched::setns(namespace, nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            }
            what()
        };
        scope.spawn(inside).join().unwrap()
    })
}

impl Container {
    /// Joins link `link` with an eth0 that has this MAC.
    pub async fn start(link: u32, mac: [u8; 6]) -> Self {
        let holder = Command::new("unshare").args(["--net", "sleep", "200"]).stdin(Stdio::null()).spawn().unwrap();
        let path = format!("/proc/{}/ns/net", holder.id());
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        let started = Instant::now();
        while std::fs::read_link(&path).unwrap() == own {
            assert!(started.elapsed() < Duration::from_secs(5));
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let namespace = File::open(&path).unwrap();
        let open = || Tap::open(&TapConfig { name: "eth0", mac: Some(mac), mtu: 1442 }).unwrap();
        let tap = within(Some(&namespace), open);
        let number = LinkNumber::try_from(link).unwrap();
        let socket = format!("/tmp/c{link}.sock");
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let pump = Pump::start(PumpConfig::new(number, Kind::Container, tap, listener.into())).unwrap();
        tokio::spawn(async move {
            let mut helper = dial(&Machine::address(), number.helper_port()).await.unwrap();
            let mut container = tokio::net::UnixStream::connect(&socket).await.unwrap();
            let hello = Hello::relay(number, 1).encode();
            helper.write_all(&hello).await.unwrap();
            container.write_all(&hello).await.unwrap();
            // Ends with the machine.
            let _ = tokio::io::copy_bidirectional(&mut helper, &mut container).await;
        });
        let container = Self { holder, namespace, _pump: pump, ip: Ipv4Addr::UNSPECIFIED, ip6: None };
        container.ip_command("link set eth0 up");
        container.ip_command("link set lo up");
        container
    }

    /// Gives it an IPv4 address and default route.
    pub fn add_v4(&mut self, address: &str, gateway: Ipv4Addr) {
        self.ip_command(&format!("address add {address} dev eth0"));
        self.ip_command(&format!("route add default via {gateway}"));
        self.ip = address.split('/').next().unwrap().parse().unwrap();
    }

    /// Gives it an IPv6 address and default route.
    pub fn add_v6(&mut self, address: &str, gateway: Ipv6Addr) {
        self.ip_command(&format!("address add {address} dev eth0 nodad"));
        self.ip_command(&format!("route add default via {gateway}"));
        self.ip6 = address.split('/').next().unwrap().parse().ok();
    }

    fn ip_command(&self, arguments: &str) {
        let pid = self.holder.id().to_string();
        let arguments: Vec<&str> = ["-n", "-t", &pid, "ip"].into_iter().chain(arguments.split(' ')).collect();
        run("nsenter", &arguments);
    }

    fn within<T: Send>(this: Option<&Self>, what: impl FnOnce() -> T + Send) -> T {
        within(this.map(|c| &c.namespace), what)
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// Serves TCP and UDP on a port of a container, or of the host: tells each client who it seems to be.
pub fn serve(at: Option<&Container>, port: u16) {
    let (tcp, udp) = Container::within(at, || {
        let tcp = TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)).unwrap();
        (tcp, UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)).unwrap())
    });
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let peer = stream.peer_addr().unwrap().ip().to_canonical().to_string();
            let _ = stream.write_all(peer.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(peer.ip().to_string().as_bytes(), peer);
        }
    });
}

/// Who `from` seems to be to the TCP server at `to`; `None` if it is not reached within a second.
pub fn tcp(from: Option<&Container>, to: impl Into<SocketAddr>) -> Option<String> {
    let to = to.into();
    Container::within(from, || {
        let mut stream = TcpStream::connect_timeout(&to, TIMEOUT).ok()?;
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).ok()?;
        Some(answer)
    })
}

/// The same by UDP.
pub fn udp(from: Option<&Container>, to: (Ipv4Addr, u16)) -> Option<String> {
    Container::within(from, || {
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.send_to(b"who am I?", to).ok()?;
        let mut buffer = [0; 64];
        let (length, _) = socket.recv_from(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

/// A query to a name server.
pub fn query(name: &str, kind: RecordType, edns: bool) -> Message {
    let mut message = Message::new(4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind));
    if edns {
        message.set_edns(Edns::new());
    }
    message
}

/// Asks a name server by UDP, or by TCP.
pub fn ask(from: &Container, server: impl Into<IpAddr>, by_tcp: bool, message: &Message) -> Option<Message> {
    let server = server.into();
    let packet = message.to_vec().unwrap();
    let reply = Container::within(Some(from), || {
        let mut buffer = vec![0; 4096];
        if by_tcp {
            let mut stream = TcpStream::connect_timeout(&(server, 53).into(), TIMEOUT).ok()?;
            stream.set_read_timeout(Some(TIMEOUT)).unwrap();
            stream.write_all(&u16::try_from(packet.len()).unwrap().to_be_bytes()).ok()?;
            stream.write_all(&packet).ok()?;
            let mut length = [0; 2];
            stream.read_exact(&mut length).ok()?;
            buffer.truncate(u16::from_be_bytes(length).into());
            stream.read_exact(&mut buffer).ok()?;
            return Some(buffer);
        }
        let any = if server.is_ipv4() { IpAddr::V4(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
        let socket = UdpSocket::bind((any, 0)).ok()?;
        socket.set_read_timeout(Some(TIMEOUT)).unwrap();
        socket.send_to(&packet, (server, 53)).ok()?;
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, SocketAddr::from((server, 53)), "the answer comes from whom was asked");
        buffer.truncate(length);
        Some(buffer)
    })?;
    Some(Message::from_vec(&reply).unwrap())
}
