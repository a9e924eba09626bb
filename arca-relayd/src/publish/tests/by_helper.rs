// SPDX-License-Identifier: Apache-2.0
//! Clients carried through a helper machine: its end of port 9998 is played here.

use std::path::Path;

use arca_proto::{
    listen::ListenOn,
    ports,
    publish::{self as wire, Kind, Opening, Transport},
};
use tokio::io::AsyncReadExt as _;

use super::*;

/// A helper machine that leads everywhere. Ends with the runtime.
fn helper(sockets: &Path) {
    let listener = ListenOn::Sockets(sockets.to_owned()).bind(ports::PUBLISH).unwrap();
    tokio::spawn(async move {
        loop {
            let (mut reader, mut writer) = tokio::io::split(listener.accept().await.unwrap());
            tokio::spawn(async move {
                let mut payload = Vec::new();
                assert_eq!(wire::receive(&mut reader, &mut payload).await.unwrap(), Some(Kind::Open));
                let Opening { transport, to } = Opening::decode(&payload).unwrap();
                if transport == Transport::Udp {
                    let socket = tokio::net::UdpSocket::bind((V4, 0)).await.unwrap();
                    socket.connect(to).await.unwrap();
                    wire::send(&mut writer, Kind::Opened, &[]).await.unwrap();
                    let mut buffer = [0; 1500];
                    while let Ok(Some(Kind::Data)) = wire::receive(&mut reader, &mut payload).await {
                        socket.send(&payload).await.unwrap();
                        let length = socket.recv(&mut buffer).await.unwrap();
                        wire::send(&mut writer, Kind::Data, &buffer[..length]).await.unwrap();
                    }
                    return;
                }
                let mut server = match tokio::net::TcpStream::connect(to).await {
                    Ok(server) => server,
                    Err(error) => {
                        wire::send(&mut writer, Kind::Failed, error.to_string().as_bytes()).await.unwrap();
                        drop(reader.read(&mut [0]).await);
                        return;
                    }
                };
                wire::send(&mut writer, Kind::Opened, &[]).await.unwrap();
                let (mut from, mut to) = server.split();
                let carried = tokio::try_join!(
                    wire::unpack(&mut reader, &mut to, drop),
                    wire::pack(&mut from, &mut writer, drop)
                );
                if carried.is_ok() {
                    wire::send(&mut writer, Kind::Done, &[]).await.unwrap();
                    assert_eq!(reader.read(&mut [0]).await.unwrap(), 0, "the host closes");
                }
            });
        }
    });
}

fn carried(id: &str, protocol: P, host_ip: impl Into<IpAddr>, vip: SocketAddr, sockets: &Path) -> PublishRequest {
    let helper = Some(Address::Sockets(sockets.to_owned()).into());
    PublishRequest { helper, ..request(id, protocol, host_ip, 18_081, vip) }
}

#[test]
fn tcp_passes_with_half_close_counts_and_resets() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        let sockets = directory.path();
        let vip = tcp_server(Ipv4Addr::LOCALHOST, 0);
        let publisher = publisher();
        let published = publisher.publish(carried("a", P::Tcp, V4, vip, sockets)).await.unwrap();
        assert_eq!(published.way, "helper");
        publisher.publish(carried("b", P::Tcp, Ipv6Addr::UNSPECIFIED, vip, sockets)).await.unwrap();

        // A client that comes while the helper boots is served when it is there.
        static DATA: [u8; 4 << 20] = [7; 4 << 20];
        let early = tokio::spawn(asked((Ipv4Addr::LOCALHOST, 18_081), &DATA));
        while publisher.list().await[0].connections == 0 {
            tokio::task::yield_now().await;
        }
        helper(sockets);
        let answer = early.await.unwrap().unwrap();
        assert_eq!(answer, format!("127.0.0.1 {} {}", DATA.len(), 7 * DATA.len()));
        let listed = publisher.list().await;
        assert_eq!((listed[0].bytes_in, listed[0].bytes_out), (DATA.len() as u64, answer.len() as u64));
        assert_eq!(asked((Ipv6Addr::LOCALHOST, 18_081), b"a").await.unwrap(), "127.0.0.1 1 97");

        // Withdrawn with a live client: it is cut off.
        let mut live = Std::connect((Ipv4Addr::LOCALHOST, 18_081)).unwrap();
        live.set_read_timeout(PATIENCE).unwrap();
        live.write_all(b"x").unwrap();
        while publisher.list().await[0].bytes_in == DATA.len() as u64 {
            tokio::task::yield_now().await;
        }
        publisher.unpublish("a").await.unwrap();
        let end = spawn_blocking(move || live.read(&mut [0])).await.unwrap();
        assert!(matches!(end, Ok(0)) || end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
    });
}

#[test]
fn a_container_that_refuses_or_resets_is_a_reset_for_the_client() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        helper(directory.path());
        let listener = StdListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let vip = listener.local_addr().unwrap();
        let publisher = publisher();
        publisher.publish(carried("a", P::Tcp, V4, vip, directory.path())).await.unwrap();
        let server = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        });
        for why in ["reset", "refused"] {
            let error = asked((Ipv4Addr::LOCALHOST, 18_081), b"x").await.unwrap_err();
            let cut =
                matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::NotConnected);
            assert!(cut, "{why}: {error}");
        }
        server.join().unwrap();
    });
}

#[test]
fn udp_clients_have_flows_of_their_own() {
    in_namespace(|| async {
        let directory = tempfile::tempdir().unwrap();
        helper(directory.path());
        let vip = udp_server(Ipv4Addr::LOCALHOST, 0);
        let publisher = publisher();
        publisher.publish(carried("a", P::Udp, V4, vip, directory.path())).await.unwrap();
        let to = SocketAddr::from((Ipv4Addr::LOCALHOST, 18_081));
        let clients = [StdUdp::bind((V4, 0)).unwrap(), StdUdp::bind((V4, 0)).unwrap()];
        let mut ports = Vec::new();
        for client in clients.iter().chain(&clients) {
            let answer = udp_asked(client, to, "a").await;
            assert!(answer.ends_with(" a"), "{answer}");
            ports.push(answer);
        }
        assert!(ports[0] == ports[2] && ports[1] == ports[3] && ports[0] != ports[1], "{ports:?}");
        let listed = publisher.list().await;
        assert_eq!((listed[0].connections, listed[0].bytes_in), (2, 4));
    });
}
