// SPDX-License-Identifier: Apache-2.0
//! arca-tapfwd of one machine.

use std::time::Duration;

use arca_proto::{
    dial::{self, Address},
    ports::{self, LinkNumber},
    tap::v1::{self as proto, attach_progress::Step, tap_client::TapClient},
};
use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;

use super::backoff::Backoff;
use crate::error::{Error, Result, is_away};

const WHO: &str = "arca-tapfwd";
/// Longest a machine may take for a short request; a dying one must not hold up its own removal.
const SHORT: Duration = Duration::from_secs(3);
/// The same of a virtual machine, whose processor may be an emulated one that shares a core with others.
const SHORT_VIRTUAL: Duration = Duration::from_secs(20);

/// A client for one machine.
#[derive(Clone, Debug)]
pub struct Tap {
    client: TapClient<Channel>,
    machine: Address,
}

/// An attachment under way.
#[derive(Debug)]
pub struct Attaching(tonic::Streaming<proto::AttachProgress>);

impl Tap {
    /// Dials when first used.
    #[must_use]
    pub fn new(machine: &Address) -> Self {
        Self { client: TapClient::new(dial::channel(machine, ports::TAP)), machine: machine.clone() }
    }

    /// Starts an attachment.
    ///
    /// # Errors
    /// If the machine is gone or refuses at once.
    pub async fn attach(&mut self, request: proto::AttachNetworkRequest) -> Result<Attaching> {
        let what = format!("make interface {}", request.interface);
        Ok(Attaching(self.client.attach_network(request).await.map_err(Error::peer(WHO, what))?.into_inner()))
    }

    /// Sets what an interface has beside its attachment.
    ///
    /// # Errors
    /// If the machine does not answer or its kernel refuses.
    pub async fn set_interface(&mut self, request: proto::SetInterfaceRequest) -> Result<()> {
        let what = "set an interface";
        let short = self.short();
        match timeout(short, self.client.set_interface(request)).await {
            Ok(answer) => answer.map(drop).map_err(Error::peer(WHO, what)),
            Err(_) => Err(Error::Unavailable(format!("{WHO} did not {what} within {} s", short.as_secs()))),
        }
    }

    fn short(&self) -> Duration {
        if matches!(self.machine, Address::Sockets(_)) { SHORT } else { SHORT_VIRTUAL }
    }

    /// Takes an interface away. What is not attached is no error, and a machine that is gone none worth stopping for.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn detach(&mut self, link: LinkNumber) -> Result<()> {
        let mut client = self.client.clone();
        self.patiently("remove an interface", async move || {
            client.detach_network(proto::DetachNetworkRequest { link: link.get() }).await.map(drop)
        })
        .await
    }

    /// Default route and resolver of the machine.
    ///
    /// # Errors
    /// If the machine does not answer or refuses.
    pub async fn configure(&mut self, request: proto::ConfigureRequest) -> Result<()> {
        let mut client = self.client.clone();
        self.patiently("set the default route", async move || client.configure(request.clone()).await.map(drop)).await
    }

    /// Asks again while arca-tapfwd is being restarted: it takes its interfaces up again, so what was asked of the one
    /// before must reach the next.
    async fn patiently(
        &self,
        what: &'static str,
        mut ask: impl AsyncFnMut() -> Result<(), tonic::Status>,
    ) -> Result<()> {
        let short = self.short();
        let limit = Instant::now() + short;
        let mut backoff = Backoff::default();
        loop {
            let asked = timeout(short, ask()).await;
            let asked =
                asked.map_err(|_| Error::Unavailable(format!("{WHO} did not {what} within {} s", short.as_secs())))?;
            match asked {
                Err(status) if is_away(&status) && !self.machine.is_gone() && Instant::now() < limit => {
                    sleep(backoff.pause()).await;
                }
                answer => return answer.map_err(Error::peer(WHO, what)),
            }
        }
    }
}

impl Attaching {
    /// Reads progress until `step` was reached.
    ///
    /// # Errors
    /// What arca-tapfwd says went wrong, or that it ended too early.
    pub async fn until(&mut self, step: Step) -> Result<()> {
        while let Some(progress) = self.0.message().await.map_err(Error::peer(WHO, "attach a network"))? {
            if progress.step() == step {
                return Ok(());
            }
        }
        Err(Error::Failed(format!("{WHO} ended the attachment before {}", step.as_str_name())))
    }
}
