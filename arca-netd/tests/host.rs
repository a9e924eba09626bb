// SPDX-License-Identifier: Apache-2.0
//! What arca-netd changes on the host, for real, in namespaces of the test's own. Needs root, `unshare` and `nft`.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a failed unwrap is a failed test; a skip must be seen")]

use std::{
    path::PathBuf,
    process::{Child, Command, Stdio},
};

use arca_netd::{
    direct::Plan,
    helper::{
        Uplink, host,
        uplink::{Names, Ranges},
    },
};

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
        let names = Names::of("0123abcd");
        let helper = Helper::start();
        assert!(host::connect(&names, uplink, &helper.netns(), false, &Plan::default()).await.unwrap());
        let made = || {
            let addresses = text("ip", &["-o", "addr", "show", "arca-0123abcd"]);
            (addresses, text("ip", &["route"]), text("nft", &["list", "ruleset"]), helper.links())
        };
        let first = made();
        assert!(first.0.contains("192.168.127.1/29"), "{}", first.0);
        assert!(first.1.contains("192.168.127.0/29 dev arca-0123abcd"), "{}", first.1);
        assert!(text("ip", &["-o", "link", "show", "arca-0123abcd"]).contains(",UP"));
        assert!(first.2.contains("ip saddr 192.168.127.0/29 oifname != \"arca-0123abcd\" masquerade"), "{}", first.2);
        assert!(first.3.contains("up0@"), "{}", first.3);
        assert_eq!(text("cat", &["/proc/sys/net/ipv4/ip_forward"]), "1\n");

        // Adopting a running helper makes it all again.
        assert!(host::connect(&names, uplink, &helper.netns(), true, &Plan::default()).await.unwrap());
        assert_eq!(made(), first);

        // A helper that died took its end along; the next one gets a new pair.
        drop(helper);
        let helper = Helper::start();
        assert!(host::connect(&names, uplink, &helper.netns(), false, &Plan::default()).await.unwrap());
        assert!(helper.links().contains("up0@"));

        host::disconnect(&names).await.unwrap();
        assert_eq!((text("ip", &["-o", "link"]), text("nft", &["list", "ruleset"])), before);
        assert_eq!(text("cat", &["/proc/sys/net/ipv4/ip_forward"]), "0\n");
        host::disconnect(&names).await.unwrap();
    });
}

#[test]
fn engines_side_by_side_keep_apart_and_share_forwarding() {
    if !inside("engines_side_by_side_keep_apart_and_share_forwarding") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let range = "192.168.127.0/24".parse().unwrap();
        let (one, two) = (Names::of("00000001"), Names::of("00000002"));
        let (first, second) = (Helper::start(), Helper::start());
        let uplink = Uplink::choose(range, &[]).unwrap();
        // Both chose the same network, as when they start at the same moment: the route decides.
        let (a, b) = (first.netns(), second.netns());
        let plan = Plan::default();
        let both =
            tokio::join!(host::connect(&one, uplink, &a, false, &plan), host::connect(&two, uplink, &b, false, &plan));
        let both = [both.0.unwrap(), both.1.unwrap()];
        assert!(both.contains(&true) && both.contains(&false), "{both:?}");
        let ((winner, loser), netns) = if both[0] { ((&one, &two), &b) } else { ((&two, &one), &a) };
        assert!(!text("ip", &["-o", "link"]).contains(&loser.interface), "the loser left nothing");
        let other = Uplink::choose(range, &[uplink.net()]).unwrap();
        assert!(host::connect(loser, other, netns, false, &Plan::default()).await.unwrap());

        // Whoever stops first leaves the other all it needs.
        let forwarding = || text("cat", &["/proc/sys/net/ipv4/ip_forward"]);
        assert_eq!(forwarding(), "1\n");
        host::disconnect(winner).await.unwrap();
        assert_eq!(forwarding(), "1\n");
        assert_eq!(text("nft", &["list", "tables"]), format!("table ip {}\n", loser.table));
        assert!(text("ip", &["route"]).contains(&format!("192.168.127.8/29 dev {}", loser.interface)));
        host::disconnect(loser).await.unwrap();
        assert_eq!((forwarding(), text("nft", &["list", "ruleset"])), ("0\n".into(), String::new()));

        // Forwarding that was on before anybody came stays on.
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        assert!(host::connect(&one, uplink, &a, false, &Plan::default()).await.unwrap());
        host::disconnect(&one).await.unwrap();
        assert_eq!(forwarding(), "1\n");
    });
}

#[test]
fn the_ipv6_side_is_made_and_undone_and_advertised_routes_stay() {
    if !inside("the_ipv6_side_is_made_and_undone_and_advertised_routes_stay") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let setting = |name: &str| text("cat", &[&format!("/proc/sys/net/ipv6/conf/{name}")]);
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").unwrap();
        // An interface that listens to advertisements, and one that does not.
        text("ip", &["link", "add", "lan0", "type", "veth", "peer", "name", "lan1"]);
        std::fs::write("/proc/sys/net/ipv6/conf/lan0/accept_ra", "1").unwrap();
        std::fs::write("/proc/sys/net/ipv6/conf/lan1/accept_ra", "0").unwrap();
        let ranges = Ranges { v4: "192.168.127.0/24".parse().unwrap(), v6: "fd00:77::/48".parse().unwrap() };
        let (one, two) = (Names::of("00000001"), Names::of("00000002"));
        let (first, second) = (Helper::start(), Helper::start());
        let uplink = Uplink::choose(ranges.v4, &[]).unwrap().with_v6(ranges, &[]);
        assert!(host::connect(&one, uplink, &first.netns(), false, &Plan::default()).await.unwrap());
        let addresses = text("ip", &["-6", "-o", "addr", "show", "arca-00000001"]);
        assert!(addresses.contains("fd00:77::1/64 scope global") && !addresses.contains("tentative"), "{addresses}");
        assert!(text("ip", &["-6", "route"]).contains("fd00:77::/64 dev arca-00000001"));
        let rules = text("nft", &["list", "table", "ip6", "arca_00000001"]);
        assert!(rules.contains("ip6 saddr fd00:77::/64 oifname != \"arca-00000001\" masquerade"), "{rules}");
        assert!(rules.contains("oifname \"arca-00000001\" ct state") && rules.contains("drop"), "{rules}");
        let all = || ["all/forwarding", "lan0/accept_ra", "lan1/accept_ra"].map(setting).concat();
        assert_eq!(all(), "1\n2\n0\n");
        assert!(
            host::connect(&one, uplink, &first.netns(), true, &Plan::default()).await.unwrap(),
            "again changes nothing"
        );
        assert_eq!(rules, text("nft", &["list", "table", "ip6", "arca_00000001"]));

        // Another engine on the same IPv6 network finds it taken, and takes the next one.
        let next = Uplink::choose(ranges.v4, &[uplink.net()]).unwrap();
        let clash = next.with_v6(Ranges { v4: next.net(), ..ranges }, &[]);
        assert_eq!(clash.v6(), uplink.v6());
        assert!(!host::connect(&two, clash, &second.netns(), false, &Plan::default()).await.unwrap());
        assert!(!text("ip", &["-o", "link"]).contains(&two.interface), "it left nothing");
        let other = next.with_v6(ranges, &[]);
        assert!(host::connect(&two, other, &second.netns(), false, &Plan::default()).await.unwrap());

        // The mark is handed over with what it names, and the last one restores everything.
        host::disconnect(&one).await.unwrap();
        assert_eq!(all(), "1\n2\n0\n");
        host::disconnect(&two).await.unwrap();
        assert_eq!((all(), text("nft", &["list", "ruleset"])), ("0\n1\n0\n".into(), String::new()));
    });
}
