// SPDX-License-Identifier: Apache-2.0
//! Machines by arca-machine with arca-init in them: who may die, and what remains. Root; each test in namespaces of its
//! own.
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, dead_code, clippy::wildcard_imports)]

mod support;

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use arca_machine::{Adoption, HelperSpec, Kind, MachineError, Machines};
use arca_proto::{init::v1::*, ports};
use support::{Lab, exit_record, folder, logged, prepare, private, spec, tag};

/// Makes a test the launcher of a machine for another test that kills it.
const LAUNCHER: &str = "ARCA_TEST_LAUNCHER";

/// Waits for a condition that another process brings about.
async fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn alive(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn kill(pid: u32) {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL).expect("kill");
}

fn script(path: &Path, text: &str) {
    fs::write(path, text).expect("write");
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).expect("chmod");
}

#[test]
fn a_workload_outlives_its_launcher() {
    private("a_workload_outlives_its_launcher", async {
        if std::env::var_os(LAUNCHER).is_some() {
            launcher().await;
        }
        let folder = folder(&tag());
        let mut launcher = Command::new(std::env::current_exe().expect("own path"))
            .args(["a_workload_outlives_its_launcher", "--exact", "--nocapture"])
            .env(LAUNCHER, "1")
            .stdout(Stdio::null())
            .spawn()
            .expect("spawn");
        let log = folder.join("w/state/output.log");
        until("first output", || fs::read_to_string(&log).is_ok_and(|text| text.contains("line 1"))).await;
        launcher.kill().expect("kill");
        launcher.wait().expect("wait");
        // Its next incarnation finds the machine, hears the exit, and misses nothing.
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        let Adoption::Running(machine) = machines.adopt(&folder.join("state")).await.expect("adopt") else {
            panic!("the machine is not running");
        };
        let mut lab = Lab::around(machines, machine);
        let states = lab.client.get_machine(GetMachineRequest {}).await.expect("get").into_inner().workloads;
        assert_eq!(states[0].state(), workload_status::State::Running);
        let attached = lab.attach("w", "", false).await;
        let (exit, ..) = attached.finish().await;
        assert_eq!(exit.code, 6);
        assert_eq!(exit_record(&folder, "w")["code"], 6);
        let want: String = (1..=20).map(|n| format!("line {n}\n")).collect();
        assert_eq!(logged(&folder, "w"), want);
        lab.end().await;
        let gone = Machines::new(Kind::Namespace).expect("namespaces").adopt(&folder.join("state")).await;
        assert!(matches!(gone.expect("adopt"), Adoption::Gone(None)));
    });
}

/// What the other test kills: launches, starts, and then does nothing for ever.
async fn launcher() {
    let mut lab = Lab::new().await;
    let script = "i=0; while [ $i -lt 20 ]; do i=$((i+1)); echo line $i; sleep 0.1; done; exit 6";
    let request = lab.request("w", &["sh", "-c", script]);
    lab.client.create_workload(request).await.expect("create");
    let _attached = lab.attach("w", "", false).await;
    lab.start("w").await;
    std::future::pending::<()>().await;
}

#[test]
fn a_killed_arca_init_leaves_nothing_after_destroy() {
    private("a_killed_arca_init_leaves_nothing_after_destroy", async {
        let mut lab = Lab::new().await;
        let request = lab.request("w", &["sh", "-c", "sleep 100 & sleep 100"]);
        let pid = lab.client.create_workload(request).await.expect("create").into_inner().pid;
        lab.start("w").await;
        kill(lab.machine.pid());
        tokio::time::timeout(Duration::from_secs(5), lab.machine.wait_exit()).await.expect("the exit is an event");
        assert!(alive(pid), "the workload cannot know yet");
        lab.end().await;
        assert!(!alive(pid));
    });
}

#[test]
fn a_second_launch_in_the_same_place_harms_nobody() {
    private("a_second_launch_in_the_same_place_harms_nobody", async {
        let mut lab = Lab::new().await;
        let request = lab.request("w", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("w").await;
        let again = spec(&lab.folder, true);
        let refused = lab.machines.launch_container(&again).await.expect_err("must be refused");
        assert!(matches!(refused, MachineError::Running { .. }), "{refused:?}");
        let states = lab.client.get_machine(GetMachineRequest {}).await.expect("get").into_inner().workloads;
        assert_eq!(states[0].state(), workload_status::State::Running);
        // But a dead one's remains do not stand in the way of the next.
        let pid = states[0].pid;
        kill(lab.machine.pid());
        lab.machine.wait_exit().await;
        let machine = lab.machines.launch_container(&again).await.expect("launch");
        assert!(!alive(pid), "the dead machine's workload must be gone before the next one starts");
        let lab = Lab::around(lab.machines, machine);
        lab.end().await;
    });
}

#[test]
fn shutdown_ends_workloads_and_removes_them() {
    private("shutdown_ends_workloads_and_removes_them", async {
        let mut lab = Lab::new().await;
        let script = "trap 'echo told; exit 3' TERM; echo ready; while true; do sleep 0.05; done";
        let request = lab.request("polite", &["sh", "-c", script]);
        lab.client.create_workload(request).await.expect("create");
        let mut attached = lab.attach("polite", "", false).await;
        lab.start("polite").await;
        attached.until("ready").await;
        let request = lab.request("deaf", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("deaf").await;
        let folder = lab.folder.clone();
        lab.end().await;
        assert_eq!(exit_record(&folder, "polite")["code"], 3);
        assert_eq!(logged(&folder, "polite"), "ready\ntold\n");
        assert_eq!(exit_record(&folder, "deaf")["code"], 137);
    });
}

#[test]
fn a_launch_that_fails_says_why_and_leaves_nothing() {
    private("a_launch_that_fails_says_why_and_leaves_nothing", async {
        let folder = folder(&tag());
        prepare(&folder);
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        // No arca-tapfwd beside arca-init: it says so and ends.
        let failed = machines.launch_container(&spec(&folder, false)).await.expect_err("must fail");
        assert!(matches!(failed, MachineError::Died { .. }), "{failed:?}");
        assert!(failed.to_string().contains("arca-tapfwd"), "{failed}");
        assert!(!folder.join("s").exists() && !folder.join("state/machine.json").exists());
        // No arca-init at all.
        fs::remove_file(folder.join("guest/arca-init")).expect("remove");
        let failed = machines.launch_container(&spec(&folder, true)).await.expect_err("must fail");
        assert!(matches!(failed, MachineError::Spawn { .. }), "{failed:?}");
        // One that never gets ready is killed.
        script(&folder.join("guest/arca-init"), "#!/bin/sh\necho waiting for nothing >&2\nexec sleep 100\n");
        let impatient =
            arca_machine::ContainerSpec { ready_timeout: Duration::from_millis(300), ..spec(&folder, true) };
        let failed = machines.launch_container(&impatient).await.expect_err("must fail");
        assert!(
            matches!(&failed, MachineError::NotReady { log, .. } if log.contains("waiting for nothing")),
            "{failed:?}"
        );
        assert!(!folder.join("s").exists() && !folder.join("state/machine.json").exists());
    });
}

/// Listens where arca-tapfwd does, and keeps one pipe in the descriptor store across its deaths.
const FAKE_TAPFWD: &str = r#"#!/usr/bin/python3
import array, json, os, socket, sys
store = socket.socket(fileno=int(os.environ["ARCA_FDSTORE"]))
kept = 0
while True:
    data, control, _, _ = store.recvmsg(65536, socket.CMSG_SPACE(32))
    if json.loads(data)["op"] == "end":
        break
    kept += 1
directory = next(a for a in sys.argv if a.startswith("--listen=sockets:")).split(":", 1)[1]
if not kept:
    reader, writer = os.pipe()
    store.sendmsg([json.dumps({"op": "put", "name": "pipe", "state": {}}).encode()],
        [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [reader]))])
with open(directory + "/runs", "a") as runs:
    runs.write("%d %d\n" % (os.getpid(), kept))
path = directory + "/5555"
if os.path.exists(path):
    os.unlink(path)
listener = socket.socket(socket.AF_UNIX)
listener.bind(path)
listener.listen()
while True:
    listener.accept()[0].close()
"#;

#[test]
fn a_machine_has_its_own_network_and_keeps_arca_tapfwd_alive() {
    private("a_machine_has_its_own_network_and_keeps_arca_tapfwd_alive", async {
        if !Path::new("/usr/bin/python3").exists() {
            eprintln!("SKIP part of a test: needs /usr/bin/python3 to play arca-tapfwd");
            return;
        }
        let folder = folder(&tag());
        prepare(&folder);
        script(&folder.join("guest/arca-tapfwd"), FAKE_TAPFWD);
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        let started = Instant::now();
        let machine = machines.launch_container(&spec(&folder, false)).await.expect("launch");
        eprintln!("launch to READY with a tapfwd in Python: {} ms", started.elapsed().as_millis());
        machine.dial(ports::TAP).await.expect("arca-tapfwd listens before READY");
        let own = fs::read_link("/proc/self/ns/net").expect("read");
        let theirs = fs::read_link(machine.netns_path().expect("a namespace")).expect("read");
        assert_ne!(own, theirs, "the machine must have a network namespace of its own");
        let runs = || fs::read_to_string(folder.join("s/runs")).unwrap_or_default();
        let last = |field: usize| -> u32 {
            let runs = runs();
            let line = runs.lines().next_back().expect("a run");
            line.split(' ').nth(field).expect("a field").parse().expect("a number")
        };
        assert_eq!(last(1), 0);
        for round in 2..5 {
            kill(last(0));
            until("another run of arca-tapfwd", || runs().lines().count() == round).await;
            assert_eq!(last(1), 1, "the descriptor must come back");
        }
        let tapfwd = last(0);
        let lab = Lab::around(machines, machine);
        lab.end().await;
        assert!(!alive(tapfwd));
    });
}

/// Says READY, tells what it sees of its machine, and waits for the end.
const FAKE_AGENT: &str = r#"#!/usr/bin/python3
import os, signal, socket, sys
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
seen = {
    "pid": os.getpid(),
    "host": os.uname().nodename,
    "arguments": sys.argv[1:3],
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "tun": os.path.exists("/dev/net/tun"),
    "processes": sorted(int(p) for p in os.listdir("/proc") if p.isdigit()),
}
open("/written", "w").write("in the overlay, not in the image")
open("/dev/null", "w").write("x")
open("/var/lib/arca/seen", "w").write(repr(seen))
if os.fork() == 0:
    while True: signal.pause()
ready = socket.socket(socket.AF_UNIX)
ready.connect("/vsock/9000")
ready.send(b"READY\n")
ready.close()
while True: signal.pause()
"#;

#[test]
fn the_helper_is_process_one_of_its_own_small_world() {
    private("the_helper_is_process_one_of_its_own_small_world", async {
        if !Path::new("/usr/bin/python3").exists() {
            eprintln!("SKIP part of a test: needs /usr/bin/python3 to play the agent");
            return;
        }
        let folder = folder(&tag());
        prepare(&folder);
        script(&folder.join("guest/arca-helper-agent"), FAKE_AGENT);
        let spec = HelperSpec {
            card: arca_machine::Card::None,
            id: "helper".into(),
            // This machine's own root: the interpreter needs its libraries.
            root: "/".into(),
            data_directory: folder.join("data"),
            socket_directory: folder.join("s"),
            state_directory: folder.join("state"),
            guest_directory: folder.join("guest"),
            environment: Vec::new(),
            log_level: "info".into(),
            ready_timeout: Duration::from_secs(10),
        };
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        for grace in [Duration::from_secs(2), Duration::ZERO] {
            let machine = machines.launch_helper(&spec).await.unwrap_or_else(|error| panic!("{error}: {:?}", error));
            let seen = fs::read_to_string(folder.join("data/seen")).expect("bound data folder");
            let want = "{'pid': 1, 'host': 'helper', 'arguments': ['init', '--listen=sockets:/vsock'], \
                        'interfaces': ['lo'], 'tun': True, 'processes': [1]}";
            assert_eq!(seen, want);
            assert!(!Path::new("/written").exists(), "the image must stay as it is");
            machine.destroy(grace).await.expect("destroy");
            assert!(!folder.join("s").exists());
        }
    });
}
