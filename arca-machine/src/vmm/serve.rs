// SPDX-License-Identifier: Apache-2.0
//! Answers on the control socket.

use std::{
    fs, io,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use arca_proto::{
    keeper::{self, Answer, Request},
    listen::Listener,
};
use serde_json::json;
use tokio::sync::mpsc;

use super::{Event, accelerator::Accelerator, mounts::Mounts, qmp::Qmp};
use crate::{VmState, vm::plan::Plan};

/// What answers are made from.
#[derive(Clone, Debug)]
pub(super) struct Served {
    pub(super) plan: Plan,
    pub(super) accelerator: Accelerator,
    pub(super) mounts: Arc<Mutex<Mounts>>,
    pub(super) qmp: Arc<Qmp>,
    pub(super) events: mpsc::Sender<Event>,
}

/// Serves until the machine ends.
pub(super) async fn serve(listener: Listener, served: Served) {
    if let Err(error) = served.qmp.negotiate().await {
        tracing::warn!(machine_id = served.plan.id, %error, "QEMU cannot be controlled");
    }
    loop {
        match listener.accept().await {
            Ok(mut stream) => {
                let served = served.clone();
                tokio::spawn(async move {
                    let answered = async {
                        let request = keeper::read(&mut stream).await?;
                        let answer =
                            served.answer(request).await.unwrap_or_else(|error| Answer::Failed(error.to_string()));
                        keeper::write(&mut stream, &answer).await
                    };
                    if let Err(error) = answered.await {
                        tracing::warn!(%error, "a question on the control socket");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "the control socket is broken");
                return;
            }
        }
    }
}

impl Served {
    async fn answer(&self, request: Request) -> io::Result<Answer> {
        match request {
            Request::Expose { path, read_only } => {
                self.mounts(|mounts| mounts.expose(&path, read_only)).map(Answer::Path)
            }
            Request::Root { name, lower, upper, work } => {
                self.mounts(|mounts| mounts.root(&name, &lower, &upper, &work)).map(Answer::Path)
            }
            Request::Unroot { name } => self.mounts(|mounts| mounts.unroot(&name)).map(|()| Answer::Done),
            Request::State => self.state().await.map(Answer::State),
            Request::Stop { grace_ms } => {
                // A keeper that has stopped listening is on its way out already.
                let _ = self.events.send(Event::Stop(Duration::from_millis(grace_ms))).await;
                Ok(Answer::Done)
            }
            Request::Balloon { bytes } => {
                self.qmp.execute("balloon", json!({"value": bytes})).await.map(|_| Answer::Done)
            }
        }
    }

    fn mounts<T>(&self, work: impl FnOnce(&mut Mounts) -> io::Result<T>) -> io::Result<T> {
        // Whatever a panic left half-done is found again by its name.
        work(&mut self.mounts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    async fn state(&self) -> io::Result<VmState> {
        let status = self.qmp.execute("query-status", json!({})).await?;
        let balloon = self.qmp.execute("query-balloon", json!({})).await?;
        Ok(VmState {
            status: status["status"].as_str().unwrap_or("unknown").to_owned(),
            accelerator: self.accelerator.word().to_owned(),
            memory: balloon["actual"].as_u64().unwrap_or(self.plan.memory),
            processes: children(),
        })
    }
}

/// This process's children, as the proc mount, which is the host's, numbers them.
fn children() -> Vec<(String, u32)> {
    let text = fs::read_to_string("/proc/thread-self/children").unwrap_or_default();
    let named = |pid: u32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        Some((name.trim().to_owned(), pid))
    };
    text.split_whitespace().filter_map(|pid| named(pid.parse().ok()?)).collect()
}
