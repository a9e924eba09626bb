// SPDX-License-Identifier: Apache-2.0
//! What joins a namespace to gvproxy, in place of the virtual machine monitor that it is made for: a process that carries
//! frames between a TAP and gvproxy's stream, in batches where there are several. The stream begins with a request for it
//! on gvproxy's control socket; on it each frame follows its length, two bytes, the least first. It knows no offloads.

use std::{
    io::{Read as _, Write as _},
    os::{
        fd::{AsFd as _, BorrowedFd},
        unix::net::UnixStream,
    },
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use arca_link::{Tap, TapConfig};
use arca_tests::isolation::{in_network_of, run};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use crate::kernel::Holder;

const HEADER: usize = 12;
const LENGTH: usize = 2;
const LONGEST: usize = 1518;
const BATCH: usize = 64 << 10;

/// A namespace on gvproxy's switch; gone when dropped.
pub(crate) struct Plugged {
    holder: Holder,
    process: Child,
}

impl Plugged {
    /// `octet` is the last one of its address in gvproxy's own network.
    pub(crate) fn start(socket: &Path, octet: u8) -> anyhow::Result<Self> {
        let holder = Holder::start()?;
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--plug").arg(holder.pid().to_string()).arg(socket).arg(octet.to_string());
        let mut process = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("start the plug")?;
        let mut ready = [0; 1];
        process.stdout.as_mut().context("output")?.read_exact(&mut ready).context("the plug's start")?;
        in_network_of(holder.pid(), || -> anyhow::Result<()> {
            run("ip", &["link", "set", "lo", "up"])?;
            run("ip", &["address", "add", &format!("{}/24", address(octet)), "dev", "eth0"])?;
            run("ip", &["route", "add", "default", "via", &address(1)])
        })?;
        Ok(Self { holder, process })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.holder.pid()
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Plugged {
    fn drop(&mut self) {
        // It waits for frames and has nothing to lose.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// In the network that gvproxy makes; its own is the first.
pub(crate) fn address(octet: u8) -> String {
    format!("192.168.127.{octet}")
}

/// The process itself: `--plug PID SOCKET OCTET`. Ends with gvproxy's stream.
pub(crate) fn main(pid: u32, socket: &Path, octet: u8) -> anyhow::Result<()> {
    let tap = in_network_of(pid, || -> anyhow::Result<Tap> {
        Ok(Tap::open(&TapConfig { name: "eth0", mac: Some([2, 0, 0, 0, 1, octet]), mtu: 1500 })?)
    })?;
    let mut stream = UnixStream::connect(socket).context("gvproxy's socket")?;
    stream.write_all(b"POST /connect HTTP/1.1\r\nHost: gvproxy\r\n\r\n")?;
    settle();
    in_network_of(pid, || tap.set_up(true))?;
    std::io::stdout().write_all(b".")?;
    std::io::stdout().flush()?;
    std::thread::scope(|scope| {
        let there = scope.spawn(|| to_stream(tap.as_fd(), &stream));
        let back = from_stream(&stream, tap.as_fd());
        let _ = stream.shutdown(std::net::Shutdown::Both);
        there.join().map_err(|_| anyhow::anyhow!("panicked"))?.and(back)
    })
}

/// What gvproxy's HTTP server has read with the request is lost to the stream, and it does not say when it has begun.
#[expect(clippy::disallowed_methods, reason = "another program's readiness that has no event")]
fn settle() {
    std::thread::sleep(Duration::from_millis(300));
}

fn to_stream(tap: BorrowedFd<'_>, mut stream: &UnixStream) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(BATCH + LONGEST);
    let mut frame = [0; HEADER + LONGEST];
    loop {
        poll(&mut [PollFd::new(tap, PollFlags::POLLIN)], PollTimeout::NONE)?;
        while batch.len() < BATCH
            && let Ok(length) = nix::unistd::read(tap, &mut frame)
        {
            let ethernet = frame.get(HEADER..length).unwrap_or_default();
            batch.extend(u16::try_from(ethernet.len())?.to_le_bytes());
            batch.extend(ethernet);
        }
        stream.write_all(&batch)?;
        batch.clear();
    }
}

fn from_stream(mut stream: &UnixStream, tap: BorrowedFd<'_>) -> anyhow::Result<()> {
    let (mut buffer, mut filled) = (vec![0; 2 * BATCH], 0);
    let mut frame = [0; HEADER + LONGEST];
    loop {
        let length = stream.read(&mut buffer[filled..])?;
        anyhow::ensure!(length > 0, "gvproxy closed the stream");
        filled += length;
        let mut at = 0;
        while let Some((field, rest)) = buffer[at..filled].split_first_chunk::<LENGTH>() {
            let length = usize::from(u16::from_le_bytes(*field));
            let Some(ethernet) = rest.get(..length) else { break };
            anyhow::ensure!(length <= LONGEST, "a frame of {length} bytes");
            frame[HEADER..HEADER + length].copy_from_slice(ethernet);
            // A full queue drops, as a cable would.
            let _ = nix::unistd::write(tap, &frame[..HEADER + length]);
            at += LENGTH + length;
        }
        buffer.copy_within(at..filled, 0);
        filled -= at;
    }
}
