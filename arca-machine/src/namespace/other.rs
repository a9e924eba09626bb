// SPDX-License-Identifier: Apache-2.0
//! Namespace machines where there are no namespaces.

use std::sync::Arc;

use crate::{Driver, Machine, MachineError, Record};

pub(crate) fn driver() -> Result<Arc<dyn Driver>, MachineError> {
    Err(MachineError::Unavailable { kind: "namespace", reason: "namespaces are a Linux feature; set machine = \"vm\"" })
}

pub(crate) fn open(_record: &Record) -> Result<Option<Machine>, MachineError> {
    driver().map(|_| None)
}

pub(crate) async fn sweep(_record: &Record) -> Result<(), MachineError> {
    driver().map(drop)
}
