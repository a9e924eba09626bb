// SPDX-License-Identifier: Apache-2.0
//! The frame path: TAP devices and what moves frames between them.
//!
//! arca-tapfwd and arca-helper-agent own a [`Tap`] per link and give it to a [`Pump`], which joins it with at most one
//! stream connection accepted from a listener. arca-relayd joins two such connections with a [`Relay`]. What travels on
//! the stream is defined in `arca_proto::hello` and `arca_proto::frame`.
//!
//! ```text
//! TAP <-> Pump (container) <-> stream <-> Relay <-> stream <-> Pump (helper) <-> TAP
//! ```
//!
//! One thread per pump and one per relay, each blocked in epoll until there is something to do; no timers, no spinning,
//! no task per frame. Own `unsafe` lives in [`tap`], `sys` and `slice` only: ioctls, socket options, eventfd, scheduling.
#![cfg(target_os = "linux")]

mod pump;
pub mod relay;
mod slice;
pub mod stats;
mod sys;
pub mod tap;

pub use arca_proto::{
    frame::MAX_FRAME,
    hello::{Kind, Offloads},
    ports::LinkNumber,
};
pub use pump::{LinkState, Pump, PumpConfig, PumpError};
pub use relay::{Relay, RelayConfig, RelayCounters, RelayState};
pub use slice::short_slices;
pub use stats::Counters;
pub use tap::{Tap, TapConfig, TapError};
