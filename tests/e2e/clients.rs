// SPDX-License-Identifier: Apache-2.0
//! Clients that are not the docker CLI.

use std::{path::Path, process::Command};

use anyhow::ensure;
use arca_tests::{clients, engine::Engine};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[("docker_py_finds_what_it_expects", docker_py)];

fn docker_py() -> anyhow::Result<()> {
    let test = "clients::docker_py_finds_what_it_expects";
    let Some(python) = clients::tool(test, "docker-py", "bin/python3") else { return Ok(()) };
    let engine = Engine::start()?;
    engine.load_image()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("clients/docker_py.py");
    let mut command = Command::new(python);
    command.arg("-B").arg(script).env("DOCKER_HOST", engine.docker_host()).env("DOCKER_CONFIG", engine.home());
    let output = command.output()?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (said, complained) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success() && said.ends_with("docker-py: done\n"), "{said}{complained}");
    ensure!(engine.docker_ok(&["ps", "-aq"])?.is_empty());
    engine.stop()
}
