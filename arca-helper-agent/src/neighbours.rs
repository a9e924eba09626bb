// SPDX-License-Identifier: Apache-2.0
//! Who is on the uplink: the MAC addresses of the next hops and of the helper itself. [`crate::uplink`] keeps this
//! going, [`crate::service`] puts what it finds into rows.
//!
//! OVN would ask by itself, at the first packet that needs an answer. Of what comes until its flows have it,
//! ovn-controller keeps four packets for each next hop and drops the others: of fifty clients that come at once
//! forty-six would get no answer. So the helper's kernel asks, before there is a packet, and tells of later changes.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt, TryStreamExt};
use rtnetlink::packet_core::NetlinkPayload;
use rtnetlink::packet_route::RouteNetlinkMessage;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::{Handle, MulticastGroup, new_multicast_connection};
use tokio::sync::{Mutex, watch};
use tokio::task::JoinSet;

use crate::nb::address::MacAddr;

/// MAC addresses by what they are asked for.
pub type Known = BTreeMap<IpAddr, MacAddr>;

/// How long a next hop may take to answer before things go on without it: it is asked for again with the first packet.
const PATIENCE: Duration = Duration::from_secs(1);

/// What the kernel knows of the neighbours; clones share it.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    known: Arc<watch::Sender<Known>>,
    /// Both ends of one netlink connection; replaced together.
    tasks: Arc<Mutex<JoinSet<()>>>,
}

impl Neighbours {
    /// What is known, and every change of it.
    pub fn subscribe(&self) -> watch::Receiver<Known> {
        self.known.subscribe()
    }

    /// Asks for `hops` on the interface of this index and follows them from now on, instead of those of before. `own`
    /// are addresses of the interface itself.
    ///
    /// # Errors
    /// The kernel refused.
    pub async fn follow(&self, index: u32, own: &[IpAddr], hops: Vec<IpAddr>) -> io::Result<()> {
        let mut tasks = self.tasks.lock().await;
        *tasks = JoinSet::new();
        // What is heard may come at once, so listening comes before asking.
        let (connection, handle, mut heard) = new_multicast_connection(&[MulticastGroup::Neigh])?;
        tasks.spawn(connection);
        let mac = own_mac(&handle, index).await.map_err(io::Error::other)?;
        self.known.send_modify(|known| {
            known.retain(|address, _| hops.contains(address));
            known.extend(own.iter().filter_map(|address| Some((*address, mac?))));
        });
        for hop in &hops {
            // What is known from before may be old; an entry that is not there cannot be deleted.
            let mut forget = NeighbourMessage::default();
            forget.header.ifindex = index;
            forget.header.family = if hop.is_ipv4() { AF_INET } else { AF_INET6 }.into();
            forget.attributes.push(NeighbourAttribute::Destination((*hop).into()));
            let _ = handle.neighbours().del(forget).execute().await;
            let ask = handle.neighbours().add(index, *hop).state(NeighbourState::None).flags(NeighbourFlags::Use);
            ask.replace().execute().await.map_err(io::Error::other)?;
        }
        let (known, hops) = (Arc::clone(&self.known), hops.into_iter().collect());
        tasks.spawn(async move {
            // The connection ends with its handle.
            let _handle = handle;
            while let Some((message, _)) = heard.next().await {
                let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewNeighbour(message)) = message.payload else {
                    continue;
                };
                if let Some((address, mac)) = answer(&message, index, &hops) {
                    known.send_if_modified(|known| known.insert(address, mac) != Some(mac));
                }
            }
        });
        Ok(())
    }

    /// Waits until all of `hops` have answered; false if some have not in good time.
    pub async fn answered(&self, hops: &[IpAddr]) -> bool {
        let mut known = self.known.subscribe();
        let all = known.wait_for(|known| hops.iter().all(|hop| known.contains_key(hop)));
        matches!(tokio::time::timeout(PATIENCE, all).await, Ok(Ok(_)))
    }
}

const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

async fn own_mac(handle: &Handle, index: u32) -> Result<Option<MacAddr>, rtnetlink::Error> {
    let link = handle.link().get().match_index(index).execute().try_next().await?;
    let attributes = link.into_iter().flat_map(|link| link.attributes);
    Ok(attributes.into_iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(bytes) => mac(&bytes),
        _ => None,
    }))
}

fn mac(bytes: &[u8]) -> Option<MacAddr> {
    <[u8; 6]>::try_from(bytes).ok().map(MacAddr::from)
}

/// What a message says of one of `hops` on an interface: nothing, if it only says that nobody answers.
fn answer(message: &NeighbourMessage, index: u32, hops: &BTreeSet<IpAddr>) -> Option<(IpAddr, MacAddr)> {
    if message.header.ifindex != index {
        return None;
    }
    let mut found = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(address)) => found.0 = Some(IpAddr::V4(*address)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(address)) => found.0 = Some(IpAddr::V6(*address)),
            NeighbourAttribute::LinkLayerAddress(bytes) => found.1 = mac(bytes),
            _ => {}
        }
    }
    let address = found.0.filter(|address| hops.contains(address))?;
    Some((address, found.1?))
}
