// SPDX-License-Identifier: Apache-2.0
//! What arca-netd changes on the host, for real, in namespaces of the test's own. Needs root, `unshare` and `nft`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failed unwrap is a failed test; a skip must be seen")]

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use arca_netd::helper::{Uplink, host};

const INSIDE: &str = "ARCA_TEST_INSIDE";

fn text(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Runs this test again in a network and pid namespace of its own; `false` in the outer process.
fn inside(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return true;
    }
    let able = nix::unistd::geteuid().is_root()
        && ["unshare", "nft", "ip"]
            .iter()
            .all(|tool| Command::new(tool).arg("-V").stdout(Stdio::null()).status().is_ok());
    if !able {
        println!("SKIP {name}: needs root, unshare, nft and ip");
        return false;
    }
    let status = Command::new("unshare")
        .args(["--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", name, "--nocapture"])
        .env(INSIDE, "1")
        .status()
        .unwrap();
    assert!(status.success(), "inside: {status}");
    false
}

struct Helper(Child);

impl Helper {
    fn start() -> Self {
        let child = Command::new("unshare").args(["--net", "cat"]).stdin(Stdio::piped()).spawn().unwrap();
        let helper = Self(child);
        // unshare(1) has made the namespace once it differs from ours.
        let own = std::fs::read_link("/proc/self/ns/net").unwrap();
        while std::fs::read_link(helper.netns()).is_ok_and(|theirs| theirs == own) {
            std::thread::yield_now();
        }
        helper
    }

    fn netns(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.0.id()).into()
    }

    fn links(&self) -> String {
        text("nsenter", &["--net", "--target", &self.0.id().to_string(), "ip", "-o", "link"])
    }
}

impl Drop for Helper {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn the_uplink_is_made_once_and_undone_without_a_trace() {
    if !inside("the_uplink_is_made_once_and_undone_without_a_trace") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let before = (text("ip", &["-o", "link"]), text("nft", &["list", "ruleset"]));
        assert_eq!(text("cat", &["/proc/sys/net/ipv4/ip_forward"]), "0\n");
        let uplink = Uplink::choose("192.168.127.0/24".parse().unwrap(), &[]).unwrap();
        let helper = Helper::start();
        host::connect(uplink, &helper.netns(), false).await.unwrap();
        let made =
            || (text("ip", &["-o", "addr", "show", "arca-up0"]), text("nft", &["list", "ruleset"]), helper.links());
        let first = made();
        assert!(first.0.contains("192.168.127.1/29"), "{}", first.0);
        assert!(text("ip", &["-o", "link", "show", "arca-up0"]).contains(",UP"));
        assert!(first.1.contains("ip saddr 192.168.127.0/29 oifname != \"arca-up0\" masquerade"), "{}", first.1);
        assert!(first.2.contains("up0@"), "{}", first.2);
        assert_eq!(text("cat", &["/proc/sys/net/ipv4/ip_forward"]), "1\n");

        // Adopting a running helper makes it all again.
        host::connect(uplink, &helper.netns(), true).await.unwrap();
        assert_eq!(made(), first);

        // A helper that died took its end along; the next one gets a new pair.
        drop(helper);
        let helper = Helper::start();
        host::connect(uplink, &helper.netns(), false).await.unwrap();
        assert!(helper.links().contains("up0@"));

        host::disconnect().await.unwrap();
        assert_eq!((text("ip", &["-o", "link"]), text("nft", &["list", "ruleset"])), before);
        assert_eq!(text("cat", &["/proc/sys/net/ipv4/ip_forward"]), "0\n");
        host::disconnect().await.unwrap();
    });
}
