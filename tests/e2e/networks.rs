// SPDX-License-Identifier: Apache-2.0
//! Networks as docker users know them, beyond the story.

use std::net::UdpSocket;
use std::time::Duration;

use anyhow::ensure;
use arca_tests::{engine::Engine, isolation, measure, outside::Outside, story};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("options_are_kept_and_shown_as_dockers", options),
    ("addresses_and_aliases_asked_for_are_given", addresses),
    ("internal_networks_have_no_way_out", internal),
    ("published_ports_come_in_every_form", published),
    ("two_containers_of_one_network_reach_each_other_and_nobody_elses", isolation_of_networks),
    ("names_follow_containers", names),
    ("host_and_none", host_and_none),
];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    Ok(engine)
}

fn options() -> anyhow::Result<()> {
    let engine = engine()?;
    let listed = engine.docker_ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"])?;
    ensure!(listed == "bridge bridge local\nhost host local\nnone null local", "{listed}");
    let id = engine.docker_ok(&[
        "network",
        "create",
        "--subnet",
        "10.77.0.0/16",
        "--gateway",
        "10.77.0.254",
        "--ip-range",
        "10.77.5.0/24",
        "--label",
        "a=b",
        "--internal",
        "n",
    ])?;
    let network: Vec<Value> = serde_json::from_str(&engine.docker_ok(&["network", "inspect", "n"])?)?;
    let network = &network[0];
    ensure!(network["Id"] == json!(id) && network["Driver"] == "bridge" && network["Internal"] == true, "{network}");
    let pool = json!([{"Subnet": "10.77.0.0/16", "IPRange": "10.77.5.0/24", "Gateway": "10.77.0.254"}]);
    ensure!(network["IPAM"]["Config"] == pool && network["Labels"] == json!({"a": "b"}), "{network}");
    ensure!(network["Containers"] == json!({}));
    engine.docker_ok(&["run", "-d", "--name", "cc", "--network", "n", "busybox", "sleep", "1000"])?;
    let address = engine.address("cc", "n")?;
    ensure!(address.starts_with("10.77.5."), "{address} is not in the range asked for");
    let busy = engine.docker(&["network", "rm", "n"]);
    ensure!(busy.code == 1 && busy.stderr.contains("has active endpoints (name:\"cc\""), "{busy:?}");
    engine.docker_ok(&["rm", "-f", "cc"])?;
    ensure!(engine.docker_ok(&["network", "rm", "n"])? == "n");
    engine.stop()
}

fn addresses() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.78.0.0/24", "n"])?;
    engine.run_server(&["--name", "aa", "--network", "n", "--ip", "10.78.0.50", "--network-alias", "alpha"])?;
    ensure!(engine.address("aa", "n")? == "10.78.0.50");
    for name in ["aa", "alpha", "aa.n"] {
        let text = engine.docker_ok(&[
            "run",
            "--rm",
            "--network",
            "n",
            "busybox",
            "wget",
            "-qO-",
            &format!("http://{name}/name"),
        ])?;
        ensure!(text.len() == 12, "{name}: {text:?}");
    }
    let taken = engine.docker(&["run", "--rm", "--network", "n", "--ip", "10.78.0.50", "busybox", "true"]);
    ensure!(taken.code == 125 && taken.stderr.contains("Address already in use"), "{taken:?}");
    engine.run_server(&["--name", "bb"])?;
    engine.docker_ok(&["network", "connect", "--ip", "10.78.0.60", "--alias", "beta", "n", "bb"])?;
    ensure!(engine.address("bb", "n")? == "10.78.0.60");
    let text = engine.docker_ok(&["exec", "aa", "wget", "-qO-", "http://beta/name"])?;
    ensure!(text.len() == 12, "{text:?}");
    let pointer = engine.docker_ok(&["exec", "aa", "nslookup", "10.78.0.60"])?;
    ensure!(pointer.contains("name = bb"), "{pointer}");
    engine.stop()
}

fn internal() -> anyhow::Result<()> {
    let _outside = Outside::start()?;
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "--internal", "inner"])?;
    engine.run_server(&["--name", "ss", "--network", "inner"])?;
    let reach =
        "wget -qO- -T 3 http://ss/name && nc -w 2 198.51.100.1 7777 && echo out; ip route | grep -c default; true";
    let text = engine.docker_ok(&["run", "--rm", "--network", "inner", "busybox", "sh", "-c", reach])?;
    ensure!(text.lines().count() == 2 && text.ends_with("\n0"), "{text:?}");
    engine.stop()
}

fn published() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = engine()?;
    engine.run_server(&["--name", "aa", "-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "80"])?;
    ensure!(story::http_get("127.0.0.1:8080", "/name")?.len() == 12);
    ensure!(story::http_get("[::1]:8080", "/name")?.len() == 12);
    ensure!(story::http_get("127.0.0.1:8081", "/name")?.len() == 12);
    let ports = engine.docker_ok(&["port", "aa"])?;
    ensure!(ports.contains("80/tcp -> 0.0.0.0:8080") && ports.contains("80/tcp -> 127.0.0.1:8081"), "{ports}");
    let ephemeral: Vec<u16> = ports.lines().filter_map(|line| line.rsplit(':').next()?.parse().ok()).collect();
    let ephemeral = ephemeral.into_iter().find(|port| *port >= 32768).expect("an ephemeral port");
    ensure!(story::http_get(&format!("127.0.0.1:{ephemeral}"), "/name")?.len() == 12);
    let from_outside = isolation::in_network_of(outside.pid(), || story::http_get("198.51.100.2:8080", "/name"))?;
    ensure!(from_outside.len() == 12);
    let hidden = isolation::in_network_of(outside.pid(), || story::http_get("198.51.100.2:8081", "/name"));
    ensure!(hidden.is_err(), "a port bound to loopback must not answer outside");

    let again = engine.docker(&["run", "--rm", "-p", "8080:80", "busybox", "true"]);
    ensure!(
        again.code == 125 && again.stderr.contains("Bind for 0.0.0.0:8080 failed: port is already allocated"),
        "{again:?}"
    );
    ensure!(engine.docker_ok(&["ps", "-aq", "--filter", "status=running"])?.lines().count() == 1);

    engine.docker_ok(&["run", "-d", "--name", "uu", "-p", "5353:53/udp", "busybox", "sleep", "1000"])?;
    // An echo in the container's network: the image's nc knows no UDP.
    let echo = isolation::in_network_of(engine.pid("uu")?, || UdpSocket::bind("0.0.0.0:53"))?;
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((length, peer)) = echo.recv_from(&mut buffer) {
            let _ = echo.send_to(&buffer[..length], peer);
        }
    });
    let socket = UdpSocket::bind("127.0.0.1:0")?;
    socket.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket.connect("127.0.0.1:5353")?;
    let answered =
        (0..5).any(|_| socket.send(b"ping").is_ok() && socket.recv(&mut [0; 16]).is_ok_and(|length| length == 4));
    ensure!(answered, "UDP through a published port");
    engine.docker_ok(&["rm", "-f", "aa"])?;
    ensure!(story::http_get("127.0.0.1:8080", "/name").is_err(), "removed with its container");
    engine.stop()
}

fn isolation_of_networks() -> anyhow::Result<()> {
    let engine = engine()?;
    for network in ["one", "two"] {
        engine.docker_ok(&["network", "create", network])?;
    }
    engine.run_server(&["--name", "aa", "--network", "one"])?;
    engine.run_server(&["--name", "bb", "--network", "one"])?;
    engine.run_server(&["--name", "xx", "--network", "two"])?;
    let (a, b) = (engine.pid("aa")?, engine.pid("bb")?);
    measure::transfer(a, b, &engine.address("bb", "one")?, 16, |_| Ok(()))?;
    measure::transfer(b, a, &engine.address("aa", "one")?, 16, |_| Ok(()))?;
    let other = engine.address("xx", "two")?;
    let reached = engine.docker(&["exec", "aa", "wget", "-qO-", "-T", "2", &format!("http://{other}/name")]);
    ensure!(reached.code != 0, "{reached:?}");
    let itself = engine.docker_ok(&["exec", "xx", "wget", "-qO-", "-T", "2", &format!("http://{other}/name")])?;
    ensure!(itself.len() == 12);
    engine.stop()
}

fn names() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    engine.run_server(&["--name", "aa", "--network", "n"])?;
    engine.docker_ok(&["run", "-d", "--name", "asker", "--network", "n", "busybox", "sleep", "1000"])?;
    let found = |name: &str| engine.docker(&["exec", "asker", "nslookup", name]).code == 0;
    let short = engine.docker_ok(&["inspect", "-f", "{{.Config.Hostname}}", "aa"])?;
    ensure!(found("aa") && found("AA") && found(&short) && found("asker") && !found("nobody"));
    let resolv = engine.docker_ok(&["exec", "asker", "cat", "/etc/resolv.conf"])?;
    ensure!(resolv.contains("nameserver 127.0.0.11") && resolv.contains("options ndots:0"), "{resolv}");
    engine.docker_ok(&["stop", "-t", "0", "aa"])?;
    ensure!(!found("aa"), "a stopped container has no name");
    engine.docker_ok(&["start", "aa"])?;
    ensure!(found("aa"));
    engine.docker_ok(&["rm", "-f", "aa"])?;
    ensure!(!found("aa") && !found(&short));
    engine.stop()
}

fn host_and_none() -> anyhow::Result<()> {
    let engine = engine()?;
    let none = engine.docker_ok(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "ip -o link | wc -l"])?;
    ensure!(none == "1", "{none}");
    let host = engine.docker_ok(&["run", "--rm", "--network", "host", "busybox", "ip", "-o", "link"])?;
    ensure!(host.contains(&engine.uplink()), "{host}");
    engine.stop()
}
