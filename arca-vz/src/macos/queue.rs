// SPDX-License-Identifier: Apache-2.0
//! The machine, on its serial queue and nowhere else.

use std::sync::Arc;

use dispatch2::{DispatchQueue, DispatchRetained};
use objc2::{AnyThread as _, rc::Retained};
use objc2_virtualization::{VZVirtualMachine, VZVirtualMachineConfiguration};
use tokio::sync::oneshot;

use crate::framework::FrameworkError;

/// Objects that are only used and released on the queue.
struct Bound<T>(T);

// SAFETY: a `Bound` is only made, used and dropped by closures on the one serial queue of its `OnQueue` (see there), so no two
// threads have it at once, which is all the framework asks for.
unsafe impl<T> Send for Bound<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for Bound<T> {}

/// A machine that nobody can reach but by [`OnQueue::run`]. Clones are the same machine.
#[derive(Clone)]
pub(super) struct OnQueue {
    queue: DispatchRetained<DispatchQueue>,
    machine: Arc<Held>,
}

struct Held {
    queue: DispatchRetained<DispatchQueue>,
    machine: Option<Bound<Retained<VZVirtualMachine>>>,
}

impl Drop for Held {
    fn drop(&mut self) {
        // The last release frees the machine, which is a use of it like any other.
        if let Some(machine) = self.machine.take() {
            self.queue.exec_async(move || drop(machine));
        }
    }
}

impl std::fmt::Debug for OnQueue {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OnQueue").finish_non_exhaustive()
    }
}

impl OnQueue {
    /// Makes the machine from a valid configuration.
    pub(super) fn new(label: &str, configuration: &VZVirtualMachineConfiguration) -> Self {
        // No attributes: a serial queue.
        let queue = DispatchQueue::new(label, None);
        // SAFETY: the configuration has been validated; making the machine touches nothing that belongs to the queue.
        let machine =
            unsafe { VZVirtualMachine::initWithConfiguration_queue(VZVirtualMachine::alloc(), configuration, &queue) };
        let held = Held { queue: queue.clone(), machine: Some(Bound(machine)) };
        Self { queue, machine: Arc::new(held) }
    }

    /// Runs `work` on the queue and waits for what it gives. `work` must not block: the machine waits with it.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&VZVirtualMachine) -> T + Send + 'static,
    ) -> Result<T, FrameworkError> {
        let (done, result) = oneshot::channel();
        self.begin(move |machine| drop(done.send(work(machine))));
        result.await.map_err(|_| FrameworkError { action: "use the machine", reason: "its queue is gone".into() })
    }

    /// Runs `work` on the queue at some time.
    pub(super) fn begin(&self, work: impl FnOnce(&VZVirtualMachine) + Send + 'static) {
        let machine = Arc::clone(&self.machine);
        self.queue.exec_async(move || {
            if let Some(Bound(machine)) = &machine.machine {
                work(machine);
            }
        });
    }
}

/// Something that was made on the queue and must be released there.
pub(super) struct HeldOnQueue<T: 'static> {
    queue: DispatchRetained<DispatchQueue>,
    held: Option<Bound<T>>,
}

impl OnQueue {
    /// Keeps `held`, which the caller has on the queue, for a thread elsewhere.
    pub(super) fn hold<T: 'static>(&self, held: T) -> HeldOnQueue<T> {
        HeldOnQueue { queue: self.queue.clone(), held: Some(Bound(held)) }
    }
}

impl<T: 'static> Drop for HeldOnQueue<T> {
    fn drop(&mut self) {
        if let Some(held) = self.held.take() {
            self.queue.exec_async(move || drop(held));
        }
    }
}
