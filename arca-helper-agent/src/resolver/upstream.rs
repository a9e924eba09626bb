// SPDX-License-Identifier: Apache-2.0
//! One configured name server: how it is asked, and whether it is worth waiting for. Used by [`super::forward`].
//!
//! A server that leaves one question unanswered may merely be waiting for a third party. One that in the same time does
//! not answer for the root, which every resolver knows, either is *silent*: nobody waits for it any longer than
//! [`QUIET`], and for [`HOLD`] at a time nobody asks it at all. A machine without a way out thus fails lookups quickly.
//! Nothing runs while nobody asks.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::answer::{Query, Transport};

/// No answer for this long: the other transport and the next server are tried as well.
pub(super) const QUIET: Duration = Duration::from_millis(500);
/// Longest wait for one answer, within the five seconds that clients give us.
const PATIENCE: Duration = Duration::from_secs(4);
/// How long the question for the root may take.
const CHECK: Duration = Duration::from_millis(1500);
/// A lost datagram is sent again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// A silent server is left alone for this long.
const HOLD: Duration = Duration::from_secs(5);

/// A name server and what is known of it.
#[derive(Debug)]
pub(super) struct Upstream {
    address: SocketAddr,
    state: watch::Sender<State>,
}

#[derive(Clone, Copy, Debug, Default)]
struct State {
    /// It was silent; ask again from then on.
    silent_until: Option<Instant>,
    /// A check is under way.
    checking: bool,
}

/// What a server is good for now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Worth {
    /// It answers, as far as is known.
    Asking,
    /// It was silent a while ago.
    Probing,
    /// It was silent just now.
    Nothing,
}

impl Upstream {
    /// Checks the server at once, so that the first query need not wait for one that is silent.
    pub(super) fn new(address: SocketAddr) -> Arc<Self> {
        let upstream = Arc::new(Self { address, state: watch::Sender::default() });
        upstream.check(Duration::ZERO);
        upstream
    }

    pub(super) fn address(&self) -> SocketAddr {
        self.address
    }

    pub(super) fn worth(&self) -> Worth {
        match *self.state.borrow() {
            State { silent_until: None, .. } => Worth::Asking,
            State { silent_until: Some(until), checking: false } if until <= Instant::now() => Worth::Probing,
            State { .. } => Worth::Nothing,
        }
    }

    /// Asks; gives up on a server that turns out to be silent.
    pub(super) async fn ask(self: Arc<Self>, query: &Query, first: Transport) -> io::Result<Vec<u8>> {
        let silent = || io::Error::new(io::ErrorKind::TimedOut, "the name server is silent");
        let probing = self.worth() != Worth::Asking;
        if probing {
            self.check(HOLD);
        }
        let answer = timeout(PATIENCE, exchange(query, self.address, first));
        tokio::pin!(answer);
        let answer = tokio::select! {
            answer = &mut answer => answer,
            () = sleep(QUIET) => {
                if probing {
                    return Err(silent());
                }
                self.check(HOLD);
                let mut state = self.state.subscribe();
                tokio::select! {
                    answer = &mut answer => answer,
                    // The sender is ours: it is not gone.
                    _ = state.wait_for(|state| state.silent_until.is_some()) => return Err(silent()),
                }
            }
        };
        let answer = answer??;
        self.state.send_if_modified(|state| state.silent_until.take().is_some());
        Ok(answer)
    }

    /// Asks for the root, in the background; the server is silent if nothing comes of it. One at a time.
    fn check(self: &Arc<Self>, hold: Duration) {
        if !self.state.send_if_modified(|state| !std::mem::replace(&mut state.checking, true)) {
            return;
        }
        let upstream = Arc::clone(self);
        tokio::spawn(async move {
            let silent = timeout(CHECK, exchange(&Query::for_root(), upstream.address, Transport::Udp)).await.is_err();
            if silent {
                tracing::info!(server = %upstream.address, "the name server is silent");
            }
            // An error, such as an ICMP message, comes quickly each time: there is nothing to be spared.
            let silent_until = silent.then(|| Instant::now() + hold);
            upstream.state.send_replace(State { silent_until, checking: false });
        });
    }
}

/// One question, by one transport and after a while, or when it fails, by the other as well.
async fn exchange(query: &Query, server: SocketAddr, first: Transport) -> io::Result<Vec<u8>> {
    let second = match first {
        Transport::Udp => Transport::Tcp,
        Transport::Tcp => Transport::Udp,
    };
    let (one, other) = (by(query, server, first), by(query, server, second));
    tokio::pin!(one, other);
    tokio::select! {
        answer = &mut one => match answer {
            Ok(answer) => return Ok(answer),
            Err(_) => return other.await,
        },
        () = sleep(QUIET) => {}
    }
    tokio::select! {
        answer = &mut one => match answer { Ok(answer) => Ok(answer), Err(_) => other.await },
        answer = &mut other => match answer { Ok(answer) => Ok(answer), Err(_) => one.await },
    }
}

async fn by(query: &Query, server: SocketAddr, via: Transport) -> io::Result<Vec<u8>> {
    // Another id than the client's, so that answers cannot be guessed.
    let id = rand::random();
    let packet = query.forwarded(id).ok_or(io::ErrorKind::InvalidInput)?;
    match via {
        Transport::Udp => udp(query, id, &packet, server).await,
        Transport::Tcp => tcp(query, id, &packet, server).await,
    }
}

async fn udp(query: &Query, id: u16, packet: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    // A connected socket hears of ICMP errors.
    socket.connect(server).await?;
    socket.send(packet).await?;
    let mut buffer = vec![0; 4096];
    let mut resend = true;
    loop {
        let length = tokio::select! {
            length = socket.recv(&mut buffer) => length?,
            () = sleep(AGAIN), if resend => {
                resend = false;
                socket.send(packet).await?;
                continue;
            }
        };
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
