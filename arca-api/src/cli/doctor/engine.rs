// SPDX-License-Identifier: Apache-2.0
//! What the running engine's daemons say of themselves and of each other.

use std::{future::Future, time::Duration};

use arca_daemon::config::Config;
use arca_proto::{
    dial::unix_channel,
    netd::v1::{GetStatusRequest, ListEndpointsRequest, ListNetworksRequest, Network, netd_client::NetdClient},
    relay::v1::{Link, ListLinksRequest, ListPublicationsRequest, link::State, relay_client::RelayClient},
};
use tonic::{Response, Status};

use super::{Finding, overlap};
use crate::cli::daemon::status;

/// A daemon that does not answer within this hangs.
const PATIENCE: Duration = Duration::from_secs(5);

pub(super) async fn look(config: &Config) -> Vec<Finding> {
    let paths = &config.paths;
    let lines = status::daemons(paths).await;
    if lines.iter().all(|line| line.state == "down") {
        return vec![Finding::odd("engine", "does not run", "arca daemon start")];
    }
    let mut findings: Vec<Finding> = lines
        .iter()
        .map(|line| match line.state.as_str() {
            "answers" => Finding::good(line.name, "answers"),
            state => Finding::bad(line.name, state, format!("arca daemon logs {}", line.name)),
        })
        .collect();
    let mut netd = NetdClient::new(unix_channel(&paths.netd_socket()));
    findings.extend(asked(netd.get_status(GetStatusRequest {})).await.map(|status| helper(&status.helper_state)));
    if let Some(list) = asked(netd.list_networks(ListNetworksRequest {})).await {
        findings.extend(overlap::look(&subnets(&list.networks), &paths.tag()));
    }
    if let Some(list) = asked(netd.list_endpoints(ListEndpointsRequest::default())).await {
        let faulty = list.endpoints.iter().filter(|endpoint| !endpoint.up || !endpoint.error.is_empty());
        let faults: Vec<Finding> = faulty
            .map(|endpoint| {
                let of = format!("{} on {}", endpoint.workload_name, endpoint.network_name);
                let why = if endpoint.error.is_empty() { "is not up" } else { &endpoint.error };
                let fix = format!(
                    "docker network disconnect -f {0} {1} && docker network connect {0} {1}",
                    endpoint.network_name, endpoint.workload_name
                );
                Finding::bad(of, why, fix)
            })
            .collect();
        findings.extend(if faults.is_empty() {
            vec![Finding::good("endpoints", format!("{} up", list.endpoints.len()))]
        } else {
            faults
        });
    }
    let mut relay = RelayClient::new(unix_channel(&paths.relayd_socket()));
    if let Some(list) = asked(relay.list_links(ListLinksRequest { with_hops: true })).await {
        findings.extend(links(&list.links));
    }
    if let Some(list) = asked(relay.list_publications(ListPublicationsRequest {})).await {
        findings.push(Finding::good("published ports", list.publications.len().to_string()));
        for port in list.publications {
            // A way with a reason is not the one that was asked for.
            if let Some((way, reason)) = port.way.strip_suffix(')').and_then(|way| way.split_once(" (")) {
                findings.push(Finding::odd(
                    format!("port {}", port.host_port),
                    format!("served by {way}: {reason}"),
                    "clients from outside are served all the same, but seem to come from this host",
                ));
            }
        }
    }
    findings
}

/// An answer, if there is one in time: who does not answer is named by its health.
async fn asked<T>(call: impl Future<Output = Result<Response<T>, Status>>) -> Option<T> {
    let answer = tokio::time::timeout(PATIENCE, call).await.ok()?;
    answer.ok().map(Response::into_inner)
}

fn helper(state: &str) -> Finding {
    match state {
        "up" | "not needed" => Finding::good("helper machine", state),
        "starting" => Finding::odd("helper machine", state, "look again in a moment"),
        state => Finding::bad("helper machine", state, "arca helper console"),
    }
}

fn subnets(networks: &[Network]) -> Vec<overlap::Subnets> {
    let of = |network: &Network| {
        let spec = network.spec.as_ref();
        let pools = network.pools.iter().filter_map(|pool| pool.subnet.parse().ok()).collect();
        overlap::Subnets { name: spec.map(|spec| spec.name.clone()).unwrap_or_default(), subnets: pools }
    };
    networks.iter().map(of).collect()
}

fn links(links: &[Link]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for link in links {
        let what = format!("link {}", link.link);
        if link.state() != State::Up {
            findings.push(Finding::bad(&what, format!("is not up: {}", link.last_error), "arca-relayd links"));
        }
        if link.stuck > 0 {
            let found = format!("stood still {} times and was dialled anew", link.stuck);
            findings.push(Finding::odd(&what, found, format!("arca-relayd trace {}", link.link)));
        }
        let hops = [&link.container_hop, &link.helper_hop].into_iter().flatten();
        let drops: u64 =
            hops.flat_map(|hop| [&hop.to_helper, &hop.to_container]).flatten().map(|counters| counters.drops).sum();
        if drops > 0 {
            findings.push(Finding::odd(
                what,
                format!("{drops} frames were dropped at its ends: somebody sends faster than it is read"),
                "arca-relayd links --watch",
            ));
        }
    }
    if findings.is_empty() {
        findings.push(Finding::good("links", format!("{} up, nothing dropped", links.len())));
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Verdict;

    #[test]
    fn a_link_that_is_down_is_bad_and_one_that_drops_is_odd() {
        let up = Link { link: 1, state: State::Up.into(), ..Link::default() };
        assert_eq!(links(std::slice::from_ref(&up))[0].verdict, Verdict::Good);
        let down = Link { state: State::Connecting.into(), last_error: "nobody listens".into(), ..up.clone() };
        let found = links(&[down]);
        assert!(found[0].verdict == Verdict::Bad && found[0].found.contains("nobody listens"));
        let counters = arca_proto::tap::v1::Counters { drops: 3, ..Default::default() };
        let hop = arca_proto::relay::v1::Hop { to_helper: Some(counters), ..Default::default() };
        let found = links(&[Link { helper_hop: Some(hop), ..up }]);
        assert!(found[0].verdict == Verdict::Odd && found[0].found.contains("3 frames"));
    }
}
