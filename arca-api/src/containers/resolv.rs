// SPDX-License-Identifier: Apache-2.0
//! Text of a container's /etc/resolv.conf, byte for byte as Docker writes it, comments included: scripts read them.
//! Called by [`super::files`].

use std::{fmt::Write as _, fs, net::IpAddr};

use crate::{
    containers::Record,
    http::{ApiError, ApiResult},
};

/// Where the host's own file is, and where systemd-resolved keeps the servers behind its stub.
const PATH: &str = "/etc/resolv.conf";
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
const STUB: &str = "127.0.0.53";
/// Where a container on a user network asks.
const INTERNAL: &str = "127.0.0.11";
/// Asked when the host names nobody that a container could reach.
const DEFAULTS: [&str; 2] = ["8.8.8.8", "8.8.4.4"];

/// The host's resolv.conf.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// Its path, told in a comment.
    pub path: String,
    /// Its text.
    pub text: String,
}

impl Host {
    /// Reads it. Unless `as_it_is`, the list behind systemd-resolved's stub is taken where the stub is all there is.
    pub fn read(as_it_is: bool) -> Self {
        let read = |path: &str| Self { path: path.to_owned(), text: fs::read_to_string(path).unwrap_or_default() };
        let own = read(PATH);
        let behind = || Some(read(BEHIND_STUB)).filter(|host| !host.text.is_empty());
        if !as_it_is && own.words("nameserver") == [STUB] {
            return behind().unwrap_or(own);
        }
        own
    }

    /// The words of all lines that begin with `keyword`.
    fn words(&self, keyword: &str) -> Vec<String> {
        let lines = self.text.lines().filter(|line| line.split_whitespace().next() == Some(keyword));
        lines.flat_map(|line| line.split_whitespace().skip(1)).map(str::to_owned).collect()
    }

    /// Domains of the last line that says some.
    fn search(&self) -> Vec<String> {
        let mut lines = self.text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
        let domains = |words: &Vec<&str>| match words.as_slice() {
            ["search", domains @ ..] => Some(domains.iter().map(|&domain| domain.to_owned()).collect()),
            ["domain", domain, ..] => Some(vec![(*domain).to_owned()]),
            _ => None,
        };
        lines.by_ref().filter_map(|words| domains(&words)).last().unwrap_or_default()
    }

    /// Lines that are neither comments nor known.
    fn others(&self) -> impl Iterator<Item = &str> {
        let known = ["nameserver", "search", "domain", "options"];
        self.text.lines().filter(move |line| {
            let first = line.split_whitespace().next().unwrap_or("#");
            !known.contains(&first) && !first.starts_with(['#', ';'])
        })
    }
}

/// The text. `internal`: 127.0.0.11 answers.
///
/// # Errors
/// 500 with Docker's text for a name server that is no address.
pub fn text(record: &Record, host: &Host, internal: bool) -> ApiResult<String> {
    let (dns, search, options) = (&record.host.dns, &record.host.dns_search, &record.host.dns_options);
    if let Some(server) = dns.iter().find(|server| server.parse::<IpAddr>().is_err()) {
        return Err(ApiError::internal(format!(
            "bad nameserver address {server}: ParseAddr(\"{server}\"): unable to parse IP"
        )));
    }
    let given = |list: &[String], theirs: Vec<String>| if list.is_empty() { theirs } else { list.to_vec() };
    let (valid, invalid): (Vec<_>, Vec<_>) = host.words("nameserver").into_iter().partition(|server| {
        // A scoped address (`fe80::1%eth0`) is one too.
        server.split('%').next().unwrap_or_default().parse::<IpAddr>().is_ok()
    });
    let mut servers = given(dns, valid);
    let mut search = given(search, host.search());
    search.retain(|domain| domain != ".");
    let from_user = !options.is_empty();
    let mut options = given(options, host.words("options"));
    let mut notes = String::new();
    let transform = if internal {
        " (internal resolver)"
    } else if record.is_host_network() || record.networks.is_empty() {
        ""
    } else {
        " (legacy)"
    };
    let _ = writeln!(notes, "# Based on host file: '{}'{transform}", host.path);
    if internal {
        let shown = |server: String| if dns.is_empty() { format!("host({server})") } else { server };
        let mut outside: Vec<String> = servers.drain(..).map(shown).collect();
        if outside.is_empty() {
            outside = DEFAULTS.map(str::to_owned).to_vec();
            notes.push_str("# Used default nameservers.\n");
        }
        let _ = writeln!(notes, "# ExtServers: [{}]", outside.join(" "));
        servers.push(INTERNAL.into());
        options.retain(|option| option.strip_prefix("ndots:").is_none_or(|n| n.parse::<u32>().is_ok()));
    } else if dns.is_empty() && transform == " (legacy)" {
        let has_v6 = record.networks.values().any(|network| !network.settings.global_ipv6_address.is_empty());
        let reached = |ip: IpAddr| !ip.is_loopback() && (has_v6 || ip.is_ipv4());
        servers.retain(|server| server.parse::<IpAddr>().is_ok_and(reached));
        if servers.is_empty() {
            servers = DEFAULTS.map(str::to_owned).to_vec();
            notes.push_str("# Used default nameservers.\n");
        }
    }
    if !invalid.is_empty() {
        let _ = writeln!(notes, "# Invalid nameservers: [{}]", invalid.join(" "));
    }
    let overrides = [(&record.host.dns, "nameservers"), (&record.host.dns_search, "search")];
    let overrides = overrides.into_iter().chain([(&record.host.dns_options, "options")]);
    let overrides: Vec<_> = overrides.filter(|(list, _)| !list.is_empty()).map(|(_, name)| name).collect();
    let _ = writeln!(notes, "# Overrides: [{}]", overrides.join(" "));
    let has_ndots = options.iter().any(|option| option == "ndots" || option.starts_with("ndots:"));
    let ndots = match (has_ndots, internal) {
        (true, _) => Some(if from_user { "override" } else { "host" }),
        (false, true) => {
            options.push("ndots:0".into());
            Some("internal")
        }
        (false, false) => None,
    };
    if let Some(from) = ndots {
        let _ = writeln!(notes, "# Option ndots from: {from}");
    }

    let mut text = String::from(
        "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n\
         # has been modified.\n\n",
    );
    for server in &servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    for (keyword, words) in [("search", &search), ("options", &options)] {
        if !words.is_empty() {
            let _ = writeln!(text, "{keyword} {}", words.join(" "));
        }
    }
    for line in host.others() {
        let _ = writeln!(text, "{line}");
    }
    text.push('\n');
    text.push_str(&notes);
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::record::Attachment;

    const HEAD: &str = "# Generated by Docker Engine.\n# This file can be edited; Docker Engine will not make further changes once it\n# has been modified.\n\n";

    fn host(text: &str) -> Host {
        Host { path: PATH.into(), text: text.into() }
    }

    fn on(network: &str) -> Record {
        let mut record = Record::default();
        record.networks.insert(network.into(), Attachment::default());
        record
    }

    fn tail(record: &Record, of: &str, internal: bool) -> String {
        let text = text(record, &host(of), internal).expect("text");
        text.strip_prefix(HEAD).expect("head").to_owned()
    }

    /// Recorded from dockerd 28.5.2.
    #[test]
    fn the_text_is_dockers() {
        let plain = "nameserver 10.255.255.53\n";
        assert_eq!(
            tail(&on("bridge"), plain, false),
            "nameserver 10.255.255.53\n\n# Based on host file: '/etc/resolv.conf' (legacy)\n# Overrides: []\n"
        );
        assert_eq!(
            tail(&on("a"), plain, true),
            "nameserver 127.0.0.11\noptions ndots:0\n\n# Based on host file: '/etc/resolv.conf' (internal resolver)\n\
             # ExtServers: [host(10.255.255.53)]\n# Overrides: []\n# Option ndots from: internal\n"
        );
        let mut record = on("a");
        record.host.dns = vec!["9.9.9.9".into(), "8.8.4.4".into()];
        record.host.dns_search = vec!["x.y".into()];
        record.host.dns_options = vec!["ndots:3".into()];
        assert_eq!(
            tail(&record, plain, true),
            "nameserver 127.0.0.11\nsearch x.y\noptions ndots:3\n\n\
             # Based on host file: '/etc/resolv.conf' (internal resolver)\n# ExtServers: [9.9.9.9 8.8.4.4]\n\
             # Overrides: [nameservers search options]\n# Option ndots from: override\n"
        );
        record.host.dns_options = vec!["ndots:x".into(), "zz".into()];
        assert!(tail(&record, plain, true).contains("\noptions zz ndots:0\n"));
        record.host.dns_search = vec![".".into()];
        assert!(!tail(&record, "search a.b\n", true).contains("\nsearch "));
        record.host.network_mode = "host".into();
        record.host.dns = vec!["9.9.9.9".into()];
        assert!(tail(&record, plain, false).contains("\n# Based on host file: '/etc/resolv.conf'\n"));
    }

    #[test]
    fn servers_that_a_container_cannot_reach_are_left_out() {
        let text =
            "domain d\nsearch a.example b\nnameserver 127.0.0.1\nnameserver fd00::53\nnameserver zz\nsortlist x\n";
        assert_eq!(
            tail(&on("bridge"), text, false),
            "nameserver 8.8.8.8\nnameserver 8.8.4.4\nsearch a.example b\nsortlist x\n\n\
             # Based on host file: '/etc/resolv.conf' (legacy)\n# Used default nameservers.\n\
             # Invalid nameservers: [zz]\n# Overrides: []\n"
        );
        assert!(tail(&on("a"), text, true).contains("# ExtServers: [host(127.0.0.1) host(fd00::53)]\n"));
        assert!(tail(&on("bridge"), "options ndots:2\n", false).contains("# Option ndots from: host\n"));
    }

    #[test]
    fn a_name_server_that_is_no_address_is_refused() {
        let mut bad = on("bridge");
        bad.host.dns = vec!["zz".into()];
        assert_eq!(
            text(&bad, &host(""), false).expect_err("zz").message,
            "bad nameserver address zz: ParseAddr(\"zz\"): unable to parse IP"
        );
    }
}
