// SPDX-License-Identifier: Apache-2.0
//! Attach, configure, detach against a real kernel and a fake peer.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

use std::process::Command;
use std::sync::Arc;

use arca_proto::fdstore::Store;
use arca_proto::tap::v1::attach_progress::Step;
use arca_proto::tap::v1::{ConfigureRequest, DetachNetworkRequest, ListInterfacesRequest};
use common::{ADDRESS, Dhcp, GATEWAY, Peer, Tapfwd, addresses, attach, in_namespace, ip, request, run, until};
use serde_json::{Value, json};
use tonic::Code;

fn default_routes(family: &str) -> Value {
    let routes = ip(&format!("{family} route show default"));
    let of = |r: &Value| json!([r["gateway"], r["dev"]]);
    routes.as_array().unwrap().iter().map(of).collect()
}

#[test]
fn attach_configure_and_detach_do_what_they_say() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        assert!(ip("link show dev lo")[0]["flags"].as_array().unwrap().contains(&json!("UP")), "lo is up");

        let (steps, peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 7, Dhcp::Ack));
        let steps = steps.unwrap();
        let names: Vec<Step> = steps.iter().map(|s| s.step()).collect();
        assert_eq!(names, [Step::Listening, Step::Linked, Step::Confirmed]);
        let mut heard = Vec::new();
        until("both addresses are announced", || {
            heard.extend(peer.announcements());
            heard.len() >= 2
        })
        .await;
        let mac = [2, 0x42, 0xac, 0x12, 0, 2];
        let arp = heard.iter().find(|frame| frame[12..14] == [8, 6]).unwrap();
        assert_eq!(arp[..12], [[0xff; 6], mac].concat());
        assert_eq!(
            arp[14..42],
            [&[0, 1, 8, 0, 6, 4, 0, 1], &mac[..], &[172, 18, 0, 2], &[0; 6], &[172, 18, 0, 2]].concat()
        );
        let advertised = heard.iter().find(|frame| frame[12..14] == [0x86, 0xdd]).unwrap();
        assert_eq!(advertised[..12], [[0x33, 0x33, 0, 0, 0, 1], mac].concat());
        assert_eq!(
            advertised[62..86],
            [&[0xfd, 0, 0, 0x18, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 2, 1], &mac[..]].concat()
        );
        let lease = steps[2].lease.clone().unwrap();
        assert_eq!((lease.address, lease.router), (ADDRESS.to_string(), GATEWAY.to_string()));
        assert_eq!((lease.mtu, lease.lease_seconds, lease.server_id), (1442, 3600, GATEWAY.to_string()));

        let link = ip("link show dev eth0");
        assert_eq!((&link[0]["address"], &link[0]["mtu"]), (&json!("02:42:ac:12:00:02"), &json!(1442)));
        assert_eq!(addresses("eth0"), ["172.18.0.2/16", "fd00:18::2/64"]);
        let v6 = &ip("-6 addr show dev eth0 scope global")[0]["addr_info"][0];
        assert_eq!((&v6["tentative"], &v6["nodad"]), (&Value::Null, &json!(true)), "usable at once: {v6}");
        assert_eq!(run("cat /proc/sys/net/ipv6/conf/eth0/accept_dad"), "0\n");

        let listed = client.list_interfaces(ListInterfacesRequest {}).await.unwrap().into_inner().interfaces;
        assert_eq!(listed.len(), 1);
        assert!(listed[0].linked);
        assert_eq!((listed[0].epoch, listed[0].offloads), (7, 0x0f));
        assert!(listed[0].to_stream.unwrap().frames >= 1 && listed[0].from_stream.unwrap().frames >= 1);
        let json = Command::new(env!("CARGO_BIN_EXE_arca-tapfwd"))
            .args(["interfaces", "--json", "--listen", &format!("sockets:{}", directory.display())])
            .output()
            .unwrap();
        let json: Value = serde_json::from_slice(&json.stdout).unwrap();
        assert_eq!((&json[0]["interface"], &json[0]["linked"]), (&json!("eth0"), &json!(true)));

        // Default routes only when they are asked for.
        assert_eq!(default_routes("-4"), json!([]));
        client.configure(ConfigureRequest { default_route_link: 1, ..Default::default() }).await.unwrap();
        assert_eq!(default_routes("-4"), json!([["172.18.0.1", "eth0"]]));
        assert_eq!(default_routes("-6"), json!([["fd00:18::1", "eth0"]]));
        let error =
            client.configure(ConfigureRequest { default_route_link: 2, ..Default::default() }).await.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert_eq!(default_routes("-4"), json!([["172.18.0.1", "eth0"]]), "a refused change changes nothing");

        // A second network, IPv4 only; the default routes move there.
        let second = arca_proto::tap::v1::AttachNetworkRequest {
            mac: "02:42:0a:09:00:05".into(),
            addresses: vec!["10.9.0.5/24".into()],
            gateway_v4: "10.9.0.1".into(),
            gateway_v6: String::new(),
            ..request(2)
        };
        let (steps, other) = tokio::join!(attach(&mut client, second), Peer::dial(&directory, 2, 1, Dhcp::AckFrom(3)));
        assert_eq!(steps.unwrap().len(), 3, "lost requests are sent again");
        assert_eq!(addresses("eth1"), ["10.9.0.5/24"]);
        assert_eq!(ip("-6 addr show dev eth1")[0]["addr_info"], Value::Null, "no IPv6 on an IPv4 network");
        client.configure(ConfigureRequest { default_route_link: 2, ..Default::default() }).await.unwrap();
        assert_eq!(default_routes("-4"), json!([["10.9.0.1", "eth1"]]));
        assert_eq!(default_routes("-6"), json!([]));
        client.configure(ConfigureRequest::default()).await.unwrap();
        assert_eq!(default_routes("-4"), json!([]));
        client.configure(ConfigureRequest { default_route_link: 2, ..Default::default() }).await.unwrap();

        // The same again is confirmed again, on the same interface; other values are a conflict.
        let index = ip("link show dev eth0")[0]["ifindex"].clone();
        let again = attach(&mut client, request(1)).await.unwrap();
        assert_eq!(again.last().unwrap().step(), Step::Confirmed);
        until("confirmed again, announced again", || peer.announcements().len() >= 2).await;
        let mut changed = request(1);
        changed.mtu = 1400;
        let error = attach(&mut client, changed).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists, "{error:?}");
        assert_eq!(ip("link show dev eth0")[0]["ifindex"], index);

        for link in [1, 1, 9, 2] {
            client.detach_network(DetachNetworkRequest { link }).await.unwrap();
        }
        assert_eq!(ip("link show").as_array().unwrap().len(), 1, "only lo is left");
        assert_eq!(default_routes("-4"), json!([]));
        assert!(!directory.join("20001").exists() && !directory.join("20002").exists());
        assert_eq!(store.names(), ["configuration"]);
        // The name and the port are free at once.
        drop((peer, other));
        let (steps, _peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 1, Dhcp::Ack));
        assert_eq!(steps.unwrap().len(), 3);
    });
}

#[test]
fn a_failed_attach_names_the_step_and_leaves_nothing() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let nothing_left = |what: &str| {
            assert_eq!(ip("link show").as_array().unwrap().len(), 1, "{what}: only lo is left");
            assert!(!directory.join("20001").exists(), "{what}: no listener");
            assert!(store.names().is_empty(), "{what}: nothing kept");
        };

        for (field, bad) in [
            ("link", arca_proto::tap::v1::AttachNetworkRequest { link: 10_000, ..request(1) }),
            ("interface", arca_proto::tap::v1::AttachNetworkRequest { interface: "a/b".into(), ..request(1) }),
            ("MTU", arca_proto::tap::v1::AttachNetworkRequest { mtu: 67, ..request(1) }),
        ] {
            let error = attach(&mut client, bad).await.unwrap_err();
            assert_eq!(error.code(), Code::InvalidArgument);
            assert!(error.message().contains(field), "{error:?}");
            nothing_left(field);
        }

        let (error, peer) = tokio::join!(attach(&mut client, request(1)), Peer::dial(&directory, 1, 1, Dhcp::Nak));
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::FailedPrecondition);
        assert!(
            error.message().starts_with("attach link 1 as eth0: step dhcp: DHCP server 172.18.0.1 refused 172.18.0.2"),
            "{error:?}"
        );
        drop(peer);
        nothing_left("NAK");

        let mut short = request(1);
        short.timeout_ms = 300;
        let (error, peer) =
            tokio::join!(attach(&mut client, short.clone()), Peer::dial(&directory, 1, 1, Dhcp::Silence));
        let error = error.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.message().contains("step dhcp: no DHCP answer for 172.18.0.2 to "), "{error:?}");
        drop(peer);
        nothing_left("silence");

        let error = attach(&mut client, short.clone()).await.unwrap_err();
        assert_eq!(error.code(), Code::DeadlineExceeded);
        assert!(error.message().contains("step link: nobody opened the link within 300 ms"), "{error:?}");
        nothing_left("no link");

        run("ip tuntap add eth0 mode tap");
        let error = attach(&mut client, short.clone()).await.unwrap_err();
        assert!(error.message().contains("step tap: "), "{error:?}");
        run("ip link del eth0");
        nothing_left("name taken");

        // A folder is in the way of the socket.
        std::fs::create_dir(directory.join("20001")).unwrap();
        let error = attach(&mut client, short.clone()).await.unwrap_err();
        assert!(error.message().contains("step listen: cannot listen on port 20001"), "{error:?}");
        std::fs::remove_dir(directory.join("20001")).unwrap();
        nothing_left("no listener");
    });
}

#[test]
fn a_caller_who_goes_away_and_a_detach_end_a_pending_attach() {
    in_namespace(|directory| async move {
        let store = Arc::new(Store::default());
        let tapfwd = Tapfwd::start(&directory, &store).await;
        let mut client = tapfwd.client();
        let gone = || ip("link show").as_array().unwrap().len() == 1 && !directory.join("20001").exists();

        // Waiting for the link.
        let mut stream = client.attach_network(request(1)).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().step(), Step::Listening);
        assert!(!gone());
        drop(stream);
        until("cancel undoes", gone).await;

        // Waiting for DHCP.
        let mut stream = client.attach_network(request(1)).await.unwrap().into_inner();
        let peer = Peer::dial(&directory, 1, 1, Dhcp::Silence).await;
        assert_eq!(stream.message().await.unwrap().unwrap().step(), Step::Listening);
        assert_eq!(stream.message().await.unwrap().unwrap().step(), Step::Linked);
        drop(stream);
        until("cancel undoes", gone).await;
        drop(peer);

        let mut stream = client.attach_network(request(1)).await.unwrap().into_inner();
        assert_eq!(stream.message().await.unwrap().unwrap().step(), Step::Listening);
        client.detach_network(DetachNetworkRequest { link: 1 }).await.unwrap();
        assert!(gone());
        assert_eq!(stream.message().await.unwrap_err().code(), Code::Aborted);
        assert!(store.names().is_empty());
    });
}
