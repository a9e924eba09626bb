// SPDX-License-Identifier: Apache-2.0
//! The native backend: the platform's own switch, without the helper machine and without arca-tapfwd.
//!
//! ```text
//!   Vmnet ──> address    which address, inside a change of the store
//!     │
//!     └─────> Switch     a whole file per platform: segments (one per network), plugs (one per endpoint), rules
//!               linux    kernel bridge, veth into the machine's namespace, nftables
//!               macos    vmnet.framework, one keeper process per network
//! ```
//!
//! The store says what there should be; [`Vmnet::follow`] makes the switch so, at every start. A container has one vmnet
//! network, fixed when it is created; what else this backend cannot do it refuses in the words below.

pub mod address;
#[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "networks outlive their makers elsewhere"))]
mod keeper;
#[cfg_attr(not(target_os = "macos"), allow(dead_code, reason = "as above"))]
mod launchd;
pub mod wanted;

#[cfg(target_os = "linux")]
#[path = "linux/mod.rs"]
mod switch;
#[cfg(target_os = "macos")]
#[path = "macos/mod.rs"]
mod switch;
#[cfg(not(any(target_os = "linux", target_os = "macos")))]
#[path = "other.rs"]
mod switch;

use std::{collections::BTreeSet, path::PathBuf};

use async_trait::async_trait;
use tokio::sync::Mutex;

use super::{Addresses, Backend, Capabilities};
use crate::{
    error::{Error, Result},
    model::{Endpoint, Kind, Network, Phase, Publication, WorkloadId},
    store::{State, Store},
};
use switch::Switch;
use wanted::{Names, Plug, Segment};

/// What it can do.
pub const CAPABILITIES: Capabilities = Capabilities { hot_attach: false, port_mapping: false, several_networks: false };

/// Connect and disconnect of a running container.
pub const NO_DYNAMIC: &str =
    "vmnet backend does not support dynamic network attachment. Recreate container with --network flag.";
/// `-p` and `-P`.
pub const NO_PORTS: &str = "vmnet backend does not support port mapping";
/// A second network.
pub const NO_SECOND: &str =
    "vmnet backend does not support more than one network per container. Use a bridge network of the ovs backend.";
/// `--driver overlay`.
pub const NO_OVERLAY: &str = "vmnet backend does not support overlay networks";

/// What a keeper of one network is started with, where the platform's networks die with the process that made them.
#[derive(clap::Args, Clone, Debug)]
pub struct KeeperOptions {
    /// Where it answers.
    #[arg(long)]
    pub socket: PathBuf,
    /// Where it says once that it is there, or why not.
    #[arg(long)]
    pub tell: PathBuf,
    /// Name of the mach service that launchd has for it.
    #[arg(long)]
    pub service: String,
    /// The host's address in the network, with the prefix length; one a family.
    #[arg(long)]
    pub gateway: Vec<ipnet::IpNet>,
    /// Bytes of an IP packet.
    #[arg(long)]
    pub mtu: u32,
    /// No way out.
    #[arg(long)]
    pub internal: bool,
}

/// Runs as the keeper of one network until it is told to end.
///
/// # Errors
/// If the network cannot be made, or this platform has no keepers.
pub fn keep(options: &KeeperOptions) -> Result<()> {
    switch::keeper(options)
}

/// What tells this engine's things from another's.
#[derive(Clone, Debug)]
pub struct Settings {
    /// [`arca_daemon::paths::Paths::tag`].
    pub tag: String,
    /// A file that exists while anything of this backend is on the host: who stops the engine for good looks for it.
    pub marker: PathBuf,
}

/// The native backend.
#[derive(Debug)]
pub struct Vmnet {
    store: Store,
    names: Names,
    switch: Switch,
    /// Held while segments and rules change; true once everything was taken down for good.
    down: Mutex<bool>,
}

impl Vmnet {
    /// A handle; nothing is made before it is asked for.
    #[must_use]
    pub fn new(store: Store, settings: &Settings) -> Self {
        let names = Names::of(&settings.tag);
        Self { store, switch: Switch::new(names.clone(), settings.marker.clone()), names, down: Mutex::new(false) }
    }

    /// The host's end of the interface that a machine has on this network from its boot on ([`arca_machine::Nic`]).
    #[must_use]
    pub fn wire(&self, network: &Network, workload: &WorkloadId) -> String {
        self.switch.wire(&self.names.segment(&network.id), workload)
    }

    fn segments(&self, state: &State) -> Vec<Segment> {
        let ours = state.networks.values().filter(|network| network.kind == Kind::Vmnet);
        ours.map(|network| Segment::of(network, &self.names)).collect()
    }

    /// Makes the switch what the store says: what nobody wants goes first, then come rules, segments and the plugs of
    /// containers that run. What is as wanted is not touched.
    ///
    /// # Errors
    /// The first piece that could not be made; plugs that could not are only logged, for their machines may be gone.
    pub async fn follow(&self) -> Result<()> {
        let down = self.down.lock().await;
        let state = self.store.state();
        let segments = self.segments(&state);
        if *down || (segments.is_empty() && !self.switch.is_used()) {
            return Ok(());
        }
        let of_us = |endpoint: &&std::sync::Arc<Endpoint>| state.kind_of(endpoint) == Some(Kind::Vmnet);
        let wanted: BTreeSet<String> = segments.iter().map(|segment| segment.name.clone()).collect();
        let ports: BTreeSet<String> =
            state.endpoints.values().filter(of_us).filter_map(|e| e.link()).map(|link| self.names.port(link)).collect();
        let found = self.switch.found().await?;
        for port in found.ports.difference(&ports) {
            tracing::info!(port, "a port that nobody wants is removed");
            self.switch.unplug(port).await?;
        }
        for name in found.segments.difference(&wanted) {
            tracing::info!(bridge = name, "a network that nobody wants is removed");
            self.switch.remove(name).await?;
        }
        self.switch.rules(&segments).await?;
        for segment in &segments {
            self.switch.put(segment).await?;
        }
        let active = state.endpoints.values().filter(of_us).filter(|endpoint| endpoint.phase == Phase::Active);
        for endpoint in active {
            let Some(network) = state.networks.get(&endpoint.network) else { continue };
            let Some(plug) = Plug::of(network, endpoint, &self.names) else { continue };
            // A cable that is there may hang loose: with a bridge that somebody removed its ports are let go.
            let there = found.ports.contains(&plug.port);
            let plugged = if there { self.switch.join(&plug).await } else { self.switch.plug(&plug).await };
            if let Err((step, error)) = plugged {
                tracing::warn!(endpoint_id = %endpoint.id, step, %error, "a container could not be plugged in again");
            }
        }
        Ok(())
    }

    /// Undoes everything on the host, for good.
    ///
    /// # Errors
    /// What could not be undone; the rest is gone.
    pub async fn down(&self) -> Result<()> {
        let mut down = self.down.lock().await;
        *down = true;
        if !self.switch.is_used() {
            return Ok(());
        }
        let found = self.switch.found().await?;
        let mut result = Ok(());
        for port in &found.ports {
            result = result.and(self.switch.unplug(port).await);
        }
        for name in &found.segments {
            result = result.and(self.switch.remove(name).await);
        }
        result.and(self.switch.rules(&[]).await)
    }
}

#[async_trait]
impl Backend for Vmnet {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn put_network(&self, network: &Network) -> Result<()> {
        let down = self.down.lock().await;
        if *down {
            return Err(Error::Unavailable("the engine is being stopped".into()));
        }
        // Rules first: at no moment is a network there without them.
        self.switch.rules(&self.segments(&self.store.state())).await?;
        self.switch.put(&Segment::of(network, &self.names)).await
    }

    async fn remove_network(&self, network: &Network, _generation: u64) -> Result<()> {
        let _alone = self.down.lock().await;
        let removed = self.switch.remove(&self.names.segment(&network.id)).await;
        removed.and(self.switch.rules(&self.segments(&self.store.state())).await)
    }

    async fn attach(&self, network: &Network, endpoint: &Endpoint) -> Result<Addresses> {
        let Some(plug) = Plug::of(network, endpoint, &self.names) else { return Ok(Addresses::default()) };
        match self.switch.plug(&plug).await {
            Ok(()) => Ok(Addresses { v4: endpoint.address_v4, v6: endpoint.address_v6 }),
            Err((step, source)) => {
                Err(Error::Step { network: network.name().to_owned(), step, source: Box::new(source) })
            }
        }
    }

    async fn rename(&self, _network: &Network, _endpoint: &Endpoint) -> Result<()> {
        // Names stand in hosts files, which arca-api keeps.
        Ok(())
    }

    async fn detach(&self, endpoint: &Endpoint, _generation: u64) -> Vec<Error> {
        let Some(link) = endpoint.link() else { return Vec::new() };
        self.switch.unplug(&self.names.port(link)).await.err().into_iter().collect()
    }

    async fn put_port(&self, _publication: &Publication) -> Result<()> {
        Err(Error::Unsupported(NO_PORTS.into()))
    }

    async fn remove_port(&self, _publication: &Publication, _generation: u64) -> Result<()> {
        Ok(())
    }
}
