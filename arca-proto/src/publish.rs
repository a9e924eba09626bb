// SPDX-License-Identifier: Apache-2.0
//! What travels on port 9998 of the helper machine: one stream for each client of a published port that the kernel cannot
//! redirect. arca-relayd is the host's end, arca-helper-agent the helper's.
//!
//! ```text
//! host    Open(protocol, address)   Data*   End                          closes
//! helper  Opened | Failed           Data*        End   Done (has both Ends)
//! ```
//!
//! A message is `[u8 kind][u8 zero][u16 LE length][payload]`. For TCP a Data is a piece of the byte stream and End its end
//! in that direction: no transport's half-close is relied on. For UDP a Data is one datagram and there is no End. A stream
//! that closes before both Ends is a reset. Only the host closes after an orderly end, when it has Done: by then nothing is
//! under way that a closing transport might lose.

use std::{
    io,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Bytes before the payload.
pub const HEADER: usize = 4;
/// Greatest payload of a message: a UDP datagram's.
pub const LARGEST: usize = u16::MAX as usize;
/// Payload of a piece of a byte stream, so that header and payload are the 16 KiB that a guest may write at once.
pub const PIECE: usize = 16 * 1024 - HEADER;
/// Bytes of an Open's payload.
const OPENING: usize = 20;
const VERSION: u8 = 1;

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// First message of the host: an [`Opening`].
    Open = 1,
    /// The helper is connected with the address (TCP) or has a socket for it (UDP).
    Opened = 2,
    /// It is not; the payload is a text. The host closes.
    Failed = 3,
    /// Bytes, or a datagram.
    Data = 4,
    /// No more bytes in this direction.
    End = 5,
    /// The helper has sent and received an End.
    Done = 6,
}

impl TryFrom<u8> for Kind {
    type Error = io::Error;

    fn try_from(byte: u8) -> io::Result<Self> {
        [Self::Open, Self::Opened, Self::Failed, Self::Data, Self::End, Self::Done]
            .into_iter()
            .find(|kind| *kind as u8 == byte)
            .ok_or_else(|| broken(format!("no message is of kind {byte}")))
    }
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// A byte stream each way.
    Tcp,
    /// Datagrams.
    Udp,
}

/// Where a client shall be led.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Opening {
    /// Protocol.
    pub transport: Transport,
    /// Load-balancer address and port of OVN's gateway router.
    pub to: SocketAddr,
}

impl Opening {
    /// The payload: version, IP protocol number, port (LE), the address in its IPv6 form.
    #[must_use]
    pub fn encode(self) -> [u8; OPENING] {
        let mut bytes = [0; OPENING];
        bytes[0] = VERSION;
        bytes[1] = match self.transport {
            Transport::Tcp => 6,
            Transport::Udp => 17,
        };
        bytes[2..4].copy_from_slice(&self.to.port().to_le_bytes());
        let address = match self.to.ip() {
            IpAddr::V4(address) => address.to_ipv6_mapped(),
            IpAddr::V6(address) => address,
        };
        bytes[4..].copy_from_slice(&address.octets());
        bytes
    }

    /// Reads a payload.
    ///
    /// # Errors
    /// `InvalidData` that says what is wrong.
    pub fn decode(payload: &[u8]) -> io::Result<Self> {
        let bytes: [u8; OPENING] =
            payload.try_into().map_err(|_| broken(format!("an Open of {} bytes", payload.len())))?;
        let [version, protocol, low, high, ref address @ ..] = bytes;
        if version != VERSION {
            return Err(broken(format!("version {version} of the publishing protocol is not spoken here")));
        }
        let transport = match protocol {
            6 => Transport::Tcp,
            17 => Transport::Udp,
            other => return Err(broken(format!("protocol {other} is neither TCP nor UDP"))),
        };
        let port = u16::from_le_bytes([low, high]);
        if port == 0 {
            return Err(broken("port 0".to_owned()));
        }
        let address = Ipv6Addr::from(*address);
        let ip = address.to_ipv4_mapped().map_or(IpAddr::V6(address), IpAddr::V4);
        Ok(Self { transport, to: SocketAddr::new(ip, port) })
    }
}

fn broken(text: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, text)
}

/// The header of a message; `None` if no message may be so long.
#[must_use]
pub fn header(kind: Kind, payload: usize) -> Option<[u8; HEADER]> {
    let [low, high] = u16::try_from(payload).ok()?.to_le_bytes();
    Some([kind as u8, 0, low, high])
}

/// Reads one message; its payload replaces what `payload` holds. `None`: the stream ended between messages. Not
/// cancel-safe.
///
/// # Errors
/// The stream broke, ended within a message, or is not of this protocol.
pub async fn receive(stream: &mut (impl AsyncRead + Unpin), payload: &mut Vec<u8>) -> io::Result<Option<Kind>> {
    let mut header = [0; HEADER];
    match stream.read(&mut header).await? {
        0 => return Ok(None),
        HEADER => {}
        some => drop(stream.read_exact(&mut header[some..]).await?),
    }
    let [kind, zero, low, high] = header;
    let kind = Kind::try_from(kind)?;
    if zero != 0 {
        return Err(broken("the stream is out of step".to_owned()));
    }
    payload.resize(u16::from_le_bytes([low, high]).into(), 0);
    stream.read_exact(payload).await?;
    Ok(Some(kind))
}

/// Writes one message. Not cancel-safe.
///
/// # Errors
/// The stream broke; `InvalidInput` if the payload is longer than [`LARGEST`].
pub async fn send(stream: &mut (impl AsyncWrite + Unpin), kind: Kind, payload: &[u8]) -> io::Result<()> {
    let header = header(kind, payload.len()).ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut message = Vec::with_capacity(HEADER + payload.len());
    message.extend_from_slice(&header);
    message.extend_from_slice(payload);
    stream.write_all(&message).await
}

/// Carries a byte stream into messages until its end, which becomes an End. `note` is told of each piece. Gives the writer
/// back, for what comes behind. Not cancel-safe: what is cut off there must be closed.
///
/// # Errors
/// Either stream broke.
pub async fn pack<W: AsyncWrite + Unpin>(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut W,
    note: impl Fn(usize),
) -> io::Result<()> {
    let mut buffer = vec![0; HEADER + PIECE];
    loop {
        let length = from.read(&mut buffer[HEADER..]).await?;
        if length == 0 {
            return send(to, Kind::End, &[]).await;
        }
        let Some(header) = header(Kind::Data, length) else { unreachable!("PIECE is less than LARGEST") };
        buffer[..HEADER].copy_from_slice(&header);
        to.write_all(&buffer[..HEADER + length]).await?;
        note(length);
    }
}

/// Carries messages into a byte stream until their End, which becomes a shutdown. Not cancel-safe.
///
/// # Errors
/// Either stream broke or ended too early: a reset.
pub async fn unpack(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    note: impl Fn(usize),
) -> io::Result<()> {
    let mut payload = Vec::with_capacity(PIECE);
    loop {
        match receive(from, &mut payload).await? {
            Some(Kind::Data) => {
                to.write_all(&payload).await?;
                note(payload.len());
            }
            Some(Kind::End) => {
                return match to.shutdown().await {
                    // The other side has closed altogether, which its own direction reports.
                    Err(error) if error.kind() == io::ErrorKind::NotConnected => Ok(()),
                    done => done,
                };
            }
            None => return Err(io::ErrorKind::ConnectionReset.into()),
            Some(kind) => return Err(broken(format!("{kind:?} has no place here"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn openings_survive_the_wire_and_bad_ones_are_refused() {
        for (transport, to) in [(Transport::Tcp, "192.168.127.2:80"), (Transport::Udp, "[fd00:77::2]:65535")] {
            let opening = Opening { transport, to: to.parse().expect("an address") };
            assert_eq!(Opening::decode(&opening.encode()).expect("what was encoded"), opening);
        }
        let good = Opening { transport: Transport::Tcp, to: "192.168.127.2:80".parse().expect("an address") }.encode();
        for (at, byte) in [(0, 2), (1, 1), (2, 0)] {
            let mut bad = good;
            bad[at] = byte;
            assert!(Opening::decode(&bad).is_err(), "byte {at}");
        }
        assert!(Opening::decode(&good[1..]).is_err());
    }

    proptest! {
        #[test]
        fn whatever_is_received_is_a_message_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            runtime.block_on(async {
                let (mut stream, mut payload) = (&bytes[..], Vec::new());
                while let Ok(Some(_)) = receive(&mut stream, &mut payload).await {
                    assert!(payload.len() <= bytes.len());
                    let _ = Opening::decode(&payload);
                }
            });
        }
    }

    #[tokio::test]
    async fn bytes_and_their_end_pass_through_messages() {
        let data: Vec<u8> = (0..100_000u32).map(|n| n.to_le_bytes()[0]).collect();
        let (mut near, mut far) = tokio::io::duplex(1000);
        let (mut from, mut out) = (&data[..], Vec::new());
        let (packed, unpacked) = tokio::join!(pack(&mut from, &mut near, |_| ()), unpack(&mut far, &mut out, |_| ()));
        packed.expect("packed");
        unpacked.expect("unpacked");
        assert_eq!(out, data);
        send(&mut near, Kind::Data, b"more").await.expect("sent");
        drop(near);
        let cut = unpack(&mut far, &mut out, |_| ()).await.expect_err("no End");
        assert_eq!(cut.kind(), io::ErrorKind::ConnectionReset);
        assert!(send(&mut far, Kind::Data, &vec![0; LARGEST + 1]).await.is_err());
    }
}
