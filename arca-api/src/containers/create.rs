// SPDX-License-Identifier: Apache-2.0
//! `docker create`: everything is checked, then the record is stored. Nothing runs and no network is touched.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use serde::Deserialize;

use crate::{
    containers::{Container, Record, copy_up, files, inside, links, mounts, names, namespaces, networks, signals},
    docker::{
        config::ContainerConfig, health::HealthConfig, host_config::HostConfig, network::EndpointSettings, ports::Port,
        time::now,
    },
    engine::Engine,
    http::{ApiError, ApiResult},
};

/// Body of `POST /containers/create`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct CreateRequest {
    /// The portable part.
    #[serde(flatten)]
    pub config: ContainerConfig,
    /// The host-dependent part.
    pub host_config: HostConfig,
    /// Wished networks.
    pub networking_config: NetworkingConfig,
}

/// `NetworkingConfig` of the body.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub struct NetworkingConfig {
    /// By network name; `null` is a fault.
    pub endpoints_config: BTreeMap<String, Option<EndpointSettings>>,
}

fn validate(config: &ContainerConfig, host: &HostConfig) -> ApiResult<()> {
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(ApiError::bad_request(format!(
            "the working directory '{}' is invalid, it needs to be an absolute path",
            config.working_dir
        )));
    }
    if let Some(entry) = config.env.iter().flatten().find(|entry| entry.is_empty() || entry.starts_with('=')) {
        return Err(ApiError::bad_request(format!("invalid environment variable: {entry}")));
    }
    if !config.stop_signal.is_empty() {
        signals::parse(&config.stop_signal)?;
    }
    crate::spec::check(host)?;
    // Whatever start would refuse about ports is refused here.
    crate::docker::ports::bindings(&host.port_bindings, config.exposed_ports.keys(), false)?;
    host.validate()
}

/// What does not go together with the network mode; as asked for, before the image adds its own.
fn network_mode(config: &ContainerConfig, host: &HostConfig) -> ApiResult<()> {
    let some = |list: &Option<Vec<String>>| list.as_ref().is_some_and(|items| !items.is_empty());
    let mode = host.network_mode.as_str();
    if matches!(mode, "container" | "container:") {
        return Err(ApiError::bad_request("invalid network mode: invalid container format container:<name|id>"));
    }
    let shares = mode.starts_with("container:");
    let undefined = "can't be used with links. This would result in undefined behavior";
    let conflicts = [
        (shares && !config.hostname.is_empty(), "hostname and the network mode".to_owned()),
        (shares && some(&host.links), format!("container type network {undefined}")),
        (shares && !host.dns.is_empty(), "dns and the network mode".to_owned()),
        (shares && some(&host.extra_hosts), "custom host-to-IP mapping and the network mode".to_owned()),
        (
            shares && (!host.port_bindings.is_empty() || host.publish_all_ports),
            "port publishing and the container type network mode".to_owned(),
        ),
        (shares && !config.exposed_ports.is_empty(), "port exposing and the container type network mode".to_owned()),
        (host.uts_mode == "host" && !config.hostname.is_empty(), "hostname and the UTS mode".to_owned()),
        (mode == "host" && some(&host.links), format!("host type networking {undefined}")),
    ];
    match conflicts.into_iter().find(|(conflict, _)| *conflict) {
        Some((_, text)) => Err(ApiError::bad_request(format!("conflicting options: {text}"))),
        None => Ok(()),
    }
}

/// Creates a container; `name` is "" when the user chose none.
///
/// # Errors
/// 400, 404 `No such image: …`, 409 for a taken name, 501.
pub async fn create(
    engine: &Arc<Engine>,
    name: &str,
    platform: &str,
    request: CreateRequest,
) -> ApiResult<Arc<Container>> {
    let CreateRequest { mut config, host_config: mut host, networking_config } = request;
    if config == ContainerConfig::default() {
        return Err(ApiError::bad_request("config cannot be empty in order to create a container"));
    }
    // What the image brings is not looked at.
    config.healthcheck.as_ref().map_or(Ok(()), HealthConfig::validate)?;
    if !name.is_empty() {
        names::check(name)?;
    }
    network_mode(&config, &host)?;
    let images = engine.images.clone();
    let reference = config.image.clone();
    let image = Engine::blocking(move || images.resolve(&reference).map_err(Into::into)).await?;
    check_platform(platform, &config.image, &image)?;
    config.merge_image(&crate::routes::images::config_of(&image));
    config.volumes = config.volumes.take().filter(|volumes| !volumes.is_empty());
    host.normalise();
    namespaces::fix(engine, &mut host)?;
    validate(&config, &host)?;
    let kind = inside::kind_named(&host.runtime).unwrap_or_else(|| engine.machines.default_kind());
    if !host.network_mode.starts_with("container:") {
        // It keeps what it was made for, whatever becomes the default later. In another's machine it has no say.
        host.runtime = inside::runtime_of(kind).to_owned();
        inside::check(kind, &host)?;
    }
    if config.command_line().is_empty() {
        return Err(ApiError::bad_request("no command specified"));
    }
    for key in host.port_bindings.keys() {
        let key = Port::parse(key)?.key();
        config.exposed_ports.entry(key).or_insert_with(|| serde_json::json!({}));
    }
    let id = names::new_id();
    if config.hostname.is_empty() {
        config.hostname = if host.network_mode == "host" { host_name() } else { id[..12].to_owned() };
    }
    if let Some(name) = host.network_mode.strip_prefix("container:")
        && let Ok(other) = engine.container(name)
    {
        // The container is meant, not its name. One that is not there yet may be at the start.
        host.network_mode = format!("container:{}", other.id);
    }
    let wished = networks::wishes(&host.network_mode, networking_config.endpoints_config, &config.mac_address)?;
    let mut record = Record {
        id: id.clone(),
        created: now(),
        image_id: image.id,
        layers: image.layers,
        config,
        host,
        networks: wished,
        ..Record::default()
    };
    files::validate(&record)?;
    record.links = links::register(engine, &record)?;
    networks::check_wishes(engine, &mut record).await?;
    record.name = reserve(engine, name, &id)?;
    let made = finish(engine, record.clone()).await;
    if made.is_err() {
        engine.containers.release(&record.name);
        let _ = std::fs::remove_dir_all(engine.folder(&id));
    }
    made
}

/// `--platform` must be the image's.
fn check_platform(wanted: &str, reference: &str, image: &crate::images::Image) -> ApiResult<()> {
    let raw = image.raw_config();
    let have = [raw["os"].as_str().unwrap_or("linux"), raw["architecture"].as_str().unwrap_or("")];
    let parts: Vec<&str> = wanted.split('/').collect();
    let fits = match parts.as_slice() {
        [""] => true,
        [one] => have.contains(one),
        [os, architecture, ..] => *os == have[0] && *architecture == have[1],
        [] => true,
    };
    if fits {
        return Ok(());
    }
    Err(ApiError::not_found(format!(
        "image with reference {reference} was found but its platform ({}) does not match the specified platform ({wanted})",
        have.join("/")
    )))
}

fn reserve(engine: &Engine, name: &str, id: &str) -> ApiResult<String> {
    if !name.is_empty() {
        let name = names::check(name)?;
        engine.containers.reserve(&name, id)?;
        return Ok(name);
    }
    let mut attempt = 0;
    loop {
        let name = names::random(attempt);
        match engine.containers.reserve(&name, id) {
            Ok(()) => return Ok(name),
            Err(error) if attempt > 100 => return Err(error),
            Err(_) => attempt += 1,
        }
    }
}

async fn finish(engine: &Arc<Engine>, mut record: Record) -> ApiResult<Arc<Container>> {
    let resolved = mounts::resolve(engine, &record.config, &record.host).await?;
    record.mounts = resolved.points;
    record.anonymous_volumes = resolved.anonymous;
    let (copies, layers) = (resolved.copies, record.layers.clone());
    Engine::blocking(move || {
        for (target, volume) in copies {
            copy_up::copy_up(&layers, Path::new(&target), &volume)?;
        }
        Ok(())
    })
    .await?;
    let folder = engine.folder(&record.id);
    for part in ["upper", "work"] {
        std::fs::create_dir_all(folder.join(part))?;
    }
    let container = Container::new(record);
    container.update(engine, |_| ()).await?;
    engine.containers.insert(container.clone());
    container.emit(engine, "create", &[]);
    Ok(container)
}

fn host_name() -> String {
    nix::unistd::gethostname().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_body_is_one_flat_object() {
        let body = serde_json::json!({
            "Image": "busybox", "Cmd": ["true"], "HostConfig": {"Memory": 1, "NetworkMode": "n"},
            "NetworkingConfig": {"EndpointsConfig": {"n": {"Aliases": ["a"]}, "nil": null}},
        });
        let request: CreateRequest = serde_json::from_value(body).expect("body");
        assert_eq!(request.config.image, "busybox");
        assert_eq!(request.host_config.memory, 1);
        assert_eq!(request.networking_config.endpoints_config["nil"], None);
    }

    #[test]
    fn faults_of_the_configuration() {
        let config = ContainerConfig { working_dir: "x".into(), ..ContainerConfig::default() };
        assert_eq!(
            validate(&config, &HostConfig::default()).expect_err("relative").message,
            "the working directory 'x' is invalid, it needs to be an absolute path"
        );
        let config = ContainerConfig { env: Some(vec!["=x".into()]), ..ContainerConfig::default() };
        assert!(validate(&config, &HostConfig::default()).is_err());
    }
}
