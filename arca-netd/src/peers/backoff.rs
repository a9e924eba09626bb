// SPDX-License-Identifier: Apache-2.0
//! How long to wait before the next try of a connection: doubling, with a cap.

use std::time::Duration;

/// Doubles from 5 ms to 1 s.
#[derive(Debug, Default)]
pub struct Backoff(u32);

impl Backoff {
    const FIRST: Duration = Duration::from_millis(5);
    const LAST: Duration = Duration::from_secs(1);

    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        let pause = Self::FIRST.saturating_mul(1_u32 << self.0.min(10)).min(Self::LAST);
        self.0 = self.0.saturating_add(1);
        pause
    }

    /// What was tried worked.
    pub fn reset(&mut self) {
        self.0 = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_a_second_and_start_over() {
        let mut backoff = Backoff::default();
        let pauses: Vec<_> = (0..12).map(|_| backoff.pause().as_millis()).collect();
        assert_eq!(pauses, [5, 10, 20, 40, 80, 160, 320, 640, 1000, 1000, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.pause().as_millis(), 5);
    }
}
