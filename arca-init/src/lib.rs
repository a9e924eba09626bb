// SPDX-License-Identifier: Apache-2.0
//! First process of a container machine: workloads, exec, stdio, signals, exit status.
//!
//! arca-machine starts it, arca-api speaks `arca.init.v1` to it. It knows OCI, not Docker, and touches no network. It is
//! the keeper of its workloads: with arca-api dead they go on, their output and exit records go to disk.
//!
//! ```text
//! service ──> workloads ──> crun (create, start, exec, pause, delete: one short run each)
//!                 │  └────> root, cgroup, spec
//!                 └──> workload ──> process ──> streams ──> output ──> log, attached clients
//! reaper: every exit status · tapfwd: the network's process and its descriptors · isolation: once, at the start
//! ```
//!
//! One thread runs everything but waiting for the disk and for the descriptor store.
#![cfg(target_os = "linux")]

mod cgroup;
mod crun;
mod error;
mod interface;
mod isolation;
mod log;
mod output;
mod process;
mod ready;
mod reaper;
mod root;
mod service;
mod spec;
mod stats;
mod streams;
mod tapfwd;
mod workload;
mod workloads;
pub mod wrap;

use std::{path::PathBuf, time::Duration};

use anyhow::Context as _;
use arca_daemon::{
    early_boot::{self, Role},
    logging, serve,
    shutdown::Shutdown,
};
use arca_proto::{init::v1::init_server::InitServer, listen::ListenOn, ports};
use clap::{Args, Parser, Subcommand};
use tonic::service::Routes;

use crate::{interface::Interface, reaper::Reaper, service::Service, tapfwd::Tapfwd, workloads::Workloads};

/// SIGTERM to arca-init gives its workloads this long.
const GRACE: Duration = Duration::from_secs(10);

/// In a virtual machine: folder for sockets and state.
const RUN: &str = "/run/arca";
/// In a virtual machine: the network's program.
const TAPFWD: &str = "/usr/sbin/arca-tapfwd";

/// Command line.
#[derive(Debug, Parser)]
#[command(name = "arca-init", version, about = "First process of a container machine")]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run as keeper of this machine's workloads.
    Serve(ServeArgs),
    /// Kill and remove what a killed arca-init left, or remove an empty cgroup.
    Sweep(SweepArgs),
}

#[derive(Debug, Args)]
struct ServeArgs {
    /// Id that the machine was given.
    #[arg(long)]
    machine_id: String,
    /// Where ports are: `vsock`, or `sockets:/DIRECTORY`.
    #[arg(long)]
    listen: ListenOn,
    /// Folder for sockets and state that need not outlive the machine; a short path.
    #[arg(long)]
    run: PathBuf,
    /// The arca-tapfwd to run beside the workloads; none: the machine has no network of its own.
    #[arg(long)]
    tapfwd: Option<PathBuf>,
    /// Log level word or filter.
    #[arg(long, default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
#[group(required = true)]
struct SweepArgs {
    /// The run folder of the arca-init that was killed.
    #[arg(long)]
    run: Option<PathBuf>,
    /// A cgroup path to remove in every hierarchy, parents too, as far as nothing uses it.
    #[arg(long)]
    cgroup: Option<String>,
}

/// Runs the program; what `main` does.
///
/// # Errors
/// One line that says what is missing.
pub fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve(args) => {
            logging::init(&args.log_level);
            isolation::enter()?;
            let runtime = runtime()?;
            let served = runtime.block_on(serve(args));
            // Not waited for: a thread may still read the descriptor store of an arca-tapfwd that is slow to end.
            runtime.shutdown_background();
            served
        }
        Command::Sweep(args) => runtime()?.block_on(sweep(args)),
    }
}

/// Runs the program as the first process of a virtual machine, which the kernel starts without arguments; returns when
/// the machine may end.
///
/// # Errors
/// One line that says what is missing.
pub fn boot() -> anyhow::Result<()> {
    let line = early_boot::prepare(Role::Container)?;
    std::fs::create_dir_all(RUN).with_context(|| format!("make folder {RUN}"))?;
    isolation::enter()?;
    let args = ServeArgs {
        machine_id: line.id().to_owned(),
        listen: ListenOn::Vsock,
        run: RUN.into(),
        // A machine on a native network has a card, which is set up once; nothing stays for it.
        tapfwd: (line.get("network") != Some("native")).then(|| TAPFWD.into()),
        log_level: line.log_level().to_owned(),
    };
    let runtime = runtime()?;
    let served = runtime.block_on(serve(args));
    runtime.shutdown_background();
    served
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // One thread waits for the descriptor store, others for the disk.
    builder.enable_all().max_blocking_threads(8).thread_keep_alive(Duration::from_secs(2));
    builder.build().context("start the runtime")
}

async fn serve(args: ServeArgs) -> anyhow::Result<()> {
    let ServeArgs { machine_id, listen, run, tapfwd, log_level } = args;
    let reaper = Reaper::start().context("watch for ended processes")?;
    let workloads = Workloads::new(&run, reaper.clone());
    let listener = listen.bind(ports::INIT).with_context(|| format!("listen on port {} of {listen}", ports::INIT))?;
    if let Some(program) = &tapfwd {
        // Said at once, and to the launcher, instead of a crash loop in the log.
        std::fs::metadata(program).with_context(|| format!("find {}", program.display()))?;
    }
    let (stop_network, network_stops) = Shutdown::manual();
    let mut network_up = None;
    let network = match tapfwd {
        Some(program) => {
            let (ready, up) = tapfwd::Readiness::in_folder(&run)?;
            network_up = Some(up);
            let tapfwd = Tapfwd { program, listen: listen.clone(), log_level, reaper: reaper.clone(), ready };
            Some(tokio::spawn(tapfwd.supervise(network_stops)))
        }
        None => None,
    };
    // Two ends: a signal first ends the workloads; Shutdown has done so when it fires.
    let (_, signalled) = Shutdown::on_signals().context("set signal handlers")?;
    let (end, ended) = Shutdown::manual();
    let interface = Interface {
        program: matches!(listen, ListenOn::Vsock).then(|| TAPFWD.into()),
        run: run.clone(),
        reaper: reaper.clone(),
    };
    let service = Service { machine_id, workloads: workloads.clone(), interface, end };
    let routes = Routes::new(InitServer::new(service));
    let (_never, serving) = Shutdown::manual();
    let server = serve::serve(listener, routes, &["arca.init.v1.Init"], serving);
    let announced = async {
        if let Some(up) = network_up {
            up.until_listening().await;
        }
        ready::say(&listen).await?;
        std::future::pending::<anyhow::Result<()>>().await
    };
    let result = tokio::select! {
        // Whichever ends first ends the machine; nothing is resumed, so no arm needs to be cancel-safe.
        served = server => served.context("serve arca.init.v1"),
        said = announced => said,
        () = ended.wait() => Ok(()),
        () = signalled.wait() => {
            workloads.end_all(GRACE).await;
            Ok(())
        }
    };
    stop_network.fire();
    if let Some(network) = network {
        network.await.context("end arca-tapfwd")?;
    }
    result
}

async fn sweep(args: SweepArgs) -> anyhow::Result<()> {
    let mut failures = Vec::new();
    if let Some(run) = args.run {
        failures.extend(workloads::sweep(&run).await.with_context(|| format!("sweep {}", run.display()))?);
    }
    if let Some(path) = args.cgroup {
        let path = cgroup::checked(&path).map_err(anyhow::Error::msg)?;
        cgroup::release(&path).with_context(|| format!("release cgroup {}", path.display()))?;
    }
    anyhow::ensure!(failures.is_empty(), "{}", failures.join("; "));
    Ok(())
}
