// SPDX-License-Identifier: Apache-2.0
//! Declared objects as domain types that cannot be invalid; made from `arca.helper.v1` messages by `TryFrom` and used by
//! [`super::rows`] and [`crate::service`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use arca_proto::{helper::v1 as proto, ports::LinkNumber, relay::v1 as relay};

use super::address::{Interface4, Interface6, InvalidAddress, MacAddr, Range4, Subnet4, Subnet6};
use super::numbers::Numbers;
use crate::neighbours::Known;

/// Why a declared object is not acceptable by itself, whatever else is declared.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {reason}")]
pub struct Invalid {
    /// Field of the message.
    pub field: &'static str,
    /// What is wrong with it.
    pub reason: String,
}

fn bad(field: &'static str, reason: impl fmt::Display) -> Invalid {
    Invalid { field, reason: reason.to_string() }
}

fn parse<T: std::str::FromStr<Err = InvalidAddress>>(field: &'static str, text: &str) -> Result<T, Invalid> {
    text.parse().map_err(|e| bad(field, e))
}

fn optional<T: std::str::FromStr>(field: &'static str, text: &str) -> Result<Option<T>, Invalid> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| bad(field, format_args!("`{text}` is not an address")))
}

/// Sixty-four lower-case hex digits.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Hex64(String);

impl Hex64 {
    fn new(field: &'static str, text: &str) -> Result<Self, Invalid> {
        if text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            Ok(Self(text.to_owned()))
        } else {
            Err(bad(field, "an identifier of 64 lower-case hex digits is needed"))
        }
    }
}

macro_rules! identifier {
    ($(#[$doc:meta])* $name:ident, $field:literal) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(Hex64);

        impl $name {
            /// Checks the text.
            ///
            /// # Errors
            /// Anything but 64 lower-case hex digits.
            pub fn new(text: &str) -> Result<Self, Invalid> {
                Hex64::new($field, text).map(Self)
            }

            /// The identifier.
            pub fn as_str(&self) -> &str {
                &self.0.0
            }

            /// Its first 12 digits, as rows and people know it.
            pub fn short(&self) -> &str {
                &self.0.0[..12]
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.short())
            }
        }
    };
}

identifier!(
    /// Identifier of a network.
    NetworkId,
    "network id"
);
identifier!(
    /// Identifier of an endpoint; its logical switch port is named by it.
    EndpointId,
    "endpoint id"
);

/// Identifier of a published port: 1..=128 letters, digits and `-_.:`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublishedPortId(String);

impl PublishedPortId {
    /// Checks the text.
    ///
    /// # Errors
    /// Other characters, empty or too long.
    pub fn new(text: &str) -> Result<Self, Invalid> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b"-_.:".contains(&b);
        if (1..=128).contains(&text.len()) && text.bytes().all(plain) {
            Ok(Self(text.to_owned()))
        } else {
            Err(bad("published port id", "1 to 128 letters, digits or any of `-_.:` are needed"))
        }
    }

    /// The identifier.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// A name that may be answered or sent by DHCP: lower case, no quotes, dots only between labels, at most 253 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Checks the text and lowers its case: OVN matches record keys only in lower case.
    ///
    /// # Errors
    /// Empty labels, labels above 63 bytes, or a character that is none of `a-z0-9-_`.
    pub fn new(field: &'static str, text: &str) -> Result<Self, Invalid> {
        let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
        let label = |l: &str| (1..=63).contains(&l.len()) && l.bytes().all(plain);
        if text.len() <= 253 && text.split('.').all(label) {
            Ok(Self(text.to_ascii_lowercase()))
        } else {
            let shown: String = text.chars().take(64).collect();
            Err(bad(field, format_args!("`{}` is not a host name", shown.escape_debug())))
        }
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Uplink, gateway router and resolver of this helper.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// OVS `external_ids:system-id`; the gateway router is pinned to this chassis.
    pub system_id: String,
    /// Interface in the helper machine that leads out.
    pub uplink_interface: String,
    /// The gateway router's address on the uplink.
    pub router: Interface4,
    /// Next hop of the default route.
    pub next_hop: Ipv4Addr,
    /// Address of the fallback resolver, on the router's uplink network.
    pub resolver: Interface4,
    /// The same for IPv6; none where the host has no IPv6.
    pub v6: Option<Config6>,
    /// Where unknown names are asked.
    pub forwarders: Vec<SocketAddr>,
    /// Who is on the uplink, as far as it is known; not sent but found out.
    pub neighbours: Known,
}

/// IPv6 side of the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Config6 {
    /// The gateway router's address.
    pub router: Interface6,
    /// Next hop of the default route.
    pub next_hop: Ipv6Addr,
    /// The resolver's address.
    pub resolver: Interface6,
}

impl Config6 {
    fn of(m: &proto::ConfigureRequest) -> Result<Option<Self>, Invalid> {
        if [&m.router_address_v6, &m.next_hop_v6, &m.resolver_address_v6].iter().all(|text| text.is_empty()) {
            return Ok(None);
        }
        let router: Interface6 = parse("router_address_v6", &m.router_address_v6)?;
        let resolver: Interface6 = parse("resolver_address_v6", &m.resolver_address_v6)?;
        let next_hop =
            optional("next_hop_v6", &m.next_hop_v6)?.ok_or_else(|| bad("next_hop_v6", "an IPv6 address is needed"))?;
        let subnet = router.subnet();
        if resolver.subnet() != subnet || !subnet.contains(next_hop) || next_hop == subnet.network() {
            return Err(bad("router_address_v6", "router, resolver and next hop must be on one subnet"));
        }
        if router.address == resolver.address || router.address == next_hop || resolver.address == next_hop {
            return Err(bad("router_address_v6", "router, resolver and next hop must differ"));
        }
        Ok(Some(Self { router, next_hop, resolver }))
    }
}

impl TryFrom<proto::ConfigureRequest> for Config {
    type Error = Invalid;

    fn try_from(m: proto::ConfigureRequest) -> Result<Self, Invalid> {
        let plain = |t: &str| t.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
        if !(1..=64).contains(&m.system_id.len()) || !plain(&m.system_id) {
            return Err(bad("system_id", "1 to 64 letters, digits or any of `-_.` are needed"));
        }
        if !(1..=15).contains(&m.uplink_interface.len()) || !plain(&m.uplink_interface) {
            return Err(bad("uplink_interface", "an interface name of 1 to 15 bytes is needed"));
        }
        let router: Interface4 = parse("router_address", &m.router_address)?;
        let resolver: Interface4 = parse("resolver_address", &m.resolver_address)?;
        let next_hop =
            optional("next_hop", &m.next_hop)?.ok_or_else(|| bad("next_hop", "an IPv4 address is needed"))?;
        let subnet = router.subnet();
        if resolver.subnet() != subnet || !subnet.contains_host(next_hop) {
            return Err(bad("router_address", "router, resolver and next hop must be on one subnet"));
        }
        if router.address == resolver.address || router.address == next_hop || resolver.address == next_hop {
            return Err(bad("router_address", "router, resolver and next hop must differ"));
        }
        let v6 = Config6::of(&m)?;
        let forwarders = m.forwarders.iter().map(|f| {
            f.parse()
                .map_err(|_| bad("forwarders", format_args!("`{f}` is not an address with port such as 10.0.0.53:53")))
        });
        Ok(Self {
            forwarders: forwarders.collect::<Result<_, _>>()?,
            system_id: m.system_id,
            uplink_interface: m.uplink_interface,
            router,
            next_hop,
            resolver,
            v6,
            neighbours: Known::new(),
        })
    }
}

/// IPv4 side of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network4 {
    /// Subnet.
    pub subnet: Subnet4,
    /// Router's address in it.
    pub gateway: Ipv4Addr,
    /// What OVN must not allocate, the gateway apart.
    pub exclude: Vec<Range4>,
    /// What is allocated from, where OVN's own allocation does not do; see [`super::numbers`].
    pub numbers: Option<Numbers>,
    /// How the outside reaches its endpoints.
    pub reach: Reach,
}

/// How the outside of a network and its endpoints reach each other in one family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reach {
    /// Endpoints keep their addresses on the way out.
    pub keep_source: bool,
    /// The uplink drops nothing that is for an endpoint.
    pub direct: bool,
    /// Other networks reach it, by way of the host.
    pub open: bool,
}

impl Network4 {
    fn of(m: &proto::Network) -> Result<Option<Self>, Invalid> {
        if m.subnet_v4.is_empty() {
            return Ok(None);
        }
        let subnet: Subnet4 = parse("subnet_v4", &m.subnet_v4)?;
        let gateway = optional("gateway_v4", &m.gateway_v4)?
            .filter(|g| subnet.contains_host(*g))
            .ok_or_else(|| bad("gateway_v4", format_args!("an address inside {subnet} is needed")))?;
        let exclude = m.exclude_v4.iter().map(|t| {
            let range: Range4 = parse("exclude_v4", t)?;
            // OVN stops reading the list at an address outside the subnet and only logs it.
            if subnet.contains(range.first) && subnet.contains(range.last) {
                Ok(range)
            } else {
                Err(bad("exclude_v4", format_args!("{range} is not inside {subnet}")))
            }
        });
        let exclude = exclude.collect::<Result<Vec<_>, _>>()?;
        let reach = Reach { keep_source: m.keep_source_v4, direct: m.direct_v4, open: m.open_v4 };
        Ok(Some(Self { subnet, gateway, numbers: numbers4(subnet, gateway, &exclude), exclude, reach }))
    }

    /// `other_config` of the switch whose ports are numbered; written once, as [`Network::addressing`].
    pub fn numbering(&self) -> BTreeMap<String, String> {
        let Some(numbers) = self.numbers else { return BTreeMap::new() };
        let edges = [self.subnet.network(), self.subnet.broadcast()];
        let edges = edges.into_iter().filter(|edge| !self.subnet.contains_host(*edge));
        let single = edges.chain([self.gateway]).map(|address| address..=address);
        numbers.addressing(single.chain(self.exclude.iter().map(|range| range.first..=range.last)))
    }

    /// The router's address with a prefix, and the other address of a subnet that has only two. Of such a subnet OVN takes
    /// the upper address for that of a broadcast, and drops what comes from it: so the prefix is the longest in which
    /// neither is the last one, and the other address needs a route of its own.
    pub fn router(&self) -> (String, Option<Ipv4Addr>) {
        if self.subnet.prefix() < 31 {
            return (format!("{}/{}", self.gateway, self.subnet.prefix()), None);
        }
        let upper = self.subnet.broadcast().to_bits();
        let prefix = 31 - upper.trailing_ones().min(30);
        let other = Ipv4Addr::from_bits(self.gateway.to_bits() ^ 1);
        (format!("{}/{prefix}", self.gateway), Some(other))
    }
}

/// What OVN's own allocation cannot give out: the first host of a subnet, addresses of very small and very large ones.
fn numbers4(subnet: Subnet4, gateway: Ipv4Addr, exclude: &[Range4]) -> Option<Numbers> {
    let first =
        if subnet.prefix() == 31 { subnet.network() } else { Ipv4Addr::from_bits(subnet.network().to_bits() + 1) };
    let reserved = |address: Ipv4Addr| exclude.iter().find(|range| (range.first..=range.last).contains(&address));
    if (8..=30).contains(&subnet.prefix()) && (first == gateway || reserved(first).is_some()) {
        return None;
    }
    // What is set apart at the beginning is not numbered: of a large subnet a range may begin far behind.
    let mut begin = first;
    while let Some(next) = reserved(begin).and_then(|range| range.last.to_bits().checked_add(1)) {
        begin = Ipv4Addr::from_bits(next);
    }
    let last = subnet.broadcast();
    Some(Numbers::between(begin.min(last), last))
}

/// IPv6 side of a network.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network6 {
    /// Subnet.
    pub subnet: Subnet6,
    /// Router's address in it.
    pub gateway: Ipv6Addr,
    /// What is allocated from.
    pub numbers: Numbers,
    /// What OVN must not allocate, the gateway apart.
    pub exclude: Vec<Ipv6Addr>,
    /// How the outside reaches its endpoints.
    pub reach: Reach,
}

impl Network6 {
    fn of(m: &proto::Network) -> Result<Option<Self>, Invalid> {
        if m.subnet_v6.is_empty() {
            return Ok(None);
        }
        let subnet: Subnet6 = parse("subnet_v6", &m.subnet_v6)?;
        if subnet.prefix() > 126 {
            return Err(bad("subnet_v6", format_args!("{subnet} has no room for a gateway and an endpoint")));
        }
        let inside = |a: &Ipv6Addr| subnet.contains(*a) && *a != subnet.network();
        let gateway = optional("gateway_v6", &m.gateway_v6)?
            .filter(inside)
            .ok_or_else(|| bad("gateway_v6", format_args!("an address inside {subnet} is needed")))?;
        let range = match m.range_v6.as_str() {
            "" => subnet,
            text => parse::<Subnet6>("range_v6", text)?,
        };
        if range.prefix() < subnet.prefix() || !subnet.contains(range.network()) {
            return Err(bad("range_v6", format_args!("{range} is not inside {subnet}")));
        }
        let exclude = m.exclude_v6.iter().map(|text| {
            let address = optional("exclude_v6", text)?.filter(inside);
            address.ok_or_else(|| bad("exclude_v6", format_args!("`{text}` is not an address inside {subnet}")))
        });
        let exclude = exclude.collect::<Result<_, _>>()?;
        let reach = Reach { keep_source: m.keep_source_v6, direct: m.direct_v6, open: m.open_v6 };
        Ok(Some(Self { subnet, gateway, numbers: Numbers::of(range), exclude, reach }))
    }

    /// `other_config` of the switch whose ports are numbered; written once, as [`Network::addressing`].
    pub fn addressing(&self) -> BTreeMap<String, String> {
        // The subnet's first address belongs to all routers on it (RFC 4291 section 2.6.1).
        let own = [self.subnet.network(), self.gateway];
        let taken = own.into_iter().chain(self.exclude.iter().copied());
        self.numbers.addressing(taken.map(|address| address..=address))
    }
}

/// A network: one logical switch with a router port. It has an IPv4 side, an IPv6 side or both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Identifier.
    pub id: NetworkId,
    /// Name, as in `container.network`.
    pub name: Name,
    /// IPv4 side.
    pub v4: Option<Network4>,
    /// IPv6 side.
    pub v6: Option<Network6>,
    /// No way out and none in from other networks.
    pub internal: bool,
    /// The gateway's address answers names only.
    pub isolated: bool,
    /// Endpoints may talk to each other.
    pub inter_container: bool,
    /// Source NAT to the uplink.
    pub masquerade: bool,
    /// Names of endpoints are answered.
    pub dns: bool,
    /// MTU in bytes, 576..=65535 (1280 with IPv6).
    pub mtu: u16,
}

impl Network {
    /// `other_config` of the switch. OVN renumbers running ports when it changes, so it is written once.
    pub fn addressing(&self) -> BTreeMap<String, String> {
        let Some(v4) = self.v4.as_ref().filter(|v4| v4.numbers.is_none()) else { return BTreeMap::new() };
        let exclude = v4.exclude.iter().map(ToString::to_string);
        let exclude: Vec<String> = std::iter::once(v4.gateway.to_string()).chain(exclude).collect();
        BTreeMap::from([("subnet".to_owned(), v4.subnet.to_string()), ("exclude_ips".to_owned(), exclude.join(" "))])
    }
}

impl TryFrom<proto::Network> for Network {
    type Error = Invalid;

    fn try_from(m: proto::Network) -> Result<Self, Invalid> {
        let (v4, v6) = (Network4::of(&m)?, Network6::of(&m)?);
        if v4.is_none() && v6.is_none() {
            return Err(bad("subnet_v4", "an IPv4 or an IPv6 subnet is needed"));
        }
        let floor = if v6.is_some() { 1280 } else { 576 };
        let mtu = u16::try_from(m.mtu)
            .ok()
            .filter(|mtu| *mtu >= floor)
            .ok_or_else(|| bad("mtu", format_args!("{} is outside {floor}..=65535", m.mtu)))?;
        Ok(Self {
            id: NetworkId::new(&m.id)?,
            name: Name::new("network name", &m.name)?,
            v4,
            v6,
            internal: m.internal,
            isolated: m.isolated,
            inter_container: m.inter_container,
            masquerade: m.masquerade,
            dns: m.dns,
            mtu,
        })
    }
}

pub use arca_proto::hello::Carrier;

/// An endpoint: one logical switch port and the TAP behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// Identifier.
    pub id: EndpointId,
    /// Network it is on.
    pub network: NetworkId,
    /// Link number.
    pub link: LinkNumber,
    /// MAC of the workload's interface.
    pub mac: MacAddr,
    /// `--ip`
    pub static_v4: Option<Ipv4Addr>,
    /// `--ip6`
    pub static_v6: Option<Ipv6Addr>,
    /// Names answered on this network; the first one is what PTR says.
    pub names: Vec<Name>,
    /// DHCP host name.
    pub hostname: Option<Name>,
    /// How its frames travel.
    pub carrier: Carrier,
    /// Machine it belongs to.
    pub machine: String,
    /// Names answered to that machine only: alias to a name of the network.
    pub links: BTreeMap<Name, Name>,
    /// Who is asked for names that no network knows; empty: the configured servers.
    pub forwarders: Vec<SocketAddr>,
    /// Addresses it may use beside its own.
    pub extra: Vec<IpAddr>,
}

impl TryFrom<proto::Endpoint> for Endpoint {
    type Error = Invalid;

    fn try_from(m: proto::Endpoint) -> Result<Self, Invalid> {
        // A newer release's carrier is read as the one that every release has.
        let carrier = Carrier::try_from(m.carrier).unwrap_or_default();
        if m.machine_id.is_empty() || m.machine_id.len() > 128 {
            return Err(bad("machine_id", "1 to 128 bytes are needed"));
        }
        let mut seen = BTreeSet::new();
        let names = m.names.iter().map(|n| Name::new("names", n)).collect::<Result<Vec<_>, _>>()?;
        let hostname = if m.hostname.is_empty() { None } else { Some(Name::new("hostname", &m.hostname)?) };
        let mut links = BTreeMap::new();
        for (alias, name) in &m.links {
            links.insert(Name::new("links", alias)?, Name::new("links", name)?);
        }
        let addresses = |field, texts: &[String]| -> Result<Vec<IpAddr>, Invalid> {
            texts.iter().map(|text| text.parse().map_err(|e| bad(field, e))).collect()
        };
        let forwarders = addresses("forwarders", &m.forwarders)?;
        let extra = addresses("extra_addresses", &m.extra_addresses)?;
        Ok(Self {
            id: EndpointId::new(&m.id)?,
            network: NetworkId::new(&m.network_id)?,
            link: LinkNumber::try_from(m.link).map_err(|e| bad("link", e))?,
            mac: parse("mac", &m.mac)?,
            static_v4: optional("static_v4", &m.static_v4)?,
            static_v6: optional("static_v6", &m.static_v6)?,
            names: names.into_iter().filter(|n| seen.insert(n.clone())).collect(),
            hostname,
            carrier,
            machine: m.machine_id,
            links,
            forwarders: forwarders.into_iter().map(|address| SocketAddr::new(address, 53)).collect(),
            extra,
        })
    }
}

/// Transport protocol of a published port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As `Load_Balancer.protocol` has it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

/// A load-balancer row on the gateway router.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PublishedPort {
    /// Identifier.
    pub id: PublishedPortId,
    /// Where connections go.
    pub endpoint: EndpointId,
    /// Transport protocol.
    pub protocol: Protocol,
    /// Port on the router's address.
    pub vip_port: u16,
    /// Port in the workload.
    pub target_port: u16,
}

impl TryFrom<proto::PublishedPort> for PublishedPort {
    type Error = Invalid;

    fn try_from(m: proto::PublishedPort) -> Result<Self, Invalid> {
        let protocol = match m.protocol() {
            relay::Protocol::Tcp => Protocol::Tcp,
            relay::Protocol::Udp => Protocol::Udp,
            relay::Protocol::Unspecified => return Err(bad("protocol", "tcp or udp is needed")),
        };
        let port = |field, n: u32| {
            u16::try_from(n).ok().filter(|n| *n > 0).ok_or_else(|| bad(field, format_args!("{n} is outside 1..=65535")))
        };
        Ok(Self {
            id: PublishedPortId::new(&m.id)?,
            endpoint: EndpointId::new(&m.endpoint_id)?,
            protocol,
            vip_port: port("vip_port", m.vip_port)?,
            target_port: port("target_port", m.target_port)?,
        })
    }
}

/// An object with the generation it was declared at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Declared<T> {
    /// Greater than any generation this object had before.
    pub generation: u64,
    /// The object.
    pub object: T,
}
