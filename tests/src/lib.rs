// SPDX-License-Identifier: Apache-2.0
//! The harness of Arca's end-to-end tests, benches and demo.
//!
//! Everything runs in private network, mount and process namespaces ([`isolation`]): one kill ends all of it, and nothing
//! on the machine changes. An [`engine`] is started there as a user would start it, and driven with the real docker CLI.
//! [`http`] speaks to it without the CLI, [`audit`] asks everybody whether they agree.
//! The [`outside`] is an "internet" of our own; [`leaks`] compares what exists before and after; [`measure`] has the
//! ping-pong and throughput probes; [`story`] is what demo and tests both play.
#![cfg(target_os = "linux")]

pub mod audit;
pub mod clients;
pub mod engine;
pub mod http;
pub mod inside;
pub mod isolation;
pub mod leaks;
pub mod measure;
pub mod outside;
pub mod story;
pub mod wire;

/// Says that a test, or a part of one, was left out, so that it is seen and counted.
pub fn skip(what: &str, reason: &str) {
    use std::io::Write as _;
    // Whoever reads the output may have gone; then there is nobody to tell.
    let _ = writeln!(std::io::stdout(), "SKIP {what}: {reason}");
}
