// SPDX-License-Identifier: Apache-2.0
//! What the host's own network already uses: routes and nameservers. Address pools step around them.

use std::{fs, net::IpAddr};

use ipnet::{Ipv4Net, Ipv6Net};

#[cfg(target_os = "linux")]
#[path = "hostnet/linux.rs"]
mod platform;
#[cfg(not(target_os = "linux"))]
#[path = "hostnet/other.rs"]
mod platform;

/// Ranges that no network may get: routes (not the default one) except those over the interface `own`, and nameservers.
#[must_use]
pub fn taken(own: Option<&str>) -> Vec<Ipv4Net> {
    let servers = nameservers().into_iter().filter_map(|server| match server {
        IpAddr::V4(address) if !address.is_loopback() => Some(Ipv4Net::from(address)),
        _ => None,
    });
    let routes = platform::routes().into_iter().filter(|(interface, _)| own != Some(interface.as_str()));
    routes.map(|(_, net)| net).chain(servers).collect()
}

/// Routes with a prefix over one interface.
#[must_use]
pub fn routes_over(interface: &str) -> Vec<Ipv4Net> {
    platform::routes().into_iter().filter(|(over, _)| over == interface).map(|(_, net)| net).collect()
}

/// IPv6 ranges that no network should get: routes, not the default one, except those over the interface `own`.
#[must_use]
pub fn taken_v6(own: Option<&str>) -> Vec<Ipv6Net> {
    let routes = platform::routes_v6().into_iter().filter(|(interface, _)| own != Some(interface.as_str()));
    routes.map(|(_, net)| net).collect()
}

/// IPv6 routes with a prefix over one interface.
#[must_use]
pub fn routes_over_v6(interface: &str) -> Vec<Ipv6Net> {
    platform::routes_v6().into_iter().filter(|(over, _)| over == interface).map(|(_, net)| net).collect()
}

/// Whether this kernel has IPv6.
#[must_use]
pub fn has_ipv6() -> bool {
    platform::has_ipv6()
}

/// The host's nameservers. Where a local stub (127.0.0.53) hides the real ones, systemd-resolved's own list is read.
#[must_use]
pub fn nameservers() -> Vec<IpAddr> {
    let read = |path| fs::read_to_string(path).map(|text| parse_nameservers(&text)).unwrap_or_default();
    let servers = read("/etc/resolv.conf");
    if !servers.is_empty() && servers.iter().all(IpAddr::is_loopback) {
        let real = read("/run/systemd/resolve/resolv.conf");
        if !real.is_empty() {
            return real;
        }
    }
    servers
}

/// resolv.conf(5): `nameserver` lines; a scoped address (`fe80::1%eth0`) is of no use elsewhere.
fn parse_nameservers(text: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| line.trim_start().strip_prefix("nameserver"));
    lines.filter_map(|rest| rest.split_whitespace().next()?.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nameserver_lines_are_found_and_others_are_not() {
        let text =
            "# nameserver 9.9.9.9\nsearch x\nnameserver 10.0.0.53 # x\n nameserver fd00::1\nnameserver fe80::1%eth0\n";
        assert_eq!(parse_nameservers(text), ["10.0.0.53".parse::<IpAddr>().unwrap(), "fd00::1".parse().unwrap()]);
    }
}
