// SPDX-License-Identifier: Apache-2.0
//! The task behind a [`super::Database`]: connect, fetch the schema, monitor, serve; after a break wait a little and
//! do it again. It alone writes snapshots.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};

use super::schema::Schema;
use super::stream::Decoder;
use super::{Error, Monitor, OpResult, Request, Snapshot, State, op};

const BACKOFF_MIN: Duration = Duration::from_millis(1);
const BACKOFF_MAX: Duration = Duration::from_secs(1);

/// Runs until the last handle is dropped.
pub(super) async fn run(
    path: PathBuf,
    db: String,
    monitors: Vec<Monitor>,
    mut queue: mpsc::Receiver<Request>,
    publish: watch::Sender<State>,
) {
    let mut session = Session { db, monitors, snapshot: Snapshot::default(), last_transaction: None, publish };
    let mut backoff = BACKOFF_MIN;
    loop {
        let connected_before = session.snapshot.generation;
        let Err(error) = session.connection(&path, &mut queue).await else { return };
        let refused = matches!(error, Error::Schema { .. } | Error::Refused { .. }).then(|| error.clone());
        if session.snapshot.connected || refused.is_some() {
            tracing::warn!(database = session.db, %error, "connection to the database ended");
            session.snapshot.connected = false;
            session.publish(refused);
        }
        backoff = if session.snapshot.generation > connected_before { BACKOFF_MIN } else { backoff };
        // Requests do not wait for the next connection: their sender decides anew with what it knows by then.
        let pause = tokio::time::sleep(backoff);
        tokio::pin!(pause);
        loop {
            tokio::select! {
                // Cancel-safe: a timer.
                () = &mut pause => break,
                // Cancel-safe: a message is received or not.
                request = queue.recv() => match request {
                    Some(request) => drop(request.answer.send(Err(Error::NotConnected(session.db.clone())))),
                    None => return,
                },
            }
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

struct Session {
    db: String,
    monitors: Vec<Monitor>,
    snapshot: Snapshot,
    /// Id of the last transaction seen: the server then only sends what came later, if it still knows.
    last_transaction: Option<String>,
    publish: watch::Sender<State>,
}

struct Pending {
    ops: Vec<String>,
    answer: oneshot::Sender<Result<Vec<OpResult>, Error>>,
}

impl Session {
    /// One connection from connect to break. `Ok` when no handle is left.
    async fn connection(&mut self, path: &Path, queue: &mut mpsc::Receiver<Request>) -> Result<(), Error> {
        let mut pending = HashMap::new();
        let result = self.serve(path, queue, &mut pending).await;
        for Pending { answer, .. } in pending.into_values() {
            drop(answer.send(Err(Error::Lost(self.db.clone()))));
        }
        result
    }

    async fn serve(
        &mut self,
        path: &Path,
        queue: &mut mpsc::Receiver<Request>,
        pending: &mut HashMap<u64, Pending>,
    ) -> Result<(), Error> {
        let stream =
            UnixStream::connect(path).await.map_err(|e| Error::Protocol(format!("connect {}: {e}", path.display())))?;
        let mut wire = Wire::new(stream);
        self.monitor(&mut wire).await?;
        let mut next_id = 2u64;
        loop {
            tokio::select! {
                // Cancel-safe: bytes are either in the buffers or not taken (read_buf, write_buf).
                message = wire.receive() => {
                    let mut message = message?;
                    if wire.answered_echo(&message) {
                        continue;
                    }
                    if message["method"] == "update3" {
                        self.update(message["params"].take())?;
                    } else if message["method"].is_string() {
                        return Err(Error::Protocol(format!("unexpected {}", message["method"])));
                    } else if let Some(Pending { ops, answer }) = message["id"].as_u64().and_then(|id| pending.remove(&id)) {
                        drop(answer.send(self.judge(&ops, &message)));
                    }
                }
                // Cancel-safe: a message is received or not. Requests are pipelined.
                request = queue.recv() => {
                    let Some(Request { ops, answer }) = request else { return Ok(()) };
                    let mut params = vec![json!(self.db)];
                    params.extend(ops.iter().map(op::Op::to_json));
                    next_id += 1;
                    wire.send(&json!({"method": "transact", "params": params, "id": next_id}));
                    pending.insert(next_id, Pending { ops: ops.iter().map(op::Op::describe).collect(), answer });
                }
            }
        }
    }

    fn judge(&self, ops: &[String], message: &Json) -> Result<Vec<OpResult>, Error> {
        if !message["error"].is_null() {
            return Err(self.refused("transact", &message["error"]));
        }
        op::results(&self.db, ops, &message["result"])
    }

    /// Schema first, because differences cannot be read without it; then everything, or what is new.
    async fn monitor(&mut self, wire: &mut Wire) -> Result<(), Error> {
        wire.send(&json!({"method": "get_schema", "params": [self.db], "id": 0}));
        let schema = Schema::from_json(&self.answer(wire, "get_schema").await?)?;
        schema.check(&self.db, &self.monitors)?;
        let mut requests = serde_json::Map::new();
        for monitor in &self.monitors {
            let columns = monitor.columns.iter().chain(&monitor.optional);
            let columns: Vec<_> = columns.filter(|c| schema.has(&monitor.table, c)).collect();
            requests.insert(monitor.table.clone(), json!([{ "columns": columns }]));
        }
        if schema != *self.snapshot.schema {
            self.last_transaction = None;
        }
        self.snapshot.monitor(schema, &self.monitors);
        let since = self.last_transaction.as_deref().unwrap_or("00000000-0000-0000-0000-000000000000");
        let params = json!([self.db, "arca", requests, since]);
        wire.send(&json!({"method": "monitor_cond_since", "params": params, "id": 1}));
        let mut answer = self.answer(wire, "monitor_cond_since").await?;
        let Some([found, last, updates]) = answer.as_array_mut().map(Vec::as_mut_slice) else {
            return Err(Error::Protocol(format!("answer of monitor_cond_since: {answer}")));
        };
        if *found == Json::Bool(true) {
            self.snapshot.apply(updates.take())?;
        } else {
            self.snapshot.replace(updates.take())?;
        }
        self.last_transaction = last.as_str().map(Into::into);
        self.snapshot.connected = true;
        self.publish(None);
        tracing::debug!(database = self.db, resumed = *found == Json::Bool(true), "monitoring");
        Ok(())
    }

    /// Waits for an answer while nothing else can come but echo requests.
    async fn answer(&self, wire: &mut Wire, method: &'static str) -> Result<Json, Error> {
        loop {
            let mut message = wire.receive().await?;
            if wire.answered_echo(&message) || message["method"].is_string() {
                continue;
            }
            if !message["error"].is_null() {
                return Err(self.refused(method, &message["error"]));
            }
            return Ok(message["result"].take());
        }
    }

    fn update(&mut self, mut params: Json) -> Result<(), Error> {
        let Some([_, last, updates]) = params.as_array_mut().map(Vec::as_mut_slice) else {
            return Err(Error::Protocol(format!("parameters of update3: {params}")));
        };
        if let Err(e) = self.snapshot.apply(updates.take()) {
            // Half of it may be in: only a complete copy is of use now.
            self.last_transaction = None;
            return Err(e);
        }
        self.last_transaction = last.as_str().map(Into::into);
        self.publish(None);
        Ok(())
    }

    fn publish(&mut self, refused: Option<Error>) {
        self.snapshot.generation += 1;
        let snapshot = std::sync::Arc::new(self.snapshot.clone());
        self.publish.send_replace(State { snapshot, refused });
    }

    fn refused(&self, method: &'static str, reason: &Json) -> Error {
        let reason = reason["details"].as_str().map_or_else(|| reason.to_string(), Into::into);
        Error::Refused { db: self.db.clone(), method, reason }
    }
}

/// Messages over a socket. Reading goes on while a write is blocked, so neither side can wait for the other.
struct Wire {
    reader: OwnedReadHalf,
    writer: OwnedWriteHalf,
    decoder: Decoder,
    outgoing: BytesMut,
}

impl Wire {
    fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        Self { reader, writer, decoder: Decoder::default(), outgoing: BytesMut::new() }
    }

    fn send(&mut self, message: &Json) {
        self.outgoing.extend_from_slice(message.to_string().as_bytes());
    }

    /// The next message; meanwhile writes what is due.
    async fn receive(&mut self) -> Result<Json, Error> {
        loop {
            if let Some(message) = self.decoder.next_message()? {
                return Ok(message);
            }
            let broken = |e: std::io::Error| Error::Protocol(format!("the connection broke: {e}"));
            let buffer = self.decoder.buffer();
            buffer.reserve(16 << 10);
            tokio::select! {
                // Cancel-safe: the bytes are in the buffer when it returns.
                read = self.reader.read_buf(buffer) => if read.map_err(broken)? == 0 {
                    return Err(Error::Protocol("the server closed the connection".into()));
                },
                // Cancel-safe: advances the buffer by what was written.
                written = self.writer.write_buf(&mut self.outgoing), if self.outgoing.has_remaining() => {
                    written.map_err(broken)?;
                }
            }
        }
    }

    /// A server drops clients that leave its echo unanswered.
    fn answered_echo(&mut self, message: &Json) -> bool {
        if message["method"] != "echo" {
            return false;
        }
        self.send(&json!({"result": message["params"], "error": null, "id": message["id"]}));
        true
    }
}
