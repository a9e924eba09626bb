// SPDX-License-Identifier: Apache-2.0
//! `--link` on the default bridge, which has no names of its own: lines in the hosts file and variables in the
//! environment of the container that links. (Links on a user network are names that arca-netd answers to one container
//! only.) A link means a container, not its name: it follows renames, and its address when the container starts again.

use std::{collections::BTreeMap, sync::Arc};

use crate::{
    containers::{Container, Record, files, networks, record::Link},
    docker::ports::{Port, Protocol},
    engine::Engine,
    http::{ApiError, ApiResult},
};

/// Name of the network that these links are on.
const BRIDGE: &str = "bridge";

/// Reads `NAME[:ALIAS]`, or the form inspect shows, `/NAME:/PARENT/ALIAS`.
///
/// # Errors
/// Docker's text.
pub fn parse(text: &str) -> Result<(String, String), String> {
    if text.is_empty() {
        return Err("empty string specified for links".into());
    }
    match text.split(':').collect::<Vec<_>>().as_slice() {
        [name] => Ok(((*name).to_owned(), (*name).to_owned())),
        [name, alias] => match name.strip_prefix('/') {
            Some(name) => Ok((name.to_owned(), alias.rsplit('/').next().unwrap_or(alias).to_owned())),
            None => Ok(((*name).to_owned(), (*alias).to_owned())),
        },
        _ => Err(format!("bad format for links: {text}")),
    }
}

/// Turns the links asked for at create into containers, by alias; the first of two with one alias counts.
///
/// # Errors
/// 400 `could not get container for …`, or for a container on the host's network.
pub fn register(engine: &Engine, record: &Record) -> ApiResult<BTreeMap<String, Link>> {
    let mut links = BTreeMap::new();
    if !networks::is_predefined(&record.host.network_mode) {
        return Ok(links);
    }
    for text in record.host.links.iter().flatten() {
        let (name, alias) = parse(text).map_err(ApiError::internal)?;
        let missing = |name: &str, error: ApiError| {
            ApiError::bad_request(format!("could not get container for {name}: {}", error.message))
        };
        let mut child = engine.container(&name).map_err(|error| missing(&name, error))?;
        // Who shares another's network is reached at the other's address.
        while let Some(other) = child.with(|record| record.network_of().map(str::to_owned)) {
            child = engine.container(&other).map_err(|error| missing(&other, error))?;
        }
        if child.with(Record::is_host_network) {
            return Err(ApiError::bad_request(
                "conflicting options: host type networking can't be used with links. This would result in undefined behavior",
            ));
        }
        let name = child.with(|child| child.name.clone());
        links.entry(alias).or_insert_with(|| Link { id: child.id.clone(), name });
    }
    Ok(links)
}

/// As inspect shows them: `/NAME:/PARENT/ALIAS`.
pub fn shown(engine: &Engine, record: &Record) -> Option<Vec<String>> {
    let links = record.links.iter().map(|(alias, link)| format!("/{}:/{}/{alias}", name(engine, link), record.name));
    (!record.links.is_empty()).then(|| links.collect())
}

/// What the linked container is called now, or was when it was there.
fn name(engine: &Engine, link: &Link) -> String {
    match engine.container(&link.id) {
        Ok(child) => child.with(|child| child.name.clone()),
        Err(_) => link.name.clone(),
    }
}

/// Names that containers have by being linked to: `/PARENT/ALIAS`, by id, in order.
pub fn names(engine: &Engine) -> BTreeMap<String, Vec<String>> {
    let mut names: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for parent in engine.containers.all() {
        parent.with(|parent| {
            for (alias, link) in &parent.links {
                names.entry(link.id.clone()).or_default().push(format!("/{}/{alias}", parent.name));
            }
        });
    }
    names.values_mut().for_each(|names| names.sort());
    names
}

/// What a start needs of the linked containers: lines of the hosts file, and the environment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Linked {
    /// Address and names.
    pub hosts: Vec<(String, String)>,
    /// `KEY=VALUE`.
    pub environment: Vec<String>,
}

/// Looks at the linked containers, which must run and be on the default bridge.
///
/// # Errors
/// 500 with Docker's texts.
pub fn look(engine: &Engine, record: &Record) -> ApiResult<Linked> {
    let mut linked = Linked::default();
    if !record.networks.contains_key(BRIDGE) {
        return Ok(linked);
    }
    for (alias, link) in &record.links {
        let child = engine.container(&link.id).ok().map(|child| child.record());
        let Some(child) = child.as_ref().filter(|child| child.state.is_running()) else {
            let name = name(engine, link);
            let text = format!("Cannot link to a non running container: /{name} AS /{}/{alias}", record.name);
            return Err(ApiError::internal(text));
        };
        let Some(network) = child.networks.get(BRIDGE) else {
            let text = format!("container {} not attached to default bridge network", child.id);
            return Err(ApiError::internal(text));
        };
        let mut names = format!("{alias} {}", child.config.hostname);
        if *alias != child.name {
            names = format!("{names} {}", child.name);
        }
        let settings = &network.settings;
        for address in [&settings.ip_address, &settings.global_ipv6_address].into_iter().filter(|a| !a.is_empty()) {
            linked.hosts.push((address.clone(), names.clone()));
        }
        linked.environment.extend(environment(record, alias, child, &settings.ip_address));
    }
    Ok(linked)
}

/// Variables of one link, as Docker makes them: the lowest TCP port, each port, runs of adjacent ports, the name, and the
/// other's own environment.
fn environment(record: &Record, alias: &str, child: &Record, address: &str) -> Vec<String> {
    let prefix = alias.to_uppercase().replace('-', "_");
    let mut ports: Vec<Port> = child.config.exposed_ports.keys().filter_map(|key| Port::parse(key).ok()).collect();
    // TCP comes first, whatever the numbers.
    ports.sort_by_key(|port| (port.protocol != Protocol::Tcp, port.number));
    let mut text = Vec::new();
    let key = |port: &Port| format!("{prefix}_PORT_{}_{}", port.number, port.protocol.name().to_uppercase());
    let url = |port: &Port| format!("{}://{address}:{}", port.protocol.name(), port.number);
    if let Some(first) = ports.first() {
        text.push(format!("{prefix}_PORT={}", url(first)));
    }
    let adjacent = |a: &Port, b: &Port| a.protocol == b.protocol && a.number.checked_add(1) == Some(b.number);
    for run in ports.chunk_by(adjacent).filter(|run| run.len() > 1) {
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let key = key(first);
        text.push(format!("{key}_START={}", url(first)));
        text.push(format!("{key}_PORT_START={}", first.number));
        text.push(format!("{key}_END={}", url(last)));
        text.push(format!("{key}_PORT_END={}", last.number));
    }
    for port in &ports {
        let key = key(port);
        text.push(format!("{key}={}", url(port)));
        text.push(format!("{key}_ADDR={address}"));
        text.push(format!("{key}_PORT={}", port.number));
        text.push(format!("{key}_PROTO={}", port.protocol.name()));
    }
    text.push(format!("{prefix}_NAME=/{}/{alias}", record.name));
    let theirs = child.config.env.iter().flatten().filter_map(|entry| entry.split_once('='));
    text.extend(
        theirs
            .filter(|(name, _)| !matches!(*name, "HOME" | "PATH"))
            .map(|(name, value)| format!("{prefix}_ENV_{name}={value}")),
    );
    text
}

/// A container has started: those that run and link to it learn its address.
pub fn follow(engine: &Engine, child: &Record) {
    let Some(address) = child.networks.get(BRIDGE).map(|network| &network.settings.ip_address) else { return };
    for parent in engine.containers.all() {
        let aliases: Vec<String> = parent.with(|parent| {
            let to_it = parent.links.iter().filter(|(_, link)| link.id == child.id && parent.state.is_running());
            to_it.map(|(alias, _)| alias.clone()).collect()
        });
        for alias in aliases {
            if let Err(error) = files::moved(&engine.folder(&parent.id), &alias, address) {
                tracing::warn!(container_id = parent.id, %error, "the address of a linked container");
            }
        }
    }
}

/// `docker rm --link PARENT/ALIAS`.
///
/// # Errors
/// 404 if there is no such link.
pub async fn remove(engine: &Arc<Engine>, parent: &Arc<Container>, alias: &str) -> ApiResult<()> {
    let _op = parent.ops.lock().await;
    let name = parent.with(|record| record.name.clone());
    let removed = parent.update(engine, |record| record.links.remove(alias)).await?;
    if removed.is_none() {
        return Err(ApiError::not_found(format!("No such container: {name}/{alias}")));
    }
    if parent.with(|record| record.state.is_running()) {
        files::unlinked(&engine.folder(&parent.id), alias)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_in_every_form() {
        assert_eq!(parse("db"), Ok(("db".into(), "db".into())));
        assert_eq!(parse("db:dd"), Ok(("db".into(), "dd".into())));
        assert_eq!(parse("/db:/web/dd"), Ok(("db".into(), "dd".into())));
        assert_eq!(parse("a:b:c"), Err("bad format for links: a:b:c".into()));
        assert_eq!(parse(""), Err("empty string specified for links".into()));
    }

    /// Recorded from dockerd 28.5.2.
    #[test]
    fn the_environment_is_dockers() {
        let mut child = Record::default();
        for port in ["53/udp", "80/tcp", "5432/tcp", "5433/tcp"] {
            child.config.exposed_ports.insert(port.into(), serde_json::json!({}));
        }
        child.config.env = Some(vec!["FOO=bar".into(), "PATH=/bin".into(), "A=b=c".into()]);
        let parent = Record { name: "web".into(), ..Record::default() };
        let got = environment(&parent, "d-d", &child, "172.17.0.2");
        let wanted = [
            "D_D_PORT=tcp://172.17.0.2:80",
            "D_D_PORT_53_UDP=udp://172.17.0.2:53",
            "D_D_PORT_80_TCP_ADDR=172.17.0.2",
            "D_D_PORT_5432_TCP_START=tcp://172.17.0.2:5432",
            "D_D_PORT_5432_TCP_PORT_START=5432",
            "D_D_PORT_5432_TCP_END=tcp://172.17.0.2:5433",
            "D_D_PORT_5432_TCP_PORT_END=5433",
            "D_D_PORT_5433_TCP_PORT=5433",
            "D_D_PORT_5433_TCP_PROTO=tcp",
            "D_D_NAME=/web/d-d",
            "D_D_ENV_FOO=bar",
            "D_D_ENV_A=b=c",
        ];
        for entry in wanted {
            assert!(got.contains(&entry.to_owned()), "{entry} is missing: {got:?}");
        }
        assert!(!got.iter().any(|entry| entry.contains("PATH")), "{got:?}");
    }
}
