// SPDX-License-Identifier: Apache-2.0
//! Containers that are virtual machines: the same for their users, beside namespace containers, confined, and ended with
//! whatever makes them up. Emulated ones take seconds to boot, so each test does much with few.

use std::{
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    engine::{Engine, Ran, over_vms, vms_missing},
    isolation, story,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_container_in_a_virtual_machine_is_a_container", || with_vms("container", container)),
    ("virtual_and_namespace_machines_share_networks", || with_vms("networks", networks)),
    ("a_machine_ends_whole_and_outlives_its_launcher", || with_vms("life", life)),
    ("eight_machines_boot_at_once", || with_vms("eight", eight)),
    ("what_is_missing_is_one_line_with_the_way_out", || with_vms("bad input", bad_input)),
];

const VM: [&str; 2] = ["--runtime", "arca-vm"];
/// How long a killed process may take to be gone.
const GONE: Duration = Duration::from_secs(20);

fn with_vms(test: &str, body: fn() -> anyhow::Result<()>) -> anyhow::Result<()> {
    match vms_missing() {
        Some(reason) if !over_vms() => {
            arca_tests::skip(&format!("vm: {test}"), &reason);
            Ok(())
        }
        _ => body(),
    }
}

fn engine() -> anyhow::Result<Engine> {
    let engine = Engine::start_with(&["machine=namespace"])?;
    engine.load_image()?;
    Ok(engine)
}

fn run(engine: &Engine, more: &[&str]) -> Ran {
    engine.docker(&[&["run"][..], &VM, more].concat())
}

fn run_ok(engine: &Engine, more: &[&str]) -> anyhow::Result<String> {
    run(engine, more).ok().with_context(|| format!("docker run --runtime arca-vm {}", more.join(" ")))
}

fn sh(engine: &Engine, container: &str, script: &str) -> anyhow::Result<String> {
    engine.docker_ok(&["exec", container, "sh", "-c", script])
}

/// Everything that one container can show.
fn container() -> anyhow::Result<()> {
    let engine = engine()?;
    let info = engine.docker_ok(&["info", "--format", "{{json .Runtimes}} {{.DefaultRuntime}}"])?;
    ensure!(info.contains("arca-vm") && info.contains("arca-ns") && info.ends_with(" arca-ns"), "{info}");
    let host = engine.docker(&["run", "--rm", "--runtime", "arca-vm", "--network", "host", "busybox", "true"]);
    ensure!(host.code == 125 && host.stderr.contains("host's network"), "{host:?}");

    let (bind, kept) = (engine.home().join("bind"), engine.home().join("kept"));
    for folder in [&bind, &kept] {
        fs::create_dir(folder)?;
        fs::write(folder.join("from-host"), "host\n")?;
    }
    let (bind_option, kept_option) = (format!("{}:/bind", bind.display()), format!("{}:/kept:ro", kept.display()));
    let script = "echo out; echo err >&2; cat /bind/from-host; echo guest > /bind/from-guest; \
                  touch /kept/x 2>/dev/null && echo writable; trap 'exit 9' TERM; hostname; \
                  while :; do sleep 1000 & wait $!; done";
    let options = [
        "-d",
        "-i",
        "--name",
        "cc",
        "--hostname",
        "hh",
        "--memory",
        "96m",
        "--cpus",
        "1",
        "-e",
        "A=b",
        "-v",
        &bind_option,
        "-v",
        &kept_option,
        "-v",
        "vol:/vol",
        "--tmpfs",
        "/scratch",
        "busybox",
        "sh",
        "-c",
        script,
    ];
    run_ok(&engine, &options)?;
    let inspect = engine.inspect("cc")?;
    ensure!(inspect["HostConfig"]["Runtime"] == "arca-vm" && inspect["State"]["Running"] == true, "{inspect}");
    engine.until_said("cc", "hh")?;
    ensure!(fs::read_to_string(bind.join("from-guest"))? == "guest\n");
    ensure!(!engine.docker_ok(&["logs", "cc"])?.contains("writable"), "a read-only bind was written to");

    // It is a machine of its own, of the size that was asked for.
    let ours = fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let facts = sh(&engine, "cc", "cat /proc/sys/kernel/random/boot_id; nproc; grep MemTotal /proc/meminfo")?;
    let lines: Vec<&str> = facts.lines().collect();
    ensure!(lines[0] != ours.trim() && lines[1] == "1", "{facts}");
    let kilobytes: u64 = lines[2].split_whitespace().nth(1).context("MemTotal")?.parse()?;
    ensure!((64 << 10..224 << 10).contains(&kilobytes), "{kilobytes} kB for a limit of 96 MB");

    exec_and_files(&engine, &bind).context("exec and files")?;
    frozen(&engine).context("pause, stats, top")?;
    confined(&engine).context("confinement")?;

    // Its own end: TERM is heard, the code is the workload's.
    engine.docker_ok(&["stop", "-t", "20", "cc"])?;
    ensure!(engine.inspect("cc")?["State"]["ExitCode"] == 9, "{}", engine.inspect("cc")?["State"]);
    let diff = engine.docker_ok(&["diff", "cc"])?;
    ensure!(diff.contains("A /etc/made"), "{diff}");
    // Started again it has what it wrote.
    engine.docker_ok(&["start", "cc"])?;
    ensure!(sh(&engine, "cc", "cat /etc/made /vol/v")? == "made\nv");
    engine.docker_ok(&["kill", "cc"])?;
    engine.docker_ok(&["wait", "cc"])?;
    ensure!(engine.inspect("cc")?["State"]["ExitCode"] == 137);
    let quick = run(&engine, &["--rm", "busybox", "sh", "-c", "echo hi; exit 7"]);
    ensure!(quick.code == 7 && quick.stdout == "hi\n", "{quick:?}");
    let missing = run(&engine, &["--rm", "busybox", "nosuchprogram"]);
    ensure!(missing.code == 127 && missing.stderr.contains("executable file not found"), "{missing:?}");
    engine.docker_ok(&["rm", "-f", "cc"])?;
    engine.stop()
}

fn exec_and_files(engine: &Engine, bind: &Path) -> anyhow::Result<()> {
    let exec = engine.docker(&["exec", "-u", "nobody", "-w", "/etc", "cc", "sh", "-c", "id -un; pwd; echo $A; exit 4"]);
    ensure!(exec.code == 4 && exec.stdout == "nobody\n/etc\nb\n", "{exec:?}");
    // A megabyte through exec's streams, both ways.
    let big = b"0123456789abcde\n".repeat(1 << 16);
    let back = engine.docker_with_input(&["exec", "-i", "cc", "cat"], &big)?;
    ensure!(back.code == 0 && back.stdout.as_bytes() == big, "{} bytes came back", back.stdout.len());
    sh(
        engine,
        "cc",
        "echo made > /etc/made; echo v > /vol/v; mkfifo /scratch/f; ln -s made /etc/link; chown 7:8 /etc/made",
    )?;
    // Files go in and out, also those of a volume.
    let file = engine.home().join("in");
    fs::write(&file, "copied\n")?;
    engine.docker_ok(&["cp", &file.to_string_lossy(), "cc:/vol/in"])?;
    engine.docker_ok(&["cp", &file.to_string_lossy(), "cc:/root-in"])?;
    ensure!(sh(engine, "cc", "cat /vol/in /root-in")? == "copied\ncopied");
    let out = engine.home().join("out");
    engine.docker_ok(&["cp", "cc:/etc/made", &out.to_string_lossy()])?;
    ensure!(fs::read_to_string(&out)? == "made\n");
    // What the host writes into a bind while the machine runs is there.
    fs::write(bind.join("later"), "later\n")?;
    ensure!(sh(engine, "cc", "cat /bind/later; stat -c %u:%g /etc/made")? == "later\n7:8");
    Ok(())
}

fn frozen(engine: &Engine) -> anyhow::Result<()> {
    engine.docker_ok(&["pause", "cc"])?;
    ensure!(engine.inspect("cc")?["State"]["Status"] == "paused");
    engine.docker_ok(&["unpause", "cc"])?;
    let stats = engine.docker_ok(&["stats", "--no-stream", "--format", "{{.MemUsage}} {{.PIDs}}", "cc"])?;
    ensure!(stats.contains("/ 96MiB"), "{stats}");
    Ok(())
}

/// A workload sees nothing of what makes its machine work. The tools of this machine are shown to containers for it.
fn confined(engine: &Engine) -> anyhow::Result<()> {
    let tools = ["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro"];
    let python =
        "import socket\ntry: socket.socket(40, 1).connect((2, 9000))\nexcept OSError as e: print(type(e).__name__)";
    let asked = run(engine, &[&["--rm"][..], &tools, &["busybox", "/usr/bin/python3", "-c", python]].concat());
    ensure!(asked.stdout.trim() == "PermissionError", "AF_VSOCK is not forbidden: {asked:?}");
    let seen = sh(engine, "cc", "ls -d /arca /init 2>/dev/null; ps | grep '[a]rca-'; true")?;
    ensure!(seen.is_empty(), "more than its own is seen: {seen}");
    Ok(())
}

fn networks() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    engine.docker_ok(&["network", "create", "m"])?;
    let serve = "mkdir -p /srv && hostname > /srv/name && httpd -p 80 -h /srv && echo listening && exec sleep 10000";
    let server =
        |name: &'static str| ["-d", "--name", name, "--hostname", name, "--network", "n", "busybox", "sh", "-c", serve];
    run_ok(&engine, &[&["-p", "8080:80"][..], &server("virtual")].concat())?;
    engine.docker_ok(&[&["run", "--runtime", "arca-ns"][..], &server("plain")].concat())?;
    for name in ["virtual", "plain"] {
        engine.until_said(name, "listening")?;
    }
    // By name, both ways, and from the host.
    ensure!(sh(&engine, "virtual", "wget -q -T 20 -O - http://plain/name")? == "plain");
    ensure!(sh(&engine, "plain", "wget -q -T 20 -O - http://virtual/name")? == "virtual");
    ensure!(story::http_get("127.0.0.1:8080", "/name")? == "virtual");
    let links: Vec<serde_json::Value> =
        serde_json::from_str(&engine.program("arca-relayd", &["links", "--json"]).ok()?)?;
    ensure!(links.iter().all(|link| link["carrier"] == "stream" && link["state"] == "up"), "{links:?}");

    // A further interface comes and goes while the machine runs.
    engine.docker_ok(&["network", "connect", "m", "virtual"])?;
    let address = engine.address("virtual", "m")?;
    ensure!(sh(&engine, "virtual", "ip -4 -o address show dev eth1")?.contains(&address), "eth1 lacks {address}");
    engine.docker_ok(&["network", "disconnect", "m", "virtual"])?;
    ensure!(!sh(&engine, "virtual", "ls /sys/class/net")?.contains("eth1"), "eth1 is still there");

    // A second workload moves into the same machine: same interfaces, same boot, files of its own.
    let second = ["run", "-d", "--name", "second", "--network", "container:virtual", "busybox", "sleep", "10000"];
    engine.docker_ok(&second)?;
    let boot = "cat /proc/sys/kernel/random/boot_id; ip -4 -o address show dev eth0";
    ensure!(sh(&engine, "second", boot)? == sh(&engine, "virtual", boot)?);
    ensure!(sh(&engine, "second", "wget -q -T 20 -O - http://127.0.0.1/name; ls -d /srv; true")? == "virtual");
    let other =
        engine.docker(&["run", "--rm", "--runtime", "arca-ns", "--network", "container:virtual", "busybox", "true"]);
    ensure!(other.code != 0 && other.stderr.contains("its runtime is arca-vm"), "{other:?}");

    listeners(&engine).context("listeners")?;
    engine.docker_ok(&["rm", "-f", "virtual"])?;
    ensure!(sh(&engine, "second", "echo still")? == "still", "the machine lives until the last one ends");
    engine.docker_ok(&["rm", "-f", "second", "plain"])?;
    engine.stop()
}

/// The guest's own list of its AF_VSOCK listeners: arca-tapfwd, arca-init, the frames of link 1.
fn listeners(engine: &Engine) -> anyhow::Result<()> {
    let options = [
        "run",
        "--rm",
        "--network",
        "container:virtual",
        "-v",
        "/usr:/usr:ro",
        "-v",
        "/usr/lib:/lib:ro",
        "-v",
        "/usr/lib64:/lib64:ro",
        "busybox",
        "/usr/bin/ss",
        "-l",
        "-H",
        "--vsock",
    ];
    let text = engine.docker_ok(&options)?;
    let mut ports: Vec<u32> = text
        .lines()
        .filter_map(|line| line.split_whitespace().find_map(|word| word.rsplit_once(':')?.1.parse().ok()))
        .collect();
    ports.sort_unstable();
    ensure!(ports.len() == 3 && ports[..2] == [5555, 5556] && (20001..30000).contains(&ports[2]), "{text}");
    Ok(())
}

/// The keeper of a container's machine.
fn keeper(engine: &Engine, container: &str) -> anyhow::Result<u32> {
    engine.pid(container)
}

/// A child of the keeper.
fn part(keeper: u32, name: &str) -> anyhow::Result<i32> {
    let text = fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children"))?;
    let named = |pid: &i32| {
        fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(name))
    };
    text.split_whitespace().filter_map(|pid| pid.parse().ok()).find(named).with_context(|| format!("no {name}: {text}"))
}

fn life() -> anyhow::Result<()> {
    let engine = engine()?;
    let script = "i=0; while :; do echo $i; i=$((i+1)); sleep 1; done";
    run_ok(&engine, &["-d", "--name", "aa", "busybox", "sh", "-c", script])?;
    engine.until_said("aa", "1")?;
    let boot = sh(&engine, "aa", "cat /proc/sys/kernel/random/boot_id")?;
    // The launcher dies: the machine does not, and the next one finds it.
    engine.kill_daemon("arca-api")?;
    story::wait_until_up(&engine)?;
    ensure!(sh(&engine, "aa", "cat /proc/sys/kernel/random/boot_id")? == boot, "it was not adopted");

    // QEMU runs as nobody that this machine knows, without privileges, in a root of its own.
    let pid = keeper(&engine, "aa")?;
    let qemu = part(pid, "qemu-system")?;
    let status = fs::read_to_string(format!("/proc/{qemu}/status"))?;
    let field =
        |name: &str| status.lines().find_map(|line| line.strip_prefix(name)).unwrap_or_default().trim().to_owned();
    ensure!(!field("Uid:").starts_with('0') && field("CapEff:").trim_start_matches('0').is_empty(), "{status}");
    ensure!(field("Seccomp:") == "2" && field("NoNewPrivs:") == "1", "{status}");
    ensure!(!Path::new(&format!("/proc/{qemu}/root/root")).exists(), "it sees the host's root");

    // Each part's end is the machine's end, and the container's.
    for (victim, what) in [
        ("qemu-system", "QEMU"),
        ("vhost-device-vsock", "the vsock daemon"),
        ("virtiofsd", "virtiofsd"),
        ("", "the keeper"),
    ] {
        let pid = keeper(&engine, "aa")?;
        let target = if victim.is_empty() { i32::try_from(pid)? } else { part(pid, victim)? };
        let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
        kill(Pid::from_raw(target), Signal::SIGKILL)?;
        ensure!(engine.docker_ok(&["wait", "aa"])? == "137", "{what} killed");
        for part in children.split_whitespace() {
            ensure!(isolation::wait_for_end(part.parse()?, GONE)?, "{what} killed: process {part} is left");
        }
        engine.docker_ok(&["start", "aa"])?;
    }
    engine.docker_ok(&["rm", "-f", "aa"])?;
    engine.stop()
}

fn eight() -> anyhow::Result<()> {
    let engine = engine()?;
    engine.docker_ok(&["network", "create", "n"])?;
    let names: Vec<String> = (1..=8).map(|number| format!("v{number}")).collect();
    let started: Vec<Ran> = std::thread::scope(|scope| {
        let each = |name: &str| {
            run(&engine, &["-d", "--name", name, "--memory", "64m", "--network", "n", "busybox", "sleep", "10000"])
        };
        let starts: Vec<_> = names.iter().map(|name| scope.spawn(move || each(name))).collect();
        starts.into_iter().filter_map(|start| start.join().ok()).collect()
    });
    ensure!(started.len() == 8 && started.iter().all(|ran| ran.code == 0), "{started:?}");
    for name in &names[1..] {
        ensure!(sh(&engine, "v1", &format!("ping -c 1 -W 10 {name} >/dev/null && echo yes"))? == "yes", "v1 to {name}");
    }
    engine.docker_ok(&[&["rm", "-f"][..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat())?;
    engine.stop()
}

fn bad_input() -> anyhow::Result<()> {
    let variable = |name: &str| std::env::var(name).map(PathBuf::from).unwrap_or_default();
    let (kernel, image) =
        (fs::canonicalize(variable("ARCA_KERNEL_PATH"))?, fs::canonicalize(variable("ARCA_INIT_IMAGE"))?);
    let folder = tempfile::tempdir_in("/tmp")?;
    let place = |name: &str| folder.path().join(name);
    let setting = |key: &str, name: &str| format!("{key}={}", place(name).display());
    let settings = [
        setting("kernelPath", "kernel"),
        setting("initImage", "image"),
        setting("vmTools", "tools"),
        "machine=namespace".into(),
    ];
    let engine = Engine::start_with(&settings.iter().map(String::as_str).collect::<Vec<_>>())?;
    engine.load_image()?;
    let put = |name: &str, target: &Path| -> anyhow::Result<()> {
        let _ = fs::remove_file(place(name));
        Ok(symlink(target, place(name))?)
    };
    let refused = |words: &[&str], options: &[&str]| -> anyhow::Result<()> {
        let ran = run(&engine, &[&["--rm"][..], options, &["busybox", "true"]].concat());
        let line = ran
            .stderr
            .lines()
            .find(|line| line.contains("failed to start the container's machine"))
            .unwrap_or_default();
        ensure!(ran.code == 125 && words.iter().all(|word| line.contains(word)), "expected {words:?}: {ran:?}");
        Ok(())
    };
    refused(&["kernel", "is missing", "just kernel"], &[])?;
    put("kernel", Path::new("/etc/passwd"))?;
    refused(&["kernel", "no Linux kernel for"], &[])?;
    put("kernel", &kernel)?;
    refused(&["image", "is missing", "just vminit"], &[])?;
    put("image", Path::new("/etc/passwd"))?;
    refused(&["no initial RAM file system"], &[])?;
    put("image", &image)?;
    let tools = variable("ARCA_VM_TOOLS");
    let path = std::env::var_os("PATH").unwrap_or_default();
    if std::env::split_paths(&path).any(|folder| folder.join("vhost-device-vsock").exists()) {
        arca_tests::skip("a missing vhost-device-vsock", "this machine has one in PATH");
    } else {
        refused(&["vhost-device-vsock is missing", "cargo install"], &[])?;
    }
    if tools.is_dir() {
        put("tools", &tools)?;
    }
    refused(&["Cannot allocate memory"], &["--memory", "900t"])?;
    // A head that is right and a body that is not: the kernel finds out.
    let whole = fs::read(&image)?;
    fs::remove_file(place("image"))?;
    fs::write(place("image"), &whole[..whole.len() / 2])?;
    refused(&["ended before it was ready", "panic"], &[])?;
    ensure!(engine.docker_ok(&["ps", "-aq"])?.is_empty());
    engine.stop()
}
