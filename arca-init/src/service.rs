// SPDX-License-Identifier: Apache-2.0
//! `arca.init.v1` over [`Workloads`]: the RPC layer, where proto types stop.

use std::{pin::Pin, sync::Arc, time::Duration};

use arca_daemon::shutdown::Trigger;
use arca_proto::init::v1::{
    AttachInput, AttachOpen, AttachOutput, ConfigureInterfaceRequest, ConfigureInterfaceResponse,
    CreateWorkloadRequest, CreateWorkloadResponse, DeleteWorkloadRequest, DeleteWorkloadResponse, ExecRequest,
    ExecResponse, GetMachineRequest, GetMachineResponse, PauseRequest, PauseResponse, ProcessRef, ResizeRequest,
    ResizeResponse, ShutdownRequest, ShutdownResponse, SignalRequest, SignalResponse, StartWorkloadRequest,
    StartWorkloadResponse, StatsRequest, StatsResponse, UpdateWorkloadRequest, UpdateWorkloadResponse, WaitRequest,
    WaitResponse, WatchWorkloadsRequest, WorkloadStatus, attach_input::Kind, init_server::Init,
};
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use crate::{error::InitError, interface::Interface, process::Process, workload::Workload, workloads::Workloads};

/// The service.
#[derive(Debug)]
pub(crate) struct Service {
    pub(crate) machine_id: String,
    pub(crate) workloads: Arc<Workloads>,
    /// How a virtual machine's own interface is set up.
    pub(crate) interface: Interface,
    /// Fired with the workloads gone: the process ends.
    pub(crate) end: Trigger,
}

fn status(error: &InitError) -> Status {
    let text = error.to_string();
    match error {
        InitError::NoSuchWorkload(_) | InitError::NoSuchExec(_) | InitError::NotFound(_) => Status::not_found(text),
        InitError::Exists { .. } => Status::already_exists(text),
        InitError::Invalid(_) => Status::invalid_argument(text),
        InitError::Denied(_) => Status::permission_denied(text),
        InitError::State { .. } | InitError::Runtime(_) => Status::failed_precondition(text),
        InitError::RuntimeMissing { .. } => Status::unavailable(text),
        InitError::File { .. } | InitError::Leftovers { .. } => Status::internal(text),
    }
}

impl Service {
    fn process(&self, process: Option<ProcessRef>) -> Result<(Arc<Workload>, Arc<Process>, bool), Status> {
        let process = process.ok_or_else(|| Status::invalid_argument("process is missing"))?;
        let workload = self.workloads.find(&process.workload_id).map_err(|e| status(&e))?;
        let found = workload.find(&process.exec_id).map_err(|e| status(&e))?;
        Ok((workload, found, !process.exec_id.is_empty()))
    }
}

type Answer<T> = Result<Response<T>, Status>;
type BoxStream<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl Init for Service {
    type AttachStream = BoxStream<AttachOutput>;
    type WatchWorkloadsStream = BoxStream<WorkloadStatus>;

    async fn get_machine(&self, _: Request<GetMachineRequest>) -> Answer<GetMachineResponse> {
        Ok(Response::new(GetMachineResponse {
            machine_id: self.machine_id.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            workloads: self.workloads.all().iter().map(|workload| workload.status()).collect(),
        }))
    }

    async fn create_workload(&self, request: Request<CreateWorkloadRequest>) -> Answer<CreateWorkloadResponse> {
        let workloads = Arc::clone(&self.workloads);
        // A caller that goes away must not leave a half-made container: the work goes on without it.
        let pid = finish(async move { workloads.create(request.into_inner()).await }).await?;
        Ok(Response::new(CreateWorkloadResponse { pid }))
    }

    async fn start_workload(&self, request: Request<StartWorkloadRequest>) -> Answer<StartWorkloadResponse> {
        let workloads = Arc::clone(&self.workloads);
        let started_at_ns = finish(async move { workloads.start(&request.into_inner().workload_id).await }).await?;
        Ok(Response::new(StartWorkloadResponse { started_at_ns }))
    }

    async fn exec(&self, request: Request<ExecRequest>) -> Answer<ExecResponse> {
        let workloads = Arc::clone(&self.workloads);
        let pid = finish(async move { workloads.exec(&request.into_inner()).await }).await?;
        Ok(Response::new(ExecResponse { pid }))
    }

    async fn attach(&self, request: Request<Streaming<AttachInput>>) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let Some(AttachInput { kind: Some(Kind::Open(open)) }) = input.message().await? else {
            return Err(Status::invalid_argument("the first message of Attach must be `open`"));
        };
        let AttachOpen { process, stdin, stdout, stderr } = open;
        let (workload, process, exec) = self.process(process)?;
        let output = process.attach(stdout, stderr);
        if stdin {
            let close = exec || workload.stdin_once;
            tokio::spawn(carry_input(input, process, close));
        } else {
            // Kept open and unread: dropping it would tell the client that its call is over.
            tokio::spawn(async move { while let Ok(Some(_)) = input.message().await {} });
        }
        Ok(Response::new(Box::pin(output)))
    }

    async fn resize(&self, request: Request<ResizeRequest>) -> Answer<ResizeResponse> {
        let ResizeRequest { process, rows, columns } = request.into_inner();
        let (_, process, _) = self.process(process)?;
        match process.resize(rows, columns) {
            Some(Ok(())) => Ok(Response::new(ResizeResponse {})),
            Some(Err(error)) => Err(Status::internal(format!("resize the terminal: {error}"))),
            None => Err(Status::failed_precondition("the process has no terminal")),
        }
    }

    async fn signal(&self, request: Request<SignalRequest>) -> Answer<SignalResponse> {
        let SignalRequest { process, signal, all } = request.into_inner();
        let process = process.ok_or_else(|| Status::invalid_argument("process is missing"))?;
        self.workloads.signal(&process.workload_id, &process.exec_id, signal, all).map_err(|e| status(&e))?;
        Ok(Response::new(SignalResponse {}))
    }

    async fn wait(&self, request: Request<WaitRequest>) -> Answer<WaitResponse> {
        let (_, process, _) = self.process(request.into_inner().process)?;
        Ok(Response::new(WaitResponse { exit: Some(process.wait().await) }))
    }

    async fn pause(&self, request: Request<PauseRequest>) -> Answer<PauseResponse> {
        let PauseRequest { workload_id, frozen } = request.into_inner();
        let workloads = Arc::clone(&self.workloads);
        finish(async move { workloads.pause(&workload_id, frozen).await }).await?;
        Ok(Response::new(PauseResponse {}))
    }

    async fn stats(&self, request: Request<StatsRequest>) -> Answer<StatsResponse> {
        let stats = self.workloads.stats(&request.into_inner().workload_id).map_err(|e| status(&e))?;
        Ok(Response::new(stats))
    }

    async fn update_workload(&self, request: Request<UpdateWorkloadRequest>) -> Answer<UpdateWorkloadResponse> {
        let workloads = Arc::clone(&self.workloads);
        let request = request.into_inner();
        finish(async move { workloads.update(&request.workload_id, &request.oci_resources).await }).await?;
        Ok(Response::new(UpdateWorkloadResponse {}))
    }

    async fn delete_workload(&self, request: Request<DeleteWorkloadRequest>) -> Answer<DeleteWorkloadResponse> {
        let DeleteWorkloadRequest { workload_id, force } = request.into_inner();
        let workloads = Arc::clone(&self.workloads);
        finish(async move { workloads.delete(&workload_id, force).await }).await?;
        Ok(Response::new(DeleteWorkloadResponse {}))
    }

    async fn watch_workloads(&self, _: Request<WatchWorkloadsRequest>) -> Answer<Self::WatchWorkloadsStream> {
        let workloads = Arc::clone(&self.workloads);
        let (sender, receiver) = mpsc::channel(64);
        // Subscribed before the first states are read: a change between the two is told twice, never lost.
        let mut changes = workloads.watch();
        tokio::spawn(async move {
            let mut pending: Vec<WorkloadStatus> = workloads.all().iter().map(|w| w.status()).collect();
            loop {
                for status in pending.drain(..) {
                    if sender.send(Ok(status)).await.is_err() {
                        return;
                    }
                }
                tokio::select! {
                    // Cancel-safe: a change not received stays in the channel.
                    change = changes.recv() => match change {
                        Ok(status) => pending.push(status),
                        Err(RecvError::Lagged(_)) => pending.extend(workloads.all().iter().map(|w| w.status())),
                        Err(RecvError::Closed) => return,
                    },
                    () = sender.closed() => return,
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }

    async fn configure_interface(
        &self,
        request: Request<ConfigureInterfaceRequest>,
    ) -> Answer<ConfigureInterfaceResponse> {
        let interface = self.interface.clone();
        finish(async move { interface.configure(request.into_inner()).await }).await?;
        Ok(Response::new(ConfigureInterfaceResponse {}))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        let grace = Duration::from_millis(request.into_inner().grace_ms.into());
        let (workloads, end) = (Arc::clone(&self.workloads), self.end.clone());
        tokio::spawn(async move {
            workloads.end_all(grace).await;
            end.fire();
        });
        Ok(Response::new(ShutdownResponse {}))
    }
}

/// Runs `work` to its end even if the caller has gone.
async fn finish<T: Send + 'static>(
    work: impl Future<Output = Result<T, InitError>> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::spawn(work).await.map_err(|error| Status::internal(format!("the operation failed: {error}")))?;
    done.map_err(|error| status(&error))
}

/// Gives a client's input to the process. Only `close_stdin` ends the input: a connection that broke does not, so that
/// a workload outlives arca-api.
async fn carry_input(mut input: Streaming<AttachInput>, process: Arc<Process>, close: bool) {
    while let Ok(Some(message)) = input.message().await {
        match message.kind {
            Some(Kind::Stdin(data)) => process.write_input(&data).await,
            Some(Kind::CloseStdin(_)) if close => process.close_input().await,
            // A second `open` has no meaning; it ends nothing.
            Some(Kind::CloseStdin(_) | Kind::Open(_)) | None => {}
        }
    }
}
