// SPDX-License-Identifier: Apache-2.0
//! Platforms on which the helper is a virtual machine with an uplink of its own.

use std::path::Path;

use super::{Uplink, uplink::Names};
use crate::error::{Error, Result};

/// # Errors
/// Always: there is no network namespace to connect.
pub async fn connect(_names: &Names, _uplink: Uplink, _netns: &Path, _adopted: bool) -> Result<bool> {
    Err(Error::Unsupported("a helper in a network namespace is not supported on this platform".into()))
}

/// # Errors
/// Never.
pub async fn disconnect(_names: &Names) -> Result<()> {
    Ok(())
}
