// SPDX-License-Identifier: Apache-2.0
//! The hybrid vsock dialect (Firecracker, cloud-hypervisor, vhost-device-vsock, arca-vz).
//!
//! The client writes `CONNECT <port>\n` on the VMM's unix socket and reads `OK <n>\n`; everything after that newline is
//! the guest's. The answer is therefore read byte by byte and never one byte too far.

use std::io;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Longest answer that is still read: "OK 4294967295\n".
pub const MAX_ANSWER: usize = 14;

/// What a hybrid daemon answered instead of `OK n`.
#[derive(Debug, thiserror::Error)]
pub enum HybridError {
    /// Transport failure.
    #[error("hybrid handshake interrupted")]
    Io(#[from] io::Error),
    /// Closed without a word: that is how the daemons say "nobody listens on this port".
    #[error("connection closed before the answer")]
    Closed,
    /// Not `OK <decimal>\n`.
    #[error("answer is not `OK <number>`: {0:?}")]
    Malformed(String),
}

/// The request line for `port`.
#[must_use]
pub fn request(port: u32) -> String {
    format!("CONNECT {port}\n")
}

/// Reads an answer line, newline included, and gives the number in it.
///
/// # Errors
/// [`HybridError::Malformed`] for anything but `OK <u32>\n` with plain decimal digits.
pub fn parse_answer(line: &[u8]) -> Result<u32, HybridError> {
    let malformed = || HybridError::Malformed(String::from_utf8_lossy(line).into_owned());
    let digits = line.strip_prefix(b"OK ").and_then(|rest| rest.strip_suffix(b"\n")).ok_or_else(malformed)?;
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return Err(malformed());
    }
    std::str::from_utf8(digits).ok().and_then(|digits| digits.parse().ok()).ok_or_else(malformed)
}

/// Performs the handshake for `port`; gives the number the daemon answered (the host-side port).
///
/// # Errors
/// [`HybridError`]; the stream must then be dropped.
pub async fn connect<S>(stream: &mut S, port: u32) -> Result<u32, HybridError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    stream.write_all(request(port).as_bytes()).await?;
    let mut line = Vec::with_capacity(MAX_ANSWER);
    while line.last() != Some(&b'\n') && line.len() < MAX_ANSWER {
        match stream.read_u8().await {
            Ok(byte) => line.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && line.is_empty() => {
                return Err(HybridError::Closed);
            }
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => break,
            Err(error) => return Err(error.into()),
        }
    }
    parse_answer(&line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn payload_right_behind_the_answer_is_left_untouched() {
        let (mut client, mut daemon) = tokio::io::duplex(64);
        daemon.write_all(b"OK 1073741824\nREADY").await.expect("write");
        assert_eq!(connect(&mut client, 5556).await.expect("handshake"), 1_073_741_824);
        let mut rest = [0; 5];
        client.read_exact(&mut rest).await.expect("payload");
        assert_eq!(&rest, b"READY");
        let mut request = [0; 13];
        daemon.read_exact(&mut request).await.expect("request");
        assert_eq!(&request, b"CONNECT 5556\n");
    }

    #[test]
    fn only_ok_and_a_number_is_an_answer() {
        assert_eq!(parse_answer(b"OK 7\n").expect("number"), 7);
        for bad in [&b"OK 7"[..], b"OK \n", b"OK +7\n", b"OK 4294967296\n", b"ERR 7\n", b"ok 7\n", b"", b"OK 7 \n"] {
            assert!(matches!(parse_answer(bad), Err(HybridError::Malformed(_))), "{bad:?}");
        }
    }
}
