// SPDX-License-Identifier: Apache-2.0
//! `just bench`: the figures of a whole engine beside their budgets (DESIGN, "Budgets"), and beside a kernel bridge made
//! in the same run.
//!
//! `just bench [--json FILE] [--only frames|docker|memory|backends] [--rounds N]`. `just bench vmnet` is `backends`
//! alone, and puts what it measured into the table of docs/vmnet.md. Figures are printed, whether met or missed; the
//! exit code says only whether everything could be measured. Absolute budgets are hints of one quiet two-core machine;
//! what the kernel did in the same run says how this one compares.
#![allow(clippy::print_stdout, reason = "a bench prints")]

mod backends;
mod docker;
mod frames;
mod kernel;
mod memory;
mod processes;
mod table;

use std::{fs, path::PathBuf, process::ExitCode, time::Instant};

use anyhow::{Context as _, bail};
use arca_tests::{engine::Engine, isolation, outside::Outside};
use table::{Budget, Row, Unit};

fn main() -> ExitCode {
    if isolation::errand().is_none() {
        let arguments: Vec<String> = std::env::args().skip(1).collect();
        return match isolation::rerun("bench", &arguments) {
            Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
            Err(error) => {
                eprintln!("bench: private namespaces cannot be made: {error} (run as root)");
                ExitCode::from(77)
            }
        };
    }
    match measure() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What the command line asked for.
struct Wanted {
    json: Option<PathBuf>,
    only: Option<String>,
    rounds: usize,
    write: bool,
}

impl Wanted {
    fn parse() -> anyhow::Result<Self> {
        let mut wanted = Self { json: None, only: None, rounds: 3, write: false };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().with_context(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--json" => wanted.json = Some(value()?.into()),
                "--only" => wanted.only = Some(value()?),
                "vmnet" => (wanted.only, wanted.write) = (Some("backends".into()), true),
                "--rounds" => wanted.rounds = value()?.parse().context("--rounds")?,
                // `cargo bench` says this to every bench.
                "--bench" => {}
                other => bail!(
                    "unknown argument {other}; known: --json FILE, --only frames|docker|memory|backends, --rounds N, or vmnet"
                ),
            }
        }
        Ok(wanted)
    }

    fn part(&self, name: &str) -> bool {
        self.only.as_deref().is_none_or(|only| only == name)
    }
}

fn measure() -> anyhow::Result<()> {
    let wanted = Wanted::parse()?;
    let began = Instant::now();
    isolation::settle()?;
    let _outside = Outside::start()?;
    let load = load_average();
    let mut report = Report { began, rows: Vec::new() };

    if wanted.part("docker") {
        docker::boots(&mut report, wanted.rounds)?;
    }
    report.progress("an engine for everything else");
    let engine = Engine::start()?;
    engine.load_image()?;
    if wanted.part("frames") {
        frames::measure(&engine, &mut report, wanted.rounds)?;
    }
    if wanted.part("backends") {
        backends::measure(&engine, &mut report, wanted.rounds, wanted.write)?;
    }
    if wanted.part("docker") {
        docker::measure(&engine, &mut report)?;
    }
    if wanted.part("docker") || wanted.part("memory") {
        let crowd = docker::Crowd::gather(&engine, &mut report)?;
        if wanted.part("docker") {
            crowd.connects(&mut report)?;
        }
        if wanted.part("memory") {
            memory::measure(&mut report);
        }
    }
    engine.stop()?;

    let load_after = load_average();
    println!("\n{}", table::render(&report.rows));
    println!("load average before {load}, after {load_after}; {:.0} s", began.elapsed().as_secs_f64());
    if let Some(path) = wanted.json {
        let figures: Vec<_> = report.rows.iter().map(Row::to_json).collect();
        let whole = serde_json::json!({ "loadBefore": load, "loadAfter": load_after, "figures": figures });
        fs::write(&path, serde_json::to_string_pretty(&whole)?).with_context(|| path.display().to_string())?;
    }
    Ok(())
}

/// One, five and fifteen minutes.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

/// What is measured so far.
struct Report {
    began: Instant,
    rows: Vec<Row>,
}

impl Report {
    /// Says what is being measured now.
    fn progress(&self, what: &str) {
        println!("{:>6.1} s  {what}", self.began.elapsed().as_secs_f64());
    }

    fn add(
        &mut self,
        figure: impl Into<String>,
        unit: Unit,
        samples: Vec<f64>,
        budget: Budget,
        peer: Option<(&'static str, Vec<f64>)>,
    ) {
        self.rows.push(Row { figure: figure.into(), unit, samples, budget, peer });
    }
}
