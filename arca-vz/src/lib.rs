// SPDX-License-Identifier: Apache-2.0
//! arca-vz: the keeper of one virtual machine on macOS, over Apple's Virtualization.framework.
//!
//! ```text
//!   arca-api, arca-netd, arca-relayd          arca-machine's driver
//!        │ CONNECT port                             │ one JSON line (expose, state, stop)
//!   <sockets>/vsock                           <sockets>/vmm
//!        └────────── face ──── keeper ──── control ─┘
//!                               │ Framework, a trait
//!                 macos: VZVirtualMachine on a serial queue of its own
//! ```
//!
//! One process per machine: only the process that owns the framework's object can dial the guest, only this program needs
//! the entitlement, and what aborts here ends one machine. Everything but `platform` is the same on every system and is
//! tested over a stand-in for the framework.
//!
//! It has not yet run on a Mac: the macOS side is type-checked only.

pub mod cli;
pub mod control;
pub mod end;
pub mod face;
pub mod framework;
pub mod keeper;
pub mod lease;
pub mod shares;
pub mod spec;
pub mod wire;

#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod platform;
#[cfg(not(target_os = "macos"))]
#[path = "other.rs"]
mod platform;
