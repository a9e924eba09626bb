// SPDX-License-Identifier: Apache-2.0
//! Between a taken-over connection and an attach session: input one way, output the other, until one side ends.

use std::time::Duration;

use arca_proto::{
    init::v1::{self as init, attach_input, attach_output},
    machine::v1::ExitStatus,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::{
    containers::{
        attach::{Serving, Session},
        detach_keys::{DetachKeys, Scan},
    },
    http::hijack::{Input, Output, StreamKind, frame_header},
};

/// One read of the client's input.
const CHUNK: usize = 32 << 10;
/// A client that got everything may take this long to close; its unread input would otherwise reset the connection
/// before it has read the end.
const LINGER: Duration = Duration::from_secs(10);

/// How a session ended.
#[derive(Clone, Debug, PartialEq)]
pub enum Ended {
    /// The process ended; all of its output was delivered.
    Exited(Option<ExitStatus>),
    /// The client typed the detach keys.
    Detached,
    /// The client has no more input, and the process keeps its own open.
    InputEnded,
    /// The client went away.
    ClientGone,
}

/// What `run` joins.
#[derive(Debug)]
pub struct Bridge {
    /// The session.
    pub session: Session,
    /// Counted until the output is delivered.
    pub serving: Serving,
    /// A terminal: output as it is, not framed.
    pub raw: bool,
    /// The client's end of input ends the session: a terminal has none, and an input that stays open has it later.
    pub leave_at_end: bool,
    /// Scanned for in the input; only a terminal has them.
    pub keys: Option<DetachKeys>,
}

/// Carries bytes until the process ends, the client leaves or detaches.
pub async fn run(bridge: Bridge, from_client: Input, to_client: Output) -> Ended {
    run_and_then(bridge, from_client, to_client, |_| ()).await
}

/// As [`run`]; `note` learns the end before the client can: what it asks for next is known then.
pub async fn run_and_then(
    bridge: Bridge,
    mut from_client: Input,
    mut to_client: Output,
    note: impl FnOnce(&Ended),
) -> Ended {
    let Bridge { session, serving, raw, leave_at_end, keys } = bridge;
    let Session { input, mut output, stdin } = session;
    let closer = input.clone();
    let ended = {
        let inward = inward(&mut from_client, input, stdin, keys, leave_at_end);
        let outward = outward(&mut to_client, &mut output, raw);
        tokio::pin!(inward, outward);
        tokio::select! {
            // Neither is resumed after the other has ended, so being dropped half-way loses nothing that matters.
            ended = &mut outward => ended,
            ended = &mut inward => ended,
        }
    };
    if ended == Ended::ClientGone && stdin && !leave_at_end {
        // arca-init closes nothing by itself: a client that is gone has no more input.
        let _ = closer.send(close_stdin()).await;
    }
    note(&ended);
    drop(closer);
    if ended == Ended::InputEnded {
        // What was typed last is still on its way to the process; ending the stream now would lose it.
        tokio::spawn(tokio::time::timeout(LINGER, async move { while let Ok(Some(_)) = output.message().await {} }));
    } else {
        drop(output);
    }
    drop(serving);
    let _ = to_client.shutdown().await;
    if ended != Ended::ClientGone {
        let mut rest = vec![0; CHUNK];
        let read_away = async { while from_client.read(&mut rest).await.is_ok_and(|count| count > 0) {} };
        let _ = tokio::time::timeout(LINGER, read_away).await;
    }
    ended
}

fn close_stdin() -> init::AttachInput {
    init::AttachInput { kind: Some(attach_input::Kind::CloseStdin(init::CloseStdin {})) }
}

/// Client to process. Returns only when the client detaches or its end of input is the end.
async fn inward(
    client: &mut Input,
    process: tokio::sync::mpsc::Sender<init::AttachInput>,
    stdin: bool,
    mut keys: Option<DetachKeys>,
    leave_at_end: bool,
) -> Ended {
    let mut buffer = vec![0; CHUNK];
    loop {
        let count = match client.read(&mut buffer).await {
            Ok(0) | Err(_) => break,
            Ok(count) => count,
        };
        let (bytes, detach) = match &mut keys {
            None => (buffer[..count].to_vec(), false),
            Some(keys) => match keys.scan(&buffer[..count]) {
                Scan::Pass(bytes) => (bytes, false),
                Scan::Detach(bytes) => (bytes, true),
            },
        };
        if stdin && !bytes.is_empty() {
            let message = init::AttachInput { kind: Some(attach_input::Kind::Stdin(bytes)) };
            if process.send(message).await.is_err() {
                break;
            }
        }
        if detach {
            return Ended::Detached;
        }
    }
    if stdin && leave_at_end {
        return Ended::InputEnded;
    }
    if stdin {
        // End of input is a message: no transport's half-close is trusted.
        let _ = process.send(close_stdin()).await;
    }
    // The stream stays open for the output; it ends with the process.
    std::future::pending().await
}

/// Process to client.
async fn outward(client: &mut Output, process: &mut tonic::Streaming<init::AttachOutput>, raw: bool) -> Ended {
    loop {
        let (kind, bytes) = match process.message().await {
            Ok(Some(init::AttachOutput { kind: Some(kind) })) => match kind {
                attach_output::Kind::Stdout(bytes) => (StreamKind::Stdout, bytes),
                attach_output::Kind::Stderr(bytes) => (StreamKind::Stderr, bytes),
                attach_output::Kind::Exit(exit) => return Ended::Exited(Some(exit)),
                attach_output::Kind::Attached(_) => continue,
            },
            Ok(Some(init::AttachOutput { kind: None })) => continue,
            // The machine has gone: what there was to say was said.
            Ok(None) | Err(_) => return Ended::Exited(None),
        };
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let written = async {
            if !raw {
                client.write_all(&frame_header(kind, length)).await?;
            }
            client.write_all(&bytes).await?;
            client.flush().await
        };
        if written.await.is_err() {
            return Ended::ClientGone;
        }
    }
}
