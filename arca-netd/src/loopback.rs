// SPDX-License-Identifier: Apache-2.0
//! Name servers on the host's own loopback (a stub of systemd-resolved, a local dnsmasq): the helper machine cannot reach
//! them, so this process asks them for the helper's resolver, as dockerd does for its own. [`crate::helper`] opens this
//! whenever the machine has come up.
//!
//! ```text
//!   helper's resolver .3 ── uplink ──> .1, a port of its own for each server ──> 127.0.0.53:53
//! ```
//!
//! The sockets are bound to the uplink's interface and serve the resolver's address only: neither another host, nor a
//! program of this one, nor a container (which comes from the router's address or its own) is answered. While arca-netd
//! is not running, names that only such a server knows are not found; those of containers are.

#[cfg(target_os = "linux")]
#[path = "loopback/linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "loopback/other.rs"]
mod platform;

use std::net::{Ipv4Addr, SocketAddr};

use platform::Forwarding;

/// Where the helper's resolver can reach this host.
#[derive(Clone, Debug)]
pub struct Place {
    /// The host's address on the uplink.
    pub address: Ipv4Addr,
    /// The host's end of the uplink.
    pub interface: String,
    /// The resolver's address: nobody else is served.
    pub client: Ipv4Addr,
}

/// Forwards for the helper while it lives.
#[derive(Debug, Default)]
pub struct Loopback {
    _forwarding: Vec<Forwarding>,
}

impl Loopback {
    /// Begins to forward for each of `servers` that is on the loopback. Gives what the helper's resolver is told instead
    /// of them, in the same order; what cannot be forwarded for is left out and logged.
    pub async fn open(servers: &[SocketAddr], place: Option<&Place>) -> (Self, Vec<String>) {
        let (mut told, mut forwarding) = (Vec::new(), Vec::new());
        for server in servers {
            if !server.ip().is_loopback() {
                told.push(server.to_string());
                continue;
            }
            let Some(place) = place else {
                tracing::warn!(%server, "a name server on this host's loopback is out of the helper machine's reach");
                continue;
            };
            match Forwarding::open(place, *server).await {
                Ok(open) => {
                    tracing::info!(%server, at = %open.address(), "asking a name server on the loopback for the helper");
                    told.push(open.address().to_string());
                    forwarding.push(open);
                }
                Err(error) => {
                    tracing::warn!(%server, %error, "a name server on this host's loopback will not be asked")
                }
            }
        }
        (Self { _forwarding: forwarding }, told)
    }
}
