// SPDX-License-Identifier: Apache-2.0
//! arca-tapfwd: confirms an attachment once its link was opened.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use arca_proto::{
    relay::v1::Link,
    tap::v1::{self as proto, attach_progress::Step, tap_server::*},
};
use futures_util::Stream;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, service::Routes};

use super::{Breaks, Hiccup};

#[derive(Clone, Debug)]
pub(crate) struct FakeTap {
    breaks: Breaks,
    hiccup: Arc<Hiccup>,
    links: watch::Receiver<BTreeMap<u32, Link>>,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Default)]
struct State {
    interfaces: BTreeMap<u32, proto::AttachNetworkRequest>,
    configured: Vec<proto::ConfigureRequest>,
    extras: Vec<proto::SetInterfaceRequest>,
}

impl FakeTap {
    pub(crate) fn new(breaks: Breaks, links: watch::Receiver<BTreeMap<u32, Link>>) -> Self {
        Self { breaks, hiccup: Arc::default(), links, state: Arc::default() }
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(TapServer::new(self.clone()))
    }

    /// The next so many changes are not answered.
    pub(crate) fn hiccup(&self, calls: u32) {
        self.hiccup.set(calls);
    }

    pub(crate) fn interfaces(&self) -> Vec<proto::AttachNetworkRequest> {
        self.state.lock().unwrap().interfaces.values().cloned().collect()
    }

    /// (default route link, resolver) as set last.
    pub(crate) fn configured(&self) -> (u32, String) {
        let state = self.state.lock().unwrap();
        state.configured.last().map(|c| (c.default_route_link, c.resolver_v4.clone())).unwrap_or_default()
    }

    /// What was set on interfaces beside the attachments.
    pub(crate) fn extras(&self) -> Vec<proto::SetInterfaceRequest> {
        self.state.lock().unwrap().extras.clone()
    }

    pub(crate) fn configures(&self) -> usize {
        self.state.lock().unwrap().configured.len()
    }
}

type Progress = Pin<Box<dyn Stream<Item = Result<proto::AttachProgress, Status>> + Send>>;

#[tonic::async_trait]
impl Tap for FakeTap {
    type AttachNetworkStream = Progress;

    async fn attach_network(
        &self,
        request: Request<proto::AttachNetworkRequest>,
    ) -> Result<Response<Progress>, Status> {
        self.hiccup.check()?;
        let request = request.into_inner();
        let breaks = *self.breaks.lock().unwrap();
        if breaks == Some("interface") {
            return Err(Status::internal("no TUN"));
        }
        let link = request.link;
        self.state.lock().unwrap().interfaces.insert(link, request);
        let (steps, progress) = mpsc::channel(4);
        let (mut links, state) = (self.links.clone(), Arc::clone(&self.state));
        let step = |step: Step| Ok(proto::AttachProgress { step: step.into(), lease: None });
        tokio::spawn(async move {
            let _ = steps.send(step(Step::Listening)).await;
            let opened = tokio::select! {
                opened = links.wait_for(|links| links.contains_key(&link)) => opened.is_ok(),
                () = steps.closed() => false,
            };
            if opened && breaks != Some("confirm") {
                let _ = steps.send(step(Step::Linked)).await;
                let _ = steps.send(step(Step::Confirmed)).await;
            } else {
                state.lock().unwrap().interfaces.remove(&link);
                let _ = steps.send(Err(Status::aborted("DHCP: no answer from the server"))).await;
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(progress))))
    }

    async fn detach_network(
        &self,
        request: Request<proto::DetachNetworkRequest>,
    ) -> Result<Response<proto::DetachNetworkResponse>, Status> {
        self.hiccup.check()?;
        self.state.lock().unwrap().interfaces.remove(&request.into_inner().link);
        Ok(Response::new(proto::DetachNetworkResponse {}))
    }

    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        self.hiccup.check()?;
        if *self.breaks.lock().unwrap() == Some("default route") {
            return Err(Status::internal("RTNETLINK answers: File exists"));
        }
        self.state.lock().unwrap().configured.push(request.into_inner());
        Ok(Response::new(proto::ConfigureResponse {}))
    }

    async fn set_interface(
        &self,
        request: Request<proto::SetInterfaceRequest>,
    ) -> Result<Response<proto::SetInterfaceResponse>, Status> {
        self.state.lock().unwrap().extras.push(request.into_inner());
        Ok(Response::new(proto::SetInterfaceResponse {}))
    }

    async fn list_interfaces(
        &self,
        _: Request<proto::ListInterfacesRequest>,
    ) -> Result<Response<proto::ListInterfacesResponse>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }
}
