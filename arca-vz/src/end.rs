// SPDX-License-Identifier: Apache-2.0
//! How the machine ended, on disk: whoever was not there at that moment reads it later. The same file as arca-vmm's.

use std::{fs, io, path::Path, time::SystemTime};

use serde::{Deserialize, Serialize};

/// Name of the record in the state folder.
const FILE: &str = "vm-exit.json";

/// The record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct End {
    /// One line for a person.
    pub reason: String,
    /// It was asked to end.
    pub asked: bool,
    /// Milliseconds since 1970.
    pub at_ms: u64,
}

impl End {
    /// At this moment.
    #[must_use]
    pub fn now(reason: impl Into<String>, asked: bool) -> Self {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Self { reason: reason.into(), asked, at_ms: u64::try_from(since.as_millis()).unwrap_or(u64::MAX) }
    }

    /// Writes it in one step.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn store(&self, state: &Path) -> io::Result<()> {
        let path = state.join(FILE);
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, path)
    }

    /// Reads it; none while the machine lives or if there never was one.
    #[must_use]
    pub fn load(state: &Path) -> Option<Self> {
        serde_json::from_slice(&fs::read(state.join(FILE)).ok()?).ok()
    }

    /// A new run begins.
    ///
    /// # Errors
    /// It is there and cannot be removed.
    pub fn remove(state: &Path) -> io::Result<()> {
        match fs::remove_file(state.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
