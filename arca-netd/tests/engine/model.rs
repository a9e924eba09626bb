// SPDX-License-Identifier: Apache-2.0
//! Random sequences against a pure model: thousands of steps over the fakes, peers failing at any moment, this process
//! dying between any two. After each step the store, the helper's rows, the links, the interfaces, the default routes
//! and the host's ports are what the model says, and nothing else is anywhere.
//!
//! `ARCA_MODEL_SEED` and `ARCA_MODEL_STEPS` choose another sequence and another length.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write as _,
};

use arca_netd::{
    error::{Error, Result},
    model::{Phase, Protocol, Publication, Spec},
    publish::Binding,
    validate::endpoint::Wanted,
};

use crate::fakes::{World, eventually, eventually_ok, wanted, workload};

/// Containers, each in a machine of its own.
const WORKLOADS: u8 = 6;
/// Networks that may exist; the last is so small that it is soon full.
const NETWORKS: [&str; 5] = ["alpha", "beta", "gamma", "delta", "tiny"];
/// Steps of an attach that the fakes can break.
const STEPS: [&str; 6] = ["rows", "taken", "interface", "link", "confirm", "default route"];

/// A small generator whose sequence is the same everywhere (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % bound as u64).unwrap()
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }
}

#[derive(Clone, Debug)]
enum Op {
    Create(&'static str, bool),
    Remove(&'static str),
    Attach(u8, &'static str, Option<u8>),
    Detach(u8, &'static str),
    DetachAll(u8),
    Rename(u8, usize),
    Publish(u8, u16),
}

impl Op {
    /// Whose attachments and ports it may change.
    fn workload(&self) -> Option<u8> {
        match self {
            Self::Attach(n, ..) | Self::Detach(n, _) | Self::DetachAll(n) | Self::Publish(n, _) => Some(*n),
            Self::Create(..) | Self::Remove(_) | Self::Rename(..) => None,
        }
    }
}

/// Something goes wrong during the next operation.
#[derive(Clone, Copy, Debug)]
enum Fault {
    None,
    /// A step of an attach fails.
    Step(&'static str),
    /// The next calls of one peer are answered with UNAVAILABLE.
    Hiccup(usize, u32),
}

#[derive(Clone, Debug, Default, PartialEq)]
struct Model {
    /// Name, and whether it is internal.
    networks: BTreeMap<&'static str, bool>,
    /// Attachments with the address that was asked for.
    attached: BTreeMap<(u8, &'static str), Option<u8>>,
    names: BTreeMap<u8, String>,
    published: BTreeMap<u8, u16>,
}

fn subnet(network: &str) -> String {
    match network {
        "tiny" => "10.9.9.0/29".to_owned(),
        _ => format!("10.9.{}.0/24", NETWORKS.iter().position(|name| *name == network).unwrap()),
    }
}

fn address(network: &str, host: u8) -> String {
    let (base, _) = subnet(network).split_once(".0/").map(|(a, b)| (a.to_owned(), b.to_owned())).unwrap();
    format!("{base}.{host}")
}

impl Model {
    fn of_workload(&self, n: u8) -> impl Iterator<Item = &'static str> {
        self.attached.keys().filter(move |(workload, _)| *workload == n).map(|(_, network)| *network)
    }

    /// The network that carries the default route and the published ports: the first by name that leads out.
    fn default_route(&self, n: u8) -> Option<&'static str> {
        self.of_workload(n).filter(|network| self.networks.get(network).is_some_and(|internal| !internal)).min()
    }

    /// Ports are given back with the last way out. Nothing brings them back by itself: whoever attaches publishes again.
    fn give_back(&mut self, n: u8) {
        if self.default_route(n).is_none() {
            self.published.remove(&n);
        }
    }

    /// What the operation must answer when nothing goes wrong; `None` where it depends on what OVN gives.
    fn refusal(&self, op: &Op) -> Option<&'static str> {
        match op {
            Op::Create(name, _) if self.networks.contains_key(name) => Some("already exists"),
            Op::Remove(name) | Op::Attach(_, name, _) | Op::Detach(_, name) if !self.networks.contains_key(name) => {
                Some("not found")
            }
            Op::Remove(name) if self.attached.keys().any(|(_, network)| network == name) => {
                Some("has active endpoints")
            }
            Op::Attach(n, name, _) if self.attached.contains_key(&(*n, *name)) => Some("already exists in network"),
            Op::Detach(n, name) if !self.attached.contains_key(&(*n, *name)) => Some("is not connected to"),
            Op::Publish(n, port) => {
                let others = self.published.iter().any(|(other, held)| other != n && held == port);
                match self.of_workload(*n).next() {
                    None => Some("is attached to no network"),
                    Some(_) if others && self.default_route(*n).is_some() => Some("port is already allocated"),
                    Some(_) => None,
                }
            }
            _ => None,
        }
    }

    /// What has happened.
    fn apply(&mut self, op: &Op) {
        match op {
            Op::Create(name, internal) => drop(self.networks.insert(name, *internal)),
            Op::Remove(name) => drop(self.networks.remove(name)),
            Op::Attach(n, name, host) => drop(self.attached.insert((*n, name), *host)),
            Op::Detach(n, name) => drop(self.attached.remove(&(*n, *name))),
            Op::DetachAll(n) => self.attached.retain(|(workload, _), _| workload != n),
            Op::Rename(n, name) => drop(self.names.insert(*n, format!("name{name}"))),
            Op::Publish(n, port) => drop(self.published.insert(*n, *port)),
        }
        if let Some(n) = op.workload() {
            self.give_back(n);
        }
    }

    /// A failed publish has given the ports of before back.
    fn apply_failure(&mut self, op: &Op) {
        if let Op::Publish(n, _) = op {
            self.published.remove(n);
        }
    }
}

fn draw(random: &mut Random) -> Op {
    let n = u8::try_from(random.below(WORKLOADS.into())).unwrap() + 1;
    let network = random.pick(&NETWORKS);
    match random.below(20) {
        0..=3 => Op::Create(network, random.below(4) == 0),
        4 | 5 => Op::Remove(network),
        6..=12 => {
            let host = (random.below(4) == 0).then(|| random.pick(&[2, 3, 5]));
            Op::Attach(n, network, host)
        }
        13..=15 => Op::Detach(n, network),
        16 => Op::DetachAll(n),
        17 => Op::Rename(n, random.below(5)),
        _ => Op::Publish(n, random.pick(&[8001, 8002, 8003])),
    }
}

async fn run(
    world: &World,
    machines: &[arca_proto::dial::Address],
    names: &BTreeMap<u8, String>,
    op: &Op,
) -> Result<()> {
    let engine = world.engine();
    match op.clone() {
        Op::Create(name, internal) => {
            let pool = arca_netd::model::ShownPool { subnet: subnet(name), ..Default::default() };
            let spec = Spec { name: name.into(), internal, ipam_pools: vec![pool], ..Spec::default() };
            engine.create_network(spec).await.map(drop)
        }
        Op::Remove(name) => engine.remove_network(name.into()).await.map(drop),
        Op::Attach(n, name, host) => {
            let ipv4 = host.map(|host| address(name, host)).unwrap_or_default();
            let workload_name = names.get(&n).cloned().unwrap_or_else(|| format!("c{n}"));
            let wanted = Wanted { ipv4, workload_name, ..wanted(name, n, &machines[usize::from(n) - 1]) };
            engine.attach(wanted).await.map(drop)
        }
        Op::Detach(n, name) => engine.detach(name.into(), workload(n)).await.map(drop),
        Op::DetachAll(n) => engine.detach_workload(workload(n)).await.map(drop),
        Op::Rename(n, name) => engine.set_names(workload(n), format!("name{name}")).await,
        Op::Publish(n, port) => {
            let host_ip = Some("0.0.0.0".parse().unwrap());
            let host_ports = Some((port, port));
            let binding = Binding { protocol: Protocol::Tcp, container_port: 80, host_ip, host_ports };
            engine.publish(workload(n), vec![binding]).await.map(drop)
        }
    }
}

/// Everything that differs from the model, "" if nothing does.
fn difference(world: &World, model: &Model) -> String {
    let state = world.engine().state();
    let mut text = String::new();
    let mut check = |what: &str, holds: bool, seen: &dyn std::fmt::Debug| {
        if !holds {
            let _ = writeln!(text, "{what}: {seen:?}");
        }
    };
    let names: BTreeMap<_, _> = state.networks.values().map(|network| (&network.id, network.name())).collect();
    let networks: BTreeSet<&str> = state.networks.values().filter(|n| !n.predefined).map(|n| n.name()).collect();
    check("networks", networks == model.networks.keys().copied().collect(), &networks);
    // The default bridge has rows as well.
    check("rows of networks", world.agent.networks() == model.networks.len() + 1, &world.agent.networks());

    let mut left: BTreeSet<_> = model.attached.keys().copied().collect();
    let mut addresses = BTreeSet::new();
    for endpoint in state.endpoints.values() {
        let n = (1..=WORKLOADS).find(|n| workload(*n) == endpoint.workload).unwrap();
        let network = NETWORKS.into_iter().find(|name| names.get(&endpoint.network) == Some(name));
        let key = network.map(|network| (n, network));
        check("an endpoint nobody asked for", key.is_some_and(|key| left.remove(&key)), endpoint);
        check("an endpoint half made", endpoint.phase == Phase::Active, endpoint);
        let held = world.agent.address(endpoint.id.as_str());
        check("an address", held.is_some() && held == endpoint.address_v4, &(held, endpoint));
        check("an address given twice", addresses.insert(held), &held);
        let fixed =
            key.and_then(|key| model.attached.get(&key).copied().flatten()).map(|host| address(key.unwrap().1, host));
        check("a fixed address", fixed.is_none_or(|fixed| held.is_some_and(|h| h.addr().to_string() == fixed)), &held);
    }
    check("endpoints that are missing", left.is_empty(), &left);
    check("rows of endpoints", world.agent.endpoints() == model.attached.len(), &world.agent.endpoints());
    let links: Vec<u32> = state.endpoints.values().filter_map(|e| e.link()).map(|link| link.get()).collect();
    let (links, distinct) = (links.len(), links.into_iter().collect::<BTreeSet<_>>());
    check("a link given twice", links == distinct.len(), &distinct);
    check("links", world.relay.links() == distinct.iter().copied().collect::<Vec<_>>(), &world.relay.links());

    for n in 1..=WORKLOADS {
        let own = || state.endpoints.values().filter(move |e| e.workload == workload(n));
        let link_on = |network: &str| {
            own().find(|e| names.get(&e.network) == Some(&network)).and_then(|e| e.link()).map_or(0, |link| link.get())
        };
        let wanted: BTreeSet<u32> = own().filter_map(|e| e.link()).map(|link| link.get()).collect();
        let interfaces: BTreeSet<u32> = world.taps[&n].interfaces().iter().map(|interface| interface.link).collect();
        check("interfaces", interfaces == wanted, &(n, &interfaces, &wanted));
        if !wanted.is_empty() {
            let route = model.default_route(n).map_or(0, link_on);
            check("default route", world.taps[&n].configured().0 == route, &(n, world.taps[&n].configured(), route));
        }
        let name = model.names.get(&n).cloned().unwrap_or_else(|| format!("c{n}"));
        for endpoint in own() {
            check("a name", world.agent.endpoint(endpoint.id.as_str()).names[0] == name, &(n, &endpoint.workload_name));
        }
    }
    let listeners: Vec<u32> = world.relay.listeners().into_iter().map(|(_, port)| port).collect();
    let mut published: Vec<u32> = model.published.values().map(|port| u32::from(*port)).collect();
    published.sort_unstable();
    check("host ports", listeners == published, &(listeners.clone(), &published));
    let active = state.publications.values().all(|p| p.active) && state.publications.len() == published.len();
    check("stored ports", active, &state.publications);
    let rows = world.agent.ports();
    check("rows of ports", rows.len() == published.len(), &(&rows, &published));
    for publication in state.publications.values() {
        // It leads to the endpoint that carries the default route.
        let n = (1..=WORKLOADS).find(|n| workload(*n) == publication.workload).unwrap();
        let network = state.networks.values().find(|network| Some(network.name()) == model.default_route(n));
        let target = network.and_then(|network| state.endpoint_on(&network.id, &publication.workload)).map(|e| &e.id);
        check(
            "where a port leads",
            target.is_some() && publication.endpoint.as_ref() == target,
            &(target, publication),
        );
        let row = rows.iter().find(|row| row.id == publication.id.as_str());
        let led = row.map(|row| row.endpoint_id.as_str());
        check("where a port's row leads", led == target.map(|id| id.as_str()), &(target, row));
    }
    text
}

async fn agrees(world: &World, model: &Model, story: &[String]) {
    if let Err(text) = eventually_ok(|| match difference(world, model) {
        text if text.is_empty() => Ok(()),
        text => Err(text),
    })
    .await
    {
        let last: Vec<_> = story.iter().rev().take(12).rev().cloned().collect();
        panic!("differs from the model after step {}:\n{text}last steps:\n{}", story.len(), last.join("\n"));
    }
}

fn refusable(error: &Error, fault: Fault) -> bool {
    let text = error.to_string();
    let ovn = ["no available IPv4 addresses", "Address already in use"].iter().any(|part| text.contains(part));
    match fault {
        Fault::None => ovn,
        Fault::Step("taken") => ovn,
        Fault::Step(step) => ovn || text.contains(&format!("failed at step \"{step}\"")),
        Fault::Hiccup(..) => true,
    }
}

/// One of the refusals that there are when nothing goes wrong.
fn is_dockers(error: &Error) -> bool {
    let text = error.to_string();
    let model = [
        "already exists",
        "not found",
        "has active endpoints",
        "is not connected to",
        "is attached to no network",
        "port is already allocated",
    ];
    refusable(error, Fault::None) || model.iter().any(|part| text.contains(part))
}

/// Something restarts; answers when it was found again.
async fn breathe(world: &mut World, random: &mut Random) -> &'static str {
    match random.below(4) {
        0 => {
            world.stop_netd().await;
            world.start_netd().await;
            "arca-netd restarted"
        }
        1 => {
            world.relay_process = None;
            world.relay.forget();
            let before = world.relay.lists();
            world.start_relay();
            eventually("the next comparison", || world.relay.lists() > before).await;
            "arca-relayd restarted"
        }
        2 => {
            world.agent_process = None;
            let before = world.agent.syncs();
            world.start_agent();
            eventually("the next full set", || world.agent.syncs() > before).await;
            "the agent restarted"
        }
        _ => {
            let n = u8::try_from(random.below(WORKLOADS.into())).unwrap() + 1;
            world.restart_tap(n);
            "an arca-tapfwd restarted"
        }
    }
}

async fn walk(seed: u64, steps: usize) {
    let mut random = Random(seed);
    let mut world = World::new().await;
    let machines: Vec<_> = (1..=WORKLOADS).map(|n| world.machine(n)).collect();
    let mut model = Model::default();
    let mut story: Vec<String> = Vec::new();
    let mut done = 0;
    while story.len() < steps {
        if random.below(40) == 0 {
            let what = breathe(&mut world, &mut random).await;
            story.push(what.to_owned());
            eventually_ok(|| world.engine().is_ready().then_some(()).ok_or("not ready")).await.unwrap();
            agrees(&world, &model, &story).await;
            continue;
        }
        if random.below(8) == 0 {
            // Several at once: whatever each answers, all of it together is one state.
            // But new names: whoever attaches gives the name, and arca-api does one of both at a time.
            let drawn = std::iter::repeat_with(|| draw(&mut random)).filter(|op| !matches!(op, Op::Rename(..)));
            let ops: Vec<Op> = drawn.take(4).collect();
            let results =
                futures_util::future::join_all(ops.iter().map(|op| run(&world, &machines, &model.names, op))).await;
            let answers: Vec<_> = results.iter().map(|result| result.as_ref().map_err(ToString::to_string)).collect();
            story.push(format!("at once {ops:?}: {answers:?}"));
            for error in results.iter().filter_map(|result| result.as_ref().err()) {
                assert!(is_dockers(error), "seed {seed}, step {}: {error}:\n{}", story.len(), story.join("\n"));
            }
            model = settled(&model, &ops, &results, &world);
            agrees(&world, &model, &story).await;
            continue;
        }
        let op = draw(&mut random);
        let fault = match random.below(10) {
            0..=2 if matches!(op, Op::Attach(..)) => Fault::Step(random.pick(&STEPS)),
            3 => Fault::Hiccup(random.below(3), u32::try_from(random.below(3)).unwrap() + 1),
            _ => Fault::None,
        };
        match fault {
            Fault::Step(step) => *world.breaks.lock().unwrap() = Some(step),
            Fault::Hiccup(0, calls) => world.agent.hiccup(calls),
            Fault::Hiccup(1, calls) => world.relay.hiccup(calls),
            Fault::Hiccup(_, calls) => world.taps.values().for_each(|tap| tap.hiccup(calls)),
            Fault::None => {}
        }
        if random.below(3) == 0 {
            // A full set is drawn up in the middle.
            world.engine().kick();
        }
        let result = run(&world, &machines, &model.names, &op).await;
        *world.breaks.lock().unwrap() = None;
        world.agent.hiccup(0);
        world.relay.hiccup(0);
        world.taps.values().for_each(|tap| tap.hiccup(0));
        story.push(format!("{op:?} {fault:?}: {:?}", result.as_ref().map_err(ToString::to_string)));
        match (&result, model.refusal(&op)) {
            (Ok(()), None) => model.apply(&op),
            (Err(error), Some(text)) if error.to_string().contains(text) => model.apply_failure(&op),
            (Err(error), None) if refusable(error, fault) => model.apply_failure(&op),
            (Err(_), Some(_)) if matches!(fault, Fault::Hiccup(..)) => model.apply_failure(&op),
            (_, wanted) => panic!("seed {seed}, step {}: wanted {wanted:?}:\n{}", story.len(), story.join("\n")),
        }
        done += usize::from(result.is_ok());
        agrees(&world, &model, &story).await;
    }
    println!("seed {seed}: {} steps, {done} operations done", story.len());
    for n in 1..=WORKLOADS {
        world.engine().detach_workload(workload(n)).await.unwrap();
    }
    world.assert_clean("at the end");
}

/// The model after operations that ran at once. What only one of them touched is as after that one; what several did
/// is as the store has it, as far as one of their orders can have led there.
fn settled(before: &Model, ops: &[Op], results: &[Result<()>], world: &World) -> Model {
    let state = world.engine().state();
    let mut after = before.clone();
    let done: Vec<&Op> = ops.iter().zip(results).filter(|(_, result)| result.is_ok()).map(|(op, _)| op).collect();
    for name in NETWORKS {
        let made = done.iter().any(|op| matches!(op, Op::Create(on, _) | Op::Remove(on) if *on == name));
        match state.networks.values().find(|network| network.name() == name).filter(|_| made) {
            Some(network) => drop(after.networks.insert(name, network.spec.internal)),
            None if made => drop(after.networks.remove(name)),
            None => {}
        }
    }
    for n in 1..=WORKLOADS {
        for name in NETWORKS {
            let touches = |op: &&Op| match op {
                Op::Attach(m, on, _) | Op::Detach(m, on) => *m == n && *on == name,
                Op::DetachAll(m) => *m == n,
                _ => false,
            };
            let touching: Vec<&Op> = done.iter().copied().filter(touches).collect();
            match touching.as_slice() {
                [] => {}
                [Op::Attach(_, _, host)] => drop(after.attached.insert((n, name), *host)),
                [_] => drop(after.attached.remove(&(n, name))),
                several => {
                    let network = state.networks.values().find(|network| network.name() == name);
                    let stored = network.and_then(|network| state.endpoint_on(&network.id, &workload(n)));
                    let fixed = |host: &Option<u8>| host.map(|host| address(name, host));
                    let asked = several.iter().filter_map(|op| match op {
                        Op::Attach(_, _, host) => Some(*host),
                        _ => None,
                    });
                    let asked = asked.chain(before.attached.get(&(n, name)).copied());
                    let found = stored.and_then(|endpoint| {
                        let is = endpoint.static_v4.map(|address| address.to_string());
                        asked.into_iter().find(|host| fixed(host) == is)
                    });
                    // Stored, but asked for by nobody: left to the comparison.
                    match found {
                        Some(host) => drop(after.attached.insert((n, name), host)),
                        None => drop(after.attached.remove(&(n, name))),
                    }
                }
            }
        }
        // A publish that fails has an effect as well: the ports of before are given back.
        let counts = |(op, result): &(&Op, &Result<()>)| {
            op.workload() == Some(n) && (result.is_ok() || matches!(op, Op::Publish(..)))
        };
        let counting: Vec<_> = ops.iter().zip(results).filter(counts).collect();
        match counting.as_slice() {
            [] => {}
            [(Op::Publish(_, port), Ok(()))] => drop(after.published.insert(n, *port)),
            [(Op::Publish(..), Err(_))] => drop(after.published.remove(&n)),
            [_] => {}
            several => {
                let port = |p: &&std::sync::Arc<Publication>| p.workload == workload(n);
                let stored = state.publications.values().find(port).map(|p| p.listeners[0].host_port);
                let asked = |port: &u16| {
                    let by = |(op, result): &(&Op, &Result<()>)| {
                        matches!(op, Op::Publish(_, asked) if asked == port) && result.is_ok()
                    };
                    several.iter().any(by) || before.published.get(&n) == Some(port)
                };
                match stored.filter(asked) {
                    Some(port) => drop(after.published.insert(n, port)),
                    None => drop(after.published.remove(&n)),
                }
            }
        }
        after.give_back(n);
    }
    after
}

fn chosen(name: &str) -> Option<u64> {
    env::var(name).ok().and_then(|text| text.parse().ok())
}

#[tokio::test(flavor = "multi_thread")]
async fn random_sequences_end_where_the_model_ends() {
    let steps = chosen("ARCA_MODEL_STEPS").and_then(|steps| usize::try_from(steps).ok()).unwrap_or(500);
    match chosen("ARCA_MODEL_SEED") {
        Some(seed) => walk(seed, steps).await,
        None => drop(futures_util::future::join_all((1..=4).map(|seed| walk(seed, steps))).await),
    }
}
