// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-netd; everything of substance is in the library.

use std::process::ExitCode;

use arca_netd::cli::{self, Cli};
use clap::Parser as _;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = runtime.map_err(anyhow::Error::from).and_then(|runtime| runtime.block_on(cli::run(cli)));
    arca_daemon::exit::report("arca-netd", result)
}
