// SPDX-License-Identifier: Apache-2.0
//! Proofs that it is real: what OVN holds, what happens when one of its rows goes, what the counters say.
//!
//! Rows are looked at (and broken) with the helper image's own `ovn-nbctl`, from outside the engine.

use anyhow::{Context as _, ensure};
use arca_tests::{engine::Engine, isolation, measure, story};
use serde_json::Value;

use crate::{Test, daemons::helper_pid};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("addresses_are_allocated_by_ovn", allocated_by_ovn),
    ("a_missing_dhcp_row_fails_the_next_attach_by_name", dhcp_row),
    ("a_workloads_own_dhcp_client_gets_the_same_lease", own_client),
    ("known_names_resolve_without_the_fallback_resolver", native_dns),
    ("without_its_load_balancer_row_a_published_port_is_dead", load_balancer_row),
    ("the_relays_counters_grow_by_what_was_sent", counters),
];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "n"])?;
    Ok(engine)
}

/// Runs a program of the helper image inside the helper machine.
fn in_helper(engine: &Engine, arguments: &[&str]) -> anyhow::Result<String> {
    let pid = helper_pid(engine)?.to_string();
    let mut all = vec!["--target", &pid, "--mount", "--pid", "--net", "--root", "--wd", "--"];
    all.extend(arguments);
    isolation::output("nsenter", &all)
}

fn nbctl(engine: &Engine, arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["/usr/bin/ovn-nbctl", "--no-leader-only"];
    all.extend(arguments);
    in_helper(engine, &all)
}

fn allocated_by_ovn() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "busybox", "sleep", "1000"])?;
    let endpoint = engine.inspect("cc")?["NetworkSettings"]["Networks"]["n"].clone();
    let (mac, address) = (endpoint["MacAddress"].as_str().context("mac")?, endpoint["IPAddress"].as_str().context("ip")?);
    let find = format!("addresses={mac}\\ dynamic");
    let row = nbctl(&engine, &["--bare", "--columns=dynamic_addresses", "find", "Logical_Switch_Port", &find])?;
    ensure!(row.trim() == format!("{mac} {address}"), "OVN says {row:?}, inspect says {mac} {address}");
    let seen = engine.docker_ok(&["exec", "cc", "ip", "-4", "-o", "address", "show", "eth0"])?;
    ensure!(seen.contains(&format!("inet {address}/")), "{seen}");
    engine.stop()
}

fn dhcp_row() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "first", "--network", "n", "busybox", "sleep", "1000"])?;
    let id = engine.docker_ok(&["network", "inspect", "-f", "{{.Id}}", "n"])?;
    let find = format!("external_ids:arca-network={id}");
    let row = nbctl(&engine, &["--bare", "--columns=_uuid", "find", "DHCP_Options", &find])?;
    ensure!(!row.trim().is_empty(), "the network has a DHCP_Options row");
    nbctl(&engine, &["destroy", "DHCP_Options", row.trim()])?;
    let failed = engine.docker(&["run", "--rm", "--network", "n", "busybox", "true"]);
    ensure!(failed.code == 125 && failed.stderr.contains("DHCP"), "the failing step is named: {failed:?}");
    let endpoints = engine.program("arca-netd", &["endpoints", "--json"]).ok()?;
    let endpoints: Vec<Value> = serde_json::from_str(&endpoints)?;
    ensure!(endpoints.len() == 1, "only the first container's endpoint is left: {endpoints:?}");
    engine.stop()
}

fn own_client() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "--cap-add", "NET_ADMIN", "busybox", "sleep", "1000"])?;
    let address = engine.address("cc", "n")?;
    let ask = "printf '#!/bin/sh\\n[ \"$1\" = bound ] && echo lease $ip $router >&2; true\\n' > /s; chmod +x /s; udhcpc -i eth0 -n -q -f -s /s 2>&1";
    let text = engine.docker_ok(&["exec", "cc", "sh", "-c", ask])?;
    ensure!(text.contains(&format!("lease {address} ")), "{text}");
    engine.stop()
}

fn native_dns() -> anyhow::Result<()> {
    let engine = engine()?;
    for name in ["aa", "bb"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "n", "busybox", "sleep", "1000"])?;
    }
    // The row that leads to the fallback resolver goes: from now on only OVN can answer.
    let rows = nbctl(&engine, &["--bare", "--columns=_uuid", "find", "Load_Balancer", "external_ids:arca-kind=resolver"])?;
    ensure!(!rows.trim().is_empty(), "the resolver has load balancer rows");
    for row in rows.split_whitespace() {
        nbctl(&engine, &["lb-del", row])?;
    }
    let address = engine.address("bb", "n")?;
    // -type=a: OVN has no answer for the AAAA question that goes along otherwise.
    let found = engine.docker_ok(&["exec", "aa", "nslookup", "-type=a", "bb"])?;
    ensure!(found.contains(&address), "{found}");
    engine.stop()
}

fn load_balancer_row() -> anyhow::Result<()> {
    let engine = engine()?;
    let serve = "mkdir /srv; echo ok > /srv/x; exec httpd -f -p 80 -h /srv";
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "-p", "8080:80", "busybox", "sh", "-c", serve])?;
    ensure!(story::http_get("127.0.0.1:8080", "/x")? == "ok");
    let find = ["--bare", "--columns=_uuid", "find", "Load_Balancer", "external_ids:arca-kind=published-port"];
    let rows = nbctl(&engine, &find)?;
    ensure!(!rows.trim().is_empty(), "the published port has a load balancer row");
    for row in rows.split_whitespace() {
        nbctl(&engine, &["lb-del", row])?;
    }
    nbctl(&engine, &["--wait=hv", "--timeout=5", "sync"])?;
    ensure!(story::http_get("127.0.0.1:8080", "/x").is_err(), "the port must be dead without its row");
    engine.stop()
}

fn counters() -> anyhow::Result<()> {
    let engine = engine()?;
    for name in ["aa", "bb"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "n", "busybox", "sleep", "1000"])?;
    }
    let bytes = || -> anyhow::Result<u64> {
        let links: Vec<Value> = serde_json::from_str(&engine.program("arca-relayd", &["links", "--json"]).ok()?)?;
        ensure!(links.len() == 2, "{links:?}");
        Ok(links.iter().filter_map(|link| link["to_helper"]["bytes"].as_u64()).sum())
    };
    let before = bytes()?;
    measure::transfer(engine.pid("aa")?, engine.pid("bb")?, &engine.address("bb", "n")?, 32, |_| Ok(()))?;
    let grown = bytes()? - before;
    let sent = 32 << 20;
    ensure!((sent..sent * 5 / 4).contains(&grown), "{grown} bytes counted for {sent} sent");
    engine.stop()
}
