// SPDX-License-Identifier: Apache-2.0
//! Tools for a person who looks inside: those of OVS and OVN that the image has, and no others. There is no shell in it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use arca_proto::helper::v1::{ExecOutput, exec_output::Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

/// By name; whatever of them the image has.
const TOOLS: [&str; 8] =
    ["ovn-nbctl", "ovn-sbctl", "ovs-vsctl", "ovs-ofctl", "ovs-dpctl", "ovs-appctl", "ovn-appctl", "nft"];
const FOLDERS: [&str; 2] = ["/usr/bin", "/usr/sbin"];
/// Of output that is passed on at once.
const PIECE: usize = 16 * 1024;

/// Why a tool was not run.
#[derive(Debug, thiserror::Error)]
pub(super) enum ToolError {
    /// Not one of them.
    #[error("`{0}` is no tool of the helper; there are {1}")]
    Unknown(String, String),
    /// No process, no pipes.
    #[error("start {0}")]
    Start(String, #[source] std::io::Error),
}

fn find(name: &str) -> Option<PathBuf> {
    let known = TOOLS.contains(&name);
    let mut places = FOLDERS.iter().map(|folder| Path::new(folder).join(name));
    places.find(|path| known && path.exists())
}

/// Runs `words`; its output goes to `output` until it ends or nobody listens any more.
pub(super) fn run(words: &[String], stdin: Vec<u8>, output: mpsc::Sender<ExecOutput>) -> Result<(), ToolError> {
    let name = words.first().map(String::as_str).unwrap_or_default();
    let path = find(name).ok_or_else(|| {
        let there: Vec<_> = TOOLS.into_iter().filter(|name| find(name).is_some()).collect();
        ToolError::Unknown(name.to_owned(), there.join(", "))
    })?;
    let mut command = Command::new(path);
    command.args(&words[1..]).env_clear().env("PATH", FOLDERS.join(":")).kill_on_drop(true);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let child = command.spawn().map_err(|error| ToolError::Start(name.to_owned(), error))?;
    tokio::spawn(async move {
        tokio::select! {
            () = attend(child, stdin, &output) => {}
            // Whoever asked has gone: dropping the child kills it.
            () = output.closed() => {}
        }
    });
    Ok(())
}

async fn attend(mut child: Child, stdin: Vec<u8>, output: &mpsc::Sender<ExecOutput>) {
    let input = child.stdin.take();
    let fed = async {
        if let Some(mut input) = input {
            // A tool need not read what it is given.
            let _ = input.write_all(&stdin).await;
        }
    };
    let out = pass(child.stdout.take(), output, Kind::Stdout);
    let err = pass(child.stderr.take(), output, Kind::Stderr);
    tokio::join!(fed, out, err);
    let code = child.wait().await.map_or(-1, |status| {
        use std::os::unix::process::ExitStatusExt as _;
        status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
    });
    // Whoever asked may have gone.
    let _ = output.send(ExecOutput { kind: Some(Kind::Code(code)) }).await;
}

async fn pass(stream: Option<impl AsyncRead + Unpin>, output: &mpsc::Sender<ExecOutput>, kind: fn(Vec<u8>) -> Kind) {
    let Some(mut stream) = stream else { return };
    let mut buffer = vec![0; PIECE];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let kind = Some(kind(buffer[..length].to_vec()));
        if output.send(ExecOutput { kind }).await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tools_are_run() {
        let (output, _) = mpsc::channel(1);
        for words in
            [vec![], vec!["sh".to_owned()], vec!["/usr/bin/ovn-nbctl".to_owned()], vec!["../bin/ls".to_owned()]]
        {
            let refused = run(&words, Vec::new(), output.clone());
            assert!(matches!(refused, Err(ToolError::Unknown(..))), "{words:?}");
        }
    }
}
