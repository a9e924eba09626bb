// SPDX-License-Identifier: Apache-2.0
//! arca-relayd: holds links and listeners in memory, counts what it is asked.

use std::{
    collections::{BTreeMap, BTreeSet},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use arca_proto::relay::v1::{self as proto, relay_server::*};
use futures_util::Stream;
use tokio::sync::{broadcast, watch};
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, service::Routes};

use super::{Breaks, Hiccup};

#[derive(Clone, Debug)]
pub(crate) struct FakeRelay(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    breaks: Breaks,
    hiccup: Hiccup,
    links: watch::Sender<BTreeMap<u32, proto::Link>>,
    listeners: Mutex<BTreeMap<String, proto::Publication>>,
    news: broadcast::Sender<proto::Link>,
    /// Requests that changed something, in order.
    log: Mutex<Vec<String>>,
    /// Host ports held by programs outside Arca.
    foreign: Mutex<BTreeSet<u32>>,
    /// Comparisons made.
    lists: AtomicU64,
}

impl FakeRelay {
    pub(crate) fn new(breaks: Breaks) -> Self {
        Self(Arc::new(Inner {
            breaks,
            hiccup: Hiccup::default(),
            links: watch::Sender::default(),
            listeners: Mutex::default(),
            news: broadcast::Sender::new(1024),
            log: Mutex::default(),
            foreign: Mutex::default(),
            lists: AtomicU64::new(0),
        }))
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(RelayServer::new(self.clone()))
    }

    pub(crate) fn opened(&self) -> watch::Receiver<BTreeMap<u32, proto::Link>> {
        self.0.links.subscribe()
    }

    /// The next so many changes are not answered.
    pub(crate) fn hiccup(&self, calls: u32) {
        self.0.hiccup.set(calls);
    }

    pub(crate) fn links(&self) -> Vec<u32> {
        self.0.links.borrow().keys().copied().collect()
    }

    pub(crate) fn listeners(&self) -> Vec<(String, u32)> {
        let listeners = self.0.listeners.lock().unwrap();
        let mut all: Vec<_> =
            listeners.values().map(|p| (p.request.as_ref().unwrap().host_ip.clone(), p.host_port)).collect();
        all.sort();
        all
    }

    pub(crate) fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.log.lock().unwrap())
    }

    pub(crate) fn lists(&self) -> u64 {
        self.0.lists.load(Ordering::Relaxed)
    }

    pub(crate) fn occupy(&self, port: u32) {
        self.0.foreign.lock().unwrap().insert(port);
    }

    /// What a restart forgets.
    pub(crate) fn forget(&self) {
        self.0.links.send_modify(BTreeMap::clear);
        self.0.listeners.lock().unwrap().clear();
    }

    fn log(&self, text: String) {
        self.0.log.lock().unwrap().push(text);
    }
}

type Links = Pin<Box<dyn Stream<Item = Result<proto::Link, Status>> + Send>>;

#[tonic::async_trait]
impl Relay for FakeRelay {
    async fn open_link(&self, request: Request<proto::OpenLinkRequest>) -> Result<Response<proto::Link>, Status> {
        self.0.hiccup.check()?;
        let request = request.into_inner();
        if *self.0.breaks.lock().unwrap() == Some("link") {
            return Err(Status::deadline_exceeded("the container end refused"));
        }
        self.log(format!("open {}", request.link));
        let link = proto::Link {
            link: request.link,
            carrier: request.carrier,
            state: proto::link::State::Up.into(),
            container: request.container,
            helper: request.helper,
            ..Default::default()
        };
        self.0.links.send_modify(|links| drop(links.insert(link.link, link.clone())));
        let _ = self.0.news.send(link.clone());
        Ok(Response::new(link))
    }

    async fn close_link(
        &self,
        request: Request<proto::CloseLinkRequest>,
    ) -> Result<Response<proto::CloseLinkResponse>, Status> {
        self.0.hiccup.check()?;
        let link = request.into_inner().link;
        let mut known = false;
        self.0.links.send_modify(|links| known = links.remove(&link).is_some());
        if known {
            self.log(format!("close {link}"));
        }
        Ok(Response::new(proto::CloseLinkResponse {}))
    }

    async fn list_links(
        &self,
        _: Request<proto::ListLinksRequest>,
    ) -> Result<Response<proto::ListLinksResponse>, Status> {
        let links = self.0.links.borrow().values().cloned().collect();
        Ok(Response::new(proto::ListLinksResponse { links }))
    }

    type WatchLinksStream = Links;

    async fn watch_links(&self, _: Request<proto::WatchLinksRequest>) -> Result<Response<Links>, Status> {
        let news = BroadcastStream::new(self.0.news.subscribe()).filter_map(Result::ok);
        let first: Vec<_> = self.0.links.borrow().values().cloned().collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(news).map(Ok))))
    }

    async fn publish(&self, request: Request<proto::PublishRequest>) -> Result<Response<proto::Publication>, Status> {
        self.0.hiccup.check()?;
        let request = request.into_inner();
        if request.host_ip == "203.0.113.9" {
            return Err(Status::invalid_argument("cannot assign requested address"));
        }
        if self.0.foreign.lock().unwrap().contains(&request.host_port) {
            return Err(Status::already_exists("address already in use"));
        }
        self.log(format!("publish {}:{}", request.host_ip, request.host_port));
        let publication =
            proto::Publication { host_port: request.host_port, request: Some(request.clone()), ..Default::default() };
        self.0.listeners.lock().unwrap().insert(request.id, publication.clone());
        Ok(Response::new(publication))
    }

    async fn unpublish(
        &self,
        request: Request<proto::UnpublishRequest>,
    ) -> Result<Response<proto::UnpublishResponse>, Status> {
        self.0.hiccup.check()?;
        match self.0.listeners.lock().unwrap().remove(&request.into_inner().id) {
            Some(gone) => self.log(format!("unpublish {}", gone.host_port)),
            None => return Err(Status::not_found("no such publication")),
        }
        Ok(Response::new(proto::UnpublishResponse {}))
    }

    async fn list_publications(
        &self,
        _: Request<proto::ListPublicationsRequest>,
    ) -> Result<Response<proto::ListPublicationsResponse>, Status> {
        self.0.lists.fetch_add(1, Ordering::Relaxed);
        let publications = self.0.listeners.lock().unwrap().values().cloned().collect();
        Ok(Response::new(proto::ListPublicationsResponse { publications }))
    }
}
