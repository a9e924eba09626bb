// SPDX-License-Identifier: Apache-2.0
//! No kernel way: the listener serves everybody. For hosts other than Linux.

use std::convert::Infallible;
use std::io;
use std::net::{IpAddr, SocketAddr};

use super::wanted::Protocol;

/// Never.
pub type RedirectError = Infallible;

/// Which publications asked for it, to say that they cannot have it.
#[derive(Debug, Default)]
pub(super) struct Redirects(std::collections::BTreeSet<String>);

#[allow(clippy::unused_async)] // Same form as on Linux, where nft is run.
impl Redirects {
    pub(super) fn new(_tag: &str) -> Self {
        Self::default()
    }

    pub(super) async fn add(&mut self, id: &str, _: Protocol, _: IpAddr, _: u16, _: SocketAddr) {
        self.0.insert(id.to_owned());
    }

    pub(super) async fn remove(&mut self, id: &str) -> Result<(), RedirectError> {
        self.0.remove(id);
        Ok(())
    }

    pub(super) async fn clear(&mut self) -> Result<(), RedirectError> {
        self.0.clear();
        Ok(())
    }

    pub(super) async fn reconsider(&mut self) -> Result<(), RedirectError> {
        Ok(())
    }

    pub(super) fn changes(&self) -> io::Result<Changes> {
        Ok(Changes)
    }

    pub(super) fn way(&self, id: &str) -> String {
        if self.0.contains(id) { "listener (this system has no nftables)" } else { "listener" }.to_owned()
    }
}

/// Nobody's changes matter here.
#[derive(Debug)]
pub(super) struct Changes;

impl Changes {
    pub(super) async fn next(&mut self) -> io::Result<()> {
        std::future::pending().await
    }
}
