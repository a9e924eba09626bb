// SPDX-License-Identifier: Apache-2.0
//! The topology as lines of text: networks, who is on them with which address, which ports lead in.

use std::fmt::Write as _;

use arca_tests::engine::Engine;
use serde_json::Value;

/// Draws every network that has containers.
pub(crate) fn topology(engine: &Engine) -> anyhow::Result<String> {
    let names = engine.docker_ok(&["network", "ls", "--format", "{{.Name}}"])?;
    let mut networks = Vec::new();
    for name in names.lines().filter(|name| !matches!(*name, "host" | "none")) {
        let network: Vec<Value> = serde_json::from_str(&engine.docker_ok(&["network", "inspect", name])?)?;
        networks.extend(network);
    }
    let published = engine.docker_ok(&["ps", "--format", "{{.Names}}|{{.Ports}}"])?;
    let ports = |container: &str| {
        let line = published.lines().find_map(|line| line.split_once('|').filter(|(name, _)| *name == container));
        line.map(|(_, ports)| ports.to_owned()).filter(|ports| ports.contains("->")).unwrap_or_default()
    };
    let mut text = String::from("  outside ── host ── gateway router (SNAT, published ports)\n");
    let last = networks.len().saturating_sub(1);
    for (number, network) in networks.iter().enumerate() {
        let (branch, trunk) = if number == last { ("└──", "   ") } else { ("├──", "│  ") };
        let field = |path: &str| network.pointer(path).and_then(Value::as_str).unwrap_or_default();
        writeln!(text, "                      {branch} {} {}", field("/Name"), field("/IPAM/Config/0/Subnet"))?;
        let containers = network["Containers"].as_object().cloned().unwrap_or_default();
        let end = containers.len().saturating_sub(1);
        for (index, container) in containers.values().enumerate() {
            let twig = if index == end { "└─" } else { "├─" };
            let name = container["Name"].as_str().unwrap_or_default();
            let address = container["IPv4Address"].as_str().unwrap_or_default();
            writeln!(text, "                      {trunk} {twig} {name:<8} {address:<16} {}", ports(name))?;
        }
    }
    Ok(text)
}
