// SPDX-License-Identifier: Apache-2.0
//! Asks the configured name servers, in order: all by UDP, then all by TCP. Called for names this engine does not know.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::answer::{Query, Transport, Verdict};

/// How long one server may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// The answer of the first server that gives one, else SERVFAIL.
pub(super) async fn forward(query: &Query, servers: &[SocketAddr], transport: Transport) -> Verdict {
    // A client on TCP wants an answer that does not fit into a datagram.
    let order = match transport {
        Transport::Udp => [Transport::Udp, Transport::Tcp],
        Transport::Tcp => [Transport::Tcp, Transport::Udp],
    };
    let rounds = servers.len();
    for attempt in 0..2 * rounds {
        let (via, server) = (order[attempt / rounds], servers[attempt % rounds]);
        let id = rand::random();
        let Some(packet) = query.forwarded(id) else { break };
        let attempt = async {
            match via {
                Transport::Udp => udp(query, id, &packet, server).await,
                Transport::Tcp => tcp(query, id, &packet, server).await,
            }
        };
        match timeout(PATIENCE, attempt).await {
            Ok(Ok(answer)) => return query.relay(answer),
            Ok(Err(e)) => tracing::debug!(%server, ?via, error = %e, "a name server gave no answer"),
            Err(_) => tracing::debug!(%server, ?via, "a name server took too long"),
        }
    }
    query.fail(ResponseCode::ServFail)
}

async fn udp(query: &Query, id: u16, packet: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; 4096];
    loop {
        let length = socket.recv(&mut buffer).await?;
        // Anything else is late, foreign or forged.
        if query.matches(id, &buffer[..length]) {
            buffer.truncate(length);
            return Ok(buffer);
        }
    }
}

async fn tcp(query: &Query, id: u16, packet: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    write_message(&mut stream, packet).await?;
    let answer = read_message(&mut stream).await?;
    if query.matches(id, &answer) { Ok(answer) } else { Err(io::ErrorKind::InvalidData.into()) }
}

/// Writes a message as TCP carries it (RFC 1035 4.2.2), in one piece.
pub(super) async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = Vec::with_capacity(message.len() + 2);
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}

/// Reads one message.
pub(super) async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; length.into()];
    stream.read_exact(&mut message).await?;
    Ok(message)
}
