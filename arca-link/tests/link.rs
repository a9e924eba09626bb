// SPDX-License-Identifier: Apache-2.0
//! Frames from TAP to TAP through pump, relay and pump, in namespaces of this process's own.

mod harness;

use std::{
    io::{Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    sync::mpsc,
    time::Duration,
};

use arca_link::{Kind, Offloads, Pump, PumpConfig, RelayState, Tap, TapConfig};
use arca_proto::{
    frame::Frames,
    hello::{Hello, Kind as Speaker},
};
use harness::{LINK, Rig, capture, link_number, pace, receive, send_until, until, wait};

#[test]
fn pings_and_a_stream_pass_with_frames_longer_than_the_mtu() {
    let Some(mut rig) = Rig::new() else { return };
    let captured = rig.helper.netns.run(|| capture("eth0"));
    let _relay = rig.join();
    assert_eq!(rig.ping(20, Duration::from_millis(1)).len(), 20);

    let (client, server) = rig.tcp();
    let receiver = receive(server);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client, stopped);
    let longest = (0..500).map(|_| {
        let mut frame = [0; 70_000];
        nix::sys::socket::recv(captured.as_raw_fd(), &mut frame, nix::sys::socket::MsgFlags::empty()).expect("a frame")
    });
    let longest = longest.max().expect("frames");
    stop.send(()).expect("a running sender");
    let (sent, received) = (sender.join().expect("sent"), receiver.join().expect("received"));
    assert_eq!(sent, received);
    assert!(longest > 3000, "the longest of 500 frames on a 1500-byte link had {longest} bytes");

    // Every hop counts the same frames, once the last acknowledgement is through.
    let hops = || (rig.container.pump().to_stream(), rig.counters.to_helper(), rig.helper.pump().from_stream());
    until("equal counters", || matches!(hops(), (up, relayed, down) if up.frames == down.frames && relayed == down));
    let (up, _, down) = hops();
    assert_eq!((up.bytes, 0), (down.bytes, down.drops));
    // TCP and IP headers come on top of the payload.
    assert!(up.bytes > sent.0 && up.bytes < sent.0 + sent.0 / 10, "{up:?} for {} bytes", sent.0);
    assert!(up.bytes / up.frames > 1514, "{up:?}");
}

#[test]
fn a_transfer_survives_twenty_cuts_of_the_relay_and_a_pump_that_starts_anew() {
    let Some(mut rig) = Rig::new() else { return };
    let mut relay = rig.join();
    let (client, server) = rig.tcp();
    let receiver = receive(server);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client, stopped);
    let mut random = 42u64;
    for cut in 0..20 {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        pace(Duration::from_micros(1000 + (random >> 33) % 60_000));
        drop(relay);
        if cut == 10 {
            // As arca-init does for an arca-tapfwd that was killed: same TAP, same listener, new pump.
            let tap = rig.container.pump.take().expect("a pump").stop();
            let listener = rig.container.listener.try_clone().expect("a descriptor");
            rig.container.pump = Some(rig.container.netns.run(move || {
                let tap = arca_link::Tap::from_fd(tap.duplicate().expect("a descriptor")).expect("our TAP");
                Pump::start(PumpConfig::new(link_number(), Kind::Container, tap, listener)).expect("a pump")
            }));
        }
        relay = rig.join();
    }
    // And goes on: bytes still arrive after the last cut.
    let before = rig.counters.to_helper().bytes;
    until("bytes after the last cut", || rig.counters.to_helper().bytes >= before + (1 << 20));
    stop.send(()).expect("a running sender");
    let (sent, received) = (sender.join().expect("sent"), receiver.join().expect("received"));
    assert_eq!(sent, received);
    assert_eq!(rig.helper.pump().state().connections, 21);
    drop(relay);
}

#[test]
fn a_newer_epoch_displaces_and_an_older_one_is_refused() {
    let Some(mut rig) = Rig::new() else { return };
    let first = rig.join();
    let older = rig.start_relay(rig.epoch - 1);
    wait(older.watch(), |state| matches!(state, RelayState::Ended(_)));
    assert_eq!(rig.ping(3, Duration::ZERO).len(), 3);
    let error = rig.helper.pump().state().last_error.expect("the refusal is told");
    assert!(error.contains("not newer"), "{error}");

    let _second = rig.join();
    let ended = wait(first.watch(), |state| matches!(state, RelayState::Ended(_)));
    assert!(matches!(&ended, RelayState::Ended(why) if why.contains("closed the connection")), "{ended:?}");
    assert_eq!(rig.ping(3, Duration::ZERO).len(), 3);
    assert_eq!(rig.container.pump().state().epoch, rig.epoch);
}

#[test]
fn an_end_without_offloads_gets_frames_that_fit_the_mtu() {
    let Some(mut rig) = Rig::adjusted(|_| {}, |config| config.offered = Offloads::NONE) else { return };
    let _relay = rig.join();
    assert_eq!(rig.container.pump().state().offloads, Offloads::NONE);
    let (client, server) = rig.tcp();
    let receiver = receive(server);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client, stopped);
    until("a megabyte", || rig.counters.to_helper().bytes >= 1 << 20);
    stop.send(()).expect("a running sender");
    assert_eq!(sender.join().expect("sent"), receiver.join().expect("received"));
    let up = rig.container.pump().to_stream();
    assert!(up.bytes / up.frames <= 1514, "{up:?}");
    assert_eq!(rig.helper.pump().from_stream().drops, 0);
}

#[test]
fn without_a_relay_frames_are_dropped_and_counted() {
    let Some(rig) = Rig::new() else { return };
    let socket = rig.container.netns.run(|| std::net::UdpSocket::bind("10.77.0.1:0").expect("an address"));
    rig.container.netns.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0");
    let before = rig.container.pump().to_stream();
    for _ in 0..300 {
        socket.send_to(b"nobody", "10.77.0.9:9").expect("a route");
    }
    until("drops are counted", || rig.container.pump().to_stream().drops >= before.drops + 300);
    assert_eq!(rig.container.pump().to_stream().frames, 0);
}

/// Connects to the helper's end as a relay would, says all hellos, and gives the stream behind them.
fn impostor(rig: &Rig, epoch: u64) -> UnixStream {
    let mut stream = UnixStream::connect(&rig.helper.socket).expect("a listening pump");
    stream.set_read_timeout(Some(Duration::from_secs(5))).expect("a socket");
    let peer = Hello::end(Speaker::Container, link_number(), arca_link::MAX_FRAME, Offloads::ALL);
    stream.write_all(&Hello::relay(link_number(), epoch).encode()).expect("written");
    stream.write_all(&peer.encode()).expect("written");
    let mut said = [0; Hello::SIZE];
    stream.read_exact(&mut said).expect("the helper's hello");
    Hello::expect(&said, Speaker::Helper, link_number()).expect("a helper's hello");
    stream
}

#[test]
fn hostile_bytes_end_the_connection_and_nothing_else() {
    let Some(mut rig) = Rig::new() else { return };
    // After whatever frames the kernel behind the TAP had to say; a time-out would be WouldBlock.
    let ended = |mut stream: UnixStream| match stream.read_to_end(&mut Vec::new()) {
        Ok(_) => true,
        Err(error) => error.kind() == std::io::ErrorKind::ConnectionReset,
    };
    let mut epoch = 0;
    for hostile in [&[0xff; 4][..], &[0; 4], &[25, 0, 0, 0], &70_000u32.to_le_bytes()] {
        epoch += 1;
        let mut stream = impostor(&rig, epoch);
        stream.write_all(hostile).expect("written");
        assert!(ended(stream), "{hostile:?}");
        let state = wait(rig.helper.pump().watch(), |state| !state.linked);
        assert!(state.last_error.is_some_and(|error| error.contains("out of step or hostile")), "{hostile:?}");
    }
    // Frames the kernel refuses, or that were not agreed on, are counted; the connection stays.
    let mut stream = impostor(&rig, 50);
    for header in [[0xff; 12], [0, 3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]] {
        let mut frame = 26u32.to_le_bytes().to_vec();
        frame.extend_from_slice(&header);
        frame.extend_from_slice(&[0; 14]);
        stream.write_all(&frame).expect("written");
    }
    until("two drops", || rig.helper.pump().from_stream().drops == 2);
    assert!(rig.helper.pump().state().linked);

    // Hellos that are none, of another link, of the wrong end, or cut short.
    let peer = |n: u32, kind| Hello::end(kind, n.try_into().expect("a number"), arca_link::MAX_FRAME, Offloads::ALL);
    let relay = Hello::relay(link_number(), 60).encode();
    for (first, second) in [
        (*b"GET / HTTP/1.1\r\nHost: nowhere\r\n\r", relay),
        (Hello::relay((LINK + 1).try_into().expect("a number"), 60).encode(), relay),
        (relay, peer(LINK + 1, Speaker::Container).encode()),
        (relay, peer(LINK, Speaker::Helper).encode()),
    ] {
        let mut stream = UnixStream::connect(&rig.helper.socket).expect("a listening pump");
        stream.write_all(&[first, second].concat()).expect("written");
        let mut said = [0; Hello::SIZE];
        stream.read_exact(&mut said).expect("the helper's hello");
        assert!(ended(stream));
    }
    // Connections that say nothing do not keep others out.
    let silent: Vec<_> = (0..20).map(|_| UnixStream::connect(&rig.helper.socket).expect("a listening pump")).collect();
    let _relay = rig.join();
    assert_eq!(rig.ping(5, Duration::ZERO).len(), 5);
    drop(silent);
}

#[test]
fn the_relay_ends_when_an_end_is_hostile_or_the_wrong_one() {
    let Some(rig) = Rig::new() else { return };
    let connect = || OwnedFd::from(UnixStream::connect(&rig.helper.socket).expect("a listening pump"));
    // Twice the helper's end.
    let config = |container, helper| arca_link::RelayConfig {
        link: link_number(),
        epoch: 1,
        container,
        helper,
        counters: rig.counters.clone(),
    };
    let relay = arca_link::Relay::start(config(connect(), connect())).expect("a relay");
    let state = wait(relay.watch(), |state| matches!(state, RelayState::Ended(_)));
    assert!(matches!(&state, RelayState::Ended(why) if why.contains("mixed up")), "{state:?}");

    let (mut ours, theirs) = UnixStream::pair().expect("a socket pair");
    let relay = arca_link::Relay::start(config(theirs.into(), connect())).expect("a relay");
    let hello = Hello::end(Speaker::Container, link_number(), arca_link::MAX_FRAME, Offloads::ALL);
    ours.write_all(&hello.encode()).expect("written");
    wait(relay.watch(), |state| matches!(state, RelayState::Up(_)));
    ours.write_all(&[0xff; 8]).expect("written");
    let state = wait(relay.watch(), |state| matches!(state, RelayState::Ended(_)));
    assert!(matches!(&state, RelayState::Ended(why) if why.contains("container end: frame of")), "{state:?}");
}

#[test]
fn a_persistent_tap_is_attached_again_and_a_removed_one_ends_its_pump() {
    let Some(netns) = harness::Netns::new() else { return };
    let directory = tempfile::tempdir().expect("a directory");
    let listener = std::os::unix::net::UnixListener::bind(directory.path().join("1")).expect("a short path");
    let pump = netns.run(move || {
        let config = TapConfig { name: "l7", mac: None, mtu: 1400 };
        let tap = Tap::open(&config).expect("a TAP as root");
        assert!(Tap::attach("l8").is_err() && Tap::open(&config).is_err());
        tap.set_persist(true).expect("persistent");
        assert!(Tap::attach("l7").is_err(), "two readers would share the frames");
        drop(tap);
        let tap = Tap::attach("l7").expect("still there");
        tap.set_arp(false).expect("no ARP");
        tap.set_up(true).expect("up");
        assert_eq!(tap.set_offloads(Offloads::TSO).expect("offloads"), Offloads::TSO);
        Pump::start(PumpConfig::new(link_number(), Kind::Helper, tap, listener.into())).expect("a pump")
    });
    netns.ip("link del l7");
    let state = wait(pump.watch(), |state| state.ended);
    assert_eq!(state.last_error.as_deref(), Some("the interface was removed"));
    drop(pump.stop());
}

#[test]
fn a_relay_that_reads_nothing_costs_bounded_memory_and_every_frame_is_counted() {
    const DATAGRAMS: u64 = 20_000;
    let Some(rig) = Rig::new() else { return };
    let mut stream = impostor(&rig, 1);
    wait(rig.helper.pump().watch(), |state| state.linked);
    // Seen from outside its namespace, the pump's counter is without the kernel's drops.
    let before = rig.helper.pump().to_stream().drops;
    rig.helper.netns.ip("neigh add 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0");
    let socket = rig.helper.netns.run(|| std::net::UdpSocket::bind("10.77.0.2:0").expect("an address"));
    for _ in 0..DATAGRAMS {
        // More than socket buffer, batch and queue of the TAP hold together.
        socket.send_to(&[0x5a; 1400], "10.77.0.9:9").expect("a route");
    }
    let kernel_drops = rig.helper.netns.run(|| {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").expect("procfs");
        let line = table.lines().find(|line| line.trim_start().starts_with("eth0:")).expect("the TAP");
        line.split_ascii_whitespace().nth(12).and_then(|drops| drops.parse::<u64>().ok()).expect("a number")
    });
    assert!(kernel_drops > DATAGRAMS / 4, "{kernel_drops}");
    assert!(rig.helper.pump().state().linked);

    // Reading again gets the rest, in whole frames.
    let (mut kept, mut datagrams) = (Vec::new(), 0);
    let mut block = vec![0; 1 << 20];
    while datagrams + kernel_drops < DATAGRAMS {
        let n = stream.read(&mut block).expect("the rest comes without being asked for");
        kept.extend_from_slice(&block[..n]);
        let mut frames = Frames::new(&kept, arca_link::MAX_FRAME);
        // Besides the datagrams the kernel sends its own multicasts.
        datagrams +=
            frames.by_ref().filter(|f| f.expect("whole frames").ethernet().ends_with(&[0x5a; 1400])).count() as u64;
        let consumed = frames.consumed();
        kept.drain(..consumed);
    }
    // The kernel's own multicasts are among what it dropped.
    assert!((DATAGRAMS..DATAGRAMS + 20).contains(&(datagrams + kernel_drops)), "{datagrams} and {kernel_drops}");
    let own = rig.helper.pump().to_stream().drops - before;
    assert_eq!(own, 0, "what the TAP's queue holds is sent, however late");
}

/// A relay between two ends of our own that have said hello.
fn relayed() -> (arca_link::Relay, UnixStream, UnixStream) {
    let ((container, a), (helper, b)) = (UnixStream::pair().expect("a pair"), UnixStream::pair().expect("a pair"));
    let config = arca_link::RelayConfig {
        link: link_number(),
        epoch: 1,
        container: a.into(),
        helper: b.into(),
        counters: Default::default(),
    };
    let relay = arca_link::Relay::start(config).expect("a relay");
    for (mut stream, kind) in [(&container, Speaker::Container), (&helper, Speaker::Helper)] {
        let hello = Hello::end(kind, link_number(), arca_link::MAX_FRAME, Offloads::ALL);
        stream.write_all(&hello.encode()).expect("written");
    }
    for mut stream in [&container, &helper] {
        // The relay's hello and the other end's.
        stream.read_exact(&mut [0; 2 * Hello::SIZE]).expect("hellos");
    }
    wait(relay.watch(), |state| matches!(state, RelayState::Up(_)));
    (relay, container, helper)
}

/// Frames of many lengths, one after the other.
fn frames(bytes: usize) -> Vec<u8> {
    let mut all = Vec::with_capacity(bytes + 70_000);
    let mut random = 7u32;
    while all.len() < bytes {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let length = 60 + (random >> 8) % 3000 + u32::from(random.is_multiple_of(13)) * 60_000;
        all.extend(length.to_le_bytes());
        all.extend((0..length).map(|n| (n ^ random).to_le_bytes()[0]));
    }
    all
}

#[test]
fn a_reader_that_takes_nothing_is_given_up_and_the_other_end_is_told() {
    let (relay, mut container, helper) = relayed();
    let bytes = frames(64 << 20);
    // More than all buffers on the way hold; ends with an error when the relay closes.
    let writer = std::thread::spawn(move || container.write_all(&bytes).is_err());
    let state = wait(relay.watch(), |state| matches!(state, RelayState::Ended(_)));
    assert!(matches!(&state, RelayState::Ended(why) if why.contains("helper end: took nothing")), "{state:?}");
    assert!(writer.join().expect("the writer"), "the sender learns of it");
    drop(helper);
}

#[test]
fn bytes_pass_whole_in_whatever_pieces_they_are_written_and_read() {
    let (relay, container, helper) = relayed();
    let sent = frames(8 << 20);
    let (there, back) = (sent.clone(), sent.clone());
    let send = |mut to: UnixStream, bytes: Vec<u8>| {
        std::thread::spawn(move || {
            let mut at = 0;
            for piece in [1, 3, 5000, 70_000, 17, 1 << 18].into_iter().cycle() {
                let end = (at + piece).min(bytes.len());
                to.write_all(&bytes[at..end]).expect("the relay reads");
                at = end;
                if at == bytes.len() {
                    return;
                }
            }
        })
    };
    let receive = |mut from: UnixStream, length: usize| {
        std::thread::spawn(move || {
            let mut got = Vec::with_capacity(length);
            for piece in [7, 4096, 1, 100_000].into_iter().cycle() {
                let mut buffer = vec![0; piece.min(length - got.len())];
                from.read_exact(&mut buffer).expect("the relay writes");
                got.extend(buffer);
                if got.len() == length {
                    return got;
                }
            }
            got
        })
    };
    let clone = |stream: &UnixStream| stream.try_clone().expect("a descriptor");
    let senders = [send(clone(&container), there), send(clone(&helper), back)];
    let receivers = [receive(clone(&helper), sent.len()), receive(clone(&container), sent.len())];
    for receiver in receivers {
        assert!(receiver.join().expect("received") == sent, "what came is not what was sent");
    }
    for sender in senders {
        sender.join().expect("sent");
    }
    assert!(matches!(*relay.watch().borrow(), RelayState::Up(_)));
}

#[test]
fn a_flooding_or_stalled_link_leaves_its_neighbour_alone() {
    let (Some(mut neighbour), Some(mut flooding), Some(stalled)) = (Rig::new(), Rig::new(), Rig::new()) else { return };
    let (_one, _two) = (neighbour.join(), flooding.join());
    // One whose relay reads nothing, and has more to take than all queues hold.
    let _silent = impostor(&stalled, 1);
    wait(stalled.helper.pump().watch(), |state| state.linked);
    for (rig, from, to) in [(&stalled, "10.77.0.2:0", "10.77.0.9:9"), (&flooding, "10.77.0.2:0", "10.77.0.1:9")] {
        rig.helper.netns.ip("neigh replace 10.77.0.9 lladdr 02:00:00:00:00:09 dev eth0");
        let socket = rig.helper.netns.run(move || std::net::UdpSocket::bind(from).expect("an address"));
        std::thread::spawn(move || {
            for _ in 0..60_000 {
                // A full queue is an error here, and what it is about.
                let _ = socket.send_to(&[0; 64], to);
            }
        });
    }
    let (client, server) = neighbour.tcp();
    let receiver = receive(server);
    let (stop, stopped) = mpsc::channel();
    let sender = send_until(client, stopped);
    assert_eq!(neighbour.ping(50, Duration::ZERO).len(), 50, "no ping of the neighbour is lost");
    until("a megabyte of the neighbour's", || neighbour.counters.to_helper().bytes >= 1 << 20);
    stop.send(()).expect("a running sender");
    assert_eq!(sender.join().expect("sent"), receiver.join().expect("received"));
    assert!(flooding.helper.pump().state().linked);
    // The stalled one is up but does not move. It is found and closed, so that whoever dials anew has it work again.
    let state = wait(stalled.helper.pump().watch(), |state| !state.linked);
    assert_eq!(state.last_error.as_deref(), Some("the relay took nothing for 10 s"));
}

/// Every byte that a capture saw of one frame after another, until there are `count` TCP segments with payload.
fn longest_segment(captured: &OwnedFd, count: usize) -> usize {
    let (mut longest, mut seen, mut frame) = (0, 0, [0; 70_000]);
    while seen < count {
        let flags = nix::sys::socket::MsgFlags::empty();
        let length = nix::sys::socket::recv(captured.as_raw_fd(), &mut frame, flags).expect("a frame");
        // IPv4 and TCP, more than headers.
        if frame[12..14] == [8, 0] && frame[23] == 6 && length > 100 {
            (longest, seen) = (longest.max(length), seen + 1);
        }
    }
    longest
}

#[test]
fn a_lent_tap_gets_what_its_borrower_agreed_to_and_is_followed_there() {
    for (offered, whole) in [(Offloads::ALL, true), (Offloads::NONE, false)] {
        let Some(mut rig) = Rig::adjusted(|_| {}, move |config| config.offered = offered) else { return };
        let captured = rig.helper.netns.run(|| capture("eth0"));
        let _relay = rig.hand_over();
        let tracer = rig.helper.pump().tracer();
        let mut told = tracer.listen();
        let (client, server) = rig.tcp();
        let receiver = receive(server);
        let (stop, stopped) = mpsc::channel();
        let sender = send_until(client, stopped);
        let longest = longest_segment(&captured, 300);
        stop.send(()).expect("a running sender");
        assert_eq!(sender.join().expect("sent"), receiver.join().expect("received"));
        assert_eq!(longest > 1514, whole, "the longest of 300 segments had {longest} bytes, agreed: {offered}");
        assert_eq!(rig.helper.pump().from_stream().drops, 0);
        // The borrower moves the frames, so it is the hop that tells.
        let (mut to_helper, mut to_container) = (0, 0);
        while let Ok(passed) = told.try_recv() {
            let number = if passed.to_helper { &mut to_helper } else { &mut to_container };
            assert!(passed.first > *number && passed.frames > 0 && passed.went_ns >= passed.came_ns, "{passed:?}");
            *number = passed.first + passed.frames - 1;
        }
        assert!(to_helper > 0 && to_container > 0);
        assert!(!rig.container.pump().tracer().is_on());
    }
}

#[test]
fn a_frame_has_the_same_number_at_every_hop() {
    let Some(mut rig) = Rig::new() else { return };
    let _relay = rig.join();
    let tracers = [rig.container.pump().tracer(), rig.counters.tracer(), rig.helper.pump().tracer()];
    let mut listeners = tracers.each_ref().map(|tracer| tracer.listen());
    assert_eq!(rig.ping(20, Duration::ZERO).len(), 20);
    // Echo requests alone have this length; what else the kernels say to each other may still be on its way.
    const ECHO: u64 = 14 + 20 + 64;
    let mut seen = listeners.each_mut().map(|listener| {
        let mut echoes = Vec::new();
        while let Ok(passed) = listener.try_recv() {
            if passed.to_helper && passed.frames == 1 && passed.bytes == ECHO {
                echoes.push((passed.first, passed.came_ns, passed.went_ns));
            }
        }
        echoes
    });
    let numbers = |hop: &Vec<(u64, u64, u64)>| hop.iter().map(|echo| echo.0).collect::<Vec<_>>();
    // One may have come together with something else.
    let common: Vec<u64> =
        numbers(&seen[0]).into_iter().filter(|n| seen[1..].iter().all(|hop| numbers(hop).contains(n))).collect();
    assert!(common.len() > 10, "{seen:?}");
    for hop in &mut seen {
        hop.retain(|echo| common.contains(&echo.0));
    }
    for ((one, two), three) in seen[0].iter().zip(&seen[1]).zip(&seen[2]) {
        assert!(one.1 <= one.2 && one.1 < two.1 && two.1 <= two.2 && two.1 < three.1, "{one:?} {two:?} {three:?}");
    }
}
