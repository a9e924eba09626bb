// SPDX-License-Identifier: Apache-2.0
//! arca-netd: networks, endpoints, published ports, and the helper machine's life.
//!
//! ```text
//!             service (gRPC) ──> engine ──> validate, names, pools     checks and choices, no I/O
//!                                  │  └───> store                      desired state, on disk before it is acted on
//!                                  └──────> backend::ovn ──> attach    steps with undo
//!                                                │
//!   helper (machine's life) ──> peers::agent ────┤  rows, observations, full sync
//!                               peers::relay ────┤  links, listeners; reconcile::diff after each reconnect
//!                               peers::tap ──────┘  interfaces, default route
//! ```
//!
//! Invariants: nothing is acknowledged that is not on disk; this process never speaks HTTP and never touches a frame;
//! its death interrupts nothing, and its restart changes no row and no link that is as wanted.

pub mod app;
pub mod attach;
pub mod backend;
pub mod cli;
pub mod direct;
pub mod engine;
pub mod error;
pub mod helper;
pub mod hostnet;
pub mod loopback;
pub mod model;
pub mod names;
pub mod peers;
pub mod pools;
pub mod predefined;
pub mod publish;
pub mod reconcile;
pub mod service;
pub mod store;
pub mod validate;
