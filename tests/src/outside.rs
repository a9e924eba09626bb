// SPDX-License-Identifier: Apache-2.0
//! An "internet" of our own: a network namespace behind the engine's default route, with servers that say who asked.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{IpAddr, TcpListener, TcpStream, UdpSocket},
    os::unix::process::CommandExt as _,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;

use crate::isolation::{in_network_of, run};

/// Address of the outside's servers.
pub const ADDRESS: &str = "198.51.100.1";
/// Address of the engine's machine towards the outside.
pub const GATEWAY: &str = "198.51.100.2";
/// The outside's IPv6 address (a documentation prefix, RFC 3849).
pub const ADDRESS6: &str = "2001:db8:51::1";
/// The machine's towards the outside.
pub const GATEWAY6: &str = "2001:db8:51::2";
/// TCP and UDP, both families: answers with the client's address as text.
pub const WHO_PORT: u16 = 7777;

/// A namespace joined to this one by a veth pair; gone when dropped.
#[derive(Debug)]
pub struct Outside {
    holder: Child,
}

impl Outside {
    /// Makes the namespace, the default route to it, and starts its servers.
    ///
    /// # Errors
    /// If `ip` fails.
    pub fn start() -> anyhow::Result<Self> {
        // A process that waits on its input holds the namespace; it ends when we do.
        let mut command = Command::new("unshare");
        command.args(["--net", "cat"]).stdin(Stdio::piped()).stdout(Stdio::piped()).process_group(0);
        let mut holder = command.spawn().context("make the outside's namespace")?;
        // Its echo tells that it runs, and hence that its namespace exists.
        holder.stdin.as_mut().context("input")?.write_all(b"ready\n")?;
        let mut line = String::new();
        BufReader::new(holder.stdout.take().context("output")?).read_line(&mut line)?;
        let outside = Self { holder };
        let pid = outside.pid();
        run("ip", &["link", "add", "wan0", "type", "veth", "peer", "name", "wan1", "netns", &pid.to_string()])?;
        run("ip", &["address", "add", &format!("{GATEWAY}/24"), "dev", "wan0"])?;
        run("ip", &["address", "add", &format!("{GATEWAY6}/64"), "dev", "wan0", "nodad"])?;
        run("ip", &["link", "set", "wan0", "up"])?;
        run("ip", &["route", "add", "default", "via", ADDRESS])?;
        run("ip", &["-6", "route", "add", "default", "via", ADDRESS6])?;
        in_network_of(pid, || -> anyhow::Result<()> {
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["address", "add", &format!("{ADDRESS}/24"), "dev", "wan1"])?;
            run("ip", &["address", "add", &format!("{ADDRESS6}/64"), "dev", "wan1", "nodad"])?;
            run("ip", &["link", "set", "wan1", "up"])?;
            serve_who(ADDRESS, WHO_PORT)?;
            serve_who(ADDRESS6, WHO_PORT)
        })?;
        Ok(outside)
    }

    /// A process in the outside's network namespace.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.holder.id()
    }
}

/// Servers of TCP and UDP that tell each client its address, in the caller's network namespace; they end with the process.
///
/// # Errors
/// If the port cannot be had.
pub fn serve_who(address: &str, port: u16) -> anyhow::Result<()> {
    let tcp = TcpListener::bind((address, port)).with_context(|| format!("listen on {address} port {port}"))?;
    let udp = UdpSocket::bind((address, port)).with_context(|| format!("bind {address} port {port}"))?;
    std::thread::spawn(move || {
        for mut stream in tcp.incoming().flatten() {
            let who = stream.peer_addr().map(|peer| peer.ip().to_canonical().to_string()).unwrap_or_default();
            let _ = stream.write_all(who.as_bytes());
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
            let _ = udp.send_to(peer.ip().to_canonical().to_string().as_bytes(), peer);
        }
    });
    Ok(())
}

/// Who the TCP server at `to` says that the caller is, in the network namespace of process `from`.
///
/// # Errors
/// If it does not answer within a few seconds.
pub fn ask_who(from: u32, to: &str, port: u16) -> anyhow::Result<String> {
    in_network_of(from, || {
        let to: IpAddr = to.parse()?;
        let limit = Duration::from_secs(3);
        let mut stream = TcpStream::connect_timeout(&(to, port).into(), limit).context("connect")?;
        stream.set_read_timeout(Some(limit))?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    })
}

impl Drop for Outside {
    fn drop(&mut self) {
        // The kernel takes its time with a namespace that nobody is in; the pair would be seen as a leak.
        let _ = run("ip", &["link", "delete", "wan0"]);
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}
