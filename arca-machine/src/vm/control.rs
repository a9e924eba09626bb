// SPDX-License-Identifier: Apache-2.0
//! The control socket of arca-vmm, `<socket directory>/vmm`: one JSON line asks, one answers, one question a connection.
//! Only root and the keeper's own user may ask.

use std::{
    io,
    path::{Path, PathBuf},
};

use arca_proto::dial::connect_unix;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::VmState;

/// Name of the socket in the machine's socket directory.
pub(crate) const SOCKET: &str = "vmm";
/// Longest line that is read: an image of 127 layers with long paths stays far below.
const LINE: u64 = 1 << 20;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    /// Make a host path visible in the guest.
    Expose { path: PathBuf, read_only: bool },
    /// Mount an overlay and make it visible in the guest.
    Root { name: String, lower: Vec<PathBuf>, upper: PathBuf, work: PathBuf },
    /// Take away what `Root` made.
    Unroot { name: String },
    /// How the machine is.
    State,
    /// End it: the guest gets this long, then it is stopped.
    Stop { grace_ms: u64 },
    /// Let the guest have this many bytes of its memory.
    Balloon { bytes: u64 },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    /// What the guest sees.
    Path(PathBuf),
    /// Answer to `State`.
    State(VmState),
    /// Done, or begun.
    Done,
    /// Not done, and why.
    Failed(String),
}

/// Asks the arca-vmm that serves `directory`.
pub(crate) async fn ask(directory: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = connect_unix(&directory.join(SOCKET)).await?;
    write(&mut stream, request).await?;
    read(stream).await
}

pub(crate) async fn write(stream: &mut (impl AsyncWriteExt + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

pub(crate) async fn read<T: serde::de::DeserializeOwned>(stream: impl AsyncRead + Unpin) -> io::Result<T> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE)).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line is cut short"));
    }
    Ok(serde_json::from_slice(&line)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_line_is_read_back_and_a_torn_one_is_an_error() {
        let (mut ours, theirs) = tokio::io::duplex(256);
        let request = Request::Expose { path: "/x y".into(), read_only: true };
        write(&mut ours, &request).await.expect("write");
        assert_eq!(read::<Request>(theirs).await.expect("read"), request);
        for torn in [&b""[..], b"{\"expose\"", b"[]\n", b"{\"reboot\":{}}\n"] {
            assert!(read::<Request>(torn).await.is_err());
        }
    }
}
