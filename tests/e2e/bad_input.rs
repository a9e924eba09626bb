// SPDX-License-Identifier: Apache-2.0
//! Bad input: one clear line, the right exit code or HTTP status, nothing half-made left behind.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::Path,
    process::Command,
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::{Engine, binaries},
    isolation,
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("docker_says_what_dockerd_says", docker_messages),
    ("raw_http_is_answered_as_dockerd_answers", raw_http),
    ("the_command_line_names_the_way_out", command_line),
];

fn docker_messages() -> anyhow::Result<()> {
    let engine = Engine::start()?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "--subnet", "10.80.0.0/16", "n"])?;
    engine.docker_ok(&["create", "--name", "cc", "busybox"])?;
    let cases: &[(&[&str], i32, &str)] = &[
        (&["inspect", "nope"], 1, "o such object: nope"),
        (&["start", "nope"], 1, "No such container: nope"),
        (&["run", "--network", "nope", "busybox", "true"], 125, "network nope not found"),
        (
            &["create", "--name", "cc", "busybox"],
            1,
            "Conflict. The container name \"/cc\" is already in use by container",
        ),
        (&["create", "--name", "-c", "busybox"], 1, "Invalid container name (-c)"),
        (&["network", "create", "n"], 1, "network with name n already exists"),
        (&["network", "create", "bridge"], 1, "operation is not permitted on predefined bridge network"),
        (
            &["network", "create", "--subnet", "10.80.5.0/24", "m"],
            1,
            "Pool overlaps with other one on this address space",
        ),
        (
            &["network", "create", "--subnet", "10.81.0.5/16", "m"],
            1,
            "invalid subnet 10.81.0.5/16: it should be 10.81.0.0/16",
        ),
        (&["network", "create", "--driver", "nope", "m"], 1, "plugin \"nope\" not found"),
        (&["network", "rm", "bridge"], 1, "bridge is a pre-defined network and cannot be removed"),
        (&["network", "rm", "nope"], 1, "network nope not found"),
        (&["network", "connect", "n", "nope"], 1, "No such container: nope"),
        (&["network", "disconnect", "n", "cc"], 1, "is not connected to the network n"),
        (
            &["run", "--rm", "--network", "n", "--ip", "10.99.0.5", "busybox", "true"],
            125,
            "no configured subnet or ip-range contain the IP address 10.99.0.5",
        ),
        (&["run", "--rm", "--network", "n", "--ip", "10.80.0.1", "busybox", "true"], 125, "Address already in use"),
        (
            &["run", "--rm", "--ip", "172.17.0.9", "busybox", "true"],
            125,
            "user specified IP address is supported on user defined networks only",
        ),
        (&["run", "--rm", "--memory", "1m", "busybox", "true"], 125, "Minimum memory limit allowed is 6MB"),
        (
            &["run", "--rm", "-u", "eve", "busybox", "true"],
            125,
            "unable to find user eve: no matching entries in passwd file",
        ),
        (&["rmi", "nope"], 1, "No such image: nope"),
        (&["exec", "cc", "true"], 1, "is not running"),
        (&["volume", "inspect", "nope"], 1, "no such volume"),
    ];
    let mut wrong = Vec::new();
    for (arguments, code, text) in cases {
        let ran = engine.docker(arguments);
        if ran.code != *code || !ran.stderr.contains(text) {
            wrong.push(format!("docker {}: expected {code} {text:?}, got {ran:?}", arguments.join(" ")));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    let networks = engine.docker_ok(&["network", "ls", "-q"])?;
    ensure!(networks.lines().count() == 4, "nothing half-made: {networks}");
    ensure!(engine.program("arca-netd", &["endpoints", "--json"]).ok()? == "[]", "no endpoint stayed");
    engine.stop()
}

fn raw_http() -> anyhow::Result<()> {
    let engine = Engine::start()?;
    let ask = |request: &str, body: &str, kind: &str| -> anyhow::Result<(u16, String)> {
        let mut stream = UnixStream::connect(engine.home().join("arca.sock"))?;
        let head = format!(
            "{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{kind}\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes())?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        let status =
            text.get(9..12).and_then(|code| code.parse().ok()).with_context(|| format!("no status: {text:?}"))?;
        Ok((status, text.split_once("\r\n\r\n").map_or(String::new(), |(_, body)| body.trim().to_owned())))
    };
    let json = "Content-Type: application/json\r\n";
    let cases = [
        ("GET /v9.99/version", "", "", 400, "client version 9.99 is too new. Maximum supported API version is 1.51"),
        ("GET /v1.10/version", "", "", 400, "client version 1.10 is too old. Minimum supported API version is 1.24"),
        ("GET /nope", "", "", 404, "page not found"),
        ("POST /networks/create", "{", json, 400, "invalid JSON: unexpected EOF"),
        ("POST /networks/create", "{}", json, 400, "invalid name: name is empty"),
        (
            "POST /networks/create",
            "{}",
            "Content-Type: text/plain\r\n",
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        (
            "POST /networks/create",
            r#"{"Name": "m", "IPAM": {"Config": [{"Subnet": "10.81.0.0/16", "Gateway": "10.9.0.1"}]}}"#,
            json,
            400,
            "invalid gateway 10.9.0.1: parent subnet 10.81.0.0/16 doesn't contain this address",
        ),
        ("POST /containers/create", "{}x", json, 400, "unexpected content after JSON"),
        ("GET /networks?filters=x", "", "", 400, "invalid filter"),
        ("GET /networks?filters=%7B%22foo%22%3A%5B%22x%22%5D%7D", "", "", 400, "invalid filter 'foo'"),
        ("POST /containers/nope/start", "", "", 404, "No such container: nope"),
        ("POST /swarm/init", "{}", json, 501, "is not implemented by Arca yet"),
    ];
    for (request, body, kind, status, text) in cases {
        let (code, answer) = ask(request, body, kind)?;
        ensure!(
            code == status && answer.contains(text),
            "{request} {body}: expected {status} {text:?}, got {code} {answer}"
        );
    }
    ensure!(ask("GET /_ping", "", "")? == (200, "OK".to_owned()));
    engine.stop()
}

/// Without root the engine does not start, and says so.
fn unprivileged(arca: &Path) -> anyhow::Result<()> {
    let as_nobody = || {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups", "--"]);
        command
    };
    let able = as_nobody().arg("true").output()?;
    if !able.status.success() {
        arca_tests::skip("the start without root", String::from_utf8_lossy(&able.stderr).trim());
        return Ok(());
    }
    // Where the programs were built others may not look, nor always in /tmp: in the test's own /run they may.
    let open = Path::new("/run/open");
    fs::create_dir(open)?;
    fs::copy(arca, open.join("arca"))?;
    let nobody =
        as_nobody().arg(open.join("arca")).args(["daemon", "start"]).env("ARCA_HOME", "/run/open/home").output()?;
    let text = String::from_utf8_lossy(&nobody.stderr);
    ensure!(nobody.status.code() == Some(77) && text.contains("run as root"), "{:?} {text}", nobody.status);
    Ok(())
}

fn command_line() -> anyhow::Result<()> {
    let engine = Engine::start()?;
    let second = engine.arca(&["daemon", "start"]);
    ensure!(second.code == 75 && second.stderr.contains("the engine runs already"), "{second:?}");
    let second = engine.arca(&["daemon", "run"]);
    ensure!(second.code == 75 && second.stderr.contains("already uses"), "{second:?}");
    engine.stop()?;

    let config = engine.home().join("config.json");
    fs::write(&config, r#"{ "networkBakend": "ovs" }"#)?;
    let unknown = engine.arca(&["daemon", "start"]);
    ensure!(
        unknown.code == 78 && unknown.stderr.contains("unknown key `networkBakend`; did you mean `networkBackend`?"),
        "{unknown:?}"
    );
    fs::remove_file(&config)?;
    let missing = engine.arca(&["-c", "helperRoot=/nowhere", "daemon", "start"]);
    ensure!(missing.code == 69 && missing.stderr.contains("./dev image"), "{missing:?}");
    let missing = engine.arca(&["-c", "guestDirectory=/nowhere", "daemon", "start"]);
    ensure!(missing.code == 69 && missing.stderr.contains("./dev build"), "{missing:?}");
    isolation::run("mount", &["-t", "tmpfs", "tmpfs", "/dev/net"])?;
    let missing = engine.arca(&["daemon", "start"]);
    isolation::run("umount", &["/dev/net"])?;
    ensure!(missing.code == 69 && missing.stderr.contains("modprobe tun"), "{missing:?}");
    let arca = binaries()?.join("arca");
    let bare = Command::new(&arca)
        .args(["daemon", "start"])
        .env("ARCA_HOME", engine.home())
        .env("PATH", "/nowhere")
        .output()?;
    let text = String::from_utf8_lossy(&bare.stderr);
    ensure!(bare.status.code() == Some(69) && text.contains("apt-get install crun"), "{text}");
    unprivileged(&arca)?;
    // A file where the socket should be is not ours to remove.
    fs::write(engine.home().join("arca.sock"), "precious")?;
    let taken = engine.arca(&["daemon", "start"]);
    ensure!(taken.code == 73 && taken.stderr.contains("arca.sock"), "{taken:?}");
    ensure!(fs::read_to_string(engine.home().join("arca.sock"))? == "precious");
    // The other daemons had begun their work meanwhile, booting the helper machine among it.
    let sockets: Vec<_> = fs::read_dir(engine.home().join("run/h")).into_iter().flatten().flatten().collect();
    ensure!(sockets.is_empty(), "a start that failed leaves no machine: {sockets:?}");
    fs::remove_file(engine.home().join("arca.sock"))?;
    ensure!(engine.arca(&["daemon", "status"]).code == 3);
    ensure!(engine.arca(&["daemon", "stop"]).code == 0);
    Ok(())
}
