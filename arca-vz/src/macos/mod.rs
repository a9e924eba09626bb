// SPDX-License-Identifier: Apache-2.0
//! Virtualization.framework, and what it is known to punish:
//!
//! - **One serial queue.** Every call *and every read of a property* of the machine must run on the queue it was made with, or
//!   the framework aborts the process. [`queue::OnQueue`] holds the machine where nothing else can reach it.
//! - **No main thread.** With a queue of its own a machine without a screen needs no run loop.
//! - **The descriptor of a connection** is closed with its object, and a duplicate was seen to fail when the object went early: the
//!   object is held as long as bytes flow (`machine`).
//! - **No card is plugged in later.** A card is there from the beginning, with its network (`nic`); networks that are attached
//!   to a running machine come as frames over vsock.
//! - **The kernel** must be an uncompressed `Image` on Apple silicon; the framework says only that it cannot start
//!   (`configuration` looks first).
//! - **The entitlement** `com.apple.security.virtualization` is lost with each build; without it validation fails, in words
//!   (`packaging/macos`, `just sign`).
//! - **Frames above 1500 bytes** were seen to stall a device: a card says no larger MTU (`nic`).
//!
//! Type-checked, not yet run on a Mac.

mod configuration;
mod delegates;
mod machine;
mod nic;
mod queue;
mod xpc;

use std::sync::Arc;

use objc2_foundation::NSError;

use crate::{
    framework::{Framework, FrameworkError},
    spec::Spec,
};

/// # Errors
/// The machine cannot be as it is wanted: the framework's words.
pub(crate) fn machine(spec: &Spec) -> anyhow::Result<Arc<dyn Framework>> {
    Ok(Arc::new(machine::Machine::new(spec)?))
}

/// An error of the framework in its own words.
fn refused(action: &'static str, error: &NSError) -> FrameworkError {
    let why = error.localizedFailureReason().map(|why| format!(" ({why})")).unwrap_or_default();
    FrameworkError { action, reason: format!("{}{why}", error.localizedDescription()) }
}
