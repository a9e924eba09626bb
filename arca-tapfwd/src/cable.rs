// SPDX-License-Identifier: Apache-2.0
//! An interface that is one end of a veth pair whose other end lies in the helper machine (carrier `cable`).
//!
//! ```text
//! eth0 ══ veth pair ══ arca<n>   made here, both ends here
//! eth0 ══════════════|═ arca<n>  the helper lends its network namespace (`arca_proto::note`): the other end is moved there
//! ```
//!
//! Frames need no process then; a task only answers the relay. The helper's namespace is held open, here and by the
//! descriptor store: when the helper machine dies the pair therefore stays, with all addresses and routes of `eth0`, and
//! its other end is moved on to the next helper.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arca_link::stats::kernel_counters;
use arca_link::{Counters, Kind, LinkState, Offloads};
use arca_proto::fdstore::{Client, FdStoreError};
use arca_proto::frame::MAX_FRAME;
use arca_proto::hello::{Agreement, Carrier, Carriers, Hello, HelloError};
use arca_proto::note::{self, Note, Reader};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, Interest};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::restore;
use crate::settings::Settings;
use crate::veth::{self, Pair};

/// How long a connection may take to come to terms.
const STEP: Duration = Duration::from_secs(2);

/// A cable. Dropping it removes the interface, and the other end with it, unless the descriptor store keeps it.
#[derive(Debug)]
pub(crate) struct Cable {
    pair: Pair,
    state: watch::Receiver<LinkState>,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    settings: Settings,
    listener: OwnedFd,
    store: Option<Arc<Client>>,
    place: Mutex<Place>,
}

/// Where the other end is, and whether the descriptor store is to know.
#[derive(Debug, Default)]
struct Place {
    /// `None`: here.
    namespace: Option<Arc<OwnedFd>>,
    kept: bool,
}

/// Why a connection did not become, or ceased to be, the link's.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the stream broke: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Hello(#[from] HelloError),
    #[error("carrier {0} is wanted, but the interface is a cable's")]
    Carrier(Carrier),
    #[error("epoch {0} is not newer than the live connection's {1}")]
    OldEpoch(u64, u64),
    #[error("limit the interface to the agreed offloads: {0}")]
    Offloads(io::Error),
    #[error("{0:?} was said out of turn")]
    OutOfTurn(Note),
    #[error("the other end says: {0}")]
    Told(String),
    #[error("{0}")]
    Plug(String),
    #[error("silent for two seconds")]
    Silent,
}

/// A connection in use.
struct Live {
    stream: UnixStream,
    reader: Reader,
    epoch: u64,
    offloads: Offloads,
}

impl Cable {
    /// Over a pair that exists, whose other end is in `namespace`, or here.
    ///
    /// # Errors
    /// The listener is no unix socket, or there are no descriptors left.
    pub(crate) fn start(
        settings: &Settings,
        pair: Pair,
        listener: OwnedFd,
        namespace: Option<OwnedFd>,
        store: Option<Arc<Client>>,
    ) -> io::Result<Self> {
        let accepting = std::os::unix::net::UnixListener::from(listener.try_clone()?);
        accepting.set_nonblocking(true)?;
        let accepting = UnixListener::from_std(accepting)?;
        let kept = namespace.is_some();
        let place = Mutex::new(Place { namespace: namespace.map(Arc::new), kept });
        let shared = Arc::new(Shared { settings: settings.clone(), listener, store, place });
        let (sender, state) =
            watch::channel(LinkState { offloads: Offloads::TSO, max_frame: MAX_FRAME, ..LinkState::default() });
        let task = tokio::spawn(serve(Arc::clone(&shared), accepting, sender));
        Ok(Self { pair, state, shared, task })
    }

    pub(crate) fn watch(&self) -> watch::Receiver<LinkState> {
        self.state.clone()
    }

    /// Out of the interface and into it, as the kernel counts.
    pub(crate) fn counters(&self) -> (Counters, Counters) {
        kernel_counters(self.shared.settings.interface.as_str())
    }

    /// Has the store keep what is needed to go on, now and after each change.
    pub(crate) fn keep(&self) -> Result<(), FdStoreError> {
        let mut place = self.shared.lock();
        place.kept = true;
        self.shared.put(&place)
    }

    /// Nothing more is put into the store.
    pub(crate) fn let_go(&self) {
        self.shared.lock().kept = false;
    }

    /// Index of the interface.
    pub(crate) fn index(&self) -> u32 {
        self.pair.index()
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        self.task.abort();
        if self.shared.lock().kept {
            self.pair.leave();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Place> {
        // Each change is one assignment: a panic elsewhere cannot leave it half-changed.
        self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn put(&self, place: &Place) -> Result<(), FdStoreError> {
        let Some(store) = self.store.as_ref().filter(|_| place.kept) else { return Ok(()) };
        let mut descriptors: Vec<BorrowedFd<'_>> = vec![self.listener.as_fd()];
        descriptors.extend(place.namespace.as_ref().map(|namespace| namespace.as_fd()));
        restore::put_link(store, &self.settings, &descriptors)
    }

    /// Moves the other end into `namespace`, if it is not there yet.
    async fn plug(&self, namespace: OwnedFd) -> Result<(), Broken> {
        let (to, from) = (Arc::new(namespace), self.lock().namespace.clone());
        let name = veth::far_name(self.settings.link);
        let lent = Arc::clone(&to);
        let moved = tokio::task::spawn_blocking(move || {
            veth::move_between(&name, from.as_deref().map(AsFd::as_fd), lent.as_fd())
                .map_err(|error| format!("move {name}: {error}"))
        });
        moved.await.map_err(|error| Broken::Plug(error.to_string()))?.map_err(Broken::Plug)?;
        let mut place = self.lock();
        place.namespace = Some(to);
        if let Err(error) = self.put(&place) {
            tracing::error!(%error, link = %self.settings.link, "the descriptor store does not know where the cable is");
        }
        Ok(())
    }
}

/// Takes connections until aborted; a newer one displaces an older one.
async fn serve(shared: Arc<Shared>, listener: UnixListener, state: watch::Sender<LinkState>) {
    let link = shared.settings.link;
    let mut live: Option<Live> = None;
    loop {
        let accepted = tokio::select! {
            // Both arms are cancel-safe: what was read of a note stays in the reader.
            accepted = listener.accept() => accepted,
            ended = end(live.as_mut()) => {
                tracing::info!(%link, error = %ended, "unlinked");
                live = None;
                state.send_modify(|state| (state.linked, state.last_error) = (false, Some(ended.to_string().into())));
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
        match timeout(STEP, begin(&shared, stream, former)).await.unwrap_or(Err(Broken::Silent)) {
            Ok(connection) => {
                state.send_modify(|state| {
                    (state.linked, state.epoch, state.last_error) = (true, connection.epoch, None);
                    state.offloads = connection.offloads;
                    state.connections += 1;
                });
                tracing::debug!(%link, epoch = connection.epoch, "linked");
                live = Some(connection);
            }
            Err(error) => {
                tracing::info!(%link, %error, "connection refused");
                state.send_modify(|state| state.last_error = Some(error.to_string().into()));
            }
        }
    }
}

/// The end of a connection. Nothing is said on one that stands.
async fn end(live: Option<&mut Live>) -> Broken {
    match live {
        Some(live) => match live.note().await {
            Ok((note, _)) => Broken::OutOfTurn(note),
            Err(error) => error,
        },
        None => std::future::pending().await,
    }
}

/// Hellos, then the cable.
async fn begin(shared: &Shared, mut stream: UnixStream, former: Option<u64>) -> Result<Live, Broken> {
    let link = shared.settings.link;
    let ours = Hello::end(Kind::Container, link, MAX_FRAME, Offloads::TSO).carrying(Carriers::CABLE);
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
    let helper = Hello::expect(&bytes, Kind::Helper, link)?;
    helper.can(Carrier::Cable)?;
    let offloads = Agreement::between(&ours, &helper).offloads;
    let mut live = Live { stream, reader: Reader::default(), epoch: relay.epoch, offloads };
    let namespace = match live.note().await? {
        (Note::Lend, Some(namespace)) => namespace,
        (note, _) => return Err(Broken::OutOfTurn(note)),
    };
    // Before the far side sees a frame of this connection.
    let limited = veth::limit_offloads(shared.settings.interface.as_str(), offloads).map_err(Broken::Offloads);
    let plugged = match limited {
        Ok(()) => shared.plug(namespace).await,
        Err(error) => Err(error),
    };
    if let Err(error) = plugged {
        note::send(&live.stream, &Note::Failed(error.to_string()), None)?;
        return Err(error);
    }
    note::send(&live.stream, &Note::Taken, None)?;
    match live.note().await? {
        (Note::Taken, _) => Ok(live),
        (note, _) => Err(Broken::OutOfTurn(note)),
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
