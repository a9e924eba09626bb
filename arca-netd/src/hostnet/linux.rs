// SPDX-License-Identifier: Apache-2.0
//! Routes of this network namespace, from `/proc/net/route` (proc(5)).

use std::fs;

use ipnet::Ipv4Net;

/// IPv4 routes with a prefix: over which interface, where to.
pub(super) fn routes() -> Vec<(String, Ipv4Net)> {
    // Of this thread's own network namespace, which in tests is not always the process's.
    fs::read_to_string("/proc/thread-self/net/route").map(|table| parse(&table)).unwrap_or_default()
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
}
