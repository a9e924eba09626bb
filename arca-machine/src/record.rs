// SPDX-License-Identifier: Apache-2.0
//! What stays on disk of a running machine, so that a daemon that comes back finds it: `machine.json`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use arca_proto::dial::Address;
use serde::{Deserialize, Serialize};

use crate::Kind;

/// Name of the record in a machine's state directory.
const FILE: &str = "machine.json";

/// What a machine is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    /// Holds workloads: arca-init.
    Container,
    /// Holds OVS and OVN: arca-helper-agent.
    Helper,
}

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
