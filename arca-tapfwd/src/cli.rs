// SPDX-License-Identifier: Apache-2.0
//! The command line: `serve` is what arca-init starts, `interfaces` shows what a running one has.

use std::io::Write as _;

use anyhow::{Context as _, bail};
use arca_daemon::shutdown::Shutdown;
use arca_proto::dial::{Address, channel};
use arca_proto::fdstore::Client;
use arca_proto::listen::ListenOn;
use arca_proto::ports;
use arca_proto::tap::v1::tap_client::TapClient;
use arca_proto::tap::v1::{Counters, Interface, ListInterfacesRequest};
use clap::{Args, Parser, Subcommand};
use serde_json::{Value, json};

/// The network of one container machine.
#[derive(Debug, Parser)]
#[command(name = "arca-tapfwd", version)]
pub struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve gRPC and frames until SIGTERM.
    Serve {
        #[command(flatten)]
        place: Place,
        /// Log level or filter.
        #[arg(long, env = "ARCA_LOG_LEVEL", default_value = "info")]
        log_level: String,
    },
    /// Set up the one interface that a virtual machine on a native network has from its boot on; arca-init runs this.
    Interface(crate::native::Wanted),
    /// List the interfaces of a running arca-tapfwd.
    Interfaces {
        #[command(flatten)]
        place: Place,
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, Args)]
struct Place {
    /// Where this machine's ports are: `vsock`, or `sockets:/DIRECTORY` with one unix socket per port.
    #[arg(long, env = "ARCA_LISTEN")]
    listen: ListenOn,
}

/// Does what the command line says.
///
/// # Errors
/// Whatever ended it, for `main` to print.
pub fn run(arguments: Arguments) -> anyhow::Result<()> {
    // One thread: the RPCs are few, and every further thread costs memory in each container machine.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    match arguments.command {
        Command::Serve { place, log_level } => {
            arca_daemon::logging::init(&log_level);
            let store = Client::from_env()?;
            runtime.block_on(async {
                let (_trigger, shutdown) = Shutdown::on_signals().context("set signal handlers")?;
                crate::app::run(place.listen, store, shutdown).await
            })
        }
        Command::Interface(wanted) => runtime.block_on(crate::native::set_up(&wanted)),
        Command::Interfaces { place, json } => runtime.block_on(interfaces(place.listen, json)),
    }
}

async fn interfaces(listen: ListenOn, as_json: bool) -> anyhow::Result<()> {
    let ListenOn::Sockets(directory) = listen else {
        bail!("arca-tapfwd takes vsock calls from the host only; ask it from there");
    };
    let address = Address::Sockets(directory);
    let mut client = TapClient::new(channel(&address, ports::TAP));
    let answer = client.list_interfaces(ListInterfacesRequest {}).await;
    let interfaces = answer.with_context(|| format!("ask arca-tapfwd at {address}"))?.into_inner().interfaces;
    let text = if as_json {
        serde_json::to_string_pretty(&interfaces.iter().map(to_json).collect::<Vec<_>>())? + "\n"
    } else {
        table(&interfaces)
    };
    std::io::stdout().write_all(text.as_bytes()).context("print")?;
    Ok(())
}

fn to_json(interface: &Interface) -> Value {
    let settings = interface.settings.clone().unwrap_or_default();
    let counters = |c: Option<Counters>| {
        let c = c.unwrap_or_default();
        json!({"frames": c.frames, "bytes": c.bytes, "drops": c.drops})
    };
    json!({
        "link": settings.link,
        "interface": settings.interface,
        "mac": settings.mac,
        "mtu": settings.mtu,
        "addresses": settings.addresses,
        "gatewayV4": settings.gateway_v4,
        "gatewayV6": settings.gateway_v6,
        "linked": interface.linked,
        "epoch": interface.epoch,
        "offloads": interface.offloads,
        "toStream": counters(interface.to_stream),
        "fromStream": counters(interface.from_stream),
        "reconnects": interface.reconnects,
    })
}

fn table(interfaces: &[Interface]) -> String {
    let mut rows = vec![
        ["LINK", "INTERFACE", "MAC", "MTU", "ADDRESSES", "LINKED", "OUT", "IN", "DROPS", "RECONNECTS"]
            .map(str::to_owned)
            .to_vec(),
    ];
    for interface in interfaces {
        let settings = interface.settings.clone().unwrap_or_default();
        let out = interface.to_stream.unwrap_or_default();
        let back = interface.from_stream.unwrap_or_default();
        rows.push(vec![
            settings.link.to_string(),
            settings.interface,
            settings.mac,
            settings.mtu.to_string(),
            settings.addresses.join(","),
            if interface.linked { "yes".to_owned() } else { "no".to_owned() },
            format!("{} ({} B)", out.frames, out.bytes),
            format!("{} ({} B)", back.frames, back.bytes),
            (out.drops + back.drops).to_string(),
            interface.reconnects.to_string(),
        ]);
    }
    let width = |column: usize| rows.iter().map(|row| row[column].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..rows[0].len()).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        cells.join("  ").trim_end().to_owned() + "\n"
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use arca_proto::tap::v1::AttachNetworkRequest;

    #[test]
    fn the_table_lines_up_and_json_has_what_it_shows() {
        let settings = AttachNetworkRequest {
            link: 7,
            interface: "eth0".into(),
            addresses: vec!["172.18.0.2/16".into(), "fd00::2/64".into()],
            ..Default::default()
        };
        let to_stream = Some(Counters { frames: 3, bytes: 180, drops: 1 });
        let interface = Interface { settings: Some(settings), linked: true, to_stream, ..Default::default() };
        let text = table(std::slice::from_ref(&interface));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 2);
        assert_eq!(lines[0].find("ADDRESSES"), lines[1].find("172.18.0.2/16,fd00::2/64"));
        assert_eq!(to_json(&interface)["toStream"]["bytes"], 180);
        assert_eq!(to_json(&interface)["link"], 7);
    }
}
