// SPDX-License-Identifier: Apache-2.0
//! Containers as docker users know them: exit codes, streams, terminals, signals, files, limits.

use std::{
    fs,
    io::{BufRead as _, BufReader, Write as _},
    process::{Command, Stdio},
};

use anyhow::{Context as _, ensure};
use arca_tests::engine::Engine;

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("exit_codes_are_dockers", exit_codes),
    ("standard_streams_arrive_whole_and_apart", streams),
    ("a_terminal_is_one", terminal),
    ("exec_attach_and_logs", exec_attach_logs),
    ("stop_kill_and_signals", signals),
    ("environment_user_folder_and_mounts", configuration),
    ("limits_hold", limits),
    ("list_inspect_and_events", list_inspect_events),
];

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start()?;
    engine.load_image()?;
    Ok(engine)
}

fn exit_codes() -> anyhow::Result<()> {
    let engine = engine()?;
    let code = |arguments: &[&str]| engine.docker(arguments).code;
    ensure!(code(&["run", "--rm", "busybox", "true"]) == 0);
    ensure!(code(&["run", "--rm", "busybox", "sh", "-c", "exit 7"]) == 7);
    ensure!(code(&["run", "--rm", "--nonsense", "busybox", "true"]) == 125);
    ensure!(code(&["run", "--rm", "no-such-image", "true"]) == 125);
    let missing = engine.docker(&["run", "--rm", "busybox", "/no/such/program"]);
    ensure!(missing.code == 127, "{missing:?}");
    ensure!(missing.stderr.contains("no such file or directory"), "{missing:?}");
    let absent = engine.docker(&["run", "--rm", "busybox", "nosuchprogram"]);
    ensure!(absent.code == 127 && absent.stderr.contains("executable file not found in $PATH"), "{absent:?}");
    let folder = engine.docker(&["run", "--rm", "busybox", "/etc/passwd"]);
    ensure!(folder.code == 126 && folder.stderr.contains("permission denied"), "{folder:?}");
    // A namespace's first process is deaf to its own SIGKILL; its child is not, and a shell passes 137 on.
    ensure!(code(&["run", "--rm", "busybox", "sh", "-c", "sh -c 'kill -9 $$'; exit $?"]) == 137);
    let left = engine.docker_ok(&["ps", "-aq"])?;
    ensure!(left.is_empty(), "--rm removed them all: {left}");
    engine.stop()
}

fn streams() -> anyhow::Result<()> {
    let engine = engine()?;
    let both = engine.docker(&["run", "--rm", "busybox", "sh", "-c", "echo out; echo err >&2"]);
    ensure!((both.stdout.as_str(), both.stderr.as_str()) == ("out\n", "err\n"), "{both:?}");
    let echoed = engine.docker_with_input(&["run", "--rm", "-i", "busybox", "cat"], b"x\n")?;
    ensure!(echoed.code == 0 && echoed.stdout == "x\n", "{echoed:?}");
    // 32 MiB in and out again: the digest tells whether a byte was lost anywhere.
    let big = b"0123456789abcde\n".repeat(2 << 20);
    let sum = engine.docker_with_input(&["run", "--rm", "-i", "busybox", "md5sum"], &big)?;
    let expected =
        Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().and_then(|mut child| {
            child.stdin.take().expect("piped").write_all(&big)?;
            child.wait_with_output()
        })?;
    ensure!(sum.stdout.as_bytes() == expected.stdout, "{sum:?}");
    let count = "i=0; while [ $i -lt 20000 ]; do echo line $i; i=$((i+1)); done";
    let lines = engine.docker_ok(&["run", "--rm", "busybox", "sh", "-c", count])?;
    ensure!(lines.lines().count() == 20_000 && lines.ends_with("line 19999"), "{} lines", lines.lines().count());
    engine.stop()
}

/// Runs docker inside a terminal made by script(1).
fn in_terminal(engine: &Engine, arguments: &str, input: &[u8]) -> anyhow::Result<(i32, String)> {
    let docker = engine.docker_command(&[]);
    let mut script = Command::new("script");
    script.args(["-q", "-e", "-c", &format!("stty cols 111 rows 33; docker {arguments}"), "/dev/null"]);
    script.envs(docker.get_envs().filter_map(|(key, value)| Some((key, value?))));
    let mut child = script.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut stdin = child.stdin.take().context("input")?;
    stdin.write_all(input)?;
    let output = child.wait_with_output()?;
    drop(stdin);
    Ok((output.status.code().unwrap_or(-1), String::from_utf8_lossy(&output.stdout).replace('\r', "")))
}

fn terminal() -> anyhow::Result<()> {
    let engine = engine()?;
    let (code, text) = in_terminal(&engine, "run --rm -it busybox sh -c 'tty; stty size; exit 3'", b"")?;
    ensure!(code == 3 && text.contains("/dev/pts/0") && text.contains("33 111"), "{code} {text:?}");
    engine.docker_ok(&["run", "-d", "--name", "cc", "busybox", "sleep", "1000"])?;
    let (code, text) = in_terminal(&engine, "exec -it cc sh -c 'tty && stty size && echo $TERM'", b"")?;
    ensure!(code == 0 && text.contains("/dev/pts/") && text.contains("33 111") && text.contains("xterm"), "{text:?}");
    engine.docker_ok(&["run", "-dit", "--name", "tt", "busybox", "sh"])?;
    let (code, text) = in_terminal(&engine, "attach tt", b"echo $((6*7))\nexit 5\n")?;
    ensure!(code == 5 && text.contains("42"), "{code} {text:?}");
    engine.stop()
}

fn exec_attach_logs() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["run", "-d", "--name", "cc", "busybox", "sh", "-c", "echo one; echo two >&2; sleep 1000"])?;
    let exec = engine.docker(&[
        "exec",
        "-e",
        "A=b",
        "-w",
        "/etc",
        "-u",
        "nobody",
        "cc",
        "sh",
        "-c",
        "id -un; pwd; echo $A; exit 4",
    ]);
    ensure!(exec.code == 4 && exec.stdout == "nobody\n/etc\nb\n", "{exec:?}");
    let echoed = engine.docker_with_input(&["exec", "-i", "cc", "cat"], b"through exec")?;
    ensure!(echoed.stdout == "through exec", "{echoed:?}");
    let missing = engine.docker(&["exec", "cc", "nosuchprogram"]);
    // dockerd too sends this one down the attached stream, not as an error of the request.
    ensure!(missing.code == 127 && missing.stdout.contains("executable file not found in $PATH"), "{missing:?}");
    let logs = engine.docker(&["logs", "cc"]);
    ensure!((logs.stdout.as_str(), logs.stderr.as_str()) == ("one\n", "two\n"), "{logs:?}");
    ensure!(engine.docker(&["logs", "--tail", "1", "cc"]).stderr == "two\n");

    // Following ends when the container does.
    let follow = engine.docker_command(&["logs", "-f", "cc"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut events = engine.docker_command(&["events", "--since", "1h", "--filter", "event=attach"]);
    let mut events = events.stdout(Stdio::piped()).spawn()?;
    let attach = engine.docker_command(&["attach", "--no-stdin", "cc"]).stdout(Stdio::piped()).spawn()?;
    // Attached is what docker says it is: a container killed before could not be attached to.
    BufReader::new(events.stdout.take().context("output")?).read_line(&mut String::new())?;
    events.kill()?;
    events.wait()?;
    engine.docker_ok(&["kill", "cc"])?;
    ensure!(follow.wait_with_output()?.stdout == b"one\n");
    ensure!(attach.wait_with_output()?.status.code() == Some(137));
    engine.stop()
}

fn signals() -> anyhow::Result<()> {
    let engine = engine()?;
    let trap = "trap 'echo term; exit 9' TERM; trap 'echo usr1' USR1; echo ready; while :; do sleep 0.1; done";
    engine.docker_ok(&["run", "-d", "--name", "cc", "busybox", "sh", "-c", trap])?;
    let mut follow = engine.docker_command(&["logs", "-f", "cc"]).stdout(Stdio::piped()).spawn()?;
    {
        let mut lines = BufReader::new(follow.stdout.take().context("output")?).lines();
        ensure!(lines.next().transpose()?.as_deref() == Some("ready"));
        engine.docker_ok(&["kill", "-s", "USR1", "cc"])?;
        ensure!(lines.next().transpose()?.as_deref() == Some("usr1"));
        engine.docker_ok(&["stop", "cc"])?;
        ensure!(lines.next().transpose()?.as_deref() == Some("term"));
    }
    follow.wait()?;
    ensure!(engine.docker_ok(&["wait", "cc"])? == "9");
    // Process 1 has no handler: docker waits, then kills.
    engine.docker_ok(&["run", "-d", "--name", "deaf", "busybox", "sleep", "1000"])?;
    engine.docker_ok(&["stop", "-t", "1", "deaf"])?;
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.State.ExitCode}}", "deaf"])? == "137");
    engine.docker_ok(&["start", "deaf"])?;
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.State.Running}}", "deaf"])? == "true");
    let busy = engine.docker(&["rm", "deaf"]);
    ensure!(busy.code == 1 && busy.stderr.contains("container is running"), "{busy:?}");
    engine.docker_ok(&["rm", "-f", "deaf", "cc"])?;
    engine.stop()
}

fn configuration() -> anyhow::Result<()> {
    let engine = engine()?;
    let shared = engine.home().join("shared");
    fs::create_dir(&shared)?;
    fs::write(shared.join("in"), "from the host")?;
    let bind = format!("{}:/data", shared.display());
    let script = "cat /data/in; echo; echo back > /data/out; hostname; id -u; pwd; echo $A; cat /etc/hostname";
    let text = engine.docker_ok(&[
        "run",
        "--rm",
        "-v",
        &bind,
        "--hostname",
        "box",
        "-e",
        "A=1 2",
        "-w",
        "/tmp",
        "--entrypoint",
        "sh",
        "busybox",
        "-c",
        script,
    ])?;
    ensure!(text == "from the host\nbox\n0\n/tmp\n1 2\nbox", "{text:?}");
    ensure!(fs::read_to_string(shared.join("out"))? == "back\n");
    let read_only = engine.docker(&["run", "--rm", "-v", &format!("{bind}:ro"), "busybox", "touch", "/data/x"]);
    ensure!(read_only.code == 1 && read_only.stderr.contains("Read-only file system"), "{read_only:?}");
    // A writable layer is the container's own and outlives a stop.
    engine.docker_ok(&["run", "--name", "ww", "busybox", "sh", "-c", "echo kept >> /root-file; cat /root-file"])?;
    ensure!(engine.docker_ok(&["start", "-a", "ww"])? == "kept\nkept");
    ensure!(engine.docker_ok(&["run", "--rm", "busybox", "sh", "-c", "ls / | grep -c root-file; true"])? == "0");
    let hidden = engine.docker_ok(&[
        "run",
        "--rm",
        "busybox",
        "sh",
        "-c",
        "cat /proc/kcore | wc -c; mount -t tmpfs x /mnt || echo refused",
    ])?;
    ensure!(hidden == "0\nrefused", "{hidden:?}");
    engine.stop()
}

fn limits() -> anyhow::Result<()> {
    let engine = engine()?;
    let eat = "tail /dev/zero";
    let eaten =
        engine.docker(&["run", "--name", "mm", "--memory", "16m", "--memory-swap", "16m", "busybox", "sh", "-c", eat]);
    ensure!(eaten.code == 137, "{eaten:?}");
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.State.OOMKilled}}", "mm"])? == "true");
    let shown = engine.docker_ok(&["inspect", "-f", "{{.HostConfig.Memory}} {{.HostConfig.NanoCpus}}", "mm"])?;
    ensure!(shown == "16777216 0", "{shown}");
    engine.docker_ok(&["run", "--rm", "--cpus", "0.5", "--pids-limit", "20", "busybox", "true"])?;
    engine.docker_ok(&["rm", "mm"])?;
    engine.stop()
}

fn list_inspect_events() -> anyhow::Result<()> {
    let engine = engine()?;
    let id = engine.docker_ok(&["create", "--name", "cc", "--label", "a=b", "busybox", "sleep", "1000"])?;
    ensure!(engine.docker_ok(&["ps", "-q"])?.is_empty());
    ensure!(engine.docker_ok(&["ps", "-aq", "--no-trunc", "--filter", "label=a=b"])? == id);
    ensure!(engine.docker_ok(&["inspect", "-f", "{{.State.Status}}", &id[..12]])? == "created");
    engine.docker_ok(&["start", "cc"])?;
    let line = engine.docker_ok(&["ps", "--format", "{{.Names}} {{.Image}} {{.Status}}"])?;
    ensure!(line.starts_with("cc busybox Up "), "{line}");
    engine.docker_ok(&["rm", "-f", "cc"])?;
    // The CLI cuts relative times to seconds: the next full one is after everything above, and docker waits for it.
    let next = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs() + 1;
    let format = "{{.Type}} {{.Action}}";
    let events = engine.docker_ok(&["events", "--since", "1h", "--until", &next.to_string(), "--format", format])?;
    let seen: Vec<&str> = events.lines().collect();
    for expected in [
        "container create",
        "network connect",
        "container start",
        "container kill",
        "container die",
        "container destroy",
    ] {
        ensure!(seen.contains(&expected), "{expected} is missing: {seen:?}");
    }
    let at = |name: &str| seen.iter().position(|event| *event == name);
    ensure!(
        at("container create") < at("network connect") && at("network connect") < at("container start"),
        "{seen:?}"
    );
    ensure!(engine.docker_ok(&["version", "--format", "{{.Server.APIVersion}}"])? == "1.51");
    ensure!(engine.docker_ok(&["info", "--format", "{{.Images}}"])? == "1");
    ensure!(engine.docker_ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"])? == "busybox:latest");
    let removed = engine.docker_ok(&["rmi", "busybox"])?;
    ensure!(removed.starts_with("Untagged: busybox:latest\nDeleted: sha256:"), "{removed}");
    engine.stop()
}
