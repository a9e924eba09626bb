// SPDX-License-Identifier: Apache-2.0
//! Whether everybody says the same: docker's inspect, arca-netd's endpoints, arca-relayd's links, the northbound
//! database, the bridge of the helper machine, and what a container sees of itself.
//!
//! Tests call [`agreement`] when everything they asked for was answered; what a killed daemon left may take a moment.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    engine::{Engine, interfaces},
    http::Docker,
    isolation,
};

/// Tables whose every row is Arca's; OVN writes none of its own there.
const OWNED: [&str; 10] = [
    "ACL",
    "Address_Set",
    "DHCP_Options",
    "DNS",
    "Load_Balancer",
    "Logical_Router_Port",
    "Logical_Switch",
    "Logical_Switch_Port",
    "NAT",
    "Port_Group",
];

/// One endpoint as somebody sees it.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Seen {
    /// Container id.
    pub container: String,
    /// Network name.
    pub network: String,
    /// IPv4 address with prefix length.
    pub address: String,
    /// Hardware address.
    pub mac: String,
}

/// Waits until all views agree, at most this long; gives the endpoints.
///
/// # Errors
/// The last difference, with the engine's logs.
#[expect(clippy::disallowed_methods, reason = "six programs seen from outside have no common event")]
pub fn agreement(engine: &Engine, limit: Duration) -> anyhow::Result<Vec<Seen>> {
    let deadline = Instant::now() + limit;
    loop {
        match compare(engine) {
            Ok(seen) => return Ok(seen),
            Err(error) if Instant::now() > deadline => {
                return Err(error.context(format!("the views still differ after {limit:?}\n{}", engine.logs())));
            }
            Err(_) => std::thread::sleep(Duration::from_millis(200)),
        }
    }
}

/// Compares all views once.
///
/// # Errors
/// The first difference.
pub fn compare(engine: &Engine) -> anyhow::Result<Vec<Seen>> {
    let netd: Vec<Value> = json_of(engine, "arca-netd", &["endpoints", "--json"])?;
    let netd: Vec<&Value> = netd.iter().filter(|endpoint| endpoint["link"].as_u64().unwrap_or(0) > 0).collect();
    for endpoint in &netd {
        ensure!(endpoint["up"] == true && endpoint["error"] == "", "an endpoint is not well: {endpoint}");
    }
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let stored: BTreeSet<Seen> = netd
        .iter()
        .map(|endpoint| Seen {
            container: text(&endpoint["container_id"]),
            network: text(&endpoint["network"]),
            address: text(&endpoint["address"]),
            mac: text(&endpoint["mac"]),
        })
        .collect();
    ensure!(stored.len() == netd.len(), "two endpoints of one container on one network: {netd:?}");
    unique("address", stored.iter().filter(|seen| !seen.address.is_empty()).map(|s| (&s.network, &s.address)))?;
    unique("hardware address", stored.iter().map(|s| &s.mac))?;

    let docker = Docker::of(engine);
    same("containers", &stored, &of_containers(&docker)?)?;
    same("networks", &stored, &of_networks(&docker)?)?;
    let links: BTreeSet<u64> = netd.iter().filter_map(|endpoint| endpoint["link"].as_u64()).collect();
    ensure!(links.len() == netd.len(), "two endpoints share a link: {netd:?}");
    let open: Vec<Value> = json_of(engine, "arca-relayd", &["links", "--json"])?;
    let open: BTreeSet<u64> = open.iter().filter_map(|link| link["link"].as_u64()).collect();
    ensure!(open == links, "arca-relayd has links {open:?}, arca-netd wants {links:?}");
    helper(engine, &netd)?;
    inside(&docker, &stored)?;
    Ok(stored.into_iter().collect())
}

fn json_of(engine: &Engine, program: &str, arguments: &[&str]) -> anyhow::Result<Vec<Value>> {
    let text = engine.program(program, arguments).ok().with_context(|| format!("{program} {}", arguments.join(" ")))?;
    Ok(serde_json::from_str(&text)?)
}

fn unique<T: Ord + std::fmt::Debug>(what: &str, all: impl Iterator<Item = T>) -> anyhow::Result<()> {
    let mut known = BTreeSet::new();
    for one in all {
        if known.contains(&one) {
            bail!("{what} {one:?} is given twice");
        }
        known.insert(one);
    }
    Ok(())
}

fn same(what: &str, stored: &BTreeSet<Seen>, seen: &BTreeSet<Seen>) -> anyhow::Result<()> {
    let (missing, more): (Vec<_>, Vec<_>) = (stored.difference(seen).collect(), seen.difference(stored).collect());
    ensure!(
        missing.is_empty() && more.is_empty(),
        "arca-netd and docker's {what} differ: only arca-netd has {missing:?}, only docker has {more:?}"
    );
    Ok(())
}

/// `docker inspect` of every running container.
fn of_containers(docker: &Docker) -> anyhow::Result<BTreeSet<Seen>> {
    let mut all = BTreeSet::new();
    let list = docker.get("/containers/json?all=1")?;
    for container in list.as_array().into_iter().flatten() {
        let id = container["Id"].as_str().context("an id")?;
        let inspect = docker.get(&format!("/containers/{id}/json"))?;
        let running = inspect["State"]["Running"] == true;
        for (name, network) in inspect["NetworkSettings"]["Networks"].as_object().into_iter().flatten() {
            let address = network["IPAddress"].as_str().unwrap_or_default();
            let endpoint = network["EndpointID"].as_str().unwrap_or_default();
            if !running {
                ensure!(address.is_empty() && endpoint.is_empty(), "{id} does not run and has {address} on {name}");
            } else if !matches!(name.as_str(), "host" | "none") {
                ensure!(!endpoint.is_empty(), "{id} runs and has no endpoint on {name}");
                all.insert(Seen {
                    container: id.to_owned(),
                    network: name.clone(),
                    address: match address {
                        "" => String::new(),
                        address => format!("{address}/{}", network["IPPrefixLen"]),
                    },
                    mac: network["MacAddress"].as_str().unwrap_or_default().to_owned(),
                });
            }
        }
    }
    Ok(all)
}

/// `docker network inspect` of every network.
fn of_networks(docker: &Docker) -> anyhow::Result<BTreeSet<Seen>> {
    let mut all = BTreeSet::new();
    let list = docker.get("/networks")?;
    for network in list.as_array().into_iter().flatten() {
        let (id, name) = (network["Id"].as_str().context("an id")?, network["Name"].as_str().context("a name")?);
        if matches!(name, "host" | "none") {
            continue;
        }
        let inspect = docker.get(&format!("/networks/{id}"))?;
        for (container, seen) in inspect["Containers"].as_object().into_iter().flatten() {
            let text = |key: &str| seen[key].as_str().unwrap_or_default().to_owned();
            let (address, mac) = (text("IPv4Address"), text("MacAddress"));
            all.insert(Seen { container: container.clone(), network: name.to_owned(), address, mac });
        }
    }
    Ok(all)
}

/// What a container sees of itself: every endpoint's hardware and IP address on one interface, and nothing else.
fn inside(docker: &Docker, stored: &BTreeSet<Seen>) -> anyhow::Result<()> {
    let mut by_container: BTreeMap<&str, BTreeSet<Vec<String>>> = BTreeMap::new();
    for seen in stored {
        let addresses = Some(seen.address.clone()).filter(|address| !address.is_empty()).into_iter().collect();
        by_container.entry(&seen.container).or_default().insert(addresses);
    }
    for (container, wanted) in by_container {
        let inspect = docker.get(&format!("/containers/{container}/json"))?;
        let pid = inspect["State"]["Pid"].as_u64().and_then(|pid| u32::try_from(pid).ok()).context("a pid")?;
        let found = interfaces(pid)?;
        let addresses: BTreeSet<Vec<String>> = found.iter().map(|(_, addresses)| addresses.clone()).collect();
        ensure!(
            found.len() >= wanted.len() && addresses == wanted,
            "{container} should hold {wanted:?} and sees {found:?}"
        );
    }
    Ok(())
}

/// Rows of the helper machine: every one owned and needed, the endpoints' ones with their addresses; ports of the bridge.
fn helper(engine: &Engine, netd: &[&Value]) -> anyhow::Result<()> {
    let helper = Helper::of(engine)?;
    let networks: Vec<Value> = json_of(engine, "arca-netd", &["networks", "--json"])?;
    let ids = |list: &[&Value]| list.iter().filter_map(|one| one["id"].as_str().map(str::to_owned)).collect();
    let network_ids: BTreeSet<String> = ids(&networks.iter().collect::<Vec<_>>());
    let endpoints: BTreeSet<String> = ids(netd);
    let mut ports = BTreeMap::new();
    for table in OWNED {
        for row in helper.rows("nb", table)? {
            let external = pairs(&row["external_ids"]);
            let (id, kind) = (external.get("arca-id").cloned(), external.get("arca-kind").cloned().unwrap_or_default());
            let Some(id) = id else { bail!("a row of {table} that nobody owns: {row}") };
            let published = table == "Load_Balancer" && kind == "published";
            let needed = id == "engine" || network_ids.contains(&id) || endpoints.contains(&id) || published;
            ensure!(needed, "a row of {table} that nothing needs ({kind} of {id}): {row}");
            if table == "Logical_Switch_Port" && kind == "endpoint" {
                let given = [&row["addresses"], &row["dynamic_addresses"]].map(Value::to_string).concat();
                ports.insert(id, given);
            }
        }
    }
    for endpoint in netd {
        let id = endpoint["id"].as_str().context("an id")?;
        let row = ports.get(id).with_context(|| format!("endpoint {id} has no port in the northbound database"))?;
        let address = endpoint["address"].as_str().unwrap_or_default().split('/').next().unwrap_or_default();
        ensure!(row.contains(address), "endpoint {id} has {address}, its row says {row}");
    }
    ensure!(ports.len() == endpoints.len(), "{} ports for {} endpoints", ports.len(), endpoints.len());
    let interfaces = helper.rows("vs", "Interface")?;
    let on_bridge: Vec<String> =
        interfaces.iter().filter_map(|row| pairs(&row["external_ids"]).remove("iface-id")).collect();
    ensure!(
        on_bridge.len() == endpoints.len() && on_bridge.iter().all(|id| endpoints.contains(id)),
        "br-int has ports of {on_bridge:?}, arca-netd wants {endpoints:?}"
    );
    Ok(())
}

/// The helper machine from inside.
#[derive(Debug)]
pub struct Helper {
    pid: String,
}

impl Helper {
    /// Of this engine.
    ///
    /// # Errors
    /// If it does not run.
    pub fn of(engine: &Engine) -> anyhow::Result<Self> {
        let record = engine.home().join("data/helper/machine/machine.json");
        let record = fs::read_to_string(&record).with_context(|| record.display().to_string())?;
        let record: Value = serde_json::from_str(&record)?;
        Ok(Self { pid: record["pid"].to_string() })
    }

    /// Runs a program of the helper's image.
    ///
    /// # Errors
    /// If it does not end with 0.
    pub fn run(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let mut all = vec!["--target", &self.pid, "--mount", "--net", "--pid", "--"];
        all.extend(arguments);
        isolation::output("nsenter", &all)
    }

    /// All rows of a table; `database` is "nb", "sb" or "vs".
    ///
    /// # Errors
    /// If the database does not answer.
    pub fn rows(&self, database: &str, table: &str) -> anyhow::Result<Vec<Value>> {
        let program = match database {
            "nb" => "/usr/bin/ovn-nbctl",
            "sb" => "/usr/bin/ovn-sbctl",
            _ => "/usr/bin/ovs-vsctl",
        };
        let text = self.run(&[program, "--timeout=10", "--format=json", "list", table])?;
        let answer: Value = serde_json::from_str(&text)?;
        let headings: Vec<&str> =
            answer["headings"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
        let row = |row: &Value| {
            let cells = row.as_array().into_iter().flatten().cloned();
            Value::Object(headings.iter().map(|name| (*name).to_owned()).zip(cells).collect())
        };
        Ok(answer["data"].as_array().into_iter().flatten().map(row).collect())
    }
}

/// A map column of OVSDB's JSON (RFC 7047 section 5.1).
fn pairs(value: &Value) -> BTreeMap<String, String> {
    let pairs = value[1].as_array().into_iter().flatten();
    pairs.filter_map(|pair| Some((pair[0].as_str()?.to_owned(), pair[1].as_str()?.to_owned()))).collect()
}

/// Runs `work` for each of `all` at once, one thread each; the results in their order.
///
/// # Panics
/// If `work` panics.
pub fn at_once<A: Sync, T: Send>(all: &[A], work: impl Fn(&A) -> T + Sync) -> Vec<T> {
    let work = &work;
    std::thread::scope(|scope| {
        let threads: Vec<_> = all.iter().map(|one| scope.spawn(move || work(one))).collect();
        let join = |thread: std::thread::ScopedJoinHandle<'_, T>| match thread.join() {
            Ok(value) => value,
            Err(panic) => std::panic::resume_unwind(panic),
        };
        threads.into_iter().map(join).collect()
    })
}
