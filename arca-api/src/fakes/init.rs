// SPDX-License-Identifier: Apache-2.0
//! arca-init in memory. What a workload does is its first word: `sleep` until a signal, `stubborn` until SIGKILL, `exit N`
//! at once after one line of output, `cat` its input, `nosuch` cannot be created.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
};

use arca_proto::{
    init::v1::{
        self as api, attach_input, attach_output,
        init_server::{Init, InitServer},
    },
    machine::v1::ExitStatus,
};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, UnixListenerStream};
use tonic::{Request, Response, Status, Streaming};

#[derive(Debug)]
struct Workload {
    words: Vec<String>,
    exit: watch::Sender<Option<ExitStatus>>,
    clients: Vec<mpsc::Sender<Result<api::AttachOutput, Status>>>,
    frozen: bool,
}

#[derive(Debug, Default)]
pub(crate) struct FakeInit {
    workloads: Mutex<BTreeMap<String, Workload>>,
}

#[derive(Clone)]
struct Service(Arc<FakeInit>);

type Answer<T> = Result<Response<T>, Status>;

fn exit_status(code: i32) -> ExitStatus {
    ExitStatus { code, signal: 0, oom_killed: false, finished_at_ns: crate::docker::time::now() }
}

fn key(process: Option<api::ProcessRef>) -> String {
    let process = process.unwrap_or_default();
    format!("{}{}", process.workload_id, process.exec_id)
}

impl FakeInit {
    pub(crate) fn serve(self: Arc<Self>, directory: &Path) -> tokio::task::AbortHandle {
        let listener = tokio::net::UnixListener::bind(directory.join("5556")).expect("bind");
        let server = tonic::transport::Server::builder()
            .add_service(InitServer::new(Service(self)))
            .serve_with_incoming(UnixListenerStream::new(listener));
        tokio::spawn(server).abort_handle()
    }

    /// A workload's process ends by itself.
    pub(crate) async fn end(&self, id: &str, code: i32) {
        let (clients, exit) = {
            let mut workloads = self.workloads.lock().expect("lock");
            let workload = workloads.get_mut(id).expect("workload");
            (std::mem::take(&mut workload.clients), workload.exit.clone())
        };
        let status = exit_status(code);
        for client in clients {
            let _ = client.send(Ok(api::AttachOutput { kind: Some(attach_output::Kind::Exit(status)) })).await;
        }
        exit.send_replace(Some(status));
    }

    async fn output(&self, id: &str, bytes: &[u8]) {
        let clients = self.workloads.lock().expect("lock").get(id).map(|workload| workload.clients.clone());
        for client in clients.unwrap_or_default() {
            let kind = Some(attach_output::Kind::Stdout(bytes.to_vec()));
            let _ = client.send(Ok(api::AttachOutput { kind })).await;
        }
    }

    fn add(&self, id: String, words: Vec<String>) {
        let workload = Workload { words, exit: watch::Sender::new(None), clients: Vec::new(), frozen: false };
        self.workloads.lock().expect("lock").insert(id, workload);
    }
}

#[tonic::async_trait]
impl Init for Service {
    async fn get_machine(&self, _: Request<api::GetMachineRequest>) -> Answer<api::GetMachineResponse> {
        let workloads = self.0.workloads.lock().expect("lock").keys().cloned().collect::<Vec<_>>();
        let status = |workload_id| api::WorkloadStatus { workload_id, ..api::WorkloadStatus::default() };
        let workloads = workloads.into_iter().map(status).collect();
        Ok(Response::new(api::GetMachineResponse { workloads, ..api::GetMachineResponse::default() }))
    }

    async fn create_workload(
        &self,
        request: Request<api::CreateWorkloadRequest>,
    ) -> Answer<api::CreateWorkloadResponse> {
        let request = request.into_inner();
        let spec: serde_json::Value = serde_json::from_slice(&request.oci_spec).expect("spec");
        let words: Vec<String> = serde_json::from_value(spec["process"]["args"].clone()).expect("args");
        if words[0] == "nosuch" {
            return Err(Status::not_found("exec: \"nosuch\": executable file not found in $PATH"));
        }
        self.0.add(request.workload_id, words);
        Ok(Response::new(api::CreateWorkloadResponse { pid: 7 }))
    }

    async fn start_workload(&self, request: Request<api::StartWorkloadRequest>) -> Answer<api::StartWorkloadResponse> {
        let id = request.into_inner().workload_id;
        let words = self.0.workloads.lock().expect("lock").get(&id).map(|workload| workload.words.clone());
        let words = words.ok_or_else(|| Status::not_found("no such workload"))?;
        if words[0] == "exit" {
            self.0.output(&id, b"bye\n").await;
            self.0.end(&id, words[1].parse().expect("code")).await;
        }
        Ok(Response::new(api::StartWorkloadResponse { started_at_ns: crate::docker::time::now() }))
    }

    async fn exec(&self, request: Request<api::ExecRequest>) -> Answer<api::ExecResponse> {
        let request = request.into_inner();
        let process: serde_json::Value = serde_json::from_slice(&request.oci_process).expect("process");
        let words: Vec<String> = serde_json::from_value(process["args"].clone()).expect("args");
        if words[0] == "nosuch" {
            return Err(Status::not_found("exec: \"nosuch\": executable file not found in $PATH"));
        }
        self.0.add(key(request.process), words);
        Ok(Response::new(api::ExecResponse { pid: 8 }))
    }

    type AttachStream = ReceiverStream<Result<api::AttachOutput, Status>>;

    async fn attach(&self, request: Request<Streaming<api::AttachInput>>) -> Answer<Self::AttachStream> {
        let mut input = request.into_inner();
        let Some(attach_input::Kind::Open(open)) = input.message().await?.and_then(|first| first.kind) else {
            return Err(Status::invalid_argument("open comes first"));
        };
        let id = key(open.process);
        let (client, output) = mpsc::channel(16);
        let attached = api::AttachOutput { kind: Some(attach_output::Kind::Attached(api::Attached {})) };
        client.send(Ok(attached)).await.expect("room");
        let words = {
            let mut workloads = self.0.workloads.lock().expect("lock");
            let workload = workloads.get_mut(&id).ok_or_else(|| Status::not_found("no such workload"))?;
            workload.clients.push(client);
            workload.words.clone()
        };
        let init = self.0.clone();
        tokio::spawn(async move {
            // An exec'd `exit` ends once somebody listens.
            if id.len() > 64 && words[0] == "exit" {
                init.output(&id, b"bye\n").await;
                init.end(&id, words[1].parse().expect("code")).await;
            }
            while let Ok(Some(message)) = input.message().await {
                match message.kind {
                    Some(attach_input::Kind::Stdin(bytes)) if words[0] == "cat" => init.output(&id, &bytes).await,
                    Some(attach_input::Kind::CloseStdin(_)) if words[0] == "cat" => init.end(&id, 0).await,
                    _ => {}
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(output)))
    }

    async fn resize(&self, _: Request<api::ResizeRequest>) -> Answer<api::ResizeResponse> {
        Ok(Response::new(api::ResizeResponse {}))
    }

    async fn signal(&self, request: Request<api::SignalRequest>) -> Answer<api::SignalResponse> {
        let request = request.into_inner();
        let id = key(request.process);
        let stubborn = self.0.workloads.lock().expect("lock").get(&id).is_some_and(|one| one.words[0] == "stubborn");
        if request.signal == 9 || !stubborn {
            self.0.end(&id, 128 + request.signal).await;
        }
        Ok(Response::new(api::SignalResponse {}))
    }

    async fn wait(&self, request: Request<api::WaitRequest>) -> Answer<api::WaitResponse> {
        let id = key(request.into_inner().process);
        let exit = self.0.workloads.lock().expect("lock").get(&id).map(|workload| workload.exit.subscribe());
        let mut exit = exit.ok_or_else(|| Status::not_found("no such workload"))?;
        let exit = *exit.wait_for(Option::is_some).await.map_err(|_| Status::internal("gone"))?;
        Ok(Response::new(api::WaitResponse { exit }))
    }

    async fn pause(&self, request: Request<api::PauseRequest>) -> Answer<api::PauseResponse> {
        let request = request.into_inner();
        if let Some(workload) = self.0.workloads.lock().expect("lock").get_mut(&request.workload_id) {
            workload.frozen = request.frozen;
        }
        Ok(Response::new(api::PauseResponse {}))
    }

    async fn stats(&self, request: Request<api::StatsRequest>) -> Answer<api::StatsResponse> {
        let id = request.into_inner().workload_id;
        if !self.0.workloads.lock().expect("lock").contains_key(&id) {
            return Err(Status::not_found("no such workload"));
        }
        let interface = api::InterfaceCounters { name: "eth0".into(), rx_bytes: 5, ..Default::default() };
        Ok(Response::new(api::StatsResponse {
            read_at_ns: crate::docker::time::now(),
            cpu_total_ns: 7,
            online_cpus: 2,
            memory_usage: 4096,
            memory_limit: u64::MAX,
            machine_memory: 1 << 30,
            interfaces: vec![interface],
            ..Default::default()
        }))
    }

    async fn update_workload(
        &self,
        request: Request<api::UpdateWorkloadRequest>,
    ) -> Answer<api::UpdateWorkloadResponse> {
        let request = request.into_inner();
        let asked: serde_json::Value = serde_json::from_slice(&request.oci_resources).expect("resources");
        if asked["pids"]["limit"] == 666 {
            return Err(Status::failed_precondition("write pids.max"));
        }
        Ok(Response::new(api::UpdateWorkloadResponse {}))
    }

    async fn delete_workload(
        &self,
        request: Request<api::DeleteWorkloadRequest>,
    ) -> Answer<api::DeleteWorkloadResponse> {
        self.0.workloads.lock().expect("lock").remove(&request.into_inner().workload_id);
        Ok(Response::new(api::DeleteWorkloadResponse {}))
    }

    type WatchWorkloadsStream = ReceiverStream<Result<api::WorkloadStatus, Status>>;

    async fn watch_workloads(&self, _: Request<api::WatchWorkloadsRequest>) -> Answer<Self::WatchWorkloadsStream> {
        Ok(Response::new(ReceiverStream::new(mpsc::channel(1).1)))
    }

    async fn configure_interface(
        &self,
        _: Request<api::ConfigureInterfaceRequest>,
    ) -> Answer<api::ConfigureInterfaceResponse> {
        Ok(Response::new(api::ConfigureInterfaceResponse {}))
    }

    async fn shutdown(&self, _: Request<api::ShutdownRequest>) -> Answer<api::ShutdownResponse> {
        Ok(Response::new(api::ShutdownResponse {}))
    }
}
