// SPDX-License-Identifier: Apache-2.0
//! Platforms without Virtualization.framework.

use std::sync::Arc;

use arca_daemon::exit::{Failure, Fatal};

use crate::{framework::Framework, spec::Spec};

/// # Errors
/// Always: the framework is macOS's.
pub(crate) fn machine(_spec: &Spec) -> anyhow::Result<Arc<dyn Framework>> {
    let text =
        "Virtualization.framework is a part of macOS: this program keeps machines there only (on Linux arca-vmm does)";
    Err(Fatal::new(Failure::Missing, text).into())
}
