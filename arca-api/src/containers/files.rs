// SPDX-License-Identifier: Apache-2.0
//! The three files that Arca keeps for a container: hostname, hosts, resolv.conf. Bind-mounted into it and written at
//! start; connect and disconnect then change single lines of hosts, and resolv.conf unless somebody else has written it
//! (in place: a mount follows the file, not its name). What stands in resolv.conf is the business of [`super::resolv`].

use std::{
    fmt::Write as _,
    fs, io,
    net::IpAddr,
    path::{Path, PathBuf},
};

use crate::{
    containers::{Record, networks, resolv},
    docker::network::EndpointSettings,
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

/// Address in `--add-host` that stands for the host.
const HOST_GATEWAY: &str = "host-gateway";

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
    if bare != HOST_GATEWAY && bare.parse::<IpAddr>().is_err() {
        return Err(ApiError::bad_request(format!("invalid IP address in add-host: \"{address}\"")));
    }
    Ok((name.to_owned(), bare.to_owned()))
}

/// What is in a hosts file beside what the container's own record tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Others {
    /// Address of the host, for `host-gateway`.
    pub host: String,
    /// Containers on the default bridge that this one is linked to: address and names.
    pub links: Vec<(String, String)>,
}

/// Whether some `--add-host` means the host, whose address must then be known.
pub fn means_host(record: &Record) -> bool {
    let extra = record.host.extra_hosts.iter().flatten();
    extra.filter_map(|extra| split_extra(extra).ok()).any(|(_, address)| address == HOST_GATEWAY)
}

/// The container's own name as a hosts file has it: with its domain first.
fn own_names(record: &Record) -> String {
    let (hostname, domain) = (&record.config.hostname, &record.config.domainname);
    let short = hostname.split('.').next().unwrap_or(hostname);
    match domain.as_str() {
        "" if short == hostname => hostname.clone(),
        "" => format!("{hostname} {short}"),
        domain => format!("{hostname}.{domain} {short}"),
    }
}

/// The lines of one attachment.
fn own_lines(record: &Record, settings: &EndpointSettings) -> String {
    let names = own_names(record);
    let mut text = String::new();
    for address in [&settings.ip_address, &settings.global_ipv6_address].into_iter().filter(|a| !a.is_empty()) {
        let _ = writeln!(text, "{address}\t{names}");
    }
    text
}

/// Text of /etc/hosts.
pub fn hosts(record: &Record, others: &Others) -> String {
    let extra: Vec<_> = record.host.extra_hosts.iter().flatten().collect();
    if record.is_host_network() && extra.is_empty() {
        return fs::read_to_string("/etc/hosts").unwrap_or_default();
    }
    let mut text = String::new();
    for (address, names) in LOCAL_NAMES {
        let _ = writeln!(text, "{address}\t{names}");
    }
    for extra in extra {
        // Checked at create.
        let Ok((name, address)) = split_extra(extra) else { continue };
        let address = if address == HOST_GATEWAY { others.host.as_str() } else { &address };
        if !address.is_empty() {
            let _ = writeln!(text, "{address}\t{name}");
        }
    }
    for (address, names) in &others.links {
        let _ = writeln!(text, "{address}\t{names}");
    }
    for name in networks::order(record) {
        text.extend(record.networks.get(&name).map(|network| own_lines(record, &network.settings)));
    }
    text
}

/// Writes the three files into `folder`, before there are networks.
///
/// # Errors
/// 500 with Docker's text for a name server that is no address; 500 for the disk's faults.
pub fn write_all(record: &Record, folder: &Path, user_network: bool, others: &Others) -> ApiResult<()> {
    fs::write(folder.join("hostname"), format!("{}\n", record.config.hostname))?;
    let host = resolv::Host::read(record.is_host_network());
    write_resolv_conf(folder, &resolv::text(record, &host, user_network)?)?;
    write_hosts(record, folder, others)?;
    Ok(())
}

/// Writes hosts into `folder`: again once the networks are there.
///
/// # Errors
/// As `write(2)`.
pub fn write_hosts(record: &Record, folder: &Path, others: &Others) -> io::Result<()> {
    fs::write(folder.join("hosts"), hosts(record, others))
}

/// A running container has joined a network: its lines are added. The first user network makes it ask 127.0.0.11, which
/// stays so when it leaves them all.
///
/// # Errors
/// As `write(2)`.
pub fn joined(record: &Record, folder: &Path, settings: &EndpointSettings) -> io::Result<()> {
    edit_hosts(folder, |text| {
        if !text.is_empty() && !text.ends_with('\n') {
            text.push('\n');
        }
        text.push_str(&own_lines(record, settings));
    })?;
    let read = |name| fs::read(folder.join(name)).unwrap_or_default();
    let (present, written) = (read("resolv.conf"), read(WRITTEN));
    if present != written || !networks::on_user_network(record) {
        return Ok(());
    }
    match resolv::text(record, &resolv::Host::read(false), true) {
        Ok(text) if present != text.as_bytes() => write_resolv_conf(folder, &text),
        // A bad `--dns` was refused at start.
        _ => Ok(()),
    }
}

/// A running container has left a network: exactly its lines go.
///
/// # Errors
/// As `write(2)`.
pub fn left(record: &Record, folder: &Path, settings: &EndpointSettings) -> io::Result<()> {
    let own = own_lines(record, settings);
    edit_hosts(folder, |text| {
        let kept =
            text.split_inclusive('\n').filter(|line| !own.lines().any(|gone| gone == line.trim_end_matches('\n')));
        *text = kept.collect();
    })
}

/// A linked container has another address now: in lines whose first name is `alias`.
///
/// # Errors
/// As `write(2)`.
pub fn moved(folder: &Path, alias: &str, address: &str) -> io::Result<()> {
    edit_hosts(folder, |text| {
        let line = |line: &str| match names_first(line, alias) {
            Some(names) => format!("{address}\t{names}"),
            None => line.to_owned(),
        };
        *text = text.split_inclusive('\n').map(line).collect();
    })
}

/// A link is gone, and with it the lines whose first name is `alias`.
///
/// # Errors
/// As `write(2)`.
pub fn unlinked(folder: &Path, alias: &str) -> io::Result<()> {
    edit_hosts(folder, |text| {
        let kept = text.split_inclusive('\n').filter(|line| names_first(line, alias).is_none());
        *text = kept.collect();
    })
}

/// The names of a line whose first name is `alias`.
fn names_first<'a>(line: &'a str, alias: &str) -> Option<&'a str> {
    let (_, names) = line.split_once('\t')?;
    let rest = names.strip_prefix(alias)?;
    rest.starts_with([' ', '\t', '.', '\n']).then_some(names)
}

/// In place, and only if something changes.
fn edit_hosts(folder: &Path, edit: impl FnOnce(&mut String)) -> io::Result<()> {
    let path = folder.join("hosts");
    let before = match fs::read_to_string(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        text => text?,
    };
    let mut text = before.clone();
    edit(&mut text);
    if text == before { Ok(()) } else { fs::write(path, text) }
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
    use crate::containers::record::Attachment;

    fn at(address: &str) -> EndpointSettings {
        EndpointSettings { ip_address: address.into(), ..EndpointSettings::default() }
    }

    fn attached(settings: EndpointSettings) -> Attachment {
        Attachment { settings, ..Attachment::default() }
    }

    fn record() -> Record {
        let mut record = Record::default();
        record.config.hostname = "web".into();
        record.networks.insert("n".into(), attached(at("172.18.0.2")));
        record
    }

    #[test]
    fn hosts_end_with_extra_hosts_links_and_own_lines() {
        let mut record = record();
        record.host.extra_hosts = Some(vec!["db:10.0.0.1".into(), "six=[::5]".into(), "hg:host-gateway".into()]);
        let links = vec![("172.17.0.9".into(), "dd dbh db".into())];
        let others = Others { host: "192.0.2.1".into(), links };
        assert!(means_host(&record));
        assert_eq!(
            hosts(&record, &others),
            "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::\tip6-localnet\n\
             ff00::\tip6-mcastprefix\nff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n\
             10.0.0.1\tdb\n::5\tsix\n192.0.2.1\thg\n172.17.0.9\tdd dbh db\n172.18.0.2\tweb\n"
        );
    }

    #[test]
    fn own_names_have_their_domain_first() {
        let mut record = Record::default();
        let mut names = |hostname: &str, domain: &str| {
            record.config.hostname = hostname.into();
            record.config.domainname = domain.into();
            own_names(&record)
        };
        assert_eq!(names("hh", ""), "hh");
        assert_eq!(names("hh", "ex.com"), "hh.ex.com hh");
        assert_eq!(names("hh.ex.com", ""), "hh.ex.com hh");
        assert_eq!(names("hh.ex.com", "d.e"), "hh.ex.com.d.e hh");
    }

    #[test]
    fn networks_come_and_go_around_what_the_workload_wrote() {
        let folder = tempfile::tempdir().expect("folder");
        let text = || fs::read_to_string(folder.path().join("hosts")).expect("hosts");
        let mut record = record();
        write_hosts(&record, folder.path(), &Others::default()).expect("start");
        let edited = text() + "5.5.5.5 mine\n";
        fs::write(folder.path().join("hosts"), &edited).expect("the workload");
        record.networks.insert("other".into(), attached(at("10.0.0.2")));
        joined(&record, folder.path(), &at("10.0.0.2")).expect("connect");
        assert!(text().ends_with("172.18.0.2\tweb\n5.5.5.5 mine\n10.0.0.2\tweb\n"), "{}", text());
        left(&record, folder.path(), &at("172.18.0.2")).expect("disconnect");
        assert!(text().ends_with("ff02::2\tip6-allrouters\n5.5.5.5 mine\n10.0.0.2\tweb\n"), "{}", text());
    }

    #[test]
    fn a_linked_address_follows_its_container() {
        let folder = tempfile::tempdir().expect("folder");
        let hosts = folder.path().join("hosts");
        fs::write(&hosts, "10.0.0.1\tdd dbh db\n10.0.0.1\tddd\n# 1\tdd\n").expect("write");
        moved(folder.path(), "dd", "10.0.0.7").expect("moved");
        assert_eq!(fs::read_to_string(&hosts).expect("read"), "10.0.0.7\tdd dbh db\n10.0.0.1\tddd\n10.0.0.7\tdd\n");
    }

    #[test]
    fn resolv_conf_follows_the_first_user_network_unless_the_workload_wrote_it() {
        let folder = tempfile::tempdir().expect("folder");
        let text = || fs::read_to_string(folder.path().join("resolv.conf")).expect("resolv.conf");
        let mut record = Record::default();
        record.host.dns = vec!["10.0.0.53".into()];
        record.networks.insert("bridge".into(), Attachment::default());
        write_all(&record, folder.path(), networks::on_user_network(&record), &Others::default()).expect("start");
        assert!(text().contains("\nnameserver 10.0.0.53\n"), "{}", text());
        record.networks.insert("n".into(), Attachment::default());
        joined(&record, folder.path(), &at("10.0.0.2")).expect("connect");
        assert!(text().contains("\nnameserver 127.0.0.11\n"), "{}", text());
        record.networks.remove("n");
        left(&record, folder.path(), &at("10.0.0.2")).expect("disconnect");
        assert!(text().contains("\nnameserver 127.0.0.11\n"), "{}", text());
        write_all(&record, folder.path(), false, &Others::default()).expect("start again");
        fs::write(folder.path().join("resolv.conf"), "nameserver 9.9.9.9\n").expect("the workload");
        record.networks.insert("n".into(), Attachment::default());
        joined(&record, folder.path(), &at("10.0.0.2")).expect("connect");
        assert_eq!(text(), "nameserver 9.9.9.9\n");
    }

    #[test]
    fn faulty_hosts_are_refused_in_dockers_words() {
        assert_eq!(split_extra("a.b").expect_err("no address").message, "bad format for add-host: \"a.b\"");
        assert_eq!(split_extra("a:zz").expect_err("zz").message, "invalid IP address in add-host: \"zz\"");
    }
}
