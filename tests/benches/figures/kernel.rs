// SPDX-License-Identifier: Apache-2.0
//! The peer of every figure of the frame path: two namespaces joined by the kernel's own bridge and veth pairs.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use arca_tests::isolation::{in_network_of, run};

/// Two ends and a bridge between them, each in a namespace of its own; gone when dropped.
pub(crate) struct Bridge {
    holders: [Holder; 3],
}

/// Address of end `n`.
pub(crate) fn address(end: usize) -> String {
    format!("10.77.0.{}", end + 1)
}

impl Bridge {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let bridge = Self { holders: [Holder::start()?, Holder::start()?, Holder::start()?] };
        let switch = bridge.holders[2].pid();
        in_network_of(switch, || run("ip", &["link", "add", "br0", "up", "type", "bridge"]))?;
        for end in [0, 1] {
            let (pid, port) = (bridge.pid(end), format!("port{end}"));
            in_network_of(switch, || -> anyhow::Result<()> {
                let peer = pid.to_string();
                run("ip", &["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", &peer])?;
                run("ip", &["link", "set", &port, "master", "br0", "up"])
            })?;
            in_network_of(pid, || -> anyhow::Result<()> {
                run("ip", &["link", "set", "lo", "up"])?;
                run("ip", &["address", "add", &format!("{}/24", address(end)), "dev", "eth0"])?;
                run("ip", &["link", "set", "eth0", "up"])
            })?;
        }
        Ok(bridge)
    }

    /// The process that holds the namespace of end 0 or 1.
    pub(crate) fn pid(&self, end: usize) -> u32 {
        self.holders[end].pid()
    }
}

/// A network namespace, held by a process that waits.
pub(crate) struct Holder(Child);

impl Holder {
    /// A process that waits on its input; it ends when this one does.
    pub(crate) fn start() -> anyhow::Result<Self> {
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut holder = Self(command.spawn().context("make a namespace")?);
        // Its echo tells that it runs, and hence that the namespace exists.
        holder.0.stdin.as_mut().context("input")?.write_all(b"ready\n")?;
        BufReader::new(holder.0.stdout.take().context("output")?).read_line(&mut String::new())?;
        Ok(holder)
    }

    pub(crate) fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        let _ = self.0.wait();
    }
}
