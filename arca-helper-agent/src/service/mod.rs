// SPDX-License-Identifier: Apache-2.0
//! gRPC `arca.helper.v1`, as arca-netd calls it. Calls become commands of the one engine task; answers and the stream of
//! observations come back as domain types and are put into messages here and nowhere else.

mod convert;
mod engine;
mod host;
#[cfg(test)]
mod live_tests;
mod machine;
mod observe;
mod ports;
mod state;
#[cfg(test)]
mod tests;
mod tools;

use std::pin::Pin;
use std::sync::Arc;

use arca_proto::helper::v1::helper_server::{Helper, HelperServer};
use arca_proto::helper::v1::{self as proto, sync_item};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status, Streaming};

use crate::nb::model::Config;
use crate::nb::observed;
use crate::ovsdb::{self, Database, Monitor};
use crate::parts::Parts;

use convert::{key, message};
use engine::{Command, Engine};
use machine::{Failure, Machine};
use observe::{Observations, news};
use state::{Kind, Put};

/// Objects one Sync may hold: more is a fault of the caller, not a bigger engine.
const MAX_OBJECTS: usize = 100_000;

/// Why a call as a whole failed.
#[derive(Debug, thiserror::Error)]
enum ServiceError {
    #[error("the helper is not configured: call Configure first")]
    NotConfigured,
    #[error("{0}")]
    Invalid(String),
    #[error("sync {epoch} is older than sync {newest}")]
    StaleSync { epoch: u64, newest: u64 },
    #[error("{what}")]
    Machine { what: String, source: Failure },
    #[error("change the northbound database")]
    Database(#[from] ovsdb::Error),
    #[error("the helper agent is ending")]
    Ending,
}

/// The only place where errors become gRPC statuses.
#[allow(clippy::needless_pass_by_value)] // the form `map_err` takes
fn status(error: ServiceError) -> Status {
    let text = ports::chain(&error);
    match error {
        ServiceError::NotConfigured => Status::failed_precondition(text),
        ServiceError::Invalid(_) => Status::invalid_argument(text),
        ServiceError::StaleSync { .. } => Status::aborted(text),
        ServiceError::Machine { .. } => Status::internal(text),
        ServiceError::Database(e) if e.is_disconnect() => Status::unavailable(text),
        ServiceError::Database(_) => Status::internal(text),
        ServiceError::Ending => Status::unavailable(text),
    }
}

/// What the service and the status report look at in the northbound database.
pub fn nb_monitors() -> Vec<Monitor> {
    let mut monitors = observed::monitors();
    monitors.push(Monitor::new("NB_Global", &["options"]));
    monitors
}

/// Starts the engine and makes the service to be served on port 9999. Must be called within a tokio runtime.
pub fn routes(parts: Parts) -> tonic::service::Routes {
    let Parts { nb, ports, uplink, status } = parts;
    let traced = arca_proto::trace::server(ports.clone());
    tonic::service::Routes::new(traced)
        .add_service(HelperServer::new(Service::new(nb, host::Host { ports, uplink, status })))
}

struct Service<M> {
    machine: Arc<M>,
    commands: mpsc::Sender<Command>,
    observations: watch::Receiver<Arc<Observations>>,
}

impl<M: Machine> Service<M> {
    fn new(db: Database, machine: M) -> Self {
        let machine = Arc::new(machine);
        let (commands, queue) = mpsc::channel(256);
        let (publish, observations) = watch::channel(Arc::default());
        Engine::start(db, Arc::clone(&machine), queue, publish);
        Self { machine, commands, observations }
    }

    async fn call<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, ServiceError>>) -> Command,
    ) -> Result<T, ServiceError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| ServiceError::Ending)?;
        answer.await.map_err(|_| ServiceError::Ending)?
    }

    async fn collect(items: &mut Streaming<proto::SyncItem>) -> Result<(u64, Vec<Put>), Status> {
        let invalid = |text: &str| status(ServiceError::Invalid(text.to_owned()));
        let Some(sync_item::Kind::Epoch(epoch)) = items.message().await?.and_then(|i| i.kind) else {
            return Err(invalid("a sync begins with its epoch"));
        };
        let mut objects = Vec::new();
        while let Some(item) = items.message().await? {
            match item.kind {
                Some(sync_item::Kind::Object(object)) if objects.len() < MAX_OBJECTS => {
                    objects.push(Put::new(object).ok_or_else(|| invalid("an object of unknown kind"))?);
                }
                Some(sync_item::Kind::Object(_)) => return Err(invalid("too many objects in one sync")),
                Some(sync_item::Kind::End(_)) => return Ok((epoch, objects)),
                Some(sync_item::Kind::Epoch(_)) => return Err(invalid("a second epoch within one sync")),
                None => return Err(invalid("an item of unknown kind")),
            }
        }
        Err(invalid("the sync broke off before its end: nothing was changed"))
    }
}

#[tonic::async_trait]
impl<M: Machine> Helper for Service<M> {
    type WatchStream = Pin<Box<dyn Stream<Item = Result<proto::Observation, Status>> + Send>>;

    async fn configure(
        &self,
        request: Request<proto::ConfigureRequest>,
    ) -> Result<Response<proto::ConfigureResponse>, Status> {
        let config = Config::try_from(request.into_inner());
        let config = config.map_err(|e| status(ServiceError::Invalid(e.to_string())))?;
        let datapath = self.call(|reply| Command::Configure(Box::new(config), reply)).await.map_err(status)?;
        Ok(Response::new(proto::ConfigureResponse { datapath }))
    }

    async fn apply(&self, request: Request<proto::ApplyRequest>) -> Result<Response<proto::ApplyResponse>, Status> {
        let request = request.into_inner();
        let invalid = |text: &str| status(ServiceError::Invalid(text.to_owned()));
        let put = request.put.into_iter().map(|o| Put::new(o).ok_or_else(|| invalid("an object of unknown kind")));
        let put = put.collect::<Result<Vec<_>, _>>()?;
        let remove = request.remove.into_iter().map(|k| key(k).ok_or_else(|| invalid("a key of unknown kind")));
        let remove = remove.collect::<Result<Vec<_>, _>>()?;
        let observations = self.call(|reply| Command::Apply { put, remove, reply }).await.map_err(status)?;
        Ok(Response::new(proto::ApplyResponse { observations: observations.iter().map(|o| message(o)).collect() }))
    }

    async fn sync(
        &self,
        request: Request<Streaming<proto::SyncItem>>,
    ) -> Result<Response<proto::SyncResponse>, Status> {
        let (epoch, objects) = Self::collect(&mut request.into_inner()).await?;
        let synced = self.call(|reply| Command::Sync { epoch, objects, reply }).await;
        let (counts, observations) = synced.map_err(status)?;
        Ok(Response::new(proto::SyncResponse {
            rows_inserted: counts.inserted,
            rows_updated: counts.updated,
            rows_deleted: counts.deleted,
            observations: observations.iter().map(|o| message(o)).collect(),
        }))
    }

    async fn watch(&self, _: Request<proto::WatchRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let mut observations = self.observations.clone();
        let (send, stream) = mpsc::channel(64);
        tokio::spawn(async move {
            let mut told = Arc::<Observations>::default();
            loop {
                let now = Arc::clone(&observations.borrow_and_update());
                for observation in news(&told, &now) {
                    if send.send(message(&observation)).await.is_err() {
                        return;
                    }
                }
                told = now;
                tokio::select! {
                    // Cancel-safe: the version is marked as seen above only.
                    changed = observations.changed() => if changed.is_err() { return },
                    // Cancel-safe: only tells that the caller has gone.
                    () = send.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream).map(Ok))))
    }

    async fn get_status(
        &self,
        _: Request<proto::GetStatusRequest>,
    ) -> Result<Response<proto::GetStatusResponse>, Status> {
        let mut report = self.machine.status().await;
        let observations = Arc::clone(&self.observations.borrow());
        let count = |kind| observations.keys().filter(|k| k.kind == kind).count() as u64;
        report.networks = count(Kind::Network);
        report.endpoints = count(Kind::Endpoint);
        report.published_ports = count(Kind::PublishedPort);
        Ok(Response::new(report))
    }

    type ExecStream = Pin<Box<dyn Stream<Item = Result<proto::ExecOutput, Status>> + Send>>;

    async fn exec(&self, request: Request<proto::ExecRequest>) -> Result<Response<Self::ExecStream>, Status> {
        let proto::ExecRequest { words, stdin } = request.into_inner();
        let (output, stream) = mpsc::channel(16);
        tools::run(&words, stdin, output).map_err(|error| {
            let text = ports::chain(&error);
            match error {
                tools::ToolError::Unknown(..) => Status::invalid_argument(text),
                tools::ToolError::Start(..) => Status::internal(text),
            }
        })?;
        Ok(Response::new(Box::pin(ReceiverStream::new(stream).map(Ok))))
    }

    async fn list_ports(
        &self,
        _: Request<proto::ListPortsRequest>,
    ) -> Result<Response<proto::ListPortsResponse>, Status> {
        Ok(Response::new(proto::ListPortsResponse { ports: self.machine.list().await }))
    }
}
