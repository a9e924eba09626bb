// SPDX-License-Identifier: Apache-2.0
//! The three files that Arca keeps for a container: hostname, hosts, resolv.conf. Bind-mounted into it, written at start;
//! hosts and resolv.conf again at connect and disconnect (in place: a mount follows the file, not its name).

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    containers::{Record, networks::on_user_network},
    http::{ApiError, ApiResult},
};

/// Docker's order of what every hosts file begins with.
const LOCAL_NAMES: &[(&str, &str)] = &[
    ("127.0.0.1", "localhost"),
    ("::1", "localhost ip6-localhost ip6-loopback"),
    ("fe00::", "ip6-localnet"),
    ("ff00::", "ip6-mcastprefix"),
    ("ff02::1", "ip6-allnodes"),
    ("ff02::2", "ip6-allrouters"),
];

/// Names of the three files in the container's folder, and where they appear.
pub const FILES: [(&str, &str); 3] =
    [("resolv.conf", "/etc/resolv.conf"), ("hostname", "/etc/hostname"), ("hosts", "/etc/hosts")];

/// What resolv.conf had when it was last written here: a workload's own changes are left alone.
const WRITTEN: &str = "resolv.conf.written";

/// Checks `--add-host` and `--dns`.
///
/// # Errors
/// 400 with Docker's texts.
pub fn validate(record: &Record) -> ApiResult<()> {
    for extra in record.host.extra_hosts.iter().flatten() {
        split_extra(extra)?;
    }
    Ok(())
}

/// Reads `name:ip` or `name=ip`; the address may be bracketed.
fn split_extra(extra: &str) -> ApiResult<(String, String)> {
    let split = extra.split_once('=').or_else(|| extra.split_once(':'));
    let Some((name, address)) = split.filter(|(name, _)| !name.is_empty()) else {
        return Err(ApiError::bad_request(format!("bad format for add-host: \"{extra}\"")));
    };
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(address);
    if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(ApiError::bad_request(format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok((name.to_owned(), bare.to_owned()))
}

/// Text of /etc/hosts.
pub fn hosts(record: &Record) -> String {
    let mut text = String::new();
    if record.is_host_network() {
        text = fs::read_to_string("/etc/hosts").unwrap_or_default();
    } else {
        for (address, names) in LOCAL_NAMES {
            let _ = writeln!(text, "{address}\t{names}");
        }
    }
    let gateway = record.networks.values().map(|network| network.settings.gateway.as_str()).find(|ip| !ip.is_empty());
    for extra in record.host.extra_hosts.iter().flatten() {
        // Checked at create; a gateway that is not there yet leaves its line out.
        let Ok((name, address)) = split_extra(extra) else { continue };
        let address = if address == "host-gateway" { gateway.unwrap_or("").to_owned() } else { address };
        if !address.is_empty() {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    let (hostname, domain) = (&record.config.hostname, &record.config.domainname);
    let names = match hostname.split_once('.') {
        _ if !domain.is_empty() => format!("{hostname}.{domain} {hostname}"),
        Some((short, _)) => format!("{hostname} {short}"),
        None => hostname.clone(),
    };
    for network in record.networks.values() {
        for address in [&network.settings.ip_address, &network.settings.global_ipv6_address] {
            if !address.is_empty() {
                let _ = writeln!(text, "{address}\t{names}");
            }
        }
    }
    text
}

/// Text of /etc/resolv.conf. `host` is the host's own; `user_network` says that 127.0.0.11 answers.
///
/// # Errors
/// 500 with Docker's text for a name server that is no address.
pub fn resolv_conf(record: &Record, host: &str, user_network: bool) -> ApiResult<String> {
    if record.is_host_network() && record.host.dns.is_empty() {
        return Ok(host.to_owned());
    }
    let words = |keyword: &str| -> Vec<String> {
        let lines = host.lines().filter_map(|line| line.trim().strip_prefix(keyword));
        lines.flat_map(str::split_whitespace).map(str::to_owned).collect()
    };
    for server in &record.host.dns {
        if server.parse::<IpAddr>().is_err() {
            return Err(ApiError::internal(format!(
                "bad nameserver address {server}: ParseAddr(\"{server}\"): unable to parse IP"
            )));
        }
    }
    let outside: Vec<String> = if record.host.dns.is_empty() {
        let loopback = |server: &String| server.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
        words("nameserver").into_iter().filter(|server| !loopback(server)).collect()
    } else {
        record.host.dns.clone()
    };
    let search = if record.host.dns_search.is_empty() { words("search") } else { record.host.dns_search.clone() };
    let search: Vec<String> = if search == ["."] { Vec::new() } else { search };
    let mut options =
        if record.host.dns_options.is_empty() { words("options") } else { record.host.dns_options.clone() };
    let mut text = String::new();
    if user_network {
        text.push_str("nameserver 127.0.0.11\n");
        if !options.iter().any(|option| option.starts_with("ndots:")) {
            options.push("ndots:0".into());
        }
    } else {
        for server in &outside {
            let _ = writeln!(text, "nameserver {server}");
        }
    }
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    if !options.is_empty() {
        let _ = writeln!(text, "options {}", options.join(" "));
    }
    if user_network {
        let _ = writeln!(text, "\n# ExtServers: [{}]", outside.join(" "));
    }
    Ok(text)
}

/// Writes the three files into `folder`.
///
/// # Errors
/// As [`resolv_conf`]; 500 for the disk's faults.
pub fn write_all(record: &Record, folder: &Path, user_network: bool) -> ApiResult<()> {
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    fs::write(folder.join("hostname"), format!("{}\n", record.config.hostname))?;
    write_resolv_conf(folder, &resolv_conf(record, &host, user_network)?)?;
    write_hosts(record, folder)?;
    Ok(())
}

/// Writes what follows the networks into `folder`, in place: hosts, and resolv.conf unless somebody else has written it.
/// A container that joins its first user network asks 127.0.0.11 from then on.
///
/// # Errors
/// As `write(2)`.
pub fn write_hosts(record: &Record, folder: &Path) -> io::Result<()> {
    fs::write(folder.join("hosts"), hosts(record))?;
    let host = fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let read = |name| fs::read(folder.join(name)).unwrap_or_default();
    let (present, written) = (read("resolv.conf"), read(WRITTEN));
    match resolv_conf(record, &host, on_user_network(record)) {
        Ok(text) if present == written && present != text.as_bytes() => write_resolv_conf(folder, &text),
        // A bad `--dns` was refused at start.
        _ => Ok(()),
    }
}

fn write_resolv_conf(folder: &Path, text: &str) -> io::Result<()> {
    fs::write(folder.join("resolv.conf"), text)?;
    fs::write(folder.join(WRITTEN), text)
}

/// The three files on the host.
pub fn paths(folder: &Path) -> impl Iterator<Item = (PathBuf, &'static str)> {
    FILES.into_iter().map(move |(name, target)| (folder.join(name), target))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{containers::record::Attachment, docker::network::EndpointSettings};

    fn record() -> Record {
        let settings = EndpointSettings { ip_address: "172.18.0.2".into(), ..EndpointSettings::default() };
        let mut record = Record::default();
        record.config.hostname = "web".into();
        record.networks.insert("n".into(), Attachment { settings, ..Attachment::default() });
        record
    }

    #[test]
    fn hosts_end_with_the_containers_own_lines() {
        let mut record = record();
        record.host.extra_hosts = Some(vec!["db:10.0.0.1".into(), "six=[::5]".into()]);
        let text = hosts(&record);
        assert!(text.starts_with("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"), "{text}");
        assert!(text.ends_with("10.0.0.1\tdb\n::5\tsix\n172.18.0.2\tweb\n"), "{text}");
        record.config.domainname = "ex.com".into();
        assert!(hosts(&record).ends_with("172.18.0.2\tweb.ex.com web\n"));
    }

    #[test]
    fn resolvers_of_user_networks_and_of_the_default_bridge() {
        let record = record();
        let host = "nameserver 127.0.0.53\nnameserver 10.0.0.53\nsearch a.example\noptions edns0\n";
        assert_eq!(
            resolv_conf(&record, host, true).expect("user"),
            "nameserver 127.0.0.11\nsearch a.example\noptions edns0 ndots:0\n\n# ExtServers: [10.0.0.53]\n"
        );
        assert_eq!(
            resolv_conf(&record, host, false).expect("bridge"),
            "nameserver 10.0.0.53\nsearch a.example\noptions edns0\n"
        );
        let mut bad = record;
        bad.host.dns = vec!["zz".into()];
        assert_eq!(
            resolv_conf(&bad, host, false).expect_err("zz").message,
            "bad nameserver address zz: ParseAddr(\"zz\"): unable to parse IP"
        );
    }

    #[test]
    fn resolv_conf_follows_the_networks_unless_the_workload_wrote_it() {
        let folder = tempfile::tempdir().expect("folder");
        let text = || fs::read_to_string(folder.path().join("resolv.conf")).expect("resolv.conf");
        let mut record = Record::default();
        record.host.dns = vec!["10.0.0.53".into()];
        record.networks.insert("bridge".into(), Attachment::default());
        write_all(&record, folder.path(), on_user_network(&record)).expect("start");
        assert!(text().starts_with("nameserver 10.0.0.53\n"), "{}", text());
        record.networks.insert("n".into(), Attachment::default());
        write_hosts(&record, folder.path()).expect("connect");
        assert!(text().starts_with("nameserver 127.0.0.11\n"), "{}", text());
        record.networks.remove("n");
        write_hosts(&record, folder.path()).expect("disconnect");
        assert!(text().starts_with("nameserver 10.0.0.53\n"), "{}", text());
        fs::write(folder.path().join("resolv.conf"), "nameserver 9.9.9.9\n").expect("the workload");
        record.networks.insert("n".into(), Attachment::default());
        write_hosts(&record, folder.path()).expect("connect");
        assert_eq!(text(), "nameserver 9.9.9.9\n");
    }

    #[test]
    fn faulty_hosts_are_refused_in_dockers_words() {
        assert_eq!(split_extra("a.b").expect_err("no address").message, "bad format for add-host: \"a.b\"");
        assert_eq!(split_extra("a:zz").expect_err("zz").message, "invalid IP address in add-host: \"zz\"");
    }
}
