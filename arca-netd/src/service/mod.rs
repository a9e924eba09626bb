// SPDX-License-Identifier: Apache-2.0
//! gRPC `arca.netd.v1`: wire types in, engine calls, wire types out. Nothing is decided here.

mod convert;
pub mod status;

use std::{pin::Pin, sync::Arc};

use arca_proto::netd::v1::{self as proto, netd_server::Netd};
use futures_util::Stream;
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tonic::{Request, Response, Status};

use crate::{engine::Engine, error::Error};
use convert::View;
use status::status;

/// Full name, for health.
pub const NAME: &str = "arca.netd.v1.Netd";

/// The service.
#[derive(Clone)]
pub struct Service(Arc<Engine>);

impl Service {
    /// Over an engine.
    #[must_use]
    pub fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    fn view(&self) -> View<'_> {
        View::new(&self.0)
    }
}

type Answer<T> = Result<Response<T>, Status>;

fn answer<T>(result: Result<T, Error>) -> Answer<T> {
    result.map(Response::new).map_err(status)
}

#[tonic::async_trait]
impl Netd for Service {
    async fn create_network(
        &self,
        request: Request<proto::CreateNetworkRequest>,
    ) -> Answer<proto::CreateNetworkResponse> {
        let created = self.0.create_network(convert::spec(request.into_inner())).await;
        answer(created.map(|id| proto::CreateNetworkResponse { id: id.into(), warning: String::new() }))
    }

    async fn get_network(&self, request: Request<proto::GetNetworkRequest>) -> Answer<proto::Network> {
        let view = self.view();
        answer(view.state.find_network(&request.into_inner().name_or_id).map(|network| view.network(network)))
    }

    async fn list_networks(&self, _: Request<proto::ListNetworksRequest>) -> Answer<proto::ListNetworksResponse> {
        let view = self.view();
        let networks = view.state.networks.values().map(|network| view.network(network)).collect();
        answer(Ok(proto::ListNetworksResponse { networks }))
    }

    async fn remove_network(
        &self,
        request: Request<proto::RemoveNetworkRequest>,
    ) -> Answer<proto::RemoveNetworkResponse> {
        let removed = self.0.remove_network(request.into_inner().name_or_id).await;
        answer(removed.map(|network| proto::RemoveNetworkResponse {
            id: network.id.to_string(),
            name: network.name().to_owned(),
            driver: network.spec.driver.clone(),
        }))
    }

    async fn check_attachment(&self, request: Request<proto::AttachRequest>) -> Answer<proto::CheckAttachmentResponse> {
        let wanted = convert::wanted(request.into_inner()).map_err(status)?;
        let workload = wanted.workload.clone();
        let checked = self.0.check_attachment(&wanted);
        answer(checked.map(|network| proto::CheckAttachmentResponse {
            network_id: network.id.to_string(),
            network_name: network.name().to_owned(),
            backend: network.backend().to_owned(),
            wire: self.0.wire(&network, &workload),
            mtu: network.mtu,
        }))
    }

    async fn attach(&self, request: Request<proto::AttachRequest>) -> Answer<proto::Endpoint> {
        let wanted = convert::wanted(request.into_inner()).map_err(status)?;
        answer(self.0.attach(wanted).await.map(|endpoint| self.view().endpoint(&endpoint)))
    }

    async fn detach(&self, request: Request<proto::DetachRequest>) -> Answer<proto::DetachResponse> {
        let request = request.into_inner();
        let workload = convert::workload(request.workload_id).map_err(status)?;
        // Shown as it was: afterwards there is no default route of it left to tell.
        let view = self.view();
        let removed = self.0.detach(request.network, workload).await;
        answer(removed.map(|endpoint| proto::DetachResponse { removed: vec![view.endpoint(&endpoint)] }))
    }

    async fn detach_workload(&self, request: Request<proto::DetachWorkloadRequest>) -> Answer<proto::DetachResponse> {
        let workload = convert::workload(request.into_inner().workload_id).map_err(status)?;
        let view = self.view();
        let removed = self.0.detach_workload(workload).await;
        answer(removed.map(|removed| proto::DetachResponse { removed: view.endpoints(&removed) }))
    }

    async fn list_endpoints(
        &self,
        request: Request<proto::ListEndpointsRequest>,
    ) -> Answer<proto::ListEndpointsResponse> {
        let wanted = request.into_inner().workload_id;
        let view = self.view();
        let all = view.state.endpoints.values().filter(|e| wanted.is_empty() || e.workload.as_str() == wanted);
        answer(Ok(proto::ListEndpointsResponse { endpoints: view.active(all) }))
    }

    async fn set_names(&self, request: Request<proto::SetNamesRequest>) -> Answer<proto::SetNamesResponse> {
        let request = request.into_inner();
        let workload = convert::workload(request.workload_id).map_err(status)?;
        answer(self.0.set_names(workload, request.workload_name).await.map(|()| proto::SetNamesResponse {}))
    }

    async fn publish_ports(&self, request: Request<proto::PublishPortsRequest>) -> Answer<proto::PublishPortsResponse> {
        let request = request.into_inner();
        let workload = convert::workload(request.workload_id).map_err(status)?;
        let bindings: Result<Vec<_>, _> = request.bindings.iter().map(convert::binding).collect();
        let published = self.0.publish(workload, bindings.map_err(status)?).await;
        answer(published.map(|publications| proto::PublishPortsResponse {
            ports: publications.iter().flat_map(|publication| convert::ports(publication)).collect(),
        }))
    }

    async fn list_published_ports(
        &self,
        request: Request<proto::ListPublishedPortsRequest>,
    ) -> Answer<proto::PublishPortsResponse> {
        let workload = convert::workload(request.into_inner().workload_id).map_err(status)?;
        let state = self.0.state();
        let own = state.publications.values().filter(|publication| publication.workload == workload);
        answer(Ok(proto::PublishPortsResponse {
            ports: own.flat_map(|publication| convert::ports(publication)).collect(),
        }))
    }

    async fn sync_attachments(
        &self,
        request: Request<proto::SyncAttachmentsRequest>,
    ) -> Answer<proto::SyncAttachmentsResponse> {
        let keep: Result<std::collections::BTreeSet<_>, _> =
            request.into_inner().workload_ids.into_iter().map(convert::workload).collect();
        let before = self.view();
        let removed = self.0.sync_attachments(keep.map_err(status)?).await.map_err(status)?;
        let view = self.view();
        let endpoints = view.active(view.state.endpoints.values());
        answer(Ok(proto::SyncAttachmentsResponse { endpoints, removed: before.endpoints(&removed) }))
    }

    type WatchEventsStream = Pin<Box<dyn Stream<Item = Result<proto::Event, Status>> + Send>>;

    async fn watch_events(&self, _: Request<proto::WatchEventsRequest>) -> Answer<Self::WatchEventsStream> {
        let events = BroadcastStream::new(self.0.subscribe()).map(|event| match event {
            Ok(event) => Ok(convert::event(event)),
            Err(lagged) => Err(Status::data_loss(format!("the watcher was too slow: {lagged}"))),
        });
        answer(Ok(Box::pin(events)))
    }

    async fn get_status(&self, _: Request<proto::GetStatusRequest>) -> Answer<proto::GetStatusResponse> {
        let state = self.0.state();
        let helper = &self.0.helper;
        let uplink = helper.uplink();
        answer(Ok(proto::GetStatusResponse {
            version: env!("CARGO_PKG_VERSION").into(),
            networks: state.networks.len() as u64,
            endpoints: state.endpoints.len() as u64,
            helper_state: match helper.state_text() {
                up if up == "up" && !self.0.agent.is_ready() => "starting".into(),
                text => text,
            },
            helper_boot_ms: helper.boot_ms(),
            helper: helper.current().map(|up| up.address.into()),
            router_address: uplink.router().to_string(),
            host_uplink: uplink.host().to_string(),
        }))
    }

    async fn stop_helper(&self, _: Request<proto::StopHelperRequest>) -> Answer<proto::StopHelperResponse> {
        answer(self.0.stop_helper().await.map(|()| proto::StopHelperResponse {}))
    }
}
