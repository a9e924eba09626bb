// SPDX-License-Identifier: Apache-2.0
//! The Docker Engine API without the docker CLI: one request, one answer, over the engine's socket. For tests and benches
//! that ask many things at once, where fifty processes would measure the machine and not the engine.

use std::{
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use crate::engine::Engine;

/// An answer that takes longer is none: the engine hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Speaks to one engine's socket; clones do too.
#[derive(Clone, Debug)]
pub struct Docker {
    socket: PathBuf,
}

/// Status and body.
#[derive(Clone, Debug)]
pub struct Answer {
    /// HTTP status.
    pub status: u16,
    /// JSON, or a string of what was no JSON; null if empty.
    pub body: Value,
}

impl Answer {
    /// The body of a 2xx; 304 ("it is so already") counts too.
    ///
    /// # Errors
    /// With the status and Docker's message.
    pub fn ok(self) -> anyhow::Result<Value> {
        match self.status {
            200..=299 | 304 => Ok(self.body),
            status => bail!("{status} {}", self.message()),
        }
    }

    /// Docker's `message`.
    #[must_use]
    pub fn message(&self) -> String {
        self.body["message"].as_str().map_or_else(|| self.body.to_string(), str::to_owned)
    }
}

impl Docker {
    /// To this engine.
    #[must_use]
    pub fn of(engine: &Engine) -> Self {
        Self { socket: engine.home().join("arca.sock") }
    }

    /// `METHOD path` with a JSON body (null: none).
    ///
    /// # Errors
    /// If nobody answers, or not within a minute: an answer with an error status is an answer.
    pub fn call(&self, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
        exchange(&self.socket, method, path, body).with_context(|| format!("{method} {path}"))
    }

    /// `GET path`, its body.
    ///
    /// # Errors
    /// If it is not answered with 200.
    pub fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.call("GET", path, &Value::Null)?.ok().with_context(|| format!("GET {path}"))
    }

    /// `POST path` that has to succeed, its body.
    ///
    /// # Errors
    /// With Docker's message.
    pub fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.call("POST", path, body)?.ok().with_context(|| format!("POST {path}"))
    }

    /// Creates and starts a container that sleeps; its id.
    ///
    /// # Errors
    /// With Docker's message.
    pub fn sleeper(&self, name: &str, network: &str) -> anyhow::Result<String> {
        let config = json!({
            "Image": "busybox", "Cmd": ["sleep", "100000"], "StopSignal": "SIGKILL",
            "HostConfig": {"NetworkMode": network},
        });
        let made = self.post(&format!("/containers/create?name={name}"), &config)?;
        let id = made["Id"].as_str().context("an id")?.to_owned();
        self.post(&format!("/containers/{id}/start"), &Value::Null)?;
        Ok(id)
    }
}

fn exchange(socket: &Path, method: &str, path: &str, body: &Value) -> anyhow::Result<Answer> {
    let mut stream = UnixStream::connect(socket).context("connect to the engine's socket")?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let head = format!("{method} {path} HTTP/1.1\r\nHost: docker\r\nConnection: close\r\n");
    let length = format!("Content-Type: application/json\r\nContent-Length: {}\r\n\r\n", body.len());
    stream.write_all(format!("{head}{length}{body}").as_bytes())?;
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer)?;
    let text = String::from_utf8_lossy(&answer);
    let (head, body) = text.split_once("\r\n\r\n").context("the connection was closed before an answer")?;
    let status = head.split(' ').nth(1).and_then(|word| word.parse().ok()).context("no status line")?;
    let chunked = head.to_ascii_lowercase().contains("transfer-encoding: chunked");
    let body = if chunked { unchunked(body)? } else { body.to_owned() };
    let body = match serde_json::from_str(&body) {
        Ok(value) => value,
        Err(_) if body.is_empty() => Value::Null,
        Err(_) => Value::String(body),
    };
    Ok(Answer { status, body })
}

/// The content of a chunked body (RFC 9112 section 7.1).
fn unchunked(mut text: &str) -> anyhow::Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = text.split_once("\r\n").context("a chunk without its size")?;
        let size = usize::from_str_radix(size.trim(), 16).context("a chunk's size")?;
        if size == 0 {
            return Ok(whole);
        }
        whole.push_str(rest.get(..size).context("a chunk that is cut off")?);
        text = rest.get(size + 2..).context("a chunk without its end")?;
    }
}
