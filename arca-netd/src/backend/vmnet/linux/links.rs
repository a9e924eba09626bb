// SPDX-License-Identifier: Apache-2.0
//! Bridges, cables, addresses: over one netlink socket, of the host's network namespace or of a machine's.

use std::{
    io,
    net::IpAddr,
    os::fd::{AsFd as _, AsRawFd as _, OwnedFd},
    sync::Arc,
};

use arca_machine::netns;
use arca_proto::dial::Address;
use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use nix::libc;
use rtnetlink::{
    Handle, LinkBridge, LinkBridgePort, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{InfoBridgePort, InfoData, InfoKind, InfoVeth, LinkAttribute, LinkMessage},
    },
};

use super::super::wanted::{Plug, Segment};
use crate::error::{Error, Result};

type Outcome<T> = std::result::Result<T, rtnetlink::Error>;

/// One namespace's links.
pub(super) struct Links {
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Links {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Turns errnos into a value, for what is as wanted already.
fn unless<T>(errnos: &[i32], value: T, result: Outcome<T>) -> Outcome<T> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if errnos.contains(&-message.raw_code()) => Ok(value),
        other => other,
    }
}

fn refused(what: &'static str, name: &str) -> impl FnOnce(rtnetlink::Error) -> Error {
    let name = name.to_owned();
    move |error| Error::Failed(format!("{what} {name}: {error} (are root and CAP_NET_ADMIN there?)"))
}

/// The network namespace of a machine.
pub(super) async fn open(machine: &Address) -> Result<Arc<OwnedFd>> {
    let machine = machine.clone();
    let opened = blocking(move || netns::open(&machine)).await;
    opened.map(Arc::new).map_err(Error::io("open the machine's network namespace"))
}

async fn blocking<T: Send + 'static>(work: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// A setting of one interface, below /proc/sys/net of whoever writes; a kernel without the protocol has none.
fn set(family: &str, interface: &str, name: &str, value: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/{family}/conf/{interface}/{name}"), value) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Links {
    /// Of this process's namespace.
    pub(super) fn of_host() -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Of the machine whose interface was just put there; the interface's settings are made on the way.
    pub(super) async fn inside(netns: &Arc<OwnedFd>, plug: &Plug) -> Result<Self> {
        let (netns, interface, v6) = (Arc::clone(netns), plug.interface.clone(), plug.has_v6());
        let runtime = tokio::runtime::Handle::current();
        let opened = blocking(move || {
            netns::within(netns.as_fd(), || {
                // Addresses are the allocator's: there is nobody to detect duplicates of.
                set("ipv6", &interface, "accept_dad", "0")?;
                set("ipv6", &interface, "accept_ra", "0")?;
                if !v6 {
                    set("ipv6", &interface, "disable_ipv6", "1")?;
                }
                set("ipv4", &interface, "arp_notify", "1")?;
                let _entered = runtime.enter();
                rtnetlink::new_connection()
            })?
        });
        let (connection, handle, _) = opened.await.map_err(Error::io("enter the machine's network namespace"))?;
        Ok(Self { handle, task: tokio::spawn(connection) })
    }

    /// Names of all links.
    pub(super) async fn names(&self) -> Result<Vec<String>> {
        let links: Outcome<Vec<LinkMessage>> = self.handle.link().get().execute().try_collect().await;
        let name = |link: LinkMessage| {
            link.attributes.into_iter().find_map(|attribute| match attribute {
                LinkAttribute::IfName(name) => Some(name),
                _ => None,
            })
        };
        Ok(links.map_err(refused("list", "interfaces"))?.into_iter().filter_map(name).collect())
    }

    async fn index(&self, name: &str) -> Result<Option<u32>> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        let found = unless(&[libc::ENODEV], None, found).map_err(refused("look for", name))?;
        Ok(found.map(|link| link.header.index))
    }

    async fn known(&self, name: &str) -> Result<u32> {
        let index = self.index(name).await?;
        index.ok_or_else(|| Error::Failed(format!("interface {name} is not there (was it removed by hand?)")))
    }

    /// Removes a link; one that is not there is gone as wanted.
    pub(super) async fn remove(&self, name: &str) -> Result<()> {
        let Some(index) = self.index(name).await? else { return Ok(()) };
        let removed = self.handle.link().del(index).execute().await;
        unless(&[libc::ENODEV], (), removed).map_err(refused("remove", name))
    }

    async fn address(&self, index: u32, net: IpNet, name: &str) -> Result<()> {
        let mut request = self.handle.address().add(index, net.addr(), net.prefix_len());
        if net.addr().is_ipv6() {
            request.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
        }
        unless(&[libc::EEXIST], (), request.execute().await).map_err(refused("give an address to", name))
    }

    /// Makes a bridge, or what is missing of one.
    pub(super) async fn bridge(&self, segment: &Segment) -> Result<()> {
        let name = &segment.name;
        if self.index(name).await?.is_none() {
            let mut bridge = LinkMessageBuilder::<LinkBridge>::new(name).mtu(segment.mtu);
            if let Some(mac) = segment.mac {
                bridge = bridge.address(mac.octets().to_vec());
            }
            let added = self.handle.link().add(bridge.build()).execute().await;
            unless(&[libc::EEXIST], (), added).map_err(refused("make bridge", name))?;
        }
        let made = self.settle(segment).await;
        if made.is_err() {
            return self.remove(name).await.and(made);
        }
        made
    }

    async fn settle(&self, segment: &Segment) -> Result<()> {
        let name = &segment.name;
        let index = self.known(name).await?;
        let v6 = segment.gateways.iter().any(|net| net.addr().is_ipv6());
        let settings = set("ipv6", name, "accept_ra", "0")
            .and_then(|()| set("ipv6", name, "disable_ipv6", if v6 { "0" } else { "1" }));
        settings.map_err(Error::io("set the bridge's IPv6 settings"))?;
        for net in &segment.gateways {
            self.address(index, *net, name).await?;
        }
        let up = LinkUnspec::new_with_index(index).up().build();
        self.handle.link().set(up).execute().await.map_err(refused("bring up bridge", name))
    }

    /// Lays a cable: one end here, the other in the machine, made there at once under its own name.
    pub(super) async fn cable(&self, plug: &Plug, netns: &OwnedFd) -> Result<()> {
        // One of an attach that was cut off, or of a machine that is gone.
        self.remove(&plug.port).await?;
        let there = LinkMessageBuilder::<LinkUnspec>::new()
            .name(plug.interface.clone())
            .address(plug.mac.octets().to_vec())
            .mtu(plug.mtu)
            .setns_by_fd(netns.as_raw_fd())
            .build();
        let pair = LinkMessageBuilder::<LinkVeth>::new_with_info_kind(InfoKind::Veth)
            .name(plug.port.clone())
            .mtu(plug.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(there)))
            .build();
        self.handle.link().add(pair).execute().await.map_err(refused("make cable", &plug.port))?;
        set("ipv6", &plug.port, "disable_ipv6", "1").map_err(Error::io("switch IPv6 off on the cable's end"))
    }

    /// Takes the TAP that a virtual machine brought along for a port: by its name, and with the network's MTU.
    pub(super) async fn tap(&self, plug: &Plug) -> Result<()> {
        // Twice is no error: it is a port already.
        if let Some(index) = self.index(&plug.tap).await? {
            // One of an attach that was cut off, or of a machine that is gone.
            self.remove(&plug.port).await?;
            let named = LinkUnspec::new_with_index(index).name(plug.port.clone()).mtu(plug.mtu).build();
            self.handle.link().set(named).execute().await.map_err(refused("take over", &plug.tap))?;
        }
        self.known(&plug.port).await?;
        set("ipv6", &plug.port, "disable_ipv6", "1").map_err(Error::io("switch IPv6 off on the machine's end"))
    }

    /// Inside the machine: loopback, addresses, up, default routes.
    pub(super) async fn configure(&self, plug: &Plug) -> Result<()> {
        let name = &plug.interface;
        let index = self.known(name).await?;
        for net in &plug.addresses {
            self.address(index, *net, name).await?;
        }
        // The loopback interface has index 1 in every network namespace (net/core/dev.c).
        for index in [1, index] {
            let up = LinkUnspec::new_with_index(index).up().build();
            self.handle.link().set(up).execute().await.map_err(refused("bring up", name))?;
        }
        for gateway in &plug.gateways {
            let route = match gateway {
                IpAddr::V4(gateway) => {
                    RouteMessageBuilder::<std::net::Ipv4Addr>::new().output_interface(index).gateway(*gateway).build()
                }
                IpAddr::V6(gateway) => {
                    RouteMessageBuilder::<std::net::Ipv6Addr>::new().output_interface(index).gateway(*gateway).build()
                }
            };
            let set = self.handle.route().add(route).replace().execute().await;
            set.map_err(refused("set the default route over", name))?;
        }
        Ok(())
    }

    /// Plugs the near end in. The far end is up by now, so frames pass from here on.
    pub(super) async fn join(&self, plug: &Plug) -> Result<()> {
        let (port, bridge) = (self.known(&plug.port).await?, self.known(&plug.segment).await?);
        let up = LinkUnspec::new_with_index(port).up().controller(bridge).build();
        self.handle.link().set(up).execute().await.map_err(refused("plug in", &plug.port))?;
        if plug.isolated {
            let alone = LinkBridgePort::new(port).append_info_data(InfoBridgePort::Isolated(true)).build();
            self.handle.link().set_port(alone).execute().await.map_err(refused("isolate", &plug.port))?;
        }
        Ok(())
    }
}
