// SPDX-License-Identifier: Apache-2.0
//! Off-host clients of published ports, redirected in the kernel so that the container sees their address.
//!
//! Tables `ip arca_publish_TAG` and `ip6 arca_publish_TAG` (the engine's tag: several may share a host), one rule a
//! publication, each made anew as a whole in one transaction at each change: there are no handles to keep and nothing
//! half-done. A table left by a killed process is removed at start. Not redirected, and so served by the listener: this
//! host's own clients, what comes back from the helper's uplink itself (its source is the VIP), loopback addresses, and
//! clients of one family where the VIP is of the other.
//!
//! Redirected packets are forwarded. Where a neighbour (a firewall, another engine) drops forwarded packets by policy,
//! the rules would lose clients that the listener can serve, so there are none then, and `way` says why. This is looked
//! at whenever these rules or anybody's chains of nftables change. Connections of a rule that goes are cut ([`conntrack`]);
//! when this process ends they are not: it comes back, and they have nothing to do with it.

mod changes;
mod conntrack;
mod netlink;

use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use nftables::helper::{DEFAULT_ARGS, DEFAULT_NFT, NftablesError, apply_ruleset_raw, get_current_ruleset_raw};
use serde_json::{Value, json};
use tokio::task::{JoinError, spawn_blocking};

use super::wanted::Protocol;
pub(super) use changes::Changes;
use conntrack::Flow;

/// Why the rules could not be changed.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    /// nft failed.
    #[error("change the nftables table of published ports (is nft installed, with CAP_NET_ADMIN?)")]
    Nft(#[from] NftablesError),
    /// The runtime is going down.
    #[error("interrupted")]
    Interrupted(#[from] JoinError),
}

/// The publications that asked for the kernel way, by address family.
#[derive(Debug)]
pub(super) struct Redirects {
    v4: Side,
    v6: Side,
}

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    V4,
    V6,
}

impl Family {
    fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// As nftables names it.
    fn name(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    /// Below /proc/sys/net.
    fn forwarding(self) -> &'static str {
        match self {
            Self::V4 => "ipv4/ip_forward",
            Self::V6 => "ipv6/conf/all/forwarding",
        }
    }
}

/// One family.
#[derive(Debug)]
struct Side {
    family: Family,
    /// Name of the table.
    table: String,
    wanted: BTreeMap<String, Wish>,
    /// Why no rule is in force at present.
    obstacle: Option<String>,
    /// Whether the table may exist.
    present: bool,
}

/// A rule, or why there is none for this publication.
#[derive(Debug)]
enum Wish {
    Rule(Rule),
    Never(&'static str),
}

/// Host address and VIP are of one family.
#[derive(Clone, Copy, Debug)]
struct Rule {
    protocol: Protocol,
    host: IpAddr,
    port: u16,
    vip: SocketAddr,
}

impl Redirects {
    /// For the engine with this tag. Removes what an earlier process of it left. Blocks for runs of nft.
    pub(super) fn new(tag: &str) -> Self {
        let table = format!("arca_publish_{tag}");
        let side = |family| {
            if let Err(error) = remove_leftover(family, &table) {
                // Without nft there is nothing to remove; what asks for the kernel way later is told why not.
                tracing::debug!("look for rules of an earlier process: {error}");
            }
            Side { family, table: table.clone(), wanted: BTreeMap::new(), obstacle: None, present: false }
        };
        Self { v4: side(Family::V4), v6: side(Family::V6) }
    }

    /// Wants a rule for a publication. If it cannot be had, [`Redirects::way`] says so.
    pub(super) async fn add(&mut self, id: &str, protocol: Protocol, host: IpAddr, port: u16, vip: SocketAddr) {
        let wish = if host.is_loopback() {
            Wish::Never("a loopback address has no clients elsewhere")
        } else if host.is_ipv4() != vip.is_ipv4() {
            Wish::Never("clients cannot be redirected to an address of another family")
        } else {
            Wish::Rule(Rule { protocol, host, port, vip })
        };
        let side = match Family::of(host) {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        };
        side.wanted.insert(id.to_owned(), wish);
        if let Err(error) = side.apply().await {
            let error = anyhow::Error::new(error);
            tracing::warn!("published ports are served by their listeners only: {error:#}");
            side.obstacle = Some(format!("{error:#}"));
        }
    }

    fn sides(&mut self) -> [&mut Side; 2] {
        [&mut self.v4, &mut self.v6]
    }

    /// Removes the rule of a publication, if it has one.
    pub(super) async fn remove(&mut self, id: &str) -> Result<(), RedirectError> {
        for side in self.sides() {
            if let Some(Wish::Rule(rule)) = side.wanted.remove(id) {
                let applied = side.apply().await;
                cut(side.family, vec![rule]).await;
                applied?;
            }
        }
        Ok(())
    }

    /// Whether a neighbour is in the way, or no longer, after it changed something.
    pub(super) async fn reconsider(&mut self) -> Result<(), RedirectError> {
        for side in self.sides() {
            if !side.wanted.values().any(|wish| matches!(wish, Wish::Rule(_))) {
                continue;
            }
            let family = side.family;
            if spawn_blocking(move || obstacle(family)).await?? != side.obstacle {
                side.apply().await?;
            }
        }
        Ok(())
    }

    /// News of neighbours' changes.
    pub(super) fn changes(&self) -> io::Result<Changes> {
        Changes::open(&self.v4.table)
    }

    /// Removes all rules.
    pub(super) async fn clear(&mut self) -> Result<(), RedirectError> {
        let mut cleared = Ok(());
        for side in self.sides() {
            side.wanted.clear();
            cleared = cleared.and(side.apply().await);
        }
        cleared
    }

    /// How a publication's clients come in, as `Publication.way` has it.
    pub(super) fn way(&self, id: &str) -> String {
        let found = [&self.v4, &self.v6].into_iter().find_map(|side| Some((side.wanted.get(id)?, &side.obstacle)));
        match found {
            None => "listener".to_owned(),
            Some((Wish::Never(why), _)) => format!("listener ({why})"),
            Some((Wish::Rule(_), Some(why))) => format!("listener ({why})"),
            Some((Wish::Rule(_), None)) => "nftables+listener".to_owned(),
        }
    }
}

impl Side {
    async fn apply(&mut self) -> Result<(), RedirectError> {
        let mut rules: Vec<Rule> = Vec::new();
        rules.extend(self.wanted.values().filter_map(|wish| match wish {
            Wish::Rule(rule) => Some(*rule),
            Wish::Never(_) => None,
        }));
        if rules.is_empty() && !self.present {
            return Ok(());
        }
        let (family, table, before) = (self.family, self.table.clone(), rules.clone());
        let done = spawn_blocking(move || {
            let obstacle = if rules.is_empty() { None } else { obstacle(family)? };
            if obstacle.is_some() {
                rules.clear();
            }
            apply_ruleset_raw(&ruleset(family, &table, &rules).to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
            Ok::<_, NftablesError>((obstacle, !rules.is_empty()))
        });
        let (obstacle, present) = done.await??;
        if let Some(why) = &obstacle
            && self.obstacle.as_ref() != Some(why)
        {
            tracing::warn!("published ports are served by their listeners only: {why}");
            // They would go on being redirected, to be dropped.
            cut(family, before).await;
        } else if obstacle.is_none() && self.obstacle.is_some() {
            tracing::info!("clients of published ports are redirected in the kernel again");
        }
        (self.obstacle, self.present) = (obstacle, present);
        Ok(())
    }
}

/// Ends connections that these rules redirected. Failure leaves them to end by themselves.
async fn cut(family: Family, rules: Vec<Rule>) {
    let v6 = family == Family::V6;
    let done = spawn_blocking(move || conntrack::forget(v6, |flow| rules.iter().any(|rule| rule.made(flow)))).await;
    match done {
        Ok(Ok(count)) => tracing::debug!(count, "redirected connections are cut"),
        Ok(Err(error)) => tracing::warn!(%error, "redirected connections go on (no connection tracking by netlink?)"),
        Err(error) => tracing::debug!(%error, "redirected connections go on"),
    }
}

fn remove_leftover(family: Family, table: &str) -> Result<(), NftablesError> {
    let tables = objects(&["list", "tables"])?;
    if tables.iter().any(|o| o["table"]["family"] == family.name() && o["table"]["name"] == table) {
        apply_ruleset_raw(&ruleset(family, table, &[]).to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
    }
    Ok(())
}

fn objects(arguments: &[&str]) -> Result<Vec<Value>, NftablesError> {
    let text = get_current_ruleset_raw(DEFAULT_NFT, arguments)?;
    let mut answer: Value = serde_json::from_str(&text).map_err(NftablesError::NftInvalidJson)?;
    match answer["nftables"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// What would keep redirected packets from being forwarded.
fn obstacle(family: Family) -> Result<Option<String>, NftablesError> {
    let switch = family.forwarding();
    let forwarding = std::fs::read_to_string(format!("/proc/sys/net/{switch}")).unwrap_or_default();
    if forwarding.trim() != "1" {
        return Ok(Some(format!("net.{} is off", switch.replace('/', "."))));
    }
    let drops = |chain: &Value| {
        chain["hook"] == "forward"
            && chain["policy"] == "drop"
            && (chain["family"] == family.name() || chain["family"] == "inet")
    };
    for object in objects(&["list", "chains"])? {
        let chain = &object["chain"];
        if drops(chain) {
            let text = |key: &str| chain[key].as_str().unwrap_or_default().to_owned();
            let (family, table, name) = (text("family"), text("table"), text("name"));
            return Ok(Some(format!(
                "chain {name} of nftables table {family} {table} drops forwarded packets by policy"
            )));
        }
    }
    let tool = match family {
        Family::V4 => "iptables-legacy",
        Family::V6 => "ip6tables-legacy",
    };
    Ok(legacy_drops(family, tool).then(|| format!("the FORWARD chain of {tool} has policy DROP")))
}

/// The older packet filter beside nftables, which nft does not show. Only asked where its table is loaded.
fn legacy_drops(family: Family, tool: &str) -> bool {
    let names = match family {
        Family::V4 => "/proc/net/ip_tables_names",
        Family::V6 => "/proc/net/ip6_tables_names",
    };
    let loaded = std::fs::read_to_string(names).unwrap_or_default();
    if !loaded.lines().any(|table| table == "filter") {
        return false;
    }
    let listed = Command::new(tool).args(["-S", "FORWARD"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "-P FORWARD DROP"))
}

/// One transaction: the table is made if missing, removed, and made anew with its rules.
fn ruleset(family: Family, name: &str, rules: &[Rule]) -> Value {
    let table = json!({"table": {"family": family.name(), "name": name}});
    let mut commands = vec![json!({"add": table}), json!({"delete": table})];
    if !rules.is_empty() {
        commands.push(json!({"add": table}));
        commands.push(json!({"add": {"chain": {
            "family": family.name(), "table": name, "name": "prerouting",
            "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept",
        }}}));
        commands.extend(rules.iter().map(|rule| rule.command(family, name)));
    }
    json!({"nftables": commands})
}

impl Rule {
    /// Whether a connection is one that this rule redirected.
    fn made(&self, flow: &Flow) -> bool {
        // IANA, protocol numbers.
        let number = match self.protocol {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
        };
        let to_host = self.host.is_unspecified() || flow.asked.ip() == self.host;
        to_host && flow.protocol == number && flow.asked.port() == self.port && flow.served == self.vip
    }

    fn command(&self, family: Family, table: &str) -> Value {
        let family = family.name();
        let compare = |op: &str, left: Value, right: Value| json!({"match": {"op": op, "left": left, "right": right}});
        let field = |protocol: &str, name: &str| json!({"payload": {"protocol": protocol, "field": name}});
        let to_host = if self.host.is_unspecified() {
            compare("==", json!({"fib": {"result": "type", "flags": ["daddr"]}}), json!("local"))
        } else {
            compare("==", field(family, "daddr"), json!(self.host))
        };
        json!({"add": {"rule": {"family": family, "table": table, "chain": "prerouting", "expr": [
            compare("!=", json!({"meta": {"key": "iifname"}}), json!("lo")),
            compare("!=", field(family, "saddr"), json!(self.vip.ip())),
            to_host,
            compare("==", field(self.protocol.name(), "dport"), json!(self.port)),
            {"counter": {"packets": 0, "bytes": 0}},
            {"dnat": {"addr": self.vip.ip(), "port": self.vip.port()}},
        ]}}})
    }
}
