// SPDX-License-Identifier: Apache-2.0
//! `arca`: starts, stops and explains the engine. Containers and networks are driven with `docker`.

use std::process::ExitCode;

use arca_api::cli;
use arca_daemon::exit;
use clap::Parser as _;

fn main() -> ExitCode {
    exit::report("arca", cli::run(cli::Cli::parse()))
}
