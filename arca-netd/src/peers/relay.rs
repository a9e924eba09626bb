// SPDX-License-Identifier: Apache-2.0
//! arca-relayd: links and host listeners.
//!
//! [`Relay::run`] is one task: it watches, compares everything (arca-relayd keeps nothing over its own restart), and
//! starts again when the stream ends. Attaches and publishes use the same channel beside it; each checks afterwards
//! whether arca-relayd was restarted meanwhile, and the comparison checks before each action that it is still wanted.

use std::{
    collections::HashMap,
    net::IpAddr,
    path::Path,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use arca_proto::{
    dial::{self, Address},
    ports::LinkNumber,
    relay::v1::{self as proto, Carrier, relay_client::RelayClient},
};
use futures_util::{StreamExt as _, stream};
use tokio::{
    sync::{Mutex, Notify, watch},
    time::Instant,
};
use tonic::{Code, transport::Channel};

use super::{backoff::Backoff, objects};
use crate::{
    error::{Error, Result},
    helper::Helper,
    model::{Phase, Protocol, PublicationId},
    reconcile::diff::{Action, Bound, Desired, Observed, diff},
    store::Store,
};

/// A comparison repairs at least this often what no event told of.
const FULL_SYNC: Duration = Duration::from_secs(60);
/// Links opened and listeners bound at a time.
const PARALLEL: usize = 32;
/// How long one end of a link may take to be there, in milliseconds.
const OPEN_MS: u32 = 5000;
const WHO: &str = "arca-relayd";

/// Handle to arca-relayd.
#[derive(Debug)]
pub struct Relay {
    channel: Channel,
    helper: Arc<Helper>,
    store: Store,
    sessions: AtomicU64,
    links: watch::Sender<HashMap<u32, proto::Link>>,
    kick: Notify,
    /// A comparison that binds what was just withdrawn would hold a port that nobody has.
    ports: Mutex<()>,
}

/// Why a host port could not be bound.
#[derive(Debug)]
pub enum BindError {
    /// Somebody outside Arca holds it.
    Taken,
    /// No such address on this host.
    NotLocal,
    /// All else.
    Other(Error),
}

impl Relay {
    /// A handle; nothing is watched before [`Relay::run`].
    #[must_use]
    pub fn new(socket: &Path, helper: Arc<Helper>, store: Store) -> Self {
        Self {
            channel: dial::unix_channel(socket),
            helper,
            store,
            sessions: AtomicU64::new(0),
            links: watch::Sender::new(HashMap::new()),
            kick: Notify::new(),
            ports: Mutex::new(()),
        }
    }

    fn client(&self) -> RelayClient<Channel> {
        RelayClient::new(self.channel.clone())
    }

    /// Whether the helper machine shares this host's kernel.
    #[must_use]
    pub fn is_on_this_kernel(&self) -> bool {
        self.helper.is_on_this_kernel()
    }

    /// Asks for a comparison soon.
    pub fn kick(&self) {
        self.kick.notify_one();
    }

    /// Grows with each connection: two equal answers mean that arca-relayd was not seen restarting between them.
    #[must_use]
    pub fn session(&self) -> u64 {
        self.sessions.load(Ordering::Acquire)
    }

    /// Why a link is not up, "" if it is.
    #[must_use]
    pub fn trouble(&self, link: LinkNumber) -> String {
        match self.links.borrow().get(&link.get()) {
            Some(link) if link.state() == proto::link::State::Up => String::new(),
            Some(link) if !link.last_error.is_empty() => format!("link {}: {}", link.link, link.last_error),
            Some(_) | None => format!("link {link} is not up"),
        }
    }

    /// Keeps arca-relayd as wanted. Ends only by being dropped.
    pub async fn run(&self) {
        let mut backoff = Backoff::default();
        loop {
            let ended = self.session_once(&mut backoff).await;
            self.sessions.fetch_add(1, Ordering::AcqRel);
            self.links.send_modify(HashMap::clear);
            let error = ended.err().map_or_else(|| "stream ended".to_owned(), |error| error.to_string());
            tracing::warn!(%error, "arca-relayd is away; reconnecting");
            tokio::time::sleep(backoff.pause()).await;
        }
    }

    async fn session_once(&self, backoff: &mut Backoff) -> Result<()> {
        let mut client = self.client();
        let watching = client.watch_links(proto::WatchLinksRequest {}).await;
        let mut changes = watching.map_err(Error::peer(WHO, "be watched"))?.into_inner();
        self.sessions.fetch_add(1, Ordering::AcqRel);
        tracing::info!("arca-relayd is connected");
        backoff.reset();
        let mut failing = Backoff::default();
        // A comparison runs beside the stream: opening links takes as long as their machines take, and news of one
        // must not wait for that.
        let mut next = Instant::now();
        let mut comparing = std::pin::pin!(None);
        // Links need the helper's address: without it a comparison finds nothing to open, and after a restart of this
        // daemon the helper is often found again only after arca-relayd was.
        let mut helper = Box::pin(self.helper.changes());
        loop {
            let busy = comparing.is_some();
            tokio::select! {
                // Cancel-safe: tonic keeps a partly received message in the stream.
                message = changes.message() => match message.map_err(Error::peer(WHO, "be watched"))? {
                    Some(link) => self.note(link),
                    None => return Ok(()),
                },
                // Not cancelled: the future stays pinned until it is done.
                whole = under_way(comparing.as_mut()) => {
                    comparing.set(None);
                    next = match whole? {
                        true => { failing.reset(); Instant::now() + FULL_SYNC }
                        false => Instant::now() + failing.pause().max(Duration::from_secs(1)),
                    };
                }
                // Cancel-safe: a permit not taken stays.
                // Not cancelled either: subscribed anew before the comparison it leads to, so no change is missed.
                () = &mut helper, if !busy => {
                    helper = Box::pin(self.helper.changes());
                    comparing.set(Some(self.compare()));
                }
                () = self.kick.notified(), if !busy => comparing.set(Some(self.compare())),
                () = tokio::time::sleep_until(next), if !busy => comparing.set(Some(self.compare())),
            }
        }
    }

    fn note(&self, link: proto::Link) {
        if !link.last_error.is_empty() && link.state() != proto::link::State::Up {
            tracing::warn!(link = link.link, error = link.last_error, "link is not up");
        }
        self.links.send_modify(|links| {
            if link.state() == proto::link::State::Closed {
                links.remove(&link.link);
            } else {
                links.insert(link.link, link);
            }
        });
    }

    /// Lists, compares, acts. `false` if something did not work and should be tried again soon.
    async fn compare(&self) -> Result<bool> {
        let observed = self.observed().await?;
        let desired = self.desired();
        let helper = self.helper.current().map(|up| up.address);
        let actions = diff(&observed, &desired, helper.as_ref());
        if actions.is_empty() {
            return Ok(true);
        }
        tracing::info!(actions = actions.len(), "arca-relayd differs from what is wanted");
        let (removals, additions): (Vec<_>, Vec<_>) =
            actions.into_iter().partition(|action| matches!(action, Action::Close(_) | Action::Unpublish(_)));
        let mut whole = true;
        for batch in [removals, additions] {
            let results = stream::iter(batch).map(|action| self.act(action)).buffer_unordered(PARALLEL);
            let failures = results.filter_map(|result| async move { result.err() }).collect::<Vec<_>>().await;
            for error in failures {
                whole = false;
                tracing::warn!(%error, "arca-relayd could not be made as wanted");
            }
        }
        Ok(whole)
    }

    fn desired(&self) -> Desired {
        Desired::of(&self.store.state(), self.helper.carries_clients().as_ref())
    }

    /// See [`Helper::carries_clients`].
    #[must_use]
    pub fn carries_clients(&self) -> Option<Address> {
        self.helper.carries_clients()
    }

    async fn observed(&self) -> Result<Observed> {
        let mut client = self.client();
        let links =
            client.list_links(proto::ListLinksRequest::default()).await.map_err(Error::peer(WHO, "list its links"))?;
        let mut observed = Observed::default();
        for link in links.into_inner().links {
            let ends = || Some((address(link.container.clone())?, address(link.helper.clone())?));
            if link.state() == proto::link::State::Closed {
                continue;
            }
            if let (Ok(number), Some(ends)) = (LinkNumber::try_from(link.link), ends()) {
                observed.links.insert(number, ends);
            }
        }
        let request = proto::ListPublicationsRequest {};
        let list = client.list_publications(request).await.map_err(Error::peer(WHO, "list its publications"))?;
        for publication in list.into_inner().publications {
            let Some(request) = publication.request.clone() else { continue };
            match (PublicationId::try_from(request.id.clone()), bound(&publication)) {
                (Ok(id), Some(bound)) => {
                    observed.listeners.insert(id, bound);
                }
                _ => {
                    observed.foreign.insert(request.id);
                }
            }
        }
        Ok(observed)
    }

    /// Does one thing if it is still wanted, and takes it back if it ceased to be meanwhile.
    async fn act(&self, action: Action) -> Result<()> {
        match action {
            Action::Close(link) => {
                let state = self.store.state();
                let claimed = state.endpoints.values().any(|e| e.link() == Some(link) && e.phase != Phase::Removing);
                if claimed { Ok(()) } else { self.close(link).await }
            }
            Action::Unpublish(id) => {
                let desired = self.desired();
                match PublicationId::try_from(id.clone()) {
                    // Bound otherwise than wanted: it goes all the same, and comes back.
                    Ok(known) if desired.pending_listeners.contains(&known) => Ok(()),
                    _ => self.unpublish(&id).await,
                }
            }
            Action::Open(link) => {
                let wanted = || self.desired().links.get(&link).cloned();
                let Some((endpoint, container)) = wanted() else { return Ok(()) };
                let opened = self.open(link, &container).await;
                match wanted() {
                    Some((now, _)) if now == endpoint => opened,
                    _ if self.store.state().endpoints.values().any(|e| e.link() == Some(link)) => Ok(()),
                    _ => self.close(link).await,
                }
            }
            Action::Publish(id) => {
                // Whoever withdraws it meanwhile has forgotten it first, and gives it back after this.
                let _alone = self.ports.lock().await;
                let wanted = || self.desired().listeners.get(&id).cloned();
                let Some(bound) = wanted() else { return Ok(()) };
                let published = self.publish(&id, &bound).await;
                published.map_err(|error| match error {
                    BindError::Taken => Error::Failed(format!("host port {} was taken meanwhile", bound.host_port)),
                    BindError::NotLocal => Error::Failed(format!("{} is no address of this host now", bound.host_ip)),
                    BindError::Other(error) => error,
                })
            }
        }
    }

    /// Joins a machine's port with the helper's; answers when frames can flow.
    ///
    /// # Errors
    /// Which end failed, or that there is no helper.
    pub async fn open(&self, link: LinkNumber, container: &Address) -> Result<()> {
        let helper = self.helper.current().ok_or_else(|| Error::Unavailable("the helper machine is down".into()))?;
        let state = self.store.state();
        let place = state.endpoints.values().filter_map(|e| e.place.as_ref()).find(|place| place.link == link);
        let carrier = Carrier::from(place.map(|place| place.carrier).unwrap_or_default());
        let request = proto::OpenLinkRequest {
            link: link.get(),
            carrier: carrier.into(),
            container: Some(container.clone().into()),
            helper: Some(helper.address.into()),
            timeout_ms: OPEN_MS,
        };
        let what = format!("open link {link}");
        self.client().open_link(request).await.map(drop).map_err(Error::peer(WHO, what))
    }

    /// Closes a link; one that is not open is no error.
    ///
    /// # Errors
    /// If arca-relayd does not answer.
    pub async fn close(&self, link: LinkNumber) -> Result<()> {
        let closed = self.client().close_link(proto::CloseLinkRequest { link: link.get() }).await;
        absent_is_fine(closed, || format!("close link {link}"))
    }

    /// Binds a host port that leads to the router's uplink address.
    ///
    /// # Errors
    /// [`BindError`].
    pub async fn publish(&self, id: &PublicationId, bound: &Bound) -> Result<(), BindError> {
        let uplink = self.helper.uplink();
        let vip: IpAddr = match (bound.by_v6, uplink.v6()) {
            (true, Some(v6)) => v6.router().into(),
            (true, None) => {
                let why = format!("publish port {}: the helper's uplink has no IPv6", bound.host_port);
                return Err(BindError::Other(Error::Failed(why)));
            }
            (false, _) => uplink.router().into(),
        };
        let request = proto::PublishRequest {
            id: id.to_string(),
            protocol: objects::protocol(bound.protocol).into(),
            host_ip: bound.host_ip.to_string(),
            host_port: bound.host_port.into(),
            vip: vip.to_string(),
            vip_port: bound.vip_port.into(),
            // Redirected packets stay in their family, and need a route.
            kernel_redirect: bound.host_ip.is_ipv4() == vip.is_ipv4()
                && bound.helper.is_none()
                && cfg!(target_os = "linux"),
            helper: bound.helper.clone().map(Into::into),
        };
        match self.client().publish(request).await {
            Ok(_) => Ok(()),
            Err(status) => Err(match status.code() {
                Code::AlreadyExists => BindError::Taken,
                Code::InvalidArgument => BindError::NotLocal,
                _ => BindError::Other(Error::peer(WHO, format!("publish port {}", bound.host_port))(status)),
            }),
        }
    }

    /// Gives a host port back; one that is not bound is no error.
    ///
    /// # Errors
    /// If arca-relayd does not answer.
    pub async fn unpublish(&self, id: &str) -> Result<()> {
        let _alone = self.ports.lock().await;
        let gone = self.client().unpublish(proto::UnpublishRequest { id: id.into() }).await;
        absent_is_fine(gone, || "give a published port back".into())
    }
}

/// The outcome of the comparison under way; while there is none, nothing.
async fn under_way<F: Future>(mut comparing: Pin<&mut Option<F>>) -> F::Output {
    match comparing.as_mut().as_pin_mut() {
        Some(comparing) => comparing.await,
        None => std::future::pending().await,
    }
}

fn absent_is_fine<T>(answer: Result<T, tonic::Status>, what: impl FnOnce() -> String) -> Result<()> {
    match answer {
        Ok(_) => Ok(()),
        Err(status) if status.code() == Code::NotFound => Ok(()),
        Err(status) => Err(Error::peer(WHO, what())(status)),
    }
}

fn address(message: Option<arca_proto::machine::v1::Address>) -> Option<Address> {
    Address::try_from(message?).ok()
}

fn bound(publication: &proto::Publication) -> Option<Bound> {
    let request = publication.request.as_ref()?;
    Some(Bound {
        protocol: match request.protocol() {
            proto::Protocol::Tcp => Protocol::Tcp,
            proto::Protocol::Udp => Protocol::Udp,
            proto::Protocol::Unspecified => return None,
        },
        host_ip: request.host_ip.parse().ok()?,
        host_port: u16::try_from(publication.host_port).ok()?,
        vip_port: u16::try_from(request.vip_port).ok()?,
        by_v6: request.vip.parse::<IpAddr>().ok()?.is_ipv6(),
        helper: request.helper.clone().map(Address::try_from).transpose().ok()?,
    })
}
