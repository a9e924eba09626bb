// SPDX-License-Identifier: Apache-2.0
//! Platforms whose virtual machines are not QEMU's.

use std::sync::Arc;

use crate::{Driver, Machine, MachineError, Record, VmFiles};

const UNAVAILABLE: MachineError =
    MachineError::Unavailable { kind: "virtual", reason: "QEMU's machines are made on Linux hosts" };

pub(crate) fn driver(_files: VmFiles) -> Result<Arc<dyn Driver>, MachineError> {
    Err(UNAVAILABLE)
}

pub(crate) fn is_fast() -> bool {
    false
}

pub(crate) fn open(_record: &Record) -> Result<Option<Machine>, MachineError> {
    Err(UNAVAILABLE)
}

pub(crate) fn sweep(_record: &Record, _failures: Vec<String>) -> Result<(), MachineError> {
    Err(UNAVAILABLE)
}
