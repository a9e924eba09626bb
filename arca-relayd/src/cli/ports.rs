// SPDX-License-Identifier: Apache-2.0
//! `arca-relayd ports`: what is bound on this host for containers, and which way its clients come in.

use std::fmt::Write as _;

use arca_proto::relay::v1::{Protocol, Publication};
use serde_json::{Value, json};

/// Parts of a publication that are shown, as text.
struct Shown {
    protocol: &'static str,
    host: String,
    target: String,
}

impl Shown {
    fn of(publication: &Publication) -> Self {
        let request = publication.request.clone().unwrap_or_default();
        let end =
            |ip: &str, port: u32| if ip.contains(':') { format!("[{ip}]:{port}") } else { format!("{ip}:{port}") };
        Self {
            protocol: match request.protocol() {
                Protocol::Tcp => "tcp",
                Protocol::Udp => "udp",
                Protocol::Unspecified => "unknown",
            },
            host: end(&request.host_ip, publication.host_port),
            target: end(&request.vip, request.vip_port),
        }
    }
}

/// For programs. `connections` and bytes are the listener's; the kernel's redirections pass it by.
pub(super) fn json(publications: &[Publication]) -> Value {
    let one = |publication: &Publication| {
        let shown = Shown::of(publication);
        json!({
            "id": publication.request.as_ref().map(|request| request.id.as_str()),
            "protocol": shown.protocol,
            "host": shown.host,
            "target": shown.target,
            "way": publication.way,
            "connections": publication.connections,
            "bytesIn": publication.bytes_in,
            "bytesOut": publication.bytes_out,
        })
    };
    publications.iter().map(one).collect()
}

/// For people.
pub(super) fn table(publications: &[Publication]) -> String {
    let mut text = format!(
        "{:<5} {:<26} {:<26} {:>11} {:>14} {:>14}  {}\n",
        "PROTO", "HOST", "LEADS TO", "CONNECTIONS", "BYTES IN", "BYTES OUT", "WAY"
    );
    for publication in publications {
        let Shown { protocol, host, target } = Shown::of(publication);
        let Publication { connections, bytes_in, bytes_out, way, .. } = publication;
        // Writing to a String does not fail.
        let _ = writeln!(
            text,
            "{protocol:<5} {host:<26} {target:<26} {connections:>11} {bytes_in:>14} {bytes_out:>14}  {way}"
        );
    }
    text
}
