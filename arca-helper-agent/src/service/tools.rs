// SPDX-License-Identifier: Apache-2.0
//! Tools for a person who looks inside: those of OVS and OVN that the image has, and no others. There is no shell in it.

use std::path::{Path, PathBuf};
use std::process::Stdio;

use arca_proto::helper::v1::{ExecOutput, exec_output::Kind};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::layout::Layout;

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
    command
        .args(with_target(name, &words[1..], &Layout::default()))
        .env_clear()
        .env("PATH", FOLDERS.join(":"))
        .kill_on_drop(true);
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

/// The arguments of a tool that talks to a daemon's control socket, with the socket's path in place of the daemon's name:
/// sockets here have no process id in their names. Nobody named: ovs-vswitchd, or ovn-controller.
fn with_target(tool: &str, arguments: &[String], layout: &Layout) -> Vec<String> {
    let (folder, own) = match tool {
        "ovs-appctl" => (layout.ovs_run(), "ovs-vswitchd"),
        "ovn-appctl" => (layout.ovn_run(), "ovn-controller"),
        _ => return arguments.to_vec(),
    };
    let socket = |daemon: &str| match daemon.contains('/') {
        true => daemon.to_owned(),
        false => folder.join(daemon).with_extension("ctl").display().to_string(),
    };
    let mut arguments = arguments.to_vec();
    if let Some(target) = arguments.iter().find_map(|word| word.strip_prefix("--target=").map(socket)) {
        arguments.retain(|word| !word.starts_with("--target="));
        arguments.insert(0, format!("--target={target}"));
    } else if let Some(at) = arguments.iter().position(|word| word == "-t") {
        if let Some(daemon) = arguments.get_mut(at + 1) {
            *daemon = socket(daemon);
        }
    } else {
        arguments.insert(0, format!("--target={}", socket(own)));
    }
    arguments
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
    fn a_daemon_is_asked_at_its_own_socket_by_name_or_without_one() {
        let layout = Layout::default();
        let asked = |tool: &str, words: &[&str]| {
            let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
            with_target(tool, &words, &layout).join(" ")
        };
        let (ovs, ovn) = (layout.ovs_run(), layout.ovn_run());
        let vswitchd = format!("--target={}", ovs.join("ovs-vswitchd.ctl").display());
        assert_eq!(asked("ovs-appctl", &["version"]), format!("{vswitchd} version"));
        let northd = ovn.join("ovn-northd.ctl").display().to_string();
        assert_eq!(asked("ovn-appctl", &["-t", "ovn-northd", "status"]), format!("-t {northd} status"));
        assert_eq!(asked("ovn-appctl", &["--target=ovn-northd", "status"]), format!("--target={northd} status"));
        assert_eq!(asked("ovn-appctl", &["-t", "/x/y.ctl", "status"]), "-t /x/y.ctl status");
        assert_eq!(asked("ovn-nbctl", &["show"]), "show");
    }

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
