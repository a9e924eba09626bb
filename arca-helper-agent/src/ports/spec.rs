// SPDX-License-Identifier: Apache-2.0
//! What a port shall be, what it is, and how it is written in the Interface row, from which a restarted agent reads it.

use arca_link::{Counters, LinkNumber, Offloads};
use arca_proto::hello::Carrier;

use super::Frames;
use crate::vswitch::BridgePort;

const PREFIX: &str = "arca";

/// A port to exist.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// Link number n: TAP `arca<n>`, listener 30000 + n.
    pub link: LinkNumber,
    /// Endpoint it serves.
    pub endpoint_id: String,
    /// Name of the logical switch port.
    pub iface_id: String,
    /// Bytes of IP packet.
    pub mtu: u32,
    /// Address of the container's interface, not of the TAP.
    pub mac: [u8; 6],
    /// How frames come.
    pub carrier: Carrier,
}

impl PortSpec {
    /// Name of the TAP.
    pub fn interface(&self) -> String {
        interface(self.link)
    }

    pub(super) fn row(&self) -> BridgePort {
        let pairs = [
            ("iface-id", self.iface_id.clone()),
            ("attached-mac", mac_text(self.mac)),
            ("arca-link", self.link.to_string()),
            ("arca-endpoint", self.endpoint_id.clone()),
            ("arca-mtu", self.mtu.to_string()),
            ("arca-carrier", self.carrier.to_string()),
        ];
        let external_ids = pairs.map(|(key, value)| (key.to_owned(), value)).into();
        BridgePort { interface: self.interface(), external_ids }
    }

    /// `None` for a port that is not a link's or was written by something else.
    pub(super) fn from_row(row: &BridgePort) -> Option<Self> {
        let get = |key: &str| row.external_ids.iter().find(|(k, _)| k == key).map(|(_, value)| value.as_str());
        let link = get("arca-link")?.parse::<u32>().ok()?.try_into().ok()?;
        let spec = Self {
            link,
            endpoint_id: get("arca-endpoint")?.to_owned(),
            iface_id: get("iface-id")?.to_owned(),
            mtu: get("arca-mtu")?.parse().ok()?,
            mac: mac(get("attached-mac")?)?,
            carrier: match get("arca-carrier")? {
                "stream" => Carrier::Stream,
                "tap-fd" => Carrier::TapFd,
                "cable" => Carrier::Cable,
                _ => return None,
            },
        };
        (spec.interface() == row.interface).then_some(spec)
    }
}

/// What a port is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortStatus {
    /// What was asked for.
    pub spec: PortSpec,
    /// Frames can flow.
    pub linked: bool,
    /// Of the present connection, or of the last one.
    pub epoch: u64,
    /// Offload bits in force.
    pub offloads: Offloads,
    /// From the TAP into the stream.
    pub to_stream: Counters,
    /// From the stream into the TAP.
    pub from_stream: Counters,
    /// Connections after the first.
    pub reconnects: u64,
    /// Why the last connection ended.
    pub last_error: Option<String>,
}

impl PortStatus {
    pub(super) fn of(spec: &PortSpec, frames: &Frames) -> Self {
        let state = frames.state();
        let (to_stream, from_stream) = frames.counters();
        Self {
            spec: spec.clone(),
            linked: state.linked,
            epoch: state.epoch,
            offloads: state.offloads,
            to_stream,
            from_stream,
            reconnects: state.connections.saturating_sub(1),
            last_error: state.last_error.map(|text| text.to_string()),
        }
    }
}

pub(super) fn interface(link: LinkNumber) -> String {
    format!("{PREFIX}{link}")
}

/// True for names that [`interface`] makes.
pub(super) fn is_link_name(name: &str) -> bool {
    let number = name.strip_prefix(PREFIX).and_then(|digits| digits.parse::<u32>().ok());
    number.and_then(|n| LinkNumber::try_from(n).ok()).is_some_and(|link| interface(link) == name)
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|octet| format!("{octet:02x}")).join(":")
}

fn mac(text: &str) -> Option<[u8; 6]> {
    let octets: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    octets?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spec_is_read_back_from_its_row_and_from_no_other() {
        let spec = PortSpec {
            link: LinkNumber::try_from(12).unwrap(),
            endpoint_id: "e".repeat(64),
            iface_id: "lsp".into(),
            mtu: 1442,
            mac: [2, 0, 0, 0, 0xab, 1],
            carrier: Carrier::TapFd,
        };
        let row = spec.row();
        assert_eq!(row.interface, "arca12");
        assert_eq!(PortSpec::from_row(&row), Some(spec));
        assert_eq!(PortSpec::from_row(&BridgePort { interface: "arca13".into(), ..row.clone() }), None);
        for index in 0..row.external_ids.len() {
            let mut ids = row.external_ids.clone();
            ids[index].1 = "?".into();
            let changed = PortSpec::from_row(&BridgePort { external_ids: ids, ..row.clone() });
            assert!(changed.is_none() || matches!(row.external_ids[index].0.as_str(), "iface-id" | "arca-endpoint"));
        }
    }

    #[test]
    fn only_our_names_are_ours() {
        assert!(is_link_name("arca1") && is_link_name("arca9999"));
        for other in ["arca", "arca0", "arca01", "arca10000", "arca-up0", "arca1x", "br-int"] {
            assert!(!is_link_name(other), "{other}");
        }
    }
}
