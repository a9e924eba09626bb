// SPDX-License-Identifier: Apache-2.0
//! Hybrid vsock: one unix socket per machine. The client writes `CONNECT port\n`, the monitor answers `OK n\n`, then
//! the socket is the stream (Firecracker, cloud-hypervisor, vhost-device-vsock, arca-vz).
//!
//! Payload may follow the answer in the same segment, so a line is read byte by byte and not one byte further. It is
//! bounded: the eleventh digit or a byte out of place is an error.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Which line is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Line {
    /// `CONNECT port\n`, read by the monitor.
    Connect,
    /// `OK n\n`, read by the client.
    Ok,
}

impl Line {
    fn prefix(self) -> &'static [u8] {
        match self {
            Self::Connect => b"CONNECT ",
            Self::Ok => b"OK ",
        }
    }

    /// The line with its newline.
    pub fn encode(self, number: u32) -> Vec<u8> {
        let mut line = self.prefix().to_vec();
        line.extend_from_slice(number.to_string().as_bytes());
        line.push(b'\n');
        line
    }
}

/// Why a line was refused.
#[derive(Clone, Copy, Debug, thiserror::Error, PartialEq, Eq)]
pub enum LineError {
    /// A byte that the line cannot have there.
    #[error("byte {byte:#04x} at offset {offset} has no place in the {line:?} line")]
    Byte {
        /// The line that was being read.
        line: Line,
        /// From 0.
        offset: usize,
        /// What was there.
        byte: u8,
    },
    /// More than 32 bits, or more than ten digits.
    #[error("the number in the {0:?} line has more than 32 bits")]
    TooLarge(Line),
}

/// Why the handshake failed.
#[derive(Debug, thiserror::Error)]
pub enum HybridError {
    /// Transport failure.
    #[error("hybrid handshake interrupted")]
    Io(#[from] io::Error),
    /// Closed before the line was whole: that is how the daemons say "nobody listens on this port".
    #[error("connection closed before the answer")]
    Closed,
    /// Not the line it should be.
    #[error("malformed hybrid handshake")]
    Malformed(#[from] LineError),
}

/// Reads one line, a byte at a time.
#[derive(Clone, Debug)]
pub struct LineParser {
    line: Line,
    offset: usize,
    value: u32,
}

impl LineParser {
    /// At the beginning of a line.
    pub fn new(line: Line) -> Self {
        Self { line, offset: 0, value: 0 }
    }

    /// Takes the next byte; gives the number with the newline. The parser is of no use after that or after an error.
    pub fn push(&mut self, byte: u8) -> Result<Option<u32>, LineError> {
        let (prefix, offset) = (self.line.prefix(), self.offset);
        let misplaced = LineError::Byte { line: self.line, offset, byte };
        self.offset += 1;
        if let Some(expected) = prefix.get(offset) {
            return if *expected == byte { Ok(None) } else { Err(misplaced) };
        }
        let digits = offset - prefix.len();
        match byte {
            b'\n' if digits > 0 => Ok(Some(self.value)),
            b'0'..=b'9' if digits < 10 => {
                let value = self.value.checked_mul(10).and_then(|v| v.checked_add(u32::from(byte - b'0')));
                self.value = value.ok_or(LineError::TooLarge(self.line))?;
                Ok(None)
            }
            b'0'..=b'9' => Err(LineError::TooLarge(self.line)),
            _ => Err(misplaced),
        }
    }
}

/// Reads one line from a stream and not a byte of what follows. Not cancel-safe: bytes already read are lost.
///
/// # Errors
/// [`HybridError`]; the stream must then be dropped.
pub async fn read_line(stream: &mut (impl AsyncRead + Unpin), line: Line) -> Result<u32, HybridError> {
    let mut parser = LineParser::new(line);
    loop {
        let byte = match stream.read_u8().await {
            Ok(byte) => byte,
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Err(HybridError::Closed),
            Err(error) => return Err(error.into()),
        };
        if let Some(number) = parser.push(byte)? {
            return Ok(number);
        }
    }
}

/// Performs the client's handshake for `port`; gives the number the daemon answered (the host-side port).
///
/// # Errors
/// [`HybridError`]; the stream must then be dropped.
pub async fn connect<S>(stream: &mut S, port: u32) -> Result<u32, HybridError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(&Line::Connect.encode(port)).await?;
    read_line(stream, Line::Ok).await
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The number and how many bytes it took.
    fn parse(line: Line, bytes: &[u8]) -> Result<Option<(u32, usize)>, LineError> {
        let mut parser = LineParser::new(line);
        for (i, byte) in bytes.iter().enumerate() {
            if let Some(number) = parser.push(*byte)? {
                return Ok(Some((number, i + 1)));
            }
        }
        Ok(None)
    }

    proptest! {
        #[test]
        fn lines_come_back_and_the_payload_is_left(n in any::<u32>(), payload in prop::collection::vec(any::<u8>(), 0..64)) {
            for line in [Line::Connect, Line::Ok] {
                let mut bytes = line.encode(n);
                let length = bytes.len();
                bytes.extend_from_slice(&payload);
                prop_assert_eq!(parse(line, &bytes), Ok(Some((n, length))));
            }
        }

        #[test]
        fn no_line_is_longer_than_its_bound(bytes in prop::collection::vec(any::<u8>(), 32)) {
            prop_assert!(!matches!(parse(Line::Ok, &bytes), Ok(None)));
            prop_assert!(!matches!(parse(Line::Connect, &bytes), Ok(None)));
        }
    }

    #[test]
    fn malformed_lines_name_the_byte() {
        let byte = |offset, byte| Err(LineError::Byte { line: Line::Ok, offset, byte });
        assert_eq!(parse(Line::Ok, b"OK \n"), byte(3, b'\n'));
        assert_eq!(parse(Line::Ok, b"OK -1\n"), byte(3, b'-'));
        assert_eq!(parse(Line::Ok, b"OK 1\r\n"), byte(4, b'\r'));
        assert_eq!(parse(Line::Ok, b"ok 1\n"), byte(0, b'o'));
        assert_eq!(parse(Line::Ok, b"OK 4294967296\n"), Err(LineError::TooLarge(Line::Ok)));
        assert_eq!(parse(Line::Ok, b"OK 00000000001\n"), Err(LineError::TooLarge(Line::Ok)));
        assert_eq!(parse(Line::Ok, b"OK 12"), Ok(None));
    }

    #[tokio::test]
    async fn payload_right_behind_the_answer_is_left_untouched() {
        let (mut client, mut daemon) = tokio::io::duplex(64);
        daemon.write_all(b"OK 1073741824\nREADY").await.expect("write");
        assert_eq!(connect(&mut client, 5556).await.expect("handshake"), 1_073_741_824);
        let mut rest = [0; 5];
        client.read_exact(&mut rest).await.expect("payload");
        assert_eq!(&rest, b"READY");
        assert_eq!(read_line(&mut daemon, Line::Connect).await.expect("request"), 5556);
    }

    #[tokio::test]
    async fn a_daemon_that_closes_means_nobody_listens() {
        for said in [&b""[..], b"OK 1"] {
            let (mut client, mut daemon) = tokio::io::duplex(64);
            daemon.write_all(said).await.expect("write");
            drop(daemon);
            assert!(matches!(read_line(&mut client, Line::Ok).await, Err(HybridError::Closed)));
        }
    }
}
