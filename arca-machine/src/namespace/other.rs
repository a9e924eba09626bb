// SPDX-License-Identifier: Apache-2.0
//! Namespace machines where there are no namespaces.

use std::sync::Arc;

use crate::{Driver, MachineError};

pub(crate) fn driver() -> Result<Arc<dyn Driver>, MachineError> {
    Err(MachineError::Unavailable { kind: "namespace", reason: "namespaces are a Linux feature; set machine = \"vm\"" })
}
