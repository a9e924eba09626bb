// SPDX-License-Identifier: Apache-2.0
//! macOS: vmnet.framework, one keeper process per network. Isolation is by subnet, NAT is the framework's own.
//!
//! macOS 26 has network objects, which Virtualization.framework uses by itself; before, the keeper carries each card's frames.
//! A machine gets its card when it boots, from arca-vz, which asks the keeper for it.
//!
//! Type-checked, not yet run on a Mac.

mod ffi;
#[path = "../guest.rs"]
mod guest;
mod interface;
mod keeper;
mod xpc;

use std::{
    collections::BTreeSet,
    io::Write as _,
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    process::Stdio,
    time::Duration,
};

use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    net::UnixListener,
};

use super::{
    KeeperOptions, launchd,
    wanted::{Names, Plug, Segment},
};
use crate::{
    error::{Error, Result},
    model::WorkloadId,
};

/// From bootstrap to the keeper's word.
const STARTS: Duration = Duration::from_secs(30);

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
        std::fs::create_dir_all(&self.folder).map_err(Error::io("make the folder of keepers"))?;
        let program = std::env::current_exe().map_err(Error::io("find arca-netd"))?;
        let label = launchd::label(&segment.name);
        let tell = self.folder.join(format!("{}.up", segment.name));
        let path = |path: &Path| path.to_string_lossy().into_owned();
        let mut command = vec![path(&program), "vmnet-keeper".to_owned()];
        command.extend([format!("--socket={}", path(&socket)), format!("--tell={}", path(&tell))]);
        command.extend([format!("--service={label}"), format!("--mtu={}", segment.mtu)]);
        command.extend(segment.gateways.iter().map(|gateway| format!("--gateway={gateway}")));
        command.extend(segment.internal.then(|| "--internal".to_owned()));
        let log = self.folder.join(format!("{}.log", segment.name));
        let job = launchd::Job { label: &label, command: &command, log: &log };
        let list = self.folder.join(format!("{label}.plist"));
        std::fs::write(&list, launchd::property_list(&job)).map_err(Error::io("write the keeper's property list"))?;

        let _ = std::fs::remove_file(&tell);
        let listener = UnixListener::bind(&tell).map_err(Error::io("listen for the keeper of a network"))?;
        let domain = domain().await?;
        // One that ended by itself is still known to launchd, which takes no second one of its name.
        let _ = launchctl(&["bootout", &format!("{domain}/{label}")]).await;
        let started = launchctl(&["bootstrap", &domain, &path(&list)]).await;
        let said = match started {
            Ok(_) => said(&listener).await,
            Err(error) => Err(error),
        };
        let _ = std::fs::remove_file(&tell);
        match said?.as_str() {
            keeper::READY => Ok(()),
            why => {
                let _ = launchctl(&["bootout", &format!("{domain}/{label}")]).await;
                Err(Error::Failed(format!("the keeper of the network gave up: {why} (its log: {})", log.display())))
            }
        }
    }

    /// Ends the keeper of a segment, and the network with it.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        if let Ok(mut keeper) = UnixStream::connect(self.socket(name)) {
            writeln!(keeper, "{}", super::keeper::END).map_err(Error::io("end the keeper of a network"))?;
        }
        let label = launchd::label(name);
        // One that has gone is gone as wanted.
        let _ = launchctl(&["bootout", &format!("{}/{label}", domain().await?)]).await;
        for file in [keeper::socket_name(name), format!("{name}.log"), format!("{label}.plist")] {
            let _ = std::fs::remove_file(self.folder.join(file));
        }
        Ok(())
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

    /// A machine has had its card since it booted, plugged in by its own keeper; what is left is the guest's end of it.
    pub(super) async fn plug(&self, plug: &Plug) -> Result<(), (&'static str, Error)> {
        guest::configure(plug).await.map_err(|error| ("address", error))
    }

    pub(super) async fn join(&self, _plug: &Plug) -> Result<(), (&'static str, Error)> {
        Ok(())
    }

    /// The card goes with its machine.
    pub(super) async fn unplug(&self, _port: &str) -> Result<()> {
        Ok(())
    }
}

/// The keeper's word.
async fn said(listener: &UnixListener) -> Result<String> {
    let heard = tokio::time::timeout(STARTS, async {
        let (stream, _) = listener.accept().await?;
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).await?;
        Ok(line.trim_end().to_owned())
    });
    match heard.await {
        Ok(line) => line.map_err(Error::io("hear from the keeper of a network")),
        Err(_) => Err(Error::Failed("the keeper of a network does not start".into())),
    }
}

/// Where this user's jobs live.
async fn domain() -> Result<String> {
    let uid = nix::unistd::geteuid().as_raw();
    let manager = if uid == 0 { String::new() } else { launchctl(&["managername"]).await? };
    Ok(launchd::domain(uid, &manager))
}

async fn launchctl(arguments: &[&str]) -> Result<String> {
    let run = tokio::process::Command::new("/bin/launchctl").args(arguments).stdin(Stdio::null()).output().await;
    let output = run.map_err(Error::io("run launchctl"))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let why = String::from_utf8_lossy(&output.stderr);
    Err(Error::Failed(format!("launchctl {}: {}", arguments.join(" "), why.trim())))
}
