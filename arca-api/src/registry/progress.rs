// SPDX-License-Identifier: Apache-2.0
//! Lines of JSON that tell how far a transfer is, as the CLI draws them.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use axum::{
    body::Body,
    http::header::CONTENT_TYPE,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::{StreamExt as _, wrappers::UnboundedReceiverStream};

use crate::http::{ApiError, ApiResult};

/// A bar moves no more often.
const OFTEN: Duration = Duration::from_millis(100);
/// Characters of a bar.
const WIDTH: usize = 50;

/// Where the lines go.
#[derive(Clone, Debug)]
pub struct Lines(mpsc::UnboundedSender<ApiResult<Value>>);

impl Lines {
    /// Any line.
    pub fn send(&self, line: Value) {
        // A client that left reads nothing.
        let _ = self.0.send(Ok(line));
    }

    /// `STATUS`
    pub fn say(&self, status: impl Into<String>) {
        self.send(json!({"status": status.into()}));
    }

    /// `ID: STATUS`
    pub fn part(&self, id: &str, status: &str) {
        self.send(json!({"status": status, "progressDetail": {}, "id": id}));
    }

    /// A bar for one part.
    #[must_use]
    pub fn bar(&self, id: &str, status: &'static str, total: u64) -> Bar {
        let began = Instant::now();
        let last = Arc::new(Mutex::new((began.checked_sub(OFTEN).unwrap_or(began), 0)));
        Bar { lines: self.clone(), id: id.to_owned(), status, total, last }
    }

    /// Returns when the client has left.
    pub async fn left(&self) {
        self.0.closed().await;
    }
}

/// How far one part is.
#[derive(Clone, Debug)]
pub struct Bar {
    lines: Lines,
    id: String,
    status: &'static str,
    total: u64,
    last: Arc<Mutex<(Instant, u64)>>,
}

impl Bar {
    /// `count` more bytes are done.
    pub fn add(&self, count: u64) {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        last.1 += count;
        if last.0.elapsed() >= OFTEN || last.1 >= self.total {
            last.0 = Instant::now();
            let current = last.1;
            drop(last);
            self.lines.send(json!({
                "status": self.status, "progressDetail": {"current": current, "total": self.total},
                "progress": picture(current, self.total), "id": self.id,
            }));
        }
    }
}

/// `[====>    ]  1.2MB/3.4MB`, for clients that do not draw for themselves.
fn picture(current: u64, total: u64) -> String {
    let parts = current.saturating_mul(WIDTH as u64).checked_div(total).unwrap_or(0);
    let done = usize::try_from(parts).unwrap_or(WIDTH).min(WIDTH);
    let head = if done < WIDTH { ">" } else { "" };
    let bar = format!("{}{head}", "=".repeat(done));
    format!("[{bar:<WIDTH$}] {:>7}/{}", human(current), human(total))
}

/// Three digits and a unit of a thousand.
#[allow(clippy::cast_precision_loss, reason = "three digits are shown")]
fn human(bytes: u64) -> String {
    let mut size = bytes as f64;
    let mut units = ["B", "kB", "MB", "GB", "TB"].into_iter();
    let mut unit = units.next().unwrap_or_default();
    while size >= 1000.0
        && let Some(next) = units.next()
    {
        (size, unit) = (size / 1000.0, next);
    }
    let digits = match size {
        _ if unit == "B" => 0,
        size if size >= 100.0 => 0,
        size if size >= 10.0 => 1,
        _ => 2,
    };
    format!("{size:.digits$}{unit}")
}

/// Runs `work` and answers with its lines as they come. What goes wrong before the first line is the answer's own
/// status, as in Docker; later it is the last line. When the client leaves, `work` is dropped.
///
/// # Errors
/// What `work` returned before it said anything.
pub async fn stream<F>(work: impl FnOnce(Lines) -> F) -> ApiResult<Response>
where
    F: Future<Output = ApiResult<()>> + Send + 'static,
{
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let lines = Lines(sender.clone());
    let work = work(Lines(sender.clone()));
    tokio::spawn(async move {
        tokio::select! {
            done = work => if let Err(error) = done {
                let _ = sender.send(Err(error));
            },
            () = lines.left() => {}
        }
    });
    let first = match receiver.recv().await {
        Some(Err(error)) => return Err(error),
        first => first,
    };
    let all = tokio_stream::iter(first).chain(UnboundedReceiverStream::new(receiver));
    let text = all.map(|line: ApiResult<Value>| {
        let value = line.unwrap_or_else(|error| told(&error));
        Ok::<_, Infallible>(Bytes::from(value.to_string() + "\r\n"))
    });
    Ok(([(CONTENT_TYPE, "application/json")], Body::from_stream(text)).into_response())
}

fn told(error: &ApiError) -> Value {
    json!({"errorDetail": {"message": error.message}, "error": error.message})
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bars_have_an_arrow_and_sizes() {
        assert_eq!(picture(0, 0), format!("[>{}]      0B/0B", " ".repeat(49)));
        assert_eq!(picture(500, 1000), format!("[{}>{}]    500B/1.00kB", "=".repeat(25), " ".repeat(24)));
        assert_eq!(picture(1_234_567, 1_234_567), format!("[{}]  1.23MB/1.23MB", "=".repeat(50)));
    }
}
