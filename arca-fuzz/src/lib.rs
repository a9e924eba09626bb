// SPDX-License-Identifier: Apache-2.0
//! Fuzz targets: each takes any bytes, feeds a parser of Arca that reads from outside, and asserts what must hold of
//! the answer. Run on their corpora by `tests/corpus.rs` (every test run) and under libFuzzer by `./dev fuzz`.
#![cfg(target_os = "linux")]

mod targets;

/// One parser under test.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Also the name of its folder below `corpus/`.
    pub name: &'static str,
    /// Panics when something does not hold.
    pub run: fn(&[u8]),
}

/// All targets.
pub const TARGETS: &[Target] = &[
    Target { name: "frames", run: targets::frames },
    Target { name: "hello", run: targets::hello },
    Target { name: "hybrid", run: targets::hybrid },
    Target { name: "ovsdb", run: targets::ovsdb },
];

/// The target of that name.
pub fn find(name: &str) -> Option<Target> {
    TARGETS.iter().find(|target| target.name == name).copied()
}
