// SPDX-License-Identifier: Apache-2.0
//! What a launcher asks the keeper of a virtual machine (arca-vmm, arca-vz) on its control socket, `<socket directory>/vmm`:
//! one JSON line asks, one answers, one question a connection. Only root and the keeper's own user may ask.

use std::{
    io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWriteExt, BufReader};

use crate::dial::connect_unix;

/// Name of the socket in the machine's socket directory.
pub const SOCKET: &str = "vmm";
/// Longest line that is read: an image of 127 layers with long paths stays far below.
const LINE: u64 = 1 << 20;

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds workloads: arca-init, which is asked to end them.
    Container,
    /// Holds OVS and OVN: arca-helper-agent. What it holds is rebuilt from the host's intent, so it is just stopped.
    Helper,
}

/// How a virtual machine is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// The hypervisor's word: `running`, `paused`, ...
    pub status: String,
    /// `kvm`, `tcg` or `vz`.
    pub accelerator: String,
    /// Bytes the guest has now.
    pub memory: u64,
    /// Name and host process id of each process that makes it up.
    pub processes: Vec<(String, u32)>,
}

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Make a host path visible in the guest.
    Expose {
        /// The path.
        path: PathBuf,
        /// The guest may not write.
        read_only: bool,
    },
    /// Mount an overlay and make it visible in the guest.
    Root {
        /// Told apart by.
        name: String,
        /// Topmost first.
        lower: Vec<PathBuf>,
        /// The writable layer.
        upper: PathBuf,
        /// Of overlayfs, on the file system of `upper`.
        work: PathBuf,
    },
    /// Take away what `Root` made.
    Unroot {
        /// As in `Root`.
        name: String,
    },
    /// How the machine is.
    State,
    /// End it: the guest gets this long, then it is stopped.
    Stop {
        /// Milliseconds.
        grace_ms: u64,
    },
    /// Let the guest have this many bytes of its memory.
    Balloon {
        /// Bytes.
        bytes: u64,
    },
}

/// An answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// What the guest sees.
    Path(PathBuf),
    /// Answer to `State`.
    State(State),
    /// Done, or begun.
    Done,
    /// Not done, and why.
    Failed(String),
}

/// Asks the keeper whose sockets lie in `directory`.
///
/// # Errors
/// It cannot be reached, or what it says is no answer.
pub async fn ask(directory: &Path, request: &Request) -> io::Result<Answer> {
    let mut stream = connect_unix(&directory.join(SOCKET)).await?;
    write(&mut stream, request).await?;
    read(stream).await
}

/// Writes one line.
///
/// # Errors
/// As the stream.
pub async fn write(stream: &mut (impl AsyncWriteExt + Unpin), value: &impl Serialize) -> io::Result<()> {
    let mut line = serde_json::to_vec(value)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

/// Reads one line.
///
/// # Errors
/// As the stream; a line that is cut short, too long, or says nothing that is known.
pub async fn read<T: serde::de::DeserializeOwned>(stream: impl AsyncRead + Unpin) -> io::Result<T> {
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
