// SPDX-License-Identifier: Apache-2.0
//! arca-tapfwd of one machine.

use std::time::Duration;

use arca_proto::{
    dial::{self, Address},
    ports::{self, LinkNumber},
    tap::v1::{self as proto, attach_progress::Step, tap_client::TapClient},
};
use tokio::time::timeout;
use tonic::transport::Channel;

use crate::error::{Error, Result};

const WHO: &str = "arca-tapfwd";
/// Longest a machine may take for a short request; a dying one must not hold up its own removal.
const SHORT: Duration = Duration::from_secs(3);

/// A client for one machine.
#[derive(Clone, Debug)]
pub struct Tap(TapClient<Channel>);

/// An attachment under way.
#[derive(Debug)]
pub struct Attaching(tonic::Streaming<proto::AttachProgress>);

impl Tap {
    /// Dials when first used.
    #[must_use]
    pub fn new(machine: &Address) -> Self {
        Self(TapClient::new(dial::channel(machine, ports::TAP)))
    }

    /// Starts an attachment.
    ///
    /// # Errors
    /// If the machine is gone or refuses at once.
    pub async fn attach(&mut self, request: proto::AttachNetworkRequest) -> Result<Attaching> {
        let what = format!("make interface {}", request.interface);
        Ok(Attaching(self.0.attach_network(request).await.map_err(Error::peer(WHO, what))?.into_inner()))
    }

    /// Takes an interface away. What is not attached, or a machine that is gone, is no error worth stopping for.
    ///
    /// # Errors
    /// If the machine does not answer.
    pub async fn detach(&mut self, link: LinkNumber) -> Result<()> {
        let call = self.0.detach_network(proto::DetachNetworkRequest { link: link.get() });
        short(call, "remove an interface").await
    }

    /// Default route and resolver of the machine.
    ///
    /// # Errors
    /// If the machine does not answer or refuses.
    pub async fn configure(&mut self, request: proto::ConfigureRequest) -> Result<()> {
        short(self.0.configure(request), "set the default route").await
    }
}

async fn short<T>(
    call: impl Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    what: &'static str,
) -> Result<()> {
    match timeout(SHORT, call).await {
        Ok(answer) => answer.map(drop).map_err(Error::peer(WHO, what)),
        Err(_) => Err(Error::Unavailable(format!("{WHO} did not {what} within {} s", SHORT.as_secs()))),
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
