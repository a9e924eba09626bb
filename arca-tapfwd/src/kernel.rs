// SPDX-License-Identifier: Apache-2.0
//! What is set in the machine's kernel: addresses, default routes, per-interface settings.
//!
//! Acts on the network namespace of this process, by rtnetlink and /proc/sys/net. Called by the verbs (`attach`,
//! `configure`) and at start. Interfaces themselves are made and removed by `arca_link::Tap`.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use nix::libc;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};

use crate::settings::{Cidr, InterfaceName, Settings};

/// What could not be set.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// rtnetlink said no.
    #[error("cannot {operation} on {object}")]
    Netlink {
        /// What was tried.
        operation: &'static str,
        /// Interface, address or route.
        object: String,
        /// The kernel's answer.
        source: rtnetlink::Error,
    },
    /// A file below /proc/sys/net.
    #[error("cannot set {name} (is /proc/sys writable?)")]
    Sysctl {
        /// Path below /proc/sys/net.
        name: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// ethtool.
    #[error("cannot limit the offloads of {interface}")]
    Offloads {
        /// Which interface.
        interface: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// The netlink socket.
    #[error("cannot open a netlink socket")]
    Open(#[source] io::Error),
}

/// Address family of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// A connection to the kernel's routing service.
#[derive(Clone, Debug)]
pub struct Kernel {
    handle: Handle,
}

impl Kernel {
    /// Opens a netlink socket; a task serves it as long as a copy of the result lives.
    ///
    /// # Errors
    /// No descriptors left.
    pub fn open() -> Result<Self, KernelError> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(KernelError::Open)?;
        tokio::spawn(connection);
        Ok(Self { handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Sets an interface up.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn up(&self, index: u32) -> Result<(), KernelError> {
        let done = self.handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await;
        done.map_err(|source| KernelError::Netlink {
            operation: "set the link up",
            object: format!("#{index}"),
            source,
        })
    }

    /// Sets the loopback interface up; a new network namespace has it down.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn loopback_up(&self) -> Result<(), KernelError> {
        // The loopback interface has index 1 in every network namespace (net/core/dev.c).
        let request = LinkUnspec::new_with_index(1).up().build();
        let done = self.handle.link().set(request).execute().await;
        done.map_err(|source| KernelError::Netlink { operation: "set the link up", object: "lo".to_owned(), source })
    }

    /// Index of an interface.
    ///
    /// # Errors
    /// There is none of that name.
    pub async fn index(&self, name: &str) -> Result<u32, KernelError> {
        let failed = |source| KernelError::Netlink { operation: "look up the index", object: name.to_owned(), source };
        let message =
            self.handle.link().get().match_name(name.to_owned()).execute().try_next().await.map_err(failed)?;
        message.map(|m| m.header.index).ok_or_else(|| failed(rtnetlink::Error::RequestFailed))
    }

    /// Removes an interface; one that is gone already is no error.
    ///
    /// # Errors
    /// The kernel refuses.
    pub async fn delete(&self, index: u32) -> Result<(), KernelError> {
        match self.handle.link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(e)) if -e.raw_code() == libc::ENODEV => Ok(()),
            other => other.map_err(|source| KernelError::Netlink {
                operation: "remove the interface",
                object: format!("#{index}"),
                source,
            }),
        }
    }

    /// Per-interface settings that must stand before the interface is up: no duplicate address detection (OVN has one
    /// owner for each address), no router advertisements (`Configure` says which link carries default routes), and no
    /// IPv6 at all on a network without it.
    ///
    /// # Errors
    /// /proc/sys/net cannot be written.
    pub fn prepare(&self, interface: &InterfaceName, v6: bool) -> Result<(), KernelError> {
        let settings: &[(&str, &str)] =
            if v6 { &[("accept_dad", "0"), ("accept_ra", "0")] } else { &[("accept_dad", "0"), ("disable_ipv6", "1")] };
        for (name, value) in settings {
            match sysctl(&format!("ipv6/conf/{interface}/{name}"), value) {
                // A kernel without IPv6 has nothing to switch off; with an IPv6 address the next step will say so.
                Err(KernelError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    /// Gives the interface an address, usable at once (`IFA_F_NODAD`).
    ///
    /// # Errors
    /// The kernel refuses, for example because the address is there already.
    pub async fn add_address(&self, index: u32, cidr: Cidr) -> Result<(), KernelError> {
        let mut request = self.handle.address().add(index, cidr.address, cidr.prefix);
        if cidr.address.is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        let done = request.execute().await;
        done.map_err(|source| KernelError::Netlink { operation: "add the address", object: cidr.to_string(), source })
    }

    /// Puts the default route of one family where `to` says, in place of that of whichever interface had it.
    ///
    /// # Errors
    /// The kernel refuses the next hop.
    pub async fn set_default_route(&self, family: Family, to: Option<(u32, &Settings)>) -> Result<(), KernelError> {
        match family {
            Family::V4 => match to.and_then(|(index, settings)| Some((index, settings.gateway_v4?))) {
                Some((index, gateway)) => self.replace_route(default_v4(Some((index, gateway))), gateway.into()).await,
                None => self.remove_default(default_v4(None)).await,
            },
            Family::V6 => match to.and_then(|(index, settings)| Some((index, settings.gateway_v6?))) {
                Some((index, gateway)) => self.replace_route(default_v6(Some((index, gateway))), gateway.into()).await,
                None => self.remove_default(default_v6(None)).await,
            },
        }
    }

    async fn replace_route(&self, route: RouteMessage, gateway: IpAddr) -> Result<(), KernelError> {
        let object = format!("default via {gateway}");
        let done = self.handle.route().add(route).replace().execute().await;
        done.map_err(|source| KernelError::Netlink { operation: "set the route", object, source })
    }

    async fn remove_default(&self, route: RouteMessage) -> Result<(), KernelError> {
        match self.handle.route().del(route).execute().await {
            // ESRCH: there was none. EAFNOSUPPORT, EOPNOTSUPP: a kernel without IPv6.
            Err(rtnetlink::Error::NetlinkError(e))
                if matches!(-e.raw_code(), libc::ESRCH | libc::EAFNOSUPPORT | libc::EOPNOTSUPP) =>
            {
                Ok(())
            }
            other => other.map_err(|source| KernelError::Netlink {
                operation: "remove the route",
                object: "default".to_owned(),
                source,
            }),
        }
    }
}

fn default_v4(to: Option<(u32, Ipv4Addr)>) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv4Addr>::new();
    match to {
        Some((index, gateway)) => builder.output_interface(index).gateway(gateway).build(),
        None => builder.build(),
    }
}

fn default_v6(to: Option<(u32, Ipv6Addr)>) -> RouteMessage {
    let builder = RouteMessageBuilder::<Ipv6Addr>::new();
    match to {
        Some((index, gateway)) => builder.output_interface(index).gateway(gateway).build(),
        None => builder.build(),
    }
}

/// Writes one setting below /proc/sys/net, which shows the network namespace of the writer.
///
/// # Errors
/// The file is missing or read-only.
pub fn sysctl(name: &str, value: &str) -> Result<(), KernelError> {
    std::fs::write(format!("/proc/sys/net/{name}"), value)
        .map_err(|source| KernelError::Sysctl { name: name.to_owned(), source })
}
