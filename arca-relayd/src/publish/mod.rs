// SPDX-License-Identifier: Apache-2.0
//! Host listeners of published ports.

use arca_proto::{
    dial::Address,
    relay::v1::{Publication, PublishRequest},
};
use tokio::sync::watch;
use tonic::Status;

/// Owner of all listeners.
#[derive(Debug)]
pub struct Publisher {
    helper: watch::Receiver<Option<Address>>,
}

impl Publisher {
    /// No listener yet. `helper` is where the helper machine is, once a link was opened.
    pub fn new(helper: watch::Receiver<Option<Address>>) -> Self {
        Self { helper }
    }

    /// Binds the host port of `request`.
    ///
    /// # Errors
    /// As `arca.relay.v1.Relay.Publish` says.
    pub async fn publish(&self, request: PublishRequest) -> Result<Publication, Status> {
        let known = self.helper.borrow().is_some();
        Err(Status::unimplemented(format!("publish {}: no listeners yet (helper known: {known})", request.id)))
    }

    /// Gives a host port back; one that is not published is no error.
    ///
    /// # Errors
    /// Kernel rules that could not be removed.
    pub async fn unpublish(&self, _id: &str) -> Result<(), Status> {
        Ok(())
    }

    /// All listeners.
    pub async fn list(&self) -> Vec<Publication> {
        Vec::new()
    }

    /// Gives all host ports back.
    pub async fn close(&self) {}
}
