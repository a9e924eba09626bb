// SPDX-License-Identifier: Apache-2.0
//! The native backend, and both backends side by side.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    engine::{Engine, Ran, binaries, over_vms, vms_missing},
    isolation, measure,
    outside::{self, Outside},
};

use crate::{Test, vmnet_features::runs_beside};

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("containers_know_each_other_get_out_and_stay_apart", traffic),
    ("what_it_cannot_do_is_refused_in_the_exact_words", refusals),
    ("whatever_dies_nothing_is_lost_and_nothing_is_left", lives),
    ("both_backends_serve_side_by_side_and_workloads_move", mixed),
    ("a_virtual_machine_is_on_a_native_network_like_any_container", virtual_machine),
    ("a_changed_log_level_needs_no_restart", log_level),
];

pub(crate) const NO_DYNAMIC: &str =
    "vmnet backend does not support dynamic network attachment. Recreate container with --network flag.";
const NO_PORTS: &str = "vmnet backend does not support port mapping";
const NO_SECOND: &str =
    "vmnet backend does not support more than one network per container. Use a bridge network of the ovs backend.";
pub(crate) const NO_OVERLAY: &str = "vmnet backend does not support overlay networks";

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start_with(&["networkBackend=vmnet"])?;
    engine.load_image()?;
    Ok(engine)
}

/// A container that serves its host name by HTTP; it serves when this returns.
fn serve(engine: &Engine, arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["run", "-d"];
    all.extend(arguments);
    all.extend(["busybox", "sh", "-c", "mkdir /srv; hostname > /srv/name; exec httpd -f -p 80 -h /srv"]);
    let id = engine.docker_ok(&all)?;
    // A server's readiness has no event that docker could tell: it is asked until it answers.
    let ask = "until wget -q -O /dev/null http://127.0.0.1/name 2>/dev/null; do :; done";
    engine.docker_ok(&["exec", &id, "timeout", "10", "sh", "-c", ask])?;
    Ok(id)
}

fn idle(engine: &Engine, arguments: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["run", "-d"];
    all.extend(arguments);
    all.extend(["busybox", "sleep", "1000"]);
    engine.docker_ok(&all)
}

/// What a container gets over HTTP from another.
fn get(engine: &Engine, from: &str, name: &str) -> Ran {
    engine.docker(&["exec", from, "wget", "-q", "-O-", "-T", "2", &format!("http://{name}/name")])
}

fn helper(engine: &Engine) -> anyhow::Result<String> {
    let status: serde_json::Value = serde_json::from_str(&engine.arca(&["daemon", "status", "--json"]).ok()?)?;
    Ok(status["helper"].as_str().unwrap_or_default().to_owned())
}

fn traffic() -> anyhow::Result<()> {
    let _outside = Outside::start()?;
    let engine = engine()?;
    ensure!(helper(&engine)? == "not needed", "{}", helper(&engine)?);
    engine.docker_ok(&[
        "network",
        "create",
        "--subnet",
        "10.71.0.0/24",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "n",
    ])?;
    let both = ["--ipv6", "--subnet", "10.74.0.0/24", "--subnet", "fd00:74::/64"];
    engine.docker_ok(&[&["network", "create", "--driver", "vmnet"][..], &both, &["m"]].concat())?;
    engine.docker_ok(&["network", "create", "--internal", "inner"])?;
    let listed = engine.docker_ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"])?;
    ensure!(listed == "bridge bridge\nhost host\ninner bridge\nm vmnet\nn bridge\nnone null", "{listed}");

    serve(&engine, &["--name", "aa", "--network", "n", "--ip", "10.71.0.50", "--network-alias", "alpha"])?;
    idle(&engine, &["--name", "bb", "--network", "n"])?;
    ensure!(engine.address("aa", "n")? == "10.71.0.50" && engine.address("bb", "n")? == "10.71.0.2");
    let short = engine.docker_ok(&["inspect", "-f", "{{.Config.Hostname}}", "aa"])?;
    for name in ["aa", "alpha", "aa.n", &short] {
        let got = get(&engine, "bb", name);
        ensure!(got.code == 0 && got.stdout.trim() == short, "{name}: {got:?}");
    }
    measure::transfer(engine.pid("aa")?, engine.pid("bb")?, "10.71.0.2", 16, |_| Ok(()))?;
    let link = engine.docker_ok(&["exec", "bb", "ip", "-o", "link", "show", "eth0"])?;
    ensure!(link.contains("mtu 1400"), "{link}");

    // Names follow: who comes, who changes his name, who goes.
    idle(&engine, &["--name", "cc", "--network", "n"])?;
    let hosts = || engine.docker_ok(&["exec", "bb", "cat", "/etc/hosts"]);
    ensure!(hosts()?.contains("10.71.0.3\tcc "), "{}", hosts()?);
    engine.docker_ok(&["exec", "bb", "sh", "-c", "echo '192.0.2.1 mine' >> /etc/hosts"])?;
    engine.docker_ok(&["rename", "cc", "dd"])?;
    ensure!(hosts()?.contains("10.71.0.3\tdd ") && !hosts()?.contains("\tcc "), "{}", hosts()?);
    engine.docker_ok(&["rm", "-f", "dd"])?;
    ensure!(!hosts()?.contains("10.71.0.3") && hosts()?.contains("192.0.2.1 mine"), "{}", hosts()?);

    // Other networks are out of reach, and each way there is refused by the host, not by luck.
    idle(&engine, &["--name", "xx", "--network", "m"])?;
    ensure!(get(&engine, "xx", "10.71.0.50").code != 0, "a container reached another network");
    ensure!(get(&engine, "xx", "aa").code != 0, "a name of another network is known");

    ipv6(&engine)?;

    // Where containers of one network may not talk, their frames do not pass either.
    engine.docker_ok(&["network", "create", "-o", "com.docker.network.bridge.enable_icc=false", "quiet"])?;
    serve(&engine, &["--name", "qq", "--network", "quiet"])?;
    idle(&engine, &["--name", "rr", "--network", "quiet"])?;
    ensure!(get(&engine, "rr", "qq").code != 0, "containers talk though they may not");

    // Outside they are the host.
    let who = format!("nc -w 2 {} {}", outside::ADDRESS, outside::WHO_PORT);
    let seen = engine.docker_ok(&["exec", "bb", "sh", "-c", &who])?;
    ensure!(seen.contains(outside::GATEWAY), "outside saw {seen:?}");
    serve(&engine, &["--name", "ii", "--network", "inner"])?;
    idle(&engine, &["--name", "jj", "--network", "inner"])?;
    ensure!(get(&engine, "jj", "ii").code == 0);
    let out = engine.docker(&["exec", "jj", "sh", "-c", &who]);
    ensure!(!out.stdout.contains(outside::GATEWAY), "an internal network has a way out: {out:?}");
    let plain = engine.docker_ok(&["run", "--rm", "busybox", "sh", "-c", &who])?;
    ensure!(plain.contains(outside::GATEWAY), "a plain docker run: {plain:?}");
    ensure!(helper(&engine)? == "not needed");
    engine.stop()?;
    let forwards = fs::read_to_string("/proc/sys/net/ipv6/conf/all/forwarding")?;
    ensure!(forwards.trim() == "0", "IPv6 forwarding is as it was: {forwards}");
    Ok(())
}

/// IPv6 beside IPv4 on network `m`, where `xx` is, and alone: addresses, names, the way out, and what stays out of reach.
fn ipv6(engine: &Engine) -> anyhow::Result<()> {
    let address6 = |name: &str, network: &str| -> anyhow::Result<String> {
        let format = format!("{{{{(index .NetworkSettings.Networks \"{network}\").GlobalIPv6Address}}}}");
        engine.docker_ok(&["inspect", "-f", &format, name])
    };
    ensure!(address6("xx", "m")? == "fd00:74::2", "the lowest free one: {}", address6("xx", "m")?);
    let id = serve(engine, &["--name", "yy", "--network", "m", "--ip6", "fd00:74::99"])?;
    ensure!(address6("yy", "m")? == "fd00:74::99" && engine.address("yy", "m")? == "10.74.0.3");
    let taken = engine.docker(&["run", "--rm", "--network", "m", "--ip6", "fd00:74::99", "busybox", "true"]);
    ensure!(taken.code == 125 && taken.stderr.contains("Address already in use"), "{taken:?}");
    // Usable at once, by address and by name; `hosts` has it in both families.
    let seen =
        engine.docker_ok(&["exec", "xx", "ip", "-6", "-o", "address", "show", "dev", "eth0", "scope", "global"])?;
    ensure!(seen.contains("fd00:74::2/64") && !seen.contains("tentative"), "{seen}");
    let got = get(engine, "xx", "[fd00:74::99]");
    ensure!(got.stdout.trim().len() == 12 && id.starts_with(got.stdout.trim()), "{got:?}");
    let hosts = engine.docker_ok(&["exec", "xx", "cat", "/etc/hosts"])?;
    ensure!(hosts.contains("10.74.0.3\tyy ") && hosts.contains("fd00:74::99\tyy "), "{hosts}");
    let who = |name: &str| outside::ask_who(engine.pid(name)?, outside::ADDRESS6, outside::WHO_PORT);
    ensure!(who("xx")? == outside::GATEWAY6, "outside it is the host");

    engine.docker_ok(&["network", "create", "--ipv4=false", "--ipv6", "--subnet", "fd00:75::/64", "only"])?;
    serve(engine, &["--name", "six", "--network", "only"])?;
    idle(engine, &["--name", "seven", "--network", "only"])?;
    ensure!(address6("six", "only")? == "fd00:75::2" && engine.address("six", "only").unwrap_or_default().is_empty());
    ensure!(get(engine, "seven", "six").code == 0 && who("seven")? == outside::GATEWAY6);
    ensure!(get(engine, "seven", "[fd00:74::99]").code != 0, "a container reached another network by IPv6");
    ensure!(get(engine, "xx", "[fd00:75::2]").code != 0, "a container reached another network by IPv6");
    engine.docker_ok(&["rm", "-f", "six", "seven"])?;
    engine.docker_ok(&["network", "rm", "only"]).map(drop)
}

/// Status and body of a request to the engine.
fn request(engine: &Engine, method: &str, path: &str, body: &str) -> anyhow::Result<(u16, String)> {
    let mut stream = UnixStream::connect(engine.home().join("arca.sock"))?;
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    write!(
        stream,
        "{method} /v1.47{path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
        body.len()
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let status = answer.split(' ').nth(1).and_then(|code| code.parse().ok()).context("a status line")?;
    Ok((status, answer.split_once("\r\n\r\n").map(|(_, body)| body.to_owned()).unwrap_or_default()))
}

fn refused(ran: &Ran, code: i32, text: &str) -> anyhow::Result<()> {
    // Exactly these words: the CLI puts its own before them and a hint after them.
    let line =
        ran.stderr.lines().find_map(|line| line.split_once("Error response from daemon: ")).map(|(_, text)| text);
    ensure!(ran.code == code && line == Some(text), "{ran:?} instead of {text:?}");
    Ok(())
}

fn refusals() -> anyhow::Result<()> {
    let engine = engine()?;
    for name in ["n", "m"] {
        engine.docker_ok(&["network", "create", name])?;
    }
    let run = |flags: &[&str]| {
        let all: Vec<&str> = [&["run", "--rm"], flags, &["busybox", "true"]].concat();
        engine.docker(&all)
    };
    refused(&run(&["--network", "n", "-p", "8080:80"]), 125, NO_PORTS)?;
    refused(&run(&["-p", "80"]), 125, NO_PORTS)?;
    refused(&run(&["--network", "n", "-P"]), 125, NO_PORTS)?;
    refused(&run(&["--network", "n", "--network", "m"]), 125, NO_SECOND)?;
    refused(&engine.docker(&["network", "create", "--driver", "overlay", "o"]), 1, NO_OVERLAY)?;
    idle(&engine, &["--name", "aa", "--network", "n"])?;
    refused(&engine.docker(&["network", "connect", "m", "aa"]), 1, NO_DYNAMIC)?;
    refused(&engine.docker(&["network", "disconnect", "n", "aa"]), 1, NO_DYNAMIC)?;
    refused(&engine.docker(&["network", "disconnect", "-f", "n", "aa"]), 1, NO_DYNAMIC)?;
    ensure!(engine.docker_ok(&["ps", "-aq"])?.lines().count() == 1, "a refused container must not be there");
    ensure!(engine.address("aa", "n").is_ok(), "what was refused changed nothing");

    // Created and not started: its networks are a wish yet, and one native network is all it may wish.
    engine.docker_ok(&["create", "--name", "cc", "--network", "n", "busybox", "sleep", "1000"])?;
    refused(&engine.docker(&["network", "connect", "m", "cc"]), 1, NO_SECOND)?;
    engine.docker_ok(&["network", "disconnect", "n", "cc"])?;
    engine.docker_ok(&["network", "connect", "m", "cc"])?;
    engine.docker_ok(&["start", "cc"])?;
    ensure!(engine.address("cc", "m").is_ok() && engine.address("cc", "n").is_err());
    // Stopped, it may move again.
    engine.docker_ok(&["stop", "-t", "0", "cc"])?;
    engine.docker_ok(&["network", "disconnect", "m", "cc"])?;
    engine.docker_ok(&["network", "connect", "n", "cc"])?;
    engine.docker_ok(&["start", "cc"])?;
    ensure!(engine.address("cc", "n").is_ok());

    // A network that is there only later: the start is refused as the creation would have been.
    engine.docker_ok(&["create", "--name", "late", "--network", "later", "-p", "80", "busybox", "true"])?;
    engine.docker_ok(&["network", "create", "later"])?;
    let late = engine.docker(&["start", "late"]);
    ensure!(late.code == 1 && late.stderr.contains(NO_PORTS), "{late:?}");

    let json = |text: &str| format!("{{\"message\":\"{text}\"}}");
    let both = r#"{"Image":"busybox","NetworkingConfig":{"EndpointsConfig":{"n":{},"m":{}}},"HostConfig":{"NetworkMode":"n"}}"#;
    let ports = r#"{"Image":"busybox","HostConfig":{"NetworkMode":"n","PortBindings":{"80/tcp":[{"HostPort":""}]}}}"#;
    for (path, body, text) in [
        ("/networks/create", r#"{"Name":"o","Driver":"overlay"}"#, NO_OVERLAY),
        ("/networks/m/connect", r#"{"Container":"aa"}"#, NO_DYNAMIC),
        ("/networks/n/disconnect", r#"{"Container":"aa"}"#, NO_DYNAMIC),
        ("/containers/create", both, NO_SECOND),
        ("/containers/create", ports, NO_PORTS),
    ] {
        let (status, answer) = request(&engine, "POST", path, body)?;
        ensure!(status == 501 && answer.trim() == json(text), "{path}: {status} {answer}");
    }

    // A subnet that is somebody else's on this host.
    isolation::run("ip", &["link", "add", "neighbour", "type", "bridge"])?;
    isolation::run("ip", &["link", "set", "neighbour", "up"])?;
    isolation::run("ip", &["address", "add", "10.72.0.1/16", "dev", "neighbour"])?;
    let (status, answer) =
        request(&engine, "POST", "/networks/create", r#"{"Name":"c","IPAM":{"Config":[{"Subnet":"10.72.5.0/24"}]}}"#)?;
    ensure!(
        status == 403 && answer.contains("Pool overlaps with other one on this address space"),
        "{status} {answer}"
    );
    engine.docker_ok(&["network", "create", "--subnet", "10.73.5.0/24", "c"])?;
    isolation::run("ip", &["link", "delete", "neighbour"])?;
    let taken = engine.docker(&["run", "--rm", "--network", "c", "--ip", "10.73.5.1", "busybox", "true"]);
    ensure!(taken.code == 125 && taken.stderr.contains("Address already in use"), "{taken:?}");
    engine.stop()
}

/// Interfaces of this namespace that belong to the engine's native switch.
fn native_links() -> anyhow::Result<usize> {
    let links = isolation::output("ip", &["-o", "link", "show"])?;
    Ok(links.lines().filter(|line| line.contains(": b") || line.contains(": v")).count())
}

fn lives() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    serve(&engine, &["--name", "aa", "--network", "n"])?;
    idle(&engine, &["--name", "bb", "--network", "n"])?;
    let (a, b, address) = (engine.pid("aa")?, engine.pid("bb")?, engine.address("bb", "n")?);
    // The switch is the kernel: whatever of the engine dies, frames pass.
    measure::transfer(a, b, &address, 24, |number| match number {
        4 => engine.kill_daemon("arca-netd"),
        8 => engine.kill_daemon("arca-api"),
        _ => Ok(()),
    })?;
    let restarted =
        |name: &str| (0..2000).any(|_| engine.arca(&["daemon", "status"]).code == 0 && engine.daemon_pid(name).is_ok());
    ensure!(restarted("arca-netd") && restarted("arca-api"));
    for _ in 0..100 {
        if engine.docker(&["version"]).code == 0 && engine.program("arca-netd", &["status"]).code == 0 {
            break;
        }
    }
    idle(&engine, &["--name", "cc", "--network", "n"])?;
    ensure!(get(&engine, "cc", "aa").code == 0, "a container that comes after knows those before");

    // A machine that is killed leaves no cable.
    let before = native_links()?;
    let machine = engine.pid("cc")?;
    let keeper = keeper_of(machine)?;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(keeper), nix::sys::signal::Signal::SIGKILL)?;
    ensure!(engine.docker(&["wait", "cc"]).code == 0);
    engine.docker_ok(&["rm", "-f", "cc"])?;
    ensure!(native_links()? == before - 1, "{}", isolation::output("ip", &["-o", "link"])?);

    // Somebody removes the bridge while the engine is stopped: its start makes the network whole again.
    engine.arca(&["daemon", "stop"]).ok()?;
    measure::transfer(a, b, &address, 4, |_| Ok(()))?;
    let links = isolation::output("ip", &["-o", "link", "show", "type", "bridge"])?;
    for name in links.lines().filter_map(|line| line.split(": ").nth(1)) {
        isolation::run("ip", &["link", "delete", name])?;
    }
    engine.arca(&["-c", "networkBackend=vmnet", "daemon", "start"]).ok()?;
    ensure!(get(&engine, "bb", "aa").code == 0, "the containers are plugged in again");
    let ip = engine.address("aa", "n")?;
    ensure!(engine.docker(&["run", "--rm", "--network", "n", "--name", "dd", "busybox", "true"]).code == 0);
    ensure!(engine.address("aa", "n")? == ip);

    // Stopped for good from a stopped engine, nothing is left; the networks come back with the next start.
    engine.docker_ok(&["rm", "-f", "aa", "bb"])?;
    engine.arca(&["daemon", "stop"]).ok()?;
    ensure!(native_links()? > 0);
    engine.stop()?;
    ensure!(native_links()? == 0, "{}", isolation::output("ip", &["-o", "link"])?);
    ensure!(isolation::output("nft", &["list", "tables"])?.is_empty());
    ensure!(fs::read_to_string("/proc/sys/net/ipv4/ip_forward")?.trim() == "0");
    engine.arca(&["-c", "networkBackend=vmnet", "daemon", "start"]).ok()?;
    ensure!(engine.docker(&["run", "--rm", "--network", "n", "busybox", "true"]).code == 0);
    engine.stop()
}

/// The arca-init above a workload's process.
fn keeper_of(pid: u32) -> anyhow::Result<i32> {
    let mut pid = i32::try_from(pid)?;
    while pid > 1 {
        if fs::read_to_string(format!("/proc/{pid}/comm"))?.trim() == "arca-init" {
            return Ok(pid);
        }
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields = stat.rsplit(')').next().unwrap_or_default();
        pid = fields.split_whitespace().nth(1).and_then(|parent| parent.parse().ok()).unwrap_or(0);
    }
    bail!("no arca-init above the workload")
}

fn mixed() -> anyhow::Result<()> {
    let engine = Engine::start_with(&[])?;
    engine.load_image()?;
    let drivers = |wanted: &str| -> anyhow::Result<()> {
        let list =
            engine.docker_ok(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}={{.Driver}}"])?;
        ensure!(list.split_whitespace().collect::<Vec<_>>().join(" ") == wanted, "{list}");
        Ok(())
    };
    // Under ovs: one of each.
    engine.docker_ok(&["network", "create", "plain"])?;
    engine.docker_ok(&["network", "create", "--driver", "vmnet", "native"])?;
    engine.docker_ok(&["network", "create", "--driver", "ovs", "over"])?;
    drivers("native=vmnet over=ovs plain=bridge")?;
    serve(&engine, &["--name", "web", "--network", "plain"])?;
    serve(&engine, &["--name", "near", "--network", "native"])?;
    idle(&engine, &["--name", "peer", "--network", "native"])?;
    idle(&engine, &["--name", "far", "--network", "over"])?;
    engine.docker_ok(&["network", "connect", "plain", "far"])?;
    ensure!(get(&engine, "far", "web").code == 0 && get(&engine, "peer", "near").code == 0);
    ensure!(get(&engine, "peer", &engine.address("web", "plain")?).code != 0, "backends are apart");
    refused(&engine.docker(&["network", "connect", "native", "far"]), 1, NO_DYNAMIC)?;
    refused(&engine.docker(&["network", "connect", "plain", "near"]), 1, NO_DYNAMIC)?;

    // One container on the default network, which is OVN's as long as it is there.
    serve(&engine, &["--name", "kept"])?;
    let backend = |name: &str| -> anyhow::Result<&str> {
        let beside = runs_beside("arca-tapfwd", engine.pid(name)?)?;
        Ok(if beside { "ovs" } else { "vmnet" })
    };
    ensure!(backend("kept")? == "ovs");

    // To vmnet, as docs/vmnet.md says: the configuration, stop and start, a network, and each container anew on it.
    let config = engine.home().join("config.json");
    let restart = || -> anyhow::Result<()> {
        engine.arca(&["daemon", "stop"]).ok()?;
        engine.arca(&["daemon", "start"]).ok().map(drop)
    };
    fs::write(&config, "{ \"networkBackend\": \"vmnet\" } // the shortest path\n")?;
    restart()?;
    ensure!(get(&engine, "far", "web").code == 0 && get(&engine, "peer", "near").code == 0, "what was there goes on");
    ensure!(get(&engine, "kept", "127.0.0.1").code == 0 && backend("kept")? == "ovs");
    idle(&engine, &["--name", "beside"])?;
    let kept = engine.address("kept", "bridge")?;
    ensure!(
        backend("beside")? == "ovs" && get(&engine, "beside", &kept).code == 0,
        "it stays while containers are on it"
    );
    engine.docker_ok(&["rm", "-f", "kept", "beside"])?;
    // The last has gone: it has followed the configuration when `rm` returns.
    let bridge = || engine.docker_ok(&["network", "inspect", "-f", "{{.Id}} {{.Driver}}", "bridge"]);
    idle(&engine, &["--name", "native-now"])?;
    ensure!(backend("native-now")? == "vmnet" && bridge()?.ends_with(" bridge"), "{}", bridge()?);
    refused(&engine.docker(&["run", "--rm", "-p", "80", "busybox", "true"]), 125, NO_PORTS)?;
    engine.docker_ok(&["rm", "-f", "native-now"])?;
    engine.docker_ok(&["network", "create", "moved"])?;
    drivers("moved=bridge native=vmnet over=ovs plain=bridge")?;
    engine.docker_ok(&["rm", "-f", "web"])?;
    serve(&engine, &["--name", "web", "--network", "moved"])?;
    idle(&engine, &["--name", "client", "--network", "moved"])?;
    ensure!(get(&engine, "client", "web").code == 0);
    refused(&engine.docker(&["network", "connect", "plain", "web"]), 1, NO_DYNAMIC)?;
    // `plain` was made under ovs and stays there: its containers are still connected while they run.
    engine.docker_ok(&["network", "disconnect", "plain", "far"])?;
    engine.docker_ok(&["network", "connect", "plain", "far"])?;

    // And back.
    fs::remove_file(&config)?;
    restart()?;
    idle(&engine, &["--name", "over-again"])?;
    ensure!(backend("over-again")? == "ovs", "the default network is OVN's again, at the start");
    engine.docker_ok(&["rm", "-f", "over-again"])?;
    engine.docker_ok(&["network", "create", "back"])?;
    engine.docker_ok(&["rm", "-f", "web"])?;
    serve(&engine, &["--name", "web", "--network", "back"])?;
    engine.docker_ok(&["network", "connect", "back", "far"])?;
    ensure!(get(&engine, "far", "web").code == 0, "network connect works on running containers again");
    refused(&engine.docker(&["network", "connect", "moved", "far"]), 1, NO_DYNAMIC)?;
    engine.stop()?;

    // With vmnet as the default the helper starts when an OVN network is first used, and not before.
    let engine = self::engine()?;
    engine.docker_ok(&["network", "create", "--driver", "ovs", "over"])?;
    ensure!(engine.docker(&["run", "--rm", "busybox", "true"]).code == 0);
    ensure!(helper(&engine)? == "not needed", "{}", helper(&engine)?);
    serve(&engine, &["--name", "far", "--network", "over"])?;
    ensure!(helper(&engine)? == "up", "{}", helper(&engine)?);
    engine.stop()
}

fn log_level() -> anyhow::Result<()> {
    let engine = engine()?;
    let daemons = ["arca-api", "arca-netd", "arca-relayd"];
    let pids = || daemons.map(|name| engine.daemon_pid(name).unwrap_or(0));
    let before = pids();
    let config = engine.home().join("config.toml");
    fs::write(&config, "logLevel = \"loud\"\n")?;
    let wrong = engine.arca(&["daemon", "reload"]);
    ensure!(wrong.code == 78 && wrong.stderr.contains("logLevel = \"loud\""), "{wrong:?}");
    ensure!(engine.arca(&["config", "check"]).code == 78);
    fs::write(&config, "logLevel = \"debug\"\n")?;
    let path = engine.arca(&["config", "path"]).ok()?;
    ensure!(path == config.display().to_string(), "{path}");
    ensure!(engine.arca(&["config", "check"]).ok()?.starts_with("ok: "));
    let shown = engine.arca(&["config", "show"]).ok()?;
    let line = shown.lines().find(|line| line.starts_with("logLevel")).unwrap_or_default();
    ensure!(line.contains("debug") && line.contains("config.toml"), "{shown}");
    engine.arca(&["daemon", "reload"]).ok()?;
    for name in daemons {
        let log = engine.home().join("log").join(format!("{name}.log"));
        // A signal has no answer; the log is read until it tells, at the pace of a command that takes a while.
        let told = (0..300).any(|_| {
            let read = fs::read_to_string(&log).is_ok_and(|text| text.contains("log level changed"));
            read || engine.arca(&["config", "check"]).code != 0
        });
        ensure!(told, "{name} does not take the level over\n{}", fs::read_to_string(&log)?);
    }
    engine.docker_ok(&["network", "create", "n"])?;
    let text = fs::read_to_string(engine.home().join("log/arca-api.log"))?;
    ensure!(text.contains("\"level\":\"DEBUG\""), "nothing is logged at the new level");
    ensure!(pids() == before, "no daemon was restarted");
    ensure!(binaries()?.join("arca").is_file());
    fs::write(engine.home().join("config.json"), "{}")?;
    let both = engine.arca(&["config", "show"]);
    ensure!(both.code == 78 && both.stderr.contains("exist; keep one of them"), "{both:?}");
    fs::remove_file(engine.home().join("config.json"))?;
    engine.stop()
}

/// A container that is a virtual machine beside one that is not: the bridge makes no difference between TAP and veth.
fn virtual_machine() -> anyhow::Result<()> {
    if let Some(reason) = vms_missing().filter(|_| !over_vms()) {
        arca_tests::skip("vmnet: a virtual machine", &reason);
        return Ok(());
    }
    let _outside = Outside::start()?;
    let engine = Engine::start_with(&["networkBackend=vmnet", "machine=namespace"])?;
    engine.load_image()?;
    let both = ["--ipv6", "--subnet", "10.76.0.0/24", "--subnet", "fd00:76::/64", "-o"];
    let mtu = ["com.docker.network.driver.mtu=1400", "n"];
    engine.docker_ok(&[&["network", "create"][..], &both, &mtu].concat())?;
    serve(&engine, &["--name", "ns", "--network", "n"])?;
    serve(&engine, &["--name", "vm", "--runtime", "arca-vm", "--network", "n", "--ip", "10.76.0.50"])?;
    for (from, to) in [("vm", "ns"), ("ns", "vm"), ("ns", "10.76.0.50"), ("ns", "[fd00:76::3]"), ("vm", "[fd00:76::2]")]
    {
        let got = get(&engine, from, to);
        ensure!(got.code == 0, "{from} to {to}: {got:?}");
    }
    // What inspect says is what the guest has; nothing runs in there for it.
    let inside = |script: &str| engine.docker_ok(&["exec", "vm", "sh", "-c", script]);
    let mac = engine.docker_ok(&["inspect", "-f", "{{(index .NetworkSettings.Networks \"n\").MacAddress}}", "vm"])?;
    let link = inside("ip link show eth0")?;
    ensure!(link.contains(&mac) && link.contains("mtu 1400"), "{mac} {link}");
    let routes = inside("ip route; ip -6 route")?;
    ensure!(routes.contains("default via 10.76.0.1") && routes.contains("default via fd00:76::1"), "{routes}");
    for (address, seen) in [(outside::ADDRESS, outside::GATEWAY), (outside::ADDRESS6, outside::GATEWAY6)] {
        let who = inside(&format!("nc -w 5 {address} {}", outside::WHO_PORT))?;
        ensure!(who.contains(seen), "outside saw {who:?} instead of {seen}");
    }
    refused(&engine.docker(&["run", "--rm", "--runtime", "arca-vm", "-p", "80", "busybox", "true"]), 125, NO_PORTS)?;
    // The engine comes and goes; the machine stays where it is plugged in.
    engine.arca(&["daemon", "stop"]).ok()?;
    engine.arca(&["-c", "networkBackend=vmnet", "-c", "machine=namespace", "daemon", "start"]).ok()?;
    ensure!(get(&engine, "ns", "vm").code == 0, "after a restart of the engine");
    let before = native_links()?;
    engine.docker_ok(&["rm", "-f", "vm"])?;
    ensure!(native_links()? == before - 1, "its TAP has gone: {}", isolation::output("ip", &["-o", "link"])?);
    engine.docker_ok(&["rm", "-f", "ns"])?;
    engine.stop()
}
