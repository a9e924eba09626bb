// SPDX-License-Identifier: Apache-2.0
//! Links between two ends that are sockets in a directory and speak the hello by hand.

use std::path::Path;

use arca_proto::{
    frame::MAX_FRAME,
    hello::{Hello, Kind},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{UnixListener, UnixStream},
};

use super::*;

const PATIENCE: Duration = Duration::from_secs(5);

fn link() -> LinkNumber {
    LinkNumber::try_from(3).expect("a link number")
}

/// Both ends of link 3, in one directory.
struct Machines {
    directory: tempfile::TempDir,
    container: UnixListener,
    helper: UnixListener,
}

impl Machines {
    fn new() -> Self {
        let directory = tempfile::tempdir().expect("a directory");
        let bind = |port: u32| UnixListener::bind(directory.path().join(port.to_string())).expect("a short path");
        let (container, helper) = (bind(link().container_port()), bind(link().helper_port()));
        Self { directory, container, helper }
    }

    fn ends(&self) -> Ends {
        ends(self.directory.path())
    }

    /// Accepts one connection on each end and says hello; gives the streams behind the hellos, and the epoch.
    async fn answer(&self) -> (UnixStream, UnixStream, u64) {
        let (mut container, _) = self.container.accept().await.expect("the relay");
        let (mut helper, _) = self.helper.accept().await.expect("the relay");
        let said = |kind| Hello::end(kind, link(), MAX_FRAME, Offloads::TSO).encode();
        container.write_all(&said(Kind::Container)).await.expect("written");
        helper.write_all(&said(Kind::Helper)).await.expect("written");
        let mut epochs = Vec::new();
        for (stream, peer) in [(&mut container, Kind::Helper), (&mut helper, Kind::Container)] {
            let mut hello = [0; Hello::SIZE];
            stream.read_exact(&mut hello).await.expect("the relay's hello");
            epochs.push(Hello::expect(&hello, Kind::Relay, link()).expect("the relay's hello").epoch);
            stream.read_exact(&mut hello).await.expect("the peer's hello");
            Hello::expect(&hello, peer, link()).expect("the peer's hello");
        }
        assert_eq!(epochs[0], epochs[1]);
        (container, helper, epochs[0])
    }
}

fn ends(directory: &Path) -> Ends {
    let address = Address::Sockets(directory.to_owned());
    Ends { carrier: Carrier::Stream, container: address.clone(), helper: address }
}

#[tokio::test]
async fn a_link_opens_counts_redials_with_a_greater_epoch_and_closes() {
    let (machines, links) = (Machines::new(), Links::new());
    let mut changes = links.changes();
    let (opened, (mut container, mut helper, epoch)) =
        tokio::join!(links.open(link(), machines.ends(), PATIENCE), machines.answer());
    let opened = opened.expect("both ends answered");
    assert_eq!((opened.progress.phase, opened.progress.epoch, opened.progress.reconnects), (Phase::Up, epoch, 0));
    assert_eq!(opened.progress.offloads, Offloads::TSO);

    let frame = [&60u32.to_le_bytes()[..], &[0; 60]].concat();
    container.write_all(&frame).await.expect("written");
    let mut got = vec![0; frame.len()];
    helper.read_exact(&mut got).await.expect("relayed");
    assert_eq!(got, frame);
    assert_eq!(links.list().await[0].to_helper, Counters { frames: 1, bytes: 48, drops: 0 });

    // The container's end dies in the middle of a frame: the helper's is closed, both are dialled anew.
    container.write_all(&frame[..10]).await.expect("written");
    drop(container);
    let mut rest = Vec::new();
    helper.read_to_end(&mut rest).await.expect("closed by the relay");
    let (_container, mut helper, next) = machines.answer().await;
    assert!(next > epoch);
    let again = links.open(link(), machines.ends(), PATIENCE).await.expect("no change");
    assert_eq!((again.progress.epoch, again.progress.reconnects), (next, 1));
    let mut phases = Vec::new();
    while let Ok(change) = changes.try_recv() {
        phases.push(change.progress.phase);
    }
    assert_eq!(phases, [Phase::Up, Phase::Connecting, Phase::Up]);

    assert!(links.close(link()).await);
    assert_eq!(helper.read(&mut [0]).await.expect("closed by the relay"), 0);
    assert_eq!(changes.recv().await.expect("told").progress.phase, Phase::Closed);
    assert!(links.list().await.is_empty() && !links.close(link()).await);
}

#[tokio::test]
async fn an_end_that_nobody_listens_on_is_named_and_nothing_remains() {
    let (machines, links) = (Machines::new(), Links::new());
    std::fs::remove_file(machines.directory.path().join(link().helper_port().to_string())).expect("removed");
    let error = links.open(link(), machines.ends(), Duration::from_millis(50)).await.expect_err("no helper");
    assert!(error.to_string().contains("helper end: dial port 30003"), "{error}");
    assert!(links.list().await.is_empty());
}

#[tokio::test]
async fn an_end_that_appears_late_is_found_and_other_ends_replace_the_link() {
    let (machines, links) = (Machines::new(), Links::new());
    let elsewhere = tempfile::tempdir().expect("a directory");
    let opening = tokio::spawn({
        let (links, ends) = (links.clone(), ends(elsewhere.path()));
        async move { links.open(link(), ends, PATIENCE).await }
    });
    while links.list().await.first().is_none_or(|l| l.progress.last_error.is_empty()) {
        tokio::task::yield_now().await;
    }
    let (opened, (_container, _helper, _)) =
        tokio::join!(links.open(link(), machines.ends(), PATIENCE), machines.answer());
    assert_eq!(opened.expect("replaced").ends, machines.ends());
    // The call for the former ends learns that its link is gone, and leaves the new one alone.
    opening.await.expect("the call").expect_err("replaced");
    assert_eq!(links.list().await[0].progress.phase, Phase::Up);
}

#[tokio::test]
async fn a_link_that_is_up_but_does_not_move_is_dialled_anew_and_moves() {
    let (machines, links) = (Machines::new(), Links::new());
    let (opened, (mut container, stuck, epoch)) =
        tokio::join!(links.open(link(), machines.ends(), PATIENCE), machines.answer());
    assert_eq!(opened.expect("both ends answered").stuck, 0);
    // The helper's end says hello and then takes nothing, while the container has more than all queues on the way hold.
    let frame = [&60u32.to_le_bytes()[..], &[0; 60]].concat();
    let writing = tokio::spawn(async move {
        let many = frame.repeat(4096);
        // Ends when the relay closes it.
        while container.write_all(&many).await.is_ok() {}
    });
    let (mut container, mut helper, next) = machines.answer().await;
    writing.await.expect("the stuck connection was closed on both ends");
    assert!(next > epoch);
    drop(stuck);
    let frame = [&60u32.to_le_bytes()[..], &[7; 60]].concat();
    container.write_all(&frame).await.expect("written");
    let mut got = vec![0; frame.len()];
    helper.read_exact(&mut got).await.expect("it moves again");
    assert_eq!(got, frame);
    // Frames may be a moment ahead of the link's own state.
    let again = links.open(link(), machines.ends(), PATIENCE).await.expect("no change");
    assert_eq!((again.stuck, again.progress.reconnects), (1, 1));
}
