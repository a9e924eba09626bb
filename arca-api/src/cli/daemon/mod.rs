// SPDX-License-Identifier: Apache-2.0
//! `arca daemon ...`: the engine's three host daemons where neither launchd nor systemd supervises them.
//!
//! `run` is the supervisor in the foreground ([`supervise`]), `start` the same in the background ([`control`]). One lock
//! file per engine ([`lock`]) says who runs it, so a second engine on the same data is refused.

mod control;
mod lock;
mod logs;
pub(super) mod preflight;
pub(super) mod status;
mod supervise;

use arca_daemon::{
    config::{CommonArgs, Config},
    exit::{Failure, Fatal},
};
use clap::Subcommand;

/// The host daemons, in the order they are started; they are stopped in reverse.
pub(crate) const DAEMONS: [&str; 3] = ["arca-relayd", "arca-netd", "arca-api"];

/// `arca daemon ...`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start the engine in the background; prints the DOCKER_HOST line
    Start,
    /// Run the engine in the foreground until interrupted
    Run,
    /// Stop the daemons; containers and the helper machine go on
    Stop {
        /// Also stop every container, the helper machine, and undo host changes
        #[arg(long)]
        all: bool,
    },
    /// Let the running engine read its configuration again: the log level changes at once
    Reload,
    /// What runs, since when, and whether it answers
    Status {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// The daemons' logs
    Logs {
        /// Only this daemon: arca-api, arca-netd or arca-relayd
        daemon: Option<String>,
        /// Go on printing what is added
        #[arg(short, long)]
        follow: bool,
        /// Lines from the end of each log
        #[arg(short = 'n', long, default_value_t = 100)]
        tail: usize,
    },
}

/// For who would run the same engine another way.
pub(super) fn refuse_if_running(config: &Config) -> Result<(), Fatal> {
    match lock::holder(config) {
        Ok(Some(pid)) => {
            let text = format!("the engine runs already (supervisor pid {pid}): end it with `arca daemon stop` first");
            Err(Fatal::new(Failure::AlreadyRunning, text))
        }
        Ok(None) => Ok(()),
        Err(error) => Err(Fatal::new(Failure::General, format!("{error:#}"))),
    }
}

/// Ends every container and the helper machine of the engine, whoever runs its daemons.
pub(super) fn stop_machines(config: &Config) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(control::stop_machines(config))?
}

/// Runs `arca daemon ...`.
///
/// # Errors
/// One clear line with the way out.
pub fn run(command: Command, common: &CommonArgs) -> anyhow::Result<()> {
    let config = match command {
        // The supervisor logs; the others only talk.
        Command::Run => common.load_and_log()?,
        _ => common.load()?,
    };
    // One thread: the supervisor's children ask the kernel to be told when the thread that started them dies.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        match command {
            Command::Run => supervise::run(&config, common).await,
            Command::Start => control::start(&config, common).await,
            Command::Stop { all } => control::stop(&config, common, all).await,
            Command::Reload => control::reload(&config),
            Command::Status { json } => status::show(&config, json).await,
            Command::Logs { daemon, follow, tail } => logs::show(&config, daemon.as_deref(), follow, tail).await,
        }
    })
}
