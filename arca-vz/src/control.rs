// SPDX-License-Identifier: Apache-2.0
//! The control socket: one JSON line asks, one answers, one question a connection; the same questions as arca-vmm's.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use arca_proto::listen::Listener;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, BufReader},
    sync::{Mutex, mpsc},
};

use crate::{framework::Framework, shares::Shares};

/// Longest line that is read.
const LINE: u64 = 1 << 20;

/// A question.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)]
pub enum Request {
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
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
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

/// How a machine is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct State {
    /// The framework's word.
    pub status: String,
    /// Always `vz`.
    pub accelerator: String,
    /// Bytes the guest was given.
    pub memory: u64,
    /// Process ids, by program.
    pub processes: Vec<(String, u32)>,
}

/// What answers are made from.
#[derive(Clone, Debug)]
pub struct Served {
    /// The machine.
    pub framework: Arc<dyn Framework>,
    /// What it sees.
    pub shares: Arc<Mutex<Shares>>,
    /// Bytes of its memory.
    pub memory: u64,
    /// Who wants it to end, and how patiently.
    pub stop: mpsc::Sender<Duration>,
}

/// Serves until the listener breaks.
pub async fn serve(listener: Listener, served: Served) -> io::Error {
    loop {
        let mut stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let served = served.clone();
        tokio::spawn(async move {
            let answered = async {
                let answer = match read(&mut stream).await {
                    Ok(request) => served.answer(request).await.unwrap_or_else(Answer::Failed),
                    Err(error) => Answer::Failed(format!("no question that is known here: {error}")),
                };
                write(&mut stream, &answer).await
            };
            if let Err(error) = answered.await {
                tracing::debug!(%error, "a question on the control socket");
            }
        });
    }
}

async fn read(stream: impl AsyncRead + Unpin) -> io::Result<Request> {
    let mut line = Vec::new();
    BufReader::new(stream.take(LINE)).read_until(b'\n', &mut line).await?;
    if line.last() != Some(&b'\n') {
        return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the line is cut short"));
    }
    Ok(serde_json::from_slice(&line)?)
}

async fn write(stream: &mut (impl AsyncWrite + Unpin), answer: &Answer) -> io::Result<()> {
    let mut line = serde_json::to_vec(answer)?;
    line.push(b'\n');
    stream.write_all(&line).await?;
    stream.flush().await
}

impl Served {
    async fn answer(&self, request: Request) -> Result<Answer, String> {
        match request {
            Request::Expose { path, read_only } => {
                let mut shares = self.shares.lock().await;
                // What the framework refuses is not remembered as exposed.
                let mut wanted = shares.clone();
                let seen = wanted.expose(&path, read_only);
                let seen = seen.map_err(|error| format!("expose {}: {error}", path.display()))?;
                self.framework.share(&wanted).await.map_err(|error| error.to_string())?;
                *shares = wanted;
                Ok(Answer::Path(seen))
            }
            Request::Root { .. } | Request::Unroot { .. } => {
                Err("macOS has no overlay file system to mount a container's \
                 layers with: give the guest the layers, or a disk"
                    .into())
            }
            Request::State => Ok(Answer::State(State {
                status: self.framework.state().await,
                accelerator: "vz".into(),
                memory: self.memory,
                processes: vec![("arca-vz".into(), std::process::id())],
            })),
            Request::Stop { grace_ms } => {
                // A keeper that has stopped listening is on its way out already.
                let _ = self.stop.send(Duration::from_millis(grace_ms)).await;
                Ok(Answer::Done)
            }
            Request::Balloon { bytes } => {
                let set = self.framework.balloon(bytes).await;
                set.map(|()| Answer::Done).map_err(|error| error.to_string())
            }
        }
    }
}
