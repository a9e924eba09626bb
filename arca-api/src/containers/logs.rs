// SPDX-License-Identifier: Apache-2.0
//! `docker logs`: reads `output.log` (one JSON object a line: `{"log":…,"stream":…,"time":…}`), the last lines or all,
//! and follows it until the container ends.

use std::{
    collections::VecDeque,
    fs::File,
    io::{self, BufRead, BufReader, Read, Seek, SeekFrom},
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use serde::Deserialize;
use tokio::sync::mpsc;

use crate::{
    containers::{Container, Record, follow},
    docker::time::{from_rfc3339, parse_timestamp, rfc3339_fixed},
    http::{
        ApiError, ApiResult,
        hijack::{StreamKind, frame_header},
        query::Query,
    },
};

/// What to show.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)]
pub struct LogOptions {
    pub stdout: bool,
    pub stderr: bool,
    pub follow: bool,
    pub timestamps: bool,
    /// Nanoseconds since the Unix epoch.
    pub since: Option<i64>,
    /// As above.
    pub until: Option<i64>,
    /// Lines from the end; `None` is all.
    pub tail: Option<u64>,
    /// No frames: the container has a terminal.
    pub raw: bool,
    /// Before each line: `--details`.
    pub prefix: String,
}

/// What `--details` puts before each line: the labels and variables that `--log-opt labels=,env=` name, and a space.
pub fn details(record: &Record) -> String {
    let named = |option: &str| record.host.log_config["Config"][option].as_str().unwrap_or("").to_owned();
    let labels = named("labels");
    let labels = labels.split(',').filter_map(|key| record.config.labels.get_key_value(key));
    let mut pairs: Vec<String> = labels.map(|(key, value)| format!("{key}={value}")).collect();
    let variables = named("env");
    for key in variables.split(',').filter(|key| !key.is_empty()) {
        let set = |entry: &&String| entry.split_once('=').is_some_and(|(name, _)| name == key);
        pairs.extend(record.config.env.iter().flatten().find(set).cloned());
    }
    pairs.sort();
    pairs.join(",") + " "
}

impl LogOptions {
    /// Reads the query of `GET /containers/ID/logs`.
    ///
    /// # Errors
    /// 400 if no stream is chosen, 500 if a time cannot be read.
    pub fn from_query(query: &Query, raw: bool) -> ApiResult<Self> {
        let options = Self {
            stdout: query.flag("stdout"),
            stderr: query.flag("stderr"),
            follow: query.flag("follow"),
            timestamps: query.flag("timestamps"),
            since: parse_timestamp(query.get("since"))?,
            until: parse_timestamp(query.get("until"))?,
            // As in Docker, what is no number is "all".
            tail: query.get("tail").parse().ok(),
            raw,
            prefix: String::new(),
        };
        if !options.stdout && !options.stderr {
            return Err(ApiError::bad_request("Bad parameters: you must choose at least one stream"));
        }
        Ok(options)
    }
}

#[derive(Deserialize)]
struct Line {
    log: String,
    stream: String,
    time: String,
}

/// What one line of the file becomes; a line that cannot be read is left out.
fn render(text: &[u8], options: &LogOptions) -> Rendered {
    let Ok(line) = serde_json::from_slice::<Line>(text) else { return Rendered::Skip };
    let time = from_rfc3339(&line.time).unwrap_or(0);
    if options.until.is_some_and(|until| time > until) {
        return Rendered::Past;
    }
    if options.since.is_some_and(|since| time < since) {
        return Rendered::Skip;
    }
    let kind = if line.stream == "stderr" { StreamKind::Stderr } else { StreamKind::Stdout };
    if !(if kind == StreamKind::Stderr { options.stderr } else { options.stdout }) {
        return Rendered::Skip;
    }
    let mut payload = Vec::with_capacity(line.log.len() + 40);
    if options.timestamps {
        payload.extend_from_slice(rfc3339_fixed(time).as_bytes());
        payload.push(b' ');
    }
    payload.extend_from_slice(options.prefix.as_bytes());
    payload.extend_from_slice(line.log.as_bytes());
    if options.raw {
        return Rendered::Show(payload);
    }
    let mut framed = frame_header(kind, u32::try_from(payload.len()).unwrap_or(u32::MAX)).to_vec();
    framed.append(&mut payload);
    Rendered::Show(framed)
}

#[derive(Debug, PartialEq, Eq)]
enum Rendered {
    Show(Vec<u8>),
    Skip,
    /// Later than `until`: nothing more will be shown.
    Past,
}

/// Offset at which the last `lines` lines begin, and how many lines are missing before it.
fn tail_offset(file: &mut File, lines: u64) -> io::Result<(u64, u64)> {
    const BLOCK: u64 = 64 << 10;
    let mut end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok((end, 0));
    }
    // The newline that ends the last line does not begin another.
    let mut wanted = lines + 1;
    let mut first = true;
    let mut block = Vec::new();
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        file.seek(SeekFrom::Start(start))?;
        block.clear();
        file.by_ref().take(end - start).read_to_end(&mut block)?;
        if first && block.last() != Some(&b'\n') {
            // A line being written right now counts as one.
            wanted -= 1;
        }
        first = false;
        for (index, _) in block.iter().enumerate().rev().filter(|(_, byte)| **byte == b'\n') {
            wanted -= 1;
            if wanted == 0 {
                return Ok((start + index as u64 + 1, 0));
            }
        }
        end = start;
    }
    // The line at the beginning has no newline before it.
    Ok((0, wanted.saturating_sub(1)))
}

/// A reader that remembers a line that is not complete yet. Files that were set aside when they were full come before the
/// one that is written.
struct Reader {
    /// Oldest first; the last may still grow.
    files: VecDeque<BufReader<File>>,
    /// Device and number of the last.
    newest: (u64, u64),
    partial: Vec<u8>,
}

fn identity(file: &File) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().map(|metadata| (metadata.dev(), metadata.ino()))
}

/// The file that is written and those set aside before it, newest first, down to one that is known already.
fn files(path: &Path, known: Option<(u64, u64)>) -> io::Result<Vec<File>> {
    let mut found: Vec<File> = Vec::new();
    let mut last = None;
    for number in 0.. {
        let mut name = path.as_os_str().to_owned();
        if number > 0 {
            name.push(format!(".{number}"));
        }
        let file = match File::open(&name) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) => return Err(error),
        };
        let this = Some(identity(&file)?);
        if this == known {
            break;
        }
        // Set aside between two looks: it is the one we have.
        if this != last {
            found.push(file);
        }
        last = this;
    }
    Ok(found)
}

impl Reader {
    fn open(path: &Path, tail: Option<u64>) -> io::Result<Option<Self>> {
        let found = files(path, None)?;
        let Some(newest) = found.first().map(identity).transpose()? else { return Ok(None) };
        let (mut chosen, mut left) = (VecDeque::new(), tail);
        for mut file in found {
            let offset = match left {
                None => 0,
                Some(0) if !chosen.is_empty() => break,
                Some(lines) => {
                    let (offset, missing) = tail_offset(&mut file, lines)?;
                    left = Some(missing);
                    offset
                }
            };
            file.seek(SeekFrom::Start(offset))?;
            chosen.push_front(BufReader::new(file));
        }
        Ok(Some(Self { files: chosen, newest, partial: Vec::new() }))
    }

    /// Takes up what was begun since the newest file was set aside.
    fn catch_up(&mut self, path: &Path) -> io::Result<bool> {
        let newer = files(path, Some(self.newest))?;
        let Some(newest) = newer.first().map(identity).transpose()? else { return Ok(false) };
        self.newest = newest;
        self.files.extend(newer.into_iter().rev().map(BufReader::new));
        Ok(true)
    }

    /// Sends what is complete. `false`: nobody listens any more, or `until` has passed.
    fn drain(&mut self, options: &LogOptions, out: &mpsc::Sender<io::Result<Bytes>>) -> io::Result<bool> {
        loop {
            let Some(file) = self.files.front_mut() else { return Ok(!out.is_closed()) };
            file.read_until(b'\n', &mut self.partial)?;
            if self.partial.last() != Some(&b'\n') {
                if self.files.len() > 1 {
                    // A file that was set aside is whole; what has no end there never gets one.
                    self.files.pop_front();
                    self.partial.clear();
                    continue;
                }
                return Ok(!out.is_closed());
            }
            match render(&self.partial, options) {
                Rendered::Show(bytes) => {
                    if out.blocking_send(Ok(bytes.into())).is_err() {
                        return Ok(false);
                    }
                }
                Rendered::Skip => {}
                Rendered::Past => return Ok(false),
            }
            self.partial.clear();
        }
    }
}

/// Streams a container's log. The receiver ends with the log, or with the container when following.
pub fn stream(container: &Arc<Container>, path: &Path, options: LogOptions) -> mpsc::Receiver<io::Result<Bytes>> {
    let (out, receiver) = mpsc::channel(16);
    let path = path.to_owned();
    let container = container.clone();
    tokio::spawn(async move {
        if let Err(error) = pump(&container, &path, options, &out).await {
            let _ = out.send(Err(error)).await;
        }
    });
    receiver
}

async fn pump(
    container: &Container,
    path: &Path,
    options: LogOptions,
    out: &mpsc::Sender<io::Result<Bytes>>,
) -> io::Result<()> {
    // In this order: watch, then read, then look whether it still runs. Nothing written in between is missed.
    let mut phase = container.phase.subscribe();
    let mut changes = if options.follow { Some(follow::Changes::of(path)?) } else { None };
    let mut reader = None;
    let mut tail = options.tail;
    loop {
        let running = phase.borrow_and_update().running;
        let path = path.to_owned();
        let (out_here, options) = (out.clone(), options.clone());
        let (returned, go_on) = tokio::task::spawn_blocking(move || {
            let mut reader: Option<Reader> = match reader {
                Some(reader) => Some(reader),
                None => Reader::open(&path, tail)?,
            };
            let go_on = match &mut reader {
                Some(reader) => loop {
                    let go_on = reader.drain(&options, &out_here)?;
                    // After the look: what is written before it is set aside was read.
                    if !go_on || !options.follow || !reader.catch_up(&path)? {
                        break go_on;
                    }
                },
                None => !out_here.is_closed(),
            };
            io::Result::Ok((reader, go_on))
        })
        .await
        .map_err(io::Error::other)??;
        reader = returned;
        if reader.is_some() {
            tail = None;
        }
        let Some(changes) = changes.as_mut().filter(|_| go_on && running) else { return Ok(()) };
        tokio::select! {
            // Cancel-safe: a change not taken is seen by the next read all the same.
            changed = changes.next() => changed?,
            // Cancel-safe. An end of the container leads to one last read.
            ended = phase.changed() => if ended.is_err() { return Ok(()) },
            () = out.closed() => return Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    const ALL: LogOptions = LogOptions {
        stdout: true,
        stderr: true,
        follow: false,
        timestamps: false,
        since: None,
        until: None,
        tail: None,
        raw: true,
        prefix: String::new(),
    };

    fn line(text: &str, stream: &str, second: u32) -> String {
        serde_json::json!({"log": format!("{text}\n"), "stream": stream, "time": format!("2024-01-01T00:00:{second:02}Z")})
            .to_string()
            + "\n"
    }

    async fn shown(content: &str, options: LogOptions) -> String {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("output.log");
        std::fs::write(&path, content).expect("write");
        let container = Container::new(Record::default());
        let mut receiver = stream(&container, &path, options);
        let mut out = Vec::new();
        while let Some(piece) = receiver.recv().await {
            out.extend_from_slice(&piece.expect("piece"));
        }
        String::from_utf8(out).expect("text")
    }

    #[tokio::test]
    async fn lines_are_chosen_by_stream_tail_and_time() {
        let log = line("a", "stdout", 1) + &line("b", "stderr", 2) + &line("c", "stdout", 3);
        assert_eq!(shown(&log, ALL).await, "a\nb\nc\n");
        assert_eq!(shown(&log, LogOptions { stderr: false, ..ALL }).await, "a\nc\n");
        assert_eq!(shown(&log, LogOptions { tail: Some(2), ..ALL }).await, "b\nc\n");
        assert_eq!(shown(&log, LogOptions { tail: Some(0), ..ALL }).await, "");
        let second = from_rfc3339("2024-01-01T00:00:02Z");
        assert_eq!(shown(&log, LogOptions { since: second, ..ALL }).await, "b\nc\n");
        assert_eq!(shown(&log, LogOptions { until: second, ..ALL }).await, "a\nb\n");
        assert_eq!(
            shown(&log, LogOptions { tail: Some(1), timestamps: true, ..ALL }).await,
            "2024-01-01T00:00:03.000000000Z c\n"
        );
        // Torn and foreign lines are left out.
        assert_eq!(shown(&(line("a", "stdout", 1) + "garbage\n{\"log\":"), ALL).await, "a\n");
    }

    #[tokio::test]
    async fn files_that_were_set_aside_come_first_and_tail_reaches_into_them() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("output.log");
        let write = |name: &str, lines: &[&str]| {
            let text: String = lines.iter().map(|text| line(text, "stdout", 1)).collect();
            std::fs::write(folder.path().join(name), text).expect("write");
        };
        write("output.log.2", &["a", "b"]);
        write("output.log.1", &["c", "d"]);
        write("output.log", &["e"]);
        let container = Container::new(Record::default());
        for (tail, wanted) in [
            (None, "a\nb\nc\nd\ne\n"),
            (Some(0), ""),
            (Some(1), "e\n"),
            (Some(2), "d\ne\n"),
            (Some(4), "b\nc\nd\ne\n"),
            (Some(9), "a\nb\nc\nd\ne\n"),
        ] {
            let mut receiver = stream(&container, &path, LogOptions { tail, ..ALL });
            let mut out = Vec::new();
            while let Some(piece) = receiver.recv().await {
                out.extend_from_slice(&piece.expect("piece"));
            }
            assert_eq!(String::from_utf8_lossy(&out), wanted, "{tail:?}");
        }
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn following_goes_on_in_the_next_file() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("output.log");
        let container = Container::new(Record::default());
        container.phase.send_modify(|phase| phase.running = true);
        let mut receiver = stream(&container, &path, LogOptions { follow: true, ..ALL });
        for number in 0..5 {
            if number > 0 {
                std::fs::rename(&path, folder.path().join("output.log.1")).expect("set aside");
            }
            std::fs::write(&path, line(&number.to_string(), "stdout", 1)).expect("write");
            let piece = receiver.recv().await.expect("piece").expect("bytes");
            assert_eq!(piece, format!("{number}\n"));
        }
        container.phase.send_modify(|phase| phase.running = false);
        assert!(receiver.recv().await.is_none());
    }

    #[tokio::test]
    async fn frames_carry_the_stream() {
        let out = shown(&line("x", "stderr", 1), LogOptions { raw: false, ..ALL }).await;
        assert_eq!(out.as_bytes(), b"\x02\0\0\0\0\0\0\x02x\n");
    }

    #[cfg(target_os = "linux")]
    #[tokio::test]
    async fn following_sees_what_is_written_later_and_ends_with_the_container() {
        let folder = tempfile::tempdir().expect("temporary directory");
        let path = folder.path().join("output.log");
        let container = Container::new(Record::default());
        container.phase.send_modify(|phase| phase.running = true);
        let mut receiver = stream(&container, &path, LogOptions { follow: true, ..ALL });
        // The file does not exist yet, then grows line by line.
        let mut file = File::create(&path).expect("create");
        for text in ["one", "two"] {
            file.write_all(line(text, "stdout", 1).as_bytes()).expect("write");
            let piece = receiver.recv().await.expect("piece").expect("bytes");
            assert_eq!(piece, format!("{text}\n"));
        }
        file.write_all(line("last", "stdout", 1).as_bytes()).expect("write");
        container.phase.send_modify(|phase| phase.running = false);
        assert_eq!(receiver.recv().await.expect("piece").expect("bytes"), "last\n");
        assert!(receiver.recv().await.is_none());
    }
}
