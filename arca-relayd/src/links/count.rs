// SPDX-License-Identifier: Apache-2.0
//! Counters of a link, whoever counts: the thread that moves its frames, or, where they do not pass here, its helper
//! end, which is asked when somebody wants to know.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::timeout,
};

use super::joint::{Counters, Counting};

/// How long an end may take to tell its counters; after that the last ones are shown.
const ANSWER: Duration = Duration::from_millis(250);

/// Counters of a link, kept across redials.
#[derive(Debug, Default)]
pub(super) struct Count {
    /// Of what passes here.
    pub(super) here: Arc<Counting>,
    reported: Mutex<Reported>,
    /// A connection stands whose helper end can be asked.
    asking: AtomicBool,
    pub(super) wanted: Notify,
    answers: watch::Sender<u64>,
}

/// To helper and to container, each with what earlier lives of the helper's end had counted.
#[derive(Debug, Default)]
struct Reported {
    before: [Counters; 2],
    last: [Counters; 2],
}

impl Count {
    /// Container to helper.
    pub(super) fn to_helper(&self) -> Counters {
        sum(self.here.to_helper(), self.reported(0))
    }

    /// Helper to container.
    pub(super) fn to_container(&self) -> Counters {
        sum(self.here.to_container(), self.reported(1))
    }

    /// Has the helper's end asked, where it counts. What it says is in the next [`Count::to_helper`].
    pub(super) async fn refresh(&self) {
        if self.asking.load(Ordering::Acquire) {
            let mut answers = self.answers.subscribe();
            self.wanted.notify_one();
            // Late or gone: the last answer stands.
            let _ = timeout(ANSWER, answers.changed()).await;
        }
    }

    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "no other platform has such carriers"))]
    pub(super) fn ask(&self, asking: bool) {
        self.asking.store(asking, Ordering::Release);
    }

    /// Takes an answer.
    #[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "no other platform has such carriers"))]
    pub(super) fn report(&self, now: [Counters; 2]) {
        {
            let mut reported = self.lock();
            let Reported { before, last } = &mut *reported;
            for ((before, last), now) in before.iter_mut().zip(last).zip(now) {
                // A helper's end that started anew counts from nothing.
                if now.frames < last.frames {
                    *before = sum(*before, *last);
                }
                *last = now;
            }
        }
        self.answers.send_modify(|number| *number += 1);
    }

    fn reported(&self, direction: usize) -> Counters {
        let reported = self.lock();
        sum(reported.before[direction], reported.last[direction])
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Reported> {
        // Plain numbers: a panic elsewhere cannot leave them half-changed.
        self.reported.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sum(a: Counters, b: Counters) -> Counters {
    Counters { frames: a.frames + b.frames, bytes: a.bytes + b.bytes, drops: a.drops + b.drops }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counters_only_grow_whoever_starts_anew() {
        let count = Count::default();
        let both = |frames| [Counters { frames, bytes: 10 * frames, drops: 1 }; 2];
        count.report(both(5));
        count.report(both(9));
        assert_eq!(count.to_helper(), Counters { frames: 9, bytes: 90, drops: 1 });
        count.report(both(2));
        assert_eq!(count.to_container(), Counters { frames: 11, bytes: 110, drops: 2 });
    }
}
