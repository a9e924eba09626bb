// SPDX-License-Identifier: Apache-2.0
//! What every Arca daemon's `main` does alike, so that each `main.rs` stays a page.
//!
//! [`config`] is loaded first, before any socket is bound; [`paths`] says where everything lies; [`logging`] comes next;
//! [`serve`] runs a gRPC server with health and reflection until [`shutdown`] fires; [`exit`] turns an error into one
//! clear line and its own exit code. Guest programs use the same pieces without a configuration file.

pub mod config;
pub mod exit;
pub mod logging;
pub mod notify;
pub mod paths;
pub mod serve;
pub mod shutdown;
