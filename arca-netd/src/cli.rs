// SPDX-License-Identifier: Apache-2.0
//! `arca-netd serve | stop-helper | networks | endpoints | status`.

use std::io::Write as _;

use anyhow::Context as _;
use arca_daemon::{config::CommonArgs, services, shutdown::Shutdown};
use arca_proto::{
    dial,
    netd::v1::{self as proto, netd_client::NetdClient},
};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

use crate::{
    app,
    backend::vmnet::{self, KeeperOptions},
};

/// Networks, endpoints and published ports of an Arca engine.
#[derive(Debug, Parser)]
#[command(name = "arca-netd", version)]
pub struct Cli {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Clone, Debug, Subcommand)]
enum Command {
    /// Runs the daemon in the foreground until SIGTERM; the helper machine and all links stay.
    Serve,
    /// Ends the helper machine and undoes the host's uplink, forwarding and nftables table. arca-netd must not run.
    StopHelper,
    /// Owns one native network on macOS; arca-netd starts it.
    #[command(hide = true)]
    VmnetKeeper(KeeperOptions),
    /// Lists networks.
    Networks {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Lists endpoints.
    Endpoints {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
    /// Shows the daemon's and the helper machine's state.
    Status {
        /// As JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Runs one command.
///
/// # Errors
/// One clear line; a [`arca_daemon::exit::Fatal`] has an exit code of its own.
pub async fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Serve => {
            let config = cli.common.load_and_log()?;
            let (_trigger, shutdown) = Shutdown::on_signals().context("set signal handlers")?;
            cli.common.reload_on_hangup(&config).context("set signal handlers")?;
            arca_daemon::notify::keep_watchdog_quiet();
            // The socket comes last: whoever can connect finds everything there.
            let app = app::start(&config).await?;
            let listener = services::NETD.listen(&config.paths)?.listener;
            tracing::info!(socket = %config.paths.netd_socket().display(), "arca-netd serves");
            app.serve(listener, shutdown).await.context("serve")
        }
        Command::StopHelper => {
            let config = cli.common.load_and_log()?;
            app::stop_helper(&config).await
        }
        Command::VmnetKeeper(options) => Ok(vmnet::keep(&options)?),
        Command::Networks { json } => {
            let list = client(&cli.common)?.list_networks(proto::ListNetworksRequest {}).await.map_err(unanswered)?;
            let list = list.into_inner().networks;
            let rows = list.iter().map(network).collect();
            print(json, &["id", "name", "driver", "subnets", "endpoints"], rows)
        }
        Command::Endpoints { json } => {
            let request = proto::ListEndpointsRequest::default();
            let list = client(&cli.common)?.list_endpoints(request).await.map_err(unanswered)?.into_inner().endpoints;
            let rows = list.iter().map(endpoint).collect();
            print(json, &["id", "container", "network", "link", "interface", "address", "up", "error"], rows)
        }
        Command::Status { json } => {
            let status = client(&cli.common)?.get_status(proto::GetStatusRequest {}).await.map_err(unanswered)?;
            let status = status.into_inner();
            let row = json!({
                "version": status.version, "networks": status.networks, "endpoints": status.endpoints,
                "helper": status.helper_state, "helper_boot_ms": status.helper_boot_ms,
                "router": status.router_address, "host_uplink": status.host_uplink,
            });
            print(json, &["version", "networks", "endpoints", "helper", "helper_boot_ms", "router"], vec![row])
        }
    }
}

fn client(common: &CommonArgs) -> anyhow::Result<NetdClient<tonic::transport::Channel>> {
    Ok(NetdClient::new(dial::unix_channel(&common.load()?.paths.netd_socket())))
}

#[allow(clippy::needless_pass_by_value, reason = "used as a `map_err` function")]
fn unanswered(status: tonic::Status) -> anyhow::Error {
    match status.code() {
        tonic::Code::Unavailable => {
            anyhow::anyhow!("arca-netd does not answer (is the engine running? `arca daemon status`)")
        }
        _ => anyhow::anyhow!("arca-netd: {}", status.message()),
    }
}

fn network(network: &proto::Network) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    let subnets: Vec<_> = network.pools.iter().map(|pool| pool.subnet.clone()).collect();
    json!({
        "id": network.id, "name": spec.name, "driver": spec.driver, "backend": network.backend,
        "subnets": subnets, "internal": spec.internal, "endpoints": network.endpoints.len(), "labels": spec.labels,
    })
}

fn endpoint(endpoint: &proto::Endpoint) -> Value {
    json!({
        "id": endpoint.id, "container": endpoint.workload_name, "container_id": endpoint.workload_id,
        "machine": endpoint.machine_id, "network": endpoint.network_name, "link": endpoint.link,
        "interface": endpoint.interface, "mac": endpoint.mac, "address": endpoint.address_v4,
        "address_v6": endpoint.address_v6, "default_route": endpoint.default_route, "names": endpoint.dns_names,
        "up": endpoint.up, "error": endpoint.error,
    })
}

/// A table of the named columns, or all of it as JSON.
fn print(json: bool, columns: &[&str], rows: Vec<Value>) -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{}", serde_json::to_string_pretty(&Value::Array(rows))?)?;
        return Ok(());
    }
    let cell = |row: &Value, column: &str| match &row[column] {
        Value::String(text) if column == "id" => text.chars().take(12).collect(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    };
    let mut table = vec![columns.iter().map(|column| column.to_uppercase().replace('_', " ")).collect::<Vec<_>>()];
    table.extend(rows.iter().map(|row| columns.iter().map(|column| cell(row, column)).collect()));
    let widths: Vec<_> =
        (0..columns.len()).map(|i| table.iter().map(|row| row[i].chars().count()).max().unwrap_or(0)).collect();
    for row in table {
        let line: Vec<_> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        writeln!(out, "{}", line.join("  ").trim_end())?;
    }
    Ok(())
}
