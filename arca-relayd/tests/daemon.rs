// SPDX-License-Identifier: Apache-2.0
//! The program itself: links opened over gRPC, killed and ended in the middle of a transfer.

#![cfg(target_os = "linux")]

#[path = "../../arca-link/tests/harness/mod.rs"]
mod harness;

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::{Duration, Instant},
};

use arca_proto::{
    dial::{Address, unix_channel},
    relay::v1::{
        Carrier, CloseLinkRequest, Link, ListLinksRequest, OpenLinkRequest, WatchLinksRequest, link::State,
        relay_client::RelayClient,
    },
};
use harness::{LINK, Rig, receive, send_until};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tonic::{Code, transport::Channel};

/// A running arca-relayd with everything below one directory. Dropping it kills it.
struct Daemon(Child);

impl Daemon {
    fn start(home: &Path) -> Self {
        let mut command = Command::new(env!("CARGO_BIN_EXE_arca-relayd"));
        command.arg("serve").env("ARCA_HOME", home).stderr(Stdio::null());
        Self(command.spawn().expect("the program"))
    }

    /// Ends it with `signal`; how long that took.
    fn end(mut self, signal: Signal) -> Duration {
        let start = Instant::now();
        kill(Pid::from_raw(self.0.id().cast_signed()), signal).expect("our child");
        let status = self.0.wait().expect("our child");
        assert_eq!(status.success(), signal == Signal::SIGTERM, "{status}");
        start.elapsed()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already over after `end`.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A client of the daemon, once that answers.
async fn client(home: &Path) -> RelayClient<Channel> {
    let mut client = RelayClient::new(unix_channel(&home.join("run/relayd.sock")));
    let deadline = Instant::now() + Duration::from_secs(10);
    while let Err(error) = client.list_links(ListLinksRequest::default()).await {
        assert!(Instant::now() < deadline, "{error}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    client
}

fn open_request(rig: &Rig) -> OpenLinkRequest {
    let machine = Address::Sockets(rig.directory.path().to_owned());
    OpenLinkRequest {
        link: LINK,
        carrier: Carrier::Stream.into(),
        container: Some(machine.clone().into()),
        helper: Some(machine.into()),
        timeout_ms: 0,
    }
}

fn bytes(link: &Link) -> u64 {
    link.to_helper.expect("counters").bytes
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transfer_outlives_the_daemon_and_its_counters_grow_by_what_was_sent() {
    let Some(rig) = Rig::new() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let mut daemon = Daemon::start(home.path());
    let mut relay = client(home.path()).await;
    let opened = relay.open_link(open_request(&rig)).await.expect("both ends listen").into_inner();
    assert_eq!((opened.state(), opened.reconnects), (State::Up, 0));
    let same = relay.open_link(open_request(&rig)).await.expect("no change").into_inner();
    assert_eq!(same.epoch, opened.epoch);

    let (client_end, server_end) = rig.tcp();
    let receiver = receive(server_end);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client_end, stopped);
    let mut epoch = opened.epoch;
    for signal in [Signal::SIGKILL, Signal::SIGTERM, Signal::SIGKILL, Signal::SIGTERM] {
        // An open stream must not hold the end up.
        let mut watching = relay.watch_links(WatchLinksRequest {}).await.expect("a stream").into_inner();
        let first = watching.message().await.expect("a message").expect("a link");
        assert_eq!((first.link, first.state()), (LINK, State::Up));
        tokio::time::sleep(Duration::from_millis(100)).await;
        let took = daemon.end(signal);
        assert!(took < Duration::from_secs(1), "{signal} took {took:?}");
        daemon = Daemon::start(home.path());
        relay = client(home.path()).await;
        assert!(relay.list_links(ListLinksRequest::default()).await.expect("an answer").into_inner().links.is_empty());
        let opened = relay.open_link(open_request(&rig)).await.expect("both ends listen").into_inner();
        assert!(opened.epoch > epoch);
        epoch = opened.epoch;
    }
    stop.send(()).expect("a running sender");
    assert_eq!(sender.join().expect("sent"), receiver.join().expect("received"));

    let list = relay.list_links(ListLinksRequest::default()).await.expect("an answer").into_inner().links;
    let (client_end, server_end) = rig.tcp();
    let receiver = receive(server_end);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client_end, stopped);
    tokio::time::sleep(Duration::from_millis(100)).await;
    stop.send(()).expect("a running sender");
    let (sent, received) = (sender.join().expect("sent"), receiver.join().expect("received"));
    assert_eq!(sent, received);
    let after = relay.list_links(ListLinksRequest::default()).await.expect("an answer").into_inner().links;
    let grown = bytes(&after[0]) - bytes(&list[0]);
    assert!(grown > sent.0 && grown < sent.0 + sent.0 / 10, "{grown} for {}", sent.0);

    let listed = Command::new(env!("CARGO_BIN_EXE_arca-relayd"))
        .args(["links", "--json"])
        .env("ARCA_HOME", home.path())
        .output()
        .expect("the program");
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!((&listed[0]["link"], &listed[0]["state"]), (&LINK.into(), &"up".into()));
    assert_eq!(listed[0]["toHelper"]["drops"], 0);

    relay.close_link(CloseLinkRequest { link: LINK }).await.expect("closed");
    harness::wait_in_runtime(rig.helper.pump().watch(), |state| !state.linked).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lent_tap_carries_frames_also_while_the_daemon_is_away() {
    let Some(mut rig) = Rig::new() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let mut daemon = Daemon::start(home.path());
    let mut relay = client(home.path()).await;
    let wanted = OpenLinkRequest { carrier: Carrier::TapFd.into(), ..open_request(&rig) };
    let opened = relay.open_link(wanted.clone()).await.expect("both ends listen").into_inner();
    assert_eq!((opened.state(), opened.carrier()), (State::Up, Carrier::TapFd));
    assert!(rig.helper.pump().state().linked && rig.container.pump().state().linked);

    let (client_end, server_end) = rig.tcp();
    let receiver = receive(server_end);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client_end, stopped);
    for round in 0..3 {
        daemon.end(Signal::SIGKILL);
        assert_eq!(rig.ping(5, Duration::ZERO).len(), 5, "no daemon is needed");
        if round == 1 {
            // As arca-init does for an arca-tapfwd that was killed: same TAP, same listener, new pump.
            let tap = rig.container.pump.take().expect("a pump").stop();
            let listener = rig.container.listener.try_clone().expect("a descriptor");
            rig.container.pump = Some(rig.container.netns.run(move || {
                let link = LINK.try_into().expect("a number");
                let config = arca_link::PumpConfig::new(link, arca_link::Kind::Container, tap, listener);
                arca_link::Pump::start(arca_link::PumpConfig { lent: true, ..config }).expect("a pump")
            }));
            assert_eq!(rig.ping(5, Duration::ZERO).len(), 5, "nor the lender");
        }
        daemon = Daemon::start(home.path());
        relay = client(home.path()).await;
        let again = relay.open_link(wanted.clone()).await.expect("both ends listen").into_inner();
        assert!(again.epoch > opened.epoch);
    }
    stop.send(()).expect("a running sender");
    let (sent, received) = (sender.join().expect("sent"), receiver.join().expect("received"));
    assert_eq!(sent, received);
    let listed = relay.list_links(ListLinksRequest::default()).await.expect("an answer").into_inner().links;
    let counted = bytes(&listed[0]);
    assert!(counted > sent.0 && counted < sent.0 + sent.0 / 5, "{counted} for {}", sent.0);
    assert_eq!(rig.container.pump().to_stream().frames, 0, "the lender reads none");

    // Back to a stream: the lender has its TAP again.
    relay.open_link(open_request(&rig)).await.expect("both ends listen");
    assert_eq!(rig.ping(5, Duration::ZERO).len(), 5);
    assert!(rig.container.pump().to_stream().frames >= 5);
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_name_of_what_is_wrong() {
    let Some(rig) = Rig::new() else { return };
    let home = tempfile::tempdir().expect("a directory");
    let _daemon = Daemon::start(home.path());
    let mut relay = client(home.path()).await;
    let valid = OpenLinkRequest { timeout_ms: 50, ..open_request(&rig) };
    let cases = [
        (OpenLinkRequest { link: 0, ..valid.clone() }, Code::InvalidArgument, "link number 0"),
        (OpenLinkRequest { helper: None, ..valid.clone() }, Code::InvalidArgument, "helper end: no address"),
        (
            OpenLinkRequest { carrier: 3, timeout_ms: 1000, ..valid.clone() },
            Code::Unavailable,
            "container end cannot do carrier cable",
        ),
        (OpenLinkRequest { carrier: 9, ..valid.clone() }, Code::InvalidArgument, "carrier 9"),
        (OpenLinkRequest { link: LINK + 1, ..valid.clone() }, Code::Unavailable, "end: dial port"),
    ];
    for (request, code, text) in cases {
        let status = relay.open_link(request).await.expect_err(text);
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    assert!(relay.list_links(ListLinksRequest::default()).await.expect("an answer").into_inner().links.is_empty());
    relay.close_link(CloseLinkRequest { link: 9 }).await.expect("nothing to close is no error");

    let second = Command::new(env!("CARGO_BIN_EXE_arca-relayd"))
        .arg("serve")
        .env("ARCA_HOME", home.path())
        .output()
        .expect("the program");
    assert_eq!(second.status.code(), Some(73), "{}", String::from_utf8_lossy(&second.stderr));
    assert_eq!(rig.container.pump().state().connections, 0);
}
