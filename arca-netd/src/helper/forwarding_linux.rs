// SPDX-License-Identifier: Apache-2.0
//! Forwarding of the host, which belongs to all engines in its network namespace: who switched it on marks its table, and
//! who stops while another engine's table is there hands the mark over; the last one switches it off again.
//!
//! A kernel that forwards IPv6 forgets the default route that a router advertised, unless the interface is told to listen
//! all the same (`accept_ra` 2; Linux, ip-sysctl). Interfaces that listened are told so before, and the mark names them.

use std::{fs, path::PathBuf};

use super::nft;
use crate::error::{Error, Result};

/// A chain without a hook that says that forwarding was off before: it lives exactly as long as what it describes.
const WAS_OFF: &str = "forwarding-was-off";
/// A set of the interfaces whose `accept_ra` was 1.
const LISTENERS: &str = "accept-ra-was-1";

/// Address family of a table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    V4,
    V6,
}

impl Family {
    /// As nftables names it.
    fn nft(self) -> &'static str {
        match self {
            Self::V4 => "ip",
            Self::V6 => "ip6",
        }
    }

    fn switch(self) -> &'static str {
        match self {
            Self::V4 => "/proc/sys/net/ipv4/ip_forward",
            Self::V6 => "/proc/sys/net/ipv6/conf/all/forwarding",
        }
    }

    async fn set(self, value: &str) -> Result<()> {
        tokio::fs::write(self.switch(), value).await.map_err(Error::io("switch forwarding on or off"))
    }

    /// What marks a table, as a script.
    fn mark(self, table: &str, listeners: &[String]) -> String {
        let family = self.nft();
        let mut script = format!("add chain {family} {table} {WAS_OFF}\n");
        if self == Self::V6 {
            script += &format!("add set {family} {table} {LISTENERS} {{ type ifname; }}\n");
            for interface in listeners {
                script += &format!("add element {family} {table} {LISTENERS} {{ \"{interface}\" }}\n");
            }
        }
        script
    }
}

/// Switches forwarding on, if it is off; `table` then says so. That table must be there.
pub(super) async fn switch_on(family: Family, table: &str) -> Result<()> {
    let now = tokio::fs::read_to_string(family.switch()).await.map_err(Error::io("read whether the host forwards"))?;
    if now.trim() == "1" {
        return Ok(());
    }
    let listeners = if family == Family::V6 { listeners() } else { Vec::new() };
    nft(&family.mark(table, &listeners)).await?;
    listen(&listeners, "1", "2");
    family.set("1").await
}

/// As [`switch_on`], by a table that holds nothing else; made if it is not there.
pub(super) async fn join(family: Family, table: &str) -> Result<()> {
    nft(&format!("add table {} {table}\n", family.nft())).await?;
    switch_on(family, table).await
}

/// Removes the table and, if it has the mark, switches forwarding off or hands the mark over.
pub(super) async fn drop_table(family: Family, table: &str) -> Result<()> {
    let name = family.nft();
    // `add` first: deleting a table that is not there is an error.
    let own = format!("add table {name} {table}\ndelete table {name} {table}\n");
    if nft(&format!("list chain {name} {table} {WAS_OFF}\n")).await.is_err() {
        // Without IPv6 in the kernel nft may know no such tables at all.
        let gone = nft(&own).await.map(drop);
        return if family == Family::V6 && !crate::hostnet::has_ipv6() { Ok(()) } else { gone };
    }
    let listeners = match family {
        Family::V4 => Vec::new(),
        Family::V6 => elements(&nft(&format!("list set {name} {table} {LISTENERS}\n")).await.unwrap_or_default()),
    };
    let mut refused = None;
    // Another engine's table may go while the mark is on its way; then the transaction fails as a whole.
    for _ in 0..4 {
        let Some(heir) = other_tables(family, table).await?.into_iter().next() else {
            nft(&own).await?;
            family.set("0").await?;
            listen(&listeners, "2", "1");
            // One that began just before this needs forwarding, and found it on.
            return match other_tables(family, table).await?.first() {
                Some(heir) => {
                    nft(&family.mark(heir, &listeners)).await?;
                    listen(&listeners, "1", "2");
                    family.set("1").await
                }
                None => Ok(()),
            };
        };
        match nft(&format!("{}{own}", family.mark(&heir, &listeners))).await {
            Ok(_) => return Ok(()),
            Err(error) => refused = Some(error),
        }
    }
    Err(refused.unwrap_or_else(|| Error::Failed("hand the host's forwarding over to another engine".into())))
}

/// Tables of other engines: `arca_` and a tag.
async fn other_tables(family: Family, own: &str) -> Result<Vec<String>> {
    let is_tag = |tag: &str| tag.len() == 8 && tag.bytes().all(|byte| byte.is_ascii_hexdigit());
    let name = family.nft();
    let listed = nft(&format!("list tables {name}\n")).await?;
    let tables = listed.lines().filter_map(|line| line.trim().strip_prefix("table ")?.strip_prefix(name));
    let engines =
        tables.map(str::trim).filter(|table| table.strip_prefix("arca_").is_some_and(is_tag) && *table != own);
    Ok(engines.map(str::to_owned).collect())
}

fn accept_ra(interface: &str) -> PathBuf {
    ["/proc/sys/net/ipv6/conf", interface, "accept_ra"].iter().collect()
}

/// Interfaces that take routes from router advertisements. Names that nftables could not quote are left out.
fn listeners() -> Vec<String> {
    let Ok(folders) = fs::read_dir("/proc/sys/net/ipv6/conf") else { return Vec::new() };
    let names = folders.flatten().filter_map(|folder| folder.file_name().into_string().ok());
    names
        .filter(|name| !matches!(name.as_str(), "all" | "default" | "lo") && !name.contains(['"', '*', '\\']))
        .filter(|name| fs::read_to_string(accept_ra(name)).is_ok_and(|value| value.trim() == "1"))
        .collect()
}

/// Sets `accept_ra` of interfaces that still have `from`; one that went meanwhile has nothing to lose.
fn listen(interfaces: &[String], from: &str, to: &str) {
    for interface in interfaces {
        let path = accept_ra(interface);
        if fs::read_to_string(&path).is_ok_and(|value| value.trim() == from)
            && let Err(error) = fs::write(&path, to)
        {
            tracing::warn!(%error, interface, "accept_ra could not be set: routes from advertisements may be lost");
        }
    }
}

/// Quoted elements of a set as nft lists it.
fn elements(listed: &str) -> Vec<String> {
    let elements = listed.split_once("elements").map(|(_, elements)| elements).unwrap_or_default();
    elements.split('"').skip(1).step_by(2).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sets_elements_are_read() {
        let listed = "table ip6 arca_1 {\n\tset accept-ra-was-1 {\n\t\ttype ifname\n\
            \t\telements = { \"eth0\", \"br-1a\",\n\t\t\t     \"wlan0\" }\n\t}\n}\n";
        assert_eq!(elements(listed), ["eth0", "br-1a", "wlan0"]);
        assert!(elements("table ip6 arca_1 {\n\tset accept-ra-was-1 {\n\t\ttype ifname\n\t}\n}\n").is_empty());
    }
}
