// SPDX-License-Identifier: Apache-2.0
//! macOS: vmnet.framework, one keeper process per network. Isolation is by subnet, NAT is the framework's own.
//!
//! A machine gets its interface when it boots, from its own VMM process; until there is one on this platform a plug is
//! refused, and says so.

mod ffi;
mod keeper;

use std::{collections::BTreeSet, io::Write as _, os::unix::net::UnixStream, path::PathBuf, process::Stdio};

use tokio::io::{AsyncBufReadExt as _, BufReader};

use super::{
    KeeperOptions,
    wanted::{Names, Plug, Segment},
};
use crate::{
    error::{Error, Result},
    model::WorkloadId,
};

/// What is on the host with this engine's names.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: BTreeSet<String>,
    pub(super) ports: BTreeSet<String>,
}

/// Starts, finds and ends keepers. Their sockets lie in one folder, which is there while any keeper is.
#[derive(Debug)]
pub(super) struct Switch {
    names: Names,
    folder: PathBuf,
}

/// Runs as a keeper until the end.
pub(super) fn keeper(options: &KeeperOptions) -> Result<()> {
    keeper::run(options)
}

impl Switch {
    pub(super) fn new(names: Names, folder: PathBuf) -> Self {
        Self { names, folder }
    }

    pub(super) fn is_used(&self) -> bool {
        self.folder.exists()
    }

    fn socket(&self, segment: &str) -> PathBuf {
        self.folder.join(keeper::socket_name(segment))
    }

    /// Socket of the keeper of the segment.
    pub(super) fn wire(&self, segment: &str, _workload: &WorkloadId) -> String {
        self.socket(segment).to_string_lossy().into_owned()
    }

    /// Keepers that answer.
    pub(super) async fn found(&self) -> Result<Found> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Found::default()),
            Err(error) => return Err(Error::Io { action: "look for keepers of networks", source: error }),
        };
        let names = entries.flatten().filter_map(|entry| entry.file_name().into_string().ok());
        let segments = names.filter_map(|name| keeper::segment_of(&name, &self.names));
        let alive = segments.filter(|segment| UnixStream::connect(self.socket(segment)).is_ok());
        Ok(Found { segments: alive.collect(), ports: BTreeSet::new() })
    }

    /// Starts the keeper of a segment, unless one answers.
    pub(super) async fn put(&self, segment: &Segment) -> Result<()> {
        let socket = self.socket(&segment.name);
        if UnixStream::connect(&socket).is_ok() {
            return Ok(());
        }
        let Some(gateway) = segment.gateways.first() else {
            return Err(Error::Unsupported("a vmnet network without addresses is not supported".into()));
        };
        std::fs::create_dir_all(&self.folder).map_err(Error::io("make the folder of keepers"))?;
        let program = std::env::current_exe().map_err(Error::io("find arca-netd"))?;
        let mut command = tokio::process::Command::new(program);
        command.arg("vmnet-keeper").arg("--socket").arg(&socket);
        command.args(["--gateway", &gateway.to_string(), "--mtu", &segment.mtu.to_string()]);
        if segment.internal {
            command.arg("--internal");
        }
        // A process group of its own: it must outlive arca-netd and its terminal.
        command.process_group(0).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(Error::io("start the keeper of a network"))?;
        let mut line = String::new();
        if let Some(stdout) = child.stdout.take() {
            BufReader::new(stdout)
                .read_line(&mut line)
                .await
                .map_err(Error::io("hear from the keeper of a network"))?;
        }
        if line.trim_end() == keeper::READY {
            return Ok(());
        }
        let mut why = String::new();
        if let Some(stderr) = child.stderr.take() {
            BufReader::new(stderr).read_line(&mut why).await.map_err(Error::io("hear from the keeper of a network"))?;
        }
        Err(Error::Failed(format!("the keeper of the network gave up: {}", why.trim_end())))
    }

    /// Ends the keeper of a segment, and the network with it.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        match UnixStream::connect(self.socket(name)) {
            Ok(mut keeper) => writeln!(keeper, "{}", keeper::END).map_err(Error::io("end the keeper of a network")),
            // Gone already.
            Err(_) => Ok(()),
        }
    }

    /// What may pass is the framework's own business; here only the folder goes with the last network.
    pub(super) async fn rules(&self, segments: &[Segment]) -> Result<()> {
        if !segments.is_empty() {
            return Ok(());
        }
        match std::fs::remove_dir_all(&self.folder) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::Io { action: "remove the folder of keepers", source: error })
            }
            _ => Ok(()),
        }
    }

    pub(super) async fn plug(&self, plug: &Plug) -> Result<(), (&'static str, Error)> {
        let text = format!(
            "machine {} cannot have a native interface on this platform yet; use the ovs backend",
            plug.machine
        );
        Err(("interface", Error::Unsupported(text)))
    }

    pub(super) async fn join(&self, _plug: &Plug) -> Result<(), (&'static str, Error)> {
        Ok(())
    }

    pub(super) async fn unplug(&self, _port: &str) -> Result<()> {
        Ok(())
    }
}
