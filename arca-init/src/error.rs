// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a workload.

use std::{io, path::PathBuf};

/// An operation on a workload or one of its processes failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InitError {
    /// Unknown workload.
    #[error("no such workload: {0}")]
    NoSuchWorkload(String),
    /// Unknown exec'd process.
    #[error("no such exec: {0}")]
    NoSuchExec(String),
    /// The id is taken.
    #[error("{kind} {id} exists already")]
    Exists {
        /// Workload or exec.
        kind: &'static str,
        /// Which.
        id: String,
    },
    /// The request makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The operation needs another state.
    #[error("workload {id} is {state}")]
    State {
        /// Which.
        id: String,
        /// The state it is in.
        state: &'static str,
    },
    /// The executable, or the folder to run it in, does not exist.
    #[error("{0}")]
    NotFound(String),
    /// The executable may not be executed.
    #[error("{0}")]
    Denied(String),
    /// The OCI runtime refused for another reason; its words.
    #[error("{0}")]
    Runtime(String),
    /// The OCI runtime itself could not be run.
    #[error("run {} (is it installed? ARCA_CRUN names another)", program.display())]
    RuntimeMissing {
        /// Its path or name.
        program: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// A file, mount or descriptor.
    #[error("{operation} {}: {source}", path.display())]
    File {
        /// What was tried.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Cause; part of the text because it crosses the wire as text.
        source: io::Error,
    },
    /// Removal went on past these failures.
    #[error("workload {id} is removed, but not everything of it: {}", failures.join("; "))]
    Leftovers {
        /// Which.
        id: String,
        /// One line each.
        failures: Vec<String>,
    },
}

impl InitError {
    /// For `map_err` on file operations.
    pub(crate) fn file(operation: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { operation, path, source }
    }
}
