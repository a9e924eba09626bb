// SPDX-License-Identifier: Apache-2.0
//! `just bench scale`: what an attachment costs when there are many, and what a hundred containers at once cost.
//!
//! Everything is a whole engine over its socket; what the docker CLI takes is not in it. Fifty networks; the endpoints are
//! real interfaces with real links and addresses, but they sit in few containers (each connected to many networks),
//! because a thousand containers would measure this machine's memory. The batch of a hundred is a hundred containers.
//!
//! `--containers N` (default 20; endpoints go up to N times 50), `--batch N` (default 100). Budget: at 500 endpoints the
//! median attach takes at most twice what it takes at 10, and there at most 80 ms.
#![allow(clippy::print_stdout, reason = "a bench prints")]

use std::{
    collections::BTreeMap,
    env, fs,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use arca_tests::{
    audit::{agreement, at_once},
    engine::Engine,
    http::Docker,
    isolation,
};
use serde_json::{Value, json};

const NETWORKS: usize = 50;
/// Endpoints at which an attach is measured.
const MARKS: [usize; 4] = [10, 100, 500, 1000];
/// Attaches measured at each mark.
const SAMPLES: usize = 20;
/// Attaches under way at a time while endpoints are gathered.
const AT_ONCE: usize = 8;

fn main() -> ExitCode {
    let arguments: Vec<String> = env::args().skip(1).collect();
    if isolation::errand().is_none() {
        return match isolation::rerun("scale", &arguments) {
            Ok(status) => ExitCode::from(u8::try_from(status.code().unwrap_or(1)).unwrap_or(1)),
            Err(error) => {
                eprintln!("scale: private namespaces cannot be made: {error} (run as root)");
                ExitCode::from(77)
            }
        };
    }
    match measure(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("scale: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn number(arguments: &[String], name: &str, default: usize) -> anyhow::Result<usize> {
    match arguments.iter().position(|argument| argument == name) {
        None => Ok(default),
        Some(at) => arguments.get(at + 1).and_then(|text| text.parse().ok()).with_context(|| format!("{name} N")),
    }
}

struct Bench {
    engine: Engine,
    docker: Docker,
    began: Instant,
}

fn measure(arguments: &[String]) -> anyhow::Result<()> {
    let (containers, batch) = (number(arguments, "--containers", 20)?, number(arguments, "--batch", 100)?);
    isolation::settle()?;
    let engine = Engine::start()?;
    engine.load_image()?;
    let docker = Docker::of(&engine);
    let bench = Bench { engine, docker, began: Instant::now() };
    let networks: Vec<String> = (0..NETWORKS).map(|n| format!("n{n:02}")).collect();
    let mut times = Vec::new();
    for (n, name) in networks.iter().enumerate() {
        let ipam = json!({"Config": [{"Subnet": format!("10.60.{n}.0/24")}]});
        let made = Instant::now();
        bench.docker.post("/networks/create", &json!({"Name": name, "IPAM": ipam}))?;
        times.push(made.elapsed());
    }
    bench.say(&format!("network create, 50 one after the other: {}", spread(times)));
    bench.attaches(&networks, containers)?;
    bench.batch(&networks, batch)?;
    bench.engine.stop()
}

impl Bench {
    fn say(&self, text: &str) {
        println!("{:>7.1} s  {text}", self.began.elapsed().as_secs_f64());
    }

    /// Transactions that the northbound database has committed so far, those of ovn-northd among them: its file is a log
    /// with one record for each.
    fn transactions(&self) -> anyhow::Result<usize> {
        let mut newest = (None, 0);
        for file in files(&self.engine.home().join("data/helper"))? {
            let text = fs::read(&file)?;
            let records = text.split(|byte| *byte == b'\n').filter(|line| line.starts_with(b"OVSDB ")).count();
            if file.extension().is_some_and(|name| name == "db") && records > newest.1 {
                newest = (Some(file), records);
            }
        }
        Ok(newest.1)
    }

    fn connect(&self, network: &str, container: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.docker.post(&format!("/networks/{network}/connect"), &json!({"Container": container}))?;
        Ok(began.elapsed())
    }

    fn disconnect(&self, network: &str, container: &str) -> anyhow::Result<Duration> {
        let began = Instant::now();
        self.docker.post(&format!("/networks/{network}/disconnect"), &json!({"Container": container}))?;
        Ok(began.elapsed())
    }

    fn attaches(&self, networks: &[String], containers: usize) -> anyhow::Result<()> {
        self.docker.sleeper("probe", "bridge")?;
        let names: Vec<String> = (0..containers).map(|n| format!("c{n}")).collect();
        for name in &names {
            self.docker.sleeper(name, "none")?;
            self.docker.post("/networks/none/disconnect", &json!({"Container": name}))?;
        }
        let pairs: Vec<(&String, &String)> =
            networks.iter().flat_map(|network| names.iter().map(move |name| (network, name))).collect();
        let mut there = 0;
        for mark in MARKS.into_iter().filter(|mark| *mark <= pairs.len()) {
            let (before, began) = (self.transactions()?, Instant::now());
            for group in pairs[there..mark].chunks(AT_ONCE) {
                at_once(group, |(network, name)| self.connect(network, name))
                    .into_iter()
                    .collect::<anyhow::Result<Vec<_>>>()?;
            }
            let (gathered, took) = (mark - there, began.elapsed());
            there = mark;
            self.say(&format!(
                "{mark} endpoints there: the last {gathered}, {AT_ONCE} at a time, took {:.1} ms each; {} NB transactions",
                took.as_secs_f64() * 1e3 / gathered as f64,
                self.transactions()?.saturating_sub(before),
            ));
            let (mut connects, mut disconnects) = (Vec::new(), Vec::new());
            let before = processor();
            for _ in 0..SAMPLES {
                connects.push(self.connect("n25", "probe")?);
                disconnects.push(self.disconnect("n25", "probe")?);
            }
            self.say(&format!(
                "{mark} endpoints there: connect {}; disconnect {}",
                spread(connects),
                spread(disconnects)
            ));
            let mut spent: Vec<(f64, String)> = processor()
                .into_iter()
                .map(|(name, after)| ((after - before.get(&name).unwrap_or(&0.0)) / SAMPLES as f64, name))
                .collect();
            spent.sort_by(|a, b| b.0.total_cmp(&a.0));
            let spent = spent.iter().take(9).map(|(ms, name)| format!("{name} {ms:.1}")).collect::<Vec<_>>().join(", ");
            self.say(&format!("processor time of a connect and its disconnect, ms: {spent}"));
        }
        let began = Instant::now();
        at_once(&names, |name| self.docker.call("DELETE", &format!("/containers/{name}?force=1"), &Value::Null)?.ok())
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?;
        let took = began.elapsed();
        self.say(&format!("{there} endpoints in {containers} containers removed at once: {:.2} s", took.as_secs_f64()));
        if agreement(&self.engine, Duration::from_secs(20))?.len() != 1 {
            bail!("endpoints stay");
        }
        Ok(())
    }

    fn batch(&self, networks: &[String], count: usize) -> anyhow::Result<()> {
        let numbers: Vec<usize> = (0..count).collect();
        let before = self.transactions()?;
        let began = Instant::now();
        let started = at_once(&numbers, |n| self.docker.sleeper(&format!("b{n}"), &networks[n % networks.len()]));
        let ids = started.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let took = began.elapsed();
        self.say(&format!(
            "{count} containers on {} networks at once: {:.2} s; {} NB transactions",
            networks.len(),
            took.as_secs_f64(),
            self.transactions()?.saturating_sub(before)
        ));
        let seen = agreement(&self.engine, Duration::from_secs(30))?.len();
        if seen != count + 1 {
            bail!("{seen} endpoints");
        }
        let began = Instant::now();
        at_once(&ids, |id| self.docker.call("DELETE", &format!("/containers/{id}?force=1"), &Value::Null)?.ok())
            .into_iter()
            .collect::<anyhow::Result<Vec<_>>>()?;
        self.say(&format!("removed at once: {:.2} s", began.elapsed().as_secs_f64()));
        Ok(())
    }
}

/// Milliseconds of processor time that every process has taken so far, by name: another load on the machine stretches
/// times and leaves these as they are.
fn processor() -> BTreeMap<String, f64> {
    let mut all = BTreeMap::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Ok(stat) = fs::read_to_string(entry.path().join("stat")) else { continue };
        let Some((head, rest)) = stat.rsplit_once(')') else { continue };
        let Some((_, name)) = head.split_once('(') else { continue };
        // proc(5): utime and stime are fields 14 and 15, in ticks of 10 ms; the name is field 2.
        let ticks = rest.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum::<f64>();
        *all.entry(name.to_owned()).or_insert(0.0) += ticks * 10.0;
    }
    all
}

fn files(folder: &std::path::Path) -> anyhow::Result<Vec<std::path::PathBuf>> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder)?.flatten() {
        let kind = entry.file_type()?;
        if kind.is_file() {
            all.push(entry.path());
        } else if kind.is_dir() && entry.file_name() != "mount" {
            all.extend(files(&entry.path())?);
        }
    }
    Ok(all)
}

fn spread(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    let at = |index: usize| times.get(index.min(times.len().saturating_sub(1))).map_or(0.0, |t| t.as_secs_f64() * 1e3);
    format!("p50 {:.1} ms, p95 {:.1} ms", at(times.len() / 2), at(times.len() * 95 / 100))
}
