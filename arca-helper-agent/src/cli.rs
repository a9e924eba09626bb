// SPDX-License-Identifier: Apache-2.0
//! Command line: the two processes of the helper machine, and two questions to a running agent.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use arca_daemon::early_boot::{self, Role};
use arca_proto::dial::{Address, channel};
use arca_proto::helper::v1::helper_client::HelperClient;
use arca_proto::helper::v1::{GetStatusRequest, GetStatusResponse, ListPortsRequest, Port};
use arca_proto::listen::ListenOn;
use clap::{Args, Parser, Subcommand};
use serde_json::json;

use crate::layout::Layout;
use crate::{agent, supervisor};

/// Command line of arca-helper-agent.
#[derive(Debug, Parser)]
#[command(name = "arca-helper-agent", version, about = "Agent and supervisor of Arca's helper machine (OVS and OVN)")]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Be the first process of the helper machine: start OVS, OVN and the agent, and keep them running.
    Init(Serve),
    /// Serve gRPC to arca-netd (started by init).
    Agent {
        #[command(flatten)]
        serve: Serve,
        /// Say READY to the host once the port is bound.
        #[arg(long)]
        ready: bool,
    },
    /// Versions, processes, databases and faults of a running helper.
    Status(Ask),
    /// Link TAPs of a running helper with their counters.
    Ports(Ask),
}

#[derive(Debug, Args)]
struct Serve {
    /// Where the ports are: `vsock`, or `sockets:/DIRECTORY` with one unix socket per port.
    #[arg(long, default_value = "vsock")]
    listen: ListenOn,
    /// Log level (error, warn, info, debug, trace) or filter.
    #[arg(long, default_value = "info")]
    log_level: String,
}

#[derive(Debug, Args)]
struct Ask {
    /// Directory of the helper's sockets.
    #[arg(long, env = "ARCA_HELPER_SOCKETS", default_value = "/vsock")]
    sockets: PathBuf,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// Runs what the command line says.
///
/// # Errors
/// What the command failed with.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    let layout = Layout::default();
    match arguments.command {
        Command::Init(Serve { listen, log_level }) => {
            arca_daemon::logging::init(&log_level);
            supervise(supervisor::Options { listen, log_level, layout })
        }
        Command::Agent { serve: Serve { listen, log_level }, ready } => {
            arca_daemon::logging::init(&log_level);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
            runtime.block_on(agent::run(agent::Options { listen, ready, layout }))
        }
        Command::Status(ask) => block_on(status(ask)),
        Command::Ports(ask) => block_on(list_ports(ask)),
    }
}

/// Runs the program as the first process of a virtual machine, which the kernel starts without arguments; returns when
/// the machine may end.
///
/// # Errors
/// What the machine cannot be without.
pub fn boot() -> anyhow::Result<()> {
    let line = early_boot::prepare(Role::Helper)?;
    let log_level = line.log_level().to_owned();
    supervise(supervisor::Options { listen: ListenOn::Vsock, log_level, layout: Layout::default() })
}

fn supervise(options: supervisor::Options) -> anyhow::Result<()> {
    // One thread: it only waits, and memory of the first process is never given back.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(supervisor::run(options))
}

fn block_on(question: impl Future<Output = anyhow::Result<String>>) -> anyhow::Result<()> {
    let text = tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(question)?;
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("write the answer")
}

fn client(ask: &Ask) -> HelperClient<tonic::transport::Channel> {
    HelperClient::new(channel(&Address::Sockets(ask.sockets.clone()), arca_proto::ports::HELPER))
}

async fn status(ask: Ask) -> anyhow::Result<String> {
    let answer = client(&ask).get_status(GetStatusRequest {}).await;
    let status = answer.with_context(|| format!("ask the helper at {}", ask.sockets.display()))?.into_inner();
    Ok(if ask.json { format!("{:#}\n", status_json(&status)) } else { status_text(&status) })
}

async fn list_ports(ask: Ask) -> anyhow::Result<String> {
    let answer = client(&ask).list_ports(ListPortsRequest {}).await;
    let ports = answer.with_context(|| format!("ask the helper at {}", ask.sockets.display()))?.into_inner().ports;
    if ask.json {
        let ports: Vec<_> = ports.iter().map(port_json).collect();
        return Ok(format!("{:#}\n", json!(ports)));
    }
    let mut text = format!(
        "{:<6} {:<14} {:<12} {:<6} {:>12} {:>14} {:>12} {:>14} {:>8} {:>10}\n",
        "LINK",
        "ENDPOINT",
        "INTERFACE",
        "STATE",
        "FRAMES OUT",
        "BYTES OUT",
        "FRAMES IN",
        "BYTES IN",
        "DROPS",
        "RECONNECTS"
    );
    for port in &ports {
        let (out, into) = (port.to_stream.unwrap_or_default(), port.from_stream.unwrap_or_default());
        text += &format!(
            "{:<6} {:<14} {:<12} {:<6} {:>12} {:>14} {:>12} {:>14} {:>8} {:>10}\n",
            port.link,
            port.endpoint_id.get(..12).unwrap_or(&port.endpoint_id),
            port.interface,
            if port.linked { "up" } else { "down" },
            out.frames,
            out.bytes,
            into.frames,
            into.bytes,
            out.drops + into.drops,
            port.reconnects,
        );
    }
    Ok(text)
}

fn status_text(status: &GetStatusResponse) -> String {
    let mut text = format!(
        "version    {}\nchassis    {}\ndatapath   {}\nOVS        {}\nOVN        {}\nobjects    {} networks, {} endpoints, {} published ports\n\n",
        status.version,
        status.system_id,
        status.datapath,
        status.ovs_version,
        status.ovn_version,
        status.networks,
        status.endpoints,
        status.published_ports
    );
    text += &format!("{:<20} {:>6} {:>9} {:>10}\n", "PROCESS", "PID", "RESTARTS", "MEMORY");
    for process in &status.processes {
        let mebibytes = format!("{} MiB", process.resident_bytes >> 20);
        text += &format!("{:<20} {:>6} {:>9} {:>10}\n", process.name, process.pid, process.restarts, mebibytes);
    }
    text += &format!("\n{:<20} {:<12} {}\n", "DATABASE", "STATE", "SCHEMA");
    for database in &status.databases {
        let state = if database.connected { "connected" } else { "away" };
        text += &format!("{:<20} {:<12} {}\n", database.name, state, database.schema_version);
    }
    for fault in &status.faults {
        text += &format!("\nfault: {fault}");
    }
    if !status.faults.is_empty() {
        text.push('\n');
    }
    text
}

fn status_json(status: &GetStatusResponse) -> serde_json::Value {
    let process = |p: &arca_proto::helper::v1::ProcessStatus| json!({"name": p.name, "pid": p.pid, "restarts": p.restarts, "resident_bytes": p.resident_bytes});
    let database = |d: &arca_proto::helper::v1::DatabaseStatus| json!({"name": d.name, "connected": d.connected, "schema_version": d.schema_version});
    json!({
        "version": status.version,
        "system_id": status.system_id,
        "datapath": status.datapath,
        "ovs_version": status.ovs_version,
        "ovn_version": status.ovn_version,
        "processes": status.processes.iter().map(process).collect::<Vec<_>>(),
        "databases": status.databases.iter().map(database).collect::<Vec<_>>(),
        "networks": status.networks,
        "endpoints": status.endpoints,
        "published_ports": status.published_ports,
        "faults": status.faults,
    })
}

fn port_json(port: &Port) -> serde_json::Value {
    let counters = |c: Option<arca_proto::tap::v1::Counters>| {
        let c = c.unwrap_or_default();
        json!({"frames": c.frames, "bytes": c.bytes, "drops": c.drops})
    };
    json!({
        "link": port.link,
        "endpoint_id": port.endpoint_id,
        "interface": port.interface,
        "linked": port.linked,
        "epoch": port.epoch,
        "offloads": port.offloads,
        "to_stream": counters(port.to_stream),
        "from_stream": counters(port.from_stream),
        "reconnects": port.reconnects,
    })
}
