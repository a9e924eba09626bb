// SPDX-License-Identifier: Apache-2.0
//! Where the output of one process goes: its log and the clients that are attached.
//!
//! While the process runs a slow client holds it up, as a slow terminal would, so nothing is lost and memory stays
//! bounded. Once it has ended only a pipe's worth is left to come: then nobody waits for clients, so that the exit is
//! recorded whatever they do.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use arca_proto::{
    init::v1::{AttachOutput, Attached, attach_output::Kind},
    machine::v1::ExitStatus,
};
use tokio::sync::{Semaphore, mpsc, watch};

use crate::log::{Log, Source};

/// Chunks (of up to 32 KiB) that a client may lag behind.
const ROOM: usize = 16;

/// The output of one process.
#[derive(Debug)]
pub(crate) struct Hub {
    state: Mutex<State>,
    attached: watch::Sender<bool>,
    exited: watch::Receiver<bool>,
}

#[derive(Debug)]
struct State {
    log: Option<Log>,
    clients: Vec<Arc<Client>>,
    finished: Option<ExitStatus>,
}

#[derive(Debug)]
struct Client {
    queue: mpsc::UnboundedSender<AttachOutput>,
    room: Arc<Semaphore>,
    stdout: bool,
    stderr: bool,
}

impl Hub {
    /// `exited` tells when the process has ended.
    pub(crate) fn new(log: Option<Log>, exited: watch::Receiver<bool>) -> Arc<Self> {
        let state = Mutex::new(State { log, clients: Vec::new(), finished: None });
        Arc::new(Self { state, attached: watch::Sender::new(false), exited })
    }

    /// A new client. Its first message says `attached`; nothing published from now on is lost to it.
    pub(crate) fn attach(&self, stdout: bool, stderr: bool) -> ClientOutput {
        let (queue, messages) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(ROOM));
        // The receiver is in our hand, so these cannot fail.
        let _ = queue.send(AttachOutput { kind: Some(Kind::Attached(Attached {})) });
        let mut state = self.lock();
        match state.finished {
            Some(exit) => {
                let _ = queue.send(AttachOutput { kind: Some(Kind::Exit(exit)) });
            }
            None => {
                state.clients.push(Arc::new(Client { queue, room: Arc::clone(&room), stdout, stderr }));
            }
        }
        drop(state);
        self.attached.send_replace(true);
        ClientOutput { messages, room }
    }

    /// Returns once a first client has attached.
    pub(crate) async fn until_attached(&self) {
        // The sender is part of self, so it outlives this wait.
        let _ = self.attached.subscribe().wait_for(|attached| *attached).await;
    }

    /// Logs `data` and gives it to every client, waiting for slow ones while the process runs.
    pub(crate) async fn publish(&self, source: Source, data: &[u8]) {
        let clients: Vec<Arc<Client>> = {
            let mut state = self.lock();
            if let Some(log) = &mut state.log {
                log.write(source, data);
            }
            state.clients.retain(|client| !client.room.is_closed());
            state.clients.iter().filter(|client| client.wants(source)).cloned().collect()
        };
        for client in clients {
            let mut exited = self.exited.clone();
            tokio::select! {
                // Both arms are cancel-safe: a permit not taken stays, and the flag stays set.
                permit = client.room.acquire() => match permit {
                    Ok(permit) => permit.forget(),
                    // Gone; the next publish forgets it.
                    Err(_) => continue,
                },
                _ = exited.wait_for(|exited| *exited) => {}
            }
            let kind = match source {
                Source::Stdout => Kind::Stdout(data.to_vec()),
                Source::Stderr => Kind::Stderr(data.to_vec()),
            };
            let _ = client.queue.send(AttachOutput { kind: Some(kind) });
        }
    }

    /// The log is whole after this.
    pub(crate) fn finish_log(&self) {
        if let Some(log) = &mut self.lock().log {
            log.finish();
        }
    }

    /// Gives every client, present and future, the exit status as its last message.
    pub(crate) fn finish(&self, exit: ExitStatus) {
        let mut state = self.lock();
        state.finished = Some(exit);
        state.log = None;
        for client in state.clients.drain(..) {
            let _ = client.queue.send(AttachOutput { kind: Some(Kind::Exit(exit)) });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic while a line is written loses at most that line.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Client {
    fn wants(&self, source: Source) -> bool {
        match source {
            Source::Stdout => self.stdout,
            Source::Stderr => self.stderr,
        }
    }
}

/// What one client reads.
#[derive(Debug)]
pub(crate) struct ClientOutput {
    messages: mpsc::UnboundedReceiver<AttachOutput>,
    room: Arc<Semaphore>,
}

impl tokio_stream::Stream for ClientOutput {
    type Item = Result<AttachOutput, tonic::Status>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let message = self.messages.poll_recv(cx);
        if let Poll::Ready(Some(AttachOutput { kind: Some(Kind::Stdout(_) | Kind::Stderr(_)) })) = &message {
            self.room.add_permits(1);
        }
        message.map(|message| message.map(Ok))
    }
}

impl Drop for ClientOutput {
    fn drop(&mut self) {
        // Wakes a publisher that waits for room.
        self.room.close();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;
    use tokio::time::timeout;
    use tokio_stream::StreamExt;

    async fn kinds(mut client: ClientOutput) -> Vec<Kind> {
        let mut all = Vec::new();
        while let Some(message) = client.next().await {
            all.push(message.expect("no error").kind.expect("a kind"));
        }
        all
    }

    #[tokio::test]
    async fn a_client_gets_its_streams_then_the_exit() {
        let (exited, receiver) = watch::channel(false);
        let hub = Hub::new(None, receiver);
        let only_errors = hub.attach(false, true);
        hub.publish(Source::Stdout, b"out").await;
        hub.publish(Source::Stderr, b"err").await;
        exited.send_replace(true);
        let exit = ExitStatus { code: 7, ..ExitStatus::default() };
        hub.finish(exit);
        let late = hub.attach(true, true);
        let attached = Kind::Attached(Attached {});
        assert_eq!(kinds(only_errors).await, [attached.clone(), Kind::Stderr(b"err".to_vec()), Kind::Exit(exit)]);
        assert_eq!(kinds(late).await, [attached, Kind::Exit(exit)]);
    }

    #[tokio::test]
    async fn a_slow_client_holds_up_the_process_but_not_its_end() {
        let (exited, receiver) = watch::channel(false);
        let hub = Hub::new(None, receiver);
        let slow = hub.attach(true, true);
        for _ in 0..ROOM {
            hub.publish(Source::Stdout, b"x").await;
        }
        assert!(timeout(Duration::from_millis(50), hub.publish(Source::Stdout, b"y")).await.is_err(), "must wait");
        exited.send_replace(true);
        hub.publish(Source::Stdout, b"z").await;
        hub.finish(ExitStatus::default());
        assert_eq!(kinds(slow).await.len(), 1 + ROOM + 1 + 1);
    }

    #[tokio::test]
    async fn a_client_that_goes_away_lets_the_process_go_on() {
        let (_exited, receiver) = watch::channel(false);
        let hub = Hub::new(None, receiver);
        let client = hub.attach(true, true);
        for _ in 0..ROOM {
            hub.publish(Source::Stdout, b"x").await;
        }
        let ((), ()) = tokio::join!(hub.publish(Source::Stdout, b"y"), async { drop(client) });
        hub.publish(Source::Stdout, b"z").await;
    }
}
