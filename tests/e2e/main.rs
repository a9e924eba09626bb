// SPDX-License-Identifier: Apache-2.0
//! End-to-end tests: a real engine, the real docker CLI, real OVN, real crun.
//!
//! Each test runs as a process of its own in private namespaces and must leave nothing behind there: after it, the
//! [`Snapshot`] taken before it is compared. `cargo test -p arca-tests -- NAME` runs one; see `tests/README.md`.

mod attach;
mod bad_input;
mod clients;
mod compose;
mod containers;
mod daemons;
mod docs;
mod files;
mod helper;
mod helper_vm;
mod ipv6;
mod isolation;
mod leak_check;
mod links;
mod model;
mod names;
mod networks;
mod proofs;
mod publishing;
mod races;
mod reach;
mod registry;
mod services;
mod story;
mod vm;
mod vmnet;
mod vmnet_features;

use std::{
    collections::BTreeMap,
    io::{self, Write as _},
    process::ExitCode,
};

use arca_tests::{isolation as namespaces, leaks::Snapshot};
use libtest_mimic::{Arguments, Failed, Trial};

type Test = fn() -> anyhow::Result<()>;

/// Every test, by name.
fn tests() -> BTreeMap<String, Test> {
    let modules: &[(&str, &[(&str, Test)])] = &[
        ("attach", attach::TESTS),
        ("bad_input", bad_input::TESTS),
        ("clients", clients::TESTS),
        ("compose", compose::TESTS),
        ("containers", containers::TESTS),
        ("daemons", daemons::TESTS),
        ("docs", docs::TESTS),
        ("files", files::TESTS),
        ("helper", helper::TESTS),
        ("helper_vm", helper_vm::TESTS),
        ("ipv6", ipv6::TESTS),
        ("isolation", isolation::TESTS),
        ("leak_check", leak_check::TESTS),
        ("links", links::TESTS),
        ("model", model::TESTS),
        ("names", names::TESTS),
        ("networks", networks::TESTS),
        ("proofs", proofs::TESTS),
        ("publishing", publishing::TESTS),
        ("races", races::TESTS),
        ("reach", reach::TESTS),
        ("registry", registry::TESTS),
        ("services", services::TESTS),
        ("story", story::TESTS),
        ("vm", vm::TESTS),
        ("vmnet", vmnet::TESTS),
        ("vmnet_features", vmnet_features::TESTS),
    ];
    let flat = modules.iter().flat_map(|(module, tests)| tests.iter().map(move |(name, test)| (module, *name, *test)));
    flat.map(|(module, name, test)| (format!("{module}::{name}"), test)).collect()
}

fn main() -> ExitCode {
    let tests = tests();
    if let Some(name) = namespaces::errand() {
        let outcome = match tests.get(&name) {
            Some(test) => inside(*test),
            None => Err(anyhow::anyhow!("no test is called {name}")),
        };
        return match outcome {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                eprintln!("{error:?}");
                ExitCode::FAILURE
            }
        };
    }
    let mut arguments = Arguments::from_args();
    // Tests mostly wait, each in namespaces of its own: measured on two cores, an engine alone leaves most of them idle.
    arguments.test_threads.get_or_insert(2);
    let trials = tests.into_keys().map(|name| Trial::test(name.clone(), move || outside(&name))).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Runs one test in namespaces of its own.
fn outside(name: &str) -> Result<(), Failed> {
    let output = namespaces::rerun_captured(name).map_err(|error| format!("make namespaces: {error} (run as root)"))?;
    if output.status.success() {
        // What was left out is said, passed or not.
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        for (what, reason) in said.lines().filter_map(|line| line.strip_prefix("SKIP ")?.split_once(": ")) {
            // The runner has begun a line with the test's name.
            let _ = writeln!(io::stdout());
            arca_tests::skip(what, reason);
        }
        return Ok(());
    }
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    Err(format!("{}\n{}{}", output.status, text(&output.stdout), text(&output.stderr)).into())
}

fn inside(test: Test) -> anyhow::Result<()> {
    namespaces::settle()?;
    let before = Snapshot::take()?;
    test()?;
    let leaked = Snapshot::left_since(&before)?;
    anyhow::ensure!(leaked.is_empty(), "the test left behind: {leaked:?}");
    Ok(())
}
