// SPDX-License-Identifier: Apache-2.0
//! Typed values of the configuration; each parse error lists what is allowed.

use std::{
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    str::FromStr,
};

macro_rules! choice {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $text:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name { $($(#[$variant_doc])* $variant),* }

        impl FromStr for $name {
            type Err = String;

            fn from_str(text: &str) -> Result<Self, String> {
                match text {
                    $($text => Ok(Self::$variant),)*
                    _ => Err(format!("must be one of: {}", [$($text),*].join(", "))),
                }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(match self { $(Self::$variant => $text),* })
            }
        }
    };
}

choice! {
    /// Backend of networks whose driver names none.
    BackendKind {
        /// OVN in the helper machine.
        Ovs = "ovs",
        /// Native switching.
        Vmnet = "vmnet",
    }
}
choice! {
    /// What a container lives in.
    MachineKind {
        /// VM where KVM (or macOS) is, else namespace.
        Auto = "auto",
        /// Linux namespaces.
        Namespace = "namespace",
        /// A micro-VM.
        Vm = "vm",
    }
}
choice! {
    /// How clients reach published ports.
    PublishKind {
        /// By the host's kernel where it has a route to the helper's uplink.
        Auto = "auto",
        /// Through the helper machine.
        Helper = "helper",
    }
}
choice! {
    /// How a virtual helper machine reaches out.
    UplinkKind {
        /// TAP where the engine may make one, else user.
        Auto = "auto",
        /// An interface of the host.
        Tap = "tap",
        /// QEMU's user-mode network.
        User = "user",
    }
}
choice! {
    /// How frames travel between a container and the helper.
    LinkKind {
        /// The fastest carrier there is for this pair of machines.
        Auto = "auto",
        /// Over relayed byte streams.
        Stream = "stream",
        /// The TAP's descriptor is handed to the helper.
        TapFd = "tap-fd",
        /// A veth pair straight into the helper.
        Cable = "cable",
    }
}

/// Where host daemons show their figures for Prometheus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsPlace {
    /// Nowhere.
    Off,
    /// Each on a unix socket of its own beside its gRPC socket.
    Sockets,
    /// On a loopback address: arca-api at this port, arca-netd at the next, arca-relayd at the one after that.
    Address(SocketAddr),
}

impl FromStr for MetricsPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "sockets" => Ok(Self::Sockets),
            address => match address.parse::<SocketAddr>() {
                // Three ports from this one on.
                Ok(a) if a.ip().is_loopback() && (1..=u16::MAX - 2).contains(&a.port()) => Ok(Self::Address(a)),
                _ => Err("must be off, sockets, or a loopback address with a port such as 127.0.0.1:9480".to_owned()),
            },
        }
    }
}

/// An IPv4 range, `192.168.127.0/24`, host bits zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    /// First address.
    pub network: Ipv4Addr,
    /// Prefix length, 8..=29.
    pub length: u8,
}

impl FromStr for Prefix {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "must be an IPv4 range of /8 to /29 such as 192.168.127.0/24".to_owned();
        let (network, length) = text.split_once('/').ok_or_else(form)?;
        let network: Ipv4Addr = network.parse().map_err(|_| form())?;
        let length: u8 = length.parse().map_err(|_| form())?;
        if !(8..=29).contains(&length) {
            return Err(form());
        }
        if u32::from(network) & (u32::MAX >> length) != 0 {
            return Err("has host bits set".to_owned());
        }
        Ok(Self { network, length })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

/// A range that subnets are cut from, `10.10.0.0/16:24`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressPool {
    /// The whole range.
    pub base: Prefix,
    /// Prefix length of each piece, from the range's own to 29.
    pub size: u8,
}

pub(super) struct AddressPools(pub(super) Vec<AddressPool>);

impl FromStr for AddressPools {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        parts.map(pool).collect::<Result<_, _>>().map(Self)
    }
}

fn pool(text: &str) -> Result<AddressPool, String> {
    let form = || format!("`{text}` is not RANGE:LENGTH such as 10.10.0.0/16:24");
    let (base, size) = text.split_once(':').ok_or_else(form)?;
    let base: Prefix = base.parse().map_err(|why| format!("`{base}` {why}"))?;
    let size: u8 = size.parse().map_err(|_| form())?;
    if (base.length..=29).contains(&size) {
        Ok(AddressPool { base, size })
    } else {
        Err(format!("`{text}`: the length must be {} to 29", base.length))
    }
}

/// An IPv6 range.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix6 {
    /// First address.
    pub network: Ipv6Addr,
    /// Prefix length, 8..=64.
    pub length: u8,
}

impl FromStr for Prefix6 {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let form = || "must be an IPv6 range of /8 to /64 such as fd9e:4c41:a27b::/48".to_owned();
        let (network, length) = text.split_once('/').ok_or_else(form)?;
        let network: Ipv6Addr = network.parse().map_err(|_| form())?;
        let length: u8 = length.parse().map_err(|_| form())?;
        if !(8..=64).contains(&length) || network.is_multicast() || network.is_unicast_link_local() {
            return Err(form());
        }
        if u128::from(network) & (u128::MAX >> length) != 0 {
            return Err("has host bits set".to_owned());
        }
        Ok(Self { network, length })
    }
}

impl fmt::Display for Prefix6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.length)
    }
}

pub(super) struct Addresses(pub(super) Vec<IpAddr>);

impl FromStr for Addresses {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        let parse = |part: &str| part.parse().map_err(|_| format!("`{part}` is no IP address"));
        parts.map(parse).collect::<Result<_, _>>().map(Self)
    }
}

pub(super) struct LogLevel(pub(super) String);

impl FromStr for LogLevel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // To a filter a lone word is the name of a module, and a mistyped level would silence everything.
        let level = |word: &str| word.parse::<tracing::Level>().is_ok() || word == "off";
        let clear = text.split(',').all(|part| part.contains(['=', '[']) || level(part.trim()));
        match tracing_subscriber::EnvFilter::try_new(text) {
            Ok(_) if clear && !text.is_empty() => Ok(Self(text.to_owned())),
            _ => Err("must be error, warn, info, debug or trace, or a filter such as arca_netd=debug,info".to_owned()),
        }
    }
}
