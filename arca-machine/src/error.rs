// SPDX-License-Identifier: Apache-2.0
//! What can go wrong with a machine.

use std::{io, path::PathBuf, time::Duration};

use arca_proto::dial::DialError;

/// An operation on a machine failed.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// This platform cannot boot the wanted kind.
    #[error("{kind} machines are not available here: {reason}")]
    Unavailable {
        /// Wanted kind.
        kind: &'static str,
        /// Why not, and the way out.
        reason: &'static str,
    },
    /// Something that machines of this kind are made from is not there.
    #[error("{what} is missing: {fix}")]
    Missing {
        /// A file or a program.
        what: String,
        /// The way out.
        fix: String,
    },
    /// Something that machines of this kind are made from is there and of no use.
    #[error("{what} {} is of no use: {why}", path.display())]
    Unusable {
        /// What it should be.
        what: &'static str,
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The machine ended before it said READY, and its keeper knows why.
    #[error("machine {id} ended before it was ready: {reason}")]
    Ended {
        /// Machine.
        id: String,
        /// One line.
        reason: String,
    },
    /// A machine answers in the socket directory already.
    #[error("machine {id} runs already: it answers in {} (adopt it, or destroy it first)", directory.display())]
    Running {
        /// Machine.
        id: String,
        /// Its socket directory.
        directory: PathBuf,
    },
    /// A file or folder of the machine could not be made, read or removed.
    #[error("machine {id}: {operation} {}", path.display())]
    File {
        /// Machine.
        id: String,
        /// What was tried.
        operation: &'static str,
        /// Which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
    /// The machine's first process could not be started.
    #[error("machine {id}: {step} (root privileges and namespaces are needed)")]
    Spawn {
        /// Machine.
        id: String,
        /// The step of the child that failed.
        step: String,
        /// Cause.
        source: io::Error,
    },
    /// The machine's first process ended before it said READY.
    #[error("machine {id} ended before it was ready; last lines of its log:\n{log}")]
    Died {
        /// Machine.
        id: String,
        /// Tail of the log.
        log: String,
    },
    /// No READY in time; the machine was killed.
    #[error("machine {id} did not get ready within {timeout:?}; last lines of its log:\n{log}")]
    NotReady {
        /// Machine.
        id: String,
        /// How long it was waited for.
        timeout: Duration,
        /// Tail of the log.
        log: String,
    },
    /// A system call on the machine's process failed.
    #[error("machine {id}: {operation}")]
    Process {
        /// Machine.
        id: String,
        /// What was tried.
        operation: &'static str,
        /// Cause.
        source: io::Error,
    },
    /// A port of the machine could not be reached.
    #[error(transparent)]
    Dial(#[from] DialError),
    /// Teardown went on past these failures.
    #[error("machine {id} is gone, but not everything of it: {}", failures.join("; "))]
    Teardown {
        /// Machine.
        id: String,
        /// What is left, one line each.
        failures: Vec<String>,
    },
}
