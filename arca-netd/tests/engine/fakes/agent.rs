// SPDX-License-Identifier: Apache-2.0
//! arca-helper-agent with an NB database in memory: allocates first-fit, counts rows it changes.

use std::{
    collections::BTreeMap,
    pin::Pin,
    sync::{Arc, Mutex},
};

use arca_proto::helper::v1::{self as proto, helper_server::*, object::Kind, sync_item};
use futures_util::Stream;
use ipnet::Ipv4Net;
use tokio::sync::broadcast;
use tokio_stream::{StreamExt as _, wrappers::BroadcastStream};
use tonic::{Request, Response, Status, Streaming, service::Routes};

use super::{Breaks, Hiccup};

#[derive(Clone, Debug)]
pub(crate) struct FakeAgent(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    breaks: Breaks,
    hiccup: Hiccup,
    nb: Mutex<Nb>,
    news: broadcast::Sender<proto::Observation>,
}

#[derive(Debug, Default)]
struct Nb {
    objects: BTreeMap<(i32, String), proto::Object>,
    addresses: BTreeMap<String, Ipv4Net>,
    /// Generations of what was withdrawn since the last full set: what comes late does not bring it back.
    gone: BTreeMap<(i32, String), u64>,
    epoch: u64,
    configured: Vec<proto::ConfigureRequest>,
    changed: u64,
    syncs: u64,
    from_above: bool,
}

fn key_of(object: &proto::Object) -> (i32, String) {
    match object.kind.as_ref().unwrap() {
        Kind::Network(n) => (proto::ObjectKind::Network.into(), n.id.clone()),
        Kind::Endpoint(e) => (proto::ObjectKind::Endpoint.into(), e.id.clone()),
        Kind::PublishedPort(p) => (proto::ObjectKind::PublishedPort.into(), p.id.clone()),
    }
}

impl Nb {
    fn of(&self, kind: proto::ObjectKind) -> impl Iterator<Item = &proto::Object> {
        let kind: i32 = kind.into();
        self.objects.iter().filter(move |((k, _), _)| *k == kind).map(|(_, object)| object)
    }

    fn put(&mut self, object: &proto::Object, breaks: Option<&str>) -> proto::Observation {
        let key = key_of(object);
        let known = self.objects.get(&key);
        if known.is_some_and(|known| known.generation > object.generation) {
            return self.observe(&key, breaks);
        }
        if self.gone.get(&key).is_some_and(|gone| *gone >= object.generation) {
            return self.observe(&key, breaks);
        }
        if let Some(refused) = self.clash(object) {
            return refused;
        }
        if known.is_none_or(|known| known.kind != object.kind) {
            self.changed += 1;
        }
        self.objects.insert(key.clone(), object.clone());
        if let Some(Kind::Endpoint(endpoint)) = &object.kind {
            self.allocate(endpoint);
        }
        self.observe(&key, breaks)
    }

    /// Neither OVSDB nor OVN would refuse an address twice; the agent does.
    fn clash(&self, object: &proto::Object) -> Option<proto::Observation> {
        let Some(Kind::Endpoint(endpoint)) = &object.kind else { return None };
        let fixed: std::net::Ipv4Addr = endpoint.static_v4.parse().ok()?;
        self.addresses.iter().find(|(id, net)| **id != endpoint.id && net.addr() == fixed)?;
        let (kind, id) = key_of(object);
        Some(proto::Observation {
            key: Some(proto::ObjectKey { kind, id, generation: object.generation }),
            error: "Address already in use".into(),
            error_kind: proto::ErrorKind::AddressInUse.into(),
            ..Default::default()
        })
    }

    fn allocate(&mut self, endpoint: &proto::Endpoint) {
        let network = self.of(proto::ObjectKind::Network).find_map(|object| match object.kind.as_ref() {
            Some(Kind::Network(network)) if network.id == endpoint.network_id => Some(network.clone()),
            _ => None,
        });
        let Some(network) = network else { return };
        let subnet: Ipv4Net = network.subnet_v4.parse().unwrap();
        if let Ok(fixed) = endpoint.static_v4.parse() {
            self.addresses.insert(endpoint.id.clone(), Ipv4Net::new_assert(fixed, subnet.prefix_len()));
        } else if !self.addresses.contains_key(&endpoint.id) {
            let hosts = subnet.hosts().filter(|host| {
                host.to_string() != network.gateway_v4 && !self.addresses.values().any(|net| net.addr() == *host)
            });
            let free = if self.from_above { hosts.take(4).last() } else { hosts.take(1).last() };
            if let Some(free) = free {
                self.addresses.insert(endpoint.id.clone(), Ipv4Net::new_assert(free, subnet.prefix_len()));
            }
        }
    }

    fn remove(&mut self, key: &proto::ObjectKey) {
        let id = (key.kind, key.id.clone());
        if self.objects.get(&id).is_some_and(|known| known.generation > key.generation) {
            return;
        }
        let newest = self.gone.entry(id.clone()).or_default();
        *newest = key.generation.max(*newest);
        if self.objects.remove(&id).is_some() {
            self.addresses.remove(&key.id);
            self.changed += 1;
        }
    }

    fn observe(&self, key: &(i32, String), breaks: Option<&str>) -> proto::Observation {
        let object = self.objects.get(key);
        let endpoint = key.0 == i32::from(proto::ObjectKind::Endpoint);
        let address = self.addresses.get(&key.1).filter(|_| breaks != Some("address"));
        let error_kind = match breaks {
            Some("rows") => proto::ErrorKind::Internal,
            Some("taken") => proto::ErrorKind::AddressInUse,
            _ if endpoint && object.is_some() && address.is_none() => proto::ErrorKind::PoolExhausted,
            _ => proto::ErrorKind::Unspecified,
        };
        let failed = endpoint && error_kind != proto::ErrorKind::Unspecified;
        proto::Observation {
            key: Some(proto::ObjectKey {
                kind: key.0,
                id: key.1.clone(),
                generation: object.map_or(0, |object| object.generation),
            }),
            address_v4: address.map(ToString::to_string).unwrap_or_default(),
            address_v6: String::new(),
            up: address.is_some() && breaks != Some("up"),
            error: if failed { "the fake refuses".into() } else { String::new() },
            removed: object.is_none(),
            error_kind: if failed { error_kind.into() } else { 0 },
        }
    }
}

impl FakeAgent {
    pub(crate) fn new(breaks: Breaks) -> Self {
        let news = broadcast::Sender::new(1024);
        Self(Arc::new(Inner { breaks, hiccup: Hiccup::default(), nb: Mutex::default(), news }))
    }

    pub(crate) fn routes(&self) -> Routes {
        Routes::new(HelperServer::new(self.clone()))
    }

    /// The next so many changes are not answered.
    pub(crate) fn hiccup(&self, calls: u32) {
        self.0.hiccup.set(calls);
    }

    fn breaks(&self) -> Option<&'static str> {
        *self.0.breaks.lock().unwrap()
    }

    pub(crate) fn endpoints(&self) -> usize {
        self.0.nb.lock().unwrap().of(proto::ObjectKind::Endpoint).count()
    }

    pub(crate) fn networks(&self) -> usize {
        self.0.nb.lock().unwrap().of(proto::ObjectKind::Network).count()
    }

    pub(crate) fn ports(&self) -> Vec<proto::PublishedPort> {
        let nb = self.0.nb.lock().unwrap();
        let port = |object: &proto::Object| match object.kind.clone() {
            Some(Kind::PublishedPort(port)) => Some(port),
            _ => None,
        };
        nb.of(proto::ObjectKind::PublishedPort).filter_map(port).collect()
    }

    pub(crate) fn endpoint(&self, id: &str) -> proto::Endpoint {
        let nb = self.0.nb.lock().unwrap();
        match nb.objects[&(proto::ObjectKind::Endpoint.into(), id.to_owned())].kind.clone() {
            Some(Kind::Endpoint(endpoint)) => endpoint,
            other => panic!("no endpoint: {other:?}"),
        }
    }

    pub(crate) fn address(&self, id: &str) -> Option<Ipv4Net> {
        self.0.nb.lock().unwrap().addresses.get(id).copied()
    }

    pub(crate) fn changed(&self) -> u64 {
        self.0.nb.lock().unwrap().changed
    }

    pub(crate) fn syncs(&self) -> u64 {
        self.0.nb.lock().unwrap().syncs
    }

    pub(crate) fn configured(&self) -> Vec<proto::ConfigureRequest> {
        self.0.nb.lock().unwrap().configured.clone()
    }

    /// The NB database is lost.
    pub(crate) fn wipe(&self) {
        let mut nb = self.0.nb.lock().unwrap();
        nb.from_above = true;
        nb.gone.clear();
        nb.objects.clear();
        nb.addresses.clear();
    }
}

type Observations = Pin<Box<dyn Stream<Item = Result<proto::Observation, Status>> + Send>>;

#[tonic::async_trait]
impl Helper for FakeAgent {
    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        self.0.nb.lock().unwrap().configured.push(request.into_inner());
        Ok(Response::new(proto::ConfigureResponse { datapath: "netdev".into() }))
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyResponse>, Status> {
        self.0.hiccup.check()?;
        let request = request.into_inner();
        let breaks = self.breaks();
        let mut nb = self.0.nb.lock().unwrap();
        request.remove.iter().for_each(|key| nb.remove(key));
        let observations: Vec<_> = request.put.iter().map(|object| nb.put(object, breaks)).collect();
        // The answer says the rows are there; addresses come by the watch, as OVN's do.
        let answer =
            observations.iter().cloned().map(|o| proto::Observation { address_v4: String::new(), up: false, ..o }).map(
                |o| match o.error_kind() {
                    proto::ErrorKind::PoolExhausted => proto::Observation { error: String::new(), error_kind: 0, ..o },
                    _ => o,
                },
            );
        let answer = answer.collect();
        let agent = self.clone();
        tokio::spawn(async move {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
            for observation in observations.into_iter().filter(|_| breaks != Some("address")) {
                let _ = agent.0.news.send(observation);
            }
        });
        Ok(Response::new(proto::ApplyResponse { observations: answer }))
    }

    async fn sync(
        &self,
        request: Request<Streaming<proto::SyncItem>>,
    ) -> Result<Response<proto::SyncResponse>, Status> {
        let mut items = request.into_inner();
        let mut wanted = Vec::new();
        let mut ended = false;
        let mut epoch = 0;
        while let Some(item) = items.message().await? {
            match item.kind.unwrap() {
                sync_item::Kind::Epoch(sent) => epoch = sent,
                sync_item::Kind::Object(object) => wanted.push(object),
                sync_item::Kind::End(_) => ended = true,
            }
        }
        assert!(ended, "a sync ends with its end");
        let mut nb = self.0.nb.lock().unwrap();
        if epoch < nb.epoch {
            return Err(Status::failed_precondition("a later full set was taken already"));
        }
        nb.epoch = epoch;
        nb.gone.clear();
        nb.syncs += 1;
        let keys: Vec<_> = wanted.iter().map(key_of).collect();
        let unknown: Vec<_> = nb.objects.keys().filter(|key| !keys.contains(key)).cloned().collect();
        for key in unknown {
            nb.objects.remove(&key);
            nb.addresses.remove(&key.1);
            nb.changed += 1;
        }
        let observations = wanted.iter().map(|object| nb.put(object, None)).collect();
        Ok(Response::new(proto::SyncResponse { observations, ..Default::default() }))
    }

    type WatchStream = Observations;

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Observations>, Status> {
        let news = BroadcastStream::new(self.0.news.subscribe()).filter_map(Result::ok);
        let nb = self.0.nb.lock().unwrap();
        let first: Vec<_> = nb.objects.keys().map(|key| nb.observe(key, None)).collect();
        Ok(Response::new(Box::pin(tokio_stream::iter(first).chain(news).map(Ok))))
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let endpoints = self.endpoints() as u64;
        Ok(Response::new(proto::GetStatusResponse { endpoints, ..Default::default() }))
    }

    type ExecStream = Pin<Box<dyn Stream<Item = Result<proto::ExecOutput, Status>> + Send>>;

    async fn exec(&self, _: Request<proto::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }

    async fn list_ports(
        &self,
        _: Request<proto::ListPortsRequest>,
    ) -> Result<Response<proto::ListPortsResponse>, Status> {
        Err(Status::unimplemented("not in this fake"))
    }
}
