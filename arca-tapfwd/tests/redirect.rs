// SPDX-License-Identifier: Apache-2.0
//! 127.0.0.11 in a container leads to real servers behind the link, and nowhere else.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use arca_proto::fdstore::Store;
use arca_proto::tap::v1::ConfigureRequest;
use arca_tapfwd::udp;
use common::gateway::{Gateway, relay};
use common::{ADDRESS, Dhcp, GATEWAY, Peer, Tapfwd, attach, in_namespace, request, run};

fn ask_udp(to: Ipv4Addr) -> String {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    socket.send_to(b"q", (to, 53)).unwrap();
    let mut buffer = [0; 512];
    let (length, from) = socket.recv_from(&mut buffer).unwrap();
    // A client must see the answer come from where it asked.
    assert_eq!(from, SocketAddr::from((to, 53)));
    String::from_utf8_lossy(&buffer[..length]).into_owned()
}

fn ask_tcp(to: Ipv4Addr) -> String {
    let mut stream = TcpStream::connect((to, 53)).unwrap();
    stream.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
    stream.write_all(b"q").unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn queries_reach_the_gateway_while_the_workload_itself_has_port_53() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let _gateway = Gateway::start(directory.clone());
        let mut wanted = request(1);
        wanted.confirm_dhcp = false;
        let (steps, _relay) = tokio::join!(attach(&mut client, wanted), relay(&directory, 1));
        steps.unwrap();
        let dns = ConfigureRequest { default_route_link: 1, resolver_v4: GATEWAY.to_string(), ..Default::default() };
        client.configure(dns.clone()).await.unwrap();

        // The workload's own server on every address, both protocols.
        let udp = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        thread::spawn(move || {
            let mut buffer = [0; 512];
            while let Ok((_, from)) = udp.recv_from(&mut buffer) {
                udp.send_to(b"workload", from).unwrap();
            }
        });
        let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 53)).unwrap();
        thread::spawn(move || {
            for mut stream in tcp.incoming().flatten() {
                let _ = stream.read_to_string(&mut String::new());
                let _ = stream.write_all(b"workload");
            }
        });

        let resolver = Ipv4Addr::new(127, 0, 0, 11);
        let answer = ask_udp(resolver);
        assert!(answer.starts_with(&format!("gateway saw {ADDRESS}:")) && answer.ends_with(": q"), "{answer}");
        assert_eq!(ask_tcp(resolver), format!("gateway saw {ADDRESS}: q"));
        assert_eq!(ask_udp(Ipv4Addr::LOCALHOST), "workload");
        assert_eq!(ask_tcp(Ipv4Addr::LOCALHOST), "workload");

        // The same again changes nothing, a restart neither.
        let rules = run("nft list table ip arca");
        client.configure(dns.clone()).await.unwrap();
        tapfwd.kill();
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        client.configure(dns).await.unwrap();
        assert_eq!(rules.lines().count(), run("nft list table ip arca").lines().count());
        let _relay = relay(&directory, 2).await;
        assert_eq!(ask_tcp(resolver), format!("gateway saw {ADDRESS}: q"));

        // Without a resolver the table is gone, and 127.0.0.11 is an ordinary loopback address.
        client.configure(ConfigureRequest { default_route_link: 1, ..Default::default() }).await.unwrap();
        assert_eq!(run("nft list tables"), "");
        assert_eq!(run("cat /proc/sys/net/ipv4/conf/all/route_localnet"), "0\n");
        assert_eq!(ask_tcp(resolver), "workload");
        let error = client
            .configure(ConfigureRequest {
                default_route_link: 0,
                resolver_v4: "127.0.0.53".into(),
                ..Default::default()
            })
            .await;
        assert_eq!(error.unwrap_err().code(), tonic::Code::InvalidArgument);
    });
}

#[test]
fn neighbours_cannot_reach_the_machines_loopback() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let (steps, mut peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 1, Dhcp::Ack));
        steps.unwrap();
        let dns = ConfigureRequest { default_route_link: 1, resolver_v4: GATEWAY.to_string(), ..Default::default() };
        client.configure(dns).await.unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 5000)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(3))).unwrap();
        let received = || {
            let mut buffer = [0; 16];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        };

        // In order on one link: what comes first would be received first.
        peer.send(&udp::packet(GATEWAY, 9, Ipv4Addr::LOCALHOST, 5000, b"to loopback"));
        peer.send(&udp::packet(GATEWAY, 9, ADDRESS, 5000, b"to eth0"));
        assert_eq!(received(), "to eth0");
        // Without the guard it would have come in: the test can fail.
        run("nft flush chain ip arca guard");
        peer.send(&udp::packet(GATEWAY, 9, Ipv4Addr::LOCALHOST, 5000, b"to loopback"));
        assert_eq!(received(), "to loopback");
    });
}
