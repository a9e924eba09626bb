// SPDX-License-Identifier: Apache-2.0
//! What joins two streams, on Linux: arca-link's epoll relay.

pub use arca_link::Counters;
pub(super) use arca_link::relay::RelayCounters as Counting;
pub(super) use arca_link::{Relay as Joint, RelayConfig as JointConfig, RelayState as State};
