// SPDX-License-Identifier: Apache-2.0
//! What one network of the machine shall be: an `AttachNetworkRequest` after validation.
//!
//! Everything is checked here, before the kernel is touched, so that a bad request leaves no trace. The RPC layer
//! converts into these types; nothing behind it can meet a bad name, address or size.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use arca_proto::ports::LinkNumber;
use arca_proto::tap::v1::AttachNetworkRequest;

/// Time for LISTENING to CONFIRMED when the request names none.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest a caller may keep an attach pending.
const MAX_TIMEOUT: Duration = Duration::from_secs(600);
/// Least MTU with which the kernel keeps IPv6 on an interface (RFC 8200 section 5).
const MIN_MTU_V6: u32 = 1280;
/// Addresses on one interface; Docker gives at most two, and link-local ones are few.
const MAX_ADDRESSES: usize = 16;

/// A field of the request that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidSettings {
    /// Link number.
    #[error(transparent)]
    Link(#[from] arca_proto::ports::InvalidLinkNumber),
    /// Interface name.
    #[error("interface name `{0}` is not 1 to 15 letters, digits, `.`, `_` or `-`, or is reserved")]
    Interface(String),
    /// Hardware address.
    #[error("MAC address `{0}` is not six octets of a unicast address, such as 02:42:ac:12:00:02")]
    Mac(String),
    /// MTU.
    #[error("MTU {0} is outside 68..=65535")]
    Mtu(u32),
    /// MTU too small for the IPv6 address beside it.
    #[error("MTU {0} is below 1280, which IPv6 addresses need")]
    MtuForV6(u32),
    /// Address in CIDR form.
    #[error("address `{0}` is not an assignable address with prefix length, such as 172.18.0.2/16")]
    Address(String),
    /// The same address twice.
    #[error("address {0} is given twice")]
    Duplicate(IpAddr),
    /// Too many addresses.
    #[error("{0} addresses on one interface; at most {MAX_ADDRESSES} are taken")]
    TooMany(usize),
    /// Gateway.
    #[error("gateway `{0}` is not an address of family {1}")]
    Gateway(String, &'static str),
    /// Gateway outside the subnets.
    #[error("gateway {0} is in no subnet of the interface's addresses")]
    GatewayOffLink(IpAddr),
    /// DHCP confirms an IPv4 address.
    #[error("confirm_dhcp needs an IPv4 address")]
    NothingToConfirm,
    /// Time-out.
    #[error("timeout of {0} ms is longer than 600000 ms")]
    Timeout(u32),
}

/// Name of a network interface: what the kernel accepts and a sysctl path can hold.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct InterfaceName(String);

impl InterfaceName {
    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&str> for InterfaceName {
    type Error = InvalidSettings;

    fn try_from(name: &str) -> Result<Self, InvalidSettings> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
        // `all` and `default` are folders beside the interfaces' own under /proc/sys/net; `.` and `..` are paths.
        let reserved = matches!(name, "lo" | "all" | "default" | "." | "..");
        if reserved || name.is_empty() || name.len() > 15 || !name.chars().all(allowed) {
            return Err(InvalidSettings::Interface(name.to_owned()));
        }
        Ok(Self(name.to_owned()))
    }
}

impl fmt::Display for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for InterfaceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Unicast Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct MacAddr([u8; 6]);

impl MacAddr {
    /// The six octets in order of transmission.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl TryFrom<&str> for MacAddr {
    type Error = InvalidSettings;

    fn try_from(text: &str) -> Result<Self, InvalidSettings> {
        let bad = || InvalidSettings::Mac(text.to_owned());
        let mut octets = [0; 6];
        let mut parts = text.split(':');
        for octet in &mut octets {
            let part = parts.next().filter(|p| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit()));
            *octet = u8::from_str_radix(part.ok_or_else(bad)?, 16).map_err(|_| bad())?;
        }
        // Bit 0 of the first octet marks a group address (IEEE 802), which no interface can have.
        if parts.next().is_some() || octets[0] & 1 == 1 || octets == [0; 6] {
            return Err(bad());
        }
        Ok(Self(octets))
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

impl fmt::Debug for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// An interface's address and the length of its subnet's prefix.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Cidr {
    /// The address itself, host bits included.
    pub address: IpAddr,
    /// Bits of the prefix.
    pub prefix: u8,
}

impl Cidr {
    /// Whether `other` lies in the same subnet.
    #[must_use]
    pub fn contains(self, other: IpAddr) -> bool {
        match (self.address, other) {
            (IpAddr::V4(a), IpAddr::V4(b)) => {
                let shift = 32 - u32::from(self.prefix);
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            (IpAddr::V6(a), IpAddr::V6(b)) => {
                let shift = 128 - u32::from(self.prefix);
                (a.to_bits() ^ b.to_bits()).checked_shr(shift).unwrap_or(0) == 0
            }
            _ => false,
        }
    }
}

impl TryFrom<&str> for Cidr {
    type Error = InvalidSettings;

    fn try_from(text: &str) -> Result<Self, InvalidSettings> {
        let bad = || InvalidSettings::Address(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(bad)?;
        let address: IpAddr = address.parse().map_err(|_| bad())?;
        let prefix: u8 = prefix.parse().map_err(|_| bad())?;
        let (longest, assignable) = match address {
            IpAddr::V4(a) => (32, !a.is_unspecified() && !a.is_loopback() && !a.is_multicast() && !a.is_broadcast()),
            IpAddr::V6(a) => (128, !a.is_unspecified() && !a.is_loopback() && !a.is_multicast()),
        };
        if !assignable || prefix == 0 || prefix > longest {
            return Err(bad());
        }
        Ok(Self { address, prefix })
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// One network of the machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Link number.
    pub link: LinkNumber,
    /// Interface to make.
    pub interface: InterfaceName,
    /// Its hardware address.
    pub mac: MacAddr,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Cidr>,
    /// Next hop of an IPv4 default route, should this link carry it.
    pub gateway_v4: Option<Ipv4Addr>,
    /// Next hop of an IPv6 default route.
    pub gateway_v6: Option<Ipv6Addr>,
    /// IPv4 address to be confirmed by the network's DHCP server.
    pub confirm: Option<Ipv4Addr>,
    /// The interface is an end of a veth pair, not a TAP.
    pub cable: bool,
}

impl Settings {
    /// Whether the interface has an IPv6 address.
    #[must_use]
    pub fn has_v6(&self) -> bool {
        self.addresses.iter().any(|cidr| cidr.address.is_ipv6())
    }

    /// Back to the contract's form, as it was asked for.
    #[must_use]
    pub fn to_request(&self) -> AttachNetworkRequest {
        AttachNetworkRequest {
            link: self.link.get(),
            interface: self.interface.to_string(),
            mac: self.mac.to_string(),
            mtu: self.mtu,
            addresses: self.addresses.iter().map(ToString::to_string).collect(),
            gateway_v4: self.gateway_v4.map(|g| g.to_string()).unwrap_or_default(),
            gateway_v6: self.gateway_v6.map(|g| g.to_string()).unwrap_or_default(),
            confirm_dhcp: self.confirm.is_some(),
            timeout_ms: 0,
            cable: self.cable,
        }
    }
}

impl TryFrom<&AttachNetworkRequest> for Settings {
    type Error = InvalidSettings;

    fn try_from(request: &AttachNetworkRequest) -> Result<Self, InvalidSettings> {
        let link = LinkNumber::try_from(request.link)?;
        let interface = InterfaceName::try_from(request.interface.as_str())?;
        let mac = MacAddr::try_from(request.mac.as_str())?;
        if !(68..=65_535).contains(&request.mtu) {
            return Err(InvalidSettings::Mtu(request.mtu));
        }
        if request.addresses.len() > MAX_ADDRESSES {
            return Err(InvalidSettings::TooMany(request.addresses.len()));
        }
        let mut addresses: Vec<Cidr> = Vec::with_capacity(request.addresses.len());
        for text in &request.addresses {
            let cidr = Cidr::try_from(text.as_str())?;
            if addresses.iter().any(|a| a.address == cidr.address) {
                return Err(InvalidSettings::Duplicate(cidr.address));
            }
            addresses.push(cidr);
        }
        let has_v6 = addresses.iter().any(|cidr| cidr.address.is_ipv6());
        if has_v6 && request.mtu < MIN_MTU_V6 {
            return Err(InvalidSettings::MtuForV6(request.mtu));
        }
        let gateway_v4 = gateway::<Ipv4Addr>(&request.gateway_v4, "IPv4", &addresses)?;
        let gateway_v6 = gateway::<Ipv6Addr>(&request.gateway_v6, "IPv6", &addresses)?;
        let first_v4 = addresses.iter().find_map(|cidr| match cidr.address {
            IpAddr::V4(address) => Some(address),
            IpAddr::V6(_) => None,
        });
        let confirm = match (request.confirm_dhcp, first_v4) {
            (false, _) => None,
            (true, Some(address)) => Some(address),
            (true, None) => return Err(InvalidSettings::NothingToConfirm),
        };
        Ok(Self {
            link,
            interface,
            mac,
            mtu: request.mtu,
            addresses,
            gateway_v4,
            gateway_v6,
            confirm,
            cable: request.cable,
        })
    }
}

/// How long an attach may take from LISTENING to CONFIRMED.
///
/// # Errors
/// More than ten minutes.
pub fn timeout(request: &AttachNetworkRequest) -> Result<Duration, InvalidSettings> {
    let asked = Duration::from_millis(u64::from(request.timeout_ms));
    match request.timeout_ms {
        0 => Ok(DEFAULT_TIMEOUT),
        _ if asked > MAX_TIMEOUT => Err(InvalidSettings::Timeout(request.timeout_ms)),
        _ => Ok(asked),
    }
}

fn gateway<T>(text: &str, family: &'static str, addresses: &[Cidr]) -> Result<Option<T>, InvalidSettings>
where
    T: std::str::FromStr + Into<IpAddr> + Copy,
{
    if text.is_empty() {
        return Ok(None);
    }
    let parsed: T = text.parse().map_err(|_| InvalidSettings::Gateway(text.to_owned(), family))?;
    let address: IpAddr = parsed.into();
    let link_local = matches!(address, IpAddr::V6(a) if a.is_unicast_link_local());
    if !link_local && !addresses.iter().any(|cidr| cidr.contains(address)) {
        return Err(InvalidSettings::GatewayOffLink(address));
    }
    Ok(Some(parsed))
}

#[cfg(test)]
mod tests;
