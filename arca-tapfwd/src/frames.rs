// SPDX-License-Identifier: Apache-2.0
//! What carries an interface's frames: a pump (carriers `stream` and `tap-fd`) or a cable.

use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::Arc;

use arca_link::{Counters, LinkState, Pump};
use arca_proto::fdstore::{Client, FdStoreError};
use arca_proto::trace::Tracer;
use tokio::sync::watch;

use crate::cable::Cable;
use crate::restore;
use crate::settings::Settings;

/// Dropping it removes the interface.
#[derive(Debug)]
pub(crate) enum Frames {
    /// A TAP with a pump, and a second descriptor of its listener for the store.
    Pump(Pump, OwnedFd),
    /// A veth pair.
    Cable(Cable),
}

impl Frames {
    pub(crate) fn state(&self) -> LinkState {
        self.watch().borrow().clone()
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        match self {
            Self::Pump(pump, _) => pump.watch(),
            Self::Cable(cable) => cable.watch(),
        }
    }

    /// Out of the interface and into it.
    pub(crate) fn counters(&self) -> (Counters, Counters) {
        match self {
            Self::Pump(pump, _) => (pump.to_stream(), pump.from_stream()),
            Self::Cable(cable) => cable.counters(),
        }
    }

    /// Where what passes is told; nowhere for a cable, whose frames pass no process.
    pub(crate) fn tracer(&self) -> Option<Arc<Tracer>> {
        match self {
            Self::Pump(pump, _) => Some(pump.tracer()),
            Self::Cable(_) => None,
        }
    }

    /// Has the store keep what the next process needs to go on.
    pub(crate) fn keep(&self, store: &Client, settings: &Settings) -> Result<(), FdStoreError> {
        match self {
            Self::Pump(pump, listener) => restore::put_link(store, settings, &[pump.tap().as_fd(), listener.as_fd()]),
            Self::Cable(cable) => cable.keep(),
        }
    }

    /// Nothing more goes into the store from here.
    pub(crate) fn let_go(&self) {
        if let Self::Cable(cable) = self {
            cable.let_go();
        }
    }
}
