// SPDX-License-Identifier: Apache-2.0
//! Containers as `inspect` and `ps` show them.

use std::{collections::BTreeMap, path::Path};

use serde_json::{Map, Value, json};

use crate::{
    containers::{Container, Record, Status, links},
    docker::{
        health::HealthStatus,
        host_config::HostConfig,
        network::EndpointSettings,
        ports::Port,
        time::{human, now, rfc3339},
    },
    engine::Engine,
    http::{ApiError, ApiResult, filters::Filters, frame::ApiVersion},
};

/// `GET /containers/ID/json`.
pub fn inspect(engine: &Engine, container: &Container, version: ApiVersion) -> Value {
    let mut record = container.record();
    if version < ApiVersion::v1(45) {
        // Older clients find the short id among the aliases of user networks.
        let short = record.short_id().to_owned();
        for (_, network) in record.networks.iter_mut().filter(|(name, _)| !super::networks::is_predefined(name)) {
            network.settings.aliases.get_or_insert_default().push(short.clone());
        }
    }
    let record = record;
    let folder = engine.folder(&record.id);
    let files = engine.folder(record.files_owner());
    let path = |folder: &Path, name: &str| match record.state.started_at {
        0 => String::new(),
        _ => text(&folder.join(name)),
    };
    let command = record.config.command_line();
    let execs = engine.execs.of(&record.id);
    let name = format!("/{}", record.name);
    json!({
        "Id": record.id,
        "Created": rfc3339(record.created),
        "Path": command.first(),
        "Args": command.get(1..).unwrap_or_default(),
        "State": state(&record),
        "Image": record.image_id,
        "ResolvConfPath": path(&files, "resolv.conf"),
        "HostnamePath": path(&files, "hostname"),
        "HostsPath": path(&files, "hosts"),
        "LogPath": if record.host.log_config["Type"] == "json-file" { path(&folder, "output.log") } else { String::new() },
        "Name": name,
        "RestartCount": record.restart_count,
        "Driver": "overlay2",
        "Platform": "linux",
        "MountLabel": "",
        "ProcessLabel": "",
        "AppArmorProfile": "",
        "ExecIDs": if execs.is_empty() { Value::Null } else { json!(execs) },
        "HostConfig": HostConfig { links: links::shown(engine, &record), ..record.host.clone() },
        "GraphDriver": {
            "Data": {
                "ID": record.id,
                "LowerDir": record.layers.iter().map(|layer| text(layer)).collect::<Vec<_>>().join(":"),
                "MergedDir": text(&folder.join("bundle/rootfs")),
                "UpperDir": text(&folder.join("upper")),
                "WorkDir": text(&folder.join("work")),
            },
            "Name": "overlay2",
        },
        "Mounts": mounts(&record),
        "Config": record.config,
        "NetworkSettings": network_settings(&record, &text(&engine.paths.machine_sockets(record.machine()))),
    })
}

fn text(path: &Path) -> String {
    path.to_string_lossy().into_owned()
}

fn state(record: &Record) -> Value {
    let state = &record.state;
    let mut out = json!({
        "Status": state.status.word(),
        "Running": state.is_running() || state.status == Status::Restarting,
        "Paused": state.status == Status::Paused,
        "Restarting": state.status == Status::Restarting,
        "OOMKilled": state.oom_killed,
        "Dead": state.status == Status::Dead,
        "Pid": state.pid,
        "ExitCode": state.exit_code,
        "Error": state.error,
        "StartedAt": rfc3339(state.started_at),
        "FinishedAt": rfc3339(state.finished_at),
    });
    if let Some(health) = &state.health {
        let log = health.log.iter().map(|run| {
            json!({"Start": rfc3339(run.start), "End": rfc3339(run.end), "ExitCode": run.exit_code, "Output": run.output})
        });
        out["Health"] = json!({
            "Status": health.status.word(),
            "FailingStreak": health.failing_streak,
            "Log": log.collect::<Vec<_>>(),
        });
    }
    out
}

/// The word that the filter `health` looks for.
fn health(record: &Record) -> &'static str {
    record.state.health.as_ref().map_or("none", |health| health.status.word())
}

fn mounts(record: &Record) -> Value {
    json!(record.mounts)
}

fn network_settings(record: &Record, sandbox: &str) -> Value {
    // Who shares another's network has no sandbox and no ports of its own.
    let running = record.state.is_running() && record.network_of().is_none();
    let mut ports = Map::new();
    // Without a way in there are no ports to tell of.
    let reachable = record
        .networks
        .values()
        .any(|network| !network.settings.gateway.is_empty() || !network.settings.ipv6_gateway.is_empty());
    if running && reachable {
        let mut keys: BTreeMap<String, Value> = BTreeMap::new();
        for key in record.config.exposed_ports.keys().filter_map(|key| Port::parse(key).ok()) {
            keys.insert(key.key(), Value::Null);
        }
        for (key, hosts) in &record.published {
            keys.insert(key.clone(), json!(hosts));
        }
        ports.extend(keys);
    }
    let shown = |settings: &EndpointSettings| {
        let mut settings = settings.clone();
        // An address that was asked for is told before the first start, and while it is there.
        if settings.endpoint_id.is_empty() && !settings.network_id.is_empty() {
            settings.mac_address.clear();
        }
        json!(settings)
    };
    let networks: Map<String, Value> =
        record.networks.iter().map(|(name, network)| (name.clone(), shown(&network.settings))).collect();
    // The flat fields mirror the default bridge only.
    let bridge = record.networks.get("bridge").map(|network| network.settings.clone()).unwrap_or_default();
    let (id, key) = if running { (record.id.as_str(), sandbox) } else { ("", "") };
    json!({
        "Bridge": "",
        "SandboxID": id,
        "SandboxKey": key,
        "Ports": ports,
        "HairpinMode": false,
        "LinkLocalIPv6Address": "",
        "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null,
        "SecondaryIPv6Addresses": null,
        "EndpointID": bridge.endpoint_id,
        "Gateway": bridge.gateway,
        "GlobalIPv6Address": bridge.global_ipv6_address,
        "GlobalIPv6PrefixLen": bridge.global_ipv6_prefix_len,
        "IPAddress": bridge.ip_address,
        "IPPrefixLen": bridge.ip_prefix_len,
        "IPv6Gateway": bridge.ipv6_gateway,
        "MacAddress": bridge.mac_address,
        "Networks": networks,
    })
}

/// "Up 5 seconds", "Exited (0) 3 minutes ago", …
pub fn status_text(record: &Record, now: i64) -> String {
    let state = &record.state;
    let since = |ns: i64| human((now - ns) / 1_000_000_000);
    match state.status {
        Status::Running => match &state.health {
            None => format!("Up {}", since(state.started_at)),
            Some(health) if health.status == HealthStatus::Starting => {
                format!("Up {} (health: starting)", since(state.started_at))
            }
            Some(health) => format!("Up {} ({})", since(state.started_at), health.status.word()),
        },
        Status::Paused => format!("Up {} (Paused)", since(state.started_at)),
        Status::Restarting => format!("Restarting ({}) {} ago", state.exit_code, since(state.finished_at)),
        Status::Created => "Created".into(),
        Status::Dead => "Dead".into(),
        Status::Exited => format!("Exited ({}) {} ago", state.exit_code, since(state.finished_at)),
    }
}

/// The image's name, or its id where the name means another one by now or none.
fn shown_image<'a>(engine: &Engine, record: &'a Record) -> &'a str {
    let still = record.config.image == record.image_id
        || engine.images.id_of(&record.config.image).as_ref() == Some(&record.image_id);
    if still { &record.config.image } else { &record.image_id }
}

/// One entry of `GET /containers/json`.
fn summary(engine: &Engine, record: &Record, links: Option<&Vec<String>>, now: i64) -> Value {
    let own = format!("/{}", record.name);
    let names: Vec<&String> = std::iter::once(&own).chain(links.into_iter().flatten()).collect();
    let command = record.config.command_line();
    // Docker quotes arguments with spaces.
    let command: Vec<String> =
        command.iter().map(|word| if word.contains(' ') { format!("'{word}'") } else { word.clone() }).collect();
    let networks: Map<String, Value> = record
        .networks
        .iter()
        .map(|(name, network)| {
            let mut settings = network.settings.clone();
            settings.dns_names = None;
            settings.aliases = None;
            (name.clone(), json!(settings))
        })
        .collect();
    json!({
        "Id": record.id,
        "Names": names,
        "Image": shown_image(engine, record),
        "ImageID": record.image_id,
        "Command": command.join(" "),
        "Created": record.created / 1_000_000_000,
        "Ports": ports(record),
        "Labels": record.config.labels,
        "State": record.state.status.word(),
        "Status": status_text(record, now),
        "HostConfig": {"NetworkMode": record.host.network_mode},
        "NetworkSettings": {"Networks": networks},
        "Mounts": mounts(record),
    })
}

fn ports(record: &Record) -> Vec<Value> {
    if !record.state.is_running() || record.network_of().is_some() {
        return Vec::new();
    }
    let mut out = Vec::new();
    for port in record.config.exposed_ports.keys().filter_map(|key| Port::parse(key).ok()) {
        let kind = port.protocol.name();
        match record.published.get(&port.key()) {
            Some(hosts) => {
                for host in hosts {
                    out.push(json!({
                        "IP": host.host_ip, "PrivatePort": port.number,
                        "PublicPort": host.host_port.parse::<u16>().unwrap_or(0), "Type": kind,
                    }));
                }
            }
            None => out.push(json!({"PrivatePort": port.number, "Type": kind})),
        }
    }
    out
}

/// Filter keys that `GET /containers/json` knows.
const FILTERS: &[&str] = &[
    "ancestor",
    "before",
    "exited",
    "expose",
    "health",
    "id",
    "is-task",
    "isolation",
    "label",
    "name",
    "network",
    "publish",
    "since",
    "status",
    "volume",
];

/// `GET /containers/json`.
///
/// # Errors
/// 400 for a filter that cannot be read.
pub fn list(engine: &Engine, query: &crate::http::query::Query) -> ApiResult<Vec<Value>> {
    let filters = Filters::from_query(query, FILTERS)?;
    if !filters.values("isolation").is_empty() {
        return Err(ApiError::absent("the container filter \"isolation\""));
    }
    let is_task = filters.boolean("is-task")?;
    let ports = |key: &str| filters.values(key).iter().map(|port| Port::parse(port)).collect::<ApiResult<Vec<_>>>();
    let (exposed, published) = (ports("expose")?, ports("publish")?);
    let names = filters.values("name").iter().map(|name| pattern(name)).collect::<Vec<_>>();
    for status in filters.values("status") {
        if !["created", "running", "paused", "restarting", "removing", "exited", "dead"].contains(&status.as_str()) {
            return Err(ApiError::bad_request(format!(
                "invalid filter 'status={status}': invalid value for state ({status}): must be one of created, running, paused, restarting, removing, exited, dead"
            )));
        }
    }
    for wanted in filters.values("health") {
        if !["none", "starting", "healthy", "unhealthy"].contains(&wanted.as_str()) {
            return Err(ApiError::bad_request(format!(
                "invalid filter 'health={wanted}': invalid value for health ({wanted}): must be one of none, starting, healthy, unhealthy"
            )));
        }
    }
    let exited = filters
        .values("exited")
        .iter()
        .map(|code| {
            code.parse::<i64>().map_err(|_| {
                ApiError::bad_request(format!(
                    "invalid filter 'exited={code}': strconv.Atoi: parsing \"{code}\": invalid syntax"
                ))
            })
        })
        .collect::<ApiResult<Vec<_>>>()?;
    let reference = |key: &str| {
        filters
            .values(key)
            .first()
            .map(|name| engine.container(name).map(|found| found.with(|record| record.created)))
            .transpose()
    };
    let (before, since) = (reference("before")?, reference("since")?);
    let limit = query.integer("limit")?.filter(|limit| *limit > 0).and_then(|limit| usize::try_from(limit).ok());
    // Asking for a state, or for the last few, is asking for those that do not run too.
    let all = query.flag("all") || limit.is_some() || !filters.values("status").is_empty() || !exited.is_empty();
    let images: Vec<String> = filters
        .values("ancestor")
        .iter()
        .map(|name| engine.images.resolve(name).map_or_else(|_| name.clone(), |image| image.id))
        .collect();
    let now = now();
    let chosen = engine.containers.all().into_iter().map(|container| container.record()).filter(|record| {
        (all || record.state.is_running())
            && before.is_none_or(|time| record.created < time)
            && since.is_none_or(|time| record.created > time)
            && (images.is_empty() || images.contains(&record.image_id))
            && (exited.is_empty() || record.state.status == Status::Exited && exited.contains(&record.state.exit_code))
            && filters.any("status", |wanted| wanted == record.state.status.word())
            && filters.any("id", |wanted| record.id.starts_with(wanted.as_str()))
            && (names.is_empty() || names.iter().any(|name| name.matches(&record.name)))
            && filters.any("health", |wanted| wanted == health(record))
            // None belongs to a swarm.
            && is_task != Some(true)
            && (exposed.is_empty() || exposed.iter().any(|port| record.config.exposed_ports.contains_key(&port.key())))
            && (published.is_empty() || published.iter().any(|port| publishes(record, port.number)))
            && filters.any("network", |wanted| {
                record.networks.iter().any(|(name, network)| {
                    name == wanted || !wanted.is_empty() && network.settings.network_id.starts_with(wanted.as_str())
                })
            })
            && filters.any("volume", |wanted| {
                record.mounts.iter().any(|mount| {
                    mount.name == *wanted || mount.destination == *wanted || text(&mount.source) == *wanted
                })
            })
            && filters.labels("label", &record.config.labels)
    });
    let links = links::names(engine);
    let chosen = chosen.take(limit.unwrap_or(usize::MAX));
    Ok(chosen.map(|record| summary(engine, &record, links.get(&record.id), now)).collect())
}

/// A published port is found by its number on either side.
fn publishes(record: &Record, number: u16) -> bool {
    record.published.iter().any(|(key, hosts)| {
        Port::parse(key).is_ok_and(|port| port.number == number)
            || hosts.iter().any(|host| host.host_port.parse() == Ok(number))
    })
}

/// A name filter: a regular expression, or the text itself where it is none. The leading slash of names may be matched.
#[derive(Debug)]
enum Pattern {
    Expression(regex::Regex),
    Text(String),
}

fn pattern(text: &str) -> Pattern {
    let bounded = regex::RegexBuilder::new(text).size_limit(1 << 20).build();
    bounded.map_or_else(|_| Pattern::Text(text.to_owned()), Pattern::Expression)
}

impl Pattern {
    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Expression(expression) => expression.is_match(name) || expression.is_match(&format!("/{name}")),
            Self::Text(text) => name == text,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn status_reads_as_dockers() {
        let mut record = Record::default();
        assert_eq!(status_text(&record, 0), "Created");
        record.state.status = Status::Running;
        record.state.started_at = 1;
        assert_eq!(status_text(&record, 5_000_000_001), "Up 5 seconds");
        record.state.status = Status::Paused;
        assert_eq!(status_text(&record, 5_000_000_001), "Up 5 seconds (Paused)");
        record.state.status = Status::Exited;
        record.state.exit_code = 137;
        record.state.finished_at = 1;
        assert_eq!(status_text(&record, 120_000_000_001), "Exited (137) 2 minutes ago");
    }

    #[test]
    fn names_match_with_anchors() {
        let matches = |name: &str, text: &str| pattern(text).matches(name);
        assert!(
            matches("web1", "web") && matches("web1", "^/web1$") && matches("web1", "1$") && matches("web1", "w.b")
        );
        assert!(!matches("web1", "^web$") && !matches("web1", "["));
    }

    #[test]
    fn a_stopped_container_has_no_ports_and_no_sandbox() {
        let mut record = Record::default();
        record.config.exposed_ports.insert("80/tcp".into(), json!({}));
        let stopped = network_settings(&record, "/run/x");
        assert_eq!((stopped["Ports"].clone(), stopped["SandboxKey"].as_str()), (json!({}), Some("")));
        record.state.status = Status::Running;
        assert_eq!(network_settings(&record, "/run/x")["Ports"], json!({}), "no network, no way in");
        let mut joined = crate::containers::record::Attachment { mac_asked: true, ..Default::default() };
        joined.settings = EndpointSettings {
            gateway: "10.0.0.1".into(),
            network_id: "n".into(),
            endpoint_id: "e".into(),
            mac_address: "02:00:00:00:00:01".into(),
            ..EndpointSettings::default()
        };
        record.networks.insert("n".into(), joined);
        let running = network_settings(&record, "/run/x");
        assert_eq!(running["Networks"]["n"]["MacAddress"], "02:00:00:00:00:01");
        assert_eq!(running["Ports"], json!({"80/tcp": null}));
        assert_eq!(running["SandboxKey"], "/run/x");
        record.networks.values_mut().for_each(|network| network.settings.clear_observed(true));
        assert_eq!(network_settings(&record, "/run/x")["Networks"]["n"]["MacAddress"], "");
    }
}
