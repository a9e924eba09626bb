// SPDX-License-Identifier: Apache-2.0
//! What arca-vmm has to do with the guest itself: hear READY, watch for signs of life, ask it to end.

use std::{
    fs, io,
    os::unix::fs::{PermissionsExt, chown},
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use arca_proto::{
    dial::{self, Address, connect_unix},
    init::v1::{ShutdownRequest, init_client::InitClient},
    ports,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixListener,
    sync::mpsc,
};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::{Event, qmp::Qmp};
use crate::{Role, vm::plan::Plan};

/// Times that a guest is asked for a sign of life within its patience.
const QUESTIONS: u32 = 4;
/// What the daemon's socket is called until the guest is ready: nobody finds it before.
pub(super) const BOOTING: &str = "booting";
/// How long a guest may take to hear that it should end.
const HEARS: Duration = Duration::from_secs(5);

/// Where the vsock daemon carries the guest's call to port 9000 of its host.
#[derive(Debug)]
pub(super) struct Ready {
    listener: UnixListener,
    path: PathBuf,
}

impl Ready {
    pub(super) fn bind(plan: &Plan) -> io::Result<Self> {
        let path = plan.sockets.join(format!("{BOOTING}_{}", ports::READY));
        let listener = UnixListener::bind(&path)?;
        // The daemon, and nobody else who is not root.
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600))?;
        chown(&path, Some(plan.uid), None)?;
        Ok(Self { listener, path })
    }

    /// Returns once the guest said READY; it cannot call again.
    async fn heard(self) -> io::Result<()> {
        loop {
            let (mut stream, _) = self.listener.accept().await?;
            let mut text = [0; 6];
            match tokio::time::timeout(HEARS, stream.read_exact(&mut text)).await {
                Ok(Ok(_)) if &text == b"READY\n" => break,
                _ => tracing::warn!("the guest said something else than READY"),
            }
        }
        fs::remove_file(&self.path)
    }
}

/// The way to the guest's ports.
pub(super) fn address(plan: &Plan) -> Address {
    Address::Hybrid(plan.sockets.join("vsock"))
}

/// Passes READY on to the launcher, then asks the guest for signs of life for as long as it is there. Connecting in before
/// READY was seen to leave a machine unreachable.
pub(super) async fn attend(plan: Plan, ready: Ready, events: mpsc::Sender<Event>) {
    if let Err(error) = ready.heard().await {
        let _ = events.send(Event::Lost(format!("wait for READY: {error}"))).await;
        return;
    }
    if let Err(error) = fs::rename(plan.sockets.join(BOOTING), plan.sockets.join("vsock")) {
        let _ = events.send(Event::Lost(format!("give the way to the guest its name: {error}"))).await;
        return;
    }
    let said = async {
        let mut launcher = connect_unix(&plan.sockets.join(ports::READY.to_string())).await?;
        launcher.write_all(b"READY\n").await
    };
    if let Err(error) = said.await {
        tracing::info!(machine_id = plan.id, %error, "the guest is ready, but its launcher is gone");
    }
    let mut health = HealthClient::new(dial::channel(&address(&plan), plan.port));
    let patience = Duration::from_millis(plan.patience_ms);
    let mut silent = 0;
    while silent < QUESTIONS {
        tokio::time::sleep(patience / QUESTIONS).await;
        let asked = tokio::time::timeout(patience / QUESTIONS, health.check(HealthCheckRequest::default())).await;
        silent = match asked {
            Ok(Ok(_)) => 0,
            Ok(Err(status)) => {
                tracing::warn!(machine_id = plan.id, error = status.message(), "the guest does not answer");
                silent + 1
            }
            Err(_) => silent + 1,
        };
    }
    let reason = format!("the guest hung: no sign of life on port {} for {} s", plan.port, 2 * patience.as_secs());
    let _ = events.send(Event::Lost(reason)).await;
}

/// Asks the guest to end, or ends it where it cannot be asked.
pub(super) async fn ask_to_end(plan: Plan, qmp: Arc<Qmp>, grace: Duration) {
    let asked = match plan.role {
        Role::Container => {
            let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
            let mut init = InitClient::new(dial::channel(&address(&plan), ports::INIT));
            let asked = tokio::time::timeout(HEARS, init.shutdown(ShutdownRequest { grace_ms })).await;
            asked.is_ok_and(|answer| answer.is_ok())
        }
        // What it holds is rebuilt from the host's intent.
        Role::Helper => false,
    };
    if !asked && let Err(error) = qmp.execute("quit", serde_json::json!({})).await {
        tracing::warn!(machine_id = plan.id, %error, "QEMU does not quit");
    }
}
