// SPDX-License-Identifier: Apache-2.0
//! Routes of this network namespace, from `/proc/net/route` (proc(5)).

use std::fs;

use ipnet::Ipv4Net;

/// IPv4 routes with a prefix, except those over the interface `own`.
pub(super) fn routes(own: &str) -> Vec<Ipv4Net> {
    fs::read_to_string("/proc/self/net/route").map(|table| parse(&table, own)).unwrap_or_default()
}

fn parse(table: &str, own: &str) -> Vec<Ipv4Net> {
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
            (interface != own && net.prefix_len() > 0).then_some(net)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_endian = "little")]
    fn default_and_own_routes_do_not_count() {
        let table = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            eth0\t0000000A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
            arca-up0\t007FA8C0\t00000000\t0001\t0\t0\t0\tF8FFFFFF\t0\t0\t0\n\
            tun0\t000012AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n";
        let nets: Vec<String> = parse(table, "arca-up0").iter().map(ToString::to_string).collect();
        assert_eq!(nets, ["10.0.0.0/24", "172.18.0.0/16"]);
    }
}
