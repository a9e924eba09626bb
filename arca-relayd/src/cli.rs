// SPDX-License-Identifier: Apache-2.0
//! The command line: `serve` runs the daemon, `links` and `ports` show what a running one carries.

mod ports;
mod trace;

use std::{
    fmt::Write as _,
    io::Write as _,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use arca_daemon::{
    config::{CommonArgs, Config},
    shutdown::Shutdown,
};
use arca_proto::{
    dial::{Address, unix_channel},
    hello::{Carrier, Offloads},
    relay::v1::{Hop, Link, ListLinksRequest, ListPublicationsRequest, link::State, relay_client::RelayClient},
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
        /// Go on, every second with rates, drops and reconnects of that second.
        #[arg(long, conflicts_with = "json")]
        watch: bool,
        /// With --watch: end after so many seconds.
        #[arg(long, requires = "watch", value_name = "SECONDS")]
        count: Option<u64>,
    },
    /// Follow single frames of links hop by hop, each with its times; then medians of every step.
    Trace {
        /// Link numbers, as `links` shows them. With several, what passes between them is seen too.
        #[arg(required = true, value_name = "LINK")]
        links: Vec<u32>,
        /// How long to listen.
        #[arg(long, default_value_t = 5, value_name = "SECONDS")]
        seconds: u64,
        /// Print no more than so many frames; the medians are of all.
        #[arg(long, default_value_t = 40)]
        show: usize,
        /// Print what every hop told, as JSON.
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
                arguments.common.reload_on_hangup(&config).context("set signal handlers")?;
                arca_daemon::notify::keep_watchdog_quiet();
                crate::app::run(&config, shutdown).await
            });
            // What is still open ends with the process.
            runtime.shutdown_background();
            served
        }
        Command::Trace { ref links, seconds, show, json } => {
            let wanted = trace::Wanted { links, time: Duration::from_secs(seconds), show, json };
            runtime.block_on(trace::run(&arguments.common.load()?, &wanted))
        }
        Command::Links { watch: true, count, .. } => runtime.block_on(watch(&arguments.common.load()?, count)),
        Command::Links { json, .. } => runtime.block_on(links(&arguments.common.load()?, json)),
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

async fn list(config: &Config) -> anyhow::Result<Vec<Link>> {
    let socket = config.paths.relayd_socket();
    let answer = RelayClient::new(unix_channel(&socket)).list_links(ListLinksRequest { with_hops: true }).await;
    let links = answer.with_context(|| format!("ask arca-relayd at {} (is it running?)", socket.display()))?;
    Ok(links.into_inner().links)
}

/// A table every second, of what happened since the one before.
async fn watch(config: &Config, count: Option<u64>) -> anyhow::Result<()> {
    let mut ticks = tokio::time::interval(Duration::from_secs(1));
    ticks.tick().await;
    let (mut before, mut at) = (list(config).await?, Instant::now());
    let mut told = 0;
    while count.is_none_or(|count| told < count) {
        ticks.tick().await;
        let (now, when) = (list(config).await?, Instant::now());
        let text = rates(&before, &now, when - at);
        let mut out = std::io::stdout();
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).context("print")?;
        (before, at, told) = (now, when, told + 1);
    }
    Ok(())
}

/// What was dropped towards the helper and towards the container, by every hop that counts: a relay drops nothing, ends
/// do, and where frames do not pass the relay its figures are the helper's end's.
fn drops(link: &Link) -> (u64, u64) {
    let of = |counters: Option<Counters>| counters.map_or(0, |counters| counters.drops);
    let hops = [link.container_hop, link.helper_hop];
    if hops.iter().all(Option::is_none) {
        return (of(link.to_helper), of(link.to_container));
    }
    let hops = hops.into_iter().flatten();
    hops.fold((0, 0), |sum, hop| (sum.0 + of(hop.to_helper), sum.1 + of(hop.to_container)))
}

/// Frames and bits per second each way, and what was dropped and dialled anew since `before`.
fn rates(before: &[Link], now: &[Link], time: Duration) -> String {
    let mut text = format!(
        "{:<5} {:<7} {:<10} {:>14} {:>10} {:>8} {:>14} {:>10} {:>8} {:>10} {:>6}\n",
        "LINK",
        "CARRIER",
        "STATE",
        "TO HELPER /s",
        "Mbit/s",
        "DROPS",
        "TO CONTAIN. /s",
        "Mbit/s",
        "DROPS",
        "RECONNECTS",
        "STUCK"
    );
    for link in now {
        let former = before.iter().find(|former| former.link == link.link);
        let grown = |now: u64, then: Option<u64>| now.saturating_sub(then.unwrap_or(0));
        let since = |pick: fn(&Link) -> Option<Counters>| {
            let (now, then) = (pick(link).unwrap_or_default(), former.and_then(pick).unwrap_or_default());
            (grown(now.frames, Some(then.frames)), grown(now.bytes, Some(then.bytes)))
        };
        let (up, down) = (since(|link| link.to_helper), since(|link| link.to_container));
        let (lost, lost_before) = (drops(link), former.map(drops));
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let per_second = |number: u64| number as f64 / time.as_secs_f64();
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<5} {:<7} {:<10} {:>14.0} {:>10.1} {:>8} {:>14.0} {:>10.1} {:>8} {:>10} {:>6}",
            link.link,
            carrier(link),
            state(link),
            per_second(up.0),
            per_second(up.1) * 8.0 / 1e6,
            grown(lost.0, lost_before.map(|drops| drops.0)),
            per_second(down.0),
            per_second(down.1) * 8.0 / 1e6,
            grown(lost.1, lost_before.map(|drops| drops.1)),
            grown(link.reconnects, former.map(|former| former.reconnects)),
            grown(link.stuck, former.map(|former| former.stuck)),
        );
    }
    text
}

async fn links(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let links = list(config).await?;
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

fn carrier(link: &Link) -> &'static str {
    Carrier::try_from(link.carrier).map_or("unknown", Carrier::as_str)
}

fn address(message: Option<&arca_proto::machine::v1::Address>) -> String {
    message.and_then(|m| Address::try_from(m.clone()).ok()).map_or_else(|| "-".to_owned(), |a| a.to_string())
}

fn to_json(link: &Link) -> Value {
    let counters = |c: Option<Counters>| {
        let c = c.unwrap_or_default();
        json!({"frames": c.frames, "bytes": c.bytes, "drops": c.drops})
    };
    let hop = |hop: Option<Hop>| {
        hop.map(|hop| json!({"toHelper": counters(hop.to_helper), "toContainer": counters(hop.to_container)}))
    };
    json!({
        "link": link.link,
        "carrier": carrier(link),
        "state": state(link),
        "epoch": link.epoch,
        "offloads": Offloads::from_bits(link.offloads).to_string(),
        "toHelper": counters(link.to_helper),
        "toContainer": counters(link.to_container),
        "containerHop": hop(link.container_hop),
        "helperHop": hop(link.helper_hop),
        "reconnects": link.reconnects,
        "stuck": link.stuck,
        "lastError": link.last_error,
        "container": address(link.container.as_ref()),
        "helper": address(link.helper.as_ref()),
    })
}

fn table(links: &[Link]) -> String {
    let mut text = format!(
        "{:<5} {:<7} {:<10} {:<26} {:>12} {:>15} {:>12} {:>15} {:>10}  {}\n",
        "LINK", "CARRIER", "STATE", "OFFLOADS", "TO HELPER", "BYTES", "TO CONTAINER", "BYTES", "RECONNECTS", "ENDS"
    );
    for link in links {
        let (up, down) = (link.to_helper.unwrap_or_default(), link.to_container.unwrap_or_default());
        let offloads = Offloads::from_bits(link.offloads).to_string();
        let ends = format!("{} - {}", address(link.container.as_ref()), address(link.helper.as_ref()));
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:<5} {:<7} {:<10} {:<26} {:>12} {:>15} {:>12} {:>15} {:>10}  {}",
            link.link,
            carrier(link),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_of_what_came_since() {
        let counters = |frames, bytes, drops| Some(Counters { frames, bytes, drops });
        let link = |n, up, reconnects| Link { link: n, carrier: 3, to_helper: up, reconnects, ..Link::default() };
        let before = [link(1, counters(100, 1000, 1), 2)];
        let mut now = [link(1, counters(300, 501_000, 4), 3), link(2, counters(10, 0, 0), 0)];
        let text = rates(&before, &now, Duration::from_secs(2));
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[0], ["1", "cable", "unknown", "100", "2.0", "3", "0", "0.0", "0", "1", "0"]);
        assert_eq!(rows[1][3], "5");
        // Where the ends have answered their drops count, those of both.
        now[0].container_hop = Some(Hop { to_helper: counters(0, 0, 7), to_container: counters(0, 0, 5) });
        now[0].helper_hop = Some(Hop { to_helper: counters(0, 0, 20), to_container: counters(0, 0, 1) });
        assert_eq!((drops(&now[0]), drops(&before[0])), ((27, 6), (1, 0)));
    }
}
