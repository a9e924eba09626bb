// SPDX-License-Identifier: Apache-2.0
//! Published ports with real sockets, each test in network namespaces of its own.

mod by_helper;
mod namespace;

use std::io::{ErrorKind, Read, Write};
use std::net::{
    IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, TcpStream as Std, UdpSocket as StdUdp,
};
use std::time::Duration;

use proto::{Protocol as P, PublishRequest};
use tokio::task::spawn_blocking;

use super::*;
use namespace::{Namespace, in_namespace, run};

const V4: Ipv4Addr = Ipv4Addr::UNSPECIFIED;
const PATIENCE: Option<Duration> = Some(Duration::from_secs(5));

fn publisher() -> Publisher {
    Publisher::new("0123abcd")
}

fn request(id: &str, protocol: P, host_ip: impl Into<IpAddr>, host_port: u16, vip: SocketAddr) -> PublishRequest {
    PublishRequest {
        id: id.into(),
        protocol: protocol.into(),
        host_ip: host_ip.into().to_string(),
        host_port: host_port.into(),
        vip: vip.ip().to_string(),
        vip_port: vip.port().into(),
        kernel_redirect: false,
        helper: None,
    }
}

/// Reads to the end, then answers with who asked, how much came and its sum: an answer proves a half-close.
fn tcp_server(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    let listener = StdListener::bind((address.into(), port)).unwrap();
    let bound = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut data = Vec::new();
                if stream.read_to_end(&mut data).is_ok() {
                    let sum: u64 = data.iter().map(|b| u64::from(*b)).sum();
                    let from = stream.peer_addr().unwrap().ip();
                    let _ = write!(stream, "{from} {} {sum}", data.len());
                }
            });
        }
    });
    bound
}

/// Answers with who asked and what.
fn udp_server(address: impl Into<IpAddr>, port: u16) -> SocketAddr {
    let socket = StdUdp::bind((address.into(), port)).unwrap();
    let bound = socket.local_addr().unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let text = format!("{from} {}", String::from_utf8_lossy(&buffer[..length]));
            let _ = socket.send_to(text.as_bytes(), from);
        }
    });
    bound
}

fn ask(to: impl Into<SocketAddr>, data: &[u8]) -> std::io::Result<String> {
    let mut stream = Std::connect_timeout(&to.into(), Duration::from_secs(5))?;
    stream.set_read_timeout(PATIENCE)?;
    stream.write_all(data)?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    Ok(text)
}

async fn asked(to: impl Into<SocketAddr>, data: &'static [u8]) -> std::io::Result<String> {
    let to = to.into();
    spawn_blocking(move || ask(to, data)).await.unwrap()
}

/// Waits until nobody listens. Not at once, because tests run beside each other: a program that another one is just
/// starting has copies of all sockets of this process between fork and exec.
fn gone(what: &str, free: impl Fn() -> bool) {
    let started = std::time::Instant::now();
    while !free() {
        assert!(started.elapsed() < Duration::from_secs(5), "{what} is still there");
        std::thread::yield_now();
    }
}

fn refuses(to: impl Into<SocketAddr>) -> bool {
    ask(to.into(), b"").is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

/// Asks from a socket that stays open, as a DNS client would.
async fn udp_asked(socket: &StdUdp, to: SocketAddr, text: &str) -> String {
    let (socket, text) = (socket.try_clone().unwrap(), text.to_owned());
    let answer = spawn_blocking(move || {
        socket.set_read_timeout(PATIENCE).unwrap();
        socket.send_to(text.as_bytes(), to).unwrap();
        let mut buffer = [0; 1500];
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        assert_eq!(from, to, "the answer comes from where the question went");
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    answer.await.unwrap()
}

#[test]
fn tcp_carries_both_directions_half_close_and_counts() {
    in_namespace(|| async {
        let vip = tcp_server(Ipv4Addr::LOCALHOST, 0);
        let publisher = publisher();
        let wanted = request("a", P::Tcp, V4, 18_081, vip);
        let published = publisher.publish(wanted.clone()).await.unwrap();
        assert_eq!((published.host_port, published.way.as_str()), (18_081, "listener"));

        static DATA: [u8; 1 << 20] = [7; 1 << 20];
        let answer = asked((Ipv4Addr::LOCALHOST, 18_081), &DATA).await.unwrap();
        assert_eq!(answer, format!("127.0.0.1 {} {}", DATA.len(), 7 * DATA.len()));
        let listed = publisher.list().await;
        assert_eq!((listed.len(), listed[0].connections, listed[0].bytes_in), (1, 1, DATA.len() as u64));
        assert_eq!(listed[0].bytes_out, answer.len() as u64);

        // The same again is the same publication; the same id with other values is not.
        assert_eq!(publisher.publish(wanted.clone()).await.unwrap().host_port, 18_081);
        let other = PublishRequest { host_port: 18_082, ..wanted };
        assert_eq!(publisher.publish(other).await.unwrap_err().code(), Code::FailedPrecondition);

        // Withdrawing ends the live connection and the listener, and frees the port.
        let mut live = Std::connect((Ipv4Addr::LOCALHOST, 18_081)).unwrap();
        live.set_read_timeout(PATIENCE).unwrap();
        live.write_all(b"x").unwrap();
        while publisher.list().await[0].bytes_in == DATA.len() as u64 {
            tokio::task::yield_now().await;
        }
        publisher.unpublish("a").await.unwrap();
        publisher.unpublish("a").await.unwrap();
        let ended = live.read(&mut [0; 1]);
        assert!(matches!(&ended, Ok(0)) || ended.is_err_and(|e| e.kind() == ErrorKind::ConnectionReset));
        gone("the listener", || refuses((Ipv4Addr::LOCALHOST, 18_081)));
        gone("the port", || StdListener::bind((V4, 18_081)).is_ok());
        assert!(publisher.list().await.is_empty());
    });
}

#[test]
fn a_vip_that_refuses_resets_the_client() {
    in_namespace(|| async {
        let publisher = publisher();
        let nobody = SocketAddr::from((Ipv4Addr::LOCALHOST, 9));
        publisher.publish(request("a", P::Tcp, V4, 18_081, nobody)).await.unwrap();
        let error = asked((Ipv4Addr::LOCALHOST, 18_081), b"").await.unwrap_err();
        assert!(matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::NotConnected), "{error:?}");
        publisher.close().await;
        gone("the listener", || refuses((Ipv4Addr::LOCALHOST, 18_081)));
    });
}

#[test]
fn taken_ports_and_foreign_addresses_are_refused_in_dockers_words() {
    in_namespace(|| async {
        let publisher = publisher();
        let vip = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let publish = |id, protocol, host: IpAddr, port| publisher.publish(request(id, protocol, host, port, vip));
        publish("a", P::Tcp, V4.into(), 18_081).await.unwrap();
        for host in [V4, Ipv4Addr::LOCALHOST] {
            let error = publish("b", P::Tcp, host.into(), 18_081).await.unwrap_err();
            assert_eq!(error.code(), Code::AlreadyExists);
            assert_eq!(error.message(), format!("Bind for {host}:18081 failed: port is already allocated"));
        }
        // IPv6 and UDP have ports of their own.
        let v6 = IpAddr::from(Ipv6Addr::UNSPECIFIED);
        publish("c", P::Tcp, v6, 18_081).await.unwrap();
        publish("d", P::Udp, V4.into(), 18_081).await.unwrap();
        let error = publish("e", P::Tcp, v6, 18_081).await.unwrap_err();
        assert_eq!(error.message(), "Bind for :::18081 failed: port is already allocated");
        let error = publish("e", P::Udp, V4.into(), 18_081).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);

        let _foreign = StdListener::bind((V4, 18_090)).unwrap();
        let error = publish("e", P::Tcp, V4.into(), 18_090).await.unwrap_err();
        assert_eq!(error.code(), Code::AlreadyExists);
        assert_eq!(error.message(), "failed to bind host port for 0.0.0.0:18090: address already in use");
        let _foreign = StdUdp::bind((V4, 18_090)).unwrap();
        let error = publish("e", P::Udp, Ipv4Addr::LOCALHOST.into(), 18_090).await.unwrap_err();
        assert_eq!(error.message(), "failed to bind host port for 127.0.0.1:18090: address already in use");

        let error = publish("e", P::Tcp, Ipv4Addr::new(203, 0, 113, 9).into(), 18_091).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(error.message(), "failed to bind host port for 203.0.113.9:18091: cannot assign requested address");
        let ids: Vec<String> = publisher.list().await.into_iter().map(|p| p.request.unwrap().id).collect();
        assert_eq!(ids, ["a", "c", "d"], "a refused one leaves nothing");
    });
}

#[test]
fn ephemeral_ports_are_in_dockers_range_whatever_the_kernels_is() {
    in_namespace(|| async {
        let publisher = publisher();
        let vip = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let mut ports = Vec::new();
        for (n, range) in ["32768 60999", "1024 1100"].into_iter().enumerate() {
            run(&format!("echo {range} > /proc/sys/net/ipv4/ip_local_port_range"));
            for protocol in [P::Tcp, P::Udp, P::Tcp] {
                let id = format!("{n}{}", ports.len());
                let published = publisher.publish(request(&id, protocol, V4, 0, vip)).await.unwrap();
                assert!((32_768..=60_999).contains(&published.host_port), "{published:?}");
                ports.push((protocol as i32, published.host_port));
            }
        }
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), 6);
    });
}

#[test]
fn a_v6_listener_leads_to_the_v4_vip() {
    in_namespace(|| async {
        let publisher = publisher();
        let (tcp, udp) = (tcp_server(Ipv4Addr::LOCALHOST, 0), udp_server(Ipv4Addr::LOCALHOST, 0));
        let all = Ipv6Addr::UNSPECIFIED;
        publisher.publish(request("t", P::Tcp, all, 18_081, tcp)).await.unwrap();
        publisher.publish(request("u", P::Udp, all, 18_081, udp)).await.unwrap();
        assert_eq!(asked((Ipv6Addr::LOCALHOST, 18_081), b"ab").await.unwrap(), "127.0.0.1 2 195");
        let client = StdUdp::bind((Ipv6Addr::LOCALHOST, 0)).unwrap();
        let answer = udp_asked(&client, (Ipv6Addr::LOCALHOST, 18_081).into(), "q").await;
        assert!(answer.ends_with(" q"), "{answer}");
        let error = ask((Ipv4Addr::LOCALHOST, 18_081), b"").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "`::` does not take IPv4 clients");
    });
}

#[test]
fn udp_keeps_clients_apart_and_answers_from_the_address_asked() {
    in_namespace(|| async {
        let publisher = publisher();
        let vip = udp_server(Ipv4Addr::LOCALHOST, 0);
        publisher.publish(request("u", P::Udp, V4, 18_053, vip)).await.unwrap();
        let clients = [(); 3].map(|()| StdUdp::bind((V4, 0)).unwrap());
        let to = |host: [u8; 4]| SocketAddr::from((host, 18_053));
        let mut seen = Vec::new();
        for round in 0..3 {
            for (n, client) in clients.iter().enumerate() {
                // 127.0.0.7 is an address of this host too, but not the one that a route back would choose.
                let answer = udp_asked(client, to([127, 0, 0, 7]), &format!("{n}-{round}")).await;
                let (from, text) = answer.split_once(' ').unwrap();
                assert_eq!(text, format!("{n}-{round}"));
                seen.push(from.to_owned());
            }
        }
        assert_eq!(seen[0..3], seen[3..6], "a client keeps its flow");
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 3);
        let listed = &publisher.list().await[0];
        assert_eq!((listed.connections, listed.bytes_in), (3, 27));
        assert!(listed.bytes_out > 27);
        // Datagrams of any size, the empty one too.
        assert!(udp_asked(&clients[0], to([127, 0, 0, 1]), "").await.ends_with(' '));
        let large = "x".repeat(1400);
        assert!(udp_asked(&clients[0], to([127, 0, 0, 1]), &large).await.ends_with(&large));
        publisher.unpublish("u").await.unwrap();
        gone("the port", || StdUdp::bind((V4, 18_053)).is_ok());
    });
}

#[test]
fn udp_flows_end_by_silence_and_their_number_is_bounded() {
    in_namespace(|| async {
        let publisher = publisher();
        let vip = udp_server(Ipv4Addr::LOCALHOST, 0);
        let limits = Limits { idle: Duration::from_millis(300), flows: 2 };
        publisher.try_publish(request("u", P::Udp, V4, 18_053, vip), limits).await.unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 18_053));
        let open = || run("ss -Hun state established").lines().count();
        let client = StdUdp::bind((V4, 0)).unwrap();
        let started = tokio::time::Instant::now();
        let first = udp_asked(&client, to, "a").await;
        // Kept alive past the first deadline by use.
        while started.elapsed() < Duration::from_millis(500) {
            assert_eq!(udp_asked(&client, to, "a").await, first);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        assert_eq!(open(), 1);
        while open() > 0 {
            assert!(started.elapsed() < Duration::from_secs(5), "the silent flow stays");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_ne!(udp_asked(&client, to, "a").await, first, "a new flow has a new source port");

        // Three clients, room for two: the one silent for longest goes.
        let (second, third) = (StdUdp::bind((V4, 0)).unwrap(), StdUdp::bind((V4, 0)).unwrap());
        udp_asked(&second, to, "b").await;
        udp_asked(&third, to, "c").await;
        assert_eq!(open(), 2);
        assert_eq!(publisher.list().await[0].connections, 4);
    });
}

#[test]
fn bad_values_are_named() {
    in_namespace(|| async {
        let publisher = publisher();
        let vip = SocketAddr::from((Ipv4Addr::LOCALHOST, 80));
        let wanted = request("a", P::Tcp, V4, 18_081, vip);
        let error = publisher.publish(PublishRequest { vip: "ff02::1".into(), ..wanted }).await.unwrap_err();
        assert_eq!(error.code(), Code::InvalidArgument);
        assert_eq!(error.message(), "publish: vip `ff02::1` is not a unicast address");
    });
}

/// Host 192.168.127.1 with the uplink to `gateway` .2, and 198.51.100.1 with a client .9 elsewhere.
fn three_hosts() -> (Namespace, Namespace) {
    let (gateway, client) = (Namespace::new(), Namespace::new());
    run(&format!(
        "ip link add up0 type veth peer name up1; ip link set up1 netns {}
         ip addr add 192.168.127.1/29 dev up0; ip link set up0 up
         ip link add out0 type veth peer name out1; ip link set out1 netns {}
         ip addr add 198.51.100.1/24 dev out0; ip link set out0 up
         ip addr add fd00:77::1/64 dev up0 nodad; ip addr add 2001:db8::1/64 dev out0 nodad
         echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding",
        gateway.id(),
        client.id()
    ));
    gateway.call(|| {
        run("ip addr add 192.168.127.2/29 dev up1; ip addr add fd00:77::2/64 dev up1 nodad; ip link set up1 up
            ip route add default via 192.168.127.1; ip route add default via fd00:77::1");
        tcp_server(Ipv6Addr::UNSPECIFIED, 81);
        udp_server(Ipv6Addr::UNSPECIFIED, 54);
        tcp_server(Ipv4Addr::UNSPECIFIED, 80);
        udp_server(Ipv4Addr::UNSPECIFIED, 53);
    });
    client.call(|| {
        run("ip addr add 198.51.100.9/24 dev out1; ip addr add 2001:db8::9/64 dev out1 nodad; ip link set out1 up")
    });
    (gateway, client)
}

#[test]
fn the_kernel_way_keeps_the_clients_address_and_gives_way_to_a_neighbours_firewall() {
    in_namespace(|| async {
        let (_gateway, client) = three_hosts();
        let publisher = publisher();
        let kernel = |request| PublishRequest { kernel_redirect: true, ..request };
        let vip = |port| SocketAddr::from((Ipv4Addr::new(192, 168, 127, 2), port));
        let web = kernel(request("web", P::Tcp, V4, 18_081, vip(80)));
        let published = publisher.publish(web.clone()).await.unwrap();
        assert_eq!(published.way, "nftables+listener");
        let dns = kernel(request("dns", P::Udp, Ipv4Addr::new(198, 51, 100, 1), 18_053, vip(53)));
        assert_eq!(publisher.publish(dns).await.unwrap().way, "nftables+listener");
        let local = kernel(request("local", P::Tcp, Ipv4Addr::LOCALHOST, 18_082, vip(80)));
        assert_eq!(
            publisher.publish(local).await.unwrap().way,
            "listener (a loopback address has no clients elsewhere)"
        );
        let v6 = kernel(request("v6", P::Tcp, Ipv6Addr::UNSPECIFIED, 18_081, vip(80)));
        let way = publisher.publish(v6).await.unwrap().way;
        assert_eq!(way, "listener (clients cannot be redirected to an address of another family)");

        let host = SocketAddr::from(([198, 51, 100, 1], 18_081));
        let from_outside = || client.call(move || ask(host, b"ab").unwrap());
        assert_eq!(from_outside(), "198.51.100.9 2 195", "the container's side sees the client");
        let answer = client.call(|| {
            let socket = StdUdp::bind((V4, 0)).unwrap();
            socket.set_read_timeout(PATIENCE).unwrap();
            socket.connect((Ipv4Addr::new(198, 51, 100, 1), 18_053)).unwrap();
            socket.send(b"q").unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        assert!(answer.starts_with("198.51.100.9:") && answer.ends_with(" q"), "{answer}");
        // This host's own clients, by any of its addresses, come in by the listener.
        assert_eq!(asked(host, b"ab").await.unwrap(), "192.168.127.1 2 195");
        assert_eq!(asked((Ipv4Addr::LOCALHOST, 18_081), b"ab").await.unwrap(), "192.168.127.1 2 195");
        assert_eq!(publisher.list().await.iter().map(|p| p.connections).sum::<u64>(), 2);

        // A neighbour drops what is forwarded: the listener takes over, and says why.
        run(
            "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'",
        );
        let other = kernel(request("other", P::Tcp, V4, 18_083, vip(80)));
        let way = publisher.publish(other).await.unwrap().way;
        assert_eq!(way, "listener (chain FORWARD of nftables table ip filter drops forwarded packets by policy)");
        assert!(publisher.list().await.iter().all(|p| p.way.starts_with("listener")));
        assert_eq!(run("nft list tables"), "table ip filter\n");
        let by_listener = spawn_blocking({
            let client = client.clone();
            move || client.call(move || ask(host, b"ab").unwrap())
        });
        assert_eq!(by_listener.await.unwrap(), "192.168.127.1 2 195");

        // Gone again: the next change puts the rules back. Withdrawing removes them one by one, then the table.
        run("nft delete table ip filter");
        publisher.unpublish("other").await.unwrap();
        assert_eq!(from_outside(), "198.51.100.9 2 195");
        publisher.unpublish("dns").await.unwrap();
        let rules = run("nft list table ip arca_publish_0123abcd");
        assert!(rules.contains("dport 18081") && !rules.contains("18053"), "{rules}");
        publisher.unpublish("web").await.unwrap();
        assert_eq!(run("nft list tables"), "");
        client.call(move || gone("the listener", || refuses(host)));

        run("echo 0 > /proc/sys/net/ipv4/ip_forward");
        assert_eq!(publisher.publish(web).await.unwrap().way, "listener (net.ipv4.ip_forward is off)");
    });
}

#[test]
fn ipv6_clients_keep_their_address_on_the_way_to_an_ipv6_vip() {
    in_namespace(|| async {
        let (_gateway, client) = three_hosts();
        let publisher = publisher();
        let kernel = |request| PublishRequest { kernel_redirect: true, ..request };
        let vip = |port| SocketAddr::from((Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2), port));
        let web = kernel(request("web", P::Tcp, Ipv6Addr::UNSPECIFIED, 18_081, vip(81)));
        assert_eq!(publisher.publish(web).await.unwrap().way, "nftables+listener");
        let dns = kernel(request("dns", P::Udp, "2001:db8::1".parse::<IpAddr>().unwrap(), 18_053, vip(54)));
        assert_eq!(publisher.publish(dns).await.unwrap().way, "nftables+listener");
        // What is there for IPv4 clients is another matter.
        let four = kernel(request("four", P::Tcp, V4, 18_081, SocketAddr::from(([192, 168, 127, 2], 80))));
        assert_eq!(publisher.publish(four).await.unwrap().way, "nftables+listener");

        let host: SocketAddr = "[2001:db8::1]:18081".parse().unwrap();
        let from_outside = || client.call(move || ask(host, b"ab").unwrap());
        assert_eq!(from_outside(), "2001:db8::9 2 195", "the container's side sees the client");
        let answer = client.call(|| {
            let socket = StdUdp::bind((Ipv6Addr::UNSPECIFIED, 0)).unwrap();
            socket.set_read_timeout(PATIENCE).unwrap();
            socket.connect("[2001:db8::1]:18053").unwrap();
            socket.send(b"q").unwrap();
            let mut buffer = [0; 100];
            let length = socket.recv(&mut buffer).unwrap();
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        });
        assert!(answer.starts_with("[2001:db8::9]:") && answer.ends_with(" q"), "{answer}");
        assert_eq!(asked((Ipv6Addr::LOCALHOST, 18_081), b"ab").await.unwrap(), "fd00:77::1 2 195");

        // A neighbour's firewall of the one family is none of the other's.
        run("nft 'add table ip6 f; add chain ip6 f FORWARD { type filter hook forward priority 0; policy drop; }'");
        publisher.unpublish("dns").await.unwrap();
        let ways = |publications: Vec<proto::Publication>| -> Vec<String> {
            publications.into_iter().map(|publication| publication.way).collect()
        };
        assert_eq!(
            ways(publisher.list().await),
            ["nftables+listener", "listener (chain FORWARD of nftables table ip6 f drops forwarded packets by policy)"]
        );
        let by_listener = spawn_blocking({
            let client = client.clone();
            move || client.call(move || ask(host, b"ab").unwrap())
        });
        assert_eq!(by_listener.await.unwrap(), "fd00:77::1 2 195");
        run("nft delete table ip6 f");
        publisher.close().await;
        assert_eq!(run("nft list tables"), "");
    });
}

#[test]
fn a_neighbours_changes_are_noticed_and_connections_of_rules_that_go_are_cut() {
    in_namespace(|| async {
        let (_gateway, client) = three_hosts();
        let publisher = Arc::new(publisher());
        let vip = SocketAddr::from((Ipv4Addr::new(192, 168, 127, 2), 80));
        let web = PublishRequest { kernel_redirect: true, ..request("web", P::Tcp, V4, 18_081, vip) };
        assert_eq!(publisher.publish(web).await.unwrap().way, "nftables+listener");
        let host = SocketAddr::from(([198, 51, 100, 1], 18_081));
        // Established, and in the kernel's hands.
        let open = || {
            client.call(move || {
                let mut stream = Std::connect_timeout(&host, Duration::from_secs(5)).unwrap();
                stream.set_read_timeout(PATIENCE).unwrap();
                stream.write_all(b"a").unwrap();
                stream
            })
        };
        // Cut means told so by the host: neither left hanging nor carried on.
        let is_cut = |mut stream: Std| {
            // The first reset comes as the answer to something sent.
            let _ = stream.write_all(b"b").and_then(|()| stream.shutdown(std::net::Shutdown::Write));
            let mut text = String::new();
            stream.read_to_string(&mut text).is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
        };
        let way = async |starts: &str| {
            let waited = tokio::time::timeout(Duration::from_secs(5), async {
                while !publisher.list().await[0].way.starts_with(starts) {
                    tokio::task::yield_now().await;
                }
            });
            waited.await.unwrap_or_else(|_| panic!("the way does not become {starts:?}"));
        };
        let follower = tokio::spawn({
            let publisher = Arc::clone(&publisher);
            async move { publisher.follow_neighbours().await }
        });
        // Until the follower listens there is nobody to notice: the first neighbour comes again and again.
        let neighbour = "nft 'add table ip filter; add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }'";
        let before = open();
        let deadline = std::time::Instant::now() + Duration::from_secs(5);
        while !publisher.list().await[0].way.starts_with("listener (chain FORWARD") {
            assert!(std::time::Instant::now() < deadline, "the neighbour is not noticed");
            run(&format!("{neighbour}; nft delete table ip filter; {neighbour}"));
            tokio::task::yield_now().await;
        }
        assert!(spawn_blocking(move || is_cut(before)).await.unwrap());
        run("nft delete table ip filter");
        way("nftables").await;
        let before = open();
        publisher.unpublish("web").await.unwrap();
        assert!(spawn_blocking(move || is_cut(before)).await.unwrap());
        follower.abort();
    });
}

#[test]
fn rules_of_a_killed_process_are_removed_at_start_and_others_are_not() {
    in_namespace(|| async {
        run(
            "nft 'add table ip arca_publish_0123abcd; add chain ip arca_publish_0123abcd prerouting; add table ip arca_publish_89ab4567'",
        );
        let publisher = publisher();
        assert_eq!(run("nft list tables"), "table ip arca_publish_89ab4567\n");
        publisher.close().await;
        assert_eq!(run("nft list tables"), "table ip arca_publish_89ab4567\n");
    });
}
