// SPDX-License-Identifier: Apache-2.0
//! Routes of this network namespace, from `/proc/net/route` and `/proc/net/ipv6_route` (proc(5)).

use std::{fs, net::Ipv6Addr, path::Path};

use ipnet::{Ipv4Net, Ipv6Net};

/// IPv4 routes with a prefix: over which interface, where to.
pub(super) fn routes() -> Vec<(String, Ipv4Net)> {
    // Of this thread's own network namespace, which in tests is not always the process's.
    fs::read_to_string("/proc/thread-self/net/route").map(|table| parse(&table)).unwrap_or_default()
}

/// IPv6 routes with a prefix: over which interface, where to.
pub(super) fn routes_v6() -> Vec<(String, Ipv6Net)> {
    fs::read_to_string("/proc/thread-self/net/ipv6_route").map(|table| parse_v6(&table)).unwrap_or_default()
}

/// Whether the kernel has IPv6: not built in or not loaded, there is no such folder.
pub(super) fn has_ipv6() -> bool {
    Path::new("/proc/sys/net/ipv6/conf").is_dir()
}

fn parse_v6(table: &str) -> Vec<(String, Ipv6Net)> {
    let route = |line: &str| {
        let columns: Vec<&str> = line.split_whitespace().collect();
        let destination = Ipv6Addr::from(u128::from_str_radix(columns.first()?, 16).ok()?);
        let length = u8::from_str_radix(columns.get(1)?, 16).ok()?;
        let interface = columns.get(9)?;
        // Every interface has link-local and multicast ones.
        let everywhere = destination.is_unicast_link_local() || destination.is_multicast() || destination.is_loopback();
        let net = Ipv6Net::new(destination, length).ok()?;
        (length > 0 && !everywhere).then(|| ((*interface).to_owned(), net))
    };
    table.lines().filter_map(route).collect()
}

fn parse(table: &str) -> Vec<(String, Ipv4Net)> {
    table
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut columns = line.split_whitespace();
            let interface = columns.next()?;
            // Addresses are printed as the number that the big-endian bytes make on this machine.
            let destination = u32::from_str_radix(columns.next()?, 16).ok()?.to_ne_bytes();
            let mask = u32::from_str_radix(columns.nth(5)?, 16).ok()?.to_ne_bytes();
            let net = Ipv4Net::with_netmask(destination.into(), mask.into()).ok()?;
            (net.prefix_len() > 0).then(|| (interface.to_owned(), net))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn default_routes_do_not_count() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            arca-1\t007FA8C0\t00000000\t0001\t0\t0\t0\tF8FFFFFF\t0\t0\t0\n\
            tun0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let routes: Vec<String> = parse(table).iter().map(|(over, net)| format!("{over} {net}")).collect();
        assert_eq!(routes, ["eth0 10.0.0.0/24", "arca-1 192.168.127.0/29", "tun0 172.18.0.0/16"]);
    }

    #[test]
    fn ipv6_routes_that_every_interface_has_do_not_count() {
        let zero = "0".repeat(32);
        let line = |to: &str, length: &str, over: &str| {
            format!("{to} {length} {zero} 00 {zero} 00000100 00000001 00000000 00000001 {over:>8}\n")
        };
        let table = [
            line(&zero, "00", "eth0"),
            line("fd9e4c41a27b00000000000000000000", "40", "arca-1"),
            line("fe800000000000000000000000000000", "40", "eth0"),
            line("ff000000000000000000000000000000", "08", "eth0"),
            line("00000000000000000000000000000001", "80", "lo"),
            line("20010db8000000000000000000000000", "20", "eth0"),
        ];
        let routes: Vec<String> = parse_v6(&table.concat()).iter().map(|(over, net)| format!("{over} {net}")).collect();
        assert_eq!(routes, ["arca-1 fd9e:4c41:a27b::/64", "eth0 2001:db8::/32"]);
    }
}
