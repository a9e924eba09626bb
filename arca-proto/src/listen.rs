// SPDX-License-Identifier: Apache-2.0
//! The other side of [`crate::dial`]: how guest programs and daemons take connections.
//!
//! A guest listens on ports ([`ListenOn`]): real vsock, or a directory of unix sockets where the machine is a namespace.
//! A host daemon listens on one unix socket ([`bind_unix`]). Guests accept only their host; unix listeners accept only
//! root and their own user.

use std::{
    fs, io,
    os::{
        fd::OwnedFd,
        unix::fs::{FileTypeExt, PermissionsExt},
    },
    path::{Path, PathBuf},
    str::FromStr,
};

use tokio::net::UnixListener;

use crate::dial::{Stream, with_short_path};

#[cfg(target_os = "linux")]
#[path = "listen/linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "listen/other.rs"]
mod platform;

/// Where a guest program's ports are: `vsock`, or `sockets:DIRECTORY`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenOn {
    /// Real vsock inside a VM.
    Vsock,
    /// One unix socket per port in this directory.
    Sockets(PathBuf),
}

impl FromStr for ListenOn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "vsock" => Ok(Self::Vsock),
            Some(("sockets", directory)) if directory.starts_with('/') => Ok(Self::Sockets(directory.into())),
            _ => Err(format!("`{text}` is neither `vsock` nor `sockets:/DIRECTORY`")),
        }
    }
}

impl std::fmt::Display for ListenOn {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Vsock => f.write_str("vsock"),
            Self::Sockets(directory) => write!(f, "sockets:{}", directory.display()),
        }
    }
}

/// A listening port of a guest program, or the socket of a host daemon.
#[derive(Debug)]
pub enum Listener {
    /// Unix socket.
    Unix(UnixListener),
    /// AF_VSOCK port.
    #[cfg(target_os = "linux")]
    Vsock(tokio_vsock::VsockListener),
}

impl ListenOn {
    /// Listens on `port`. A socket file left behind by a dead process is replaced.
    ///
    /// # Errors
    /// As `bind(2)`; `AddrInUse` if a living process listens there.
    pub fn bind(&self, port: u32) -> io::Result<Listener> {
        match self {
            Self::Sockets(directory) => bind_unix(&directory.join(port.to_string()), 0o600),
            Self::Vsock => platform::bind_vsock(port),
        }
    }
}

/// Listens on the unix socket `path` with the given permission bits, replacing a dead process's socket file.
///
/// # Errors
/// `AddrInUse` if a living process answers there or the path is no socket; otherwise as `bind(2)`.
pub fn bind_unix(path: &Path, mode: u32) -> io::Result<Listener> {
    let (_guard, short) = with_short_path(path)?;
    match fs::symlink_metadata(&short) {
        Ok(metadata) if metadata.file_type().is_socket() => {
            if std::os::unix::net::UnixStream::connect(&short).is_ok() {
                return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers on this socket"));
            }
            fs::remove_file(&short)?;
        }
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "a file that is no socket is in the way")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&short)?;
    fs::set_permissions(&short, fs::Permissions::from_mode(mode))?;
    Ok(Listener::Unix(listener))
}

impl Listener {
    /// Takes over a listening unix socket (handed down by a supervisor or kept in the descriptor store).
    ///
    /// # Errors
    /// If the descriptor is no socket or the runtime refuses it.
    pub fn from_unix_fd(fd: OwnedFd) -> io::Result<Self> {
        let listener = std::os::unix::net::UnixListener::from(fd);
        listener.set_nonblocking(true)?;
        Ok(Self::Unix(UnixListener::from_std(listener)?))
    }

    /// The next connection from an allowed peer. Others are closed and named in the log.
    ///
    /// # Errors
    /// If the listener itself is broken; per-connection errors are skipped.
    pub async fn accept(&self) -> io::Result<Stream> {
        loop {
            match self {
                Self::Unix(listener) => {
                    let (stream, _) = listener.accept().await?;
                    let peer = stream.peer_cred()?.uid();
                    if peer == 0 || peer == nix::unistd::geteuid().as_raw() {
                        return Ok(Stream::Unix(stream));
                    }
                    tracing::warn!(
                        peer_uid = peer,
                        "connection refused: only root and the daemon's own user may speak"
                    );
                }
                #[cfg(target_os = "linux")]
                Self::Vsock(listener) => {
                    let (stream, peer) = listener.accept().await?;
                    if peer.cid() == tokio_vsock::VMADDR_CID_HOST {
                        return Ok(Stream::Vsock(stream));
                    }
                    tracing::warn!(peer_cid = peer.cid(), "connection refused: only the host may speak to a guest");
                }
            }
        }
    }

    /// The descriptor of the listener, for threads and for the descriptor store; non-blocking.
    ///
    /// # Errors
    /// If the descriptor cannot be duplicated.
    pub fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(listener) => Ok(listener.into_std()?.into()),
            #[cfg(target_os = "linux")]
            Self::Vsock(listener) => platform::duplicate(&listener),
        }
    }

    /// Connections as a stream, the form that tonic's `serve_with_incoming` takes.
    pub fn incoming(self) -> impl tokio_stream::Stream<Item = io::Result<Accepted>> + Send {
        // One task accepts; a closed receiver (server gone) ends it.
        let (sender, receiver) = tokio::sync::mpsc::channel(16);
        tokio::spawn(async move {
            loop {
                let accepted = tokio::select! {
                    // Cancel-safe: accept takes nothing off the queue unless it completes.
                    accepted = self.accept() => accepted.map(Accepted),
                    () = sender.closed() => return,
                };
                let broken = accepted.is_err();
                if sender.send(accepted).await.is_err() || broken {
                    return;
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }
}

/// A connection accepted by [`Listener::incoming`].
#[derive(Debug)]
pub struct Accepted(Stream);

impl tonic::transport::server::Connected for Accepted {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl tokio::io::AsyncRead for Accepted {
    fn poll_read(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &mut tokio::io::ReadBuf<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl tokio::io::AsyncWrite for Accepted {
    fn poll_write(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
        buf: &[u8],
    ) -> std::task::Poll<io::Result<usize>> {
        std::pin::Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_flush(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<io::Result<()>> {
        std::pin::Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dial::{Address, dial};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[test]
    fn listen_on_parses_its_two_forms() {
        assert_eq!("vsock".parse(), Ok(ListenOn::Vsock));
        assert_eq!("sockets:/run/x".parse(), Ok(ListenOn::Sockets("/run/x".into())));
        for bad in ["", "sockets", "sockets:relative", "vsock:3"] {
            assert!(bad.parse::<ListenOn>().is_err(), "{bad}");
        }
    }

    #[tokio::test]
    async fn what_is_dialled_is_accepted_and_a_living_socket_is_not_replaced() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let on = ListenOn::Sockets(directory.path().into());
        let listener = on.bind(5555).expect("bind");
        let address = Address::Sockets(directory.path().into());
        let (dialled, accepted) = tokio::join!(dial(&address, 5555), listener.accept());
        dialled.expect("dial").write_all(b"hello").await.expect("write");
        let mut text = [0; 5];
        accepted.expect("accept").read_exact(&mut text).await.expect("read");
        assert_eq!(&text, b"hello");
        assert_eq!(on.bind(5555).expect_err("taken").kind(), io::ErrorKind::AddrInUse);
        drop(listener);
        on.bind(5555).expect("the socket file of a dead listener is replaced");
    }
}
