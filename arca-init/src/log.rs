// SPDX-License-Identifier: Apache-2.0
//! `output.log`: Docker's json-file format, one JSON object a line (`log`, `stream`, `time`).

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::Path,
};

use serde::Serialize;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Longer lines are split, as Docker does (its log copier's buffer).
const LINE: usize = 16 * 1024;

/// Which output a byte came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// Standard output, or a terminal.
    Stdout,
    /// Standard error.
    Stderr,
}

#[derive(Serialize)]
struct Line<'a> {
    log: &'a str,
    stream: &'static str,
    time: &'a str,
}

/// An output log, appended to.
#[derive(Debug)]
pub(crate) struct Log {
    file: File,
    partial: [Vec<u8>; 2],
    broken: bool,
}

impl Log {
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        Ok(Self { file, partial: Default::default(), broken: false })
    }

    /// Logs what is whole of `data`; the rest waits for its newline.
    pub(crate) fn write(&mut self, source: Source, data: &[u8]) {
        let mut lines = Vec::with_capacity(data.len() + 128);
        let time = now();
        let partial = &mut self.partial[source as usize];
        for piece in data.split_inclusive(|byte| *byte == b'\n') {
            let mut piece = piece;
            while partial.len() + piece.len() > LINE {
                let (head, tail) = piece.split_at(LINE - partial.len());
                partial.extend_from_slice(head);
                append(&mut lines, source, partial, &time);
                partial.clear();
                piece = tail;
            }
            partial.extend_from_slice(piece);
            if piece.ends_with(b"\n") {
                append(&mut lines, source, partial, &time);
                partial.clear();
            }
        }
        self.put(&lines);
    }

    /// Logs what has no newline: nothing more will come.
    pub(crate) fn finish(&mut self) {
        let mut lines = Vec::new();
        let time = now();
        for source in [Source::Stdout, Source::Stderr] {
            let partial = std::mem::take(&mut self.partial[source as usize]);
            if !partial.is_empty() {
                append(&mut lines, source, &partial, &time);
            }
        }
        self.put(&lines);
    }

    fn put(&mut self, lines: &[u8]) {
        if lines.is_empty() {
            return;
        }
        // One write a chunk: a reader that follows sees whole lines. A full disk must not stop the workload.
        match self.file.write_all(lines) {
            Ok(()) => self.broken = false,
            Err(error) => {
                if !self.broken {
                    tracing::error!(%error, "output is lost: the log cannot be written");
                }
                self.broken = true;
            }
        }
    }
}

fn append(lines: &mut Vec<u8>, source: Source, text: &[u8], time: &str) {
    let stream = match source {
        Source::Stdout => "stdout",
        Source::Stderr => "stderr",
    };
    let log = String::from_utf8_lossy(text);
    // Writing to memory cannot fail, nor can strings be unserialisable.
    if serde_json::to_writer(&mut *lines, &Line { log: &log, stream, time }).is_ok() {
        lines.push(b'\n');
    }
}

fn now() -> String {
    OffsetDateTime::now_utc().format(&Rfc3339).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(write: impl FnOnce(&mut Log)) -> Vec<(String, String)> {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("output.log");
        write(&mut Log::open(&path).expect("open"));
        let text = std::fs::read_to_string(path).expect("read");
        let parse = |line: &str| -> serde_json::Value { serde_json::from_str(line).expect("JSON") };
        let text_of = |value: &serde_json::Value| value.as_str().expect("string").to_owned();
        text.lines().map(parse).map(|line| (text_of(&line["log"]), text_of(&line["stream"]))).collect()
    }

    #[test]
    fn lines_are_whole_and_streams_apart() {
        let got = lines(|log| {
            log.write(Source::Stdout, b"a\nb");
            log.write(Source::Stderr, b"error\n");
            log.write(Source::Stdout, b"c\n\xff\"\n");
            log.write(Source::Stderr, b"no newline");
            log.finish();
        });
        let pair = |log: &str, stream: &str| (log.to_owned(), stream.to_owned());
        let want = [
            pair("a\n", "stdout"),
            pair("error\n", "stderr"),
            pair("bc\n", "stdout"),
            pair("\u{fffd}\"\n", "stdout"),
            pair("no newline", "stderr"),
        ];
        assert_eq!(got, want);
    }

    #[test]
    fn a_line_without_end_is_split_and_nothing_is_lost() {
        let got = lines(|log| {
            log.write(Source::Stdout, &vec![b'x'; 3 * LINE + 5]);
            log.write(Source::Stdout, b"y\n");
            log.finish();
        });
        assert_eq!(got.len(), 4);
        assert_eq!(got.iter().map(|(text, _)| text.len()).sum::<usize>(), 3 * LINE + 7);
        assert!(got[3].0.ends_with("xy\n"));
    }
}
