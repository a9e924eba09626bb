// SPDX-License-Identifier: Apache-2.0
//! `trace`: listens to every hop of some links at once and puts together what they tell of single frames.
//!
//! Each hop numbers the frames of a connection (`arca_proto::trace`), so the same number at another hop is the same frame.
//! Times of hops in one kernel are compared; those of a machine with a kernel of its own are shown within its hop only.

use std::{collections::BTreeMap, fmt::Write as _, io::Write as _, time::Duration};

use anyhow::{Context as _, bail};
use arca_daemon::config::Config;
use arca_proto::{
    dial::{Address, channel, unix_channel},
    hello::Carrier,
    ports,
    relay::v1::Link,
    tap::v1::{Passed, TraceRequest, trace_client::TraceClient},
};
use serde_json::json;
use tokio::{sync::mpsc, time::timeout};
use tonic::transport::Channel;

/// How long a hop may take to begin.
const BEGIN: Duration = Duration::from_secs(3);

/// What the command line asked for.
pub(super) struct Wanted<'a> {
    pub(super) links: &'a [u32],
    pub(super) time: Duration,
    pub(super) show: usize,
    pub(super) json: bool,
}

/// In the order in which a frame from the container comes by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Hop {
    Container,
    Relay,
    Helper,
}

impl Hop {
    const fn name(self) -> &'static str {
        match self {
            Self::Container => "tapfwd",
            Self::Relay => "relayd",
            Self::Helper => "agent",
        }
    }
}

/// One batch of frames at one hop.
#[derive(Clone, Debug)]
struct Event {
    link: u32,
    hop: Hop,
    kernel: String,
    passed: Passed,
}

/// Listens for a while, then prints.
pub(super) async fn run(config: &Config, wanted: &Wanted<'_>) -> anyhow::Result<()> {
    let known = super::list(config).await?;
    let (sender, receiver) = mpsc::unbounded_channel();
    let mut hops = 0;
    for number in wanted.links {
        let link = known.iter().find(|link| link.link == *number);
        let link = link.with_context(|| format!("there is no link {number}: `arca-relayd links` lists them"))?;
        for (hop, channel) in of_link(config, link)? {
            let told = timeout(BEGIN, listen(channel, *number, hop, sender.clone())).await;
            told.map_err(|_| anyhow::anyhow!("silent"))
                .and_then(|begun| begun)
                .with_context(|| format!("follow link {number} at {}", hop.name()))?;
            hops += 1;
        }
    }
    drop(sender);
    if !wanted.json {
        eprintln!("listening at {hops} hops for {} s", wanted.time.as_secs());
    }
    let events = collect(receiver, wanted.time).await;
    let text = if wanted.json { as_json(&events)? } else { timeline(&events, wanted.show) + "\n" + &medians(&events) };
    std::io::stdout().write_all(text.as_bytes()).context("print")
}

/// The hops where a link's frames can be followed.
fn of_link(config: &Config, link: &Link) -> anyhow::Result<Vec<(Hop, Channel)>> {
    let at = |end: &Option<arca_proto::machine::v1::Address>, port| -> anyhow::Result<Channel> {
        let address = Address::try_from(end.clone().context("no address")?)?;
        Ok(channel(&address, port))
    };
    let helper = (Hop::Helper, at(&link.helper, ports::HELPER)?);
    match Carrier::try_from(link.carrier) {
        Ok(Carrier::Stream) => Ok(vec![
            (Hop::Container, at(&link.container, ports::TAP)?),
            (Hop::Relay, unix_channel(&config.paths.relayd_socket())),
            helper,
        ]),
        Ok(Carrier::TapFd) => Ok(vec![helper]),
        _ => bail!(
            "link {} is a cable: its frames pass no process of the engine's but the switch (tcpdump sees them at both ends)",
            link.link
        ),
    }
}

/// Begins to listen at one hop; what it tells goes to `sender`.
async fn listen(channel: Channel, link: u32, hop: Hop, sender: mpsc::UnboundedSender<Event>) -> anyhow::Result<()> {
    let mut told = TraceClient::new(channel).follow(TraceRequest { link }).await?.into_inner();
    let begun = told.message().await?.context("it ended at once")?;
    tokio::spawn(async move {
        let mut lost = 0;
        while let Ok(Some(events)) = told.message().await {
            if events.lost > lost {
                eprintln!(
                    "{} of link {link} was not heard out: {} batches are missing",
                    hop.name(),
                    events.lost - lost
                );
                lost = events.lost;
            }
            for passed in events.passed {
                if sender.send(Event { link, hop, kernel: begun.kernel.clone(), passed }).is_err() {
                    return;
                }
            }
        }
    });
    Ok(())
}

async fn collect(mut receiver: mpsc::UnboundedReceiver<Event>, time: Duration) -> Vec<Event> {
    let mut events = Vec::new();
    // When the time is over, what has come so far is what there is.
    let _ = timeout(time, async {
        while let Some(event) = receiver.recv().await {
            events.push(event);
        }
    })
    .await;
    events.sort_by_key(|event| (event.kernel.clone(), event.passed.came_ns));
    events
}

fn as_json(events: &[Event]) -> anyhow::Result<String> {
    let one = |event: &Event| {
        let Event { link, hop, kernel, passed } = event;
        let Passed { to_helper, epoch, first, frames, bytes, came_ns, went_ns } = passed;
        json!({
            "link": link, "hop": hop.name(), "kernel": kernel, "toHelper": to_helper, "epoch": epoch, "first": first,
            "frames": frames, "bytes": bytes, "cameNs": came_ns, "wentNs": went_ns,
        })
    };
    Ok(serde_json::to_string_pretty(&events.iter().map(one).collect::<Vec<_>>())? + "\n")
}

#[expect(clippy::cast_precision_loss, reason = "microseconds to be read")]
fn micros(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e3
}

/// Every batch in the order of time: what passes from one link to the other is the time between two lines.
fn timeline(events: &[Event], show: usize) -> String {
    let mut text = format!(
        "{:>12} {:>10} {:>5} {:<13} {:<7} {:>8} {:>7} {:>9} {:>9}\n",
        "TIME us", "SINCE us", "LINK", "DIRECTION", "HOP", "FRAME", "FRAMES", "BYTES", "HERE us"
    );
    let mut last: Option<&Event> = None;
    let begin = events.first().map_or(0, |event| event.passed.came_ns);
    for event in events.iter().take(show) {
        let passed = &event.passed;
        let since = last.filter(|last| last.kernel == event.kernel).map_or_else(
            || "-".to_owned(),
            // Another hop may have begun before this one was done.
            |last| format!("{:.1}", micros(passed.came_ns.saturating_sub(last.passed.went_ns))),
        );
        let direction = if passed.to_helper { "to helper" } else { "to container" };
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{:>12.1} {:>10} {:>5} {:<13} {:<7} {:>8} {:>7} {:>9} {:>9.1}",
            micros(passed.came_ns.saturating_sub(begin)),
            since,
            event.link,
            direction,
            event.hop.name(),
            passed.first,
            passed.frames,
            passed.bytes,
            micros(passed.went_ns.saturating_sub(passed.came_ns)),
        );
        last = Some(event);
    }
    if events.len() > show {
        let _ = writeln!(text, "and {} more", events.len() - show);
    }
    text
}

/// Where one frame was: times at the hops it was seen at.
type Way<'a> = BTreeMap<Hop, &'a Event>;

/// Frames of each link and direction, those that begin a batch at the first hop, with all hops they were seen at.
fn ways(events: &[Event]) -> BTreeMap<(u32, bool), Vec<Way<'_>>> {
    let mut batches: BTreeMap<(u32, bool, u64, Hop), BTreeMap<u64, &Event>> = BTreeMap::new();
    for event in events {
        let passed = &event.passed;
        let at = batches.entry((event.link, passed.to_helper, passed.epoch, event.hop)).or_default();
        at.insert(passed.first, event);
    }
    let mut ways: BTreeMap<(u32, bool), Vec<Way<'_>>> = BTreeMap::new();
    for ((link, to_helper, epoch, hop), firsts) in &batches {
        let first_hop = if *to_helper { Hop::Container } else { Hop::Helper };
        let alone = !batches.contains_key(&(*link, *to_helper, *epoch, first_hop));
        if *hop != first_hop && !(alone && *hop == Hop::Helper) {
            continue;
        }
        for (number, event) in firsts {
            let mut way = Way::from([(*hop, *event)]);
            for other in [Hop::Container, Hop::Relay, Hop::Helper] {
                let at = batches.get(&(*link, *to_helper, *epoch, other));
                let found = at.and_then(|at| at.range(..=number).next_back());
                // The batch that it came with.
                way.extend(found.filter(|(f, e)| number - **f < e.passed.frames).map(|(_, e)| (other, *e)));
            }
            ways.entry((*link, *to_helper)).or_default().push(way);
        }
    }
    ways
}

/// Median microseconds of every step.
fn medians(events: &[Event]) -> String {
    let mut text = format!("{:>5} {:<13} {:>8}  median us of each step\n", "LINK", "DIRECTION", "FRAMES");
    for ((link, to_helper), ways) in ways(events) {
        let mut hops = [Hop::Container, Hop::Relay, Hop::Helper];
        if !to_helper {
            hops.reverse();
        }
        let mut steps = Vec::new();
        let mut last: Option<Hop> = None;
        for hop in hops {
            if !ways.iter().any(|way| way.contains_key(&hop)) {
                continue;
            }
            if let Some(last) = last {
                let between = ways.iter().filter_map(|way| {
                    let (from, to) = (way.get(&last)?, way.get(&hop)?);
                    (from.kernel == to.kernel).then(|| to.passed.came_ns.saturating_sub(from.passed.went_ns))
                });
                steps.push(format!("{} to {}", last.name(), median(between.collect())));
            }
            let here =
                ways.iter().filter_map(|way| way.get(&hop)).map(|e| e.passed.went_ns.saturating_sub(e.passed.came_ns));
            steps.push(format!("{} {}", hop.name(), median(here.collect())));
            last = Some(hop);
        }
        let direction = if to_helper { "to helper" } else { "to container" };
        // Writing to a String does not fail.
        let _ = writeln!(text, "{link:>5} {direction:<13} {:>8}  {}", ways.len(), steps.join(", "));
    }
    text
}

fn median(mut times: Vec<u64>) -> String {
    times.sort_unstable();
    times.get(times.len() / 2).map_or_else(|| "-".to_owned(), |time| format!("{:.1}", micros(*time)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(hop: Hop, to_helper: bool, first: u64, frames: u64, came_ns: u64, went_ns: u64) -> Event {
        let passed = Passed { to_helper, epoch: 1, first, frames, bytes: 98 * frames, came_ns, went_ns };
        Event { link: 3, hop, kernel: "k".to_owned(), passed }
    }

    #[test]
    fn a_frame_is_found_again_within_the_batches_of_later_hops() {
        let events = [
            event(Hop::Container, true, 1, 1, 1000, 2000),
            event(Hop::Container, true, 2, 1, 3000, 4000),
            // Both came here together.
            event(Hop::Relay, true, 1, 2, 5000, 7000),
            event(Hop::Helper, true, 1, 2, 8000, 11_000),
            event(Hop::Helper, false, 1, 1, 12_000, 12_500),
        ];
        let ways = ways(&events);
        assert_eq!(ways[&(3, true)].iter().map(BTreeMap::len).collect::<Vec<_>>(), [3, 3]);
        assert_eq!(ways[&(3, false)].iter().map(BTreeMap::len).collect::<Vec<_>>(), [1]);
        let text = medians(&events);
        let rows: Vec<&str> = text.lines().map(str::trim_start).collect();
        assert!(rows[1].starts_with("3 to container"), "{text}");
        assert!(rows[2].ends_with("tapfwd 1.0, tapfwd to 3.0, relayd 2.0, relayd to 1.0, agent 3.0"), "{text}");
        let shown = timeline(&events, 2);
        assert!(shown.contains("and 3 more") && shown.lines().count() == 4, "{shown}");
    }

    #[test]
    fn clocks_of_different_kernels_are_not_compared() {
        let mut events = [event(Hop::Container, true, 1, 1, 1000, 2000), event(Hop::Relay, true, 1, 1, 5000, 7000)];
        events[0].kernel = "guest".to_owned();
        assert!(medians(&events).contains("tapfwd 1.0, tapfwd to -, relayd 2.0"), "{}", medians(&events));
    }
}
