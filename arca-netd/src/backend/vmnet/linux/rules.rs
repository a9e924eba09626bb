// SPDX-License-Identifier: Apache-2.0
//! The nftables rules of all segments, as one text that replaces what was there. Pure.
//!
//! Into a segment comes only what belongs to a connection that began inside, from wherever it comes: another segment, the
//! helper's uplink, another machine. Frames between two ports of one bridge do not pass here unless the host's bridge
//! netfilter is on; for that case they are named first.

use std::fmt::Write as _;

use ipnet::IpNet;

use super::super::wanted::{Segment, subnets};

/// A script for `nft -f -`; it leaves no table behind when there are no segments.
pub(super) fn script(table: &str, segments: &[Segment]) -> String {
    // `add` first: deleting a table that is not there is an error.
    let mut text = format!("add table inet {table}\ndelete table inet {table}\n");
    if segments.is_empty() {
        return text;
    }
    let (mut forward, mut nat) = (String::new(), String::new());
    for segment in segments {
        let Segment { name, internal, inter_container, masquerade, .. } = segment;
        let inside = if *inter_container { "accept" } else { "drop" };
        // Writing to a String cannot fail.
        let _ = writeln!(forward, "    iifname \"{name}\" oifname \"{name}\" {inside}");
        if *internal {
            let _ = writeln!(forward, "    iifname \"{name}\" drop");
        } else {
            let _ = writeln!(forward, "    oifname \"{name}\" ct state established,related accept");
        }
        let _ = writeln!(forward, "    oifname \"{name}\" drop");
        for subnet in subnets(segment).iter().filter(|_| *masquerade) {
            let family = if matches!(subnet, IpNet::V4(_)) { "ip" } else { "ip6" };
            let _ = writeln!(nat, "    {family} saddr {subnet} oifname != \"{name}\" masquerade");
        }
    }
    let _ = write!(
        text,
        "table inet {table} {{\n\
         \x20 chain forward {{\n    type filter hook forward priority filter; policy accept;\n{forward}  }}\n\
         \x20 chain postrouting {{\n    type nat hook postrouting priority srcnat; policy accept;\n{nat}  }}\n}}\n"
    );
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(name: &str, internal: bool) -> Segment {
        Segment {
            name: name.into(),
            gateways: vec!["10.1.0.1/16".parse().unwrap()],
            mac: None,
            mtu: 1500,
            internal,
            inter_container: true,
            masquerade: !internal,
        }
    }

    #[test]
    fn nothing_comes_in_uninvited_and_internal_networks_have_no_way_out() {
        let text = script("t", &[segment("b1", false), segment("b2", true)]);
        assert!(
            text.contains("oifname \"b1\" ct state established,related accept\n    oifname \"b1\" drop\n"),
            "{text}"
        );
        assert!(text.contains("iifname \"b2\" drop\n    oifname \"b2\" drop\n"), "{text}");
        assert!(text.contains("ip saddr 10.1.0.0/16 oifname != \"b1\" masquerade\n"), "{text}");
        assert!(!text.contains("oifname != \"b2\""), "{text}");
        let both = Segment {
            gateways: vec!["10.1.0.1/16".parse().unwrap(), "fd00:1::1/64".parse().unwrap()],
            ..segment("b1", false)
        };
        let text = script("t", &[both]);
        assert!(text.contains("ip6 saddr fd00:1::/64 oifname != \"b1\" masquerade\n"), "{text}");
    }

    #[test]
    fn without_segments_no_table_remains() {
        assert_eq!(script("t", &[]), "add table inet t\ndelete table inet t\n");
    }
}
