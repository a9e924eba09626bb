// SPDX-License-Identifier: Apache-2.0
//! TCP from a host listener to the VIP: each connection is copied both ways, the end of each direction on its own. Where
//! the host has no route to the VIP, [`helper`] carries it.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arca_proto::dial::Address;
use arca_proto::publish::{Opening, Transport};
use socket2::SockRef;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{ReadHalf, WriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use super::{
    Meters, Way,
    helper::{self, Passage},
};

/// Bytes of one copy; a connection holds two such buffers.
const BUFFER: usize = 64 * 1024;
/// Wait for the VIP's answer. OVN drops what comes to a port without load balancer, and the kernel would try for minutes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Wait after a failed accept (out of descriptors), when no connection ends before.
const BREATH: Duration = Duration::from_millis(100);

/// Serves until `stop`; listener and connections are closed when this returns.
pub(super) async fn serve(listener: TcpListener, way: Way, meters: Arc<Meters>, mut stop: oneshot::Receiver<()>) {
    let vip = way.vip;
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            // Cancel-safe: a oneshot that has not fired keeps its value.
            _ = &mut stop => break,
            // Cancel-safe: a connection that is not returned stays in the queue.
            accepted = listener.accept() => match accepted {
                Ok((client, from)) => {
                    meters.connections.fetch_add(1, Relaxed);
                    let (meters, way) = (Arc::clone(&meters), way.clone());
                    connections.spawn(async move {
                        let carried = match &way.helper {
                            Some(helper) => carry_by(helper, client, vip, &meters).await,
                            None => carry(client, vip, &meters).await,
                        };
                        if let Err(error) = carried {
                            tracing::debug!(%error, %from, %vip, "a connection of a published port broke");
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, %vip, "a published port cannot accept (out of descriptors?)");
                    tokio::select! {
                        _ = &mut stop => break,
                        // Cancel-safe as below; pending for ever without connections, hence the other arm.
                        Some(_) = connections.join_next() => {}
                        () = tokio::time::sleep(BREATH) => {}
                    }
                }
            },
            // Cancel-safe: a task is taken out only when it is returned.
            Some(_) = connections.join_next() => {}
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn carry(mut client: TcpStream, vip: SocketAddr, meters: &Meters) -> io::Result<()> {
    let connected = tokio::time::timeout(PATIENCE, TcpStream::connect(vip)).await;
    let mut server = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(server) => server,
        Err(error) => {
            // A reset, not an end of input: the client must not take this for an empty answer.
            reset_on_close(&client);
            return Err(error);
        }
    };
    client.set_nodelay(true)?;
    server.set_nodelay(true)?;
    let result = {
        let (from_client, to_client) = client.split();
        let (from_server, to_server) = server.split();
        let inward = copy(from_client, to_server, &meters.bytes_in);
        let outward = copy(from_server, to_client, &meters.bytes_out);
        tokio::try_join!(inward, outward)
    };
    if result.is_err() {
        // One side was reset; the other shall see that too.
        reset_on_close(&client);
        reset_on_close(&server);
    }
    result.map(|_| ())
}

async fn carry_by(helper: &Address, mut client: TcpStream, vip: SocketAddr, meters: &Meters) -> io::Result<()> {
    client.set_nodelay(true)?;
    let opened = tokio::time::timeout(PATIENCE, async {
        let opening = Opening { transport: Transport::Tcp, to: vip };
        let mut passage = Passage::ask(helper, opening, PATIENCE).await?;
        passage.opened().await?;
        Ok(passage)
    });
    let carried = match opened.await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(passage) => helper::carry(&mut client, passage, meters).await,
        Err(error) => Err(error),
    };
    if carried.is_err() {
        reset_on_close(&client);
    }
    carried
}

async fn copy(mut from: ReadHalf<'_>, mut to: WriteHalf<'_>, meter: &AtomicU64) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            return match to.shutdown().await {
                // The other side has closed altogether, which its own direction reports.
                Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                done => done,
            };
        }
        to.write_all(&buffer[..length]).await?;
        meter.fetch_add(length as u64, Relaxed);
    }
}

fn reset_on_close(stream: &TcpStream) {
    // Only makes the close less clear if it fails.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}
