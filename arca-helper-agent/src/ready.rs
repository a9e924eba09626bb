// SPDX-License-Identifier: Apache-2.0
//! READY: the one time a guest dials its host (port 9000). Before it the host must not dial in.

use std::time::Duration;

use arca_proto::dial::{Address, dial};
use arca_proto::listen::ListenOn;
use arca_proto::ports;
use tokio::io::AsyncWriteExt;

/// The host, as seen from a guest.
const HOST_CID: u32 = 2;
const RETRY: Duration = Duration::from_millis(250);
const TRIES: u32 = 20;

/// Says READY; tries again for five seconds, then gives up with a warning: the host may have it from before.
pub async fn say(listen: ListenOn) {
    let host = match listen {
        ListenOn::Vsock => Address::Vsock(HOST_CID),
        ListenOn::Sockets(directory) => Address::Sockets(directory),
    };
    for _ in 0..TRIES {
        let said = async {
            let mut stream = dial(&host, ports::READY).await.map_err(std::io::Error::other)?;
            stream.write_all(b"READY\n").await?;
            stream.shutdown().await
        };
        match said.await {
            Ok(()) => return,
            Err(error) => tracing::debug!(%error, "nobody takes READY yet"),
        }
        tokio::time::sleep(RETRY).await;
    }
    tracing::warn!("the host did not take READY on port {}", ports::READY);
}
