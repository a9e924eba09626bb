// SPDX-License-Identifier: Apache-2.0
//! Platforms on which the helper is a virtual machine with an uplink of its own.

use std::path::Path;

use super::{Uplink, uplink::Names};
use crate::{
    direct::Plan,
    error::{Error, Result},
};

/// # Errors
/// Always: there is no network namespace to connect.
pub async fn connect(_names: &Names, _uplink: Uplink, _netns: &Path, _adopted: bool, _plan: &Plan) -> Result<bool> {
    Err(Error::Unsupported("a helper in a network namespace is not supported on this platform".into()))
}

/// # Errors
/// Always, as above.
pub async fn connect_tap(_names: &Names, _uplink: Uplink, _plan: &Plan) -> Result<bool> {
    Err(Error::Unsupported("a helper machine has no interface of the host on this platform".into()))
}

/// # Errors
/// Never.
pub async fn clear(_names: &Names) -> Result<()> {
    Ok(())
}

/// # Errors
/// Never: no network is planned that needs it.
pub async fn settle(_names: &Names, _uplink: Uplink, _plan: &Plan) -> Result<()> {
    Ok(())
}

/// # Errors
/// Never.
pub async fn disconnect(_names: &Names) -> Result<()> {
    Ok(())
}
