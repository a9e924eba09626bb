// SPDX-License-Identifier: Apache-2.0
//! Port specifications: `80/tcp` keys, `PortBindings`, and what becomes of them at arca-netd.

use std::collections::BTreeMap;

use arca_proto::{netd::v1 as netd, relay::v1 as relay};

use crate::{
    docker::host_config::PortBinding,
    http::{ApiError, ApiResult},
};

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

/// A container port. Ordered as inspect shows them: by text of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Port {
    /// 1..=65535.
    pub number: u16,
    /// tcp, udp or sctp.
    pub protocol: Protocol,
}

fn invalid(text: &str) -> ApiError {
    ApiError::bad_request(format!("invalid port specification: \"{text}\""))
}

impl Port {
    /// Reads `80`, `80/tcp`, `53/UDP`.
    ///
    /// # Errors
    /// 400 `invalid port specification: "…"`.
    pub fn parse(key: &str) -> ApiResult<Self> {
        let (number, protocol) = key.split_once('/').unwrap_or((key, "tcp"));
        let protocol = match protocol.to_ascii_lowercase().as_str() {
            "tcp" | "" => Protocol::Tcp,
            "udp" => Protocol::Udp,
            "sctp" => Protocol::Sctp,
            _ => return Err(invalid(key)),
        };
        let number = number.parse().ok().filter(|&number: &u16| number > 0).ok_or_else(|| invalid(number))?;
        Ok(Self { number, protocol })
    }

    /// `80/tcp`.
    pub fn key(self) -> String {
        format!("{}/{}", self.number, self.protocol.name())
    }
}

impl Protocol {
    /// `tcp`, `udp` or `sctp`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        }
    }
}

/// Key of a published port as inspect shows it: `80/tcp`.
pub fn published_key(port: &netd::PublishedPort) -> String {
    let protocol = if port.protocol() == relay::Protocol::Udp { Protocol::Udp } else { Protocol::Tcp };
    format!("{}/{}", port.container_port, protocol.name())
}

/// Reads a `HostPort`: "", `8080` or `8080-8085`, as first and last; both 0 is any port.
fn host_range(text: &str) -> ApiResult<(u32, u32)> {
    let number = |part: &str| part.parse::<u16>().map(u32::from).map_err(|_| invalid(text));
    match text.split_once('-') {
        None if text.is_empty() => Ok((0, 0)),
        None => number(text).map(|port| (port, port)),
        Some((first, last)) => match (number(first)?, number(last)?) {
            (first, last) if first <= last && first > 0 => Ok((first, last)),
            _ => Err(invalid(text)),
        },
    }
}

/// Everything to publish: explicit bindings, and with `all` each exposed port that has none.
///
/// # Errors
/// 400 for a port or range that cannot be read.
pub fn bindings<'a>(
    bound: &BTreeMap<String, Option<Vec<PortBinding>>>,
    exposed: impl Iterator<Item = &'a String>,
    all: bool,
) -> ApiResult<Vec<netd::PortBinding>> {
    let mut out = Vec::new();
    let mut keys = Vec::new();
    for (key, hosts) in bound {
        let port = Port::parse(key)?;
        keys.push(port.key());
        for host in hosts.iter().flatten() {
            let (first, last) = host_range(&host.host_port)?;
            // An address that cannot be read means "any", as in Docker.
            let host_ip = host.host_ip.trim_matches(['[', ']']);
            let host_ip = host_ip.parse::<std::net::IpAddr>().map_or_else(|_| String::new(), |ip| ip.to_string());
            out.push(binding(port, host_ip, first, last)?);
        }
    }
    for key in exposed {
        // Docker keeps what is no port, and publishes nothing for it.
        let Ok(port) = Port::parse(key) else { continue };
        if all && !keys.contains(&port.key()) {
            out.push(binding(port, String::new(), 0, 0)?);
        }
    }
    Ok(out)
}

fn binding(port: Port, host_ip: String, first: u32, last: u32) -> ApiResult<netd::PortBinding> {
    let protocol = match port.protocol {
        Protocol::Tcp => relay::Protocol::Tcp,
        Protocol::Udp => relay::Protocol::Udp,
        Protocol::Sctp => return Err(ApiError::absent("publishing an SCTP port")),
    };
    Ok(netd::PortBinding {
        protocol: protocol.into(),
        container_port: u32::from(port.number),
        host_ip,
        host_port_first: first,
        host_port_last: last,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_and_ranges() {
        assert_eq!(Port::parse("80").expect("80").key(), "80/tcp");
        assert_eq!(Port::parse("53/UDP").expect("53").key(), "53/udp");
        for bad in ["80-82/tcp", "zz", "70000", "0", "", "80/zz"] {
            let text = Port::parse(bad).expect_err(bad).message;
            assert!(text.starts_with("invalid port specification: \""), "{text}");
        }
        assert_eq!(host_range("18100-18105"), Ok((18100, 18105)));
        assert_eq!(host_range(""), Ok((0, 0)));
        for bad in ["18105-18100", "zz", "70000"] {
            assert!(host_range(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn publish_all_leaves_bound_ports_alone() {
        let bound = BTreeMap::from([("80/tcp".to_owned(), Some(vec![PortBinding::default()]))]);
        let exposed = ["80/tcp".to_owned(), "81/tcp".to_owned()];
        let all = bindings(&bound, exposed.iter(), true).expect("all");
        assert_eq!(all.iter().map(|binding| binding.container_port).collect::<Vec<_>>(), [80, 81]);
        let only = bindings(&bound, exposed.iter(), false).expect("only");
        assert_eq!(only.len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_port_text_panics(text in "\\PC{0,20}") {
            let _ = Port::parse(&text);
            let _ = host_range(&text);
        }
    }
}
