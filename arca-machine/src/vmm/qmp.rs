// SPDX-License-Identifier: Apache-2.0
//! QMP: QEMU's control protocol, JSON lines (QEMU documentation, "QEMU Machine Protocol Specification").

use std::{io, time::Duration};

use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::UnixStream,
    sync::{Mutex, mpsc},
};

/// Longest line that is read.
const LINE: u64 = 1 << 20;
/// A QEMU that does not answer in this time hangs.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to QEMU.
#[derive(Debug)]
pub(super) struct Qmp {
    lines: Mutex<Lines>,
}

#[derive(Debug)]
struct Lines {
    writer: tokio::net::unix::OwnedWriteHalf,
    answers: mpsc::Receiver<Value>,
}

impl Qmp {
    /// Takes over a connected socket; QEMU greets when it is ready.
    pub(super) fn new(stream: UnixStream) -> Self {
        let (reader, writer) = stream.into_split();
        let (sender, answers) = mpsc::channel(4);
        tokio::spawn(async move {
            let mut reader = BufReader::new(reader);
            loop {
                let mut line = Vec::new();
                match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
                    Ok(0) | Err(_) => return,
                    Ok(_) => {}
                }
                let Ok(value) = serde_json::from_slice::<Value>(&line) else { continue };
                match value["event"].as_str() {
                    Some(event) => tracing::info!(event, data = %value["data"], "QEMU"),
                    None => {
                        if sender.send(value).await.is_err() {
                            return;
                        }
                    }
                }
            }
        });
        Self { lines: Mutex::new(Lines { writer, answers }) }
    }

    /// Waits for the greeting and leaves the negotiation mode.
    pub(super) async fn negotiate(&self) -> io::Result<()> {
        let mut lines = self.lines.lock().await;
        let greeting = lines.answer().await?;
        if !greeting["QMP"].is_object() {
            return Err(io::Error::new(io::ErrorKind::InvalidData, format!("no QMP greeting: {greeting}")));
        }
        drop(lines);
        self.execute("qmp_capabilities", json!({})).await.map(drop)
    }

    /// Runs a command, gives what it returns.
    pub(super) async fn execute(&self, command: &str, arguments: Value) -> io::Result<Value> {
        let mut lines = self.lines.lock().await;
        let mut text = json!({"execute": command, "arguments": arguments}).to_string();
        text.push('\n');
        lines.writer.write_all(text.as_bytes()).await?;
        let mut answer = lines.answer().await?;
        match answer["error"]["desc"].as_str() {
            Some(error) => Err(io::Error::other(format!("{command}: {error}"))),
            None => Ok(answer["return"].take()),
        }
    }
}

impl Lines {
    async fn answer(&mut self) -> io::Result<Value> {
        match tokio::time::timeout(PATIENCE, self.answers.recv()).await {
            Ok(Some(value)) => Ok(value),
            Ok(None) => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "QEMU closed its control connection")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn answers_are_told_from_events_and_errors_keep_their_text() {
        let (ours, theirs) = UnixStream::pair().expect("pair");
        let qemu = tokio::spawn(async move {
            let (reader, mut writer) = theirs.into_split();
            let mut reader = BufReader::new(reader).lines();
            writer.write_all(b"{\"QMP\":{\"version\":{}}}\n").await.expect("greet");
            let answers = [
                "{\"return\":{}}",
                "{\"event\":\"STOP\"}\n{\"return\":{\"status\":\"running\"}}",
                "{\"error\":{\"class\":\"GenericError\",\"desc\":\"no\"}}",
            ];
            for answer in answers {
                let asked = reader.next_line().await.expect("read").expect("a line");
                assert!(asked.starts_with("{\"execute\":"), "{asked}");
                writer.write_all(format!("{answer}\n").as_bytes()).await.expect("answer");
            }
        });
        let qmp = Qmp::new(ours);
        qmp.negotiate().await.expect("negotiate");
        assert_eq!(qmp.execute("query-status", json!({})).await.expect("status")["status"], "running");
        assert_eq!(qmp.execute("quit", json!({})).await.expect_err("refused").to_string(), "quit: no");
        qemu.await.expect("fake");
        assert!(qmp.execute("quit", json!({})).await.is_err(), "QEMU is gone");
    }
}
