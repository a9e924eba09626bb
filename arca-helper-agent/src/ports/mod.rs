// SPDX-License-Identifier: Apache-2.0
//! Ports of links: for each link n an interface `arca<n>` on br-int, what moves its frames, and a listener on port
//! 30000 + n. The interface is a TAP with a pump, or the far end of the container's veth pair ([`cable`]).
//!
//! [`crate::service`] calls [`Ports::ensure`] and [`Ports::remove`]; both take many at once, since one transaction for
//! fifty ports costs little more than one for one. TAPs are persistent: when the agent restarts they stay on the bridge
//! and [`Ports::restore`] takes them up again, by what the Interface rows say.

mod attach;
mod cable;
mod spec;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use arca_link::{Counters, Kind, LinkNumber, LinkState, Offloads, Pump, PumpConfig, PumpError, TapError};
use arca_proto::hello::Carrier;
use arca_proto::listen::ListenOn;
use arca_proto::trace::{Hop, Tracer};
use tokio::sync::Mutex;

use crate::vswitch::{BR_INT, BridgePort, Datapath, Vswitch, VswitchError, ingress};

use cable::Cable;
pub use spec::{PortSpec, PortStatus};

/// What can go wrong with a port.
#[derive(Debug, thiserror::Error)]
pub enum PortError {
    /// The TAP device.
    #[error("TAP of link {link}")]
    Tap {
        /// Which link.
        link: LinkNumber,
        /// Cause.
        source: TapError,
    },
    /// Sysctl or nftables.
    #[error("close interface {interface} to the helper's own kernel (nf_tables missing?)")]
    Seal {
        /// Which interface.
        interface: String,
        /// Cause.
        source: std::io::Error,
    },
    /// The listener.
    #[error("listen on port {port}")]
    Listen {
        /// Port number.
        port: u32,
        /// Cause.
        source: std::io::Error,
    },
    /// The thread that moves frames.
    #[error("start the pump")]
    Pump(#[from] PumpError),
    /// The switch.
    #[error("change ports of {BR_INT}")]
    Vswitch(#[from] Arc<VswitchError>),
    /// A carrier for machines of one kernel, in a machine with a kernel of its own.
    #[error("link {link}: carrier {carrier} needs the container in this helper's own kernel; use \"stream\"")]
    Carrier {
        /// Which link.
        link: LinkNumber,
        /// What was asked for.
        carrier: Carrier,
    },
    /// What answers for a cable.
    #[error("take connections for the cable of link {link}")]
    Cable {
        /// Which link.
        link: LinkNumber,
        /// Cause.
        source: std::io::Error,
    },
    /// Another endpoint's.
    #[error("link {link} belongs to endpoint {owner}: remove that first")]
    Taken {
        /// Which link.
        link: LinkNumber,
        /// Endpoint that has it.
        owner: String,
    },
}

#[derive(Debug)]
struct Port {
    spec: PortSpec,
    frames: Frames,
}

/// What moves a port's frames.
#[derive(Debug)]
enum Frames {
    /// A TAP with a pump: carriers `stream` and `tap-fd`.
    Pump(Pump),
    /// The far end of a veth pair.
    Cable(Cable),
}

impl Frames {
    fn state(&self) -> LinkState {
        match self {
            Self::Pump(pump) => pump.state(),
            Self::Cable(cable) => cable.state(),
        }
    }

    /// Out of the switch, and into it.
    fn counters(&self) -> (Counters, Counters) {
        match self {
            Self::Pump(pump) => (pump.to_stream(), pump.from_stream()),
            Self::Cable(cable) => cable.counters(),
        }
    }
}

/// All link TAPs of the helper; clones share them.
#[derive(Clone, Debug)]
pub struct Ports {
    vswitch: Vswitch,
    listen: ListenOn,
    ports: Arc<Mutex<BTreeMap<LinkNumber, Port>>>,
}

impl Ports {
    /// No ports yet; `listen` says where 30000 + n is.
    pub fn new(vswitch: Vswitch, listen: ListenOn) -> Self {
        Self { vswitch, listen, ports: Arc::default() }
    }

    /// Takes up the TAPs that an earlier agent left, and removes what cannot be taken up. Returns how many stand.
    pub async fn restore(&self) -> usize {
        let mut lost = Vec::new();
        let mut count = 0;
        let mut specs = Vec::new();
        for port in self.vswitch.ports(BR_INT) {
            if let Some(spec) = PortSpec::from_row(&port) {
                specs.push(spec);
            } else if spec::is_link_name(&port.interface) {
                lost.push(port.interface);
            }
        }
        let known: Vec<String> = specs.iter().map(PortSpec::interface).collect();
        for result in self.ensure(specs).await {
            match result {
                (_, Ok(())) => count += 1,
                (link, Err(error)) => {
                    tracing::warn!(%link, error = &error as &dyn std::error::Error, "a port of before is lost");
                    lost.push(spec::interface(link));
                }
            }
        }
        for name in attach::link_interfaces() {
            // A cable's other end is in use in a container; what declares that link takes it up again.
            if !known.contains(&name) && attach::is_tap(&name) {
                attach::delete(&name);
            }
        }
        if !lost.is_empty()
            && let Err(error) = self.vswitch.change(BR_INT, &[], &lost).await
        {
            tracing::warn!(error = &error as &dyn std::error::Error, "ports without a TAP stay on the bridge");
        }
        count
    }

    /// Makes these ports exist: TAP, listener and pump, then all on br-int in one transaction. What is there already
    /// only gets its new values. One result per port; a port that failed leaves nothing behind.
    ///
    /// When it returns the listeners take connections and the rows are committed; `LSP.up` tells when OVN has bound
    /// the port.
    pub async fn ensure(&self, specs: Vec<PortSpec>) -> Vec<(LinkNumber, Result<(), PortError>)> {
        let mut ports = self.ports.lock().await;
        let mut results = Vec::new();
        let mut rows = Vec::new();
        let mut fresh = Vec::new();
        for spec in specs {
            let link = spec.link;
            match self.open(&mut ports, spec) {
                Ok((row, new)) => {
                    rows.extend(row);
                    fresh.extend(new.then_some(link));
                    results.push((link, Ok(())));
                }
                Err(error) => results.push((link, Err(error))),
            }
        }
        if let Err(error) = self.vswitch.change(BR_INT, &rows, &[]).await {
            let error = Arc::new(error);
            for link in fresh {
                self.close(&mut ports, link);
            }
            for (_, result) in results.iter_mut().filter(|(_, result)| result.is_ok()) {
                *result = Err(PortError::Vswitch(Arc::clone(&error)));
            }
        } else if !fresh.is_empty() {
            settle_later(&self.vswitch);
        }
        results
    }

    /// Takes ports away again: off the bridge, then TAP, listener and pump. A link that has no port is no error.
    ///
    /// # Errors
    /// The switch could not be told; the TAPs are gone nevertheless.
    pub async fn remove(&self, links: &[LinkNumber]) -> Result<(), PortError> {
        let mut ports = self.ports.lock().await;
        let names: Vec<String> = links.iter().map(|link| spec::interface(*link)).collect();
        let changed = self.vswitch.change(BR_INT, &[], &names).await;
        for link in links {
            self.close(&mut ports, *link);
        }
        changed.map_err(|error| PortError::Vswitch(Arc::new(error)))
    }

    /// All ports with their counters.
    pub async fn list(&self) -> Vec<PortStatus> {
        self.ports.lock().await.values().map(|port| PortStatus::of(&port.spec, &port.frames)).collect()
    }

    /// Links that have a port.
    pub async fn links(&self) -> Vec<LinkNumber> {
        self.ports.lock().await.keys().copied().collect()
    }

    /// The row of a port, once its interface is there, and whether the port is a new one.
    fn open(
        &self,
        ports: &mut BTreeMap<LinkNumber, Port>,
        spec: PortSpec,
    ) -> Result<(Option<BridgePort>, bool), PortError> {
        let link = spec.link;
        let row = spec.row();
        let tap_error = |source| PortError::Tap { link, source };
        if let Some(port) = ports.get_mut(&link) {
            if port.spec.endpoint_id != spec.endpoint_id {
                return Err(PortError::Taken { link, owner: port.spec.endpoint_id.clone() });
            }
            if port.spec.carrier == spec.carrier && !port.frames.state().ended {
                let here = match &port.frames {
                    Frames::Pump(_) => true,
                    Frames::Cable(cable) => cable.change(&spec),
                };
                if here && port.spec.mtu != spec.mtu {
                    attach::set_mtu(&spec.interface(), spec.mtu).map_err(tap_error)?;
                }
                port.spec = spec;
                return Ok((here.then_some(row), false));
            }
            tracing::warn!(%link, carrier = %spec.carrier, "another carrier, or the TAP was taken away; making it anew");
            self.close(ports, link);
        }
        if spec.carrier != Carrier::Stream && self.socket_file(link).is_none() {
            return Err(PortError::Carrier { link, carrier: spec.carrier });
        }
        let name = spec.interface();
        let port = link.helper_port();
        let listen = || {
            let listener = self.listen.bind(port).and_then(arca_proto::listen::Listener::into_fd);
            listener.map_err(|source| PortError::Listen { port, source })
        };
        if spec.carrier == Carrier::Cable {
            let (cable, here) =
                Cable::start(&spec, listen()?, &self.vswitch).map_err(|source| PortError::Cable { link, source })?;
            ports.insert(link, Port { spec, frames: Frames::Cable(cable) });
            return Ok((here.then_some(row), true));
        }
        let tap = attach::open(&name, spec.mtu).map_err(tap_error)?;
        let undo = |error| {
            attach::delete(&name);
            error
        };
        if self.vswitch.datapath() == Datapath::User {
            ingress::seal(&name).map_err(|source| undo(PortError::Seal { interface: name.clone(), source }))?;
        }
        attach::no_arp_up(&name).map_err(|source| undo(tap_error(source)))?;
        let listener = listen().map_err(undo)?;
        let mut config = PumpConfig::new(link, Kind::Helper, tap, listener);
        if self.vswitch.datapath() == Datapath::User {
            // The netdev datapath segments TCP, and UDP it does not.
            config.offered = Offloads::TSO;
        }
        let pump = Pump::start(config).map_err(|source| undo(source.into()))?;
        ports.insert(link, Port { spec, frames: Frames::Pump(pump) });
        Ok((Some(row), true))
    }

    fn close(&self, ports: &mut BTreeMap<LinkNumber, Port>, link: LinkNumber) {
        if let Some(port) = ports.remove(&link) {
            drop(port.frames);
        }
        let name = spec::interface(link);
        attach::delete(&name);
        if self.vswitch.datapath() == Datapath::User
            && let Err(error) = ingress::undo(&name)
        {
            tracing::warn!(%error, interface = name, "its ingress chain stays behind");
        }
        if let Some(path) = self.socket_file(link) {
            // Gone already is as good.
            let _ = std::fs::remove_file(path);
        }
    }

    fn socket_file(&self, link: LinkNumber) -> Option<PathBuf> {
        match &self.listen {
            ListenOn::Sockets(directory) => Some(directory.join(link.helper_port().to_string())),
            ListenOn::Vsock => None,
        }
    }
}

#[tonic::async_trait]
impl Hop for Ports {
    async fn tracer(&self, link: LinkNumber) -> Option<Arc<Tracer>> {
        match &self.ports.lock().await.get(&link)?.frames {
            Frames::Pump(pump) => Some(pump.tracer()),
            Frames::Cable(_) => None,
        }
    }
}

/// New packet sockets get their buffers when ovs-vswitchd has opened them; nobody waits for that.
fn settle_later(vswitch: &Vswitch) {
    let vswitch = vswitch.clone();
    tokio::spawn(async move {
        if let Err(error) = vswitch.settle().await {
            tracing::warn!(error = &error as &dyn std::error::Error, "receive buffers not raised");
        }
    });
}
