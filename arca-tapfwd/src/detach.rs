// SPDX-License-Identifier: Apache-2.0
//! Removes a network while the machine runs.

use arca_proto::ports::LinkNumber;

use crate::attach::remove_socket;
use crate::frames::Frames;
use crate::machine::{Attached, Machine};
use crate::restore;

impl Machine {
    /// Removes interface, addresses and listener of a link. One that is pending gives up; one that is not attached is no
    /// error. When this returns, the interface's name and the link's port are free.
    pub async fn detach(&self, link: LinkNumber) {
        let slot = self.slot(link);
        slot.give_up.notify_waiters();
        let attached = slot.attached.lock().await.take();
        if let Some(attached) = attached {
            self.take_down(attached).await;
            self.configuration.lock().await.forget(link, self.store.as_deref());
        }
        self.release(link, slot);
    }

    /// Goes on over every error: what cannot be removed is named in the log.
    pub(crate) async fn take_down(&self, attached: Attached) {
        let Attached { settings, index, frames } = attached;
        frames.let_go();
        if let Some(store) = &self.store
            && let Err(error) = restore::remove_link(store, settings.link)
        {
            tracing::error!(%error, link = %settings.link, "the descriptor store still has the link");
        }
        // Connection and listener close here, a TAP remains ours.
        let tap = match frames {
            Frames::Pump(pump, _) => Some(pump.stop()),
            Frames::Cable(cable) => {
                drop(cable);
                None
            }
        };
        if let Some(path) = self.listener_file(settings.link) {
            remove_socket(&path);
        }
        // By name of the device, not only by closing: a store that could not be told still has a descriptor.
        if let Err(error) = self.kernel.delete(index).await {
            tracing::error!(%error, link = %settings.link, interface = %settings.interface, "the interface remains");
        }
        drop(tap);
    }
}
