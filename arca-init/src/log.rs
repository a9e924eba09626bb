// SPDX-License-Identifier: Apache-2.0
//! `output.log`: Docker's json-file format, one JSON object a line (`log`, `stream`, `time`).

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
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

/// How much is kept.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Limit {
    /// Bytes after which a file is set aside; 0: never.
    pub(crate) bytes: u64,
    /// Files at most, the one that is written among them.
    pub(crate) files: u32,
}

/// An output log, appended to.
#[derive(Debug)]
pub(crate) struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    limit: Limit,
    partial: [Vec<u8>; 2],
    broken: bool,
}

impl Log {
    pub(crate) fn open(path: &Path, limit: Limit) -> io::Result<Self> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        let size = file.metadata()?.len();
        Ok(Self { path: path.to_owned(), file, size, limit, partial: Default::default(), broken: false })
    }

    /// Sets the file aside and begins a new one. Readers find those that were set aside by their numbers.
    fn rotate(&mut self) -> io::Result<()> {
        let numbered = |number: u32| {
            let mut name = self.path.clone().into_os_string();
            name.push(format!(".{number}"));
            PathBuf::from(name)
        };
        if self.limit.files > 1 {
            for number in (1..self.limit.files - 1).rev() {
                match fs::rename(numbered(number), numbered(number + 1)) {
                    Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                    _ => {}
                }
            }
            fs::rename(&self.path, numbered(1))?;
        } else {
            fs::remove_file(&self.path)?;
        }
        self.file = OpenOptions::new().create(true).append(true).open(&self.path)?;
        self.size = 0;
        Ok(())
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

    /// Writes whole lines, to as many files as they need.
    fn put(&mut self, lines: &[u8]) {
        let mut rest = lines;
        while !rest.is_empty() {
            if self.limit.bytes > 0
                && self.size >= self.limit.bytes
                && let Err(error) = self.rotate()
            {
                tracing::error!(%error, "the log cannot be set aside and grows on");
            }
            let room = match self.limit.bytes {
                0 => rest.len(),
                bytes => usize::try_from(bytes.saturating_sub(self.size)).unwrap_or(usize::MAX).max(1),
            };
            // As far as the line that fills it.
            let end = rest.get(room - 1..).and_then(|after| after.iter().position(|byte| *byte == b'\n'));
            let count = end.map_or(rest.len(), |end| (room + end).min(rest.len()));
            let (now, later) = rest.split_at(count);
            self.size += now.len() as u64;
            self.write_out(now);
            rest = later;
        }
    }

    fn write_out(&mut self, lines: &[u8]) {
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
        write(&mut Log::open(&path, Limit::default()).expect("open"));
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
    fn a_full_log_is_set_aside_and_the_oldest_goes() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("output.log");
        let mut log = Log::open(&path, Limit { bytes: 100, files: 3 }).expect("open");
        for number in 0..10 {
            // A line of the file is longer than half of what it may have.
            log.write(Source::Stdout, format!("{number}\n").as_bytes());
        }
        let read = |name: &str| std::fs::read_to_string(directory.path().join(name)).expect(name);
        let numbers = |name: &str| read(name).lines().map(|line| line[8..9].to_owned()).collect::<Vec<_>>();
        let [old, middle, new] = ["output.log.2", "output.log.1", "output.log"].map(numbers);
        assert_eq!([old, middle, new].concat(), ["4", "5", "6", "7", "8", "9"]);
        assert_eq!(fs::read_dir(directory.path()).expect("list").count(), 3);
        drop(log);
        // Another run of the workload goes on with the size that there is; one file alone begins anew.
        let mut log = Log::open(&path, Limit { bytes: 100, files: 1 }).expect("open");
        log.write(Source::Stdout, b"x\n");
        assert_eq!(numbers("output.log"), ["x"]);
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
