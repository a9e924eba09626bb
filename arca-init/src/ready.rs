// SPDX-License-Identifier: Apache-2.0
//! READY: the one connection that this machine makes to its host.

use std::time::Duration;

use anyhow::Context as _;
use arca_proto::{
    dial::{Address, dial},
    listen::ListenOn,
    ports,
};
use tokio::io::AsyncWriteExt as _;

/// The host's context id, seen from a VM (vsock(7)).
const HOST: u32 = 2;
const TIMEOUT: Duration = Duration::from_secs(5);

/// Says READY to whoever booted this machine.
///
/// # Errors
/// Nobody listens there.
pub(crate) async fn say(listen: &ListenOn) -> anyhow::Result<()> {
    let host = match listen {
        ListenOn::Sockets(directory) => Address::Sockets(directory.clone()),
        ListenOn::Vsock => Address::Vsock(HOST),
    };
    let said = async {
        let mut stream = dial(&host, ports::READY).await?;
        stream.write_all(b"READY\n").await?;
        anyhow::Ok(stream.shutdown().await?)
    };
    tokio::time::timeout(TIMEOUT, said).await.context("say READY: no answer")?.context("say READY")
}
