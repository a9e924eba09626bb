// SPDX-License-Identifier: Apache-2.0
//! READY: the one connection that a guest makes to its host (DESIGN section 3).
//!
//! The listener is bound before the machine boots. Connecting in before the guest said READY was seen to leave a VM
//! unreachable, so every kind of machine keeps this order.

use std::{io, path::Path};

use arca_proto::{
    listen::{Listener, bind_unix},
    ports,
};
use tokio::io::AsyncReadExt;

/// Waits for a guest's READY on `<socket directory>/9000`.
#[derive(Debug)]
pub(crate) struct Ready {
    listener: Listener,
}

impl Ready {
    pub(crate) fn bind(socket_directory: &Path) -> io::Result<Self> {
        Self::bind_at(&socket_directory.join(ports::READY.to_string()))
    }

    /// At a socket of another name.
    pub(crate) fn bind_at(socket: &Path) -> io::Result<Self> {
        Ok(Self { listener: bind_unix(socket, 0o600)? })
    }

    /// Returns once a peer wrote `READY\n`. A peer that writes anything else is ignored: the guest may still come.
    pub(crate) async fn wait(&self) -> io::Result<()> {
        loop {
            let mut stream = self.listener.accept().await?;
            let mut text = [0; 6];
            match stream.read_exact(&mut text).await {
                Ok(_) if &text == b"READY\n" => return Ok(()),
                _ => tracing::warn!("a peer of the READY port said something else"),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use arca_proto::dial::{Address, dial};
    use tokio::io::AsyncWriteExt;

    #[tokio::test]
    async fn only_the_word_ready_counts() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let ready = Ready::bind(directory.path()).expect("bind");
        let address = Address::Sockets(directory.path().into());
        let guest = async {
            for word in [&b"HELLO\n"[..], b"RE", b"READY\n"] {
                let mut stream = dial(&address, ports::READY).await.expect("dial");
                stream.write_all(word).await.expect("write");
            }
        };
        let (waited, ()) = tokio::join!(ready.wait(), guest);
        waited.expect("READY");
    }
}
