// SPDX-License-Identifier: Apache-2.0
//! Off-host clients of published ports, redirected in the kernel so that the container sees their address.
//!
//! Table `ip arca_publish_TAG` (the engine's tag: several may share a host), one rule a publication, made anew as a whole in one transaction at each change: there are no
//! handles to keep and nothing half-done. A table left by a killed process is removed at start. Not redirected, and so
//! served by the listener: this host's own clients, what comes back from the helper's uplink itself (its source is the
//! VIP), loopback addresses, and IPv6 (the VIP is an IPv4 address).
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
use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};
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

/// The publications that asked for the kernel way.
#[derive(Debug)]
pub(super) struct Redirects {
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

#[derive(Clone, Copy, Debug)]
struct Rule {
    protocol: Protocol,
    host: Ipv4Addr,
    port: u16,
    vip: SocketAddrV4,
}

impl Redirects {
    /// For the engine with this tag. Removes what an earlier process of it left. Blocks for one run of nft.
    pub(super) fn new(tag: &str) -> Self {
        let table = format!("arca_publish_{tag}");
        if let Err(error) = remove_leftover(&table) {
            // Without nft there is nothing to remove; what asks for the kernel way later is told why not.
            tracing::debug!("look for rules of an earlier process: {error}");
        }
        Self { table, wanted: BTreeMap::new(), obstacle: None, present: false }
    }

    /// Wants a rule for a publication. If it cannot be had, [`Redirects::way`] says so.
    pub(super) async fn add(&mut self, id: &str, protocol: Protocol, host: IpAddr, port: u16, vip: SocketAddrV4) {
        let wish = match host {
            IpAddr::V4(host) if host.is_loopback() => Wish::Never("a loopback address has no clients elsewhere"),
            IpAddr::V4(host) => Wish::Rule(Rule { protocol, host, port, vip }),
            IpAddr::V6(_) => Wish::Never("IPv6 clients cannot be redirected to an IPv4 address"),
        };
        self.wanted.insert(id.to_owned(), wish);
        if let Err(error) = self.apply().await {
            let error = anyhow::Error::new(error);
            tracing::warn!("published ports are served by their listeners only: {error:#}");
            self.obstacle = Some(format!("{error:#}"));
        }
    }

    /// Removes the rule of a publication, if it has one.
    pub(super) async fn remove(&mut self, id: &str) -> Result<(), RedirectError> {
        match self.wanted.remove(id) {
            Some(Wish::Rule(rule)) => {
                let applied = self.apply().await;
                cut(vec![rule]).await;
                applied
            }
            Some(Wish::Never(_)) | None => Ok(()),
        }
    }

    /// Whether a neighbour is in the way, or no longer, after it changed something.
    pub(super) async fn reconsider(&mut self) -> Result<(), RedirectError> {
        if !self.wanted.values().any(|wish| matches!(wish, Wish::Rule(_))) {
            return Ok(());
        }
        match spawn_blocking(obstacle).await?? {
            now if now == self.obstacle => Ok(()),
            _ => self.apply().await,
        }
    }

    /// News of neighbours' changes.
    pub(super) fn changes(&self) -> io::Result<Changes> {
        Changes::open(&self.table)
    }

    /// Removes all rules.
    pub(super) async fn clear(&mut self) -> Result<(), RedirectError> {
        self.wanted.clear();
        self.apply().await
    }

    /// How a publication's clients come in, as `Publication.way` has it.
    pub(super) fn way(&self, id: &str) -> String {
        match (self.wanted.get(id), &self.obstacle) {
            (None, _) => "listener".to_owned(),
            (Some(Wish::Never(why)), _) => format!("listener ({why})"),
            (Some(Wish::Rule(_)), Some(why)) => format!("listener ({why})"),
            (Some(Wish::Rule(_)), None) => "nftables+listener".to_owned(),
        }
    }

    async fn apply(&mut self) -> Result<(), RedirectError> {
        let mut rules: Vec<Rule> = Vec::new();
        rules.extend(self.wanted.values().filter_map(|wish| match wish {
            Wish::Rule(rule) => Some(*rule),
            Wish::Never(_) => None,
        }));
        if rules.is_empty() && !self.present {
            return Ok(());
        }
        let (table, before) = (self.table.clone(), rules.clone());
        let done = spawn_blocking(move || {
            let obstacle = if rules.is_empty() { None } else { obstacle()? };
            if obstacle.is_some() {
                rules.clear();
            }
            apply_ruleset_raw(&ruleset(&table, &rules).to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
            Ok::<_, NftablesError>((obstacle, !rules.is_empty()))
        });
        let (obstacle, present) = done.await??;
        if let Some(why) = &obstacle
            && self.obstacle.as_ref() != Some(why)
        {
            tracing::warn!("published ports are served by their listeners only: {why}");
            // They would go on being redirected, to be dropped.
            cut(before).await;
        } else if obstacle.is_none() && self.obstacle.is_some() {
            tracing::info!("clients of published ports are redirected in the kernel again");
        }
        (self.obstacle, self.present) = (obstacle, present);
        Ok(())
    }
}

/// Ends connections that these rules redirected. Failure leaves them to end by themselves.
async fn cut(rules: Vec<Rule>) {
    let done = spawn_blocking(move || conntrack::forget(|flow| rules.iter().any(|rule| rule.made(flow)))).await;
    match done {
        Ok(Ok(count)) => tracing::debug!(count, "redirected connections are cut"),
        Ok(Err(error)) => tracing::warn!(%error, "redirected connections go on (no connection tracking by netlink?)"),
        Err(error) => tracing::debug!(%error, "redirected connections go on"),
    }
}

fn remove_leftover(table: &str) -> Result<(), NftablesError> {
    let tables = objects(&["list", "tables"])?;
    if tables.iter().any(|o| o["table"]["family"] == "ip" && o["table"]["name"] == table) {
        apply_ruleset_raw(&ruleset(table, &[]).to_string(), DEFAULT_NFT, DEFAULT_ARGS)?;
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
fn obstacle() -> Result<Option<String>, NftablesError> {
    let forwarding = std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap_or_default();
    if forwarding.trim() != "1" {
        return Ok(Some("net.ipv4.ip_forward is off".to_owned()));
    }
    let drops = |chain: &Value| {
        chain["hook"] == "forward"
            && chain["policy"] == "drop"
            && (chain["family"] == "ip" || chain["family"] == "inet")
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
    Ok(legacy_drops().then(|| "the FORWARD chain of iptables-legacy has policy DROP".to_owned()))
}

/// The older packet filter beside nftables, which nft does not show. Only asked where its table is loaded.
fn legacy_drops() -> bool {
    let loaded = std::fs::read_to_string("/proc/net/ip_tables_names").unwrap_or_default();
    if !loaded.lines().any(|table| table == "filter") {
        return false;
    }
    let listed = Command::new("iptables-legacy").args(["-S", "FORWARD"]).output();
    listed.is_ok_and(|output| String::from_utf8_lossy(&output.stdout).lines().any(|line| line == "-P FORWARD DROP"))
}

/// One transaction: the table is made if missing, removed, and made anew with its rules.
fn ruleset(name: &str, rules: &[Rule]) -> Value {
    let table = json!({"table": {"family": "ip", "name": name}});
    let mut commands = vec![json!({"add": table}), json!({"delete": table})];
    if !rules.is_empty() {
        commands.push(json!({"add": table}));
        commands.push(json!({"add": {"chain": {
            "family": "ip", "table": name, "name": "prerouting",
            "type": "nat", "hook": "prerouting", "prio": -100, "policy": "accept",
        }}}));
        commands.extend(rules.iter().map(|rule| rule.command(name)));
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
        let to_host = self.host.is_unspecified() || *flow.asked.ip() == self.host;
        to_host && flow.protocol == number && flow.asked.port() == self.port && flow.served == self.vip
    }

    fn command(&self, table: &str) -> Value {
        let compare = |op: &str, left: Value, right: Value| json!({"match": {"op": op, "left": left, "right": right}});
        let field = |protocol: &str, name: &str| json!({"payload": {"protocol": protocol, "field": name}});
        let to_host = if self.host.is_unspecified() {
            compare("==", json!({"fib": {"result": "type", "flags": ["daddr"]}}), json!("local"))
        } else {
            compare("==", field("ip", "daddr"), json!(self.host))
        };
        json!({"add": {"rule": {"family": "ip", "table": table, "chain": "prerouting", "expr": [
            compare("!=", json!({"meta": {"key": "iifname"}}), json!("lo")),
            compare("!=", field("ip", "saddr"), json!(self.vip.ip())),
            to_host,
            compare("==", field(self.protocol.name(), "dport"), json!(self.port)),
            {"counter": {"packets": 0, "bytes": 0}},
            {"dnat": {"addr": self.vip.ip(), "port": self.vip.port()}},
        ]}}})
    }
}
