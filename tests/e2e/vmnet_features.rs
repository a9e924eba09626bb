// SPDX-License-Identifier: Apache-2.0
//! The table of both backends in docs/vmnet.md: every cell is tried, and what is seen must be what is written.

use std::{collections::BTreeMap, fs, process::Command};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{engine::Engine, isolation};

use crate::{
    Test,
    vmnet::{NO_DYNAMIC, NO_OVERLAY},
};

pub(crate) const TESTS: &[(&str, Test)] = &[("every_cell_of_the_table_is_so", every_cell)];

const PAGE: &str = include_str!("../../docs/vmnet.md");
const LATENCY: &str = "latency between two containers";

/// By feature: the cells of ovs and of vmnet.
type Table = BTreeMap<String, [String; 2]>;

fn table() -> anyhow::Result<Table> {
    let (_, rows) = PAGE.split_once("| feature | ovs | vmnet |\n").context("docs/vmnet.md has no table of features")?;
    let rows = rows.lines().skip(1).take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        match cells[..] {
            [feature, ovs, vmnet] => Ok((feature.to_owned(), [ovs.to_owned(), vmnet.to_owned()])),
            _ => bail!("a row of the table has {} cells: {row}", cells.len()),
        }
    })
    .collect()
}

/// Cells that are not what was seen.
fn differences(table: &Table, seen: &Table) -> Vec<String> {
    let features = table.keys().chain(seen.keys()).collect::<std::collections::BTreeSet<_>>();
    let mut wrong = Vec::new();
    for feature in features.into_iter().filter(|feature| *feature != LATENCY) {
        match (table.get(feature), seen.get(feature)) {
            (Some(written), Some(seen)) if written == seen => {}
            (written, seen) => wrong.push(format!("{feature}: written {written:?}, seen {seen:?}")),
        }
    }
    // Measured by a bench, for a test's clock is anybody's: here only what must hold of any two figures.
    let figure = |cell: &String| cell.strip_suffix(" ms").and_then(|text| text.parse::<f64>().ok());
    match table.get(LATENCY).map(|[ovs, vmnet]| (figure(ovs), figure(vmnet))) {
        Some((Some(ovs), Some(vmnet))) if vmnet < 0.1 && vmnet < ovs => {}
        other => wrong.push(format!("{LATENCY}: {other:?}")),
    }
    wrong
}

fn every_cell() -> anyhow::Result<()> {
    let (ovs, ovs_memory) = look("ovs")?;
    let (vmnet, vmnet_memory) = look("vmnet")?;
    let mut seen: Table = ovs
        .iter()
        .map(|(feature, cell)| (feature.clone(), [cell.clone(), vmnet.get(feature).cloned().unwrap_or_default()]))
        .collect();
    let more = if ovs_memory > vmnet_memory { ["higher (helper)", "lower"] } else { ["lower", "higher"] };
    seen.insert("resource use".into(), more.map(str::to_owned));
    let table = table()?;
    let wrong = differences(&table, &seen);
    ensure!(wrong.is_empty(), "docs/vmnet.md is not so: {wrong:#?}");
    // The comparison itself: each cell, changed for its neighbour, is found.
    for (feature, cells) in &table {
        let [ovs, vmnet] = cells.clone();
        let mut flipped = table.clone();
        for cells in [[vmnet.clone(), ovs.clone()], [vmnet.clone(), vmnet.clone()], [ovs.clone(), ovs.clone()]] {
            flipped.insert(feature.clone(), cells);
            ensure!(!differences(&flipped, &seen).is_empty(), "{feature}: a flipped cell goes unseen");
        }
        flipped.remove(feature);
        ensure!(!differences(&flipped, &seen).is_empty(), "{feature}: a missing row goes unseen");
    }
    Ok(())
}

fn yes(it_is: bool) -> String {
    if it_is { "yes" } else { "no" }.to_owned()
}

/// What an engine of that backend does, by feature; and kilobytes of memory of everything that runs for two containers.
fn look(backend: &str) -> anyhow::Result<(BTreeMap<String, String>, u64)> {
    let configured = format!("networkBackend={backend}");
    // Without a helper image one of them starts.
    let bare = Engine::start_with(&[&configured, "helperRoot=/nonexistent"]);
    let needs_image = bare.is_err();
    let engine = match bare {
        Ok(engine) => engine,
        Err(error) => {
            ensure!(format!("{error:#}").contains("helper image"), "{error:#}");
            Engine::start_with(&[&configured])?
        }
    };
    engine.load_image()?;
    for name in ["a", "b"] {
        engine.docker_ok(&["network", "create", name])?;
    }
    let idle = |name: &str, network: &str| {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", network, "busybox", "sleep", "1000"])
    };
    idle("one", "a")?;
    idle("two", "a")?;
    let memory = memory()?;
    idle("other", "b")?;

    let mut seen = BTreeMap::new();
    let mut note = |feature: &str, cell: String| seen.insert(feature.to_owned(), cell);
    let connected = engine.docker(&["network", "connect", "b", "one"]);
    ensure!(connected.code == 0 || connected.stderr.contains(NO_DYNAMIC), "{connected:?}");
    let dynamic = connected.code == 0;
    note("dynamic attach", yes(dynamic));
    let several = engine.docker(&["run", "--rm", "--network", "a", "--network", "b", "busybox", "true"]).code == 0;
    note("several networks per container", yes(several));
    let mapped = engine.docker(&["run", "--rm", "--network", "a", "-p", "127.0.0.1:18080:80", "busybox", "true"]);
    note("port mapping", yes(mapped.code == 0));
    let overlay = engine.docker(&["network", "create", "--driver", "overlay", "o"]);
    // Refused by the backend itself, or by whatever else is missing yet.
    let refused = if overlay.stderr.contains(NO_OVERLAY) { "no" } else { "not yet" };
    note("overlay networks", if overlay.code == 0 { "yes" } else { refused }.into());
    let inside = answers_arp(&engine, "two", &engine.address("one", "a")?)?;
    ensure!(inside, "two containers of one network do not see each other's frames");
    let outside = answers_arp(&engine, "other", &engine.address("two", "a")?)?;
    ensure!(!outside, "a container answers in another network");
    // On this platform, by the frames themselves; the page tells of the other platform as well.
    let native = "native: L2 on Linux, by subnet on macOS";
    note("isolation between networks", if backend == "vmnet" { native.into() } else { "L2".into() });
    let helper: serde_json::Value = serde_json::from_str(&engine.arca(&["daemon", "status", "--json"]).ok()?)?;
    note("helper machine required", yes(helper["helper"] != "not needed"));
    note("arca-tapfwd required", yes(runs_beside("arca-tapfwd", engine.pid("two")?)?));
    let full = dynamic && several && mapped.code == 0;
    note("Docker compatibility", if full { "full" } else { "limited" }.into());
    note("setup", if needs_image { "more" } else { "less" }.into());
    engine.stop()?;
    Ok((seen, memory))
}

/// Whether a station answers a container's ARP request: below IP, so that no rule about addresses has a say.
fn answers_arp(engine: &Engine, from: &str, address: &str) -> anyhow::Result<bool> {
    let pid = engine.pid(from)?;
    let inside = |arguments: &[&str]| -> anyhow::Result<String> {
        let mut command = Command::new("ip");
        isolation::join_network(command.args(arguments), pid)?;
        let output = command.output()?;
        ensure!(output.status.success(), "ip {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    };
    inside(&["route", "replace", &format!("{address}/32"), "dev", "eth0"])?;
    engine.docker(&["exec", from, "ping", "-c", "1", "-W", "2", address]);
    let neighbour = inside(&["neighbour", "show", address, "dev", "eth0"])?;
    inside(&["route", "delete", &format!("{address}/32"), "dev", "eth0"])?;
    Ok(neighbour.contains("lladdr"))
}

fn processes() -> impl Iterator<Item = u32> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
}

/// Whether a program of this name lives in the network namespace of `pid`.
pub(crate) fn runs_beside(name: &str, pid: u32) -> anyhow::Result<bool> {
    let network = isolation::network_of(pid)?;
    let here = |other: &u32| isolation::network_of(*other).is_ok_and(|theirs| theirs == network);
    let named = |other: &u32| fs::read_to_string(format!("/proc/{other}/comm")).is_ok_and(|comm| comm.trim() == name);
    Ok(processes().filter(here).any(|other| named(&other)))
}

/// Resident memory of everything in this process namespace, in kilobytes.
fn memory() -> anyhow::Result<u64> {
    let resident = |pid: u32| {
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let all = processes().map(resident).sum();
    ensure!(all > 0, "no process has memory");
    Ok(all)
}
