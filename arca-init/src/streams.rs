// SPDX-License-Identifier: Apache-2.0
//! Pipes and terminals between arca-init and the processes of workloads.

use std::{
    fs,
    io::{self, IoSliceMut},
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
    path::{Path, PathBuf},
    process::Stdio,
    sync::Arc,
    time::Duration,
};

use nix::{
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    pty::Winsize,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
    unistd::{pipe2, read, write},
};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixListener,
    sync::watch,
};

use crate::{crun::ChildStreams, error::InitError, log::Source, output::Hub, spec::Size};

/// Bytes read at once, and so the largest message to a client.
const CHUNK: usize = 32 * 1024;
/// How long a terminal may hold back its end: another process may have it open.
const TERMINAL_DRAIN: Duration = Duration::from_secs(2);

/// How long crun may take to send a terminal.
const CONSOLE: Duration = Duration::from_secs(10);

/// A descriptor that the runtime watches.
pub(crate) type Watched = Arc<AsyncFd<OwnedFd>>;

/// Our ends of a process's standard streams.
#[derive(Debug)]
pub(crate) enum Streams {
    /// Separate pipes; no input pipe means /dev/null.
    Pipes {
        /// Write end of standard input.
        input: Option<Watched>,
        /// Read end of standard output.
        output: Watched,
        /// Read end of standard error.
        error: Watched,
    },
    /// The master of a pseudo terminal.
    Terminal(Watched),
}

fn watch_fd(fd: OwnedFd, interest: Interest) -> io::Result<Watched> {
    let flags = OFlag::from_bits_retain(fcntl(&fd, FcntlArg::F_GETFL)?);
    fcntl(&fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    // SAFETY: the descriptor is owned, so it stays open and the same until the registration is dropped.
    Ok(Arc::new(unsafe { AsyncFd::register_with_interest(fd, interest) }?))
}

/// Pipes for a process without a terminal: our ends and the child's.
pub(crate) fn pipes(with_input: bool) -> io::Result<(Streams, ChildStreams)> {
    let (child_input, input) = if with_input {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        (Stdio::from(reader), Some(watch_fd(writer, Interest::WRITABLE)?))
    } else {
        (Stdio::null(), None)
    };
    let (output, child_output) = pipe2(OFlag::O_CLOEXEC)?;
    let (error, child_error) = pipe2(OFlag::O_CLOEXEC)?;
    let streams = Streams::Pipes {
        input,
        output: watch_fd(output, Interest::READABLE)?,
        error: watch_fd(error, Interest::READABLE)?,
    };
    Ok((streams, ChildStreams { input: child_input, output: child_output.into(), error: child_error.into() }))
}

/// Where crun sends the master of a process's terminal.
#[derive(Debug)]
pub(crate) struct Console {
    path: PathBuf,
    listener: UnixListener,
}

impl Console {
    /// Listens on `path`, which must fit into `sun_path`.
    pub(crate) fn listen(path: PathBuf) -> Result<Self, InitError> {
        let _ = fs::remove_file(&path);
        let listener = UnixListener::bind(&path).map_err(InitError::file("listen for a terminal on", &path))?;
        Ok(Self { path, listener })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Streams of the child beside the terminal, which replaces them.
    pub(crate) fn child_streams() -> ChildStreams {
        ChildStreams { input: Stdio::null(), output: Stdio::null(), error: Stdio::null() }
    }

    /// Runs crun (`run`) and takes the terminal that it sends meanwhile, at once, so that the process finds its size.
    pub(crate) async fn receive_from<T>(
        &self,
        size: Size,
        run: impl Future<Output = Result<T, InitError>>,
    ) -> Result<(T, Streams), InitError> {
        let receive = async {
            let streams = self.receive().await.map_err(InitError::file("receive a terminal on", &self.path))?;
            if let Streams::Terminal(terminal) = &streams
                && size.rows > 0
                && size.columns > 0
                && let Err(error) = resize(terminal, size.rows, size.columns)
            {
                tracing::warn!(%error, "the terminal's first size cannot be set");
            }
            Ok(streams)
        };
        tokio::pin!(receive, run);
        tokio::select! {
            // Neither is dropped half-way: the other branch goes on with it.
            streams = &mut receive => {
                let streams = streams?;
                Ok((run.await?, streams))
            }
            done = &mut run => {
                let done = done?;
                // Sent before crun ended, so it is in the socket's queue.
                Ok((done, receive.await?))
            }
        }
    }

    async fn receive(&self) -> io::Result<Streams> {
        let (socket, _) = tokio::time::timeout(CONSOLE, self.listener.accept()).await??;
        let master = socket.async_io(Interest::READABLE, || receive_descriptor(socket.as_raw_fd())).await?;
        Ok(Streams::Terminal(watch_fd(master, Interest::READABLE | Interest::WRITABLE)?))
    }
}

fn receive_descriptor(socket: RawFd) -> io::Result<OwnedFd> {
    let mut text = [0; 256];
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [IoSliceMut::new(&mut text)];
    let message = recvmsg::<()>(socket, &mut parts, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC)?;
    let mut received = None;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(numbers) = part {
            // SAFETY: the kernel has just made these for us, and nothing else knows them.
            received = numbers.into_iter().map(|number| unsafe { OwnedFd::from_raw_fd(number) }).next_back();
        }
    }
    received.ok_or_else(|| io::Error::other("no descriptor in crun's message"))
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

/// Sets the size of a terminal, in character cells.
pub(crate) fn resize(terminal: &Watched, rows: u32, columns: u32) -> io::Result<()> {
    let cells = |n: u32| u16::try_from(n).unwrap_or(u16::MAX);
    let size = Winsize { ws_row: cells(rows), ws_col: cells(columns), ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCSWINSZ reads one winsize.
    if unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } == -1 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

/// Writes all of `data`, waiting for a reader that is slow. `BrokenPipe` if there is none any more.
pub(crate) async fn write_all(fd: &Watched, mut data: &[u8]) -> io::Result<()> {
    while !data.is_empty() {
        let mut ready = fd.writable().await?;
        match ready.try_io(|fd| Ok(write(fd.get_ref().as_fd(), data)?)) {
            Ok(Ok(n)) => data = data.get(n..).unwrap_or_default(),
            Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
            // A terminal whose other side is closed.
            Ok(Err(error)) if error.raw_os_error() == Some(libc::EIO) => return Err(io::ErrorKind::BrokenPipe.into()),
            Ok(Err(error)) => return Err(error),
            Err(_would_block) => {}
        }
    }
    Ok(())
}

/// Carries everything that comes out of `fd` to `hub` until it ends, or until its process has ended and all that it
/// wrote was read (another process may still hold a pipe open).
pub(crate) async fn pump(
    fd: Watched,
    source: Source,
    terminal: bool,
    hub: Arc<Hub>,
    mut exited: watch::Receiver<bool>,
) {
    let mut buffer = vec![0; CHUNK];
    loop {
        // Looked at before the read: what a process wrote is in the pipe before it ends.
        let over = *exited.borrow();
        match read(fd.get_ref().as_fd(), &mut buffer) {
            Ok(0) | Err(nix::errno::Errno::EIO) => return,
            Ok(n) => {
                hub.publish(source, buffer.get(..n).unwrap_or_default()).await;
                // Without clients nothing above ever waits; others must run too.
                tokio::task::yield_now().await;
            }
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::EAGAIN) if over && !terminal => return,
            Err(nix::errno::Errno::EAGAIN) => {
                let readable = async {
                    if let Ok(mut ready) = fd.readable().await {
                        // If more came since the read, the next read finds it before anybody waits again.
                        let _ = ready.try_io(|fd| peek(fd.get_ref()));
                    }
                };
                tokio::select! {
                    // Cancel-safe: readiness not consumed stays set; the flag stays set.
                    () = readable => {}
                    _ = exited.wait_for(|exited| *exited), if !over => {}
                    // The kernel passes a terminal's last bytes on in a work queue, so its end is waited for.
                    () = tokio::time::sleep(TERMINAL_DRAIN), if over => return,
                }
            }
            Err(error) => {
                tracing::warn!(%error, "output cannot be read");
                return;
            }
        }
    }
}

/// Whether a read would find something; `WouldBlock` makes the runtime wait for the next event.
fn peek(fd: &OwnedFd) -> io::Result<()> {
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    let mut polled = [PollFd::new(fd.as_fd(), PollFlags::POLLIN)];
    if poll(&mut polled, PollTimeout::ZERO)? == 0 { Err(io::ErrorKind::WouldBlock.into()) } else { Ok(()) }
}
