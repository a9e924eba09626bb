// SPDX-License-Identifier: Apache-2.0
//! `arca-tapfwd interface`: the one card of a machine becomes what it was told to be.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::fs::File;
use std::os::fd::AsRawFd as _;
use std::process::{Command, Output};

use common::{addresses, in_namespace, ip, run};
use nix::sched::{CloneFlags, unshare};

fn interface(more: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_arca-tapfwd"));
    command.args(["interface", "--name=eth0", "--mac=02:42:0a:01:00:02", "--mtu=1400"]).args(more).output().unwrap()
}

#[test]
fn the_card_gets_its_name_addresses_and_routes_and_twice_is_no_error() {
    in_namespace(|_| async {
        let wanted = ["--address=10.1.0.2/24", "--address=fd00:1::2/64", "--gateway=10.1.0.1", "--gateway=fd00:1::1"];
        let none = interface(&wanted);
        let said = String::from_utf8_lossy(&none.stderr).into_owned();
        assert!(!none.status.success() && said.contains("no network card"), "{said}");

        // What kernels bring along, and a card; its other end in a namespace of its own, as on a host.
        run("ip link add other type bridge; ip link add card type veth peer name far");
        let two = interface(&wanted);
        let said = String::from_utf8_lossy(&two.stderr).into_owned();
        assert!(!two.status.success() && said.contains("more than one"), "{said}");
        let elsewhere = std::thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let elsewhere = elsewhere.join().unwrap();
        run(&format!("ip link set far netns /proc/{}/fd/{}", std::process::id(), elsewhere.as_raw_fd()));

        for _ in 0..2 {
            let done = interface(&wanted);
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            let link = &ip("link show dev eth0")[0];
            assert_eq!((&link["address"], &link["mtu"]), (&"02:42:0a:01:00:02".into(), &1400.into()), "{link}");
            assert_eq!(addresses("eth0"), ["10.1.0.2/24", "fd00:1::2/64"]);
            let up = |name: &str| ip(&format!("link show dev {name}"))[0]["flags"].to_string().contains("\"UP\"");
            assert!(up("eth0") && up("lo"));
            for (family, hop) in [("-4", "10.1.0.1"), ("-6", "fd00:1::1")] {
                let routes = ip(&format!("{family} route show default"));
                assert_eq!(routes[0]["gateway"], hop, "{routes}");
                assert_eq!(routes.as_array().unwrap().len(), 1, "{routes}");
            }
        }
    });
}
