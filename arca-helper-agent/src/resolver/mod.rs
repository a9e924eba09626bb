// SPDX-License-Identifier: Apache-2.0
//! The fallback resolver: what OVN's own DNS leaves unanswered (TCP, NODATA, names of several endpoints, a container's
//! other networks, foreign names). Containers reach it at `gateway:53` through a load balancer of the gateway router,
//! with their own source address, which says who asks.
//!
//! The service starts one [`Resolver`] per address and publishes a new [`NameTable`] with every change.

mod answer;
mod forward;
mod names;
#[cfg(test)]
mod tests;
mod upstream;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

pub use names::{Known, NameTable};

use answer::{Transport, Verdict, answer};
use forward::Forwarder;
use upstream::{read_message, write_message};

/// TCP clients at the same time.
const CONNECTIONS: usize = 128;
/// A TCP client that says nothing for this long is let go.
const IDLE: Duration = Duration::from_secs(10);

/// A running resolver; dropping it closes its sockets.
#[derive(Debug)]
pub struct Resolver {
    address: SocketAddr,
    tasks: [JoinHandle<()>; 3],
}

struct Shared {
    names: watch::Receiver<Arc<NameTable>>,
    forwarder: Forwarder,
}

impl Resolver {
    /// Binds UDP and TCP on `address` and serves.
    ///
    /// # Errors
    /// The address is not on this machine, or the port is taken.
    pub async fn start(
        address: SocketAddr,
        names: watch::Receiver<Arc<NameTable>>,
        forwarders: watch::Receiver<Vec<SocketAddr>>,
    ) -> io::Result<Self> {
        let datagrams = UdpSocket::bind(address).await?;
        // Of port 0 the kernel made one: both transports must have the same.
        let address = datagrams.local_addr()?;
        let listener = TcpListener::bind(address).await?;
        let shared = Arc::new(Shared { names, forwarder: Forwarder::new(forwarders) });
        let tasks = [
            tokio::spawn(serve_udp(Arc::new(datagrams), Arc::clone(&shared))),
            tokio::spawn(serve_tcp(listener, Arc::clone(&shared))),
            tokio::spawn(async move { shared.forwarder.follow().await }),
        ];
        Ok(Self { address, tasks })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }
}

impl Drop for Resolver {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

async fn serve_udp(socket: Arc<UdpSocket>, shared: Arc<Shared>) {
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (length, client) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            Err(e) => {
                // An ICMP error of an earlier answer, most likely; the socket itself stays good.
                tracing::debug!(error = %e, "receiving a DNS query failed");
                tokio::task::yield_now().await;
                continue;
            }
        };
        let verdict = answer(&shared.names.borrow(), client.ip(), &buffer[..length], Transport::Udp);
        match verdict {
            Verdict::Drop => {}
            Verdict::Reply(reply) => send(&socket, &reply, client).await,
            Verdict::Forward(query) => {
                let own = shared.names.borrow().forwarders(client.ip()).to_vec();
                let (socket, shared) = (Arc::clone(&socket), Arc::clone(&shared));
                tokio::spawn(async move {
                    if let Verdict::Reply(reply) = shared.forwarder.forward(&query, Transport::Udp, &own).await {
                        send(&socket, &reply, client).await;
                    }
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, reply: &[u8], client: SocketAddr) {
    if let Err(e) = socket.send_to(reply, client).await {
        tracing::debug!(%client, error = %e, "sending a DNS answer failed");
    }
}

async fn serve_tcp(listener: TcpListener, shared: Arc<Shared>) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // The semaphore is never closed; a full house leaves clients in the backlog.
        let Ok(permit) = Arc::clone(&connections).acquire_owned().await else { return };
        match listener.accept().await {
            Ok((stream, client)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(e) = converse(stream, client, &shared).await {
                        tracing::debug!(%client, error = %e, "a DNS connection ended");
                    }
                    drop(permit);
                });
            }
            Err(e) => {
                // Out of descriptors, usually: they come back when connections end.
                tracing::warn!(error = %e, "accepting a DNS connection failed");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
}

async fn converse(mut stream: TcpStream, client: SocketAddr, shared: &Shared) -> io::Result<()> {
    loop {
        let Ok(message) = timeout(IDLE, read_message(&mut stream)).await else { return Ok(()) };
        let message = match message {
            Err(e) if e.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let verdict = answer(&shared.names.borrow(), client.ip(), &message, Transport::Tcp);
        let verdict = match verdict {
            Verdict::Forward(query) => {
                let own = shared.names.borrow().forwarders(client.ip()).to_vec();
                shared.forwarder.forward(&query, Transport::Tcp, &own).await
            }
            other => other,
        };
        match verdict {
            Verdict::Reply(reply) => timeout(IDLE, write_message(&mut stream, &reply)).await??,
            Verdict::Drop | Verdict::Forward(_) => return Ok(()),
        }
    }
}
