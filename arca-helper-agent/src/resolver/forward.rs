// SPDX-License-Identifier: Apache-2.0
//! Names this engine does not know: which of the configured name servers are asked, and for how long a client waits.
//! Called by the sockets of [`super`].

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use tokio::sync::{Semaphore, watch};
use tokio::time::sleep;

use super::answer::{Query, Transport, Verdict};
use super::upstream::{QUIET, Upstream, Worth};

/// Queries that may wait for a name server at the same time; above it SERVFAIL tells clients to go easy.
const WAITING: usize = 256;

/// Servers of single machines that are remembered.
const OTHERS: usize = 256;

/// The configured name servers.
#[derive(Debug)]
pub(super) struct Forwarder {
    configured: watch::Receiver<Vec<SocketAddr>>,
    servers: Mutex<Vec<Arc<Upstream>>>,
    /// Servers that single machines ask instead (`--dns`); what is known of them is worth keeping for a while.
    others: Mutex<HashMap<SocketAddr, Arc<Upstream>>>,
    waiting: Semaphore,
}

impl Forwarder {
    pub(super) fn new(configured: watch::Receiver<Vec<SocketAddr>>) -> Self {
        Self { configured, servers: Mutex::default(), others: Mutex::default(), waiting: Semaphore::new(WAITING) }
    }

    /// Gets to know servers as they are configured, without waiting for a query.
    pub(super) async fn follow(&self) {
        let mut configured = self.configured.clone();
        loop {
            self.servers();
            if configured.changed().await.is_err() {
                return;
            }
        }
    }

    /// The present servers; what is known of those that stay is kept.
    fn servers(&self) -> Vec<Arc<Upstream>> {
        let configured = self.configured.borrow();
        // Every change is one assignment, so a panic elsewhere cannot leave the list half-changed.
        let mut servers = self.servers.lock().unwrap_or_else(PoisonError::into_inner);
        if !servers.iter().map(|server| server.address()).eq(configured.iter().copied()) {
            let known = |address: &SocketAddr| servers.iter().find(|server| server.address() == *address).cloned();
            *servers = configured.iter().map(|a| known(a).unwrap_or_else(|| Upstream::new(*a))).collect();
        }
        servers.clone()
    }

    /// A machine's own servers.
    fn others(&self, own: &[SocketAddr]) -> Vec<Arc<Upstream>> {
        let mut others = self.others.lock().unwrap_or_else(PoisonError::into_inner);
        if others.len() > OTHERS {
            // Nobody asks most of them any more; the others are met again.
            others.clear();
        }
        own.iter().map(|address| others.entry(*address).or_insert_with(|| Upstream::new(*address)).clone()).collect()
    }

    /// Asks `own` servers, or the configured ones if there are none. The first answer, else that nobody knows. Servers are asked in order, the next one as soon as those before have failed or
    /// are quiet; silent ones last or not at all.
    pub(super) async fn forward(&self, query: &Query, transport: Transport, own: &[SocketAddr]) -> Verdict {
        let Ok(_permit) = self.waiting.try_acquire() else { return query.fail(ResponseCode::ServFail) };
        let servers = if own.is_empty() { self.servers() } else { self.others(own) };
        let of = |worth| servers.iter().filter(move |server| server.worth() == worth);
        let mut next = of(Worth::Asking).chain(of(Worth::Probing)).cloned().collect::<Vec<_>>().into_iter();
        let mut asked = FuturesUnordered::new();
        loop {
            if asked.is_empty() {
                let Some(server) = next.next() else { return query.nobody_knows() };
                asked.push(server.ask(query, transport));
            }
            tokio::select! {
                Some(answer) = asked.next() => match answer {
                    Ok(answer) => return query.relay(answer),
                    Err(error) => tracing::debug!(%error, "a name server gave no answer"),
                },
                () = sleep(QUIET), if next.len() > 0 => {
                    asked.extend(next.next().map(|server| server.ask(query, transport)));
                }
            }
        }
    }
}
