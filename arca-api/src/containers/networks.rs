// SPDX-License-Identifier: Apache-2.0
//! A container's attachments: made at start and by connect, removed at exit and by disconnect. arca-netd decides
//! addresses and names; here is only which container wants which network.

use std::{collections::BTreeMap, sync::Arc};

use arca_proto::netd::v1 as netd;

use crate::{
    containers::{Container, Record, files, native, ports, record::Attachment},
    docker::network::EndpointSettings,
    engine::Engine,
    http::{ApiError, ApiResult, frame::ApiVersion},
    machines::Live,
    netd::observe,
};

/// Prefix of every network failure at start.
const SET_UP: &str = "failed to set up container networking";

/// The three names that are always there; without embedded DNS and without `--ip`.
pub fn is_predefined(name: &str) -> bool {
    matches!(name, "bridge" | "host" | "none")
}

/// 127.0.0.11 answers in this container: it is on a network that a user made.
pub fn on_user_network(record: &Record) -> bool {
    // A native network has no server: its names are in the hosts file.
    record.networks.iter().any(|(name, network)| !is_predefined(name) && network.backend != "vmnet")
}

/// Warning of create for `Config.MacAddress`, from version 1.44 on.
pub const WIDE_MAC: &str =
    "The container-wide MacAddress field is now deprecated. It should be specified in EndpointsConfig instead.";

/// Takes out what a version of the API did not have yet.
///
/// # Errors
/// 400 for several networks before version 1.44.
pub fn for_version(version: ApiVersion, wishes: &mut BTreeMap<String, Option<EndpointSettings>>) -> ApiResult<()> {
    if version < ApiVersion::v1(44) && wishes.len() > 1 {
        let names = wishes.keys().cloned().collect::<Vec<_>>().join(", ");
        let text = format!("Container cannot be created with multiple network endpoints: {names}");
        return Err(ApiError::bad_request(text));
    }
    for settings in wishes.values_mut().flatten() {
        if version < ApiVersion::v1(44) {
            settings.mac_address.clear();
        }
        if version < ApiVersion::v1(48) {
            settings.gw_priority = 0;
        }
    }
    Ok(())
}

/// The wishes of create: by network name.
///
/// # Errors
/// 400 for endpoint settings that make no sense.
pub fn wishes(
    mode: &str,
    endpoints: BTreeMap<String, Option<EndpointSettings>>,
    container_wide_mac: &str,
) -> ApiResult<BTreeMap<String, Attachment>> {
    let mut networks = BTreeMap::new();
    if mode.starts_with("container:") {
        // It has the other's; what it wishes besides is not looked at, as in Docker.
        return Ok(networks);
    }
    for (name, settings) in endpoints {
        let name = if name == "default" { "bridge".to_owned() } else { name };
        let Some(settings) = settings else {
            return Err(ApiError::bad_request(format!("invalid config for network {name}: EndpointsConfig is nil")));
        };
        networks.insert(name, Attachment::wished(settings));
    }
    if networks.is_empty() {
        networks.insert(mode.to_owned(), Attachment::default());
    }
    if !container_wide_mac.is_empty() {
        if !crate::docker::network::is_mac(container_wide_mac) {
            return Err(ApiError::bad_request(format!(
                "invalid config for network {mode}: invalid MAC address {container_wide_mac}"
            )));
        }
        if let Some(main) = networks.get_mut(mode) {
            if main.mac_asked && main.settings.mac_address != container_wide_mac {
                return Err(ApiError::bad_request(
                    "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty",
                ));
            }
            main.settings.mac_address = container_wide_mac.to_owned();
            main.mac_asked = true;
        }
    }
    Ok(networks)
}

fn check_wish(name: &str, settings: &EndpointSettings) -> ApiResult<()> {
    settings.validate(name).map_err(|error| error.within(&format!("invalid config for network {name}")))
}

/// Asks arca-netd about the wishes that only it can judge (`--ip` and the like) where the network exists already; where it
/// does not, start will tell. A container is created whether arca-netd answers or not.
///
/// # Errors
/// 400 `invalid config for network …`, 501 for what the network's backend cannot do.
pub async fn check_wishes(engine: &Engine, record: &mut Record) -> ApiResult<()> {
    let asked = record.clone();
    for (name, wish) in &asked.networks {
        if matches!(name.as_str(), "host" | "none") {
            check_wish(name, &wish.settings)?;
            continue;
        }
        let checked = engine.netd.clone().check_attachment(request(&asked, name, wish, None)).await;
        let error = match checked {
            Ok(known) => {
                // A network given by its id is shown under its name.
                let known = known.into_inner().network_name;
                if known != *name && !known.is_empty() {
                    let wish = record.networks.remove(name).unwrap_or_default();
                    record.networks.insert(known, wish);
                }
                continue;
            }
            Err(status) => ApiError::from(status),
        };
        match error.status.as_u16() {
            400 => return Err(error.within(&format!("invalid config for network {name}"))),
            // What the network's backend cannot do, in its own words.
            501 => return Err(error),
            // Not there yet: what can be told without it.
            _ => check_wish(name, &wish.settings)?,
        }
    }
    Ok(())
}

/// What is asked of arca-netd for one network. Once attached, the network's id is meant, not its name: a new network of
/// the same name is another one.
pub fn request(record: &Record, name: &str, wish: &Attachment, live: Option<&Live>) -> netd::AttachRequest {
    let ipam = wish.settings.ipam_config.clone().unwrap_or_default();
    let network = if wish.settings.network_id.is_empty() { name.to_owned() } else { wish.settings.network_id.clone() };
    netd::AttachRequest {
        network,
        machine_id: live.map(|live| live.id.clone()).unwrap_or_default(),
        machine: live.map(|live| live.machine.address().into()),
        workload_id: record.id.clone(),
        workload_name: record.name.clone(),
        hostname: record.config.hostname.clone(),
        aliases: wish.settings.aliases.clone().unwrap_or_default(),
        ipv4: ipam.ipv4_address,
        ipv6: ipam.ipv6_address,
        link_local: ipam.link_local_ips,
        mac: if wish.mac_asked { wish.settings.mac_address.clone() } else { String::new() },
        gateway_priority: wish.settings.gw_priority,
        driver_options: wish.settings.driver_opts.clone().unwrap_or_default().into_iter().collect(),
        links: wish.settings.links.clone().unwrap_or_default(),
        dns: record.host.dns.clone(),
        publishes: record.host.publish_all_ports || !record.host.port_bindings.is_empty(),
        beside: record.networks.keys().filter(|other| *other != name).cloned().collect(),
        ..netd::AttachRequest::default()
    }
}

/// Network names in the order of interfaces: the default bridge first, as in Docker, which takes the others by chance; here
/// the mode's network follows, then the others by name.
pub fn order(record: &Record) -> Vec<String> {
    let mode = &record.host.network_mode;
    let mut names: Vec<String> = record.networks.keys().cloned().collect();
    let is_mode = |name: &String| {
        name == mode || record.networks.get(name).is_some_and(|network| network.settings.network_id == *mode)
    };
    names.sort_by_key(|name| (name != "bridge", !is_mode(name)));
    names
}

/// Makes every endpoint of a container that starts, then publishes its ports; on failure all is undone.
///
/// # Errors
/// `failed to set up container networking: …` with arca-netd's status.
pub async fn set_up(engine: &Engine, container: &Container, record: &mut Record, live: &Live) -> ApiResult<()> {
    let exclusive = record.without_endpoints();
    if exclusive && record.networks.len() > 1 {
        let text = if record.networks.contains_key("host") {
            "cannot connect container to host network - container must be created in host network mode"
        } else {
            "container cannot be connected to multiple networks with one of the networks in private (none) mode"
        };
        return Err(ApiError::bad_request(format!("{SET_UP}: {text}")));
    }
    engine.will_attach(&record.id).await;
    let result = set_up_all(engine, record, live, exclusive).await;
    if result.is_err() {
        tear_down(engine, container, record).await;
    }
    result.map_err(|error| error.within(SET_UP))
}

async fn set_up_all(engine: &Engine, record: &mut Record, live: &Live, exclusive: bool) -> ApiResult<()> {
    let mut netd = engine.netd.clone();
    if exclusive {
        // Nothing is made; Docker shows the network and an endpoint all the same.
        for (name, network) in &mut record.networks {
            let known = netd.get_network(netd::GetNetworkRequest { name_or_id: name.clone() }).await;
            if let Ok(known) = known {
                network.settings.network_id = known.into_inner().id;
                network.settings.endpoint_id = super::names::new_id();
            }
        }
        return Ok(());
    }
    for name in order(record) {
        let wish = record.networks.get(&name).cloned().unwrap_or_default();
        let endpoint = netd.attach(request(record, &name, &wish, Some(live))).await?.into_inner();
        let mut settings = wish.settings;
        observe(&mut settings, &endpoint);
        // A network given by id prefix is shown under its name, and the mode becomes the whole id.
        let mode = &mut record.host.network_mode;
        if *mode != endpoint.network_name && !mode.is_empty() && endpoint.network_id.starts_with(mode.as_str()) {
            mode.clone_from(&endpoint.network_id);
        }
        record.networks.remove(&name);
        record.networks.insert(endpoint.network_name.clone(), Attachment { settings, ..wish });
    }
    record.published = ports::publish(engine, record).await?;
    Ok(())
}

/// The connect events of a start, once nothing can fail any more but the process itself.
pub async fn announce(engine: &Engine, container: &Container, record: &Record) {
    for name in order(record) {
        if let Some(network) = record.networks.get(&name).filter(|network| !network.settings.endpoint_id.is_empty()) {
            emit(engine, container, "connect", &network.settings.network_id, &name).await;
        }
    }
}

/// Removes every endpoint and published port of a container that has ended. Goes on where it can: what arca-netd
/// cannot remove now it removes at the next full sync.
pub async fn tear_down(engine: &Engine, container: &Container, record: &mut Record) {
    let request = netd::DetachWorkloadRequest { workload_id: record.id.clone() };
    engine.set_attached(&record.id, false);
    let detached = if record.without_endpoints() {
        Ok(())
    } else {
        engine.netd.clone().detach_workload(request).await.map(|_| ())
    };
    match detached {
        Ok(()) => {
            for (name, network) in &record.networks {
                if !network.settings.endpoint_id.is_empty() {
                    emit(engine, container, "disconnect", &network.settings.network_id, name).await;
                }
            }
        }
        Err(status) => {
            tracing::warn!(
                container_id = record.id,
                error = status.message(),
                "endpoints stay until arca-netd is in step"
            );
        }
    }
    native::refresh(engine, record).await;
    if !record.without_endpoints() && engine.tenants.shared(record.machine()) {
        // Who shares its network goes on with its hosts file.
        for network in record.networks.values() {
            if let Err(error) = files::left(record, &engine.folder(&record.id), &network.settings) {
                tracing::warn!(container_id = record.id, %error, "lines of the hosts file stay");
            }
        }
    }
    for network in record.networks.values_mut() {
        let mac_asked = network.mac_asked;
        network.settings.clear_observed(mac_asked);
    }
    record.published.clear();
}

async fn emit(engine: &Engine, container: &Container, action: &str, id: &str, name: &str) {
    let driver = if is_predefined(name) {
        match name {
            "host" => "host".to_owned(),
            "none" => "null".to_owned(),
            _ => "bridge".to_owned(),
        }
    } else {
        let network = engine.netd.clone().get_network(netd::GetNetworkRequest { name_or_id: id.to_owned() }).await;
        network
            .ok()
            .and_then(|network| network.into_inner().spec)
            .map_or_else(|| "bridge".to_owned(), |spec| spec.driver)
    };
    let attributes = BTreeMap::from([
        ("container".to_owned(), container.id.clone()),
        ("name".to_owned(), name.to_owned()),
        ("type".to_owned(), driver),
    ]);
    engine.events.emit("network", action, id, attributes);
}

fn refuse_modes(record: &Record, network: &str) -> ApiResult<()> {
    if record.is_host_network() || record.network_of().is_some() {
        return Err(ApiError::bad_request(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ));
    }
    if network == "host" {
        return Err(ApiError::bad_request(
            "cannot connect container to host network - container must be created in host network mode",
        ));
    }
    if record.networks.contains_key("none") || network == "none" {
        return Err(ApiError::bad_request(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    Ok(())
}

/// `docker network connect`: at once if the container runs, else at its next start.
///
/// # Errors
/// Docker's, as in the checklist of connect.
pub async fn connect(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    network: &str,
    settings: EndpointSettings,
) -> ApiResult<()> {
    let op = container.turn().await?;
    let mut record = container.record();
    // Docker joins the network of this id, if one is given, whatever the path names.
    let by_id = settings.network_id.clone();
    let wish = Attachment::wished(settings.clone());
    let mut netd = engine.netd.clone();
    let live = container.live().filter(|_| record.state.is_running());
    let Some(live) = live else {
        // Stopped: what can be checked is checked, an unknown network is stored all the same.
        let (name, known) = match netd.check_attachment(request(&record, network, &wish, None)).await {
            Ok(answer) => (answer.into_inner().network_name, true),
            Err(status) if finds_none(&status) => (network.to_owned(), false),
            Err(status) => return Err(status.into()),
        };
        refuse_modes(&record, &name)?;
        let mut wish = wish;
        // Which network the name means is decided at start.
        wish.settings.dns_names = (known && !is_predefined(&name)).then(|| dns_names(&record, &wish));
        container.update(engine, |record| record.networks.insert(name, wish)).await?;
        return Ok(());
    };
    let network = if by_id.is_empty() { network } else { &by_id };
    let known = netd.get_network(netd::GetNetworkRequest { name_or_id: network.to_owned() }).await?.into_inner();
    let name = known.spec.map(|spec| spec.name).unwrap_or_default();
    refuse_modes(&record, &name)?;
    if record.networks.contains_key(&name) {
        return Err(ApiError::forbidden(format!(
            "endpoint with name {} already exists in network {name}",
            record.name
        )));
    }
    let mut wish = wish;
    wish.settings.network_id = known.id;
    let wanted = netd::AttachRequest { dynamic: true, ..request(&record, &name, &wish, Some(&live)) };
    let endpoint = match netd.attach(wanted).await {
        Ok(endpoint) => endpoint.into_inner(),
        Err(status) => {
            if status.code() == tonic::Code::Unavailable && container.has_ended(&live).await {
                // It ended under the attach. Once that is noted it is connected as any stopped container is.
                drop(op);
                container.until_noted().await;
                return Box::pin(connect(engine, container, network, settings)).await;
            }
            return Err(status.into());
        }
    };
    let published = match ports::published_or_publish(engine, &record).await {
        Ok(published) => published,
        Err(error) => {
            take_back(engine, endpoint).await;
            return Err(error);
        }
    };
    observe(&mut wish.settings, &endpoint);
    record.networks.insert(name.clone(), wish.clone());
    let attached = |record: &mut Record| {
        record.published = published;
        record.networks.insert(name.clone(), wish);
    };
    if let Err(error) = container.update(engine, attached).await {
        take_back(engine, endpoint).await;
        return Err(error);
    }
    if let Some(network) = record.networks.get(&name) {
        files::joined(&record, &engine.folder(&container.id), &network.settings)?;
    }
    emit(engine, container, "connect", &endpoint.network_id, &name).await;
    Ok(())
}

/// Removes an endpoint that nobody was told of.
async fn take_back(engine: &Engine, endpoint: netd::Endpoint) {
    let netd::Endpoint { network_id: network, workload_id, .. } = endpoint;
    let detached = engine.netd.clone().detach(netd::DetachRequest { network, workload_id, force: true }).await;
    if let Err(status) = detached {
        tracing::warn!(error = status.message(), "an endpoint nobody was told of stays until arca-netd is in step");
    }
}

fn dns_names(record: &Record, wish: &Attachment) -> Vec<String> {
    let aliases = wish.settings.aliases.iter().flatten().map(String::as_str);
    let mut names: Vec<String> = Vec::new();
    for name in [record.name.as_str()].into_iter().chain(aliases).chain([record.short_id(), &record.config.hostname]) {
        if !name.is_empty() && !names.iter().any(|known| known == name) {
            names.push(name.to_owned());
        }
    }
    names
}

/// No network of that name, or several: a stopped container stores the name as it is.
fn finds_none(status: &tonic::Status) -> bool {
    status.code() == tonic::Code::NotFound || status.message().ends_with("is ambiguous")
}

/// `docker network disconnect`.
///
/// # Errors
/// 500 `container … is not connected to network …`, and arca-netd's.
pub async fn disconnect(engine: &Arc<Engine>, container: &Arc<Container>, network: &str, force: bool) -> ApiResult<()> {
    let _op = container.turn().await?;
    let mut record = container.record();
    let mut netd = engine.netd.clone();
    let known = netd.get_network(netd::GetNetworkRequest { name_or_id: network.to_owned() }).await;
    let running = record.state.is_running();
    let not_connected = |name: &str| {
        let article = if running { "" } else { "the " };
        ApiError::internal(format!("container {} is not connected to {article}network {name}", record.id))
    };
    let (id, name) = match known {
        Ok(known) => {
            let known = known.into_inner();
            (known.id, known.spec.map(|spec| spec.name).unwrap_or_default())
        }
        // What is stored may name what is not there any more.
        Err(_) if !running => (String::new(), network.to_owned()),
        Err(_) if force => {
            let text = format!("container {} is not connected to the network {network}", record.id);
            return Err(ApiError::internal(text));
        }
        Err(status) => return Err(status.into()),
    };
    if running && record.is_host_network() && name == "host" {
        return Err(ApiError::bad_request(
            "cannot disconnect container from host network - container was created in host network mode",
        ));
    }
    if !record.networks.contains_key(&name) {
        return Err(not_connected(&name));
    }
    if running && name != "none" {
        netd.detach(netd::DetachRequest { network: id.clone(), workload_id: record.id.clone(), force }).await?;
    }
    let gone = record.networks.remove(&name).unwrap_or_default();
    if running && !record.published.is_empty() {
        record.published = ports::published(engine, &record).await?;
    }
    let published = record.published.clone();
    let detached = |record: &mut Record| {
        record.published = published;
        record.networks.remove(&name);
    };
    container.update(engine, detached).await?;
    if running {
        files::left(&record, &engine.folder(&container.id), &gone.settings)?;
        emit(engine, container, "disconnect", &id, &name).await;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_of_networks_wins_over_the_mode() {
        let endpoints = BTreeMap::from([("np_s".to_owned(), Some(EndpointSettings::default()))]);
        let joined = wishes("bridge", endpoints, "").expect("wishes");
        assert_eq!(joined.keys().collect::<Vec<_>>(), ["np_s"]);
        let alone = wishes("bridge", BTreeMap::new(), "").expect("wishes");
        assert_eq!(alone.keys().collect::<Vec<_>>(), ["bridge"]);
        let default = BTreeMap::from([("default".to_owned(), Some(EndpointSettings::default()))]);
        assert_eq!(wishes("bridge", default, "").expect("wishes").keys().collect::<Vec<_>>(), ["bridge"]);
    }

    #[test]
    fn faulty_wishes_are_refused_in_dockers_words() {
        let nil = BTreeMap::from([("np_s".to_owned(), None)]);
        assert_eq!(
            wishes("np_s", nil, "").expect_err("nil").message,
            "invalid config for network np_s: EndpointsConfig is nil"
        );
        let aliases = EndpointSettings { aliases: Some(vec!["a".into()]), ..EndpointSettings::default() };
        assert_eq!(
            check_wish("bridge", &aliases).expect_err("alias").message,
            "invalid config for network bridge: invalid endpoint settings:\nnetwork-scoped alias is supported only for containers in user defined networks"
        );
        assert_eq!(
            wishes("bridge", BTreeMap::new(), "zz").expect_err("mac").message,
            "invalid config for network bridge: invalid MAC address zz"
        );
    }

    #[test]
    fn the_modes_network_gets_the_first_interface() {
        let mut record = Record::default();
        record.host.network_mode = "m".into();
        for name in ["a", "m", "z"] {
            record.networks.insert(name.into(), Attachment::default());
        }
        assert_eq!(order(&record), ["m", "a", "z"]);
        record.networks.insert("bridge".into(), Attachment::default());
        assert_eq!(order(&record), ["bridge", "m", "a", "z"]);
    }
}
