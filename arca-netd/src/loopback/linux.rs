// SPDX-License-Identifier: Apache-2.0
//! One server's forwarding: datagrams and streams are passed on as they are, nothing in them is looked at but the number
//! that tells an answer's question. Only as many wait at a time as the helper's resolver ever asks.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpSocket, TcpStream, UdpSocket},
    sync::Semaphore,
    task::JoinHandle,
    time::{sleep, timeout},
};

use super::Place;

/// Questions that wait at the same time, datagrams and streams each.
const WAITING: usize = 256;
/// Longest wait for an answer; clients of the resolver are gone by then.
const PATIENCE: Duration = Duration::from_secs(5);
/// Ports tried: one that is free for datagrams may be taken for streams.
const PORTS: usize = 16;

/// A port of the uplink's address that leads to one server.
#[derive(Debug)]
pub(super) struct Forwarding {
    address: SocketAddr,
    tasks: [JoinHandle<()>; 2],
}

impl Drop for Forwarding {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
    }
}

impl Forwarding {
    /// Binds a port and serves.
    ///
    /// # Errors
    /// There is no such interface or address, or every port is taken.
    pub(super) async fn open(place: &Place, server: SocketAddr) -> io::Result<Self> {
        let mut tries = 0;
        let (datagrams, streams) = loop {
            tries += 1;
            match bind(place).await {
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && tries < PORTS => {}
                bound => break bound?,
            }
        };
        let address = streams.local_addr()?;
        let client = place.client.into();
        let tasks = [
            tokio::spawn(serve_datagrams(Arc::new(datagrams), client, server)),
            tokio::spawn(serve_streams(streams, client, server)),
        ];
        Ok(Self { address, tasks })
    }

    /// Where the resolver asks.
    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }
}

/// A port of the kernel's choice, for both.
async fn bind(place: &Place) -> io::Result<(UdpSocket, TcpListener)> {
    let datagrams = UdpSocket::bind((place.address, 0)).await?;
    datagrams.bind_device(Some(place.interface.as_bytes()))?;
    let streams = TcpSocket::new_v4()?;
    streams.bind_device(Some(place.interface.as_bytes()))?;
    streams.bind(datagrams.local_addr()?)?;
    // POSIX, listen(): room for those that come at once.
    Ok((datagrams, streams.listen(128)?))
}

async fn serve_datagrams(socket: Arc<UdpSocket>, client: IpAddr, server: SocketAddr) {
    let waiting = Arc::new(Semaphore::new(WAITING));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(error) => {
                // Of an earlier answer, most likely; the socket itself stays good.
                tracing::debug!(%error, "receiving a question for a name server failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        if peer.ip() != client {
            continue;
        }
        // Too many: the resolver asks again, or goes on to its next server.
        let Ok(permit) = Arc::clone(&waiting).try_acquire_owned() else { continue };
        let (socket, question) = (Arc::clone(&socket), buffer[..length].to_vec());
        tokio::spawn(async move {
            match timeout(PATIENCE, ask(server, &question)).await {
                Ok(Ok(answer)) => drop(socket.send_to(&answer, peer).await),
                Ok(Err(error)) => tracing::debug!(%server, %error, "a name server on the loopback gave no answer"),
                Err(_) => {}
            }
            drop(permit);
        });
    }
}

/// From a socket of its own, so that the kernel tells whose answer it is, and whether there is a server at all.
async fn ask(server: SocketAddr, question: &[u8]) -> io::Result<Vec<u8>> {
    let any: IpAddr = if server.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    socket.send(question).await?;
    let mut answer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut answer).await?;
        // RFC 1035 section 4.1.1: the first two bytes are the question's number.
        if length >= 2 && question.get(..2) == answer.get(..2) {
            answer.truncate(length);
            return Ok(answer);
        }
    }
}

async fn serve_streams(listener: TcpListener, client: IpAddr, server: SocketAddr) {
    let waiting = Arc::new(Semaphore::new(WAITING));
    loop {
        // Never closed; who finds it full waits in the backlog.
        let Ok(permit) = Arc::clone(&waiting).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((mut stream, peer)) if peer.ip() == client => {
                tokio::spawn(async move {
                    let passed = timeout(PATIENCE, async {
                        let mut asked = TcpStream::connect(server).await?;
                        copy_bidirectional(&mut stream, &mut asked).await
                    });
                    if let Ok(Err(error)) = passed.await {
                        tracing::debug!(%server, %error, "a name server on the loopback gave no answer");
                    }
                    drop(permit);
                });
            }
            Ok(_) => {}
            Err(error) => {
                // Out of descriptors, usually: they come back when connections end.
                tracing::warn!(%error, "accepting a connection for a name server failed");
                sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::UdpSocket as Plain;

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;
    use crate::loopback::Loopback;

    fn place(client: &str) -> Place {
        Place { address: Ipv4Addr::LOCALHOST, interface: "lo".into(), client: client.parse().unwrap() }
    }

    /// Answers every datagram with other numbers first, and streams with what they said.
    async fn server() -> SocketAddr {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let listener = TcpListener::bind(address).await.unwrap();
        tokio::spawn(async move {
            let mut buffer = [0; 512];
            while let Ok((length, peer)) = socket.recv_from(&mut buffer).await {
                socket.send_to(b"\0\0forged", peer).await.unwrap();
                socket.send_to(&buffer[..length], peer).await.unwrap();
            }
        });
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            }
        });
        address
    }

    #[tokio::test]
    async fn the_resolver_is_served_and_nobody_else() {
        let server = server().await;
        let elsewhere: SocketAddr = "192.0.2.53:53".parse().unwrap();
        let (open, told) = Loopback::open(&[server, elsewhere], Some(&place("127.0.0.3"))).await;
        assert_eq!((told.len(), told[1].as_str()), (2, "192.0.2.53:53"));
        let at: SocketAddr = told[0].parse().unwrap();
        assert_ne!(at, server);
        let from = |address: &str| {
            let socket = Plain::bind((address, 0)).unwrap();
            socket.set_nonblocking(true).unwrap();
            UdpSocket::from_std(socket).unwrap()
        };
        let (resolver, other) = (from("127.0.0.3"), from("127.0.0.4"));
        other.send_to(b"\x05\x06other", at).await.unwrap();
        resolver.send_to(b"\x01\x02what", at).await.unwrap();
        let mut buffer = [0; 64];
        let length = resolver.recv(&mut buffer).await.unwrap();
        assert_eq!(&buffer[..length], b"\x01\x02what");
        // It came before the one that was answered.
        assert!(other.try_recv(&mut buffer).is_err());

        let connect = async |from: &str| {
            let socket = TcpSocket::new_v4().unwrap();
            socket.bind(SocketAddr::new(from.parse().unwrap(), 0)).unwrap();
            let mut stream = socket.connect(at).await.unwrap();
            let _ = stream.write_all(b"\x03\x04").await;
            let mut answer = [0; 2];
            stream.read_exact(&mut answer).await.map(|_| answer)
        };
        assert_eq!(connect("127.0.0.3").await.unwrap(), *b"\x03\x04");
        assert!(connect("127.0.0.4").await.is_err());
        drop(open);
        tokio::task::yield_now().await;
        assert!(TcpStream::connect(at).await.is_err());
    }

    #[tokio::test]
    async fn without_a_place_only_what_can_be_reached_is_told() {
        let servers = ["127.0.0.53:53", "10.0.0.53:53", "[::1]:53"].map(|text| text.parse().unwrap());
        assert_eq!(Loopback::open(&servers, None).await.1, ["10.0.0.53:53"]);
        let nowhere = Place { address: Ipv4Addr::new(192, 0, 2, 77), ..place("127.0.0.3") };
        assert_eq!(Loopback::open(&servers, Some(&nowhere)).await.1, ["10.0.0.53:53"]);
    }
}
