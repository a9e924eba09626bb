// SPDX-License-Identifier: Apache-2.0
//! The helper's end, with the host's end played here and a "router" on the loopback interface.

use std::net::{IpAddr, Ipv4Addr};

use super::*;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, UnixStream};
use tokio::task::JoinHandle;

const SIDE: Side = Side {
    router: IpAddr::V4(Ipv4Addr::LOCALHOST),
    next_hop: IpAddr::V4(Ipv4Addr::LOCALHOST),
    resolver: (IpAddr::V4(Ipv4Addr::new(127, 0, 0, 3)), 29),
};

struct Host {
    stream: BufReader<UnixStream>,
    payload: Vec<u8>,
    client: JoinHandle<io::Result<()>>,
}

impl Host {
    async fn open(transport: Transport, to: SocketAddr) -> Self {
        let (near, far) = UnixStream::pair().unwrap();
        let client = tokio::spawn(async move { client(Stream::Unix(far), &[SIDE]).await });
        let mut host = Self { stream: BufReader::new(near), payload: Vec::new(), client };
        host.send(Kind::Open, &Opening { transport, to }.encode()).await;
        host
    }

    async fn send(&mut self, kind: Kind, payload: &[u8]) {
        wire::send(&mut self.stream, kind, payload).await.unwrap();
    }

    /// The next message; `None` when the helper has closed.
    async fn receive(&mut self) -> Option<(Kind, &[u8])> {
        let kind = wire::receive(&mut self.stream, &mut self.payload).await.unwrap()?;
        Some((kind, &self.payload))
    }

    async fn close(self) -> io::Result<()> {
        drop(self.stream);
        self.client.await.unwrap()
    }
}

async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

#[tokio::test]
async fn each_direction_ends_by_itself_and_the_helper_waits_for_the_host_to_close() {
    let (listener, address) = listener().await;
    let mut host = Host::open(Transport::Tcp, address).await;
    let (mut server, from) = listener.accept().await.unwrap();
    assert_eq!(from.ip(), SIDE.clients());
    assert_eq!(host.receive().await, Some((Kind::Opened, &b""[..])));
    host.send(Kind::Data, b"question").await;
    host.send(Kind::End, b"").await;
    let mut question = String::new();
    server.read_to_string(&mut question).await.unwrap();
    assert_eq!(question, "question");
    server.write_all(b"answer").await.unwrap();
    assert_eq!(host.receive().await, Some((Kind::Data, &b"answer"[..])));
    drop(server);
    assert_eq!(host.receive().await, Some((Kind::End, &b""[..])));
    assert_eq!(host.receive().await, Some((Kind::Done, &b""[..])));
    assert!(!host.client.is_finished());
    host.close().await.unwrap();
}

#[tokio::test]
async fn a_reset_of_the_container_and_a_host_that_vanishes_reset_the_other_side() {
    let (listener, address) = listener().await;
    let mut host = Host::open(Transport::Tcp, address).await;
    let (server, _) = listener.accept().await.unwrap();
    assert_eq!(host.receive().await, Some((Kind::Opened, &b""[..])));
    setsockopt(&server, sockopt::Linger, &nix::libc::linger { l_onoff: 1, l_linger: 0 }).unwrap();
    drop(server);
    // Closed without an End.
    assert_eq!(host.receive().await, None);

    let mut host = Host::open(Transport::Tcp, address).await;
    let (mut server, _) = listener.accept().await.unwrap();
    assert_eq!(host.receive().await, Some((Kind::Opened, &b""[..])));
    host.close().await.unwrap_err();
    let cut = server.read(&mut [0]).await.unwrap_err();
    assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn who_cannot_be_reached_is_named_and_nobody_but_the_router_is() {
    let (listener, address) = listener().await;
    let far = SocketAddr::new([203, 0, 113, 9].into(), 80);
    drop(listener);
    for (transport, to, why) in [
        (Transport::Tcp, address, "refused"),
        (Transport::Tcp, far, "203.0.113.9 is not the gateway router"),
        (Transport::Udp, far, "203.0.113.9 is not the gateway router"),
    ] {
        let mut host = Host::open(transport, to).await;
        let (kind, text) = host.receive().await.unwrap();
        let text = String::from_utf8_lossy(text).into_owned();
        assert!(kind == Kind::Failed && text.contains(why), "{kind:?} {text}");
        host.close().await.unwrap();
    }
}

#[tokio::test]
async fn datagrams_keep_their_bounds_both_ways() {
    let server = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let mut host = Host::open(Transport::Udp, server.local_addr().unwrap()).await;
    assert_eq!(host.receive().await, Some((Kind::Opened, &b""[..])));
    let great = vec![7; 40_000];
    let mut buffer = vec![0; wire::LARGEST];
    for datagram in [&b"one"[..], b"", &great] {
        host.send(Kind::Data, datagram).await;
        let (length, from) = server.recv_from(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], datagram);
        server.send_to(datagram, from).await.unwrap();
        assert_eq!(host.receive().await, Some((Kind::Data, datagram)));
    }
    host.close().await.unwrap();
}
