// SPDX-License-Identifier: Apache-2.0
//! Adds a network while the machine runs.
//!
//! Steps, in this order, each named in the error when it fails: listen, tap, settings, address, up, pump; then LISTENING
//! is reported; link (somebody opened it, LINKED), dhcp (the address is confirmed, and announced to the neighbours), keep
//! (the descriptor store has it), CONFIRMED. Everything made so far is owned by a value that removes it when dropped, so an error, a caller who went
//! away, or a detach leave nothing behind.

use std::path::{Path, PathBuf};
use std::time::Duration;

use arca_link::{Kind, Pump, PumpConfig, PumpError, Tap, TapConfig, TapError};
use arca_proto::fdstore::FdStoreError;
use arca_proto::listen::Listener;
use arca_proto::ports::LinkNumber;
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};

use crate::announce::announce;
use crate::cable::Cable;
use crate::dhcp::{self, DhcpError, Lease};
use crate::frames::Frames;
use crate::kernel::KernelError;
use crate::machine::{Attached, Machine, Slot};
use crate::settings::{InterfaceName, Settings};

/// How far an attach has come.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Progress {
    /// The link may be opened now.
    Listening,
    /// Hellos are exchanged.
    Linked,
    /// Done; with what the DHCP server said, if it was asked.
    Confirmed(Option<Lease>),
}

/// Why a network was not attached.
#[derive(Debug, thiserror::Error)]
pub enum AttachError {
    /// The link is there, but otherwise.
    #[error("link {link} is attached as {interface} with other values; detach it first")]
    Conflict {
        /// Link number.
        link: LinkNumber,
        /// Its interface.
        interface: InterfaceName,
    },
    /// A step failed.
    #[error("attach link {link} as {interface}: step {}", step.name())]
    Step {
        /// Link number.
        link: LinkNumber,
        /// Interface to be made.
        interface: InterfaceName,
        /// The step, with its cause.
        #[source]
        step: StepError,
    },
    /// Somebody detached the link, or the caller went away.
    #[error("attach link {link}: given up, {why}")]
    Abandoned {
        /// Link number.
        link: LinkNumber,
        /// Who wanted it.
        why: &'static str,
    },
}

/// A step of an attach and why it failed. The text is the cause's.
#[derive(Debug, thiserror::Error)]
pub enum StepError {
    /// Listener of port 20000 + n.
    #[error("cannot listen on port {port} of {on}")]
    Listen {
        /// Port.
        port: u32,
        /// Where ports are.
        on: String,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The TAP, its MAC and MTU.
    #[error(transparent)]
    Tap(TapError),
    /// The veth pair.
    #[error(transparent)]
    Cable(KernelError),
    /// What answers the relay for a cable.
    #[error("cannot take connections of the relay")]
    Serve(#[source] std::io::Error),
    /// Kernel settings of the interface.
    #[error(transparent)]
    Settings(KernelError),
    /// An address.
    #[error(transparent)]
    Address(KernelError),
    /// Setting it up.
    #[error(transparent)]
    Up(TapError),
    /// The frames' thread.
    #[error(transparent)]
    Pump(#[from] PumpError),
    /// Nobody opened the link.
    #[error("nobody opened the link within {} ms{cause}", .after.as_millis())]
    Link {
        /// Time given.
        after: Duration,
        /// `: text` if somebody tried.
        cause: String,
    },
    /// The TAP vanished.
    #[error("the interface was removed by somebody else")]
    Gone,
    /// DHCP.
    #[error(transparent)]
    Dhcp(#[from] DhcpError),
    /// The descriptor store.
    #[error(transparent)]
    Keep(#[from] FdStoreError),
}

impl StepError {
    /// The step's name in errors and logs.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Listen { .. } => "listen",
            Self::Tap(_) => "tap",
            Self::Cable(_) | Self::Serve(_) => "cable",
            Self::Settings(_) => "settings",
            Self::Address(_) => "address",
            Self::Up(_) => "up",
            Self::Pump(_) => "pump",
            Self::Link { .. } | Self::Gone => "link",
            Self::Dhcp(_) => "dhcp",
            Self::Keep(_) => "keep",
        }
    }
}

/// Where progress goes; closed when the caller has gone away.
pub type Reporter = mpsc::Sender<Progress>;

impl Machine {
    /// Attaches a network. A link that is attached with the same values is confirmed again and stays whatever comes of
    /// that.
    ///
    /// # Errors
    /// [`AttachError`]; nothing is left behind.
    pub async fn attach(&self, settings: Settings, limit: Duration, report: &Reporter) -> Result<(), AttachError> {
        let link = settings.link;
        let slot = self.slot(link);
        let result = self.attach_in(&slot, settings, limit, report).await;
        self.release(link, slot);
        result
    }

    async fn attach_in(
        &self,
        slot: &Slot,
        settings: Settings,
        limit: Duration,
        report: &Reporter,
    ) -> Result<(), AttachError> {
        let (link, interface) = (settings.link, settings.interface.clone());
        let gone = || AttachError::Abandoned { link, why: "the caller went away" };
        let failed = |step| AttachError::Step { link, interface: interface.clone(), step };
        let mut attached = tokio::select! {
            // Cancel-safe: a lock that is not returned is not held.
            attached = slot.attached.lock() => attached,
            () = report.closed() => return Err(gone()),
        };
        if let Some(present) = attached.as_ref()
            && present.settings != settings
        {
            return Err(AttachError::Conflict { link, interface: present.settings.interface.clone() });
        }
        // Made under the lock, so that only a detach that comes later is heard.
        let give_up = slot.give_up.notified();
        let made = async {
            match attached.as_ref() {
                Some(present) => self.confirm(present, limit, report).await.map(|lease| (None, lease)),
                None => self.make(settings, limit, report).await.map(|(made, lease)| (Some(made), lease)),
            }
        };
        // Dropping `made` drops, and so removes, what it has built; a link that was attached before is only borrowed.
        let (made, lease) = tokio::select! {
            made = made => made.map_err(failed)?,
            () = give_up => return Err(AttachError::Abandoned { link, why: "the link is being detached" }),
            () = report.closed() => return Err(gone()),
        };
        if let Some(made) = made {
            self.keep(&made).map_err(failed)?;
            made.listener_file.disarm();
            *attached = Some(made.attached);
        }
        if report.send(Progress::Confirmed(lease)).await.is_err()
            && let Some(attached) = attached.take()
        {
            self.take_down(attached).await;
            return Err(gone());
        }
        Ok(())
    }

    /// Everything up to a confirmed address.
    async fn make(
        &self,
        settings: Settings,
        limit: Duration,
        report: &Reporter,
    ) -> Result<(Made, Option<Lease>), StepError> {
        let port = settings.link.container_port();
        let listen = |source| StepError::Listen { port, on: self.listen_on.to_string(), source };
        if let Some(path) = self.listener_file(settings.link) {
            // Ours by the slot's lock, so what is there is of an earlier attach. A process that arca-init is just
            // starting may still have a copy of that listener, which would make it look alive.
            remove_socket(&path);
        }
        let listener = self.listen_on.bind(port).and_then(Listener::into_fd).map_err(listen)?;
        let listener_file = RemoveFile(self.listener_file(settings.link));
        let name = settings.interface.as_str();
        let frames = if settings.cable {
            let pair = self.kernel.make_pair(&settings).await.map_err(StepError::Cable)?;
            self.dress(&settings, pair.index()).await?;
            self.kernel.up(pair.index()).await.map_err(StepError::Cable)?;
            let cable = Cable::start(&settings, pair, listener, None, self.store.clone());
            Frames::Cable(cable.map_err(StepError::Serve)?)
        } else {
            // For the store. Two descriptors of one listener are one queue.
            let listener_copy = listener.try_clone().map_err(listen)?;
            let config = TapConfig { name, mac: Some(settings.mac.octets()), mtu: settings.mtu };
            let tap = Tap::open(&config).map_err(StepError::Tap)?;
            let index = self.kernel.index(name).await.map_err(StepError::Settings)?;
            self.dress(&settings, index).await?;
            tap.set_up(true).map_err(StepError::Up)?;
            let pump = Pump::start(PumpConfig::new(settings.link, Kind::Container, tap, listener))?;
            Frames::Pump(pump, listener_copy)
        };
        let index = match &frames {
            Frames::Cable(cable) => cable.index(),
            Frames::Pump(..) => self.kernel.index(name).await.map_err(StepError::Settings)?,
        };
        let made = Made { attached: Attached { settings, index, frames }, listener_file };
        let lease = self.confirm(&made.attached, limit, report).await?;
        Ok((made, lease))
    }

    /// Settings and addresses of an interface that is still down.
    async fn dress(&self, settings: &Settings, index: u32) -> Result<(), StepError> {
        self.kernel.prepare(&settings.interface, settings.has_v6()).map_err(StepError::Settings)?;
        for cidr in &settings.addresses {
            self.kernel.add_address(index, *cidr).await.map_err(StepError::Address)?;
        }
        Ok(())
    }

    /// From LISTENING on: waits for the link, then asks for the address.
    async fn confirm(
        &self,
        attached: &Attached,
        limit: Duration,
        report: &Reporter,
    ) -> Result<Option<Lease>, StepError> {
        let deadline = Instant::now() + limit;
        let Attached { settings, index, frames } = attached;
        // A caller who went away is noticed by `closed` in attach_in.
        let _ = report.send(Progress::Listening).await;
        let mut state = frames.watch();
        let linked = async { state.wait_for(|s| s.linked || s.ended).await.is_ok_and(|s| s.linked) };
        match timeout_at(deadline, linked).await {
            Ok(true) => {}
            Ok(false) => return Err(StepError::Gone),
            Err(_) => {
                let cause = frames.state().last_error.map(|e| format!(" (last try: {e})")).unwrap_or_default();
                return Err(StepError::Link { after: limit, cause });
            }
        }
        let _ = report.send(Progress::Linked).await;
        let lease = match settings.confirm {
            Some(address) => Some(dhcp::confirm(*index, settings.mac, address, deadline).await?),
            None => None,
        };
        // After the server's answer: it shows that the path is there, so the announcement is not lost on it.
        announce(*index, settings);
        Ok(lease)
    }

    fn keep(&self, made: &Made) -> Result<(), StepError> {
        let Attached { settings, frames, .. } = &made.attached;
        match &self.store {
            Some(store) => frames.keep(store, settings).map_err(StepError::Keep),
            None => Ok(()),
        }
    }
}

/// A link that works but is not yet in its slot. Dropping it removes interface, addresses and listener.
struct Made {
    attached: Attached,
    listener_file: RemoveFile,
}

/// Removes a listener's socket file when dropped.
struct RemoveFile(Option<PathBuf>);

impl RemoveFile {
    fn disarm(mut self) {
        self.0 = None;
    }
}

impl Drop for RemoveFile {
    fn drop(&mut self) {
        if let Some(path) = self.0.take() {
            remove_socket(&path);
        }
    }
}

/// Removes a socket file; a failure is only worth a line, as the next bind replaces it.
pub(crate) fn remove_socket(path: &Path) {
    if let Err(error) = std::fs::remove_file(path)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, path = %path.display(), "cannot remove the socket file of a link");
    }
}
