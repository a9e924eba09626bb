// SPDX-License-Identifier: Apache-2.0
//! Endpoint settings: how a container is (to be) attached to a network.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::http::{ApiError, ApiResult};

/// Addresses the user asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)]
pub struct IpamConfig {
    #[serde(rename = "IPv4Address", skip_serializing_if = "String::is_empty")]
    pub ipv4_address: String,
    #[serde(rename = "IPv6Address", skip_serializing_if = "String::is_empty")]
    pub ipv6_address: String,
    #[serde(rename = "LinkLocalIPs", skip_serializing_if = "Vec::is_empty")]
    pub link_local_ips: Vec<String>,
}

/// One entry of `NetworkSettings.Networks` and of `EndpointsConfig`, in Docker's field order.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[allow(missing_docs)] // Names and meaning are the Docker API's.
pub struct EndpointSettings {
    #[serde(rename = "IPAMConfig")]
    pub ipam_config: Option<IpamConfig>,
    pub links: Option<Vec<String>>,
    pub aliases: Option<Vec<String>>,
    pub mac_address: String,
    pub driver_opts: Option<BTreeMap<String, String>>,
    pub gw_priority: i32,
    #[serde(rename = "NetworkID")]
    pub network_id: String,
    #[serde(rename = "EndpointID")]
    pub endpoint_id: String,
    pub gateway: String,
    #[serde(rename = "IPAddress")]
    pub ip_address: String,
    #[serde(rename = "IPPrefixLen")]
    pub ip_prefix_len: u32,
    #[serde(rename = "IPv6Gateway")]
    pub ipv6_gateway: String,
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: String,
    #[serde(rename = "GlobalIPv6PrefixLen")]
    pub global_ipv6_prefix_len: u32,
    #[serde(rename = "DNSNames")]
    pub dns_names: Option<Vec<String>>,
}

impl EndpointSettings {
    /// What of a request is kept: the wishes, not the observed fields.
    #[must_use]
    pub fn wishes(self) -> Self {
        Self {
            ipam_config: self.ipam_config,
            links: self.links,
            aliases: self.aliases,
            mac_address: self.mac_address,
            driver_opts: self.driver_opts,
            gw_priority: self.gw_priority,
            ..Self::default()
        }
    }

    /// What remains when the container has stopped: wishes, names and the network it means.
    pub fn clear_observed(&mut self, mac_was_asked: bool) {
        self.endpoint_id.clear();
        self.gateway.clear();
        self.ip_address.clear();
        self.ip_prefix_len = 0;
        self.ipv6_gateway.clear();
        self.global_ipv6_address.clear();
        self.global_ipv6_prefix_len = 0;
        if !mac_was_asked {
            self.mac_address.clear();
        }
    }

    /// Faults that need no knowledge of the network but its name.
    ///
    /// # Errors
    /// 400 `invalid endpoint settings:\n…` or `invalid MAC address …`.
    pub fn validate(&self, network: &str) -> ApiResult<()> {
        let mut faults = Vec::new();
        let ipam = self.ipam_config.clone().unwrap_or_default();
        let asked = [&ipam.ipv4_address, &ipam.ipv6_address].into_iter().filter(|address| !address.is_empty()).count();
        if matches!(network, "bridge" | "host" | "none") {
            if asked > 0 {
                faults.push("user specified IP address is supported on user defined networks only".to_owned());
            }
            if self.aliases.as_ref().is_some_and(|aliases| !aliases.is_empty()) {
                faults
                    .push("network-scoped alias is supported only for containers in user defined networks".to_owned());
            }
        }
        if !ipam.ipv4_address.is_empty() && ipam.ipv4_address.parse::<Ipv4Addr>().map_or(true, |v4| v4.is_unspecified())
        {
            faults.push(format!("invalid IPv4 address: {}", ipam.ipv4_address));
        }
        if !ipam.ipv6_address.is_empty() && ipam.ipv6_address.parse::<Ipv6Addr>().map_or(true, |v6| v6.is_unspecified())
        {
            faults.push(format!("invalid IPv6 address: {}", ipam.ipv6_address));
        }
        for address in &ipam.link_local_ips {
            if address.parse::<IpAddr>().is_err() {
                faults.push(format!("invalid link-local IP address: {address}"));
            }
        }
        if matches!(network, "bridge" | "host" | "none") {
            let nowhere =
                "user specified IP address is supported only when connecting to networks with user configured subnets";
            faults.extend(std::iter::repeat_n(nowhere.to_owned(), asked));
        }
        match faults.as_slice() {
            [] => {}
            [fault] => return Err(ApiError::bad_request(format!("invalid endpoint settings:\n{fault}"))),
            several => {
                let list = several.iter().map(|fault| format!("* {fault}")).collect::<Vec<_>>().join("\n");
                return Err(ApiError::bad_request(format!("invalid endpoint settings:\n{list}")));
            }
        }
        if !self.mac_address.is_empty() && !is_mac(&self.mac_address) {
            return Err(ApiError::bad_request(format!("invalid MAC address {}", self.mac_address)));
        }
        Ok(())
    }
}

/// Six groups of two hex digits, joined by colons or dashes.
pub fn is_mac(text: &str) -> bool {
    let groups: Vec<&str> = text.split([':', '-']).collect();
    groups.len() == 6 && groups.iter().all(|group| group.len() == 2 && u8::from_str_radix(group, 16).is_ok())
}

/// Splits `10.0.0.2/16`; no slash is prefix length 0.
pub fn split_cidr(text: &str) -> (String, u32) {
    let (address, length) = text.split_once('/').unwrap_or((text, "0"));
    (address.to_owned(), length.parse().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn faults_are_joined_as_dockers() {
        let endpoint = EndpointSettings {
            ipam_config: Some(IpamConfig { ipv4_address: "zz".into(), ..IpamConfig::default() }),
            ..EndpointSettings::default()
        };
        assert_eq!(
            endpoint.validate("n").expect_err("one").message,
            "invalid endpoint settings:\ninvalid IPv4 address: zz"
        );
        let both = EndpointSettings {
            ipam_config: Some(IpamConfig {
                ipv4_address: "zz".into(),
                link_local_ips: vec!["q".into()],
                ..IpamConfig::default()
            }),
            ..EndpointSettings::default()
        };
        assert_eq!(
            both.validate("n").expect_err("two").message,
            "invalid endpoint settings:\n* invalid IPv4 address: zz\n* invalid link-local IP address: q"
        );
        let elsewhere = EndpointSettings {
            ipam_config: Some(IpamConfig { ipv4_address: "10.1.1.1".into(), ..IpamConfig::default() }),
            aliases: Some(vec!["x".into()]),
            ..EndpointSettings::default()
        };
        assert_eq!(elsewhere.validate("n"), Ok(()));
        assert_eq!(
            elsewhere.validate("none").expect_err("three").message,
            "invalid endpoint settings:\n* user specified IP address is supported on user defined networks only\n\
             * network-scoped alias is supported only for containers in user defined networks\n\
             * user specified IP address is supported only when connecting to networks with user configured subnets"
        );
        let mac = EndpointSettings { mac_address: "zz".into(), ..EndpointSettings::default() };
        assert_eq!(mac.validate("n").expect_err("mac").message, "invalid MAC address zz");
    }

    #[test]
    fn stopping_keeps_wishes() {
        let mut endpoint = EndpointSettings {
            aliases: Some(vec!["a".into()]),
            network_id: "n".into(),
            ip_address: "10.0.0.2".into(),
            mac_address: "02:00:00:00:00:01".into(),
            ..EndpointSettings::default()
        };
        endpoint.clear_observed(false);
        assert_eq!((endpoint.network_id.as_str(), endpoint.ip_address.as_str()), ("n", ""));
        assert_eq!(endpoint.aliases, Some(vec!["a".into()]));
        assert_eq!(endpoint.mac_address, "");
    }
}
