// SPDX-License-Identifier: Apache-2.0
//! Tables and their migration. Bodies are JSON of the types in [`crate::model`]; a column stands beside the body only
//! where the database itself must guard uniqueness.

use std::{path::Path, sync::Arc, time::Duration};

use rusqlite::{Connection, ErrorCode, params};
use serde::de::DeserializeOwned;

use super::{
    StoreError,
    state::{Change, GENERATION, State, Table},
};

/// Statements that lead from schema version `n` to `n + 1`.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE meta (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
    CREATE TABLE networks (key TEXT PRIMARY KEY, body TEXT NOT NULL,
        name TEXT NOT NULL UNIQUE GENERATED ALWAYS AS (json_extract(body, '$.spec.name')) STORED) STRICT;
    CREATE TABLE endpoints (key TEXT PRIMARY KEY, body TEXT NOT NULL,
        link INTEGER UNIQUE GENERATED ALWAYS AS (json_extract(body, '$.place.link')) STORED) STRICT;
    CREATE TABLE publications (key TEXT PRIMARY KEY, body TEXT NOT NULL) STRICT;
"];

fn sqlite(action: &'static str) -> impl Fn(rusqlite::Error) -> StoreError {
    move |source| match source.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => StoreError::Locked,
        _ => StoreError::Sqlite { action, source: Arc::new(source) },
    }
}

/// Opens, locks for this process alone, migrates and reads.
pub(super) fn open(path: &Path) -> Result<(Connection, State), StoreError> {
    let mut connection = Connection::open(path).map_err(sqlite("cannot be opened"))?;
    // The lock is held for life: waiting for another process to give it up would only delay the clear answer.
    connection.busy_timeout(Duration::ZERO).map_err(sqlite("cannot be opened"))?;
    let pragma = "PRAGMA locking_mode=EXCLUSIVE; PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL;";
    connection.execute_batch(pragma).map_err(sqlite("cannot be locked"))?;
    let known = i64::try_from(MIGRATIONS.len()).unwrap_or(i64::MAX);
    let found: i64 =
        connection.query_row("PRAGMA user_version", [], |row| row.get(0)).map_err(sqlite("has no version"))?;
    if found > known {
        return Err(StoreError::Newer { found, known });
    }
    let transaction = connection.transaction().map_err(sqlite("cannot be migrated"))?;
    for statements in MIGRATIONS.iter().skip(usize::try_from(found).unwrap_or(0)) {
        transaction.execute_batch(statements).map_err(sqlite("cannot be migrated"))?;
    }
    transaction.pragma_update(None, "user_version", known).map_err(sqlite("cannot be migrated"))?;
    transaction.commit().map_err(sqlite("cannot be migrated"))?;
    let state = read(&connection)?;
    Ok((connection, state))
}

fn read(connection: &Connection) -> Result<State, StoreError> {
    let mut state = State::default();
    let mut statement = connection.prepare("SELECT key, body FROM meta").map_err(sqlite("cannot be read"))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sqlite("cannot be read"))?;
    for row in rows {
        let (key, body): (String, String) = row.map_err(sqlite("cannot be read"))?;
        if key == GENERATION {
            state.generation = body.parse().unwrap_or(0);
        } else {
            state.meta.insert(key, body);
        }
    }
    state.networks = rows_of(connection, Table::Networks, |network: &crate::model::Network| network.id.clone())?;
    state.endpoints = rows_of(connection, Table::Endpoints, |endpoint: &crate::model::Endpoint| endpoint.id.clone())?;
    state.publications =
        rows_of(connection, Table::Publications, |publication: &crate::model::Publication| publication.id.clone())?;
    Ok(state)
}

fn rows_of<K: Ord, V: DeserializeOwned>(
    connection: &Connection,
    table: Table,
    key_of: impl Fn(&V) -> K,
) -> Result<std::collections::BTreeMap<K, Arc<V>>, StoreError> {
    let sql = format!("SELECT key, body FROM {}", table.name());
    let mut statement = connection.prepare(&sql).map_err(sqlite("cannot be read"))?;
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(sqlite("cannot be read"))?;
    rows.map(|row| {
        let (key, body): (String, String) = row.map_err(sqlite("cannot be read"))?;
        let value: V = serde_json::from_str(&body).map_err(|source| StoreError::Row {
            table: table.name(),
            key,
            source: Arc::new(source),
        })?;
        Ok((key_of(&value), Arc::new(value)))
    })
    .collect()
}

/// One transaction, on disk when this returns.
pub(super) fn commit(connection: &mut Connection, changes: Vec<Change>) -> Result<(), StoreError> {
    let failed = sqlite("refused a change");
    let transaction = connection.transaction().map_err(&failed)?;
    for Change { table, key, body } in changes {
        let name = table.name();
        match body {
            Some(body) => {
                let body =
                    body.map_err(|source| StoreError::Row { table: name, key: key.clone(), source: Arc::new(source) })?;
                let sql =
                    format!("INSERT INTO {name} (key, body) VALUES (?1, ?2) ON CONFLICT (key) DO UPDATE SET body = ?2");
                transaction.prepare(&sql).map_err(&failed)?.execute(params![key, body]).map_err(&failed)?;
            }
            None => {
                let sql = format!("DELETE FROM {name} WHERE key = ?1");
                transaction.prepare(&sql).map_err(&failed)?.execute(params![key]).map_err(&failed)?;
            }
        }
    }
    transaction.commit().map_err(&failed)
}
