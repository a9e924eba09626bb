// SPDX-License-Identifier: Apache-2.0
//! Random sequences of what users do, against a pure model of what must come of it: which container is on which network,
//! whether it runs, which network its default route takes. After every few steps docker, arca-netd, the relay, the
//! northbound database, the bridge and the containers themselves are asked ([`arca_tests::audit`]).
//!
//! The sequence follows from a seed, which a failure names; `./dev model SEED STEPS` walks another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    audit::{Seen, agreement},
    engine::Engine,
    http::Docker,
    isolation, story,
};
use rand::{Rng as _, SeedableRng as _, rngs::SmallRng, seq::IndexedRandom as _};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[("random_sequences_end_where_the_model_ends", walk)];

const SETTLES: Duration = Duration::from_secs(20);
/// Steps between two comparisons.
const STRIDE: usize = 6;
const NETWORKS: [&str; 5] = ["alpha", "beta", "delta", "gamma", "omega"];
const CONTAINERS: usize = 5;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Status {
    Stopped,
    Running,
    Paused,
}

#[derive(Clone, Debug)]
struct Container {
    id: String,
    name: String,
    status: Status,
    networks: BTreeSet<&'static str>,
}

#[derive(Debug, Default)]
struct Model {
    /// Whether it is internal.
    networks: BTreeMap<&'static str, bool>,
    containers: BTreeMap<usize, Container>,
    names: usize,
}

#[derive(Clone, Debug)]
enum Op {
    CreateNetwork(&'static str, bool),
    RemoveNetwork(&'static str),
    Create(usize, &'static str),
    Start(usize),
    Stop(usize),
    Restart(usize),
    Pause(usize),
    Unpause(usize),
    Remove(usize),
    Rename(usize),
    Connect(usize, &'static str, Option<u8>),
    Disconnect(usize, &'static str),
    Kill(&'static str),
}

fn draw(random: &mut SmallRng) -> Op {
    let n = random.random_range(0..CONTAINERS);
    let network = NETWORKS.choose(random).copied().unwrap_or(NETWORKS[0]);
    match random.random_range(0..40) {
        0..=4 => Op::CreateNetwork(network, random.random_ratio(1, 4)),
        5..=6 => Op::RemoveNetwork(network),
        7..=11 => Op::Create(n, network),
        12..=17 => Op::Start(n),
        18..=19 => Op::Stop(n),
        20 => Op::Restart(n),
        21..=22 => Op::Pause(n),
        23..=24 => Op::Unpause(n),
        25 => Op::Remove(n),
        26 => Op::Rename(n),
        27..=33 => Op::Connect(n, network, random.random_ratio(1, 3).then(|| random.random_range(50..60))),
        34..=38 => Op::Disconnect(n, network),
        _ => Op::Kill(["arca-api", "arca-netd", "arca-relayd"].choose(random).copied().unwrap_or("arca-netd")),
    }
}

fn subnet(network: &str) -> usize {
    NETWORKS.iter().position(|name| *name == network).unwrap_or(0)
}

impl Model {
    /// `None`: what Docker answers is no matter of this model, the step is left out.
    fn allows(&self, op: &Op) -> Option<bool> {
        let container = |n: &usize| self.containers.get(n);
        let status = |n: &usize| container(n).map(|c| c.status);
        let there = |network: &str| self.networks.contains_key(network);
        Some(match op {
            Op::CreateNetwork(name, _) => !there(name),
            Op::RemoveNetwork(name) => {
                let users = || self.containers.values().filter(|c| c.networks.contains(name));
                if users().any(|c| c.status == Status::Stopped) {
                    return None;
                }
                there(name) && users().next().is_none()
            }
            Op::Create(n, network) if container(n).is_none() => return there(network).then_some(true),
            Op::Create(..) => return None,
            Op::Start(n) => match status(n)? {
                Status::Paused => false,
                Status::Stopped | Status::Running => true,
            },
            Op::Stop(n) | Op::Restart(n) if status(n)? == Status::Paused => return None,
            Op::Stop(n) | Op::Restart(n) | Op::Remove(n) | Op::Rename(n) => status(n).map(|_| true)?,
            Op::Pause(n) => status(n)? == Status::Running,
            Op::Unpause(n) => status(n)? == Status::Paused,
            Op::Connect(n, network, host) => {
                let container = container(n)?;
                // A stopped container's wishes are stored as they are.
                if container.status == Status::Stopped && (container.networks.contains(network) || !there(network)) {
                    return None;
                }
                if host.is_some() && there(network) {
                    // Two may wish for the same address: Docker tells at the later start.
                    let others = self.containers.values().filter(|c| c.networks.contains(network)).count();
                    if others > 0 || container.status == Status::Stopped {
                        return None;
                    }
                }
                there(network) && !container.networks.contains(network)
            }
            Op::Disconnect(n, network) => container(n)?.networks.contains(network),
            Op::Kill(_) => true,
        })
    }

    fn call(&self, op: &Op) -> (&'static str, String, Value) {
        let id = |n: &usize| self.containers.get(n).map(|c| c.id.clone()).unwrap_or_default();
        let verb = |n: &usize, verb: &str| ("POST", format!("/containers/{}/{verb}", id(n)), Value::Null);
        match op {
            Op::CreateNetwork(name, internal) => {
                let ipam = json!({"Config": [{"Subnet": format!("10.61.{}.0/24", subnet(name))}]});
                ("POST", "/networks/create".into(), json!({"Name": name, "Internal": internal, "IPAM": ipam}))
            }
            Op::RemoveNetwork(name) => ("DELETE", format!("/networks/{name}"), Value::Null),
            Op::Create(_, network) => {
                let config = json!({
                    "Image": "busybox", "Cmd": ["sleep", "100000"], "StopSignal": "SIGKILL",
                    "HostConfig": {"NetworkMode": network},
                });
                ("POST", format!("/containers/create?name=m{}", self.names), config)
            }
            Op::Start(n) => verb(n, "start"),
            Op::Stop(n) => verb(n, "stop?t=0"),
            Op::Restart(n) => verb(n, "restart?t=0"),
            Op::Pause(n) => verb(n, "pause"),
            Op::Unpause(n) => verb(n, "unpause"),
            Op::Remove(n) => ("DELETE", format!("/containers/{}?force=1", id(n)), Value::Null),
            Op::Rename(n) => verb(n, &format!("rename?name=m{}", self.names)),
            Op::Connect(n, network, host) => {
                let address = host.map(|host| format!("10.61.{}.{host}", subnet(network)));
                let endpoint = json!({"IPAMConfig": {"IPv4Address": address}, "Aliases": [format!("alias{n}")]});
                let body = json!({"Container": id(n), "EndpointConfig": endpoint});
                ("POST", format!("/networks/{network}/connect"), body)
            }
            Op::Disconnect(n, network) => {
                ("POST", format!("/networks/{network}/disconnect"), json!({"Container": id(n)}))
            }
            Op::Kill(_) => ("GET", "/_ping".into(), Value::Null),
        }
    }

    fn apply(&mut self, op: &Op, answer: &Value) {
        let mut set = |n: &usize, status| {
            if let Some(container) = self.containers.get_mut(n) {
                container.status = status;
            }
        };
        match op {
            Op::CreateNetwork(name, internal) => drop(self.networks.insert(name, *internal)),
            Op::RemoveNetwork(name) => drop(self.networks.remove(name)),
            Op::Create(n, network) => {
                let id = answer["Id"].as_str().unwrap_or_default().to_owned();
                let name = format!("m{}", self.names);
                let networks = BTreeSet::from([*network]);
                self.containers.insert(*n, Container { id, name, status: Status::Stopped, networks });
            }
            Op::Start(n) | Op::Restart(n) | Op::Unpause(n) => set(n, Status::Running),
            Op::Stop(n) => set(n, Status::Stopped),
            Op::Pause(n) => set(n, Status::Paused),
            Op::Remove(n) => drop(self.containers.remove(n)),
            Op::Rename(n) => {
                if let Some(container) = self.containers.get_mut(n) {
                    container.name = format!("m{}", self.names);
                }
            }
            Op::Connect(n, network, _) => drop(self.containers.get_mut(n).map(|c| c.networks.insert(network))),
            Op::Disconnect(n, network) => drop(self.containers.get_mut(n).map(|c| c.networks.remove(network))),
            Op::Kill(_) => {}
        }
        self.names += 1;
    }

    fn compare(&self, engine: &Engine, docker: &Docker) -> anyhow::Result<()> {
        let seen = agreement(engine, SETTLES)?;
        let running = || self.containers.values().filter(|c| c.status != Status::Stopped);
        let wanted: BTreeSet<(&str, &str)> =
            running().flat_map(|c| c.networks.iter().map(|network| (c.id.as_str(), *network))).collect();
        let found: BTreeSet<(&str, &str)> = seen.iter().map(|s| (s.container.as_str(), s.network.as_str())).collect();
        ensure!(wanted == found, "attachments: the model has {wanted:?}, everybody else {found:?}");
        let networks = docker.get("/networks")?;
        let names = networks.as_array().into_iter().flatten().filter_map(|network| network["Name"].as_str());
        let names: BTreeSet<&str> = names.filter(|name| !matches!(*name, "bridge" | "host" | "none")).collect();
        ensure!(names == self.networks.keys().copied().collect(), "networks: {names:?}");
        for container in self.containers.values() {
            let inspect = docker.get(&format!("/containers/{}/json", container.id))?;
            let state = &inspect["State"];
            let (runs, paused) = (container.status != Status::Stopped, container.status == Status::Paused);
            ensure!(state["Running"] == runs && state["Paused"] == paused, "{container:?}: {state}");
            ensure!(inspect["Name"] == format!("/{}", container.name), "{container:?}: {}", inspect["Name"]);
            if runs {
                let pid = state["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
                self.default_route(container, pid, &seen)?;
            }
        }
        Ok(())
    }

    /// The first network by name that leads out carries it.
    fn default_route(&self, container: &Container, pid: u32, seen: &[Seen]) -> anyhow::Result<()> {
        let leads_out = |network: &&&'static str| self.networks.get(**network) == Some(&false);
        let wanted = container.networks.iter().find(leads_out);
        let ip = |arguments: &[&str]| -> anyhow::Result<Vec<Value>> {
            let mut command = std::process::Command::new("ip");
            isolation::join_network(command.arg("-json").args(arguments), pid)?;
            let output = command.output()?.stdout;
            Ok(if output.is_empty() { Vec::new() } else { serde_json::from_slice(&output)? })
        };
        let routes = ip(&["route", "show", "default"])?;
        let device = routes.first().and_then(|route| route["dev"].as_str());
        let links = ip(&["link"])?;
        let mac = links.iter().find(|link| link["ifname"].as_str() == device && device.is_some());
        let mac = mac.and_then(|link| link["address"].as_str());
        let found = seen.iter().find(|s| s.container == container.id && Some(s.mac.as_str()) == mac);
        let found = found.map(|s| s.network.as_str());
        ensure!(wanted.copied() == found, "{container:?}: its default route takes {found:?}, not {wanted:?}");
        Ok(())
    }
}

fn chosen(name: &str, default: u64) -> u64 {
    env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

fn walk() -> anyhow::Result<()> {
    let (seed, steps) = (chosen("ARCA_MODEL_SEED", 7), chosen("ARCA_MODEL_STEPS", 90));
    let engine = Engine::start()?;
    engine.load_image()?;
    let docker = Docker::of(&engine);
    let mut random = SmallRng::seed_from_u64(seed);
    let mut model = Model::default();
    let mut told: Vec<String> = Vec::new();
    let mut compared = 0;
    while (told.len() as u64) < steps {
        let op = draw(&mut random);
        let Some(allowed) = model.allows(&op) else { continue };
        let outcome = step(&engine, &docker, &mut model, &op, allowed);
        told.push(format!("{op:?} {}", if allowed { "" } else { "(refused)" }));
        let checked = outcome.and_then(|()| {
            if told.len() < compared + STRIDE && !matches!(op, Op::Kill(_)) {
                return Ok(());
            }
            compared = told.len();
            model.compare(&engine, &docker)
        });
        if let Err(error) = checked {
            let last = told[told.len().saturating_sub(25)..].join("\n");
            bail!("seed {seed}, step {}: {error:#}\nlast steps:\n{last}", told.len());
        }
    }
    model.compare(&engine, &docker).with_context(|| format!("seed {seed}, at the end"))?;
    engine.stop()
}

fn step(engine: &Engine, docker: &Docker, model: &mut Model, op: &Op, allowed: bool) -> anyhow::Result<()> {
    if let Op::Kill(daemon) = op {
        engine.kill_daemon(daemon)?;
        return story::wait_until_up(engine);
    }
    let (method, path, body) = model.call(op);
    let answer = docker.call(method, &path, &body)?;
    let succeeded = answer.status < 400;
    ensure!(succeeded == allowed, "{op:?} should be {allowed}: {} {}", answer.status, answer.message());
    if succeeded {
        model.apply(op, &answer.body);
    }
    Ok(())
}
