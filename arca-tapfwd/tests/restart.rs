// SPDX-License-Identifier: Apache-2.0
//! kill -9 of arca-tapfwd: what arca-init keeps lets a new one go on.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arca_proto::fdstore::Store;
use arca_proto::tap::v1::attach_progress::Step;
use arca_proto::tap::v1::{ConfigureRequest, DetachNetworkRequest, ListInterfacesRequest};
use common::gateway::{Gateway, relay};
use common::{Dhcp, GATEWAY, Peer, Tapfwd, addresses, attach, in_namespace, ip, request, until};
use serde_json::{Value, json};

fn route() -> Value {
    ip("-4 route show default")[0]["gateway"].clone()
}

#[test]
fn a_killed_tapfwd_comes_back_with_the_same_interface_listener_and_configuration() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let mut tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let (steps, mut peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 1, Dhcp::Ack));
        steps.unwrap();
        client.configure(ConfigureRequest { default_route_link: 1, ..Default::default() }).await.unwrap();
        // One that is pending when the process dies is undone by that.
        let mut pending = client.attach_network(request(2)).await.unwrap().into_inner();
        assert_eq!(pending.message().await.unwrap().unwrap().step(), Step::Listening);
        let before = ip("link show dev eth0")[0]["ifindex"].clone();

        for epoch in 2..5 {
            tapfwd.kill();
            assert_eq!(ip("link show").as_array().unwrap().len(), 2, "lo and eth0");
            let link = ip("link show dev eth0");
            assert_eq!(link[0]["ifindex"], before);
            assert_eq!(link[0]["operstate"], json!("UNKNOWN"), "the carrier stays: {link}");
            assert_eq!(addresses("eth0"), ["172.18.0.2/16", "fd00:18::2/64"]);
            assert_eq!(route(), json!("172.18.0.1"));
            UnixStream::connect(directory.join("20001")).expect("no dial is refused while nobody runs");
            let (peer_again, started) =
                tokio::join!(Peer::dial(&directory, 1, epoch, Dhcp::Ack), Tapfwd::start(&directory, &store));
            (peer, tapfwd) = (peer_again, started);
            let mut client = tapfwd.client();
            // The same attach again proves the path through the new process to the new connection.
            let steps = attach(&mut client, request(1)).await.unwrap();
            assert_eq!(steps.last().unwrap().step(), Step::Confirmed);
            let listed = client.list_interfaces(ListInterfacesRequest {}).await.unwrap().into_inner().interfaces;
            assert_eq!((listed.len(), listed[0].epoch), (1, epoch));
            let mut expected = request(1);
            expected.timeout_ms = 0;
            assert_eq!(listed[0].settings, Some(expected));
        }

        let mut client = tapfwd.client();
        client.detach_network(DetachNetworkRequest { link: 1 }).await.unwrap();
        assert_eq!(ip("link show").as_array().unwrap().len(), 1, "the store holds no descriptor of it");
        assert_eq!(store.names(), ["configuration"]);
        drop(peer);
    });
}

#[test]
fn an_entry_of_no_use_is_dropped_and_the_others_resume() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let mut second = request(2);
        (second.mac, second.addresses) = ("02:42:ac:12:00:03".into(), vec!["172.19.0.3/16".into()]);
        (second.gateway_v4, second.gateway_v6) = (String::new(), String::new());
        let (one, two, _peer, _other) = tokio::join!(
            async { attach(&mut client.clone(), request(1)).await.unwrap() },
            async { attach(&mut tapfwd.client(), second.clone()).await.unwrap() },
            Peer::dial(&directory, 1, 1, Dhcp::Ack),
            Peer::dial(&directory, 2, 1, Dhcp::Ack),
        );
        assert_eq!((one.len(), two.len()), (3, 3));
        until("both are kept", || store.names() == ["link-1", "link-2"]).await;
        tapfwd.kill();
        common::run("ip link del eth0");
        let tapfwd = Tapfwd::start(&directory, &store).await;
        client = tapfwd.client();
        let listed = client.list_interfaces(ListInterfacesRequest {}).await.unwrap().into_inner().interfaces;
        assert_eq!(listed.len(), 1);
        assert_eq!(listed[0].settings.as_ref().unwrap().interface, "eth1");
        assert_eq!(store.names(), ["link-2"]);
        // The place of the lost one is free for a new attach.
        let (steps, _peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 1, Dhcp::Ack));
        steps.unwrap();
        until("both are kept", || store.names() == ["link-1", "link-2"]).await;
    });
}

#[test]
fn a_tcp_stream_survives_kills_at_any_moment_whole() {
    const TOTAL: u64 = 24 << 20;
    const KILLS: u64 = 6;
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let mut tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let _gateway = Gateway::start(directory.clone());
        let mut wanted = request(1);
        wanted.confirm_dhcp = false;
        let (steps, mut joined) = tokio::join!(attach(&mut client, wanted), relay(&directory, 1));
        steps.unwrap();

        let sent = Arc::new(AtomicU64::new(0));
        let progress = Arc::clone(&sent);
        let transfer = std::thread::spawn(move || {
            let mut stream = TcpStream::connect((GATEWAY, 80)).unwrap();
            let chunk: Vec<u8> = (0..1u32 << 15).map(|n| (n * 7 + n / 251).to_le_bytes()[0]).collect();
            let mut sum = 0u64;
            while progress.load(Relaxed) < TOTAL {
                stream.write_all(&chunk).unwrap();
                sum = chunk.iter().fold(sum, |sum, byte| sum.wrapping_mul(31).wrapping_add(u64::from(*byte)));
                progress.fetch_add(chunk.len() as u64, Relaxed);
            }
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            let mut answer = String::new();
            stream.read_to_string(&mut answer).unwrap();
            (answer, format!("{TOTAL} {sum}"))
        });
        for n in 1..=KILLS {
            // Spread over the transfer, each in the middle of traffic.
            until("the transfer goes on", || sent.load(Relaxed) >= TOTAL / (KILLS + 1) * n).await;
            tapfwd.kill();
            drop(joined);
            (tapfwd, joined) = tokio::join!(Tapfwd::start(&directory, &store), relay(&directory, n + 1));
        }
        until("the transfer ends", || transfer.is_finished()).await;
        let (answer, expected) = transfer.join().unwrap();
        assert_eq!(answer, expected);
        drop(joined);
    });
}
