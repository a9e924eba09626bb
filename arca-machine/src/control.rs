// SPDX-License-Identifier: Apache-2.0
//! Asks the keeper of a virtual machine, arca-vmm or arca-vz, by its record.

use std::{io, path::PathBuf};

use arca_proto::keeper::{self, Answer, Request};

use crate::{MachineError, Record, VmState};

/// A keeper by its record; `operation` is what errors say, "ask arca-vmm".
pub(crate) struct Asked<'a> {
    pub(crate) record: &'a Record,
    pub(crate) operation: &'static str,
}

impl Asked<'_> {
    fn failed(&self, source: io::Error) -> MachineError {
        MachineError::Process { id: self.record.id.clone(), operation: self.operation, source }
    }

    fn odd(&self) -> MachineError {
        self.failed(io::Error::other("it answered another question"))
    }

    /// The answer, if it is not that it failed.
    pub(crate) async fn answer(&self, request: &Request) -> Result<Answer, MachineError> {
        let sockets = self.record.sockets();
        let sockets = sockets.ok_or_else(|| self.failed(io::Error::other("the record has no socket directory")))?;
        match keeper::ask(sockets, request).await.map_err(|error| self.failed(error))? {
            Answer::Failed(text) => Err(self.failed(io::Error::other(text))),
            answer => Ok(answer),
        }
    }

    /// What the guest sees of what was exposed.
    pub(crate) async fn path(&self, request: &Request) -> Result<PathBuf, MachineError> {
        match self.answer(request).await? {
            Answer::Path(path) => Ok(path),
            _ => Err(self.odd()),
        }
    }

    /// How the machine is.
    pub(crate) async fn state(&self) -> Result<VmState, MachineError> {
        match self.answer(&Request::State).await? {
            Answer::State(state) => Ok(state),
            _ => Err(self.odd()),
        }
    }
}
