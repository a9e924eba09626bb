// SPDX-License-Identifier: Apache-2.0
//! The `arca` command. Verbs are files: [`daemon`] runs the engine where neither launchd nor systemd does,
//! [`service`] has these run it, [`config`] shows the effective configuration.

pub mod config;
pub mod daemon;
mod docker;
pub mod doctor;
pub mod helper;
pub mod service;
mod tail;

#[cfg(target_os = "linux")]
#[path = "platform_linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "platform_other.rs"]
mod platform;

use std::io::Write as _;

use arca_daemon::config::CommonArgs;
use clap::{Parser, Subcommand};

/// A Docker-compatible engine in which every container is a machine of its own.
#[derive(Debug, Parser)]
#[command(
    name = "arca",
    version,
    after_help = "Drive containers and networks with docker: export the DOCKER_HOST line that `arca daemon start` prints."
)]
pub struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Start, stop and look at the engine's daemons
    #[command(subcommand)]
    Daemon(daemon::Command),
    /// Run the engine under systemd or launchd
    #[command(subcommand)]
    Service(service::Command),
    /// Look at the machine and the running engine; say what is wrong and what to do about it
    Doctor(doctor::Arguments),
    /// The effective configuration
    #[command(subcommand)]
    Config(config::Command),
    /// Look into the helper machine: console, logs, tools
    #[command(subcommand)]
    Helper(helper::Command),
}

/// Runs one command.
///
/// # Errors
/// One clear line; [`arca_daemon::exit::Fatal`] carries the exit code.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Daemon(command) => daemon::run(command, &cli.common),
        Command::Service(command) => service::run(command, &cli.common),
        Command::Doctor(arguments) => doctor::run(&arguments, &cli.common),
        Command::Config(command) => config::run(&command, &cli.common),
        Command::Helper(command) => helper::run(command, &cli.common),
    }
}

/// Prints to standard output; a reader that closed its end (`| head`) is no error.
pub(crate) fn print(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}
