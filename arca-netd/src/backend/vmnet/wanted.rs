// SPDX-License-Identifier: Apache-2.0
//! What the switch is asked for, in its own terms: names, segments, plugs. Made from networks and endpoints, no I/O.

use std::net::IpAddr;

use arca_proto::{dial::Address, ports::LinkNumber};
use ipnet::IpNet;

use super::address::{mac_for, mac_for_v6};
use crate::model::{Endpoint, MacAddr, Network, NetworkId, WorkloadId};

/// Names on the host. Each holds the engine's tag: several engines may share a host, and what an engine finds there with
/// its own tag is its own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Names {
    tag: String,
}

impl Names {
    /// Those of the engine with this tag (eight hexadecimal digits).
    #[must_use]
    pub fn of(tag: &str) -> Self {
        Self { tag: tag.to_owned() }
    }

    /// How bridges begin.
    #[must_use]
    pub fn segments(&self) -> String {
        format!("b{}", self.tag)
    }

    /// How ports begin.
    #[must_use]
    pub fn ports(&self) -> String {
        format!("v{}", self.tag)
    }

    /// Bridge of a network: 15 bytes, all that a name may have.
    #[must_use]
    pub fn segment(&self, id: &NetworkId) -> String {
        format!("{}{}", self.segments(), &id.as_str()[..6])
    }

    /// The host's end of an endpoint's cable.
    #[must_use]
    pub fn port(&self, link: LinkNumber) -> String {
        format!("{}.{link}", self.ports())
    }

    /// nftables table, family `inet`.
    #[must_use]
    pub fn table(&self) -> String {
        format!("arca_vmnet_{}", self.tag)
    }

    /// The name under which this backend takes part in who holds the host's IP forwarding: as if it were one more engine,
    /// because it needs forwarding whether the helper's uplink is there or not.
    #[must_use]
    pub fn forwarding(&self) -> String {
        let tag = u32::from_str_radix(&self.tag, 16).unwrap_or_default();
        format!("arca_{:08x}", tag ^ u32::from_be_bytes(*b"vmnt"))
    }
}

/// The TAP interface of a workload's machine, before it is plugged in and gets a port's name. The keeper of the machine
/// makes it and it ends with the machine. 56 bits of the id: no two machines of a host meet.
#[must_use]
pub fn tap(workload: &WorkloadId) -> String {
    format!("t{}", workload.as_str().get(..14).unwrap_or_default())
}

/// One network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// On the host.
    pub name: String,
    /// The host's addresses there, which are the containers' gateways, with the subnet's prefix length.
    pub gateways: Vec<IpNet>,
    /// Hardware address of the gateway. Fixed, or it would follow the ports that come and go.
    pub mac: Option<MacAddr>,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// No way out.
    pub internal: bool,
    /// Its containers may talk to each other.
    pub inter_container: bool,
    /// Its containers appear outside with the host's address.
    pub masquerade: bool,
}

impl Segment {
    /// Of a network.
    #[must_use]
    pub fn of(network: &Network, names: &Names) -> Self {
        let v4 = network.v4.as_ref().and_then(|v4| prefixed(v4.gateway.into(), v4.subnet.prefix_len()));
        let v6 = network.v6.as_ref().and_then(|v6| prefixed(v6.gateway.into(), v6.subnet.prefix_len()));
        Self {
            name: names.segment(&network.id),
            gateways: v4.into_iter().chain(v6).collect(),
            mac: match (&network.v4, &network.v6) {
                (Some(v4), _) => mac_for(v4.gateway),
                (None, v6) => v6.as_ref().and_then(|v6| mac_for_v6(v6.gateway)),
            },
            mtu: network.mtu,
            internal: network.spec.internal,
            inter_container: network.inter_container,
            masquerade: network.masquerade && !network.spec.internal,
        }
    }
}

fn prefixed(address: IpAddr, length: u8) -> Option<IpNet> {
    IpNet::new(address, length).ok()
}

/// One endpoint: a cable from a segment into a machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plug {
    /// The host's end.
    pub port: String,
    /// Where it is plugged in.
    pub segment: String,
    /// Whose other end it is.
    pub machine: Address,
    /// The host's end, where the machine brings it along ([`tap`]).
    pub tap: String,
    /// Name in the machine.
    pub interface: String,
    /// Hardware address in the machine.
    pub mac: MacAddr,
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// Addresses in the machine.
    pub addresses: Vec<IpNet>,
    /// Next hops of its default routes.
    pub gateways: Vec<IpAddr>,
    /// It may not talk to other ports of the segment.
    pub isolated: bool,
}

impl Plug {
    /// Of an endpoint; none if it has no interface.
    #[must_use]
    pub fn of(network: &Network, endpoint: &Endpoint, names: &Names) -> Option<Self> {
        let place = endpoint.place.as_ref()?;
        let v4 = endpoint.address_v4.map(IpNet::V4);
        let v6 = endpoint.address_v6.map(IpNet::V6);
        let gateways = [network.route_v4().map(IpAddr::V4), network.route_v6().map(IpAddr::V6)];
        Some(Self {
            port: names.port(place.link),
            segment: names.segment(&network.id),
            machine: place.address.clone(),
            tap: tap(&endpoint.workload),
            interface: place.interface.clone(),
            mac: place.mac,
            mtu: network.mtu,
            addresses: v4.into_iter().chain(v6).collect(),
            gateways: gateways.into_iter().flatten().collect(),
            isolated: !network.inter_container,
        })
    }

    /// It has an IPv6 address.
    #[must_use]
    pub fn has_v6(&self) -> bool {
        self.addresses.iter().any(|address| matches!(address, IpNet::V6(_)))
    }
}

/// Subnets of a segment that are hidden behind the host's address.
#[must_use]
pub fn subnets(segment: &Segment) -> Vec<IpNet> {
    segment.gateways.iter().map(IpNet::trunc).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_the_kernel_and_tell_engines_apart() {
        let (ours, theirs) = (Names::of("ab73a7af"), Names::of("00000000"));
        let id = NetworkId::random().unwrap();
        let last = LinkNumber::try_from(9999).unwrap();
        assert!(ours.segment(&id).len() <= 15 && ours.port(last).len() <= 15);
        assert!(!theirs.segment(&id).starts_with(&ours.segments()));
        assert_ne!(ours.forwarding(), theirs.forwarding());
        assert_eq!(ours.forwarding().len(), "arca_ab73a7af".len());
    }
}
