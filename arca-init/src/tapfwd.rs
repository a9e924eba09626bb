// SPDX-License-Identifier: Apache-2.0
//! Parent of arca-tapfwd: starts it, keeps its descriptors, starts it again at once when it dies.

use std::{
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arca_daemon::shutdown::Shutdown;
use arca_proto::{dial::with_short_path, fdstore::Store, listen::ListenOn};
use nix::sys::signal::Signal;
use tokio::{net::UnixDatagram, sync::watch};

use crate::{
    process::send_signal,
    reaper::{Ended, Reaper},
};

/// First pause after a death that came soon; it doubles with each further one.
const FIRST: Duration = Duration::from_millis(10);
/// Longest pause.
const LONGEST: Duration = Duration::from_secs(1);
/// A run of at least this long was no crash loop.
const LONG_RUN: Duration = Duration::from_secs(10);
/// From SIGTERM to SIGKILL when the machine ends.
const GRACE: Duration = Duration::from_secs(1);
/// How long the machine's READY waits for arca-tapfwd.
const STARTUP: Duration = Duration::from_secs(5);

/// How arca-tapfwd is started.
#[derive(Debug)]
pub(crate) struct Tapfwd {
    pub(crate) program: PathBuf,
    pub(crate) listen: ListenOn,
    pub(crate) log_level: String,
    pub(crate) reaper: Arc<Reaper>,
    pub(crate) ready: Readiness,
}

impl Tapfwd {
    /// Runs it until `stop` fires; it has ended when this returns.
    pub(crate) async fn supervise(self, stop: Shutdown) {
        let store = Arc::new(Store::default());
        let mut pause = FIRST;
        loop {
            let started = Instant::now();
            let run = self.run(&store, &stop).await;
            if stop.fired() {
                return;
            }
            match run {
                Ok(ended) => {
                    tracing::error!(code = ended.code, signal = ended.signal, "arca-tapfwd ended; starting it again")
                }
                Err(error) => tracing::error!(error = format!("{error:#}"), "arca-tapfwd cannot be run"),
            }
            if started.elapsed() >= LONG_RUN {
                // Its first death in a while: nothing is gained by waiting.
                pause = FIRST;
                continue;
            }
            tokio::select! {
                // Neither arm holds anything that could be lost.
                () = tokio::time::sleep(pause) => {}
                () = stop.wait() => return,
            }
            pause = (pause * 2).min(LONGEST);
        }
    }

    async fn run(&self, store: &Arc<Store>, stop: &Shutdown) -> anyhow::Result<Ended> {
        let session = store.session()?;
        let mut command = Command::new(&self.program);
        command.arg("serve").arg(format!("--listen={}", self.listen)).arg(format!("--log-level={}", self.log_level));
        command.stdin(Stdio::null());
        session.pass_to(&mut command);
        self.ready.pass_to(&mut command);
        // SAFETY: prctl with two numbers is async-signal-safe. The thread that spawns is the main one, so the signal
        // comes when arca-init dies and not before.
        unsafe {
            command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?));
        }
        let (child, mut ended) =
            self.reaper.spawn(&mut command).with_context(|| format!("start {}", self.program.display()))?;
        let kept = tokio::task::spawn_blocking(move || session.serve());
        let ended = tokio::select! {
            // Cancel-safe: a status not received stays in its channel.
            ended = &mut ended => ended,
            () = stop.wait() => {
                // Both signals may find that it has ended by itself.
                let _ = send_signal(child.id(), Signal::SIGTERM as i32);
                match tokio::time::timeout(GRACE, &mut ended).await {
                    Ok(ended) => ended,
                    Err(_) => {
                        let _ = send_signal(child.id(), Signal::SIGKILL as i32);
                        ended.await
                    }
                }
            }
        };
        let ended = ended.context("the reaper is gone")?;
        // All that it put before it died is read before the next run.
        kept.await.context("descriptor store")??;
        Ok(ended)
    }
}

/// Where arca-tapfwd says that its port is bound (sd_notify(3), as it would to any supervisor).
#[derive(Debug)]
pub(crate) struct Readiness {
    socket: PathBuf,
    said: watch::Receiver<bool>,
}

/// The waiting side of [`Readiness`].
#[derive(Debug)]
pub(crate) struct Up {
    socket: UnixDatagram,
    path: PathBuf,
    said: watch::Sender<bool>,
}

impl Readiness {
    /// Makes the socket in `folder`.
    ///
    /// # Errors
    /// As bind(2).
    pub(crate) fn in_folder(folder: &Path) -> anyhow::Result<(Self, Up)> {
        let path = folder.join("tapfwd.notify");
        let bound = || {
            let (_guard, short) = with_short_path(&path)?;
            UnixDatagram::bind(short)
        };
        let socket = bound().with_context(|| format!("bind {}", path.display()))?;
        let said = watch::Sender::new(false);
        Ok((Self { socket: path.clone(), said: said.subscribe() }, Up { socket, path, said }))
    }

    /// A run that nobody listens to any more has nobody to tell.
    fn pass_to(&self, command: &mut Command) {
        if *self.said.borrow() {
            command.env_remove("NOTIFY_SOCKET");
        } else {
            command.env("NOTIFY_SOCKET", &self.socket);
        }
    }
}

impl Up {
    /// Waits until arca-tapfwd takes connections; gives up after five seconds, and says so.
    pub(crate) async fn until_listening(self) {
        let mut text = [0; 64];
        if tokio::time::timeout(STARTUP, self.socket.recv(&mut text)).await.is_err() {
            tracing::error!("arca-tapfwd does not listen; the machine starts without a network");
        }
        self.said.send_replace(true);
        // It lies in the machine's own folder, which goes with the machine.
        let _ = std::fs::remove_file(&self.path);
    }
}
