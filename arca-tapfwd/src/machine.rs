// SPDX-License-Identifier: Apache-2.0
//! The networks of this machine: which links are attached, and what is configured over all of them.
//!
//! One [`Machine`] per process. The verbs ([`crate::attach`], [`crate::detach`], [`crate::configure`]) are methods of it
//! in files of their own. A link has a [`Slot`] whose lock is held through an attach or detach, so these are one after
//! the other per link and independent between links.
//!
//! ```text
//! absent -- attach --> pending -- CONFIRMED --> attached -- detach --> absent
//!                         '--- error, caller gone, detach ---> absent
//! ```

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use arca_link::{Counters, LinkState};
use arca_proto::fdstore::Client;
use arca_proto::listen::ListenOn;
use arca_proto::ports::LinkNumber;
use arca_proto::trace::{Hop, Tracer};
use tokio::sync::Notify;

use crate::configure::Configuration;
use crate::frames::Frames;
use crate::kernel::Kernel;
use crate::settings::Settings;
use crate::stub::Stub;

/// All networks of this machine.
#[derive(Debug)]
pub struct Machine {
    pub(crate) listen_on: ListenOn,
    pub(crate) kernel: Kernel,
    pub(crate) store: Option<Arc<Client>>,
    pub(crate) configuration: tokio::sync::Mutex<Configuration>,
    /// What carries queries to an IPv6 resolver; taken after `configuration`.
    pub(crate) stub: tokio::sync::Mutex<Option<Stub>>,
    slots: Mutex<BTreeMap<LinkNumber, Arc<Slot>>>,
}

/// Place of one link.
#[derive(Debug, Default)]
pub(crate) struct Slot {
    /// Held through an attach or detach.
    pub(crate) attached: tokio::sync::Mutex<Option<Attached>>,
    /// Tells a pending attach to give up, because a detach wants the slot.
    pub(crate) give_up: Notify,
}

/// An attached link.
#[derive(Debug)]
pub(crate) struct Attached {
    pub(crate) settings: Settings,
    pub(crate) index: u32,
    pub(crate) frames: Frames,
}

/// What `ListInterfaces` shows of one link.
#[derive(Debug, Clone)]
pub struct Status {
    /// As attached.
    pub settings: Settings,
    /// Of what carries its frames.
    pub link: LinkState,
    /// Out of the interface.
    pub to_stream: Counters,
    /// Into the interface.
    pub from_stream: Counters,
}

impl Machine {
    /// A machine without networks. [`Machine::restore`] gives it back those of an earlier run.
    #[must_use]
    pub fn new(listen_on: ListenOn, kernel: Kernel, store: Option<Client>) -> Self {
        let (configuration, stub, slots) = Default::default();
        let store = store.map(Arc::new);
        Self { listen_on, kernel, store, configuration, stub, slots }
    }

    /// Attached links by number. Pending ones are left out.
    pub fn status(&self) -> Vec<Status> {
        let slots: Vec<Arc<Slot>> = self.lock().values().cloned().collect();
        let status = |slot: Arc<Slot>| {
            let attached = slot.attached.try_lock().ok()?;
            let Attached { settings, frames, .. } = attached.as_ref()?;
            let settings = settings.clone();
            let (to_stream, from_stream) = frames.counters();
            Some(Status { settings, link: frames.state(), to_stream, from_stream })
        };
        slots.into_iter().filter_map(status).collect()
    }

    /// Where the frames of an attached link are told.
    fn frames_told(&self, link: LinkNumber) -> Option<Arc<Tracer>> {
        let slot = self.lock().get(&link).cloned()?;
        let attached = slot.attached.try_lock().ok()?;
        attached.as_ref()?.frames.tracer()
    }

    pub(crate) fn slot(&self, link: LinkNumber) -> Arc<Slot> {
        Arc::clone(self.lock().entry(link).or_default())
    }

    /// Forgets the place of a link that is not attached, unless somebody waits for it.
    pub(crate) fn release(&self, link: LinkNumber, slot: Arc<Slot>) {
        let mut slots = self.lock();
        drop(slot);
        let idle = |slot: &Arc<Slot>| {
            Arc::strong_count(slot) == 1 && slot.attached.try_lock().is_ok_and(|attached| attached.is_none())
        };
        if slots.get(&link).is_some_and(idle) {
            slots.remove(&link);
        }
    }

    /// The file of a link's listener, where listeners are files.
    pub(crate) fn listener_file(&self, link: LinkNumber) -> Option<PathBuf> {
        match &self.listen_on {
            ListenOn::Sockets(directory) => Some(directory.join(link.container_port().to_string())),
            ListenOn::Vsock => None,
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<LinkNumber, Arc<Slot>>> {
        // Every change is one insert or remove, so a panic elsewhere cannot leave the map half-changed.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The hops of this machine's links.
pub(crate) struct Hops(pub(crate) Arc<Machine>);

#[tonic::async_trait]
impl Hop for Hops {
    async fn tracer(&self, link: LinkNumber) -> Option<Arc<Tracer>> {
        self.0.frames_told(link)
    }
}
