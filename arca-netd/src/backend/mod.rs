// SPDX-License-Identifier: Apache-2.0
//! What carries a network's frames. Everything above knows Docker; everything behind [`Backend`] does not need to.

pub mod ovn;
pub mod vmnet;

use std::sync::Arc;

use async_trait::async_trait;
use ipnet::{Ipv4Net, Ipv6Net};

use crate::{
    error::{Error, Result},
    model::{Endpoint, Kind, Network, Publication},
};
use vmnet::Vmnet;

/// What a backend can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Networks may be attached to a running machine.
    pub hot_attach: bool,
    /// Ports may be published.
    pub port_mapping: bool,
    /// A machine may have more than one network.
    pub several_networks: bool,
}

impl Capabilities {
    /// Those of the backend that carries networks of this kind; where none does, nothing is refused for lack of them.
    #[must_use]
    pub const fn of(kind: Kind) -> Self {
        match kind {
            Kind::Vmnet => vmnet::CAPABILITIES,
            Kind::Ovs | Kind::Host | Kind::None | Kind::Config => ovn::CAPABILITIES,
        }
    }
}

/// Addresses a new endpoint got.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    /// IPv4.
    pub v4: Option<Ipv4Net>,
    /// IPv6.
    pub v6: Option<Ipv6Net>,
}

/// A backend. All rows it is given are stored already, with their generations; a call may be repeated and then
/// changes nothing. Whoever calls serialises calls about the same endpoint, not about different ones.
#[async_trait]
pub trait Backend: Send + Sync {
    /// What it can do.
    fn capabilities(&self) -> Capabilities;

    /// Declares a network. If the backend is away, it learns of it when it is back and this is no error.
    async fn put_network(&self, network: &Network) -> Result<()>;

    /// Withdraws a network that has no endpoint.
    async fn remove_network(&self, network: &Network, generation: u64) -> Result<()>;

    /// Carries out an attachment up to a confirmed address. On failure nothing of it remains, and the error names the
    /// step.
    async fn attach(&self, network: &Network, endpoint: &Endpoint) -> Result<Addresses>;

    /// Gives an endpoint new names.
    async fn rename(&self, network: &Network, endpoint: &Endpoint) -> Result<()>;

    /// Takes an endpoint down as far as it is up, and goes on past failures.
    async fn detach(&self, endpoint: &Endpoint, generation: u64) -> Vec<Error>;

    /// Declares where a published port leads, or withdraws one that leads nowhere.
    async fn put_port(&self, publication: &Publication) -> Result<()>;

    /// Withdraws a published port.
    async fn remove_port(&self, publication: &Publication, generation: u64) -> Result<()>;
}

/// The backends of this engine.
#[derive(Clone)]
pub struct Backends {
    ovn: Arc<dyn Backend>,
    /// The native one: the engine also makes it follow the store and takes it down.
    pub(crate) vmnet: Arc<Vmnet>,
}

impl Backends {
    /// Both.
    #[must_use]
    pub fn new(ovn: Arc<dyn Backend>, vmnet: Arc<Vmnet>) -> Self {
        Self { ovn, vmnet }
    }

    /// The factory: which backend carries networks of this kind. None: nothing does, they have no frames.
    #[must_use]
    pub fn of(&self, kind: Kind) -> Option<&dyn Backend> {
        match kind {
            Kind::Ovs => Some(self.ovn.as_ref()),
            Kind::Vmnet => Some(self.vmnet.as_ref()),
            Kind::Host | Kind::None | Kind::Config => None,
        }
    }

    /// The backend that published ports lead through.
    #[must_use]
    pub fn publishing(&self) -> &dyn Backend {
        self.ovn.as_ref()
    }
}
