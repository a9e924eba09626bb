// SPDX-License-Identifier: Apache-2.0
//! A client of OVSDB servers (RFC 7047 and the `monitor_cond_since` extension of ovsdb-server(7)). Knows nothing of
//! OVN and OVS; `nb`, `vswitch` and the supervisor say which tables they mean.
//!
//! ```text
//!   transact(ops) ──> connection task ──unix socket──> ovsdb-server
//!   snapshot()    <──  (one per database: pipelines requests, answers echo,
//!   changed()     <──   applies update3, reconnects and re-monitors)
//! ```
//!
//! When [`Database::transact`] has answered, the snapshot holds what it changed: the server sends the update first.

mod cache;
mod connection;
mod error;
mod op;
mod schema;
mod stream;
mod value;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::Arc;

use tokio::sync::{mpsc, oneshot, watch};

pub use cache::{Change, Row, Snapshot};
pub use error::Error;
pub use op::{Condition, Mutator, Op, OpResult};
pub use schema::Schema;
pub use stream::{Decoder, MAX_MESSAGE};
pub use value::{Atom, Uuid, Value};

/// A table to keep a copy of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Monitor {
    table: String,
    columns: Vec<String>,
    optional: Vec<String>,
}

impl Monitor {
    /// These columns of `table`; a server without one of them is refused.
    pub fn new(table: &str, columns: &[&str]) -> Self {
        let columns = columns.iter().map(|c| (*c).to_owned()).collect();
        Self { table: table.into(), columns, optional: Vec::new() }
    }

    /// Columns that only newer schemas have. Ask [`Schema::has`] before using them.
    pub fn optional(mut self, columns: &[&str]) -> Self {
        self.optional = columns.iter().map(|c| (*c).to_owned()).collect();
        self
    }
}

/// What the connection is doing.
#[derive(Clone, Debug, Default)]
struct State {
    snapshot: Arc<Snapshot>,
    /// Why the server is of no use although it answers; reconnecting goes on.
    refused: Option<Error>,
}

/// A request on its way to the connection task.
struct Request {
    ops: Vec<Op>,
    answer: oneshot::Sender<Result<Vec<OpResult>, Error>>,
}

/// Handle of one connection to one database; clones share it. The connection ends with the last handle.
#[derive(Clone, Debug)]
pub struct Database {
    name: Arc<str>,
    requests: mpsc::Sender<Request>,
    state: watch::Receiver<State>,
}

/// Tells of new snapshots.
#[derive(Clone, Debug)]
pub struct Changes(watch::Receiver<State>);

impl Changes {
    /// Waits for a snapshot that this handle has not returned yet. `None` when the connection has ended for good.
    /// Cancel-safe: nothing is taken until it returns.
    pub async fn next(&mut self) -> Option<Arc<Snapshot>> {
        self.0.changed().await.ok()?;
        Some(Arc::clone(&self.0.borrow_and_update().snapshot))
    }

    /// The newest snapshot; [`Changes::next`] then waits for a later one.
    pub fn current(&mut self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow_and_update().snapshot)
    }
}

impl Database {
    /// Starts connecting to database `name` behind the unix socket `path`, and keeps at it: returns at once, the
    /// server need not run yet. Must be called within a tokio runtime.
    pub fn connect(path: impl AsRef<Path>, name: &str, monitors: Vec<Monitor>) -> Self {
        let (requests, queue) = mpsc::channel(256);
        let (publish, state) = watch::channel(State::default());
        let path = path.as_ref().to_owned();
        tokio::spawn(connection::run(path, name.to_owned(), monitors, queue, publish));
        Self { name: name.into(), requests, state }
    }

    /// Name of the database, as "OVN_Northbound".
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Waits until the connection stands and the first contents are there. Fails only when the server's schema
    /// lacks something or it refuses the database; otherwise waits for ever (use a timeout). Cancel-safe.
    pub async fn ready(&self) -> Result<Arc<Snapshot>, Error> {
        let mut state = self.state.clone();
        let state = state
            .wait_for(|s| s.snapshot.connected || s.refused.is_some())
            .await
            .map_err(|_| Error::NotConnected(self.name.to_string()))?;
        match &state.refused {
            Some(error) => Err(error.clone()),
            None => Ok(Arc::clone(&state.snapshot)),
        }
    }

    /// Commits the operations as one transaction: either all or none. One result per operation.
    /// Dropping the future does not take back what was sent.
    pub async fn transact(&self, ops: Vec<Op>) -> Result<Vec<OpResult>, Error> {
        let (answer, result) = oneshot::channel();
        let gone = || Error::NotConnected(self.name.to_string());
        self.requests.send(Request { ops, answer }).await.map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }

    /// The newest known contents.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        Arc::clone(&self.state.borrow().snapshot)
    }

    /// Tells of every snapshot after this call. Several messages may fold into one; use
    /// [`Snapshot::changes_since`] to see what differs.
    pub fn changed(&self) -> Changes {
        let mut state = self.state.clone();
        state.mark_unchanged();
        Changes(state)
    }

    /// Waits until `pick` finds something in a current snapshot. Cancel-safe.
    pub async fn wait_for<T>(&self, mut pick: impl FnMut(&Snapshot) -> Option<T>) -> Result<T, Error> {
        let mut changes = Changes(self.state.clone());
        let mut snapshot = changes.current();
        loop {
            if snapshot.connected
                && let Some(found) = pick(&snapshot)
            {
                return Ok(found);
            }
            snapshot = changes.next().await.ok_or_else(|| Error::NotConnected(self.name.to_string()))?;
        }
    }
}
