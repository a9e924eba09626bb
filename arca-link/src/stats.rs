// SPDX-License-Identifier: Apache-2.0
//! Counters of one direction: written by one pump thread, read by anybody.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What went through one direction of one hop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Frames; a super-frame counts once.
    pub frames: u64,
    /// Ethernet bytes, without the length field and the virtio_net_hdr.
    pub bytes: u64,
    /// Frames given up: stream down, queue full, refused by the TAP.
    pub drops: u64,
}

impl From<Counters> for arca_proto::tap::v1::Counters {
    fn from(counters: Counters) -> Self {
        Self { frames: counters.frames, bytes: counters.bytes, drops: counters.drops }
    }
}

/// The live side of [`Counters`].
#[derive(Debug, Default)]
pub(crate) struct Meter {
    frames: AtomicU64,
    bytes: AtomicU64,
    drops: AtomicU64,
}

impl Meter {
    pub(crate) fn passed(&self, frames: u64, bytes: u64) {
        self.frames.fetch_add(frames, Relaxed);
        self.bytes.fetch_add(bytes, Relaxed);
    }

    pub(crate) fn dropped(&self, frames: u64) {
        self.drops.fetch_add(frames, Relaxed);
    }

    pub(crate) fn read(&self) -> Counters {
        Counters { frames: self.frames.load(Relaxed), bytes: self.bytes.load(Relaxed), drops: self.drops.load(Relaxed) }
    }
}

/// Out of an interface of this thread's network namespace and into it, as the kernel counts; zero if it is not there.
#[must_use]
pub fn kernel_counters(interface: &str) -> (Counters, Counters) {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap_or_default();
    let line = table.lines().find_map(|line| line.trim_start().strip_prefix(interface)?.strip_prefix(':'));
    // bytes, packets, errors, drops and four more, for receiving and then for sending (proc_pid_net(5)).
    let numbers: Vec<u64> =
        line.unwrap_or_default().split_ascii_whitespace().map(|n| n.parse().unwrap_or_default()).collect();
    let at = |start: usize| {
        let number = |index: usize| numbers.get(start + index).copied().unwrap_or_default();
        Counters { bytes: number(0), frames: number(1), drops: number(3) }
    };
    (at(8), at(0))
}
