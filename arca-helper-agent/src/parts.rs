// SPDX-License-Identifier: Apache-2.0
//! What [`crate::agent`] makes and [`crate::service`] works with. The service offers `nb_monitors() -> Vec<Monitor>`
//! for the first and `routes(Parts) -> tonic::service::Routes` to be served on port 9999.

use crate::ovsdb::Database;
use crate::ports::Ports;
use crate::status::Source;
use crate::uplink::Uplink;

/// Everything below the service.
#[derive(Clone, Debug)]
pub struct Parts {
    /// Northbound database. Not yet connected when the service gets it: use [`Database::ready`].
    pub nb: Database,
    /// Link TAPs.
    pub ports: Ports,
    /// Uplink and chassis id.
    pub uplink: Uplink,
    /// Report for GetStatus.
    pub status: Source,
}
