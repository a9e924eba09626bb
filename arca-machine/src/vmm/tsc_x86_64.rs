// SPDX-License-Identifier: Apache-2.0
//! Rate of this processor's time stamp counter, which is a TCG guest's too: told on its command line, because it finds
//! nothing to measure it by and would fall back to a clock of 4 ms. So it would if it compared the counter with its timer
//! interrupts, which come late where processors are emulated: the counter is the one to rely on.

use std::{arch::x86_64::_rdtsc, time::Instant};

/// Two readings apart in time give the rate.
#[derive(Debug)]
pub(super) struct Tsc {
    ticks: u64,
    at: Instant,
}

impl Tsc {
    pub(super) fn begin() -> Self {
        Self { ticks: now(), at: Instant::now() }
    }

    /// The words for the kernel's command line.
    pub(super) fn word(&self) -> Option<String> {
        let elapsed = u64::try_from(self.at.elapsed().as_nanos()).ok().filter(|elapsed| *elapsed > 0)?;
        let ticks = u128::from(now().checked_sub(self.ticks)?);
        let rate = ticks * 1_000_000 / u128::from(elapsed);
        (rate > 0).then(|| format!("tsc_early_khz={rate} tsc=reliable"))
    }
}

fn now() -> u64 {
    // SAFETY: every x86-64 processor has the instruction, and it touches no memory.
    unsafe { _rdtsc() }
}
