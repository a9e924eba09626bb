// SPDX-License-Identifier: Apache-2.0
//! What the engine changes in its own network namespace for a namespace helper: a veth to the helper's uplink,
//! forwarding, and an nftables table, in each family. Making it twice changes nothing; [`disconnect`] takes it back.
//!
//! Several engines may share the namespace. Each has interface and tables by its own [`Names`]. The route to an uplink
//! network is what claims it: the kernel gives it to one of two who ask at the same moment. Forwarding belongs to all: see
//! [`forwarding`].

#[path = "forwarding_linux.rs"]
mod forwarding;

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    os::fd::AsRawFd as _,
    path::Path,
    process::Stdio,
};

use futures_util::TryStreamExt as _;
use ipnet::IpNet;
use rtnetlink::{
    Handle, LinkUnspec, LinkVeth, RouteMessageBuilder,
    packet_route::{
        address::{AddressAttribute, AddressFlags},
        link::{LinkFlags, LinkMessage},
        route::{RouteProtocol, RouteScope},
    },
};
use tokio::{io::AsyncWriteExt as _, process::Command};

use super::{
    Uplink,
    uplink::{HELPER_INTERFACE, Names, UplinkV6},
};
use crate::{
    direct::Plan,
    error::{Error, Result},
    hostnet,
};
use forwarding::Family;

/// Connects the host with the helper in `netns`. An uplink that is there is kept if the helper was `adopted`; otherwise
/// it leads to one that died, whose namespace the kernel may only be about to take away. `false`: another has this uplink
/// network meanwhile; nothing was made.
///
/// # Errors
/// Names the piece that could not be made, and what is probably missing.
pub async fn connect(names: &Names, uplink: Uplink, netns: &Path, adopted: bool, plan: &Plan) -> Result<bool> {
    if !Host::open(names)?.veth(uplink, netns, adopted).await? {
        return Ok(false);
    }
    finish(names, uplink, plan).await
}

/// As [`connect`], over the TAP that the keeper of a virtual helper machine has made.
///
/// # Errors
/// As [`connect`].
pub async fn connect_tap(names: &Names, uplink: Uplink, plan: &Plan) -> Result<bool> {
    if !Host::open(names)?.tap(uplink).await? {
        return Ok(false);
    }
    finish(names, uplink, plan).await
}

/// Takes away an interface of an earlier machine, so that the next one's keeper can make its own.
///
/// # Errors
/// It stays.
pub async fn clear(names: &Names) -> Result<()> {
    Host::open(names)?.remove(&names.interface).await
}

async fn finish(names: &Names, uplink: Uplink, plan: &Plan) -> Result<bool> {
    settle(names, uplink, plan).await?;
    forward(names).await?;
    match uplink.v6() {
        Some(_) => {
            forwarding::switch_on(Family::V6, &names.table).await?;
        }
        // One of an earlier life, before the host lost its IPv6.
        None => forwarding::drop_table(Family::V6, &names.table).await?,
    }
    Ok(true)
}

/// Makes rules and routes as planned, all rules of a family at once. The uplink must be there.
///
/// # Errors
/// The rules or the route that could not be made.
pub async fn settle(names: &Names, uplink: Uplink, plan: &Plan) -> Result<()> {
    nft(&rules(names, "ip", &uplink.net(), plan)).await?;
    if let Some(v6) = uplink.v6() {
        nft(&rules(names, "ip6", &v6.net(), plan)).await?;
    }
    Host::open(names)?.routes(uplink, plan).await
}

/// Switches IPv4 forwarding on, if it is off; `names.table` then says so. That table must be there.
async fn forward(names: &Names) -> Result<()> {
    forwarding::switch_on(Family::V4, &names.table).await
}

/// Removes the IPv4 table and, if it has the mark, switches forwarding off or hands the mark over.
async fn drop_table(names: &Names) -> Result<()> {
    forwarding::drop_table(Family::V4, &names.table).await
}

/// Forwarding for whoever takes part in it under the name `table` alone: on in the families that are wanted, handed
/// back in those that are not.
pub(crate) async fn hold_forwarding(table: &str, v4: bool, v6: bool) -> Result<()> {
    for (family, wanted) in [(Family::V4, v4), (Family::V6, v6)] {
        if wanted {
            forwarding::join(family, table).await?;
        } else {
            forwarding::drop_table(family, table).await?;
        }
    }
    Ok(())
}

/// Undoes [`connect`], as far as there is something to undo.
///
/// # Errors
/// The last piece that could not be removed; the others are gone.
pub async fn disconnect(names: &Names) -> Result<()> {
    let link = match Host::open(names) {
        Ok(host) => host.remove(&names.interface).await,
        Err(error) => Err(error),
    };
    let v6 = forwarding::drop_table(Family::V6, &names.table).await;
    drop_table(names).await.and(v6).and(link)
}

/// The host's side, over a netlink socket of its own.
struct Host<'a> {
    names: &'a Names,
    handle: Handle,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Host<'_> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Turns one errno into a value, for what is as wanted already.
fn unless<T>(errno: i32, value: T, result: std::result::Result<T, rtnetlink::Error>) -> Outcome<T> {
    match result {
        Err(rtnetlink::Error::NetlinkError(message)) if message.raw_code() == -errno => Ok(value),
        other => other,
    }
}

type Outcome<T> = std::result::Result<T, rtnetlink::Error>;

impl<'a> Host<'a> {
    fn open(names: &'a Names) -> Result<Self> {
        let (connection, handle, _) = rtnetlink::new_connection().map_err(Error::io("open a netlink socket"))?;
        Ok(Self { names, handle, task: tokio::spawn(connection) })
    }

    fn refused(&self, what: &'static str) -> impl FnOnce(rtnetlink::Error) -> Error {
        let name = self.names.interface.clone();
        move |error| Error::Failed(format!("{what} (interface {name}): {error} (are root and CAP_NET_ADMIN there?)"))
    }

    async fn find(&self, name: &str) -> Result<Option<LinkMessage>> {
        let found = self.handle.link().get().match_name(name.to_owned()).execute().try_next().await;
        unless(nix::libc::ENODEV, None, found).map_err(self.refused("look for the uplink"))
    }

    /// Removes an interface; one that is not there, or just went by itself, is gone as wanted.
    async fn remove(&self, name: &str) -> Result<()> {
        let Some(link) = self.find(name).await? else { return Ok(()) };
        let removed = self.handle.link().del(link.header.index).execute().await;
        unless(nix::libc::ENODEV, (), removed).map_err(self.refused("remove the uplink"))
    }

    async fn veth(&self, uplink: Uplink, netns: &Path, adopted: bool) -> Result<bool> {
        let netns = File::open(netns).map_err(Error::io("open the helper's network namespace"))?;
        let name = &self.names.interface;
        if !adopted {
            self.remove(name).await?;
        }
        let link = match self.find(name).await? {
            Some(link) => link,
            None => self.pair(&netns).await?,
        };
        match self.claim(&link, uplink).await {
            Ok(true) => Ok(true),
            // The error to tell is the first one.
            other if !adopted => self.remove(name).await.and(other),
            other => other,
        }
    }

    async fn tap(&self, uplink: Uplink) -> Result<bool> {
        let name = &self.names.interface;
        let link = self.find(name).await?;
        let link = link.ok_or_else(|| Error::Failed(format!("the helper machine has no interface {name} here")))?;
        let claimed = self.claim(&link, uplink).await;
        if !matches!(claimed, Ok(true)) {
            // The interface stays, for the next network: what it was given of this one goes.
            let index = link.header.index;
            let net = uplink.net();
            let route = RouteMessageBuilder::<Ipv4Addr>::new().destination_prefix(net.network(), net.prefix_len());
            let _ = self.handle.route().del(route.output_interface(index).build()).execute().await;
            let address =
                self.handle.address().add(index, IpAddr::V4(uplink.host()), net.prefix_len()).message_mut().clone();
            let _ = self.handle.address().del(address).execute().await;
        }
        claimed
    }

    async fn pair(&self, netns: &File) -> Result<LinkMessage> {
        let name = &self.names.interface;
        // A name of this engine's also for the moment before the inner end gets its own in the helper. If an earlier
        // attempt broke off there, it went with the outer end.
        let inner = format!("{name}p");
        let pair = LinkVeth::new(name, &inner).build();
        self.handle.link().add(pair).execute().await.map_err(self.refused("make the uplink"))?;
        let moved = match self.find(&inner).await? {
            Some(link) => {
                let there = LinkUnspec::new_with_index(link.header.index).name(HELPER_INTERFACE.to_owned());
                let there = there.setns_by_fd(netns.as_raw_fd()).build();
                self.handle.link().set(there).execute().await.map_err(self.refused("move the uplink into the helper"))
            }
            None => Err(Error::Failed(format!("interface {inner} vanished right after it was made"))),
        };
        if let Err(error) = moved {
            return self.remove(name).await.and(Err(error));
        }
        let made = self.find(name).await?;
        made.ok_or_else(|| Error::Failed(format!("interface {name} vanished right after it was made")))
    }

    /// Brings the interface up with its address, and claims the network by a route. `false`: it is another's.
    async fn claim(&self, link: &LinkMessage, uplink: Uplink) -> Result<bool> {
        let (index, net) = (link.header.index, uplink.net());
        self.prepare_v6(uplink)?;
        if !link.header.flags.contains(LinkFlags::Up) {
            let up = LinkUnspec::new_with_index(index).up().build();
            self.handle.link().set(up).execute().await.map_err(self.refused("bring the uplink up"))?;
        }
        if !hostnet::routes_over(&self.names.interface).contains(&net) {
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .protocol(RouteProtocol::Kernel)
                .scope(RouteScope::Link)
                .build();
            // Exclusive: refused if there is a route to the same network, over whichever interface.
            let claimed = self.handle.route().add(route).execute().await.map(|()| true);
            if !unless(nix::libc::EEXIST, false, claimed).map_err(self.refused("claim the uplink network"))? {
                return Ok(false);
            }
        }
        let mut address = self.handle.address().add(index, IpAddr::V4(uplink.host()), net.prefix_len());
        // The route is there already.
        address.message_mut().attributes.push(AddressAttribute::Flags(AddressFlags::Noprefixroute));
        let given = address.execute().await;
        unless(nix::libc::EEXIST, (), given).map_err(self.refused("give the uplink its address"))?;
        match uplink.v6() {
            Some(v6) => self.claim_v6(index, v6).await,
            None => Ok(true),
        }
    }

    /// Addresses are usable at once and nobody advertises routes here; without an IPv6 side the interface has none.
    fn prepare_v6(&self, uplink: Uplink) -> Result<()> {
        let settings: &[(&str, &str)] = match uplink.v6() {
            Some(_) => &[("accept_dad", "0"), ("accept_ra", "0"), ("disable_ipv6", "0")],
            None if hostnet::has_ipv6() => &[("disable_ipv6", "1")],
            None => &[],
        };
        for (setting, value) in settings {
            let path = format!("/proc/sys/net/ipv6/conf/{}/{setting}", self.names.interface);
            std::fs::write(path, value).map_err(Error::io("prepare the uplink for IPv6"))?;
        }
        Ok(())
    }

    /// Routes to the planned subnets by the helper's router, and none to others. Those of a family without uplink are
    /// left out.
    async fn routes(&self, uplink: Uplink, plan: &Plan) -> Result<()> {
        let name = &self.names.interface;
        let there = |net: &IpNet| match net {
            IpNet::V4(net) => *net != uplink.net(),
            IpNet::V6(net) => uplink.v6().is_none_or(|v6| *net != v6.net()),
        };
        let v4 = hostnet::routes_over(name).into_iter().map(IpNet::V4);
        let there: Vec<IpNet> =
            v4.chain(hostnet::routes_over_v6(name).into_iter().map(IpNet::V6)).filter(there).collect();
        for net in there.iter().filter(|net| !plan.routes.contains(net)) {
            let removed = match *net {
                IpNet::V4(net) => {
                    let route = RouteMessageBuilder::<Ipv4Addr>::new();
                    self.handle.route().del(route.destination_prefix(net.network(), net.prefix_len()).build())
                }
                IpNet::V6(net) => {
                    let route = RouteMessageBuilder::<Ipv6Addr>::new();
                    self.handle.route().del(route.destination_prefix(net.network(), net.prefix_len()).build())
                }
            };
            unless(nix::libc::ESRCH, (), removed.execute().await).map_err(self.refused("remove a network's route"))?;
        }
        let Some(link) = self.find(name).await? else { return Ok(()) };
        for net in plan.routes.iter().filter(|net| !there.contains(net)) {
            let route = match (*net, uplink.v6()) {
                (IpNet::V4(net), _) => RouteMessageBuilder::<Ipv4Addr>::new()
                    .destination_prefix(net.network(), net.prefix_len())
                    .gateway(uplink.router())
                    .output_interface(link.header.index)
                    .build(),
                (IpNet::V6(net), Some(v6)) => RouteMessageBuilder::<Ipv6Addr>::new()
                    .destination_prefix(net.network(), net.prefix_len())
                    .gateway(v6.router())
                    .output_interface(link.header.index)
                    .build(),
                (IpNet::V6(_), None) => continue,
            };
            // Exclusive: a route of somebody else to the same network stays.
            let made = self.handle.route().add(route).execute().await;
            made.map_err(self.refused("make a network's route, which nobody else may have"))?;
        }
        Ok(())
    }

    async fn claim_v6(&self, index: u32, v6: UplinkV6) -> Result<bool> {
        let net = v6.net();
        if !hostnet::routes_over_v6(&self.names.interface).contains(&net) {
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(net.network(), net.prefix_len())
                .output_interface(index)
                .protocol(RouteProtocol::Kernel)
                .build();
            let claimed = self.handle.route().add(route).execute().await.map(|()| true);
            if !unless(nix::libc::EEXIST, false, claimed).map_err(self.refused("claim the uplink's IPv6 network"))? {
                return Ok(false);
            }
        }
        let mut address = self.handle.address().add(index, IpAddr::V6(v6.host()), net.prefix_len());
        let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
        address.message_mut().attributes.push(AddressAttribute::Flags(flags));
        let given = address.execute().await;
        unless(nix::libc::EEXIST, (), given).map_err(self.refused("give the uplink its IPv6 address"))?;
        Ok(true)
    }
}

/// Flushing and filling the chains in one transaction. Nobody comes in from elsewhere but by a published port: a host
/// that knows the way to the router's uplink address would otherwise find there also what is published on 127.0.0.1.
fn rules(names: &Names, family: &str, net: &dyn std::fmt::Display, plan: &Plan) -> String {
    let Names { interface, table } = names;
    let sources = plan.sources_script(&format!("{family} {table} uplink"), family, interface, &net.to_string());
    let guard = plan.guard_script(&format!("{family} {table} guard"), family, interface);
    format!(
        "add table {family} {table}\n\
         add chain {family} {table} uplink {{ type nat hook postrouting priority srcnat; }}\n\
         flush chain {family} {table} uplink\n\
         {sources}\
         add rule {family} {table} uplink {family} saddr {net} oifname != \"{interface}\" masquerade\n\
         add chain {family} {table} guard {{ type filter hook forward priority filter; }}\n\
         flush chain {family} {table} guard\n\
         {guard}\
         add rule {family} {table} guard oifname \"{interface}\" ct state {{ new, invalid, untracked }} \
         ct status & dnat == 0 drop\n\
         add rule {family} {table} guard iifname != \"{interface}\" {family} saddr {net} drop\n"
    )
}

/// Runs a script in one transaction; gives what it listed.
pub(crate) async fn nft(script: &str) -> Result<String> {
    let run = async {
        let mut child = Command::new("nft")
            .args(["-f", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(script.as_bytes()).await?;
        }
        child.wait_with_output().await
    };
    match run.await {
        Ok(output) if output.status.success() => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stderr);
            Err(Error::Failed(format!("nftables refused a rule: {}", text.lines().next().unwrap_or("no reason given"))))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(Error::Failed("the program nft is not installed (package nftables)".into()))
        }
        Err(error) => Err(Error::Io { action: "run nft", source: error }),
    }
}
