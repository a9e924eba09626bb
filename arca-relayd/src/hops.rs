// SPDX-License-Identifier: Apache-2.0
//! What the hops at both ends of links count, asked over their own gRPC: a machine serves nothing else to be looked at.

use std::{collections::BTreeMap, time::Duration};

use arca_proto::{
    dial::{Address, channel},
    helper::v1::{ListPortsRequest, helper_client::HelperClient},
    machine::v1 as machine,
    ports,
    relay::v1::{Hop, Link},
    tap::v1::{ListInterfacesRequest, tap_client::TapClient},
};
use futures_util::future::join_all;
use tokio::time::timeout;

/// How long a machine may take to answer; its hops are left out then.
const ANSWER: Duration = Duration::from_secs(1);

/// Hops of one machine by link.
type Hops = BTreeMap<u32, Hop>;

/// Asks every machine that has an end of these links, all at once, and fills in what they say.
pub(crate) async fn fill(links: &mut [Link]) {
    let (containers, helpers) = tokio::join!(
        ask_all(links.iter().filter_map(|link| link.container.clone()), of_container),
        ask_all(links.iter().filter_map(|link| link.helper.clone()), of_helper),
    );
    for link in links {
        let find = |hops: &BTreeMap<String, Hops>, end: &Option<machine::Address>| {
            let hop = hops.get(&key(end.as_ref()?)?)?.get(&link.link)?;
            Some(*hop)
        };
        link.container_hop = find(&containers, &link.container);
        link.helper_hop = find(&helpers, &link.helper);
    }
}

fn key(address: &machine::Address) -> Option<String> {
    Address::try_from(address.clone()).ok().map(|address| address.to_string())
}

async fn ask_all<F: Future<Output = Option<Hops>>>(
    ends: impl Iterator<Item = machine::Address>,
    ask: impl Fn(Address) -> F,
) -> BTreeMap<String, Hops> {
    let parsed = ends.filter_map(|end| Address::try_from(end).ok());
    let machines: BTreeMap<String, Address> = parsed.map(|address| (address.to_string(), address)).collect();
    let asked = machines.into_iter().map(|(key, address)| {
        let answer = timeout(ANSWER, ask(address));
        async move { Some((key, answer.await.ok().flatten()?)) }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

async fn of_container(address: Address) -> Option<Hops> {
    let answer = TapClient::new(channel(&address, ports::TAP)).list_interfaces(ListInterfacesRequest {}).await;
    let interfaces = answer.ok()?.into_inner().interfaces;
    let hop = |interface: arca_proto::tap::v1::Interface| {
        let (to_helper, to_container) = (interface.to_stream, interface.from_stream);
        Some((interface.settings?.link, Hop { to_helper, to_container }))
    };
    Some(interfaces.into_iter().filter_map(hop).collect())
}

async fn of_helper(address: Address) -> Option<Hops> {
    let answer = HelperClient::new(channel(&address, ports::HELPER)).list_ports(ListPortsRequest {}).await;
    let listed = answer.ok()?.into_inner().ports;
    let hop = |port: arca_proto::helper::v1::Port| {
        (port.link, Hop { to_helper: port.from_stream, to_container: port.to_stream })
    };
    Some(listed.into_iter().map(hop).collect())
}
