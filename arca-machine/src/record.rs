// SPDX-License-Identifier: Apache-2.0
//! What stays on disk of a running machine, so that a daemon that comes back finds it: `machine.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use arca_proto::{dial::Address, keeper::Role};
use serde::{Deserialize, Serialize};

use crate::{Kind, MachineError};

/// Name of the record in a machine's state directory.
const FILE: &str = "machine.json";

/// One machine as its launcher knew it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Record {
    /// Machine id.
    pub id: String,
    /// What it is made of.
    #[serde(default)]
    pub kind: Kind,
    /// What it is for.
    pub role: Role,
    /// How its ports are dialled.
    pub address: Address,
    /// Process id of its keeper on the host.
    pub pid: u32,
    /// Start time of that process (proc(5), stat field 22, clock ticks since boot): tells it from a later process with
    /// the same id.
    pub start_time: u64,
    /// Log of its first process.
    pub log: PathBuf,
    /// Folder of this record.
    pub state_directory: PathBuf,
    /// Where the guest programs lie; the keeper's own program sweeps up after a keeper that was killed.
    pub guest_directory: PathBuf,
}

impl Record {
    /// Writes the record in one step: a reader sees the old one, the new one or none.
    pub(crate) fn store(&self) -> io::Result<()> {
        let path = self.state_directory.join(FILE);
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(temporary, path)
    }

    /// Reads the record of `state_directory`; `None` if no machine was ever launched there or it was destroyed.
    ///
    /// # Errors
    /// It cannot be read, or is no record.
    pub fn load(state_directory: &Path) -> io::Result<Option<Self>> {
        match fs::read(state_directory.join(FILE)) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// As [`Record::load`], the error naming what could not be read.
    pub(crate) fn find(state_directory: &Path) -> Result<Option<Self>, MachineError> {
        Self::load(state_directory).map_err(|source| MachineError::File {
            id: state_directory.display().to_string(),
            operation: "read the machine record in",
            path: state_directory.to_path_buf(),
            source,
        })
    }

    /// Folder of a virtual machine's sockets.
    pub(crate) fn sockets(&self) -> Option<&Path> {
        match &self.address {
            Address::Hybrid(socket) => socket.parent(),
            Address::Vsock(_) | Address::Sockets(_) => None,
        }
    }

    /// Removes sockets and record of a virtual machine that is not running; `failures` are of what went before.
    pub(crate) fn sweep(&self, mut failures: Vec<String>) -> Result<(), MachineError> {
        if let Some(sockets) = self.sockets()
            && let Err(error) = fs::remove_dir_all(sockets)
            && error.kind() != io::ErrorKind::NotFound
        {
            failures.push(format!("remove {}: {error}", sockets.display()));
        }
        if let Err(error) = self.remove() {
            failures.push(format!("remove the machine record: {error}"));
        }
        if failures.is_empty() { Ok(()) } else { Err(MachineError::Teardown { id: self.id.clone(), failures }) }
    }

    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_file(self.state_directory.join(FILE)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stored_record_is_read_back_and_a_missing_one_is_none() {
        let directory = tempfile::tempdir().expect("temporary directory");
        assert_eq!(Record::load(directory.path()).expect("no record"), None);
        let record = Record {
            id: "m1".into(),
            kind: Kind::Vm,
            role: Role::Container,
            address: Address::Sockets("/x/m1".into()),
            pid: 42,
            start_time: 7,
            log: "/x/log".into(),
            state_directory: directory.path().into(),
            guest_directory: "/x/guest".into(),
        };
        record.store().expect("store");
        assert_eq!(Record::load(directory.path()).expect("load"), Some(record.clone()));
        record.remove().expect("remove");
        record.remove().expect("removing twice is no error");
        assert_eq!(Record::load(directory.path()).expect("no record"), None);
    }

    #[test]
    fn a_torn_record_is_an_error_not_a_machine() {
        let directory = tempfile::tempdir().expect("temporary directory");
        fs::write(directory.path().join(FILE), b"{\"id\":").expect("write");
        assert!(Record::load(directory.path()).is_err());
    }
}
