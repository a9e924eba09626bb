// SPDX-License-Identifier: Apache-2.0
//! What shall be published: a `PublishRequest` after validation.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use arca_proto::dial::{Address, InvalidAddress};
use arca_proto::relay::v1 as proto;

/// Longest id; it goes into logs.
const MAX_ID: usize = 128;

/// A field of the request that cannot be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidWanted {
    /// Id.
    #[error("id has {0} bytes, not 1 to {MAX_ID}")]
    Id(usize),
    /// Protocol.
    #[error("protocol {0} is neither TCP nor UDP")]
    Protocol(i32),
    /// Host address.
    #[error("host_ip `{0}` is not an IP address")]
    HostIp(String),
    /// VIP.
    #[error("vip `{0}` is not a unicast address")]
    Vip(String),
    /// Helper machine.
    #[error("helper")]
    Helper(#[from] InvalidAddress),
    /// Both ways.
    #[error("a kernel cannot redirect to where it has no route (kernel_redirect beside helper)")]
    Ways,
    /// A port.
    #[error("{field} {value} is not a port")]
    Port {
        /// Which.
        field: &'static str,
        /// As given.
        value: u32,
    },
}

/// Transport protocol. TCP and UDP ports are separate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// As nftables and Docker write it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A port to be published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Wanted {
    /// Protocol.
    pub protocol: Protocol,
    /// Address to bind; unspecified for all of its family.
    pub host: IpAddr,
    /// Port to bind; `None` for an ephemeral one.
    pub port: Option<u16>,
    /// Where it leads.
    pub vip: SocketAddr,
    /// Whether off-host clients shall be redirected in the kernel.
    pub kernel_redirect: bool,
    /// The machine that knows the way there, where this host does not.
    pub helper: Option<Address>,
}

impl TryFrom<&proto::PublishRequest> for Wanted {
    type Error = InvalidWanted;

    fn try_from(request: &proto::PublishRequest) -> Result<Self, InvalidWanted> {
        if request.id.is_empty() || request.id.len() > MAX_ID {
            return Err(InvalidWanted::Id(request.id.len()));
        }
        let protocol = match proto::Protocol::try_from(request.protocol) {
            Ok(proto::Protocol::Tcp) => Protocol::Tcp,
            Ok(proto::Protocol::Udp) => Protocol::Udp,
            _ => return Err(InvalidWanted::Protocol(request.protocol)),
        };
        let host = request.host_ip.parse().map_err(|_| InvalidWanted::HostIp(request.host_ip.clone()))?;
        let port = |field, value: u32| u16::try_from(value).map_err(|_| InvalidWanted::Port { field, value });
        let host_port = port("host_port", request.host_port)?;
        let unicast = |a: &IpAddr| {
            let broadcast = matches!(a, IpAddr::V4(a) if a.is_broadcast());
            !a.is_unspecified() && !a.is_multicast() && !broadcast
        };
        let vip: Option<IpAddr> = request.vip.parse().ok().filter(unicast);
        let vip = vip.ok_or_else(|| InvalidWanted::Vip(request.vip.clone()))?;
        let vip_port = match port("vip_port", request.vip_port)? {
            0 => return Err(InvalidWanted::Port { field: "vip_port", value: 0 }),
            port => port,
        };
        let helper = request.helper.clone().map(Address::try_from).transpose()?;
        if helper.is_some() && request.kernel_redirect {
            return Err(InvalidWanted::Ways);
        }
        Ok(Self {
            helper,
            protocol,
            host,
            port: Some(host_port).filter(|port| *port != 0),
            vip: SocketAddr::new(vip, vip_port),
            kernel_redirect: request.kernel_redirect,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proto::{Protocol as P, PublishRequest};

    fn good() -> PublishRequest {
        PublishRequest {
            id: "p1".into(),
            protocol: P::Tcp.into(),
            host_ip: "::".into(),
            host_port: 0,
            vip: "192.168.127.2".into(),
            vip_port: 80,
            kernel_redirect: false,
            helper: None,
        }
    }

    #[test]
    fn a_good_request_is_taken_and_each_bad_field_is_named() {
        use InvalidWanted as E;
        let wanted = Wanted::try_from(&good()).unwrap();
        assert_eq!((wanted.port, wanted.vip.to_string()), (None, "192.168.127.2:80".to_owned()));
        let six = Wanted::try_from(&PublishRequest { vip: "fd00:77::2".into(), ..good() }).unwrap();
        assert_eq!(six.vip.to_string(), "[fd00:77::2]:80");
        let refused = |request: PublishRequest| Wanted::try_from(&request).unwrap_err();
        assert_eq!(refused(PublishRequest { id: String::new(), ..good() }), E::Id(0));
        assert_eq!(refused(PublishRequest { protocol: 0, ..good() }), E::Protocol(0));
        assert_eq!(refused(PublishRequest { protocol: 9, ..good() }), E::Protocol(9));
        assert!(matches!(refused(PublishRequest { host_ip: "localhost".into(), ..good() }), E::HostIp(_)));
        for vip in ["", "::", "ff02::1", "0.0.0.0", "224.0.0.1", "255.255.255.255"] {
            assert!(matches!(refused(PublishRequest { vip: vip.into(), ..good() }), E::Vip(_)), "{vip}");
        }
        assert!(matches!(refused(PublishRequest { vip_port: 0, ..good() }), E::Port { field: "vip_port", .. }));
        let helper = Some(Address::Sockets("/h".into()).into());
        assert_eq!(refused(PublishRequest { helper, kernel_redirect: true, ..good() }), E::Ways);
        let helper = Some(Address::Sockets("h".into()).into());
        assert!(matches!(refused(PublishRequest { helper, ..good() }), E::Helper(_)));
        assert!(matches!(refused(PublishRequest { host_port: 65_536, ..good() }), E::Port { field: "host_port", .. }));
    }
}
