// SPDX-License-Identifier: Apache-2.0
//! Attach sessions: the stream to arca-init behind `docker attach` and `docker exec`, and the clients that attached
//! before there was a process.
//!
//! The CLI attaches, then starts. Such a client waits in [`Clients`]; start gives it its session after the workload was
//! created and before its process runs, so nothing it writes is lost.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use arca_proto::init::v1::{self as init, attach_input, attach_output};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;

use crate::machines::{Init, Live};

/// Which standard streams a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct Streams {
    pub stdin: bool,
    pub stdout: bool,
    pub stderr: bool,
}

/// Chunks of input on their way to arca-init: a slow process slows its client down.
const INPUT_QUEUE: usize = 16;

/// An attached stream.
#[derive(Debug)]
pub struct Session {
    /// Towards the process.
    pub input: mpsc::Sender<init::AttachInput>,
    /// From the process; `exit` comes last.
    pub output: Streaming<init::AttachOutput>,
    /// Input is wanted by the client and taken by the process.
    pub stdin: bool,
}

/// Attaches to a process. Whatever it writes after this returns reaches the session.
///
/// # Errors
/// arca-init's: the process is unknown, or arca-init does not answer.
pub async fn open(init: &Init, process: init::ProcessRef, streams: Streams) -> Result<Session, tonic::Status> {
    let (input, receiver) = mpsc::channel(INPUT_QUEUE);
    let open = init::AttachOpen {
        process: Some(process),
        stdin: streams.stdin,
        stdout: streams.stdout,
        stderr: streams.stderr,
    };
    let first = init::AttachInput { kind: Some(attach_input::Kind::Open(open)) };
    input.send(first).await.map_err(|_| tonic::Status::internal("the attach stream is closed"))?;
    let mut output = init.clone().attach(ReceiverStream::new(receiver)).await?.into_inner();
    match output.message().await?.and_then(|message| message.kind) {
        Some(attach_output::Kind::Attached(_)) => Ok(Session { input, output, stdin: streams.stdin }),
        _ => Err(tonic::Status::internal("arca-init did not confirm the attach")),
    }
}

#[derive(Debug)]
struct Waiting {
    streams: Streams,
    session: oneshot::Sender<(Session, Serving)>,
}

/// The attach clients of one container.
#[derive(Debug)]
pub struct Clients {
    waiting: Mutex<Vec<Waiting>>,
    serving: watch::Sender<usize>,
}

impl Default for Clients {
    fn default() -> Self {
        Self { waiting: Mutex::default(), serving: watch::Sender::new(0) }
    }
}

/// Counts one client that is being served until it is dropped.
#[derive(Debug)]
pub struct Serving(watch::Sender<usize>);

impl Drop for Serving {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count = count.saturating_sub(1));
    }
}

impl Clients {
    /// Queues a client for the next start. The receiver fails if there will be none.
    pub fn wait(&self, streams: Streams) -> oneshot::Receiver<(Session, Serving)> {
        let (session, receiver) = oneshot::channel();
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).push(Waiting { streams, session });
        receiver
    }

    /// Lets the waiting clients go: there is no process to come.
    pub fn dismiss(&self) {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Gives every waiting client its session. A client that left meanwhile is skipped.
    pub async fn serve_waiting(&self, live: &Live, id: &str) {
        let waiting = std::mem::take(&mut *self.waiting.lock().unwrap_or_else(PoisonError::into_inner));
        for client in waiting {
            let process = init::ProcessRef { workload_id: id.to_owned(), exec_id: String::new() };
            match open(&live.init, process, client.streams).await {
                Ok(session) => drop(client.session.send((session, self.serving()))),
                Err(status) => tracing::warn!(container_id = id, error = status.message(), "attach before start"),
            }
        }
    }

    /// Counts one more served client.
    pub fn serving(&self) -> Serving {
        self.serving.send_modify(|count| *count += 1);
        Serving(self.serving.clone())
    }

    /// Returns when every served client has got its last output, or after `patience`.
    pub async fn drained(&self, patience: Duration) {
        let mut serving = self.serving.subscribe();
        let drained = tokio::time::timeout(patience, serving.wait_for(|count| *count == 0)).await;
        if drained.is_err() {
            tracing::info!("an attached client does not read; its output is cut");
        }
    }
}
