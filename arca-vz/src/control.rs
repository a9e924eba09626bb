// SPDX-License-Identifier: Apache-2.0
//! Answers on the control socket ([`arca_proto::keeper`]): the same questions as arca-vmm's.

use std::{io, sync::Arc, time::Duration};

use arca_proto::{
    keeper::{self, Answer, Request, State},
    listen::Listener,
};
use tokio::sync::{Mutex, mpsc};

use crate::{framework::Framework, shares::Shares};

/// What answers are made from.
#[derive(Clone, Debug)]
pub struct Served {
    /// The machine.
    pub framework: Arc<dyn Framework>,
    /// What it sees.
    pub shares: Arc<Mutex<Shares>>,
    /// Bytes of its memory.
    pub memory: u64,
    /// Who wants it to end, and how patiently.
    pub stop: mpsc::Sender<Duration>,
}

/// Serves until the listener breaks.
pub async fn serve(listener: Listener, served: Served) -> io::Error {
    loop {
        let mut stream = match listener.accept().await {
            Ok(stream) => stream,
            Err(error) => return error,
        };
        let served = served.clone();
        tokio::spawn(async move {
            let answered = async {
                let answer = match keeper::read(&mut stream).await {
                    Ok(request) => served.answer(request).await.unwrap_or_else(Answer::Failed),
                    Err(error) => Answer::Failed(format!("no question that is known here: {error}")),
                };
                keeper::write(&mut stream, &answer).await
            };
            if let Err(error) = answered.await {
                tracing::debug!(%error, "a question on the control socket");
            }
        });
    }
}

impl Served {
    async fn answer(&self, request: Request) -> Result<Answer, String> {
        match request {
            Request::Expose { path, read_only } => {
                let mut shares = self.shares.lock().await;
                // What the framework refuses is not remembered as exposed.
                let mut wanted = shares.clone();
                let seen = wanted.expose(&path, read_only);
                let seen = seen.map_err(|error| format!("expose {}: {error}", path.display()))?;
                self.framework.share(&wanted).await.map_err(|error| error.to_string())?;
                *shares = wanted;
                Ok(Answer::Path(seen))
            }
            Request::Root { .. } | Request::Unroot { .. } => {
                Err("macOS has no overlay file system to mount a container's \
                 layers with: give the guest the layers, or a disk"
                    .into())
            }
            Request::State => Ok(Answer::State(State {
                status: self.framework.state().await,
                accelerator: "vz".into(),
                memory: self.memory,
                processes: vec![("arca-vz".into(), std::process::id())],
            })),
            Request::Stop { grace_ms } => {
                // A keeper that has stopped listening is on its way out already.
                let _ = self.stop.send(Duration::from_millis(grace_ms)).await;
                Ok(Answer::Done)
            }
            Request::Balloon { bytes } => {
                let set = self.framework.balloon(bytes).await;
                set.map(|()| Answer::Done).map_err(|error| error.to_string())
            }
        }
    }
}
