// SPDX-License-Identifier: Apache-2.0
//! `arca-vz`: see the library.

use std::process::ExitCode;

use clap::Parser as _;

fn main() -> ExitCode {
    arca_daemon::exit::report("arca-vz", arca_vz::cli::run(&arca_vz::cli::Arguments::parse()))
}
