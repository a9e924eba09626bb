// SPDX-License-Identifier: Apache-2.0
//! What an endpoint may have beside network, names and addresses: links, name servers of its own, link-local addresses,
//! sysctls of its interface. Read from the client's text once; stored with the endpoint.

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// Driver option: comma-separated `net.X.Y.IFNAME.Z=V`.
const SYSCTLS: &str = "com.docker.network.endpoint.sysctls";

/// See the module's head.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Extras {
    /// Alias, known to this container only, to a name of the network.
    pub links: BTreeMap<String, String>,
    /// `--dns`.
    pub dns: Vec<IpAddr>,
    /// `--link-local-ip`.
    pub link_local: Vec<IpAddr>,
    /// Group (`ipv4/conf`), key and value of each sysctl of the interface.
    pub sysctls: Vec<(String, String, String)>,
}

/// Reads `NAME[:ALIAS]`.
fn link(text: &str) -> Result<(String, String)> {
    if text.is_empty() {
        return Err(Error::Failed("empty string specified for links".into()));
    }
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Ok(((*name).to_owned(), (*name).to_owned())),
        [name, alias] => match name.strip_prefix('/') {
            Some(name) => Ok((alias.rsplit('/').next().unwrap_or(alias).to_owned(), name.to_owned())),
            None => Ok(((*alias).to_owned(), (*name).to_owned())),
        },
        _ => Err(Error::Failed(format!("bad format for links: {text}"))),
    }
}

/// Reads `net.ipv4.conf.IFNAME.log_martians=1`; none for what is no sysctl of an interface, which is told elsewhere with
/// other faults. In Docker's texts the name is in lower case by then.
fn sysctl(text: &str) -> Result<Option<(String, String, String)>> {
    let lower = text.to_ascii_lowercase();
    let (name, value) = match lower.split_once('=') {
        Some((name, _)) => (name, text.split_once('=').map(|(_, value)| value)),
        None => (lower.as_str(), None),
    };
    let parts: Vec<&str> = name.split('.').collect();
    let ["net", family @ ("ipv4" | "ipv6" | "mpls"), group, "ifname", rest @ ..] = parts.as_slice() else {
        return Ok(None);
    };
    let format = |what: &str| Error::Failed(format!("expected sysctl '{lower}' to have format {what}"));
    let value = value.ok_or_else(|| format("name=value"))?;
    let [key] = rest else { return Err(format("net.X.Y.IFNAME.Z")) };
    Ok(Some((format!("{family}/{group}"), (*key).to_owned(), value.to_owned())))
}

fn is_link_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => Ipv4Addr::is_link_local(&address),
        IpAddr::V6(address) => Ipv6Addr::is_unicast_link_local(&address),
    }
}

impl Extras {
    /// Reads what the client sent. Of link-local addresses, those that are none at all are told elsewhere.
    ///
    /// # Errors
    /// Docker's texts.
    pub fn read(
        links: &[String],
        dns: &[String],
        link_local: &[String],
        options: &BTreeMap<String, String>,
    ) -> Result<Self> {
        let links = links.iter().map(|text| link(text)).collect::<Result<_>>()?;
        let dns = dns.iter().filter_map(|text| text.parse().ok()).collect();
        let link_local: Vec<IpAddr> = link_local.iter().filter_map(|text| text.parse().ok()).collect();
        if let Some(address) = link_local.iter().find(|address| !is_link_local(**address)) {
            return Err(Error::Failed(format!("invalid link local IP address: {address}")));
        }
        let sysctls = options.get(SYSCTLS).into_iter().flat_map(|text| text.split(',')).map(sysctl);
        let sysctls = sysctls.filter_map(Result::transpose).collect::<Result<_>>()?;
        Ok(Self { links, dns, link_local, sysctls })
    }

    /// Whether the interface needs more than every interface does.
    #[must_use]
    pub fn touch_interface(&self) -> bool {
        !self.link_local.is_empty() || !self.sysctls.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(sysctls: &str) -> Result<Extras> {
        Extras::read(&[], &[], &[], &BTreeMap::from([(SYSCTLS.to_owned(), sysctls.to_owned())]))
    }

    #[test]
    fn sysctls_are_read_and_refused_in_dockers_words() {
        let read = with("net.ipv4.conf.IFNAME.log_martians=1,net.ipv6.conf.IFNAME.forwarding=0").unwrap();
        assert_eq!(
            read.sysctls,
            [
                ("ipv4/conf".into(), "log_martians".into(), "1".into()),
                ("ipv6/conf".into(), "forwarding".into(), "0".into())
            ]
        );
        for other in
            ["net.ipv4.conf.eth0.log_martians=1", "zz=1", "net.ipv9.conf.IFNAME.x=1", "net.ipv4.IFNAME.x=1", ""]
        {
            assert_eq!(with(other).unwrap().sysctls, [], "{other}");
        }
        assert_eq!(
            with("net.ipv4.conf.IFNAME.a.b=1").unwrap_err().to_string(),
            "expected sysctl 'net.ipv4.conf.ifname.a.b=1' to have format net.X.Y.IFNAME.Z"
        );
        assert_eq!(
            with("net.ipv4.conf.IFNAME.log_martians").unwrap_err().to_string(),
            "expected sysctl 'net.ipv4.conf.ifname.log_martians' to have format name=value"
        );
    }

    #[test]
    fn links_and_addresses_are_read() {
        let text = |list: &[&str]| list.iter().map(|&one| one.to_owned()).collect::<Vec<_>>();
        let none = BTreeMap::new();
        let read = Extras::read(&text(&["db:dd", "web"]), &text(&["9.9.9.9"]), &text(&["169.254.1.1"]), &none).unwrap();
        assert_eq!(read.links.get("dd").map(String::as_str), Some("db"));
        assert_eq!(read.links.get("web").map(String::as_str), Some("web"));
        assert!(read.touch_interface() && read.dns.len() == 1);
        let refused = |links: &[&str], local: &[&str]| {
            Extras::read(&text(links), &[], &text(local), &none).unwrap_err().to_string()
        };
        assert_eq!(refused(&["a:b:c"], &[]), "bad format for links: a:b:c");
        assert_eq!(refused(&[], &["10.1.1.1"]), "invalid link local IP address: 10.1.1.1");
    }
}
