// SPDX-License-Identifier: Apache-2.0
//! The helper machine's own port for clients of published ports, and what a person sees of the helper from outside.
//!
//! Here every client is made to go through the helper (`publish=helper`), as it is where the host has no route to it.

use std::{
    io::{ErrorKind, Read as _, Write as _},
    net::{IpAddr, Ipv4Addr, Shutdown, TcpListener, TcpStream},
    time::Duration,
};

use anyhow::ensure;
use arca_tests::{
    engine::Engine,
    isolation::in_network_of,
    outside::{GATEWAY, Outside},
};

use crate::{
    Test,
    proofs::eventually,
    publishing::{serve, sleeper, udp_who, uplink, who},
};

pub(crate) const TESTS: &[(&str, Test)] = &[("clients_go_through_the_helper_and_people_look_into_it", through)];

/// In a container: one port that counts what it is sent and answers at the end, and one that resets who comes.
fn count_and_reset(engine: &Engine, name: &str) -> anyhow::Result<()> {
    let (count, reset) = in_network_of(engine.pid(name)?, || -> anyhow::Result<_> {
        Ok((TcpListener::bind((Ipv4Addr::UNSPECIFIED, 81))?, TcpListener::bind((Ipv4Addr::UNSPECIFIED, 82))?))
    })?;
    std::thread::spawn(move || {
        for mut stream in count.incoming().flatten() {
            std::thread::spawn(move || -> std::io::Result<()> {
                let mut data = Vec::new();
                stream.read_to_end(&mut data)?;
                let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
                write!(stream, "{} {sum}", data.len())
            });
        }
    });
    std::thread::spawn(move || {
        for stream in reset.incoming().flatten() {
            // Closed with something unread: a reset.
            let _ = stream.peek(&mut [0]);
        }
    });
    Ok(())
}

fn through() -> anyhow::Result<()> {
    let outside = Outside::start()?;
    let engine = Engine::start_with(&["publish=helper"])?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "n"])?;
    let ports = ["8080:80", "8080:80/udp", "[::1]:8082:80", "8081:81", "8083:82", "8084:84"];
    let mut arguments = vec!["--network", "n"];
    ports.iter().for_each(|port| arguments.extend(["-p", port]));
    sleeper(&engine, "web", &arguments)?;
    serve(&engine, "web", 80)?;
    count_and_reset(&engine, "web")?;
    sleeper(&engine, "other", &[])?;
    let listed = engine.program("arca-relayd", &["ports"]).ok()?;
    ensure!(listed.contains(" helper"), "{listed}");

    // To a container everybody comes from the helper.
    let IpAddr::V4(host) = uplink(&engine)? else { anyhow::bail!("no IPv4 on the uplink") };
    let helper = IpAddr::V4(Ipv4Addr::from(u32::from(host) + 3));
    for to in ["127.0.0.1:8080", "[::1]:8080", "[::1]:8082", &format!("{GATEWAY}:8080")] {
        ensure!(who(to)? == helper, "from the host by {to}");
    }
    ensure!(udp_who("127.0.0.1:8080")? == helper && udp_who("[::1]:8080")? == helper, "by UDP");
    for (who_asks, pid) in [("outside", outside.pid()), ("web", engine.pid("web")?), ("other", engine.pid("other")?)] {
        in_network_of(pid, || {
            let to = format!("{GATEWAY}:8080");
            ensure!(who(&to)? == helper && udp_who(&to)? == helper, "from {who_asks}");
            Ok(())
        })?;
    }

    // Much data, the end of one direction before the other's; then ends that are no orderly ones.
    let data: Vec<u8> = (0..8_000_000_u32).map(|n| n.to_le_bytes()[1]).collect();
    let sum: u64 = data.iter().map(|byte| u64::from(*byte)).sum();
    let mut stream = TcpStream::connect("127.0.0.1:8081")?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(&data)?;
    stream.shutdown(Shutdown::Write)?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer == format!("{} {sum}", data.len()), "{answer}");
    for (port, why) in [(8083, "reset"), (8084, "refused")] {
        let mut stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let ended = stream.write_all(b"x").and_then(|()| stream.read_to_end(&mut Vec::new()));
        let kind = ended.err().map(|error| error.kind());
        ensure!(matches!(kind, Some(ErrorKind::ConnectionReset | ErrorKind::BrokenPipe)), "{why}: {kind:?}");
    }

    looked_into(&engine, "Namespace")?;
    engine.stop()
}

/// Every way to look into a helper machine that runs.
pub(crate) fn looked_into(engine: &Engine, kind: &str) -> anyhow::Result<()> {
    let status = engine.arca(&["helper", "status"]).ok()?;
    ensure!(status.contains(kind) && status.contains("ovn-northd"), "{status}");
    let shown = engine.arca(&["helper", "exec", "ovn-nbctl", "--format=csv", "list", "Logical_Router"]).ok()?;
    ensure!(shown.contains(",gw,"), "{shown}");
    let failed = engine.arca(&["helper", "exec", "ovs-vsctl", "no-such-command"]);
    ensure!(failed.code == 1 && failed.stderr.contains("no-such-command"), "{failed:?}");
    let unknown = engine.arca(&["helper", "exec", "sh"]);
    ensure!(unknown.code != 0 && unknown.stderr.contains("there are ovn-nbctl"), "{unknown:?}");
    let console = engine.arca(&["helper", "console", "-n", "1000"]).ok()?;
    ensure!(console.contains("programs started"), "{console}");
    // A program that ends is started again, and that is told.
    engine.arca(&["helper", "exec", "ovs-appctl", "-t", "/run/ovn/ovn-northd.ctl", "exit"]).ok()?;
    eventually("the log tells of ovn-northd's end", || {
        engine.arca(&["helper", "logs", "ovn-northd"]).stdout.contains("has ended")
    })
}
