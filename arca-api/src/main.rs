// SPDX-License-Identifier: Apache-2.0
//! Entry point of arca-api; everything of substance is in the library.

use std::process::ExitCode;

use arca_daemon::{config::CommonArgs, exit, shutdown::Shutdown};
use clap::{Parser, Subcommand};

/// Arca's Docker Engine API.
#[derive(Parser)]
#[command(version, about)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Subcommand)]
enum Command {
    /// Serve the Docker Engine API until SIGTERM. Containers outlive it.
    Serve,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    exit::report("arca-api", run(&arguments))
}

fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let config = arguments.common.load_and_log()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match arguments.command {
        Command::Serve => runtime.block_on(async {
            let (_trigger, shutdown) = Shutdown::on_signals()?;
            arguments.common.reload_on_hangup(&config)?;
            arca_daemon::notify::keep_watchdog_quiet();
            arca_api::app::serve(&config, shutdown).await
        }),
    }
}
