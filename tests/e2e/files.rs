// SPDX-License-Identifier: Apache-2.0
//! Files of containers from outside (cp, export, diff), and what containers use and may use (stats, update).

use std::{fs, path::Path, process::Command};

use anyhow::{Context as _, ensure};
use arca_tests::engine::Engine;

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("files_go_in_and_out_and_never_past_the_root", copies),
    ("what_changed_is_listed_and_exported", changes),
    ("use_is_counted_and_limits_change", usage),
];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    Ok(engine)
}

/// Names in a tar archive.
fn names(tar: &Path) -> anyhow::Result<Vec<String>> {
    let output = Command::new("tar").arg("tf").arg(tar).output().context("tar")?;
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn copies() -> anyhow::Result<()> {
    let engine = engine()?;
    let folder = tempfile::tempdir()?;
    let at = |name: &str| folder.path().join(name).to_string_lossy().into_owned();
    fs::create_dir_all(at("tree/deep"))?;
    fs::write(at("tree/deep/file"), b"found\n")?;
    // More than any pipe, window or buffer on the way holds.
    let big: Vec<u8> = (0u32..3 << 20).flat_map(u32::to_le_bytes).collect();
    fs::write(at("tree/big"), &big)?;
    engine.docker_ok(&["run", "-d", "--name", "runs", "-v", "kept:/kept", "busybox", "sleep", "1000"])?;
    engine.docker_ok(&["create", "--name", "made", "-v", "kept:/kept", "busybox", "cat", "/kept/tree/deep/file"])?;
    for (place, read) in [("runs:/", "/tree"), ("made:/srv-new", "/srv-new"), ("made:/kept", "/kept/tree")] {
        engine.docker_ok(&["cp", &at("tree"), place])?;
        let (name, back) =
            (place.split(':').next().unwrap_or_default(), at(&format!("back{}", read.replace('/', "-"))));
        engine.docker_ok(&["cp", &format!("{name}:{read}"), &back])?;
        ensure!(fs::read(format!("{back}/big"))? == big, "{place}: it comes back as it went");
        ensure!(fs::read_to_string(format!("{back}/deep/file"))? == "found\n");
    }
    ensure!(engine.docker_ok(&["exec", "runs", "cat", "/tree/deep/file", "/kept/tree/deep/file"])? == "found\nfound");
    ensure!(engine.docker_ok(&["start", "-a", "made"])? == "found", "a volume was written before the first start");
    let absent = engine.docker(&["cp", "runs:/nope", &at("x")]);
    ensure!(
        absent.code == 1 && absent.stderr.contains("Could not find the file /nope in container runs"),
        "{absent:?}"
    );

    // A link out of the container leads to the container's own root.
    fs::write(at("evil"), "evil\n")?;
    engine.docker_ok(&["exec", "runs", "ln", "-s", &folder.path().to_string_lossy(), "/away"])?;
    engine.docker_ok(&["exec", "runs", "ln", "-s", "../../../../../../../../etc", "/up"])?;
    let refused = engine.docker(&["cp", &at("evil"), "runs:/away/here"]);
    ensure!(refused.code != 0 && !Path::new(&at("here")).exists(), "{refused:?}");
    engine.docker_ok(&["cp", "runs:/up/passwd", &at("passwd")])?;
    let own = engine.docker_ok(&["exec", "runs", "cat", "/etc/passwd"])?;
    ensure!(fs::read_to_string(at("passwd"))?.trim_end() == own, "not the host's");
    engine.docker_ok(&["exec", "runs", "mkdir", "-p", folder.path().to_str().context("path")?])?;
    engine.docker_ok(&["cp", &at("evil"), "runs:/away/here"])?;
    ensure!(!Path::new(&at("here")).exists() && engine.docker_ok(&["exec", "runs", "cat", &at("here")])? == "evil");
    engine.docker_ok(&["rm", "-f", "runs", "made"])?;
    engine.stop()
}

fn changes() -> anyhow::Result<()> {
    let engine = engine()?;
    let folder = tempfile::tempdir()?;
    engine.docker_ok(&["run", "--name", "clean", "busybox", "true"])?;
    ensure!(engine.docker_ok(&["diff", "clean"])?.is_empty());
    let script = "echo x >/new; rm /etc/group; echo y >>/etc/passwd; touch /ready; sleep 1000";
    engine.docker_ok(&["run", "-d", "--name", "dirty", "-v", "/volume", "busybox", "sh", "-c", script])?;
    let ready = "while ! test -e /ready; do :; done";
    engine.docker_ok(&["exec", "dirty", "sh", "-c", ready])?;
    let listed = engine.docker_ok(&["diff", "dirty"])?;
    for line in ["A /new", "D /etc/group", "C /etc/passwd", "C /etc"] {
        ensure!(listed.lines().any(|found| found == line), "{line} is missing: {listed}");
    }
    for state in ["running", "stopped"] {
        let tar = folder.path().join(state);
        engine.docker_ok(&["export", "-o", &tar.to_string_lossy(), "dirty"])?;
        let names = names(&tar)?;
        let has = |name: &str| names.iter().any(|found| found == name);
        ensure!(has("new") && has("bin/busybox") && has("etc/passwd") && !has("etc/group"), "{state}: {names:?}");
        ensure!(
            !names.iter().any(|name| name.starts_with("proc/") && name.len() > 5),
            "{state}: mounts are no part of it"
        );
        engine.docker_ok(&["stop", "-t", "0", "dirty"])?;
    }
    engine.docker_ok(&["rm", "-v", "clean", "dirty"])?;
    engine.stop()
}

fn usage() -> anyhow::Result<()> {
    let engine = engine()?;
    let stats =
        |field: &str| engine.docker_ok(&["stats", "--no-stream", "--format", &format!("{{{{.{field}}}}}"), "busy"]);
    let busy = "while :; do :; done";
    engine.docker_ok(&["run", "-d", "--name", "busy", "--memory", "64m", "busybox", "sh", "-c", busy])?;
    let line = stats("Name}} {{.PIDs}} {{.CPUPerc}} {{.MemUsage")?;
    let words: Vec<&str> = line.split_whitespace().collect();
    let share: f64 = words[2].trim_end_matches('%').parse().with_context(|| line.clone())?;
    ensure!(words[..2] == ["busy", "1"] && share > 1.0 && line.ends_with("/ 64MiB"), "{line}");
    engine.docker_ok(&["update", "--memory", "32m", "--memory-swap", "48m", "busy"])?;
    ensure!(stats("MemUsage")?.ends_with("/ 32MiB"), "the kernel was told");
    engine.docker_ok(&["update", "--memory", "96m", "--memory-swap", "128m", "busy"])?;
    ensure!(stats("MemUsage")?.ends_with("/ 96MiB"), "up again");
    engine.docker_ok(&["pause", "busy"])?;
    ensure!(stats("CPUPerc")? == "0.00%", "frozen, it uses nothing");
    let refused = engine.docker(&["update", "--memory", "1m", "busy"]);
    ensure!(refused.code == 1 && refused.stderr.contains("Minimum memory limit allowed is 6MB"), "{refused:?}");
    engine.docker_ok(&["update", "--restart", "always", "busy"])?;
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.HostConfig.RestartPolicy.Name}}", "busy"])? == "always");
    engine.docker_ok(&["rm", "-f", "busy"])?;
    engine.stop()
}
