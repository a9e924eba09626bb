// SPDX-License-Identifier: Apache-2.0
//! Published ports: what listens on the host for a container.
//!
//! arca-netd says which host address and port lead to which load-balancer address (VIP) of OVN's gateway router. The
//! port is always bound here first: that reserves it, gives Docker's error when it is taken, and serves loopback, IPv6
//! and clients on this host. Clients from elsewhere may be redirected in the kernel, which keeps their address
//! ([`redirect`]).
//!
//! ```text
//! service ── Publisher ┬─ wanted     a request after validation
//!                      ├─ bind       sockets, and why there is none
//!                      ├─ tcp        one task a connection: two copies, half-close carried
//!                      ├─ udp        one task a client, ended by silence
//!                      ├─ helper     the way of both where the host has no route to the VIP
//!                      └─ redirect   nftables table arca_publish_TAG, for off-host clients
//! ```
//!
//! The host has a route to the VIP where the helper's uplink is an interface of its own. Where it is not (a VM with a
//! user-mode network, macOS) arca-netd names the helper machine, and each client is carried to its port 9998.

mod bind;
mod datagram;
mod helper;
#[cfg_attr(not(target_os = "linux"), path = "redirect_other.rs")]
mod redirect;
mod tcp;
mod udp;
mod wanted;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use arca_proto::dial::Address;
use arca_proto::relay::v1 as proto;
use tokio::sync::{Mutex, oneshot};
use tokio::task::JoinHandle;
use tonic::{Code, Status};

use bind::Bound;
use redirect::Redirects;
use udp::Limits;
use wanted::Wanted;

pub use bind::BindError;
pub use redirect::RedirectError;
pub use wanted::{InvalidWanted, Protocol};

/// All publications of this host.
#[derive(Debug)]
pub struct Publisher {
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    publications: BTreeMap<String, Publication>,
    redirects: Redirects,
}

/// One published port. Its task ends by `stop`, and with it listener and connections.
#[derive(Debug)]
struct Publication {
    request: proto::PublishRequest,
    wanted: Wanted,
    port: u16,
    meters: Arc<Meters>,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

/// Where a listener leads.
#[derive(Clone, Debug)]
struct Way {
    vip: SocketAddr,
    /// The machine that knows the way there, where this host does not.
    helper: Option<Address>,
}

/// What went through the listener. Connections that the kernel redirects are not seen here.
#[derive(Debug, Default)]
struct Meters {
    connections: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
}

/// Why a port was not published, or not cleanly withdrawn.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    /// The request cannot be.
    #[error("publish")]
    Invalid(#[from] InvalidWanted),
    /// Docker's text.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// The id is in use.
    #[error("publication {0} exists with other values; unpublish it first")]
    Conflict(String),
    /// The rules of a publication that was withdrawn.
    #[error("unpublish {id}")]
    Redirect {
        /// Publication.
        id: String,
        /// Cause.
        source: RedirectError,
    },
}

/// The one place where errors of this module become gRPC codes.
impl From<PublishError> for Status {
    fn from(error: PublishError) -> Self {
        let code = match &error {
            PublishError::Invalid(_) | PublishError::Bind(BindError::NotLocal { .. }) => Code::InvalidArgument,
            PublishError::Bind(BindError::Allocated { .. } | BindError::InUse { .. }) => Code::AlreadyExists,
            PublishError::Bind(BindError::Denied { .. }) => Code::PermissionDenied,
            PublishError::Bind(BindError::NoneFree { .. }) => Code::ResourceExhausted,
            PublishError::Conflict(_) => Code::FailedPrecondition,
            PublishError::Bind(BindError::Other { .. }) | PublishError::Redirect { .. } => Code::Internal,
        };
        Self::new(code, format!("{:#}", anyhow::Error::new(error)))
    }
}

impl Publisher {
    /// Nothing published. `tag` is the engine's.
    #[must_use]
    pub fn new(tag: &str) -> Self {
        let state = State { publications: BTreeMap::new(), redirects: Redirects::new(tag) };
        Self { state: Mutex::new(state) }
    }

    /// Binds the host port and serves it. The same request again gives the same publication.
    ///
    /// # Errors
    /// A status for arca-netd. `ALREADY_EXISTS`: the port is taken, `Bind for IP:PORT failed: port is already
    /// allocated` by another publication, `failed to bind host port for IP:PORT: CAUSE` by another process.
    /// `INVALID_ARGUMENT`: bad values, or not an address of this host (also `failed to bind ...: CAUSE`).
    pub async fn publish(&self, request: proto::PublishRequest) -> Result<proto::Publication, Status> {
        Ok(self.try_publish(request, Limits::default()).await?)
    }

    async fn try_publish(
        &self,
        request: proto::PublishRequest,
        limits: Limits,
    ) -> Result<proto::Publication, PublishError> {
        let wanted = Wanted::try_from(&request)?;
        let mut state = self.state.lock().await;
        let State { publications, redirects } = &mut *state;
        if let Some(present) = publications.get(&request.id) {
            return match present.request == request {
                true => Ok(present.message(redirects)),
                false => Err(PublishError::Conflict(request.id)),
            };
        }
        let taken: Vec<_> = publications.values().map(|p| (p.wanted.protocol, p.wanted.host, p.port)).collect();
        let (bound, port) = bind::bind(&wanted, &taken)?;
        let meters = Arc::<Meters>::default();
        let (stop, stopped) = oneshot::channel();
        let way = Way { vip: wanted.vip, helper: wanted.helper.clone() };
        let task = match bound {
            Bound::Tcp(listener) => tokio::spawn(tcp::serve(listener, way, Arc::clone(&meters), stopped)),
            Bound::Udp(socket) => tokio::spawn(udp::serve(socket, way, Arc::clone(&meters), stopped, limits)),
        };
        if wanted.kernel_redirect {
            // The listener serves in any case, so a kernel that refuses is a reason in `way`, not an error.
            redirects.add(&request.id, wanted.protocol, wanted.host, port, wanted.vip).await;
        }
        let id = request.id.clone();
        let publication = Publication { request, wanted, port, meters, stop, task };
        let message = publication.message(redirects);
        tracing::info!(%id, port, vip = %publication.wanted.vip, way = %message.way, "published");
        publications.insert(id, publication);
        Ok(message)
    }

    /// Withdraws a publication: rules first, then listener and live connections, all gone when this returns. What is not
    /// published is no error.
    ///
    /// # Errors
    /// nft could not remove the rules; listener and connections are gone all the same.
    pub async fn unpublish(&self, id: &str) -> Result<(), Status> {
        let mut state = self.state.lock().await;
        let rules = state.redirects.remove(id).await;
        if let Some(publication) = state.publications.remove(id) {
            publication.end().await;
            tracing::info!(%id, "unpublished");
        }
        rules.map_err(|source| PublishError::Redirect { id: id.to_owned(), source }.into())
    }

    /// Follows neighbours' changes of the host's packet filter, which may be in the way of redirected clients or cease
    /// to be. Ends only where there is nothing to follow; run it as a task.
    pub async fn follow_neighbours(&self) {
        let changes = self.state.lock().await.redirects.changes();
        let followed = match changes {
            Ok(mut changes) => loop {
                match changes.next().await {
                    Ok(()) => {}
                    Err(error) => break error,
                }
                if let Err(error) = self.state.lock().await.redirects.reconsider().await {
                    tracing::warn!("{:#}", anyhow::Error::new(error).context("look for a neighbour's firewall"));
                }
            },
            Err(error) => error,
        };
        tracing::warn!(error = %followed, "a firewall's changes are noticed only when ports are published");
    }

    /// All publications by id.
    pub async fn list(&self) -> Vec<proto::Publication> {
        let state = self.state.lock().await;
        state.publications.values().map(|p| p.message(&state.redirects)).collect()
    }

    /// Withdraws everything; errors are named in the log.
    pub async fn close(&self) {
        let mut state = self.state.lock().await;
        if let Err(error) = state.redirects.clear().await {
            tracing::error!("{:#}", anyhow::Error::new(error).context("remove the rules of published ports"));
        }
        for (_, publication) in std::mem::take(&mut state.publications) {
            publication.end().await;
        }
    }
}

impl Publication {
    async fn end(self) {
        // The task may have ended by itself, with its listener; then nobody hears this.
        let _ = self.stop.send(());
        // A panic in it has been printed.
        let _ = self.task.await;
    }

    fn message(&self, redirects: &Redirects) -> proto::Publication {
        proto::Publication {
            request: Some(self.request.clone()),
            host_port: self.port.into(),
            way: match self.wanted.helper {
                Some(_) => "helper".to_owned(),
                None => redirects.way(&self.request.id),
            },
            connections: self.meters.connections.load(Relaxed),
            bytes_in: self.meters.bytes_in.load(Relaxed),
            bytes_out: self.meters.bytes_out.load(Relaxed),
        }
    }
}

#[cfg(test)]
#[cfg(target_os = "linux")]
mod tests;
