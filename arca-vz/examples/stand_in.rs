// SPDX-License-Identifier: Apache-2.0
//! arca-vz over a stand-in for the framework: what the tests of a launcher launch. The guest says READY, echoes on the port of
//! arca-init, and ends when `die` is written there. The log level `mute` makes it say nothing, `broken` keeps it from starting.

#[path = "../tests/stand_in/mod.rs"]
#[allow(dead_code, unreachable_pub)]
mod stand_in;

use std::{os::fd::AsFd as _, sync::Arc};

use arca_daemon::shutdown::Shutdown;
use arca_proto::ports;
use arca_vz::{cli::Arguments, end::End, keeper, lease::Lease, spec::Spec};
use clap::Parser as _;
use stand_in::StandIn;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{UnixStream, unix::pipe::Receiver},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let spec = Spec::load(&arguments.spec)?;
    let machine = StandIn::new();
    let guest = machine.clone();
    machine.serve(ports::INIT, move |stream| drop(tokio::spawn(serve(guest.clone(), stream))));
    let says = |word: &str| spec.command_line.split(' ').any(|said| said == format!("arca.log={word}"));
    if says("broken") {
        machine.refuse("start", "the kernel does not start");
    }
    if !says("mute") && !says("broken") {
        tokio::spawn(boot(machine.clone()));
    }
    let lease = Lease::of(Receiver::from_owned_fd(std::io::stdin().as_fd().try_clone_to_owned()?)?);
    let (_trigger, terminated) = Shutdown::on_signals()?;
    let kept = keeper::keep(&spec, Arc::new(machine), lease, async move { terminated.wait().await }).await;
    let end = kept.unwrap_or_else(|error| End::now(format!("{error:#}"), false));
    end.store(&spec.state)?;
    anyhow::ensure!(end.asked, "{}", end.reason);
    Ok(())
}

/// Says READY once the machine runs.
async fn boot(machine: StandIn) {
    while !machine.said().contains(&"start".to_owned()) {
        tokio::task::yield_now().await;
    }
    if let Some(mut host) = machine.call(ports::READY) {
        let _ = host.write_all(b"READY\n").await;
        // Until the host has read it.
        let _ = host.read(&mut [0; 1]).await;
    }
}

async fn serve(machine: StandIn, mut stream: UnixStream) {
    let mut buffer = [0; 1024];
    while let Ok(length @ 1..) = stream.read(&mut buffer).await {
        let said = buffer.get(..length).unwrap_or_default();
        if said.starts_with(b"die") {
            return machine.end(Ok(()));
        }
        // The host asks arca-init to end by gRPC, whose first line is this (RFC 9113, section 3.4).
        if said.starts_with(b"PRI * HTTP/2.0") {
            return machine.end(Ok(()));
        }
        let _ = stream.write_all(said).await;
    }
}
