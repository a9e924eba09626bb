// SPDX-License-Identifier: Apache-2.0
//! The command line, and what each part is started with.

use std::path::PathBuf;

use anyhow::Context as _;
use arca_daemon::{
    exit::{Failure, Fatal},
    shutdown::Shutdown,
};
use clap::Parser;

use crate::{keeper, lease::Lease, platform, spec::Spec};

/// Keeps one virtual machine over Virtualization.framework until it ends.
#[derive(Debug, Parser)]
#[command(name = "arca-vz", version)]
pub struct Arguments {
    /// The machine, as JSON.
    #[arg(long)]
    pub spec: PathBuf,
    /// Standard input is a lease: the machine ends with whoever holds the other end, until a line `keep` comes.
    #[arg(long)]
    pub lease: bool,
    /// Log level or filter.
    #[arg(long, env = "ARCA_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
}

/// Keeps the machine. What becomes of it stands in its state folder afterwards, too.
///
/// # Errors
/// The machine could not be started, or ended unasked: one line.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    arca_daemon::logging::init(&arguments.log_level);
    let spec = Spec::load(&arguments.spec)
        .map_err(|error| Fatal::new(Failure::Config, format!("{}: {error:#}", arguments.spec.display())))?;
    let kept = keep(&spec, arguments.lease);
    let end = match &kept {
        Ok(end) => end.clone(),
        Err(error) => crate::end::End::now(format!("{error:#}"), false),
    };
    end.store(&spec.state).with_context(|| format!("write how it ended into {}", spec.state.display()))?;
    kept?;
    anyhow::ensure!(end.asked, "{}", end.reason);
    Ok(())
}

/// Standard input, which must be a pipe.
fn input() -> std::io::Result<tokio::net::unix::pipe::Receiver> {
    use std::os::fd::AsFd as _;
    tokio::net::unix::pipe::Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)
}

fn keep(spec: &Spec, leased: bool) -> anyhow::Result<crate::end::End> {
    crate::end::End::remove(&spec.state).context("remove the record of an earlier end")?;
    // Bytes are pumped here on behalf of every link of the machine: one thread more than the one that waits.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.context("start the runtime")?;
    let kept = runtime.block_on(async {
        let (_trigger, terminated) = Shutdown::on_signals().context("set signal handlers")?;
        let lease = if leased { Lease::of(input().context("use standard input as a lease")?) } else { Lease::none() };
        let framework = platform::machine(spec)?;
        keeper::keep(spec, framework, lease, async move { terminated.wait().await }).await
    });
    // Not waited for: a thread may still read standard input.
    runtime.shutdown_background();
    kept
}
