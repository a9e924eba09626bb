// SPDX-License-Identifier: Apache-2.0
//! What can go wrong between a client and an OVSDB server.

/// Failure of a connection, a request or a transaction.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// Nothing was sent: there is no connection at the moment. Wait for [`super::Database::ready`] and decide anew.
    #[error("database {0}: not connected")]
    NotConnected(String),
    /// The request was sent and the connection broke before the answer: it may or may not have been committed.
    #[error("database {0}: the connection broke before the answer came, the outcome is unknown")]
    Lost(String),
    /// One operation of a transaction failed; nothing was committed.
    #[error("database {db}: operation {index} ({op}) failed: {error}: {details}")]
    Operation {
        /// Name of the database.
        db: String,
        /// Position in the transaction.
        index: usize,
        /// Verb and table, as "insert Logical_Switch".
        op: String,
        /// Error word of RFC 7047, as "timed out" or "constraint violation".
        error: String,
        /// The server's explanation.
        details: String,
    },
    /// All operations passed and the commit failed, for example on an index; nothing was committed.
    #[error("database {db}: commit failed: {error}: {details}")]
    Commit {
        /// Name of the database.
        db: String,
        /// Error word of RFC 7047.
        error: String,
        /// The server's explanation.
        details: String,
    },
    /// The server refused a request as a whole, for example because it does not hold this database.
    #[error("database {db}: {method} was refused: {reason}")]
    Refused {
        /// Name of the database.
        db: String,
        /// JSON-RPC method.
        method: &'static str,
        /// The server's answer.
        reason: String,
    },
    /// The schema lacks a table or column this program needs: OVN or OVS is too old or too new.
    #[error("database {db}: schema version {version} has no {missing}")]
    Schema {
        /// Name of the database.
        db: String,
        /// The server's schema version.
        version: String,
        /// "table X" or "column X.Y".
        missing: String,
    },
    /// The server sent something that is not OVSDB.
    #[error("unexpected data from an OVSDB server: {0}")]
    Protocol(String),
}

impl Error {
    /// Error word of RFC 7047 when the server judged a transaction, else `None`.
    pub fn word(&self) -> Option<&str> {
        match self {
            Self::Operation { error, .. } | Self::Commit { error, .. } => Some(error),
            _ => None,
        }
    }

    /// True when a `wait` operation did not hold ("timed out").
    pub fn is_wait_failure(&self) -> bool {
        self.word() == Some("timed out")
    }

    /// True when a later attempt on a new connection may succeed.
    pub fn is_disconnect(&self) -> bool {
        matches!(self, Self::NotConnected(_) | Self::Lost(_))
    }
}
