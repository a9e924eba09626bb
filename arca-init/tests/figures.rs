// SPDX-License-Identifier: Apache-2.0
//! Prints what a machine costs; asserts only that it works. `ARCA_GUEST_DIR` names the guest programs to measure
//! (default: this build's arca-init, and no arca-tapfwd).
#![cfg(target_os = "linux")]
#![allow(missing_docs, unreachable_pub, dead_code)]

mod support;

use std::{
    fs,
    path::PathBuf,
    time::{Duration, Instant},
};

use arca_machine::{ContainerSpec, Kind, Machines};
use arca_proto::init::v1::DeleteWorkloadRequest;
use support::{Lab, folder, prepare, private, spec, tag};

const ROUNDS: usize = 15;

fn median(mut times: Vec<Duration>) -> f64 {
    times.sort_unstable();
    times[times.len() / 2].as_secs_f64() * 1e3
}

/// Resident memory and the part of it that is private, in KiB.
fn memory(pid: u32) -> (u64, u64) {
    let text = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("read");
    let field = |name: &str| -> u64 {
        let lines = text.lines().filter(|line| line.starts_with(name));
        lines.filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).sum()
    };
    (field("Rss:"), field("Private_"))
}

#[test]
fn figures() {
    private("figures", async {
        let folder = folder(&tag());
        prepare(&folder);
        let given = std::env::var_os("ARCA_GUEST_DIR").map(PathBuf::from);
        let guest = given.unwrap_or_else(|| folder.join("guest"));
        let host_network = !guest.join("arca-tapfwd").exists();
        let spec = ContainerSpec { guest_directory: guest, log_level: "info".into(), ..spec(&folder, host_network) };
        let machines = Machines::new(Kind::Namespace).expect("namespaces");
        let (mut launch, mut destroy) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let start = Instant::now();
            let machine = machines.launch_container(&spec).await.expect("launch");
            launch.push(start.elapsed());
            let start = Instant::now();
            machine.destroy(Duration::from_secs(1)).await.expect("destroy");
            destroy.push(start.elapsed());
        }
        let machine = machines.launch_container(&spec).await.expect("launch");
        let pid = machine.pid();
        let idle = memory(pid);
        let mut lab = Lab::around(machines, machine);
        let (mut create, mut start, mut wait, mut delete) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let request = lab.request("w", &["true"]);
            let mut clock = Instant::now();
            let mut lap = || std::mem::replace(&mut clock, Instant::now()).elapsed();
            lab.client.create_workload(request).await.expect("create");
            create.push(lap());
            lab.start("w").await;
            start.push(lap());
            assert_eq!(lab.wait("w", "").await.code, 0);
            wait.push(lap());
            let request = DeleteWorkloadRequest { workload_id: "w".into(), force: false };
            lab.client.delete_workload(request).await.expect("delete");
            delete.push(lap());
        }
        let request = lab.request("long", &["sleep", "100"]);
        lab.client.create_workload(request).await.expect("create");
        lab.start("long").await;
        let mut exec = Vec::new();
        for round in 0..ROUNDS {
            let id = format!("e{round}");
            let request = lab.exec_request("long", &id, &["true"]);
            let clock = Instant::now();
            lab.client.exec(request).await.expect("exec");
            assert_eq!(lab.attach("long", &id, false).await.finish().await.0.code, 0);
            exec.push(clock.elapsed());
        }
        let used = memory(pid);
        eprintln!("median of {ROUNDS}, ms ({}):", if host_network { "host network" } else { "with arca-tapfwd" });
        eprintln!("  launch to READY {:.1}, destroy {:.1}", median(launch), median(destroy));
        eprintln!(
            "  busybox true: create {:.1}, start {:.1}, until its exit {:.1}, delete {:.1}",
            median(create),
            median(start),
            median(wait),
            median(delete)
        );
        eprintln!("  exec true, attached, to its exit {:.1}", median(exec));
        eprintln!("  arca-init KiB resident/private: idle {}/{}, used {}/{}", idle.0, idle.1, used.0, used.1);
        lab.end().await;
    });
}
