// SPDX-License-Identifier: Apache-2.0
//! Port 9998: clients of published ports whom arca-relayd carries here because no kernel can redirect them (the protocol:
//! [`arca_proto::publish`]). Each is led to OVN's gateway router, where a load balancer knows the container.
//!
//! The helper's own kernel connects, from an address of its own on br-ex ([`Side::clients`]), which is what containers see.
//! Nothing but the router can be reached through here.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use arca_proto::dial::Stream;
use arca_proto::listen::Listener;
use arca_proto::publish::{self as wire, Kind, Opening, Transport};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, BufReader, ReadHalf, WriteHalf};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use crate::uplink::{Side, Uplink};

/// Wait for the container's answer. OVN drops what comes to a port without load balancer, and the kernel would try for
/// minutes.
const PATIENCE: Duration = Duration::from_secs(30);
/// Wait after a failed accept (out of descriptors).
const BREATH: Duration = Duration::from_millis(100);
/// What is read of the host at once.
const BUFFER: usize = 16 * 1024;

type Reader = BufReader<ReadHalf<Stream>>;
type Writer = WriteHalf<Stream>;

/// Serves for ever. Run it as a task.
pub async fn serve(listener: Listener, uplink: Uplink) {
    raise_open_files();
    loop {
        match listener.accept().await {
            Ok(stream) => {
                let uplink = uplink.clone();
                tokio::spawn(async move {
                    if let Err(error) = client(stream, &uplink.sides().await).await {
                        tracing::debug!(%error, "a client of a published port was cut off");
                    }
                });
            }
            Err(error) => {
                tracing::warn!(%error, "clients of published ports cannot be accepted (out of descriptors?)");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

/// A client takes two descriptors, and the usual soft limit is 1024.
fn raise_open_files() {
    let raised =
        getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "the limit of open files stays as it is");
    }
}

/// One client, until the host closes.
async fn client(stream: Stream, sides: &[Side]) -> io::Result<()> {
    let (reader, mut writer) = tokio::io::split(stream);
    let mut reader = BufReader::with_capacity(BUFFER, reader);
    let mut payload = Vec::new();
    let opening = match timeout(PATIENCE, wire::receive(&mut reader, &mut payload)).await {
        Ok(Ok(Some(Kind::Open))) => Opening::decode(&payload)?,
        Ok(Ok(Some(kind))) => return Err(io::Error::other(format!("{kind:?} is no beginning"))),
        Ok(Err(error)) => return Err(error),
        // The host changed its mind.
        Ok(Ok(None)) | Err(_) => return Ok(()),
    };
    let Some(side) = sides.iter().find(|side| side.router == opening.to.ip()) else {
        return refuse(&mut reader, &mut writer, &format!("{} is not the gateway router", opening.to.ip())).await;
    };
    let from = SocketAddr::new(side.clients(), 0);
    match opening.transport {
        Transport::Tcp => bytes(reader, writer, from, opening.to).await,
        Transport::Udp => datagrams(reader, writer, from, opening.to).await,
    }
}

/// Says why not, and waits for the host to close.
async fn refuse(reader: &mut Reader, writer: &mut Writer, why: &str) -> io::Result<()> {
    wire::send(writer, Kind::Failed, why.as_bytes()).await?;
    closed(reader).await
}

/// Returns when the host has closed; what it still says is of no use any more.
async fn closed(reader: &mut Reader) -> io::Result<()> {
    let mut rest = [0; 1024];
    while reader.read(&mut rest).await? > 0 {}
    Ok(())
}

async fn connect(from: SocketAddr, to: SocketAddr) -> io::Result<TcpStream> {
    let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.bind(from)?;
    socket.connect(to).await
}

async fn bytes(mut reader: Reader, mut writer: Writer, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let connected = timeout(PATIENCE, connect(from, to)).await;
    let mut server = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
        Ok(server) => server,
        Err(error) => return refuse(&mut reader, &mut writer, &format!("connect with {to}: {error}")).await,
    };
    server.set_nodelay(true)?;
    wire::send(&mut writer, Kind::Opened, &[]).await?;
    let carried = {
        let (mut from_server, mut to_server) = server.split();
        let inward = wire::unpack(&mut reader, &mut to_server, |_| ());
        let outward = wire::pack(&mut from_server, &mut writer, |_| ());
        tokio::try_join!(inward, outward)
    };
    if let Err(error) = carried {
        // Either side was reset. Closing without a word resets the client; this resets the container's end.
        let linger = nix::libc::linger { l_onoff: 1, l_linger: 0 };
        // Only makes the close less clear if it fails.
        let _ = setsockopt(&server, sockopt::Linger, &linger);
        return Err(error);
    }
    wire::send(&mut writer, Kind::Done, &[]).await?;
    closed(&mut reader).await
}

async fn datagrams(mut reader: Reader, mut writer: Writer, from: SocketAddr, to: SocketAddr) -> io::Result<()> {
    let opened = async {
        let socket = UdpSocket::bind(from).await?;
        socket.connect(to).await?;
        Ok::<_, io::Error>(socket)
    };
    let socket = match opened.await {
        Ok(socket) => socket,
        Err(error) => return refuse(&mut reader, &mut writer, &format!("a socket for {to}: {error}")).await,
    };
    wire::send(&mut writer, Kind::Opened, &[]).await?;
    let inward = async {
        let mut payload = Vec::new();
        loop {
            match wire::receive(&mut reader, &mut payload).await? {
                // UDP drops what cannot go; an error is that of an earlier datagram, answered by ICMP.
                Some(Kind::Data) => drop(socket.send(&payload).await),
                Some(kind) => return Err(io::Error::other(format!("{kind:?} has no place here"))),
                None => return Ok(()),
            }
        }
    };
    tokio::select! {
        // Whichever ends first ends the stream, so nothing is missed of a message that was cut off.
        ended = inward => ended,
        ended = answers(&socket, &mut writer) => ended,
    }
}

/// Carries datagrams to the host; ends by errors of the stream only.
async fn answers(socket: &UdpSocket, writer: &mut Writer) -> io::Result<()> {
    loop {
        socket.readable().await?;
        // Held while there is something to read, not while the client is silent.
        let mut buffer = vec![0; wire::LARGEST];
        loop {
            match socket.try_recv(&mut buffer) {
                Ok(length) => wire::send(writer, Kind::Data, &buffer[..length]).await?,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // Refused (ICMP): a later datagram may be taken.
                Err(error) => tracing::trace!(%error, "published UDP port"),
            }
        }
    }
}

#[cfg(test)]
mod tests;
