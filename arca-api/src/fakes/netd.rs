// SPDX-License-Identifier: Apache-2.0
//! arca-netd in memory: three networks that are always there, addresses counted up, a network called `broken`.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use arca_proto::netd::v1::{
    self as api,
    netd_server::{Netd, NetdServer},
};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status};

#[derive(Debug, Default)]
struct World {
    networks: BTreeMap<String, api::Network>,
    endpoints: Vec<api::Endpoint>,
    published: Vec<String>,
    next: u32,
}

#[derive(Debug, Default)]
pub(crate) struct FakeNetd(Mutex<World>);

#[derive(Clone)]
struct Service(Arc<FakeNetd>);

fn network(name: &str, driver: &str) -> api::Network {
    api::Network {
        id: format!("{name:0<64}").replace(|c: char| !c.is_ascii_hexdigit(), "0"),
        spec: Some(api::CreateNetworkRequest {
            name: name.into(),
            driver: driver.into(),
            ..api::CreateNetworkRequest::default()
        }),
        enable_ipv4: true,
        predefined: matches!(name, "bridge" | "host" | "none"),
        ..api::Network::default()
    }
}

impl FakeNetd {
    pub(crate) fn serve(socket: &Path) -> Arc<Self> {
        let fake = Arc::new(Self::default());
        for (name, driver) in [("bridge", "bridge"), ("host", "host"), ("none", "null"), ("broken", "bridge")] {
            fake.0.lock().expect("lock").networks.insert(name.into(), network(name, driver));
        }
        let listener = tokio::net::UnixListener::bind(socket).expect("bind");
        let service = NetdServer::new(Service(fake.clone()));
        tokio::spawn(
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener)),
        );
        fake
    }

    /// Networks that a workload has endpoints on.
    pub(crate) fn attached(&self, workload: &str) -> Vec<String> {
        let world = self.0.lock().expect("lock");
        let own = world.endpoints.iter().filter(|endpoint| endpoint.workload_id == workload);
        own.map(|endpoint| endpoint.network_name.clone()).collect()
    }

    pub(crate) fn published(&self) -> Vec<String> {
        self.0.lock().expect("lock").published.clone()
    }

    fn find(&self, name: &str) -> Result<api::Network, Status> {
        let world = self.0.lock().expect("lock");
        let found = world
            .networks
            .values()
            .find(|network| network.id == name || network.spec.as_ref().is_some_and(|spec| spec.name == name));
        found.cloned().ok_or_else(|| Status::not_found(format!("network {name} not found")))
    }
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Netd for Service {
    async fn create_network(&self, request: Request<api::CreateNetworkRequest>) -> Answer<api::CreateNetworkResponse> {
        let spec = request.into_inner();
        let mut made = network(&spec.name, "bridge");
        made.spec = Some(spec.clone());
        let id = made.id.clone();
        self.0.0.lock().expect("lock").networks.insert(spec.name, made);
        Ok(Response::new(api::CreateNetworkResponse { id, warning: String::new() }))
    }

    async fn get_network(&self, request: Request<api::GetNetworkRequest>) -> Answer<api::Network> {
        self.0.find(&request.into_inner().name_or_id).map(Response::new)
    }

    async fn list_networks(&self, _: Request<api::ListNetworksRequest>) -> Answer<api::ListNetworksResponse> {
        let networks = self.0.0.lock().expect("lock").networks.values().cloned().collect();
        Ok(Response::new(api::ListNetworksResponse { networks }))
    }

    async fn remove_network(&self, request: Request<api::RemoveNetworkRequest>) -> Answer<api::RemoveNetworkResponse> {
        let found = self.0.find(&request.into_inner().name_or_id)?;
        let name = found.spec.map(|spec| spec.name).unwrap_or_default();
        self.0.0.lock().expect("lock").networks.remove(&name);
        Ok(Response::new(api::RemoveNetworkResponse { id: found.id, name, driver: "bridge".into() }))
    }

    async fn check_attachment(&self, request: Request<api::AttachRequest>) -> Answer<api::CheckAttachmentResponse> {
        let found = self.0.find(&request.into_inner().network)?;
        let network_name = found.spec.map(|spec| spec.name).unwrap_or_default();
        Ok(Response::new(api::CheckAttachmentResponse {
            backend: found.backend.clone(),
            network_id: found.id,
            network_name,
            ..api::CheckAttachmentResponse::default()
        }))
    }

    async fn attach(&self, request: Request<api::AttachRequest>) -> Answer<api::Endpoint> {
        let request = request.into_inner();
        let found = self.0.find(&request.network)?;
        let name = found.spec.map(|spec| spec.name).unwrap_or_default();
        if name == "broken" {
            return Err(Status::internal("attach to network broken failed at step \"rows\""));
        }
        let mut world = self.0.0.lock().expect("lock");
        world.next += 1;
        let n = world.next;
        let endpoint = api::Endpoint {
            id: format!("{n:064x}"),
            network_id: found.id,
            network_name: name,
            workload_id: request.workload_id,
            workload_name: request.workload_name,
            address_v4: format!("172.18.0.{}/16", n + 1),
            gateway_v4: "172.18.0.1".into(),
            mac: format!("02:00:00:00:00:{n:02x}"),
            ..api::Endpoint::default()
        };
        world.endpoints.push(endpoint.clone());
        Ok(Response::new(endpoint))
    }

    async fn detach(&self, request: Request<api::DetachRequest>) -> Answer<api::DetachResponse> {
        let request = request.into_inner();
        let mut world = self.0.0.lock().expect("lock");
        let before = world.endpoints.len();
        world.endpoints.retain(|endpoint| {
            endpoint.workload_id != request.workload_id
                || endpoint.network_id != request.network && endpoint.network_name != request.network
        });
        if world.endpoints.len() == before {
            return Err(Status::internal("not attached"));
        }
        Ok(Response::new(api::DetachResponse::default()))
    }

    async fn detach_workload(&self, request: Request<api::DetachWorkloadRequest>) -> Answer<api::DetachResponse> {
        let id = request.into_inner().workload_id;
        let mut world = self.0.0.lock().expect("lock");
        world.endpoints.retain(|endpoint| endpoint.workload_id != id);
        world.published.retain(|workload| *workload != id);
        Ok(Response::new(api::DetachResponse::default()))
    }

    async fn list_endpoints(&self, _: Request<api::ListEndpointsRequest>) -> Answer<api::ListEndpointsResponse> {
        let endpoints = self.0.0.lock().expect("lock").endpoints.clone();
        Ok(Response::new(api::ListEndpointsResponse { endpoints }))
    }

    async fn set_names(&self, _: Request<api::SetNamesRequest>) -> Answer<api::SetNamesResponse> {
        Ok(Response::new(api::SetNamesResponse {}))
    }

    async fn publish_ports(&self, request: Request<api::PublishPortsRequest>) -> Answer<api::PublishPortsResponse> {
        let request = request.into_inner();
        if request.bindings.iter().any(|binding| binding.host_port_first == 81) {
            return Err(Status::internal("Bind for 0.0.0.0:81 failed: port is already allocated"));
        }
        self.0.0.lock().expect("lock").published.push(request.workload_id);
        let ports = request.bindings.into_iter().map(|binding| api::PublishedPort {
            protocol: binding.protocol,
            container_port: binding.container_port,
            host_ip: "0.0.0.0".into(),
            host_port: binding.host_port_first,
        });
        Ok(Response::new(api::PublishPortsResponse { ports: ports.collect() }))
    }

    async fn list_published_ports(
        &self,
        _: Request<api::ListPublishedPortsRequest>,
    ) -> Answer<api::PublishPortsResponse> {
        Ok(Response::new(api::PublishPortsResponse::default()))
    }

    async fn sync_attachments(&self, _: Request<api::SyncAttachmentsRequest>) -> Answer<api::SyncAttachmentsResponse> {
        Ok(Response::new(api::SyncAttachmentsResponse::default()))
    }

    type WatchEventsStream = ReceiverStream<Result<api::Event, Status>>;

    async fn watch_events(&self, _: Request<api::WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        Ok(Response::new(ReceiverStream::new(tokio::sync::mpsc::channel(1).1)))
    }

    async fn stop_helper(&self, _: Request<api::StopHelperRequest>) -> Answer<api::StopHelperResponse> {
        Ok(Response::new(api::StopHelperResponse {}))
    }

    async fn get_status(&self, _: Request<api::GetStatusRequest>) -> Answer<api::GetStatusResponse> {
        Ok(Response::new(api::GetStatusResponse::default()))
    }
}
