// SPDX-License-Identifier: Apache-2.0
//! `just bench`: the figures of the first engine beside their budgets, and beside a kernel bridge in the same run.
#![allow(clippy::print_stdout, reason = "a bench prints")]

fn main() {}
