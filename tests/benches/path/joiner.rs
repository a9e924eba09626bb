// SPDX-License-Identifier: Apache-2.0
//! The floor of every design with TAPs: one thread that moves frames between two of them, each in a namespace of its
//! own, headers and offloads untouched. A process of its own, so that its cost can be told.

use std::{
    fs::File,
    io::Read as _,
    os::fd::{AsFd as _, BorrowedFd},
    process::{Child, Command, Stdio},
};

use anyhow::Context as _;
use arca_link::{Offloads, Tap, TapConfig};
use arca_tests::isolation::{in_network_of, run};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

use crate::kernel::{Holder, address};

/// Two namespaces and the process between them; gone when dropped.
pub(crate) struct Joined {
    holders: [Holder; 2],
    process: Child,
}

impl Joined {
    pub(crate) fn start() -> anyhow::Result<Self> {
        let holders = [Holder::start()?, Holder::start()?];
        let mut command = Command::new(std::env::current_exe()?);
        command.arg("--join").args(holders.iter().map(|holder| holder.pid().to_string()));
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().context("start the joiner")?;
        let mut ready = [0; 1];
        process.stdout.as_mut().context("output")?.read_exact(&mut ready).context("the joiner's start")?;
        for (end, holder) in holders.iter().enumerate() {
            in_network_of(holder.pid(), || {
                run("ip", &["address", "add", &format!("{}/24", address(end)), "dev", "eth0"])
            })?;
        }
        Ok(Self { holders, process })
    }

    pub(crate) fn pid(&self, end: usize) -> u32 {
        self.holders[end].pid()
    }

    pub(crate) fn process(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        // Ends it: its input closes.
        drop(self.process.stdin.take());
        let _ = self.process.wait();
    }
}

/// The process itself: `--join PID PID`. Ends when its input does.
pub(crate) fn main(pids: [u32; 2]) -> anyhow::Result<()> {
    let open = |pid, octet| {
        in_network_of(pid, move || -> anyhow::Result<Tap> {
            let tap = Tap::open(&TapConfig { name: "eth0", mac: Some([2, 0, 0, 0, 0, octet]), mtu: 1500 })?;
            tap.set_offloads(Offloads::ALL)?;
            tap.set_up(true)?;
            Ok(tap)
        })
    };
    let taps = [open(pids[0], 1)?, open(pids[1], 2)?];
    let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
    for (token, tap) in (0..).zip(&taps) {
        epoll.add(tap, EpollEvent::new(EpollFlags::EPOLLIN, token))?;
    }
    let input = File::from(std::io::stdin().as_fd().try_clone_to_owned()?);
    epoll.add(&input, EpollEvent::new(EpollFlags::EPOLLIN | EpollFlags::EPOLLHUP, 2))?;
    use std::io::Write as _;
    std::io::stdout().write_all(b".")?;
    std::io::stdout().flush()?;
    let mut buffer = vec![0; 1 << 17];
    let mut events = [EpollEvent::empty(); 4];
    loop {
        let ready = epoll.wait(&mut events, EpollTimeout::NONE)?;
        for event in &events[..ready] {
            match event.data() {
                0 => carry(taps[0].as_fd(), taps[1].as_fd(), &mut buffer),
                1 => carry(taps[1].as_fd(), taps[0].as_fd(), &mut buffer),
                _ => return Ok(()),
            }
        }
    }
}

fn carry(from: BorrowedFd<'_>, to: BorrowedFd<'_>, buffer: &mut [u8]) {
    for _ in 0..64 {
        let Ok(length) = nix::unistd::read(from, buffer) else { return };
        let _ = nix::unistd::write(to, &buffer[..length]);
    }
}
