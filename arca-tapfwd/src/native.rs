// SPDX-License-Identifier: Apache-2.0
//! `arca-tapfwd interface`: sets up the one interface that a virtual machine on a native network has from its boot on, and
//! ends. There are no frames to carry here: the host's switch and the machine's card do that.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use anyhow::{Context as _, bail};
use clap::Args;
use futures_util::TryStreamExt as _;
use nix::libc;
use rtnetlink::{
    LinkUnspec, RouteMessageBuilder,
    packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage},
};

use crate::{
    kernel::{Kernel, KernelError},
    settings::{Cidr, InterfaceName, MacAddr},
};

/// What the interface is to be.
#[derive(Args, Clone, Debug)]
pub struct Wanted {
    /// Name it gets.
    #[arg(long, value_parser = |text: &str| InterfaceName::try_from(text))]
    name: InterfaceName,
    /// Hardware address it gets.
    #[arg(long, value_parser = |text: &str| MacAddr::try_from(text))]
    mac: MacAddr,
    /// Bytes of an IP packet.
    #[arg(long)]
    mtu: u32,
    /// Address with prefix length; repeatable.
    #[arg(long = "address", value_parser = |text: &str| Cidr::try_from(text))]
    addresses: Vec<Cidr>,
    /// Next hop of the default route of its family; repeatable.
    #[arg(long = "gateway")]
    gateways: Vec<IpAddr>,
}

/// Does it; once more changes nothing that a packet would see.
///
/// # Errors
/// There is no such interface or more than one, or the kernel refuses.
pub async fn set_up(wanted: &Wanted) -> anyhow::Result<()> {
    let kernel = Kernel::open()?;
    let links = kernel.handle().link().get().execute().try_collect::<Vec<_>>().await.context("list interfaces")?;
    let name = wanted.name.as_str();
    let link = match links.iter().find(|link| name_of(link) == Some(name)) {
        Some(link) => link,
        None => the_one(&links)?,
    };
    let index = link.header.index;
    let down = LinkUnspec::new_with_index(index).down().build();
    let named = LinkUnspec::new_with_index(index)
        .name(name.to_owned())
        .address(wanted.mac.octets().to_vec())
        .mtu(wanted.mtu)
        .build();
    let change = |what: &'static str, message: LinkMessage| {
        let request = kernel.handle().link().set(message);
        async move { request.execute().await.with_context(|| format!("{what} {name}")) }
    };
    if name_of(link) != Some(name) {
        // A name is changed while nothing uses it.
        change("set down the interface that becomes", down).await?;
    }
    change("give its name, hardware address and MTU to", named).await?;
    kernel.prepare(&wanted.name, wanted.addresses.iter().any(|cidr| cidr.address.is_ipv6()))?;
    for cidr in &wanted.addresses {
        match kernel.add_address(index, *cidr).await {
            Err(KernelError::Netlink { source: rtnetlink::Error::NetlinkError(error), .. })
                if -error.raw_code() == libc::EEXIST => {}
            added => added?,
        }
    }
    kernel.loopback_up().await?;
    kernel.up(index).await?;
    for gateway in &wanted.gateways {
        let route = match gateway {
            IpAddr::V4(hop) => RouteMessageBuilder::<Ipv4Addr>::new().output_interface(index).gateway(*hop).build(),
            IpAddr::V6(hop) => RouteMessageBuilder::<Ipv6Addr>::new().output_interface(index).gateway(*hop).build(),
        };
        let set = kernel.handle().route().add(route).replace().execute().await;
        set.with_context(|| format!("set the default route over {gateway}"))?;
    }
    Ok(())
}

fn name_of(link: &LinkMessage) -> Option<&str> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    })
}

/// The card: an Ethernet interface that no software made, or the end of a cable, as in a test. Kernels bring along others.
fn the_one(links: &[LinkMessage]) -> anyhow::Result<&LinkMessage> {
    let kind = |link: &LinkMessage| {
        link.attributes.iter().find_map(|attribute| match attribute {
            LinkAttribute::LinkInfo(infos) => infos.iter().find_map(|info| match info {
                LinkInfo::Kind(kind) => Some(kind.clone()),
                _ => None,
            }),
            _ => None,
        })
    };
    let mut cards = links.iter().filter(|link| {
        link.header.link_layer_type == LinkLayerType::Ether && kind(link).is_none_or(|kind| kind == InfoKind::Veth)
    });
    match (cards.next(), cards.next()) {
        (Some(card), None) => Ok(card),
        (None, _) => bail!("the machine has no network card (was it booted for a native network?)"),
        (Some(_), Some(_)) => bail!("the machine has more than one network card"),
    }
}
