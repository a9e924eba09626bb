// SPDX-License-Identifier: Apache-2.0
//! What the service needs of the machine it runs in, in the service's words. [`super::host`] does it for real; tests
//! have their own.

use std::collections::BTreeSet;
use std::future::Future;

use arca_proto::helper::v1 as proto;
use arca_proto::ports::LinkNumber;
use tokio::sync::watch;

use crate::nb::model::Config;
use crate::neighbours::Known;
use crate::ports::PortSpec;
use crate::uplink::Subnet;
use crate::vswitch::Installed;

/// Any failure; its text names the operation.
pub(super) type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The helper machine.
///
/// All methods may be called again with the same values and change nothing then. `configure` is called before every
/// other one; `routes`, `ensure` and `remove` never overlap with themselves.
pub(super) trait Machine: Send + Sync + 'static {
    /// Chassis id, uplink interface on the uplink bridge, the resolver's address, default route by the next hop.
    /// Returns the datapath, "netdev" or "system".
    fn configure(&self, config: &Config) -> impl Future<Output = Result<String, Failure>> + Send;

    /// MAC addresses on the uplink, those of the next hops at the latest when `configure` returns, if they answer.
    fn neighbours(&self) -> watch::Receiver<Known>;

    /// Ports whose flows the switch has, by the name of the logical one. Called once.
    fn installed(&self) -> watch::Receiver<Installed>;

    /// Exactly these subnets are reached by the gateway router's address of their family, so that the resolver's answers find their way.
    fn routes(&self, subnets: &BTreeSet<Subnet>) -> impl Future<Output = Result<(), Failure>> + Send;

    /// TAP, listener and bridge port of each link exist afterwards; one result for each.
    fn ensure(&self, ports: Vec<PortSpec>) -> impl Future<Output = Vec<(LinkNumber, Result<(), Failure>)>> + Send;

    /// They are gone afterwards, those that never were included.
    fn remove(&self, links: &[LinkNumber]) -> impl Future<Output = Result<(), Failure>> + Send;

    /// Links that have a port, those of an earlier agent included.
    fn links(&self) -> impl Future<Output = Vec<LinkNumber>> + Send;

    /// Ports with their counters.
    fn list(&self) -> impl Future<Output = Vec<proto::Port>> + Send;

    /// Processes, databases, versions, faults; object counts are left to the service.
    fn status(&self) -> impl Future<Output = proto::GetStatusResponse> + Send;
}
