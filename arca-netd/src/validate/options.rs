// SPDX-License-Identifier: Apache-2.0
//! Driver options of `POST /networks/create`. Unknown keys are kept and shown, as Docker does; known ones that this
//! engine cannot honour are refused by name rather than silently ignored.

use std::{collections::BTreeMap, net::IpAddr};

use crate::error::{Error, Result};

const BRIDGE: &str = "com.docker.network.bridge.";
/// MTU in bytes.
pub const MTU: &str = "com.docker.network.driver.mtu";
/// Host address that ports are published on when the client names none.
pub const HOST_BINDING: &str = "com.docker.network.bridge.host_binding_ipv4";
/// How containers of a network are reached from outside.
const GATEWAY_MODES: [&str; 2] =
    ["com.docker.network.bridge.gateway_mode_ipv4", "com.docker.network.bridge.gateway_mode_ipv6"];
/// Source address of what leaves a network.
const HOST_IPV4: &str = "com.docker.network.host_ipv4";
const HOST_IPV6: &str = "com.docker.network.host_ipv6";
const TRUSTED: &str = "com.docker.network.bridge.trusted_host_interfaces";
/// First part of interface names in containers.
pub const IFACE_PREFIX: &str = "com.docker.network.container_iface_prefix";

/// What the known options mean.
#[derive(Debug, PartialEq, Eq)]
pub struct Options {
    /// Bytes of an IP packet.
    pub mtu: u32,
    /// `enable_icc`.
    pub inter_container: bool,
    /// `enable_ip_masquerade`.
    pub masquerade: bool,
}

/// How a network's endpoints are reached from outside, in one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// By published ports of the host.
    Nat,
    /// By those and by their own addresses, every port.
    Unprotected,
    /// By their own addresses, published ports.
    Routed,
    /// Not at all, and they have no gateway.
    Isolated,
}

/// The gateway mode of one family.
#[must_use]
pub fn mode(options: &BTreeMap<String, String>, is_v4: bool) -> Mode {
    match options.get(GATEWAY_MODES[usize::from(!is_v4)]).map(String::as_str) {
        Some("nat-unprotected") => Mode::Unprotected,
        Some("routed") => Mode::Routed,
        Some("isolated") => Mode::Isolated,
        _ => Mode::Nat,
    }
}

/// Source address of what leaves a network, if one is asked for (`host_ipv4`, `host_ipv6`).
#[must_use]
pub fn source(options: &BTreeMap<String, String>, is_v4: bool) -> Option<IpAddr> {
    let key = if is_v4 { HOST_IPV4 } else { HOST_IPV6 };
    options.get(key)?.parse().ok().filter(|address: &IpAddr| address.is_ipv4() == is_v4)
}

/// Interfaces of the host by which published ports are reached at the endpoints' own addresses. A name that no interface
/// can have counts nothing.
#[must_use]
pub fn trusted(options: &BTreeMap<String, String>) -> Vec<String> {
    let names = options.get(TRUSTED).into_iter().flat_map(|names| names.split(':'));
    let can_be = |name: &&str| (1..16).contains(&name.len()) && !name.contains(['"', '\\', '/', '*', ' ', '\n']);
    names.filter(can_be).map(str::to_owned).collect()
}

/// Go's `strconv.ParseBool`.
#[must_use]
pub fn parse_bool(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

/// Checks all known options. `routes`: the network's endpoints can be reached by their own addresses, because this host
/// has a route to them.
///
/// # Errors
/// 400 in Docker's words, 501 for what the network's backend does not do.
pub fn check(options: &BTreeMap<String, String>, internal: bool, routes: bool) -> Result<Options> {
    let mut checked = Options { mtu: 1500, inter_container: true, masquerade: true };
    for (key, value) in options {
        let failed = |why: String| Error::Invalid(format!("failed to parse {key} value: {value} ({why})"));
        let boolean = || {
            let why = || failed(format!("strconv.ParseBool: parsing \"{value}\": invalid syntax"));
            parse_bool(value).ok_or_else(why)
        };
        if key == MTU {
            checked.mtu = mtu(value).map_err(|why| why.map_or_else(|| negative(value), failed))?;
            continue;
        }
        if matches!(key.as_str(), HOST_IPV4 | HOST_IPV6) && !value.is_empty() {
            value.parse::<IpAddr>().map_err(|_| failed("nil ip".into()))?;
            needs_route(routes, key, value)?;
        }
        match key.strip_prefix(BRIDGE) {
            // Linux: IFNAMSIZ is 16 with the terminator.
            Some("name") if value.len() > 15 => return Err(Error::Failed("numerical result out of range".into())),
            Some("default_bridge") => {
                boolean()?;
            }
            Some("enable_icc") => checked.inter_container = boolean()?,
            Some("enable_ip_masquerade") => checked.masquerade = boolean()?,
            Some("inhibit_ipv4") if boolean()? => {
                return Err(Error::Unsupported(format!(
                    "option {key}={value} is not supported: the gateway of a network is OVN's router, and nothing else \
                     can have its address"
                )));
            }
            // A list of interfaces; an empty one is the default.
            Some("trusted_host_interfaces") if !value.trim_matches(':').is_empty() => {
                needs_route(routes, key, value)?;
            }
            Some("host_binding_ipv4") if value.parse::<IpAddr>().is_err() => return Err(failed("nil ip".into())),
            Some("gateway_mode_ipv4" | "gateway_mode_ipv6") => match value.as_str() {
                "" | "nat" => {}
                "isolated" if internal => {}
                "isolated" => {
                    return Err(Error::Failed(
                        "gateway mode 'isolated' can only be used for an internal network".into(),
                    ));
                }
                "routed" | "nat-unprotected" => needs_route(routes, key, value)?,
                other => return Err(failed(format!("unknown gateway mode {other}"))),
            },
            _ => {}
        }
    }
    Ok(checked)
}

/// Whether an internal network's gateway shall answer nothing but names, in which case it has no gateway for Docker.
#[must_use]
pub fn is_isolated(options: &BTreeMap<String, String>) -> bool {
    GATEWAY_MODES.iter().any(|key| options.get(*key).is_some_and(|mode| mode == "isolated"))
}

fn needs_route(routes: bool, key: &str, value: &str) -> Result<()> {
    let refused = || format!("option {key}={value} is not supported here: this host has no route to the network");
    if routes { Ok(()) } else { Err(Error::Unsupported(refused())) }
}

fn negative(value: &str) -> Error {
    Error::Invalid(format!("invalid MTU number: {value}"))
}

/// Go's `strconv.Atoi`; `Err(None)` is a negative number. 0 is the default.
fn mtu(value: &str) -> Result<u32, Option<String>> {
    let digits = value.strip_prefix(['+', '-']).unwrap_or(value);
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(Some(format!("strconv.Atoi: parsing \"{value}\": invalid syntax")));
    }
    match value.parse::<i64>() {
        Ok(0) => Ok(1500),
        Ok(number) if number < 0 => Err(None),
        // Every IPv4 host takes 576 bytes (RFC 791 section 3.1), and no IPv4 packet is larger than 65535.
        Ok(number) => u32::try_from(number)
            .ok()
            .filter(|mtu| (576..=65_535).contains(mtu))
            .ok_or_else(|| Some("the ovs backend takes 576 to 65535".into())),
        Err(_) => Err(Some(format!("strconv.Atoi: parsing \"{value}\": value out of range"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(key: &str, value: &str) -> Result<Options, String> {
        check(&BTreeMap::from([(key.to_owned(), value.to_owned())]), false, true).map_err(|e| e.to_string())
    }

    #[test]
    fn bad_values_are_told_in_dockers_words() {
        for (key, value, text) in [
            (
                MTU,
                "abc",
                "failed to parse com.docker.network.driver.mtu value: abc (strconv.Atoi: parsing \"abc\": invalid syntax)",
            ),
            (MTU, "-1", "invalid MTU number: -1"),
            (
                "com.docker.network.bridge.enable_icc",
                "maybe",
                "failed to parse com.docker.network.bridge.enable_icc value: maybe (strconv.ParseBool: parsing \"maybe\": invalid syntax)",
            ),
            (HOST_BINDING, "zz", "failed to parse com.docker.network.bridge.host_binding_ipv4 value: zz (nil ip)"),
            (
                "com.docker.network.bridge.gateway_mode_ipv4",
                "zz",
                "failed to parse com.docker.network.bridge.gateway_mode_ipv4 value: zz (unknown gateway mode zz)",
            ),
            (
                "com.docker.network.bridge.gateway_mode_ipv4",
                "isolated",
                "gateway mode 'isolated' can only be used for an internal network",
            ),
            ("com.docker.network.bridge.name", "a-name-of-16-char", "numerical result out of range"),
        ] {
            assert_eq!(one(key, value), Err(text.to_owned()));
        }
    }

    #[test]
    fn good_values_are_taken_and_unknown_keys_kept() {
        assert_eq!(one(MTU, "1442").unwrap().mtu, 1442);
        assert!(!one("com.docker.network.bridge.enable_icc", "F").unwrap().inter_container);
        assert!(!one("com.docker.network.bridge.enable_ip_masquerade", "false").unwrap().masquerade);
        assert!(one("whatever", "zz").is_ok());
        let internal = BTreeMap::from([(GATEWAY_MODES[0].to_owned(), "isolated".to_owned())]);
        assert!(check(&internal, true, false).is_ok() && is_isolated(&internal) && !is_isolated(&BTreeMap::new()));
        assert!(one("com.docker.network.bridge.trusted_host_interfaces", "").is_ok());
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let routed = [
            (GATEWAY_MODES[0], "routed"),
            (GATEWAY_MODES[1], "nat-unprotected"),
            (HOST_IPV4, "192.0.2.1"),
            (TRUSTED, "eth1:eth2"),
        ];
        for (key, value) in routed {
            assert!(one(key, value).is_ok(), "{key}");
            let without = check(&BTreeMap::from([(key.to_owned(), value.to_owned())]), false, false);
            let text = format!("option {key}={value} is not supported here: this host has no route to the network");
            assert_eq!(without.unwrap_err().to_string(), text);
        }
        assert!(
            one("com.docker.network.bridge.inhibit_ipv4", "true").unwrap_err().contains("inhibit_ipv4=true is not")
        );
        let options = BTreeMap::from(routed.map(|(key, value)| (key.to_owned(), value.to_owned())));
        assert_eq!((mode(&options, true), mode(&options, false)), (Mode::Routed, Mode::Unprotected));
        assert_eq!((source(&options, true), source(&options, false)), ("192.0.2.1".parse().ok(), None));
        assert_eq!(trusted(&options), ["eth1", "eth2"]);
        assert!(trusted(&BTreeMap::from([(TRUSTED.to_owned(), ":a\"b:".to_owned())])).is_empty());
        assert!(one(MTU, "99999").is_err());
    }
}
