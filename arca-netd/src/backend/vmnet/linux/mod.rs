// SPDX-License-Identifier: Apache-2.0
//! The Linux kernel as the switch: a bridge per network, a veth per endpoint straight into the machine's network
//! namespace (or the TAP of a virtual machine), nftables for what may leave and enter. Nothing in user space touches a frame.

#[path = "../guest.rs"]
mod guest;
mod links;
mod rules;

use std::{collections::BTreeSet, path::PathBuf};

use arca_proto::dial::Address;

use super::{
    KeeperOptions,
    wanted::{Names, Plug, Segment, tap},
};
use crate::{
    error::{Error, Result},
    helper::host,
    model::WorkloadId,
};
use links::Links;

/// What is on the host with this engine's names.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: BTreeSet<String>,
    pub(super) ports: BTreeSet<String>,
}

/// Makes and removes segments and plugs. Every call may be repeated.
#[derive(Debug)]
pub(super) struct Switch {
    names: Names,
    marker: PathBuf,
}

/// # Errors
/// Always: networks here outlive the process that made them.
pub(super) fn keeper(_options: &KeeperOptions) -> Result<()> {
    Err(Error::Unsupported("networks need no keeper on this platform".into()))
}

impl Switch {
    pub(super) fn new(names: Names, marker: PathBuf) -> Self {
        Self { names, marker }
    }

    /// Whether anything was ever made on the host that has not been taken down.
    pub(super) fn is_used(&self) -> bool {
        self.marker.exists()
    }

    /// Name of the TAP interface to make for a workload's machine.
    pub(super) fn wire(&self, _segment: &str, workload: &WorkloadId) -> String {
        tap(workload)
    }

    /// Lists what is there.
    pub(super) async fn found(&self) -> Result<Found> {
        let all = Links::of_host()?.names().await?;
        let begin = |prefix: String| all.iter().filter(move |name| name.starts_with(&prefix)).cloned().collect();
        Ok(Found { segments: begin(self.names.segments()), ports: begin(self.names.ports()) })
    }

    /// Makes a segment, or what is missing of it.
    pub(super) async fn put(&self, segment: &Segment) -> Result<()> {
        Links::of_host()?.bridge(segment).await
    }

    /// Removes a segment.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        Links::of_host()?.remove(name).await
    }

    /// Puts the rules of exactly these segments in force; without segments nothing remains on the host.
    pub(super) async fn rules(&self, segments: &[Segment]) -> Result<()> {
        // The name under which forwarding is shared between engines; see `helper::host`.
        let forwarding = self.names.forwarding();
        let script = rules::script(&self.names.table(), segments);
        if segments.is_empty() {
            host::nft(&script).await?;
            host::hold_forwarding(&forwarding, false, false).await?;
            return match std::fs::remove_file(&self.marker) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    Err(Error::Io { action: "remove the mark of the native switch", source: error })
                }
                _ => Ok(()),
            };
        }
        // Before the first change: who finds the mark and nothing else loses nothing.
        std::fs::write(&self.marker, "").map_err(Error::io("mark the native switch as in use"))?;
        host::nft(&script).await?;
        let has =
            |v6: bool| segments.iter().flat_map(|segment| &segment.gateways).any(|net| net.addr().is_ipv6() == v6);
        host::hold_forwarding(&forwarding, has(false), has(true)).await
    }

    /// Plugs a machine in; its addresses and routes are set when this returns. On failure nothing remains, and the step
    /// that failed is named.
    pub(super) async fn plug(&self, plug: &Plug) -> Result<(), (&'static str, Error)> {
        let host = Links::of_host().map_err(|error| ("cable", error))?;
        let done = self.steps(&host, plug).await;
        if done.is_err()
            && let Err(error) = host.remove(&plug.port).await
        {
            tracing::warn!(port = plug.port, %error, "the cable of a failed attach stays until the next start");
        }
        done
    }

    async fn steps(&self, host: &Links, plug: &Plug) -> Result<(), (&'static str, Error)> {
        let at = |step: &'static str| move |error: Error| (step, error);
        if !matches!(plug.machine, Address::Sockets(_)) {
            // A virtual machine: its keeper made the TAP before it booted, and the guest sets up its own end.
            host.tap(plug).await.map_err(at("interface"))?;
            guest::configure(plug).await.map_err(at("address"))?;
            return host.join(plug).await.map_err(at("bridge"));
        }
        let netns = links::open(&plug.machine).await.map_err(at("namespace"))?;
        host.cable(plug, &netns).await.map_err(at("cable"))?;
        let inside = Links::inside(&netns, plug).await.map_err(at("interface"))?;
        inside.configure(plug).await.map_err(at("address"))?;
        host.join(plug).await.map_err(at("bridge"))
    }

    /// Plugs the near end of a cable in that is there; one that is plugged in stays as it is.
    pub(super) async fn join(&self, plug: &Plug) -> Result<(), (&'static str, Error)> {
        let host = Links::of_host().map_err(|error| ("bridge", error))?;
        host.join(plug).await.map_err(|error| ("bridge", error))
    }

    /// Takes a cable away; one that went with its machine is gone as wanted.
    pub(super) async fn unplug(&self, port: &str) -> Result<()> {
        Links::of_host()?.remove(port).await
    }
}
