// SPDX-License-Identifier: Apache-2.0
//! The command line: `serve` runs the daemon, `links` and `ports` show what a running one carries.

mod ports;

use std::{fmt::Write as _, io::Write as _};

use anyhow::Context as _;
use arca_daemon::{
    config::{CommonArgs, Config},
    shutdown::Shutdown,
};
use arca_proto::{
    dial::{Address, unix_channel},
    hello::{Carrier, Offloads},
    relay::v1::{Link, ListLinksRequest, ListPublicationsRequest, link::State, relay_client::RelayClient},
    tap::v1::Counters,
};
use clap::{Parser, Subcommand};
use serde_json::{Value, json};

/// Host relay: links between containers and the helper machine, listeners of published ports.
#[derive(Debug, Parser)]
#[command(name = "arca-relayd", version)]
pub struct Arguments {
    #[command(flatten)]
    common: CommonArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Serve until SIGTERM.
    Serve,
    /// List the links of the running arca-relayd.
    Links {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
    /// List the published ports of the running arca-relayd.
    Ports {
        /// Print JSON.
        #[arg(long)]
        json: bool,
    },
}

/// Does what the command line says.
///
/// # Errors
/// Whatever ended it, for `main` to print.
pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    // One thread for control: frames have threads of their own.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    match arguments.command {
        Command::Serve => {
            let config = arguments.common.load_and_log()?;
            let served = runtime.block_on(async {
                let (_trigger, shutdown) = Shutdown::on_signals().context("set signal handlers")?;
                crate::app::run(&config.paths, shutdown).await
            });
            // What is still open ends with the process.
            runtime.shutdown_background();
            served
        }
        Command::Links { json } => runtime.block_on(links(&arguments.common.load()?, json)),
        Command::Ports { json } => runtime.block_on(ports(&arguments.common.load()?, json)),
    }
}

async fn ports(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let socket = config.paths.relayd_socket();
    let answer = RelayClient::new(unix_channel(&socket)).list_publications(ListPublicationsRequest {}).await;
    let answer = answer.with_context(|| format!("ask arca-relayd at {} (is it running?)", socket.display()))?;
    let publications = answer.into_inner().publications;
    let text = if as_json {
        serde_json::to_string_pretty(&ports::json(&publications))? + "\n"
    } else {
        ports::table(&publications)
    };
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

async fn links(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let socket = config.paths.relayd_socket();
    let answer = RelayClient::new(unix_channel(&socket)).list_links(ListLinksRequest {}).await;
    let links = answer.with_context(|| format!("ask arca-relayd at {} (is it running?)", socket.display()))?;
    let links = links.into_inner().links;
    let text = if as_json {
        serde_json::to_string_pretty(&links.iter().map(to_json).collect::<Vec<_>>())? + "\n"
    } else {
        table(&links)
    };
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

fn state(link: &Link) -> &'static str {
    match link.state() {
        State::Up => "up",
        State::Connecting => "connecting",
        State::Closed => "closed",
        State::Unspecified => "unknown",
    }
}

fn address(message: Option<&arca_proto::machine::v1::Address>) -> String {
    message.and_then(|m| Address::try_from(m.clone()).ok()).map_or_else(|| "-".to_owned(), |a| a.to_string())
}

fn to_json(link: &Link) -> Value {
    let counters = |c: Option<Counters>| {
        let c = c.unwrap_or_default();
        json!({"frames": c.frames, "bytes": c.bytes, "drops": c.drops})
    };
    json!({
        "link": link.link,
        "carrier": "stream",
        "state": state(link),
        "epoch": link.epoch,
        "offloads": Offloads::from_bits(link.offloads).to_string(),
        "toHelper": counters(link.to_helper),
        "toContainer": counters(link.to_container),
        "reconnects": link.reconnects,
        "lastError": link.last_error,
        "container": address(link.container.as_ref()),
        "helper": address(link.helper.as_ref()),
    })
}

fn table(links: &[Link]) -> String {
    let mut text = format!(
        "{:<5} {:<10} {:<26} {:>12} {:>15} {:>12} {:>15} {:>10}  {}\n",
        "LINK", "STATE", "OFFLOADS", "TO HELPER", "BYTES", "TO CONTAINER", "BYTES", "RECONNECTS", "ENDS"
    );
    for link in links {
        let (up, down) = (link.to_helper.unwrap_or_default(), link.to_container.unwrap_or_default());
        let offloads = Offloads::from_bits(link.offloads).to_string();
        let ends = format!("{} - {}", address(link.container.as_ref()), address(link.helper.as_ref()));
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<5} {:<10} {:<26} {:>12} {:>15} {:>12} {:>15} {:>10}  {}",
            link.link,
            state(link),
            offloads,
            up.frames,
            up.bytes,
            down.frames,
            down.bytes,
            link.reconnects,
            ends
        );
        if !link.last_error.is_empty() {
            let _ = writeln!(text, "      {}", link.last_error);
        }
    }
    text
}
