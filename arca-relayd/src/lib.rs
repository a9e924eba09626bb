// SPDX-License-Identifier: Apache-2.0
//! arca-relayd: links between container machines and the helper machine, and host listeners of published ports.
//!
//! ```text
//! cli ── app ─┬─ service    arca.relay.v1, all that knows proto messages
//!             ├─ links      one task a link: dials, redials, watches the thread that moves the bytes
//!             └─ publish    host ports
//! ```
//!
//! It keeps nothing on disk: arca-netd opens everything again when this process was away. Its end costs a link some
//! milliseconds, because TAPs, addresses and connections live in the machines.

pub mod app;
pub mod cli;
mod figures;
mod hops;
pub mod links;
pub mod publish;
mod service;
