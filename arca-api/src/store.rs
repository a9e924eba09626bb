// SPDX-License-Identifier: Apache-2.0
//! What must survive arca-api: documents in SQLite (`data/api.db`; WAL, `synchronous=FULL`).
//!
//! One thread owns the connection and writes; changes that queue while a transaction is on its way to the disk share the
//! next one. [`Store::put`] and [`Store::delete`] answer when the change is on disk. A document is JSON under
//! (kind, id): "container", "volume".

use std::path::Path;

use rusqlite::{Connection, params};
use tokio::sync::{mpsc, oneshot};

/// The database could not be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// Opening or creating.
    #[error("open the database {path}: {cause} (is another engine using the same data?)")]
    Open {
        /// File.
        path: String,
        /// SQLite's text.
        cause: String,
    },
    /// A statement failed.
    #[error("database: {0} (is the disk full?)")]
    Statement(String),
    /// The writer thread has ended.
    #[error("the database is closed")]
    Closed,
}

struct Change {
    kind: &'static str,
    id: String,
    /// `None` deletes.
    document: Option<String>,
    done: oneshot::Sender<Result<(), StoreError>>,
}

/// Handle of the writer thread.
#[derive(Clone, Debug)]
pub struct Store {
    changes: mpsc::UnboundedSender<Change>,
}

/// Documents found when the database was opened: (kind, id, JSON).
pub type Documents = Vec<(String, String, String)>;

impl Store {
    /// Opens or creates the database, starts its thread, returns what is in it.
    ///
    /// # Errors
    /// [`StoreError::Open`].
    pub fn open(path: &Path) -> Result<(Self, Documents), StoreError> {
        let fail = |cause: String| StoreError::Open { path: path.display().to_string(), cause };
        let connection = Connection::open(path).map_err(|error| fail(error.to_string()))?;
        let documents = prepare(&connection).map_err(|error| fail(error.to_string()))?;
        let (changes, receiver) = mpsc::unbounded_channel();
        std::thread::Builder::new()
            .name("store".into())
            .spawn(move || writer(connection, receiver))
            .map_err(|error| fail(error.to_string()))?;
        Ok((Self { changes }, documents))
    }

    /// Stores a document; on disk when this returns.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn put(&self, kind: &'static str, id: &str, document: String) -> Result<(), StoreError> {
        self.change(kind, id, Some(document)).await
    }

    /// Deletes a document; deleting what is not there is no error.
    ///
    /// # Errors
    /// [`StoreError`].
    pub async fn delete(&self, kind: &'static str, id: &str) -> Result<(), StoreError> {
        self.change(kind, id, None).await
    }

    async fn change(&self, kind: &'static str, id: &str, document: Option<String>) -> Result<(), StoreError> {
        let (done, answer) = oneshot::channel();
        self.changes.send(Change { kind, id: id.to_owned(), document, done }).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<Documents> {
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // One engine per database: a second arca-api must fail here, not corrupt the first one's view.
    connection.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    connection.execute_batch(
        "BEGIN IMMEDIATE;
         CREATE TABLE IF NOT EXISTS document (
             kind TEXT NOT NULL, id TEXT NOT NULL, json TEXT NOT NULL, PRIMARY KEY (kind, id)
         ) WITHOUT ROWID;
         COMMIT;",
    )?;
    let mut statement = connection.prepare("SELECT kind, id, json FROM document ORDER BY kind, id")?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
    rows.collect()
}

#[allow(clippy::needless_pass_by_value)] // The thread owns both.
fn writer(mut connection: Connection, mut changes: mpsc::UnboundedReceiver<Change>) {
    while let Some(first) = changes.blocking_recv() {
        let mut batch = vec![first];
        while let Ok(next) = changes.try_recv() {
            batch.push(next);
        }
        let result = commit(&mut connection, &batch).map_err(|error| StoreError::Statement(error.to_string()));
        for change in batch {
            // Whoever asked may have gone; the change stands.
            let _ = change.done.send(result.clone());
        }
    }
}

fn commit(connection: &mut Connection, batch: &[Change]) -> rusqlite::Result<()> {
    let transaction = connection.transaction()?;
    for change in batch {
        match &change.document {
            Some(json) => transaction.execute(
                "INSERT OR REPLACE INTO document VALUES (?1, ?2, ?3)",
                params![change.kind, change.id, json],
            )?,
            None => transaction
                .execute("DELETE FROM document WHERE kind = ?1 AND id = ?2", params![change.kind, change.id])?,
        };
    }
    transaction.commit()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_was_acknowledged_is_there_after_reopening() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("api.db");
        {
            let (store, found) = Store::open(&path).expect("open");
            assert!(found.is_empty());
            store.put("container", "a", "{\"n\":1}".into()).await.expect("put");
            store.put("container", "b", "{}".into()).await.expect("put");
            store.put("container", "a", "{\"n\":2}".into()).await.expect("replace");
            store.delete("container", "b").await.expect("delete");
            store.delete("container", "zz").await.expect("deleting nothing");
        }
        // The writer thread ends with its last handle; the lock goes with the connection.
        let (_, found) = (0..100)
            .find_map(|_| {
                Store::open(&path).ok().or_else(|| {
                    std::thread::yield_now();
                    None
                })
            })
            .expect("reopen");
        assert_eq!(found, [("container".to_owned(), "a".to_owned(), "{\"n\":2}".to_owned())]);
    }

    #[tokio::test]
    async fn a_second_engine_on_the_same_data_is_refused() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("api.db");
        let (_store, _) = Store::open(&path).expect("first");
        let error = Store::open(&path).expect_err("second").to_string();
        assert!(error.contains("another engine"), "{error}");
    }
}
