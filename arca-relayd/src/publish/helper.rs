// SPDX-License-Identifier: Apache-2.0
//! To the VIP through the helper machine, where this host has no route there: a stream to its port 9998 for each client
//! (the protocol: [`arca_proto::publish`]).

use std::io;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use arca_proto::dial::{Address, Stream, dial};
use arca_proto::ports;
use arca_proto::publish::{self as wire, Kind, Opening};
use tokio::io::{BufReader, ReadHalf, WriteHalf};
use tokio::net::TcpStream;
use tokio::time::{Instant, sleep};

use super::Meters;

/// What is read of the helper at once.
const BUFFER: usize = 64 * 1024;
/// Pauses between attempts to reach the helper: it may be booting, or many clients may come at once.
const FIRST_PAUSE: Duration = Duration::from_millis(5);
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// A client's way to the helper.
pub(super) struct Passage {
    pub(super) reader: BufReader<ReadHalf<Stream>>,
    pub(super) writer: WriteHalf<Stream>,
}

impl Passage {
    /// Reaches the helper and asks for the VIP; whether that answers, the first message tells. A helper that does not
    /// answer is tried again until `patience` is over, as a kernel would.
    pub(super) async fn ask(helper: &Address, opening: Opening, patience: Duration) -> io::Result<Self> {
        let deadline = Instant::now() + patience;
        let mut pause = FIRST_PAUSE;
        loop {
            match tokio::time::timeout_at(deadline, dial(helper, ports::PUBLISH)).await {
                Ok(Ok(stream)) => {
                    let (reader, mut writer) = tokio::io::split(stream);
                    wire::send(&mut writer, Kind::Open, &opening.encode()).await?;
                    return Ok(Self { reader: BufReader::with_capacity(BUFFER, reader), writer });
                }
                Ok(Err(error)) if Instant::now() + pause >= deadline => return Err(io::Error::other(error)),
                Ok(Err(_)) => sleep(pause).await,
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }

    /// Waits until the VIP has answered.
    pub(super) async fn opened(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        match wire::receive(&mut self.reader, &mut text).await? {
            Some(Kind::Opened) => Ok(()),
            Some(Kind::Failed) => Err(io::Error::other(String::from_utf8_lossy(&text).into_owned())),
            Some(kind) => Err(io::Error::other(format!("{kind:?} is no answer of the helper"))),
            None => Err(io::ErrorKind::ConnectionReset.into()),
        }
    }
}

/// Carries a connection, the end of each direction on its own.
///
/// # Errors
/// Either side was reset: the client shall see that too. The helper sees it by the stream's close.
pub(super) async fn carry(client: &mut TcpStream, mut passage: Passage, meters: &Meters) -> io::Result<()> {
    let (mut from_client, mut to_client) = client.split();
    let count = |meter: &AtomicU64, length: usize| {
        meter.fetch_add(length as u64, Relaxed);
    };
    let inward = wire::pack(&mut from_client, &mut passage.writer, |length| count(&meters.bytes_in, length));
    let outward = async {
        wire::unpack(&mut passage.reader, &mut to_client, |length| count(&meters.bytes_out, length)).await?;
        // Nothing may be under way when this end closes.
        match wire::receive(&mut passage.reader, &mut Vec::new()).await? {
            Some(Kind::Done) => Ok(()),
            _ => Err(io::ErrorKind::ConnectionReset.into()),
        }
    };
    tokio::try_join!(inward, outward).map(|_| ())
}
