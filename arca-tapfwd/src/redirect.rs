// SPDX-License-Identifier: Apache-2.0
//! 127.0.0.11:53 leads to the network's resolver.
//!
//! Docker's clients expect a name server at 127.0.0.11. Nothing listens there on port 53: nftables sends what goes there to
//! the gateway of a user network, or to [`crate::stub`] where the machine has no IPv4 network, so a workload may itself bind
//! port 53 on every address. All rules are in table `ip arca`
//! of the machine's own network namespace, and each change is one transaction.
//!
//! `route_localnet` lets packets with a loopback source leave and their answers come back. It would also let neighbours
//! of the network address this machine's 127.0.0.0/8, so the table drops that before connection tracking sees it
//! (answers to our own are still addressed to the interface there).

use std::io;
use std::net::Ipv4Addr;

use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, NftablesError, apply_ruleset_raw};
use serde_json::{Value, json};

use crate::kernel::{KernelError, sysctl};
use crate::stub::Ports;

/// What 127.0.0.11 leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    /// A resolver.
    Address(Ipv4Addr),
    /// Ports of 127.0.0.11 itself.
    Stub(Ports),
}

/// Where Docker's clients look for a name server.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);

/// Why the redirect could not be set.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// nft failed.
    #[error("cannot set the nftables rules for {RESOLVER} (is nft installed, with CAP_NET_ADMIN?)")]
    Nft(#[from] NftablesError),
    /// `route_localnet`.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The sockets that carry queries to an IPv6 resolver.
    #[error("cannot listen on {RESOLVER} for queries to an IPv6 resolver")]
    Stub(#[source] io::Error),
    /// The runtime is going down.
    #[error("interrupted")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// Redirects to `target`, or no longer.
///
/// # Errors
/// nft is missing or refuses; the rules are then as before.
pub(crate) async fn set(target: Option<Target>) -> Result<(), RedirectError> {
    let payload = rules(target).to_string();
    // Only packets that leave the machine need it.
    let leaves = matches!(target, Some(Target::Address(_)));
    if leaves {
        // `all` holds for interfaces that come later as well (inetdevice.h, IN_DEV_ORCONF).
        sysctl("ipv4/conf/all/route_localnet", "1")?;
    }
    // nft takes some milliseconds; the frames' threads do not care, but the RPC loop would.
    tokio::task::spawn_blocking(move || apply_ruleset_raw(&payload, DEFAULT_NFT, DEFAULT_ARGS)).await??;
    if !leaves {
        sysctl("ipv4/conf/all/route_localnet", "0")?;
    }
    Ok(())
}

/// One transaction: the table is made if missing, removed, and made anew with its rules.
fn rules(target: Option<Target>) -> Value {
    let table = json!({"table": {"family": "ip", "name": "arca"}});
    let mut commands = vec![json!({"add": table}), json!({"delete": table})];
    if let Some(target) = target {
        commands.push(json!({"add": table}));
        commands.push(chain("output", "nat", "output", -100));
        commands.push(chain("postrouting", "nat", "postrouting", 100));
        commands.push(chain("guard", "filter", "prerouting", -300));
        let places = match target {
            Target::Address(resolver) => [("udp", resolver, 53), ("tcp", resolver, 53)],
            Target::Stub(Ports { udp, tcp }) => [("udp", RESOLVER, udp), ("tcp", RESOLVER, tcp)],
        };
        for (protocol, address, port) in places {
            let to = json!({"dnat": {"addr": address, "port": port}});
            commands.push(rule(
                "output",
                &[equal(&field("ip", "daddr"), &json!(RESOLVER)), equal(&field(protocol, "dport"), &json!(53)), to],
            ));
        }
        let loopback = json!({"prefix": {"addr": "127.0.0.0", "len": 8}});
        if let Target::Address(resolver) = target {
            commands.push(rule(
                "postrouting",
                &[
                    equal(&field("ip", "saddr"), &loopback),
                    equal(&field("ip", "daddr"), &json!(resolver)),
                    not_loopback("oifname"),
                    json!({"masquerade": null}),
                ],
            ));
        }
        commands.push(rule(
            "guard",
            &[not_loopback("iifname"), equal(&field("ip", "daddr"), &loopback), json!({"drop": null})],
        ));
    }
    json!({"nftables": commands})
}

fn chain(name: &str, kind: &str, hook: &str, priority: i32) -> Value {
    json!({"add": {"chain": {
        "family": "ip", "table": "arca", "name": name, "type": kind, "hook": hook, "prio": priority, "policy": "accept",
    }}})
}

fn rule(chain: &str, expression: &[Value]) -> Value {
    json!({"add": {"rule": {"family": "ip", "table": "arca", "chain": chain, "expr": expression}}})
}

fn field(protocol: &str, field: &str) -> Value {
    json!({"payload": {"protocol": protocol, "field": field}})
}

fn equal(left: &Value, right: &Value) -> Value {
    json!({"match": {"op": "==", "left": left, "right": right}})
}

fn not_loopback(key: &str) -> Value {
    json!({"match": {"op": "!=", "left": {"meta": {"key": key}}, "right": "lo"}})
}
