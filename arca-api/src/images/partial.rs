// SPDX-License-Identifier: Apache-2.0
//! Blobs on their way from a registry. A file below `partial/` grows while it comes and stays when the pull ends early;
//! the next pull asks for the rest. Only the unpacker, which checks the digest, takes it from there.

use std::{
    fs,
    path::PathBuf,
    sync::{Arc, PoisonError},
    time::{Duration, SystemTime},
};

use super::{ImageError, Store, digest_hex};

/// A partial blob that nobody went on with for so long is removed when the store is opened.
const FORGOTTEN: Duration = Duration::from_secs(7 * 24 * 3600);

/// The right to write one partial blob.
#[derive(Debug)]
pub struct Partial {
    /// Where its bytes are.
    pub path: PathBuf,
    _alone: tokio::sync::OwnedMutexGuard<()>,
}

impl Store {
    /// Waits until nobody else fetches this blob. Afterwards its layer may be there.
    pub async fn partial(&self, digest: &str) -> Partial {
        let lock = {
            let mut all = self.0.fetching.lock().unwrap_or_else(PoisonError::into_inner);
            all.retain(|_, lock| Arc::strong_count(lock) > 1);
            all.entry(digest.to_owned()).or_default().clone()
        };
        Partial { path: self.0.root.join("partial").join(digest_hex(digest)), _alone: lock.lock_owned().await }
    }

    /// Removes what was begun long ago.
    pub(super) fn clear_forgotten(&self) -> Result<(), ImageError> {
        let folder = self.0.root.join("partial");
        for entry in fs::read_dir(&folder).map_err(ImageError::io("list", &folder))?.flatten() {
            let changed = entry.metadata().and_then(|metadata| metadata.modified());
            let age = changed.ok().and_then(|at| SystemTime::now().duration_since(at).ok());
            if age.is_some_and(|age| age > FORGOTTEN) {
                fs::remove_file(entry.path()).map_err(ImageError::io("remove", &entry.path()))?;
            }
        }
        Ok(())
    }
}
