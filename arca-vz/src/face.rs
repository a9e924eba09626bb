// SPDX-License-Identifier: Apache-2.0
//! The machine's face: hybrid vsock, as Linux monitors speak it. One unix socket: a client writes `CONNECT port\n`, gets
//! `OK n\n`, then has the guest's port; a port that nobody serves closes the socket with no word. What the guest calls is
//! carried to the unix socket `<face>_PORT`, and dropped where nobody listens.
//!
//! macOS has no AF_VSOCK on the host for these machines, so bytes pass through here. There is no half-close: when either side
//! ends, both do, after what was read has been written (end of input is a message of the protocols above).

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
    time::Duration,
};

use arca_proto::{
    dial::connect_unix,
    hybrid::{Line, read_line},
    listen::Listener,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    sync::mpsc,
};

use crate::framework::{Connection, Framework};

/// How long a client may take to say which port it wants.
const SAYS: Duration = Duration::from_secs(10);
/// Host-side ports that are told to clients: above all that are used otherwise, as other monitors do.
const FIRST_PORT: u32 = 1 << 30;
/// Bytes taken in one go.
const CHUNK: usize = 64 << 10;

/// Where a call of the guest to this port of its host arrives.
#[must_use]
pub fn guest_socket(face: &Path, port: u32) -> PathBuf {
    let mut name = face.as_os_str().to_owned();
    name.push(format!("_{port}"));
    name.into()
}

/// Serves clients until the listener breaks.
pub async fn serve(listener: Listener, framework: Arc<dyn Framework>) -> io::Error {
    let next = Arc::new(AtomicU32::new(FIRST_PORT));
    loop {
        match listener.accept().await {
            Ok(client) => {
                let (framework, next) = (Arc::clone(&framework), Arc::clone(&next));
                tokio::spawn(async move {
                    if let Err(error) = attend(client, &*framework, &next).await {
                        tracing::debug!(%error, "a client of the machine's ports was not served");
                    }
                });
            }
            // Out of descriptors: those that are served give theirs back.
            Err(error) if matches!(error.raw_os_error(), Some(nix::libc::EMFILE | nix::libc::ENFILE)) => {
                tracing::warn!(%error, "a client of the machine's ports has to wait");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Err(error) => return error,
        }
    }
}

/// One client.
async fn attend<S>(mut client: S, framework: &dyn Framework, next: &AtomicU32) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin + Send,
{
    let port = tokio::time::timeout(SAYS, read_line(&mut client, Line::Connect)).await;
    let port = port.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
    let guest = framework.connect(port).await.map_err(io::Error::other)?;
    client.write_all(&Line::Ok.encode(next.fetch_add(1, Ordering::Relaxed) | FIRST_PORT)).await?;
    join(client, guest).await;
    Ok(())
}

/// Carries what the guest calls port `port` for, one call beside the other.
pub async fn carry(mut calls: mpsc::UnboundedReceiver<Connection>, face: PathBuf, port: u32) {
    while let Some(guest) = calls.recv().await {
        let socket = guest_socket(&face, port);
        tokio::spawn(async move {
            match connect_unix(&socket).await {
                Ok(client) => join(client, guest).await,
                Err(error) => tracing::warn!(port, %error, "the guest calls its host, and nobody listens"),
            }
        });
    }
}

/// Pumps both ways until either side ends.
async fn join<S: AsyncRead + AsyncWrite + Unpin>(client: S, guest: Connection) {
    let Connection { stream, hold } = guest;
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_guest, mut to_guest) = stream.into_split();
    let ended = tokio::select! {
        // Whichever ends takes the other along: there is no half-close.
        ended = pump(&mut from_client, &mut to_guest) => ended,
        ended = pump(&mut from_guest, &mut to_client) => ended,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection with the guest broke");
    }
    // Not before the last byte.
    drop(hold);
}

async fn pump(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let length = from.read(&mut buffer).await?;
        let Some(read) = buffer.get(..length).filter(|read| !read.is_empty()) else { return Ok(()) };
        to.write_all(read).await?;
    }
}
