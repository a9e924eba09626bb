// SPDX-License-Identifier: Apache-2.0
//! Proofs that it is real: what OVN holds, what happens when one of its rows goes, what the counters say.
//!
//! Rows are looked at (and broken) with the helper image's own `ovn-nbctl`, from outside the engine.

use std::{
    fs,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use arca_tests::{engine::Engine, isolation, measure, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use serde_json::Value;

use crate::{Test, daemons::helper_process};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("addresses_are_allocated_by_ovn", allocated_by_ovn),
    ("without_its_dhcp_options_row_a_network_gives_no_lease", dhcp_row),
    ("an_attach_that_cannot_be_confirmed_names_the_step_and_leaves_nothing", named_step),
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
pub(crate) fn in_helper(arguments: &[&str]) -> anyhow::Result<String> {
    let pid = helper_process("arca-helper-agent", Some("init"))?.to_string();
    let mut all = vec!["--target", &pid, "--mount", "--pid", "--net", "--root", "--wd", "--"];
    all.extend(arguments);
    isolation::output("nsenter", &all)
}

pub(crate) fn nbctl(arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["/usr/bin/ovn-nbctl", "--no-leader-only"];
    all.extend(arguments);
    in_helper(&all)
}

fn allocated_by_ovn() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "busybox", "sleep", "1000"])?;
    let endpoint = engine.inspect("cc")?["NetworkSettings"]["Networks"]["n"].clone();
    let (mac, address) =
        (endpoint["MacAddress"].as_str().context("mac")?, endpoint["IPAddress"].as_str().context("ip")?);
    // The database's file is the log of all that was ever written to it: the engine asked for an address, then OVN gave
    // this one.
    let log = fs::read_to_string(engine.home().join("data/helper/state/nb.db"))?;
    let position = |column: &str, value: &str| {
        let text = format!("\"{column}\":\"{mac} {value}\"");
        log.find(&text).with_context(|| format!("{text} was never written"))
    };
    let (asked, given) = (position("addresses", "dynamic")?, position("dynamic_addresses", address)?);
    ensure!(asked < given, "asked for at {asked}, given at {given}");
    // It is fixed from then on.
    let fixed = format!("addresses=\"{mac} {address}\"");
    let find = ["--bare", "--columns=name", "find", "Logical_Switch_Port", &fixed];
    eventually("the fixed address", || nbctl(&find).is_ok_and(|row| !row.trim().is_empty()))?;
    let seen = engine.docker_ok(&["exec", "cc", "ip", "-4", "-o", "address", "show", "eth0"])?;
    ensure!(seen.contains(&format!("inet {address}/")), "{seen}");
    engine.stop()
}

/// Runs `work` while the agent repairs nothing: its threads for control stand still. Those that move frames go on, so
/// what fails meanwhile fails for want of the row and not of the way.
pub(crate) fn unrepaired<T>(work: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    use nix::sys::{
        ptrace,
        wait::{WaitPidFlag, waitpid},
    };
    let agent = helper_process("arca-helper-agent", Some("agent"))?;
    let mut stopped = Vec::new();
    for entry in fs::read_dir(format!("/proc/{agent}/task"))?.flatten() {
        let name = fs::read_to_string(entry.path().join("comm"))?;
        if name.starts_with("link-") {
            continue;
        }
        let thread = Pid::from_raw(entry.file_name().to_string_lossy().parse()?);
        // Threads are stopped by tracing them: a stop signal would stop them all.
        ptrace::seize(thread, ptrace::Options::empty()).context("trace the agent")?;
        ptrace::interrupt(thread)?;
        waitpid(thread, Some(WaitPidFlag::__WALL))?;
        stopped.push(thread);
    }
    let result = work();
    for thread in stopped {
        ptrace::detach(thread, None)?;
    }
    result
}

/// Deletes all rows that a search finds, and waits until the switch has followed.
fn destroy(table: &str, find: &str) -> anyhow::Result<()> {
    let rows = nbctl(&["--bare", "--columns=_uuid", "find", table, find])?;
    ensure!(!rows.trim().is_empty(), "{table} has a row with {find}");
    for row in rows.split_whitespace() {
        nbctl(&["destroy", table, row])?;
    }
    nbctl(&["--wait=hv", "--timeout=10", "sync"]).map(drop)
}

/// Asks until it is so. From outside, the agent's repair has no event to wait for.
pub(crate) fn eventually(what: &str, mut is_so: impl FnMut() -> bool) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        ensure!(Instant::now() < deadline, "{what} did not come back");
    }
    Ok(())
}

fn dhcp_row() -> anyhow::Result<()> {
    let engine = engine()?;
    let run = ["run", "-d", "--name", "cc", "--network", "n", "--cap-add", "NET_ADMIN", "busybox", "sleep", "1000"];
    engine.docker_ok(&run)?;
    let id = engine.docker_ok(&["network", "inspect", "-f", "{{.Id}}", "n"])?;
    let lease = || {
        engine.docker(&[
            "exec",
            "cc",
            "udhcpc",
            "-i",
            "eth0",
            "-n",
            "-q",
            "-f",
            "-t",
            "2",
            "-T",
            "1",
            "-s",
            "/bin/true",
        ])
    };
    unrepaired(|| {
        ensure!(lease().code == 0, "the way to the DHCP server does not lead through what stands still: {:?}", lease());
        destroy("DHCP_Options", &format!("external_ids:arca-network={id}"))?;
        let none = lease();
        ensure!(none.code != 0, "a lease without a DHCP_Options row: {none:?}");
        Ok(())
    })?;
    eventually("the DHCP_Options row", || lease().code == 0)?;
    engine.stop()
}

fn named_step() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "first", "--network", "n", "busybox", "sleep", "1000"])?;
    // What makes flows of rows stands still: OVN's DHCP server never hears of the new port.
    let controller = Pid::from_raw(helper_process("ovn-controller", None)?);
    kill(controller, Signal::SIGSTOP)?;
    let failed = engine.docker(&["run", "--name", "second", "--network", "n", "busybox", "true"]);
    kill(controller, Signal::SIGCONT)?;
    let named = "failed at step \"confirm\"";
    ensure!(failed.code == 125 && failed.stderr.contains(named), "the failing step is named: {failed:?}");
    let list = |what: &str| -> anyhow::Result<Vec<Value>> {
        Ok(serde_json::from_str(&engine.program("arca-netd", &[what, "--json"]).ok()?)?)
    };
    ensure!(list("endpoints")?.len() == 1, "only the first container's endpoint is left: {:?}", list("endpoints")?);
    let links: Vec<Value> = serde_json::from_str(&engine.program("arca-relayd", &["links", "--json"]).ok()?)?;
    ensure!(links.len() == 1, "only the first container's link is left: {links:?}");
    let rows = nbctl(&["--bare", "--columns=_uuid", "find", "Logical_Switch_Port", "external_ids:arca-kind=endpoint"])?;
    ensure!(rows.split_whitespace().count() == 1, "only the first container's row is left: {rows}");
    engine.docker_ok(&["start", "-a", "second"])?;
    engine.stop()
}

fn own_client() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&[
        "run",
        "-d",
        "--name",
        "cc",
        "--network",
        "n",
        "--cap-add",
        "NET_ADMIN",
        "busybox",
        "sleep",
        "1000",
    ])?;
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
    let address = engine.address("bb", "n")?;
    // The resolver knows a name at once, OVN when nothing has changed for a moment.
    let known = || nbctl(&["--bare", "--columns=records", "list", "DNS"]).is_ok_and(|text| text.contains("bb.n="));
    eventually("the names in OVN", known)?;
    // -type=a: OVN has no answer for the AAAA question that goes along otherwise.
    let ask = |name: &str| engine.docker(&["exec", "aa", "nslookup", "-type=a", name]);
    unrepaired(|| {
        // The rows that lead to the fallback resolver go, and it stands still itself: only OVN can answer now.
        for protocol in ["udp", "tcp"] {
            destroy("Load_Balancer", &format!("external_ids:arca-kind=dns-{protocol}"))?;
        }
        let found = ask("bb").ok()?;
        ensure!(found.contains(&address), "{found}");
        Ok(())
    })?;
    engine.stop()
}

fn load_balancer_row() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.run_server(&["--name", "cc", "--hostname", "cc", "--network", "n", "-p", "8080:80"])?;
    let served = || story::http_get("127.0.0.1:8080", "/name");
    unrepaired(|| {
        ensure!(served()? == "cc");
        destroy("Load_Balancer", "external_ids:arca-kind=published")?;
        ensure!(served().is_err(), "the port must be dead without its row");
        Ok(())
    })?;
    eventually("the load balancer row", || served().is_ok_and(|text| text == "cc"))?;
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
        Ok(links.iter().filter_map(|link| link["toHelper"]["bytes"].as_u64()).sum())
    };
    let before = bytes()?;
    measure::transfer(engine.pid("aa")?, engine.pid("bb")?, &engine.address("bb", "n")?, 32, |_| Ok(()))?;
    let grown = bytes()? - before;
    let sent = 32 << 20;
    ensure!((sent..sent * 5 / 4).contains(&grown), "{grown} bytes counted for {sent} sent");
    engine.stop()
}
