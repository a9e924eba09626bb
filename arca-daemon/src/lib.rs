// SPDX-License-Identifier: Apache-2.0
//! What every Arca daemon's `main` does alike, so that each `main.rs` stays a page.
//!
//! [`config`] is loaded first, before any socket is bound; [`paths`] says where everything lies; [`logging`] comes next;
//! [`serve`] runs a gRPC server with health and reflection until [`shutdown`] fires; [`exit`] turns an error into one
//! clear line and its own exit code. Guest programs use the same pieces without a configuration file;
//! [`early_boot`] is for the first process of a virtual machine.

pub mod config;
mod drain;
#[cfg(target_os = "linux")]
pub mod early_boot;
pub mod exit;
pub mod listeners;
pub mod logging;
#[cfg(feature = "metrics")]
pub mod metrics;
pub mod notify;
pub mod paths;
pub mod serve;
pub mod services;
pub mod shutdown;
