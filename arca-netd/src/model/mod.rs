// SPDX-License-Identifier: Apache-2.0
//! Domain types of arca-netd. What is parsed into one of them is valid from then on; wire types live only in
//! [`crate::service`] and [`crate::peers`].

mod endpoint;
mod extras;
mod ids;
mod network;
mod publication;

pub use endpoint::{Endpoint, Phase, Place};
pub use extras::Extras;
pub use ids::{EndpointId, InvalidId, InvalidMac, MacAddr, MachineId, NetworkId, PublicationId, WorkloadId};
pub use network::{Kind, Network, PoolV4, PoolV6, ShownPool, Spec};
pub use publication::{Listener, Protocol, Publication};
