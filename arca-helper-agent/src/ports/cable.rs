// SPDX-License-Identifier: Apache-2.0
//! A port whose interface is the far end of the container's veth pair (carrier `cable`).
//!
//! The container's end moves it here: this side lends its network namespace to whoever comes over the relay, waits for
//! the interface, closes it to the helper's own kernel, and puts it on the bridge. The link is up only then.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arca_link::stats::kernel_counters;
use arca_link::{Counters, Kind, LinkNumber, LinkState, Offloads};
use arca_proto::frame::MAX_FRAME;
use arca_proto::hello::{Carrier, Carriers, Hello, HelloError};
use arca_proto::note::{self, Counts, Note, Reader};
use nix::net::if_::if_nametoindex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::vswitch::{BR_INT, Datapath, Vswitch, VswitchError, ingress};

use super::spec::{self, PortSpec};
use super::{attach, settle_later};

/// How long a connection may take to come to terms.
const STEP: Duration = Duration::from_secs(2);

/// A port of this kind. Dropping it closes connection and listener; the interface is the container's.
#[derive(Debug)]
pub(super) struct Cable {
    state: watch::Receiver<LinkState>,
    spec: Arc<Mutex<PortSpec>>,
    interface: String,
    task: JoinHandle<()>,
}

/// Why a connection did not become, or ceased to be, the link's.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("carrier {0} is wanted, but the port is a cable's")]
    Carrier(Carrier),
    #[error("epoch {0} is not newer than the live connection's {1}")]
    OldEpoch(u64, u64),
    #[error("{0:?} was said out of turn")]
    OutOfTurn(Note),
    #[error("the other end says: {0}")]
    Told(String),
    #[error("the interface did not come")]
    NoInterface,
    #[error("close the interface to the helper's own kernel: {0}")]
    Seal(io::Error),
    #[error("set the interface up: {0}")]
    Up(#[from] arca_link::TapError),
    #[error(transparent)]
    Vswitch(#[from] VswitchError),
    #[error("silent for two seconds")]
    Silent,
}

struct Live {
    stream: UnixStream,
    reader: Reader,
    epoch: u64,
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Closes the far end to the helper's own kernel and sets it up; twice is no harm.
fn dress(interface: &str, vswitch: &Vswitch) -> Result<(), Broken> {
    if vswitch.datapath() == Datapath::User {
        ingress::seal(interface).map_err(Broken::Seal)?;
    }
    Ok(attach::no_arp_up(interface)?)
}

impl Cable {
    /// Takes connections. True besides: the interface is here already, from an earlier life of the agent.
    ///
    /// # Errors
    /// Out of descriptors.
    pub(super) fn start(spec: &PortSpec, listener: OwnedFd, vswitch: &Vswitch) -> io::Result<(Self, bool)> {
        let listener = std::os::unix::net::UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let interface = spec.interface();
        if attach::is_tap(&interface) {
            attach::delete(&interface);
        }
        let here = if_nametoindex(interface.as_str()).is_ok();
        if here {
            dress(&interface, vswitch).map_err(io::Error::other)?;
        }
        let shared = Arc::new(Mutex::new(spec.clone()));
        let (sender, state) =
            watch::channel(LinkState { offloads: Offloads::TSO, max_frame: MAX_FRAME, ..LinkState::default() });
        let serve = Serve { link: spec.link, spec: Arc::clone(&shared), vswitch: vswitch.clone(), state: sender };
        let task = tokio::spawn(serve.run(listener));
        Ok((Self { state, spec: shared, interface, task }, here))
    }

    /// What the row of a plugged cable says from now on. True: it is plugged.
    pub(super) fn change(&self, spec: &PortSpec) -> bool {
        *self.spec.lock().unwrap_or_else(PoisonError::into_inner) = spec.clone();
        if_nametoindex(self.interface.as_str()).is_ok()
    }

    pub(super) fn state(&self) -> LinkState {
        self.state.borrow().clone()
    }

    /// Out of the switch, and into it.
    pub(super) fn counters(&self) -> (Counters, Counters) {
        kernel_counters(&self.interface)
    }
}

/// What the task works with.
struct Serve {
    link: LinkNumber,
    spec: Arc<Mutex<PortSpec>>,
    vswitch: Vswitch,
    state: watch::Sender<LinkState>,
}

impl Serve {
    /// Takes connections until aborted; a newer one displaces an older one.
    async fn run(self, listener: UnixListener) {
        let link = self.link;
        let mut live: Option<Live> = None;
        loop {
            let accepted = tokio::select! {
                // Both arms are cancel-safe: what was read of a note stays in the reader.
                accepted = listener.accept() => accepted,
                ended = serve(live.as_mut(), link) => {
                    tracing::info!(%link, error = %ended, "unlinked");
                    live = None;
                    let text = Some(ended.to_string().into());
                    self.state.send_modify(|state| (state.linked, state.last_error) = (false, text));
                    continue;
                }
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    // Out of descriptors: the client stays in the backlog.
                    tracing::warn!(%link, %error, "no connection is taken for a moment");
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    continue;
                }
            };
            let former = live.as_ref().map(|live| live.epoch);
            match timeout(STEP, self.begin(stream, former)).await.unwrap_or(Err(Broken::Silent)) {
                Ok(connection) => {
                    self.state.send_modify(|state| {
                        (state.linked, state.epoch, state.last_error) = (true, connection.epoch, None);
                        state.connections += 1;
                    });
                    tracing::debug!(%link, epoch = connection.epoch, "linked");
                    live = Some(connection);
                }
                Err(error) => {
                    tracing::info!(%link, %error, "connection refused");
                    self.state.send_modify(|state| state.last_error = Some(error.to_string().into()));
                }
            }
        }
    }

    /// Hellos, then the interface, then its port.
    async fn begin(&self, mut stream: UnixStream, former: Option<u64>) -> Result<Live, Broken> {
        let link = self.link;
        let ours = Hello::end(Kind::Helper, link, MAX_FRAME, Offloads::TSO).carrying(Carriers::CABLE);
        stream.write_all(&ours.encode()).await?;
        let mut bytes = [0; Hello::SIZE];
        stream.read_exact(&mut bytes).await?;
        let relay = Hello::expect(&bytes, Kind::Relay, link)?;
        if relay.carrier() != Carrier::Cable {
            return Err(Broken::Carrier(relay.carrier()));
        }
        if let Some(former) = former.filter(|former| relay.epoch <= *former) {
            return Err(Broken::OldEpoch(relay.epoch, former));
        }
        stream.read_exact(&mut bytes).await?;
        Hello::expect(&bytes, Kind::Container, link)?.can(Carrier::Cable)?;
        let mut live = Live { stream, reader: Reader::default(), epoch: relay.epoch };
        let namespace = File::open("/proc/thread-self/ns/net")?;
        note::send(&live.stream, &Note::Lend, Some(namespace.as_fd()))?;
        let interface = spec::interface(link);
        match live.note().await {
            Ok((Note::Taken, _)) => {}
            Ok((note, _)) => return Err(Broken::OutOfTurn(note)),
            Err(Broken::Told(text)) => {
                // One that another container left may be in the way; its pair ended with it, or ends now.
                attach::delete(&interface);
                return Err(Broken::Told(text));
            }
            Err(error) => return Err(error),
        }
        if if_nametoindex(interface.as_str()).is_err() {
            return Err(Broken::NoInterface);
        }
        dress(&interface, &self.vswitch)?;
        let row = self.spec.lock().unwrap_or_else(PoisonError::into_inner).row();
        self.vswitch.change(BR_INT, &[row], &[]).await?;
        settle_later(&self.vswitch);
        note::send(&live.stream, &Note::Taken, None)?;
        Ok(live)
    }
}

/// Answers what a connection asks until it ends.
async fn serve(live: Option<&mut Live>, link: LinkNumber) -> Broken {
    let Some(live) = live else { return std::future::pending().await };
    loop {
        match live.note().await {
            Ok((Note::Ask, _)) => {
                let (out, into) = kernel_counters(&spec::interface(link));
                let numbers = |c: Counters| [c.frames, c.bytes, c.drops];
                let counts = Counts { to_helper: numbers(into), to_container: numbers(out) };
                if let Err(error) = note::send(&live.stream, &Note::Counters(counts), None) {
                    return error.into();
                }
            }
            Ok((note, _)) => return Broken::OutOfTurn(note),
            Err(error) => return error,
        }
    }
}

impl Live {
    async fn note(&mut self) -> Result<(Note, Option<OwnedFd>), Broken> {
        let Self { stream, reader, .. } = self;
        let would_block = || io::Error::from(io::ErrorKind::WouldBlock);
        let read = stream.async_io(Interest::READABLE, || reader.read(&*stream)?.ok_or_else(would_block));
        match read.await? {
            (Note::Failed(text), _) => Err(Broken::Told(text)),
            said => Ok(said),
        }
    }
}
