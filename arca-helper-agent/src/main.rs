// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-helper-agent; everything of substance is in the library.

fn main() {}
