// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-relayd; everything of substance is in the library.

use clap::Parser as _;

fn main() -> std::process::ExitCode {
    arca_daemon::exit::report("arca-relayd", arca_relayd::cli::run(&arca_relayd::cli::Arguments::parse()))
}
