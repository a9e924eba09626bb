// SPDX-License-Identifier: Apache-2.0
//! Containers and networks: who shares a network with whom, links, interfaces and routes, and the three files.

use std::{fs, thread};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::{self, Engine},
    isolation, story,
};
use serde_json::json;

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_container_shares_another_ones_network_and_outlives_it", shares),
    ("who_shares_a_network_outlives_the_api_and_ends_in_any_order", shares_over_restart),
    ("links_on_the_default_bridge_are_lines_and_variables_that_follow", links),
    ("files_change_by_lines_and_leave_the_users_own", files),
    ("interfaces_routes_and_sysctls_are_as_asked_for", interfaces),
];

const SLEEP: [&str; 3] = ["busybox", "sleep", "1000"];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    Ok(engine)
}

/// `docker run -d --name NAME OPTIONS... busybox sleep 1000`.
fn sleeper(engine: &Engine, name: &str, options: &[&str]) -> anyhow::Result<String> {
    let mut all = vec!["run", "-d", "--name", name];
    all.extend(options);
    all.extend(SLEEP);
    engine.docker_ok(&all)
}

/// Names of the interfaces in a container's network, but lo.
fn names(engine: &Engine, container: &str) -> anyhow::Result<Vec<String>> {
    let interfaces = engine::interfaces(engine.pid(container)?)?;
    Ok(interfaces.into_iter().filter(|(_, addresses)| !addresses.is_empty()).map(|(name, _)| name).collect())
}

fn refused(engine: &Engine, arguments: &[&str], text: &str) -> anyhow::Result<()> {
    let ran = engine.docker(arguments);
    ensure!(ran.code != 0 && ran.stderr.contains(text), "{arguments:?}: {ran:?}");
    Ok(())
}

fn shares() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    engine.docker_ok(&["network", "create", "m"])?;
    let id = sleeper(&engine, "target", &["--hostname", "tt", "--network", "n", "--add-host", "extra:192.0.2.9"])?;
    sleeper(&engine, "guest", &["--network", "container:target"])?;
    sleeper(&engine, "third", &["--network", "container:guest"])?;
    let network = |name: &str| anyhow::Ok(isolation::network_of(engine.pid(name)?)?);
    let shared = network("target")?;
    ensure!(network("guest")? == shared && network("third")? == shared);

    // One network, one host name, the same files.
    let inspect = engine.inspect("guest")?;
    ensure!(inspect["HostConfig"]["NetworkMode"] == json!(format!("container:{id}")), "{inspect}");
    ensure!(inspect["Config"]["Hostname"] == "tt" && inspect["NetworkSettings"]["Networks"] == json!({}), "{inspect}");
    ensure!(inspect["NetworkSettings"]["SandboxKey"] == "" && inspect["NetworkSettings"]["Ports"] == json!({}));
    ensure!(inspect["HostsPath"] == engine.inspect("target")?["HostsPath"]);
    for file in ["/etc/hosts", "/etc/hostname", "/etc/resolv.conf"] {
        let read = |name: &str| engine.docker_ok(&["exec", name, "cat", file]);
        ensure!(read("guest")? == read("target")? && read("third")? == read("target")?, "{file}");
    }
    ensure!(engine.docker_ok(&["exec", "third", "hostname"])? == "tt");

    // What one serves on loopback the other reaches; a network that the target joins is there for all.
    let serve = "mkdir /srv; echo shared > /srv/x; httpd -p 127.0.0.1:8000 -h /srv";
    engine.docker_ok(&["exec", "guest", "sh", "-c", serve])?;
    let ask = "until wget -qO- http://127.0.0.1:8000/x; do :; done 2>/dev/null";
    ensure!(engine.docker_ok(&["exec", "target", "timeout", "10", "sh", "-c", ask])? == "shared");
    engine.docker_ok(&["network", "connect", "m", "target"])?;
    ensure!(names(&engine, "third")? == ["eth0", "eth1"]);
    let text =
        "container sharing network namespace with another container or host cannot be connected to any other network";
    refused(&engine, &["network", "connect", "m", "guest"], text)?;

    // The target ends: its guests go on with loopback alone, and its lines are gone from their hosts file.
    engine.docker_ok(&["stop", "-t", "0", "target"])?;
    ensure!(network("guest")? == shared && names(&engine, "guest")? == Vec::<String>::new());
    let hosts = engine.docker_ok(&["exec", "guest", "cat", "/etc/hosts"])?;
    ensure!(hosts.ends_with("192.0.2.9\textra"), "{hosts}");
    ensure!(engine.docker_ok(&["exec", "guest", "wget", "-qO-", "http://127.0.0.1:8000/x"])? == "shared");
    let stopped = "cannot join network namespace of a non running container: container target is exited";
    refused(&engine, &["restart", "-t", "0", "guest"], &format!("Cannot restart container guest: {stopped}"))?;

    // Started again it has another network; who starts after it shares that.
    engine.docker_ok(&["start", "target"])?;
    ensure!(network("target")? != shared && network("third")? == shared);
    engine.docker_ok(&["start", "guest"])?;
    ensure!(network("guest")? == network("target")? && names(&engine, "guest")? == ["eth0", "eth1"]);

    // Gone, it leaves the guest what it has, but it cannot start again.
    engine.docker_ok(&["rm", "-f", "target"])?;
    ensure!(engine.docker_ok(&["exec", "guest", "hostname"])? == "tt");
    let gone = format!("joining network namespace of container: No such container: {id}");
    refused(&engine, &["restart", "-t", "0", "guest"], &gone)?;
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.State.Error}}", "guest"])? == gone);
    refused(
        &engine,
        &["run", "--name", "self", "--network", "container:self", "busybox", "true"],
        "cannot join own network namespace",
    )?;
    engine.docker_ok(&["rm", "-f", "guest", "third", "self"])?;
    engine.stop()
}

fn shares_over_restart() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    sleeper(&engine, "target", &["--network", "n"])?;
    sleeper(&engine, "guest", &["--network", "container:target"])?;
    sleeper(&engine, "other", &["--network", "container:target"])?;
    let pid = engine.pid("guest")?;
    engine.kill_daemon("arca-api")?;
    story::wait_until_up(&engine)?;
    ensure!(engine.pid("guest")? == pid && names(&engine, "guest")? == ["eth0"]);

    // A guest ends first, then the owner of the machine, then the last.
    engine.docker_ok(&["rm", "-f", "other"])?;
    ensure!(names(&engine, "target")? == ["eth0"]);
    engine.docker_ok(&["rm", "-f", "target"])?;
    ensure!(engine.pid("guest")? == pid);
    engine.kill_daemon("arca-api")?;
    story::wait_until_up(&engine)?;
    ensure!(engine.pid("guest")? == pid, "its machine is found again although its owner is gone");
    ensure!(engine.docker_ok(&["exec", "guest", "echo", "here"])? == "here");
    engine.docker_ok(&["rm", "-f", "guest"])?;
    let left: Vec<_> = fs::read_dir(engine.home().join("data/machines"))?.flatten().collect();
    ensure!(left.is_empty(), "{left:?}");
    engine.stop()
}

fn links() -> anyhow::Result<()> {
    let engine = engine()?;
    sleeper(&engine, "db", &["-e", "FOO=bar", "--expose", "80", "--hostname", "dbh"])?;
    sleeper(&engine, "web", &["--link", "db:dd"])?;
    let hosts = || engine.docker_ok(&["exec", "web", "cat", "/etc/hosts"]);
    let address = engine.address("db", "bridge")?;
    ensure!(hosts()?.contains(&format!("\n{address}\tdd dbh db\n")), "{}", hosts()?);
    let environment = engine.docker_ok(&["exec", "web", "env"])?;
    for entry in
        ["DD_NAME=/web/dd", "DD_ENV_FOO=bar", &format!("DD_PORT=tcp://{address}:80"), "DD_PORT_80_TCP_PROTO=tcp"]
    {
        ensure!(environment.lines().any(|line| line == entry), "{entry} is missing: {environment}");
    }
    ensure!(engine.docker(&["exec", "web", "ping", "-c", "1", "-w", "5", "dd"]).code == 0);
    ensure!(engine.inspect("web")?["HostConfig"]["Links"] == json!(["/db:/web/dd"]));
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.Name}}", "web/dd"])? == "/db");

    // It follows a rename, and an address that has changed.
    engine.docker_ok(&["rename", "db", "dbx"])?;
    ensure!(engine.inspect("web")?["HostConfig"]["Links"] == json!(["/dbx:/web/dd"]));
    engine.docker_ok(&["stop", "-t", "0", "dbx"])?;
    sleeper(&engine, "filler", &[])?;
    refused(
        &engine,
        &["run", "--rm", "--name", "ww", "--link", "dbx:zz", "busybox", "true"],
        "Cannot link to a non running container: /dbx AS /ww/zz",
    )?;
    engine.docker_ok(&["start", "dbx"])?;
    let now = engine.address("dbx", "bridge")?;
    ensure!(hosts()?.contains(&format!("\n{now}\tdd dbh db\n")), "{now}: {}", hosts()?);

    engine.docker_ok(&["rm", "--link", "web/dd"])?;
    ensure!(!hosts()?.contains("dd") && engine.inspect("web")?["HostConfig"]["Links"].is_null());
    refused(
        &engine,
        &["create", "--link", "nope:zz", "busybox"],
        "could not get container for nope: No such container: nope",
    )?;
    engine.stop()
}

fn files() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.61.0.0/24", "aa"])?;
    engine.docker_ok(&["network", "create", "--subnet", "10.62.0.0/24", "bb"])?;
    sleeper(&engine, "cc", &["--hostname", "hh.ex.com", "--dns", "192.0.2.7", "--dns-search", "x.y"])?;
    let read = |file: &str| engine.docker_ok(&["exec", "cc", "cat", file]);
    ensure!(read("/etc/hostname")? == "hh.ex.com");
    let head = "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n# has been modified.\n\n";
    let bridge = "nameserver 192.0.2.7\nsearch x.y\n\n";
    let resolv = read("/etc/resolv.conf")?;
    ensure!(
        resolv.starts_with(&format!("{head}{bridge}")) && resolv.contains("# Overrides: [nameservers search]"),
        "{resolv}"
    );

    // The first user network makes it ask 127.0.0.11, also when it has left again.
    engine.docker_ok(&["network", "connect", "aa", "cc"])?;
    let user = format!("{head}nameserver 127.0.0.11\nsearch x.y\noptions ndots:0\n\n");
    let resolv = read("/etc/resolv.conf")?;
    ensure!(resolv.starts_with(&user) && resolv.contains("# ExtServers: [192.0.2.7]"), "{resolv}");
    engine.docker_ok(&["exec", "cc", "sh", "-c", "echo '5.5.5.5 mine' >> /etc/hosts"])?;
    engine.docker_ok(&["network", "connect", "bb", "cc"])?;
    engine.docker_ok(&["network", "disconnect", "aa", "cc"])?;
    let first = engine.address("cc", "bridge")?;
    let second = engine.address("cc", "bb")?;
    let wanted = format!("ff02::2\tip6-allrouters\n{first}\thh.ex.com hh\n5.5.5.5 mine\n{second}\thh.ex.com hh");
    let hosts = read("/etc/hosts")?;
    ensure!(hosts.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"), "{hosts}");
    ensure!(hosts.ends_with(&wanted), "{hosts}");
    engine.docker_ok(&["network", "disconnect", "bb", "cc"])?;
    ensure!(read("/etc/resolv.conf")?.starts_with(&user));

    // A file the workload has written is its own until it starts again.
    engine.docker_ok(&["restart", "-t", "0", "cc"])?;
    ensure!(read("/etc/resolv.conf")?.starts_with(&format!("{head}{bridge}")));
    engine.docker_ok(&["exec", "cc", "sh", "-c", "echo nameserver 192.0.2.8 > /etc/resolv.conf"])?;
    engine.docker_ok(&["network", "connect", "bb", "cc"])?;
    ensure!(read("/etc/resolv.conf")? == "nameserver 192.0.2.8");

    // host-gateway is where the host itself answers.
    let gateway =
        engine.docker_ok(&["run", "--rm", "--add-host", "hg:host-gateway", "busybox", "grep", "hg", "/etc/hosts"])?;
    let address = gateway.split('\t').next().context("an address")?.to_owned();
    let listener = std::net::TcpListener::bind((address.as_str(), 0))?;
    let port = listener.local_addr()?.port().to_string();
    let server = thread::spawn(move || {
        listener.accept().and_then(|(mut stream, _)| std::io::Write::write_all(&mut stream, b"host"))
    });
    let heard = engine.docker_ok(&[
        "run",
        "--rm",
        "--network",
        "bb",
        "--add-host",
        "hg:host-gateway",
        "busybox",
        "nc",
        "-w",
        "5",
        "hg",
        &port,
    ])?;
    ensure!(heard == "host", "{heard:?}");
    server.join().expect("the server does not panic")?;
    let read_only = engine.docker(&["run", "--rm", "--read-only", "busybox", "sh", "-c", "echo x >> /etc/hosts"]);
    ensure!(read_only.code == 1 && read_only.stderr.contains("Read-only file system"), "{read_only:?}");
    engine.stop()
}

fn interfaces() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.63.0.0/24", "n1"])?;
    let prefix = "com.docker.network.container_iface_prefix=net";
    engine.docker_ok(&["network", "create", "--subnet", "10.64.0.0/24", "-o", prefix, "n2"])?;
    engine.docker_ok(&["network", "create", "--internal", "--subnet", "10.65.0.0/24", "inner"])?;
    engine.docker_ok(&[
        "network",
        "create",
        "-o",
        "com.docker.network.driver.mtu=1400",
        "--subnet",
        "10.66.0.0/24",
        "small",
    ])?;
    // By `network connect`: some versions of the CLI write driver options in small letters in `--network`.
    let sysctls =
        "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.log_martians=1,net.ipv4.conf.IFNAME.forwarding=0";
    engine.docker_ok(&[&["create", "--name", "cc", "--network", "name=n2,gw-priority=5"], &SLEEP[..]].concat())?;
    let connect = ["network", "connect", "--driver-opt", sysctls, "--link-local-ip", "169.254.9.9", "n1", "cc"];
    engine.docker_ok(&connect)?;
    engine.docker_ok(&["start", "cc"])?;
    let inside = |script: &str| engine.docker_ok(&["exec", "cc", "sh", "-c", script]);
    ensure!(names(&engine, "cc")? == ["net0", "eth0"], "{:?}", names(&engine, "cc"));
    let settings = inside("cd /proc/sys/net/ipv4/conf/eth0; cat log_martians forwarding")?;
    ensure!(settings == "1\n0", "{settings}");
    ensure!(inside("ip -o -4 addr show eth0")?.contains(" 169.254.9.9/16 "));
    ensure!(
        engine.inspect("cc")?["NetworkSettings"]["Networks"]["n1"]["IPAMConfig"]["LinkLocalIPs"]
            == json!(["169.254.9.9"])
    );
    // A neighbour with such an address is reached over it.
    sleeper(&engine, "peer", &["--network", "n1", "--link-local-ip", "169.254.9.8"])?;
    ensure!(engine.docker(&["exec", "peer", "ping", "-c", "1", "-w", "5", "169.254.9.9"]).code == 0);

    // The default route is the highest priority's, then the first name's, and never an internal network's.
    let default = || inside("ip route | grep default");
    ensure!(default()?.starts_with("default via 10.64.0.1 dev net0"), "{}", default()?);
    engine.docker_ok(&["network", "connect", "--gw-priority", "20", "inner", "cc"])?;
    engine.docker_ok(&[
        "network",
        "connect",
        "--gw-priority",
        "10",
        "--driver-opt",
        "com.docker.network.endpoint.ifname=wan",
        "small",
        "cc",
    ])?;
    ensure!(default()?.starts_with("default via 10.66.0.1 dev wan"), "{}", default()?);
    ensure!(inside("cat /sys/class/net/wan/mtu")? == "1400");
    engine.docker_ok(&["pause", "cc"])?;
    engine.docker_ok(&["network", "disconnect", "small", "cc"])?;
    engine.docker_ok(&["unpause", "cc"])?;
    ensure!(default()?.starts_with("default via 10.64.0.1 dev net0"), "{}", default()?);
    engine.docker_ok(&["network", "disconnect", "n2", "cc"])?;
    ensure!(default()?.starts_with("default via 10.63.0.1 dev eth0"), "{}", default()?);
    engine.docker_ok(&["network", "disconnect", "n1", "cc"])?;
    ensure!(inside("ip route | grep -c default; true")? == "0");

    // Stopped, it is told what it will have; addresses and hardware addresses are kept.
    engine.docker_ok(&["stop", "-t", "0", "cc"])?;
    engine.docker_ok(&["network", "connect", "--ip", "10.63.0.77", "n1", "cc"])?;
    engine.docker_ok(&["network", "disconnect", "inner", "cc"])?;
    engine.docker_ok(&["start", "cc"])?;
    ensure!(engine.address("cc", "n1")? == "10.63.0.77" && names(&engine, "cc")? == ["eth0"]);

    let sysctl = "com.docker.network.endpoint.sysctls=net.ipv4.conf.eth0.log_martians=1";
    refused(
        &engine,
        &["network", "connect", "--driver-opt", sysctl, "n2", "cc"],
        "unrecognised network interface sysctl 'net.ipv4.conf.eth0.log_martians=1'; represent 'net.X.Y.ethN.Z=V' as 'net.X.Y.IFNAME.Z=V', 'X' must be 'ipv4', 'ipv6' or 'mpls'",
    )?;
    let missing = "com.docker.network.endpoint.sysctls=net.ipv4.conf.IFNAME.zz=1";
    refused(
        &engine,
        &["network", "connect", "--driver-opt", missing, "n2", "cc"],
        "/proc/sys/net/ipv4/conf/net0/zz is not a sysctl file",
    )?;
    ensure!(names(&engine, "cc")? == ["eth0"], "a failed connect leaves nothing");
    refused(
        &engine,
        &["run", "--rm", "--network", "n1", "--link-local-ip", "10.1.1.1", "busybox", "true"],
        "invalid link local IP address: 10.1.1.1",
    )?;
    engine.stop()
}
