// SPDX-License-Identifier: Apache-2.0
//! Carries queries from 127.0.0.11 to a resolver that has an IPv6 address only.
//!
//! Packets cannot be translated from IPv4 to IPv6, so where a machine is on no IPv4 network [`crate::redirect`] leads
//! 127.0.0.11:53 here: two loopback ports, whose queries and connections are carried on. Nothing is looked into.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::redirect::RESOLVER;

/// Longest wait for an answer: clients have asked again long before.
const PATIENCE: Duration = Duration::from_secs(10);
/// Queries under way; one more is dropped, and its client asks again.
const QUERIES: usize = 256;
/// Connections under way; more wait in the backlog.
const CONNECTIONS: usize = 64;
/// Longest life of a connection.
const LIFE: Duration = Duration::from_secs(120);
/// Largest message over UDP.
const LARGEST: usize = 65_535;

/// Two loopback sockets and what they carry; all closed when dropped.
#[derive(Debug)]
pub(crate) struct Stub {
    /// Where queries come to.
    pub(crate) ports: Ports,
    _tasks: JoinSet<()>,
}

/// Ports of 127.0.0.11.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) udp: u16,
    pub(crate) tcp: u16,
}

impl Stub {
    /// Listens for what goes to `resolver`.
    pub(crate) async fn start(resolver: Ipv6Addr) -> io::Result<Self> {
        let to = SocketAddr::from((resolver, 53));
        let udp = UdpSocket::bind((RESOLVER, 0)).await?;
        let tcp = TcpListener::bind((RESOLVER, 0)).await?;
        let ports = Ports { udp: udp.local_addr()?.port(), tcp: tcp.local_addr()?.port() };
        let mut tasks = JoinSet::new();
        tasks.spawn(datagrams(udp, to));
        tasks.spawn(connections(tcp, to));
        Ok(Self { ports, _tasks: tasks })
    }
}

async fn datagrams(socket: UdpSocket, to: SocketAddr) {
    let socket = Arc::new(socket);
    let room = Arc::new(Semaphore::new(QUERIES));
    let mut under_way = JoinSet::new();
    let mut buffer = vec![0; LARGEST];
    loop {
        tokio::select! {
            // Cancel-safe: a datagram that is not returned is not read.
            received = socket.recv_from(&mut buffer) => {
                // An ICMP error of an answer to a client that has gone.
                let Ok((length, client)) = received else { continue };
                let Ok(permit) = Arc::clone(&room).try_acquire_owned() else { continue };
                let (socket, query) = (Arc::clone(&socket), buffer[..length].to_vec());
                under_way.spawn(async move {
                    match timeout(PATIENCE, exchange(&query, to)).await {
                        Ok(Ok(answer)) => drop(socket.send_to(&answer, client).await),
                        Ok(Err(error)) => tracing::debug!(%error, %to, "a query was not carried"),
                        Err(_) => {}
                    }
                    drop(permit);
                });
            }
            // Cancel-safe: a task is taken out only when it is returned.
            Some(_) = under_way.join_next() => {}
        }
    }
}

/// From a port of its own each time, so that answers cannot be guessed.
async fn exchange(query: &[u8], to: SocketAddr) -> io::Result<Vec<u8>> {
    let socket = UdpSocket::bind((Ipv6Addr::UNSPECIFIED, 0)).await?;
    socket.connect(to).await?;
    socket.send(query).await?;
    let mut answer = vec![0; LARGEST];
    let length = socket.recv(&mut answer).await?;
    answer.truncate(length);
    Ok(answer)
}

async fn connections(listener: TcpListener, to: SocketAddr) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    let mut under_way = JoinSet::new();
    loop {
        // Never closed; a full house leaves clients in the backlog.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        tokio::select! {
            // Cancel-safe: a connection that is not returned stays in the queue.
            accepted = listener.accept() => match accepted {
                Ok((client, _)) => {
                    under_way.spawn(async move {
                        if let Ok(Err(error)) = timeout(LIFE, carry(client, to)).await {
                            tracing::debug!(%error, %to, "a connection was not carried to its end");
                        }
                        drop(permit);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept connections to {RESOLVER} (out of descriptors?)");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            },
            // Cancel-safe, as above.
            Some(_) = under_way.join_next() => {}
        }
    }
}

async fn carry(mut client: TcpStream, to: SocketAddr) -> io::Result<()> {
    let mut server = timeout(PATIENCE, TcpStream::connect(to)).await??;
    copy_bidirectional(&mut client, &mut server).await.map(drop)
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};

    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn queries_and_connections_are_carried_and_end_with_it() {
        // Only the ports of the loopback resolver are of interest here: nobody listens on ::1 port 53.
        let server = UdpSocket::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let to = server.local_addr().unwrap();
        let serve = async {
            let mut buffer = [0; 64];
            let (length, client) = server.recv_from(&mut buffer).await.unwrap();
            assert_eq!(client.ip(), IpAddr::from(Ipv6Addr::LOCALHOST));
            server.send_to(&[b"answer to ", &buffer[..length]].concat(), client).await.unwrap();
        };
        let (answer, ()) = tokio::join!(exchange(b"query", to), serve);
        assert_eq!(answer.unwrap(), b"answer to query");

        let listener = TcpListener::bind((Ipv6Addr::LOCALHOST, 0)).await.unwrap();
        let to = listener.local_addr().unwrap();
        let entry = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let at = entry.local_addr().unwrap();
        let task = tokio::spawn(connections(entry, to));
        let mut client = TcpStream::connect(at).await.unwrap();
        client.write_all(b"query").await.unwrap();
        let (mut server, _) = listener.accept().await.unwrap();
        let mut word = [0; 5];
        server.read_exact(&mut word).await.unwrap();
        server.write_all(&word).await.unwrap();
        drop(server);
        let mut all = Vec::new();
        client.read_to_end(&mut all).await.unwrap();
        assert_eq!(all, b"query");
        task.abort();
        assert!(task.await.is_err());
        assert!(TcpStream::connect(at).await.is_err(), "nobody listens any more");
    }
}
