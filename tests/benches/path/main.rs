// SPDX-License-Identifier: Apache-2.0
//! `just bench path`: the frame path of each carrier beside its peers, in one run on one machine.
//!
//! `just bench path [--only NAME,NAME] [--rounds N] [--seconds S] [--json FILE] [--png FILE] [--against REV|FILE]`.
//! Every round sets each path up anew and probes it, so that other load meets all of them alike; the table gives medians
//! with their spread, and ratios to the kernel's own bridge. Results are kept as `.cache/bench/path-REV.json`.
#![allow(clippy::print_stdout, reason = "a bench prints")]

mod cost;
mod joiner;
#[path = "../figures/kernel.rs"]
mod kernel;
mod paths;
mod peers;
mod plug;
mod probes;
#[path = "../figures/processes.rs"]
#[allow(dead_code, reason = "the other bench takes the rest")]
mod processes;
mod report;

use std::{
    fs,
    path::{Path as File, PathBuf},
    process::{Command, ExitCode},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{isolation, outside::Outside};
use cost::Meter;
use paths::{KINDS, Kind, Path};
use report::Report;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    if let [word, a, b] = arguments.as_slice()
        && word == "--join"
    {
        let done = a.parse().context("pid").and_then(|a| Ok([a, b.parse().context("pid")?])).and_then(joiner::main);
        return told(done);
    }
    if let [word, pid, socket, octet] = arguments.as_slice()
        && word == "--plug"
    {
        let numbers = pid.parse().context("pid").and_then(|pid| Ok((pid, octet.parse().context("octet")?)));
        return told(numbers.and_then(|(pid, octet)| plug::main(pid, File::new(socket), octet)));
    }
    if isolation::errand().is_none() {
        // Inside there is no way out.
        peers::fetch();
        return match isolation::rerun("path", &arguments) {
            Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
            Err(error) => {
                eprintln!("bench path: private namespaces cannot be made: {error} (run as root)");
                ExitCode::from(77)
            }
        };
    }
    told(Wanted::parse(arguments).and_then(|wanted| measure(&wanted)))
}

fn told(done: anyhow::Result<()>) -> ExitCode {
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench path: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asked for.
struct Wanted {
    only: Option<Vec<String>>,
    rounds: usize,
    seconds: f64,
    json: Option<PathBuf>,
    png: Option<PathBuf>,
    against: Option<String>,
}

impl Wanted {
    fn parse(arguments: Vec<String>) -> anyhow::Result<Self> {
        let mut wanted = Self { only: None, rounds: 3, seconds: 2.0, json: None, png: None, against: None };
        let mut arguments = arguments.into_iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--only" => wanted.only = Some(value()?.split(',').map(str::to_owned).collect()),
                "--rounds" => wanted.rounds = value()?.parse().context("--rounds")?,
                "--seconds" => wanted.seconds = value()?.parse().context("--seconds")?,
                "--json" => wanted.json = Some(value()?.into()),
                "--png" => wanted.png = Some(value()?.into()),
                "--against" => wanted.against = Some(value()?),
                // `cargo bench` says this to every bench.
                "--bench" => {}
                other => bail!(
                    "unknown argument {other}; known: --only NAMES, --rounds N, --seconds S, --json FILE, --png FILE, \
                     --against REV|FILE"
                ),
            }
        }
        let names: Vec<&str> = KINDS.iter().map(|kind| kind.name).collect();
        for name in wanted.only.iter().flatten() {
            ensure!(names.contains(&name.as_str()), "no path is called {name}; there are {}", names.join(", "));
        }
        Ok(wanted)
    }

    fn has(&self, kind: &Kind) -> bool {
        self.only.as_ref().is_none_or(|only| only.iter().any(|name| name == kind.name))
    }
}

fn results() -> PathBuf {
    File::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/bench")
}

/// The tree's revision, with a mark if it was changed since.
fn revision() -> String {
    let git = |arguments: &[&str]| {
        let output = Command::new("git").current_dir(env!("CARGO_MANIFEST_DIR")).args(arguments).output();
        output.ok().filter(|o| o.status.success()).map(|o| String::from_utf8_lossy(&o.stdout).trim().to_owned())
    };
    let revision = git(&["rev-parse", "--short=10", "HEAD"]).unwrap_or_else(|| "unknown".to_owned());
    let changed = git(&["status", "--porcelain", "--untracked-files=no"]).is_some_and(|text| !text.is_empty());
    format!("{revision}{}", if changed { "-changed" } else { "" })
}

/// A result by file, or by the revision it was kept under.
fn earlier(name: &str) -> anyhow::Result<Report> {
    let path = if File::new(name).is_file() { name.into() } else { results().join(format!("path-{name}.json")) };
    let text =
        fs::read(&path).with_context(|| format!("no result at {}: measure that revision first", path.display()))?;
    Ok(serde_json::from_slice(&text)?)
}

fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn measure(wanted: &Wanted) -> anyhow::Result<()> {
    let against = wanted.against.as_deref().map(earlier).transpose()?;
    let began = Instant::now();
    isolation::settle()?;
    let outside = Outside::start()?;
    paths::OUTSIDE.get_or_init(|| outside.pid());
    let mut report = Report::new(revision(), load_average());
    for round in 1..=wanted.rounds {
        for kind in KINDS.iter().filter(|kind| wanted.has(kind)) {
            println!("{:>6.1} s  round {round} of {}: {}", began.elapsed().as_secs_f64(), wanted.rounds, kind.meaning);
            let probed = kind.start().and_then(|path| probe(&path, kind, &mut report, wanted.seconds));
            if let Err(error) = probed {
                println!("         SKIP {}: {error:#}", kind.name);
                report.skip(kind.name, format!("{error:#}"));
            }
        }
    }
    report.load_after = load_average();
    println!("\n{}", report.table());
    if let Some(against) = &against {
        println!("{}", report.compare(against));
    }
    fs::create_dir_all(results())?;
    let kept = results().join(format!("path-{}.json", report.revision));
    let json = wanted.json.clone().unwrap_or_else(|| kept.clone());
    let text = serde_json::to_string_pretty(&report)?;
    fs::write(&json, &text).with_context(|| json.display().to_string())?;
    let png = wanted.png.clone().unwrap_or_else(|| kept.with_extension("png"));
    let script = File::new(env!("CARGO_MANIFEST_DIR")).join("benches/path/plot.py");
    let drawn = Command::new("python3").arg(script).arg(&json).arg(&png).status()?;
    ensure!(drawn.success(), "the picture could not be drawn");
    println!(
        "load average before {}, after {}; {:.0} s",
        report.load_before,
        report.load_after,
        began.elapsed().as_secs_f64()
    );
    println!("kept: {} and {}", json.display(), png.display());
    Ok(())
}

/// All probes of one path, once.
fn probe(path: &Path, kind: &Kind, report: &mut Report, seconds: f64) -> anyhow::Result<()> {
    let (ends, calm) = (&path.ends, Some(Duration::from_millis(10)));
    let mut add = |figure: &str, unit: &str, value: f64| report.add(kind.name, figure, unit, value);
    for (word, latency) in [
        ("UDP RTT at 100/s", probes::udp_round_trips(ends, calm, 200)?),
        ("UDP RTT flat out", probes::udp_round_trips(ends, None, 5000)?),
        ("TCP RTT at 100/s", probes::tcp_round_trips(ends, calm, 200)?),
        ("TCP RTT flat out", probes::tcp_round_trips(ends, None, 5000)?),
    ] {
        add(&format!("{word}, p50"), "ms", latency.p50);
        add(&format!("{word}, p99"), "ms", latency.p99);
        add(&format!("{word}, p99.9"), "ms", latency.p999);
    }
    let time = Duration::from_secs_f64(seconds);
    for (figure, count, back) in [
        ("1 TCP stream there", 1, false),
        ("1 TCP stream back", 1, true),
        ("4 TCP streams there", 4, false),
        ("4 TCP streams back", 4, true),
    ] {
        let meter = Meter::start(&path.processes);
        let (bytes, rate) = probes::streams(ends, count, back, time)?;
        let costs = meter.stop();
        add(figure, "Gbit/s", rate / 1e9);
        if count == 1 && !back && !path.processes.is_empty() {
            #[expect(clippy::cast_precision_loss, reason = "a ratio")]
            let gibibytes = bytes as f64 / f64::from(1 << 30);
            let total: f64 = costs.values().map(|cost| cost.seconds).sum();
            add("CPU per GiB, 1 stream", "s", total / gibibytes);
            for (process, cost) in costs {
                add(&format!("CPU per GiB: {process}"), "s", cost.seconds / gibibytes);
            }
        }
    }
    let (best, overload) = probes::small_packets(ends)?;
    add("UDP 64 B without loss", "kpps", best / 1e3);
    add("UDP 64 B when 4x is offered", "kpps", overload / 1e3);
    let meter = Meter::start(&path.processes);
    let frames = probes::steady(ends, best * 0.8, Duration::from_secs(1))?;
    let costs = meter.stop();
    if !costs.is_empty() {
        let total = |part: fn(&cost::Cost) -> f64| costs.values().map(part).sum::<f64>() / frames;
        add("CPU per million frames", "s", total(|cost| cost.seconds) * 1e6);
        add("context switches per frame", "", total(|cost| cost.switches));
    }
    for (process, cost) in costs {
        add(&format!("CPU per million frames: {process}"), "s", cost.seconds / frames * 1e6);
        add(&format!("context switches per frame: {process}"), "", cost.switches / frames);
    }
    // Last: the processes are others afterwards.
    if path.has_parties() {
        for party in paths::PARTIES {
            let gap = probes::longest_gap(ends, || path.strike(party))?;
            path.recovered()?;
            add(&format!("longest gap when {party} is killed"), "ms", gap);
        }
    }
    Ok(())
}
