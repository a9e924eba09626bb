// SPDX-License-Identifier: Apache-2.0
use arca_daemon::shutdown::Shutdown;
use arca_proto::{
    dial,
    listen::bind_unix,
    netd::v1::{self as proto, netd_client::NetdClient},
};
use tonic::Code;

use crate::fakes::{World, workload};

#[tokio::test(flavor = "multi_thread")]
async fn the_service_speaks_dockers_texts_with_the_right_codes() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    let socket = world.path("netd.sock");
    let listener = bind_unix(&socket, 0o600).unwrap();
    let (trigger, shutdown) = Shutdown::manual();
    let serving = tokio::spawn(world.app.take().unwrap().serve(listener, shutdown));
    let mut client = NetdClient::new(dial::unix_channel(&socket));
    let mut events = client.watch_events(proto::WatchEventsRequest {}).await.unwrap().into_inner();

    let with_subnet = |name: &str, subnet: &str| proto::CreateNetworkRequest {
        name: name.into(),
        ipam_pools: vec![proto::IpamPool { subnet: subnet.into(), ..Default::default() }],
        labels: [("k".to_owned(), "v".to_owned())].into(),
        ..Default::default()
    };
    let id = client.create_network(with_subnet("np_a", "10.77.0.0/16")).await.unwrap().into_inner().id;
    for (request, code, text) in [
        (
            with_subnet("np_b", "10.77.5.0/24"),
            Code::PermissionDenied,
            "invalid pool request: Pool overlaps with other one on this address space",
        ),
        (with_subnet("np_a", "10.78.0.0/16"), Code::AlreadyExists, "network with name np_a already exists"),
        (
            with_subnet("np_b", "10.77.0.5/16"),
            Code::InvalidArgument,
            "invalid network config:\ninvalid subnet 10.77.0.5/16: it should be 10.77.0.0/16",
        ),
    ] {
        let status = client.create_network(request).await.unwrap_err();
        assert_eq!((status.code(), status.message()), (code, text));
    }
    for driver in ["ipvlan", "macvlan"] {
        let request = proto::CreateNetworkRequest { name: "x".into(), driver: driver.into(), ..Default::default() };
        let status = client.create_network(request).await.unwrap_err();
        assert_eq!(status.code(), Code::Unimplemented, "{status}");
    }
    let get = |name: &str| proto::GetNetworkRequest { name_or_id: name.into() };
    let network = client.get_network(get(&id[..5])).await.unwrap().into_inner();
    let spec = network.spec.unwrap();
    assert_eq!((spec.name.as_str(), spec.driver.as_str(), spec.labels["k"].as_str()), ("np_a", "bridge", "v"));
    assert_eq!((network.pools[0].subnet.as_str(), network.pools[0].gateway.as_str()), ("10.77.0.0/16", ""));
    let missing = client.get_network(get("nope")).await.unwrap_err();
    assert_eq!((missing.code(), missing.message()), (Code::NotFound, "network nope not found"));

    let attach = proto::AttachRequest {
        network: "np_a".into(),
        machine_id: "m1".into(),
        machine: Some(machine.into()),
        workload_id: workload(1).to_string(),
        workload_name: "/np_r".into(),
        ..Default::default()
    };
    let endpoint = client.attach(attach.clone()).await.unwrap().into_inner();
    assert_eq!((endpoint.address_v4.as_str(), endpoint.interface.as_str()), ("10.77.0.2/16", "eth0"));
    assert!(endpoint.default_route && endpoint.up, "{endpoint:?}");
    assert_eq!(endpoint.dns_names, ["np_r", workload(1).short()]);
    let twice = client.attach(attach.clone()).await.unwrap_err();
    let text = "endpoint with name np_r already exists in network np_a";
    assert_eq!((twice.code(), twice.message()), (Code::PermissionDenied, text));
    let other = proto::AttachRequest { ipv4: "10.77.0.2".into(), workload_id: workload(2).to_string(), ..attach };
    let taken = client.check_attachment(other).await.unwrap_err();
    assert_eq!((taken.code(), taken.message()), (Code::PermissionDenied, "Address already in use"));
    let busy = client.stop_helper(proto::StopHelperRequest {}).await.unwrap_err();
    assert_eq!(busy.code(), Code::FailedPrecondition, "{busy}");

    let sync = proto::SyncAttachmentsRequest { workload_ids: Vec::new() };
    let synced = client.sync_attachments(sync.clone()).await.unwrap().into_inner();
    assert_eq!((synced.removed.len(), synced.endpoints.len()), (1, 0));
    assert_eq!(client.sync_attachments(sync).await.unwrap().into_inner().removed, []);
    let status = client.get_status(proto::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.helper_state.as_str(), status.router_address.as_str()), ("up", "192.168.127.2"));
    client.stop_helper(proto::StopHelperRequest {}).await.unwrap();
    client.stop_helper(proto::StopHelperRequest {}).await.unwrap();
    assert_eq!(*world.boot.downs.lock().unwrap(), 1);

    use proto::event::Kind;
    for kind in [Kind::NetworkCreated, Kind::EndpointAttached, Kind::EndpointDetached] {
        let event = events.message().await.unwrap().unwrap();
        assert_eq!((event.kind(), event.network_name.as_str()), (kind, "np_a"));
    }
    drop(events);
    trigger.fire();
    serving.await.unwrap().unwrap();
}
