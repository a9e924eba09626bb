// SPDX-License-Identifier: Apache-2.0
//! `arca helper ...`: looking into the helper machine, whatever it is made of. [`log`] reads what it has written on the
//! host, which works also when it hangs or is gone; [`tools`] runs its tools inside.

mod log;
mod tools;

use std::time::Duration;

use anyhow::Context as _;
use arca_daemon::config::{CommonArgs, Config};
use arca_machine::Record;
use arca_proto::{
    dial,
    helper::v1::{GetStatusRequest, helper_client::HelperClient},
    ports,
};
use clap::Subcommand;
use tonic::transport::Channel;

use super::print;

/// A helper that does not answer within this is reported as such.
const PATIENCE: Duration = Duration::from_secs(5);

/// `arca helper ...`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// What it is made of, where it is reached, and what runs in it
    Status,
    /// Everything it has written: kernel and first process
    Console {
        /// Go on printing what is added
        #[arg(short, long)]
        follow: bool,
        /// Lines from the end
        #[arg(short = 'n', long, default_value_t = 100)]
        tail: usize,
    },
    /// What the programs in it say: OVS, OVN
    Logs {
        /// Only this program, for example ovn-northd or ovs-vswitchd
        program: Option<String>,
        /// Go on printing what is added
        #[arg(short, long)]
        follow: bool,
        /// Lines from the end
        #[arg(short = 'n', long, default_value_t = 100)]
        tail: usize,
    },
    /// Run one of its tools: `arca helper exec ovn-nbctl show`
    #[command(trailing_var_arg = true)]
    Exec {
        /// Tool and arguments: ovn-nbctl, ovn-sbctl, ovs-vsctl, ovs-ofctl, ovs-dpctl, ovs-appctl, nft
        #[arg(required = true, allow_hyphen_values = true)]
        words: Vec<String>,
    },
    /// Run its tools line by line
    Shell,
}

/// Runs `arca helper ...`.
///
/// # Errors
/// One clear line with the way out.
pub fn run(command: Command, common: &CommonArgs) -> anyhow::Result<()> {
    let config = common.load()?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let record = record(&config)?;
        match command {
            Command::Status => status(&record).await,
            Command::Console { follow, tail } => log::console(&record, follow, tail).await,
            Command::Logs { program, follow, tail } => log::programs(&record, program.as_deref(), follow, tail).await,
            Command::Exec { words } => match tools::run(&mut client(&record), words).await? {
                0 => Ok(()),
                code => std::process::exit(code),
            },
            Command::Shell => tools::shell(&mut client(&record)).await,
        }
    })
}

fn record(config: &Config) -> anyhow::Result<Record> {
    let state = config.paths.helper_data().join("machine");
    let record =
        Record::load(&state).with_context(|| format!("read the helper machine's record in {}", state.display()))?;
    record.context("there is no helper machine (does the engine run, and has it a network of the ovs backend?)")
}

fn client(record: &Record) -> HelperClient<Channel> {
    HelperClient::new(dial::channel(&record.address, ports::HELPER))
}

async fn status(record: &Record) -> anyhow::Result<()> {
    print(&format!("machine    {} ({:?})", record.id, record.kind));
    print(&format!("address    {}", record.address));
    print(&format!("keeper     pid {}", record.pid));
    print(&format!("console    {}", log::of(record).display()));
    if log::of(record) != record.log {
        print(&format!("keeper log {}", record.log.display()));
    }
    let answer = tokio::time::timeout(PATIENCE, client(record).get_status(GetStatusRequest {})).await;
    let status = answer.map_err(anyhow::Error::from).and_then(|answer| Ok(answer?.into_inner()));
    let status = status.context("the helper's agent does not answer (see `arca helper console`)")?;
    print(&format!("chassis    {}", status.system_id));
    print(&format!("datapath   {} (OVS {}, OVN {})", status.datapath, status.ovs_version, status.ovn_version));
    let counts = [status.networks, status.endpoints, status.published_ports];
    print(&format!("objects    {} networks, {} endpoints, {} published ports", counts[0], counts[1], counts[2]));
    print(&format!("\n{:<20} {:>6} {:>9} {:>10}", "PROCESS", "PID", "RESTARTS", "MEMORY"));
    for process in &status.processes {
        let memory = format!("{} MiB", process.resident_bytes >> 20);
        print(&format!("{:<20} {:>6} {:>9} {memory:>10}", process.name, process.pid, process.restarts));
    }
    for fault in &status.faults {
        print(&format!("fault: {fault}"));
    }
    Ok(())
}
