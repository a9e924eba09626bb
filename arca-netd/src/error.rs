// SPDX-License-Identifier: Apache-2.0
//! The one error type of what arca-netd does. Its class becomes a gRPC code in [`crate::service::status`] and there
//! only; texts of refusals are Docker's, because clients match on them.

use crate::store::StoreError;

/// What arca-netd answers when something cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The request is wrong in itself (HTTP 400).
    #[error("{0}")]
    Invalid(String),
    /// The request is well-formed and not allowed here (403).
    #[error("{0}")]
    Forbidden(String),
    /// What it names does not exist (404).
    #[error("{0}")]
    NotFound(String),
    /// A name is taken (409).
    #[error("{0}")]
    Conflict(String),
    /// Something must end first (409).
    #[error("{0}")]
    Busy(String),
    /// Known to Docker, not to this engine yet (501).
    #[error("{0}")]
    Unsupported(String),
    /// No address is left (Docker answers 500).
    #[error("{0}")]
    Exhausted(String),
    /// A peer is away and may come back (503).
    #[error("{0}")]
    Unavailable(String),
    /// All else (500).
    #[error("{0}")]
    Failed(String),
    /// A step of a sequence failed; what was done before it has been undone.
    #[error("attach to network {network} failed at step {step:?}: {source}")]
    Step {
        /// Network name.
        network: String,
        /// The step.
        step: &'static str,
        /// Cause.
        source: Box<Error>,
    },
    /// Another Arca process refused.
    #[error("{peer} refused to {action}: {}", source.message())]
    Peer {
        /// Who.
        peer: &'static str,
        /// What was asked.
        action: String,
        /// Its answer.
        source: Box<tonic::Status>,
    },
    /// The database.
    #[error("keep the change on disk: {0}")]
    Store(#[from] StoreError),
    /// The kernel.
    #[error("{action}: {source}")]
    Io {
        /// What was tried.
        action: &'static str,
        /// Cause.
        source: std::io::Error,
    },
}

/// Whether a peer gave no answer of its own: it was not to be reached, or its connection broke under the call. tonic tells
/// the second with various codes; what an Arca process itself answered has no source.
pub(crate) fn is_away(status: &tonic::Status) -> bool {
    let broke = std::error::Error::source(status).is_some();
    broke || matches!(status.code(), tonic::Code::Unavailable | tonic::Code::Cancelled | tonic::Code::Unknown)
}

impl Error {
    /// Wraps a peer's answer.
    pub(crate) fn peer(peer: &'static str, action: impl Into<String>) -> impl FnOnce(tonic::Status) -> Self {
        let action = action.into();
        move |source| Self::Peer { peer, action, source: Box::new(source) }
    }

    /// Wraps a system call's error.
    pub(crate) fn io(action: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { action, source }
    }

    /// Whether the text is Docker's own and must reach the client as it is.
    pub(crate) fn is_dockers(&self) -> bool {
        matches!(
            self,
            Self::Invalid(_)
                | Self::Forbidden(_)
                | Self::NotFound(_)
                | Self::Conflict(_)
                | Self::Unsupported(_)
                | Self::Exhausted(_)
        )
    }
}

/// Short for what most functions here give.
pub type Result<T, E = Error> = std::result::Result<T, E>;
