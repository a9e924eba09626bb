// SPDX-License-Identifier: Apache-2.0
//! Containers on networks of the native backend: what is asked of arca-netd before they start, and the lines of their
//! hosts files by which they know each other. There is no DNS server on such a network.

use std::{
    collections::BTreeSet,
    fs::OpenOptions,
    io::{self, Write as _},
    path::Path,
};

use arca_proto::netd::v1 as netd;

use crate::{
    containers::{Record, networks},
    engine::Engine,
    http::ApiResult,
    machines::{Network, Nic},
};

/// Name of the backend in arca-netd's answers.
const BACKEND: &str = "vmnet";
/// End of each line that is kept here; all other lines are the user's and stay.
const MARK: &str = "\t# vmnet";

/// Learns which backend carries each network of a container that is about to start.
///
/// # Errors
/// 501 for what its backend cannot do, before anything is made.
pub async fn prepare(engine: &Engine, record: &mut Record) -> ApiResult<()> {
    if record.without_endpoints() {
        return Ok(());
    }
    let mut answers = Vec::new();
    for (name, wish) in &record.networks {
        let checked = engine.netd.clone().check_attachment(networks::request(record, name, wish, None)).await;
        match checked {
            Ok(answer) => answers.push((name.clone(), answer.into_inner())),
            Err(status) if status.code() == tonic::Code::Unimplemented => return Err(status.into()),
            // Whatever else is wrong is told by the attach itself, with its step.
            Err(_) => {}
        }
    }
    for (name, answer) in answers {
        if let Some(network) = record.networks.get_mut(&name) {
            (network.backend, network.wire, network.mtu) = (answer.backend, answer.wire, answer.mtu);
        }
    }
    Ok(())
}

/// The kind of network its machine needs. Native interfaces come from outside, so nothing has to run inside for them.
pub fn machine_network(record: &Record) -> Network {
    if record.is_host_network() {
        return Network::Host;
    }
    let native = record.networks.values().find(|network| network.backend == BACKEND);
    native.map_or(Network::Links, |network| Network::Native(Nic { wire: network.wire.clone(), mtu: network.mtu }))
}

/// Tells the containers on the native networks of `record` who is there now.
pub async fn refresh(engine: &Engine, record: &Record) {
    for (name, _) in record.networks.iter().filter(|(_, network)| network.backend == BACKEND) {
        refresh_network(engine, name).await;
    }
}

/// As [`refresh`], for all native networks that these endpoints are on.
pub async fn refresh_all(engine: &Engine, endpoints: &[netd::Endpoint]) {
    let native = endpoints.iter().filter(|endpoint| endpoint.backend == BACKEND);
    let networks: BTreeSet<&str> = native.map(|endpoint| endpoint.network_id.as_str()).collect();
    for network in networks {
        refresh_network(engine, network).await;
    }
}

async fn refresh_network(engine: &Engine, name_or_id: &str) {
    // What is read inside the lock is what is written last.
    let _alone = engine.hosts.lock().await;
    let request = netd::GetNetworkRequest { name_or_id: name_or_id.to_owned() };
    let network = match engine.netd.clone().get_network(request).await {
        Ok(network) => network.into_inner(),
        Err(status) => {
            tracing::warn!(network = name_or_id, error = status.message(), "hosts files may be out of date");
            return;
        }
    };
    let name = network.spec.map(|spec| spec.name).unwrap_or_default();
    let lines: Vec<String> = network.endpoints.iter().flat_map(|endpoint| lines(endpoint, &name)).collect();
    for endpoint in &network.endpoints {
        let path = engine.folder(&endpoint.workload_id).join("hosts");
        match put(&path, &lines) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(container_id = endpoint.workload_id, %error, "its hosts file is out of date");
            }
            _ => {}
        }
    }
}

/// The hosts lines of an endpoint, one per address: its names, plain and with the network's name behind. None where it
/// has no names.
fn lines(endpoint: &netd::Endpoint, network: &str) -> Vec<String> {
    let usable = |name: &&String| !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#');
    let names: Vec<&String> = endpoint.dns_names.iter().filter(usable).collect();
    let Some(first) = names.first() else { return Vec::new() };
    let plain = names.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(" ");
    let qualified = if usable(&&network.to_owned()) { format!(" {first}.{network}") } else { String::new() };
    let addresses = [&endpoint.address_v4, &endpoint.address_v6].into_iter().filter_map(|net| net.split('/').next());
    let addresses = addresses.filter(|address| !address.is_empty());
    addresses.map(|address| format!("{address}\t{plain}{qualified}{MARK}")).collect()
}

/// Replaces the lines that are kept here. In place, for a mount follows the file; over what is there instead of after
/// emptying it, for somebody may be reading.
fn put(path: &Path, lines: &[String]) -> io::Result<()> {
    let before = std::fs::read_to_string(path)?;
    let kept = before.lines().filter(|line| !line.ends_with(MARK));
    let mut text: String = kept.chain(lines.iter().map(String::as_str)).flat_map(|line| [line, "\n"]).collect();
    if text == before {
        return Ok(());
    }
    let mut file = OpenOptions::new().write(true).open(path)?;
    let length = text.len();
    // Old text behind the new end would be read as lines of its own until it is cut off.
    let rest = before.len().saturating_sub(length);
    text.extend(std::iter::repeat_n('\n', rest));
    file.write_all(text.as_bytes())?;
    file.set_len(length as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn endpoint(address: &str, names: &[&str]) -> netd::Endpoint {
        netd::Endpoint {
            address_v4: address.into(),
            dns_names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..netd::Endpoint::default()
        }
    }

    #[test]
    fn a_line_has_every_name_and_the_first_one_qualified() {
        let both = |address: &str, v6: &str, names: &[&str]| {
            let endpoint = netd::Endpoint { address_v6: v6.into(), ..endpoint(address, names) };
            lines(&endpoint, "front")
        };
        assert_eq!(
            both("10.0.0.2/24", "fd00::2/64", &["web", "alias", "a # b"]),
            ["10.0.0.2\tweb alias web.front\t# vmnet", "fd00::2\tweb alias web.front\t# vmnet"]
        );
        assert_eq!(both("", "fd00::2/64", &["web"]), ["fd00::2\tweb web.front\t# vmnet"]);
        assert!(both("10.0.0.2/24", "", &[]).is_empty() && both("", "", &["web"]).is_empty());
    }

    #[test]
    fn only_own_lines_are_replaced_and_shrinking_leaves_nothing_behind() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("hosts");
        std::fs::write(&path, "127.0.0.1\tlocalhost\n10.9.9.9\tmine\n").expect("write");
        let of = |names: &[&str]| names.iter().map(|name| format!("10.0.0.2\t{name}{MARK}")).collect::<Vec<_>>();
        put(&path, &of(&["a-long-name-that-goes", "b"])).expect("put");
        put(&path, &of(&["c"])).expect("put");
        let text = std::fs::read_to_string(&path).expect("read");
        assert_eq!(text, "127.0.0.1\tlocalhost\n10.9.9.9\tmine\n10.0.0.2\tc\t# vmnet\n");
        put(&path, &[]).expect("put");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "127.0.0.1\tlocalhost\n10.9.9.9\tmine\n");
    }
}
