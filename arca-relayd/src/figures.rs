// SPDX-License-Identifier: Apache-2.0
//! Links and published ports as figures for Prometheus. docs/metrics.md names them; a test compares.

use arca_daemon::metrics::{Figures, Labels};
use arca_proto::{
    hello::Carrier,
    relay::v1::{Link, Protocol, Publication, link::State},
    tap::v1::Counters,
};

/// All of them.
pub(crate) fn of(links: &[Link], publications: &[Publication]) -> Figures {
    let mut figures = Figures::default();
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    figures.gauge("relayd_info", "Always 1; the version is the label", [(version, 1)]);

    let label = |link: &Link| -> Labels {
        let carrier = Carrier::try_from(link.carrier).map_or("unknown", Carrier::as_str);
        vec![("link", link.link.to_string()), ("carrier", carrier.to_owned())]
    };
    let up = links.iter().map(|link| (label(link), i64::from(link.state() == State::Up)));
    figures.gauge("link_up", "1 while frames can flow", up);
    let reconnects = links.iter().map(|link| (label(link), link.reconnects));
    figures.counter("link_reconnects", "Connections that came up, without the first", reconnects);
    let stuck = links.iter().map(|link| (label(link), link.stuck));
    figures.counter("link_stuck", "Connections dialled anew because they stood but moved nothing", stuck);

    type Pick = fn(&Counters) -> u64;
    let counted: [(&str, &str, Pick); 3] = [
        ("link_frames", "Frames at a hop; a super-frame counts once", |c| c.frames),
        ("link_bytes", "Ethernet bytes at a hop", |c| c.bytes),
        ("link_drops", "Frames given up at a hop: queue full, link down, refused by the interface", |c| c.drops),
    ];
    for (name, help, pick) in counted {
        figures.counter(name, help, links.iter().flat_map(|link| by_hop(link, &label(link), pick)));
    }

    let label = |publication: &Publication| -> Labels {
        let request = publication.request.clone().unwrap_or_default();
        let protocol = if request.protocol() == Protocol::Udp { "udp" } else { "tcp" };
        vec![
            ("address", request.host_ip),
            ("port", publication.host_port.to_string()),
            ("protocol", protocol.to_owned()),
        ]
    };
    type PickOf = fn(&Publication) -> u64;
    let counted: [(&str, &str, PickOf); 3] = [
        ("published_connections", "Clients that came in by the host's listener", |p| p.connections),
        ("published_in_bytes", "Bytes from clients of the host's listener", |p| p.bytes_in),
        ("published_out_bytes", "Bytes to clients of the host's listener", |p| p.bytes_out),
    ];
    for (name, help, pick) in counted {
        figures.counter(name, help, publications.iter().map(|publication| (label(publication), pick(publication))));
    }
    figures
}

/// One row for each hop that counts and each direction.
fn by_hop(link: &Link, label: &Labels, pick: fn(&Counters) -> u64) -> Vec<(Labels, u64)> {
    let relayed = Carrier::try_from(link.carrier).is_ok_and(|carrier| carrier == Carrier::Stream);
    let relay = relayed.then_some((link.to_helper, link.to_container));
    let hops = [
        ("tapfwd", link.container_hop.map(|hop| (hop.to_helper, hop.to_container))),
        ("relayd", relay),
        ("agent", link.helper_hop.map(|hop| (hop.to_helper, hop.to_container))),
    ];
    let mut rows = Vec::new();
    for (hop, counters) in hops {
        let Some((to_helper, to_container)) = counters else { continue };
        for (direction, counters) in [("to_helper", to_helper), ("to_container", to_container)] {
            let mut labels = label.clone();
            labels.extend([("hop", hop.to_owned()), ("direction", direction.to_owned())]);
            rows.push((labels, pick(&counters.unwrap_or_default())));
        }
    }
    rows
}

#[cfg(test)]
mod tests {
    use arca_proto::relay::v1::{Hop, PublishRequest};

    use super::*;

    #[test]
    fn every_figure_is_in_the_documentation_and_the_other_way_round() {
        let counters = Some(Counters { frames: 1, bytes: 2, drops: 3 });
        let hop = Some(Hop { to_helper: counters, to_container: counters });
        let link = Link { link: 7, carrier: 1, container_hop: hop, helper_hop: hop, ..Link::default() };
        let publication = Publication { request: Some(PublishRequest::default()), ..Publication::default() };
        let text = of(&[link], &[publication]).text();
        let drops = "arca_link_drops_total{link=\"7\",carrier=\"stream\",hop=\"agent\",direction=\"to_container\"} 3";
        assert!(text.contains(drops), "{text}");
        let page = include_str!("../../docs/metrics.md");
        let documented: Vec<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `arca_")?.split_once('`'))
            .map(|(name, _)| name)
            .collect();
        let shown: Vec<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.strip_prefix("arca_")?.split('{').next())
            .collect();
        for name in &shown {
            assert!(documented.contains(name), "docs/metrics.md lacks arca_{name}");
        }
        for name in documented.iter().filter(|name| !name.starts_with("api_") && !name.starts_with("netd_")) {
            assert!(shown.contains(name), "docs/metrics.md has arca_{name}, which is not served");
        }
    }
}
