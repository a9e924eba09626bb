// SPDX-License-Identifier: Apache-2.0
//! The way out: the uplink interface on br-ex, and the helper's own address there (the fallback resolver's).
//!
//! ```text
//!   .1 next hop ── up0 ─ br-ex ─ patch ─ br-int: gateway router .2
//!                          └── br-ex, the helper's kernel: resolver .3, containers' subnets via .2
//!                                                          .4 whence it connects for clients of published ports
//! ```
//!
//! On the netdev datapath the internal port br-ex dies with ovs-vswitchd, and its address and routes with it:
//! [`Uplink::watch`] sets everything again after each of its starts.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use futures_util::StreamExt;
use nix::net::if_::if_nametoindex;
use rtnetlink::packet_route::address::{AddressAttribute, AddressFlags, CacheInfo};
use rtnetlink::packet_route::route::RouteMessage;
use rtnetlink::{Handle, LinkUnspec, RouteMessageBuilder};
use tokio::sync::{Mutex, watch};

use crate::files;
use crate::layout::Layout;
use crate::neighbours::{Known, Neighbours};
use crate::vswitch::{BR_EX, BridgePort, Datapath, Installed, Vswitch, VswitchError, ingress};

/// A network, or an address in it: address and prefix length.
pub type Subnet = (IpAddr, u8);

/// The uplink in one address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Side {
    /// The gateway router's address on the uplink: next hop to the containers.
    pub router: IpAddr,
    /// Next hop to everywhere else.
    pub next_hop: IpAddr,
    /// The helper's own address on the uplink, with the prefix length.
    pub resolver: Subnet,
}

impl Side {
    /// Whence clients of published ports are led to the router: the address after the resolver's. It is another one because
    /// containers may not answer to the resolver's but through their gateway, and nobody listens on it.
    pub fn clients(&self) -> IpAddr {
        match self.resolver.0 {
            IpAddr::V4(address) => Ipv4Addr::from(u32::from(address).wrapping_add(1)).into(),
            IpAddr::V6(address) => Ipv6Addr::from(u128::from(address).wrapping_add(1)).into(),
        }
    }
}

/// What `Configure` asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UplinkConfig {
    /// Chassis id.
    pub system_id: String,
    /// Interface that leads out; must exist in the helper.
    pub interface: String,
    /// IPv4.
    pub v4: Side,
    /// IPv6; none where the host has none.
    pub v6: Option<Side>,
}

/// What can go wrong with the uplink.
#[derive(Debug, thiserror::Error)]
pub enum UplinkError {
    /// Whoever boots the helper puts it there.
    #[error("uplink interface {0} does not exist in the helper machine")]
    NoInterface(String),
    /// Sysctl or nftables.
    #[error("close interface {interface} to the helper's own kernel (nf_tables missing?)")]
    Seal {
        /// Which interface.
        interface: String,
        /// Cause.
        source: io::Error,
    },
    /// The switch.
    #[error("change ports of {BR_EX}")]
    Vswitch(#[from] VswitchError),
    /// Addresses and routes.
    #[error("{what}")]
    Netlink {
        /// What was to be set.
        what: String,
        /// Cause.
        source: rtnetlink::Error,
    },
    /// No netlink socket, no data directory, no inotify.
    #[error("{what}")]
    Io {
        /// What was to be done.
        what: String,
        /// Cause.
        source: io::Error,
    },
}

#[derive(Debug, Default)]
struct Wanted {
    config: Option<UplinkConfig>,
    subnets: Vec<Subnet>,
}

/// Handle of the uplink; clones share it.
#[derive(Clone, Debug)]
pub struct Uplink {
    vswitch: Vswitch,
    layout: Layout,
    wanted: Arc<Mutex<Wanted>>,
    neighbours: Neighbours,
}

impl Uplink {
    /// Nothing is configured yet.
    pub fn new(vswitch: Vswitch, layout: Layout) -> Self {
        Self { vswitch, layout, wanted: Arc::default(), neighbours: Neighbours::default() }
    }

    /// Chassis id, uplink port, the helper's address and default route. The same values again change nothing.
    ///
    /// # Errors
    /// [`UplinkError`], the first thing that failed; doing it again continues.
    pub async fn configure(&self, config: UplinkConfig) -> Result<Datapath, UplinkError> {
        let mut wanted = self.wanted.lock().await;
        // The id first: ovn-controller then registers while the rest is done.
        self.set_system_id(&config.system_id).await?;
        let others: Vec<String> = self
            .vswitch
            .ports(BR_EX)
            .into_iter()
            .filter_map(|port| {
                let ours = port.external_ids.iter().any(|(key, _)| key == "arca-uplink");
                (ours && port.interface != config.interface).then_some(port.interface)
            })
            .collect();
        self.prepare(&config.interface).await?;
        let ids = vec![("arca-uplink".to_owned(), "true".to_owned())];
        let port = BridgePort { interface: config.interface.clone(), external_ids: ids };
        self.vswitch.change(BR_EX, &[port], &others).await?;
        let hops: Vec<IpAddr> = config.sides().map(|side| side.next_hop).collect();
        wanted.config = Some(config);
        self.settle(&wanted).await?;
        if !self.neighbours.answered(&hops).await {
            tracing::warn!(
                ?hops,
                "a next hop does not answer yet: connections that begin at once may be lost at first"
            );
        }
        Ok(self.vswitch.datapath())
    }

    /// Ports whose flows the switch has.
    pub fn installed(&self) -> watch::Receiver<Installed> {
        self.vswitch.installed()
    }

    /// MAC addresses of the next hops and of the helper itself on the uplink, as they become known.
    pub fn neighbours(&self) -> watch::Receiver<Known> {
        self.neighbours.subscribe()
    }

    /// The uplink in each family; none before [`Uplink::configure`].
    pub async fn sides(&self) -> Vec<Side> {
        let wanted = self.wanted.lock().await;
        wanted.config.iter().flat_map(UplinkConfig::sides).collect()
    }

    /// Subnets of the containers' networks: they lie behind the gateway router. Replaces what was set before.
    ///
    /// # Errors
    /// A route was refused; those after it are still tried at the next call.
    pub async fn set_subnets(&self, subnets: Vec<Subnet>) -> Result<(), UplinkError> {
        let mut wanted = self.wanted.lock().await;
        let gone: Vec<Subnet> = wanted.subnets.iter().filter(|s| !subnets.contains(s)).copied().collect();
        let unchanged = gone.is_empty() && wanted.subnets == subnets;
        wanted.subnets = subnets;
        if unchanged || wanted.config.is_none() {
            return Ok(());
        }
        let handle = netlink()?;
        for subnet in gone {
            // Gone already, with the device, is as good.
            let _ = handle.route().del(route(subnet, None)).execute().await;
        }
        self.routes(&handle, &wanted).await
    }

    /// Follows ovs-vswitchd's starts for ever: after each, receive buffers, address and routes are set again. Run it
    /// as a task, beginning before the first port is made.
    ///
    /// # Errors
    /// inotify is not to be had.
    pub async fn watch(&self) -> Result<(), UplinkError> {
        let pid_file = self.layout.vswitchd_pid();
        let mut starts = files::watch_folder(&pid_file)
            .map_err(|source| UplinkError::Io { what: format!("watch {}", pid_file.display()), source })?;
        loop {
            let wanted = self.wanted.lock().await;
            if let Err(error) = self.settle(&wanted).await {
                // Its next start comes round here again.
                tracing::warn!(error = &error as &dyn std::error::Error, "the uplink is not as it should be");
            }
            drop(wanted);
            loop {
                let Some(Ok(event)) = starts.next().await else { return Ok(()) };
                if event.name.as_deref() == pid_file.file_name() {
                    tracing::info!("ovs-vswitchd has started");
                    break;
                }
            }
        }
    }

    /// Waits for ovs-vswitchd and brings the helper's own side of br-ex up.
    async fn settle(&self, wanted: &Wanted) -> Result<(), UplinkError> {
        self.vswitch.settle().await?;
        let Some(config) = &wanted.config else { return Ok(()) };
        let index = if_nametoindex(BR_EX).map_err(|_| UplinkError::NoInterface(BR_EX.into()))?;
        let handle = netlink()?;
        match config.v6 {
            Some(_) => enable_ipv6(BR_EX)?,
            None => disable_ipv6(BR_EX)?,
        }
        let failed = |what: &str| {
            let what = format!("{what} {BR_EX}");
            move |source| UplinkError::Netlink { what, source }
        };
        handle.link().set(LinkUnspec::new_with_index(index).up().build()).execute().await.map_err(failed("set up"))?;
        for Side { resolver: (address, prefix), .. } in config.sides() {
            let mut add = handle.address().add(index, address, prefix).replace();
            if address.is_ipv6() {
                // Usable at once: nobody else is on the uplink.
                add.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
            }
            add.execute().await.map_err(failed("set the resolver's address on"))?;
        }
        for side in config.sides() {
            let mut add = handle.address().add(index, side.clients(), side.resolver.1).replace();
            if side.resolver.0.is_ipv6() {
                // Never the kernel's choice: the resolver asks from its own.
                let mut never = CacheInfo::default();
                never.ifa_valid = u32::MAX;
                let attributes = &mut add.message_mut().attributes;
                attributes.extend([AddressAttribute::Flags(AddressFlags::Nodad), AddressAttribute::CacheInfo(never)]);
            }
            add.execute().await.map_err(failed("set the address of clients on"))?;
        }
        self.routes(&handle, wanted).await?;
        let own: Vec<IpAddr> = config.sides().map(|side| side.resolver.0).collect();
        let hops = config.sides().map(|side| side.next_hop).collect();
        let followed = self.neighbours.follow(index, &own, hops).await;
        followed.map_err(|source| UplinkError::Io { what: format!("ask for the neighbours on {BR_EX}"), source })
    }

    async fn routes(&self, handle: &Handle, wanted: &Wanted) -> Result<(), UplinkError> {
        let Some(config) = &wanted.config else { return Ok(()) };
        let family = |side: &Side, address: IpAddr| side.router.is_ipv4() == address.is_ipv4();
        let all = wanted.subnets.iter().filter_map(|subnet| {
            let side = config.sides().find(|side| family(side, subnet.0))?;
            Some((*subnet, side.router))
        });
        let default = |side: Side| match side.next_hop {
            IpAddr::V4(_) => ((Ipv4Addr::UNSPECIFIED.into(), 0), side.next_hop),
            IpAddr::V6(_) => ((Ipv6Addr::UNSPECIFIED.into(), 0), side.next_hop),
        };
        for (subnet, via) in config.sides().map(default).chain(all) {
            let what = format!("set the route to {}/{} by {via}", subnet.0, subnet.1);
            let add = handle.route().add(route(subnet, Some(via))).replace().execute().await;
            add.map_err(|source| UplinkError::Netlink { what, source })?;
        }
        Ok(())
    }

    /// The interface carries frames for OVS only.
    async fn prepare(&self, interface: &str) -> Result<(), UplinkError> {
        let index = if_nametoindex(interface).map_err(|_| UplinkError::NoInterface(interface.into()))?;
        if self.vswitch.datapath() == Datapath::User {
            ingress::seal(interface).map_err(|source| UplinkError::Seal { interface: interface.into(), source })?;
        } else {
            disable_ipv6(interface)?;
        }
        let up = LinkUnspec::new_with_index(index).arp(false).up().build();
        let set = netlink()?.link().set(up).execute().await;
        set.map_err(|source| UplinkError::Netlink { what: format!("set up {interface}"), source })
    }

    /// In the database for ovn-controller, and on disk for the next boot.
    async fn set_system_id(&self, id: &str) -> Result<(), UplinkError> {
        let path = self.layout.system_id();
        if tokio::fs::read_to_string(&path).await.is_ok_and(|known| known == id) {
            return Ok(self.vswitch.set_external_ids(&[("system-id", id)]).await?);
        }
        let fresh = path.with_extension("new");
        let write = async {
            tokio::fs::write(&fresh, id).await?;
            tokio::fs::rename(&fresh, &path).await
        };
        write.await.map_err(|source| UplinkError::Io { what: format!("write {}", path.display()), source })?;
        Ok(self.vswitch.set_external_ids(&[("system-id", id)]).await?)
    }
}

impl UplinkConfig {
    fn sides(&self) -> impl Iterator<Item = Side> + use<> {
        [Some(self.v4), self.v6].into_iter().flatten()
    }
}

/// By a next hop of its own family, or by any.
fn route((address, prefix): Subnet, via: Option<IpAddr>) -> RouteMessage {
    match (address, via) {
        (IpAddr::V4(address), via) => {
            let builder = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(address, prefix);
            match via {
                Some(IpAddr::V4(via)) => builder.gateway(via).build(),
                _ => builder.build(),
            }
        }
        (IpAddr::V6(address), via) => {
            let builder = RouteMessageBuilder::<Ipv6Addr>::new().destination_prefix(address, prefix);
            match via {
                Some(IpAddr::V6(via)) => builder.gateway(via).build(),
                _ => builder.build(),
            }
        }
    }
}

/// Addresses are given and usable at once; whoever advertises routes on the uplink is not listened to.
fn enable_ipv6(interface: &str) -> Result<(), UplinkError> {
    for (setting, value) in [("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")] {
        std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/{setting}"), value)
            .map_err(|source| UplinkError::Io { what: format!("set {setting} of {interface}"), source })?;
    }
    Ok(())
}

fn disable_ipv6(interface: &str) -> Result<(), UplinkError> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"), "1") {
        // A kernel without IPv6.
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done.map_err(|source| UplinkError::Io { what: format!("switch IPv6 off on {interface}"), source }),
    }
}

/// A netlink connection of this network namespace; it ends with the handle.
fn netlink() -> Result<Handle, UplinkError> {
    let (connection, handle, _) = rtnetlink::new_connection()
        .map_err(|source| UplinkError::Io { what: "open a netlink socket".into(), source })?;
    tokio::spawn(connection);
    Ok(handle)
}
