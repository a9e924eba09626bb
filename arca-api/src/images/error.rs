// SPDX-License-Identifier: Apache-2.0
//! What may go wrong with images, in Docker's words.

use std::{io, path::PathBuf};

/// An image operation that failed. The text is what Docker clients see.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// No image of that name or id.
    #[error("No such image: {0}")]
    NotFound(String),
    /// A reference or an archive that makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// An archive that ends or is garbled in the middle.
    #[error("{0}")]
    Broken(String),
    /// Several images share the id prefix, or an image may not be removed.
    #[error("{0}")]
    Conflict(String),
    /// The store's own files cannot be read or written.
    #[error("{operation} {}: {source}", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Cause.
        source: io::Error,
    },
}

impl ImageError {
    /// HTTP status (Docker API, images).
    #[must_use]
    pub fn status(&self) -> u16 {
        match self {
            Self::NotFound(_) => 404,
            Self::Invalid(_) => 400,
            Self::Conflict(_) => 409,
            Self::Io { .. } | Self::Broken(_) => 500,
        }
    }

    /// For `map_err` on reading an archive; the texts are those of Go's tar reader.
    #[expect(clippy::needless_pass_by_value, reason = "for map_err")]
    pub(super) fn broken(error: io::Error) -> Self {
        let text = error.to_string();
        if error.kind() == io::ErrorKind::StorageFull {
            // The library puts names of files around it.
            let inner = error.get_ref().and_then(std::error::Error::source).map_or(text.clone(), ToString::to_string);
            return Self::Broken(inner);
        }
        let short = error.kind() == io::ErrorKind::UnexpectedEof || text.contains("failed to read entire block");
        Self::Broken(if short { "unexpected EOF".to_owned() } else { format!("archive is broken: {text}") })
    }

    pub(super) fn invalid(text: impl Into<String>) -> Self {
        Self::Invalid(text.into())
    }

    /// For `map_err` on file operations.
    pub(super) fn io(operation: &'static str, path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { operation, path, source }
    }
}
