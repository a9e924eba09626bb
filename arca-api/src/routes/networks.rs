// SPDX-License-Identifier: Apache-2.0
//! `/networks/*`: Docker's shapes around arca-netd's answers. What a network is, netd decides.

use std::{collections::BTreeMap, sync::Arc};

use arca_proto::netd::v1 as netd;
use axum::{
    Extension, Json, Router,
    body::Body,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    routing::{get, post},
};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::{
    docker::{
        network::EndpointSettings,
        time::{parse_point, rfc3339},
    },
    engine::{Engine, detached},
    http::{
        ApiError, ApiResult,
        filters::Filters,
        frame::ApiVersion,
        json::{self as body, Empty},
        query::{Query, parse_bool},
    },
    routes::containers,
};

type Shared = State<Arc<Engine>>;

/// Routes of this file.
pub fn router() -> Router<Arc<Engine>> {
    Router::new()
        .route("/networks", get(list))
        .route("/networks/", get(list).delete(remove_nameless))
        .route("/networks/create", post(create))
        .route("/networks/prune", post(prune))
        // A name may hold slashes.
        .route("/networks/{*rest}", get(inspect).delete(remove).post(change))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Pool {
    subnet: String,
    #[serde(rename = "IPRange")]
    ip_range: String,
    gateway: String,
    auxiliary_addresses: BTreeMap<String, String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Ipam {
    driver: String,
    options: Option<BTreeMap<String, String>>,
    config: Vec<Pool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConfigReference {
    network: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct CreateRequest {
    name: String,
    driver: String,
    scope: String,
    internal: bool,
    attachable: bool,
    ingress: bool,
    config_only: bool,
    #[serde(deserialize_with = "body::object")]
    config_from: ConfigReference,
    #[serde(rename = "IPAM", deserialize_with = "body::object")]
    ipam: Ipam,
    #[serde(rename = "EnableIPv4")]
    enable_ipv4: Option<bool>,
    #[serde(rename = "EnableIPv6")]
    enable_ipv6: Option<bool>,
    options: BTreeMap<String, String>,
    labels: BTreeMap<String, String>,
}

impl From<CreateRequest> for netd::CreateNetworkRequest {
    fn from(request: CreateRequest) -> Self {
        let pools = request.ipam.config.into_iter().map(|pool| netd::IpamPool {
            subnet: pool.subnet,
            ip_range: pool.ip_range,
            gateway: pool.gateway,
            auxiliary_addresses: pool.auxiliary_addresses.into_iter().collect(),
        });
        Self {
            name: request.name,
            driver: request.driver,
            internal: request.internal,
            attachable: request.attachable,
            ingress: request.ingress,
            scope: request.scope,
            enable_ipv4: request.enable_ipv4,
            enable_ipv6: request.enable_ipv6,
            ipam_driver: request.ipam.driver,
            ipam_options_given: request.ipam.options.is_some(),
            ipam_options: request.ipam.options.unwrap_or_default().into_iter().collect(),
            ipam_pools: pools.collect(),
            options: request.options.into_iter().collect(),
            labels: request.labels.into_iter().collect(),
            config_only: request.config_only,
            config_from: request.config_from.network,
        }
    }
}

fn sorted<V: Clone>(map: &std::collections::HashMap<String, V>) -> BTreeMap<String, V> {
    map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
}

/// Docker's shape of a network; `containers` only where inspect asks.
fn to_json(network: &netd::Network, containers: &Map<String, Value>) -> Value {
    let spec = network.spec.clone().unwrap_or_default();
    // Docker shows what was given before what was allocated, IPv4 before IPv6.
    let mut shown: Vec<_> = network.pools.iter().enumerate().collect();
    shown.sort_by_key(|(at, pool)| (*at >= spec.ipam_pools.len(), pool.subnet.contains(':')));
    let pools: Vec<Value> = shown
        .into_iter()
        .map(|(_, pool)| {
            let mut out = Map::new();
            for (key, value) in [("Subnet", &pool.subnet), ("IPRange", &pool.ip_range), ("Gateway", &pool.gateway)] {
                if !value.is_empty() {
                    out.insert(key.into(), json!(value));
                }
            }
            if !pool.auxiliary_addresses.is_empty() {
                out.insert("AuxiliaryAddresses".into(), json!(sorted(&pool.auxiliary_addresses)));
            }
            Value::Object(out)
        })
        .collect();
    let without_addresses = matches!(spec.driver.as_str(), "host" | "null") && pools.is_empty();
    let ipam_driver = if spec.ipam_driver.is_empty() { "default" } else { &spec.ipam_driver };
    let scope = if spec.scope.is_empty() { "local" } else { &spec.scope };
    json!({
        "Name": spec.name,
        "Id": network.id,
        "Created": rfc3339(network.created_at_ns),
        "Scope": scope,
        "Driver": spec.driver,
        "EnableIPv4": network.enable_ipv4,
        "EnableIPv6": network.enable_ipv6,
        "IPAM": {
            "Driver": ipam_driver,
            "Options": if spec.ipam_options_given { json!(sorted(&spec.ipam_options)) } else { Value::Null },
            "Config": if without_addresses { Value::Null } else { json!(pools) },
        },
        "Internal": spec.internal,
        "Attachable": spec.attachable,
        "Ingress": spec.ingress,
        "ConfigFrom": {"Network": spec.config_from},
        "ConfigOnly": spec.config_only,
        "Containers": containers,
        "Options": sorted(&spec.options),
        "Labels": sorted(&spec.labels),
    })
}

/// Endpoints by container; of host and none the running containers, without addresses.
fn endpoints(engine: &Engine, network: &netd::Network) -> Map<String, Value> {
    let mut out: BTreeMap<String, Value> = BTreeMap::new();
    for endpoint in &network.endpoints {
        out.insert(
            endpoint.workload_id.clone(),
            json!({
                "Name": endpoint.workload_name, "EndpointID": endpoint.id, "MacAddress": endpoint.mac,
                "IPv4Address": endpoint.address_v4, "IPv6Address": endpoint.address_v6,
            }),
        );
    }
    let name = network.spec.as_ref().map_or("", |spec| spec.name.as_str());
    if matches!(name, "host" | "none") {
        for record in engine.containers.all().iter().map(|container| container.record()) {
            if record.state.is_running() && record.networks.contains_key(name) {
                let endpoint = record.networks.get(name).map(|network| network.settings.endpoint_id.clone());
                let empty = json!({
                    "Name": record.name, "EndpointID": endpoint, "MacAddress": "", "IPv4Address": "", "IPv6Address": "",
                });
                out.insert(record.id, empty);
            }
        }
    }
    out.into_iter().collect()
}

async fn get_network(engine: &Engine, name_or_id: &str) -> ApiResult<netd::Network> {
    let request = netd::GetNetworkRequest { name_or_id: name_or_id.to_owned() };
    Ok(engine.netd.clone().get_network(request).await?.into_inner())
}

/// Filter keys that `GET /networks` knows.
const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

async fn list(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    query: Query,
) -> ApiResult<Json<Vec<Value>>> {
    let filters = Filters::from_query(&query, FILTERS)?;
    let dangling = filters.boolean("dangling")?;
    for kind in filters.values("type") {
        if !matches!(kind.as_str(), "custom" | "builtin") {
            return Err(ApiError::internal(format!("invalid filter: 'type'='{kind}'")));
        }
    }
    let networks = engine.netd.clone().list_networks(netd::ListNetworksRequest {}).await?.into_inner().networks;
    let regex = |key: &str| {
        let parse = |text: &String| regex::RegexBuilder::new(text).size_limit(1 << 20).build();
        filters.values(key).iter().map(|text| (text.clone(), parse(text).ok())).collect::<Vec<_>>()
    };
    let (names, ids) = (regex("name"), regex("id"));
    let found = |wanted: &[(String, Option<regex::Regex>)], text: &str| {
        let one = |(plain, regex): &(String, Option<regex::Regex>)| {
            plain == text || regex.as_ref().is_some_and(|regex| regex.is_match(text))
        };
        wanted.is_empty() || wanted.iter().any(one)
    };
    let chosen = networks.iter().filter(|network| {
        let spec = network.spec.clone().unwrap_or_default();
        let scope = if spec.scope.is_empty() { "local" } else { spec.scope.as_str() };
        found(&names, &spec.name)
            && found(&ids, &network.id)
            && filters.any("driver", |wanted| *wanted == spec.driver)
            && filters.any("scope", |wanted| wanted == scope)
            && filters.any("type", |wanted| (wanted == "builtin") == network.predefined)
            && filters.labels("label", &sorted(&spec.labels))
            && dangling.is_none_or(|wanted| wanted == (!network.predefined && network.endpoints.is_empty()))
    });
    // Lists told of containers up to version 1.27.
    let containers = |network| if version < ApiVersion::v1(28) { endpoints(&engine, network) } else { Map::new() };
    Ok(Json(chosen.map(|network| to_json(network, &containers(network))).collect()))
}

async fn inspect(State(engine): Shared, Path(id): Path<String>, query: Query) -> ApiResult<Json<Value>> {
    let verbose = query.get("verbose");
    if !verbose.is_empty() {
        parse_bool(verbose)
            .map_err(|text| ApiError::bad_request(format!("invalid value for verbose: {verbose}: {text}")))?;
    }
    let network = get_network(&engine, &id).await?;
    let scope = query.get("scope");
    if !matches!(scope, "" | "local") {
        return Err(ApiError::not_found(format!("network {id} not found")));
    }
    Ok(Json(to_json(&network, &endpoints(&engine, &network))))
}

fn emit(engine: &Engine, action: &str, id: &str, name: &str, driver: &str) {
    let attributes = BTreeMap::from([("name".to_owned(), name.to_owned()), ("type".to_owned(), driver.to_owned())]);
    engine.events.emit("network", action, id, attributes);
}

async fn create(
    State(engine): Shared,
    Extension(version): Extension<ApiVersion>,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<(StatusCode, Json<Value>)> {
    let mut request: CreateRequest = body::read(&headers, request_body, Empty::Object).await?;
    if version < ApiVersion::v1(48) {
        request.enable_ipv4 = None;
    }
    detached(async move {
        let name = request.name.clone();
        let driver = if request.driver.is_empty() { "bridge".to_owned() } else { request.driver.clone() };
        let made = engine.netd.clone().create_network(netd::CreateNetworkRequest::from(request)).await?.into_inner();
        emit(&engine, "create", &made.id, &name, &driver);
        Ok((StatusCode::CREATED, Json(json!({"Id": made.id, "Warning": made.warning}))))
    })
    .await
}

async fn remove_one(engine: &Engine, id: &str) -> ApiResult<String> {
    let request = netd::RemoveNetworkRequest { name_or_id: id.to_owned() };
    let removed = engine.netd.clone().remove_network(request).await.map_err(|status| {
        // Here Docker tells the same fault in other words.
        match status.message().split_once(" matches found based on ID prefix: ") {
            Some((count, _)) => {
                ApiError::bad_request(format!("network {id} is ambiguous ({count} matches found based on ID prefix)"))
            }
            None => status.into(),
        }
    })?;
    let removed = removed.into_inner();
    emit(engine, "destroy", &removed.id, &removed.name, &removed.driver);
    Ok(removed.name)
}

async fn remove(State(engine): Shared, Path(id): Path<String>) -> ApiResult<StatusCode> {
    detached(async move { remove_one(&engine, &id).await }).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Every network's id begins with nothing.
async fn remove_nameless(State(engine): Shared) -> ApiResult<StatusCode> {
    remove(State(engine), Path(String::new())).await
}

async fn prune(State(engine): Shared, query: Query) -> ApiResult<Json<Value>> {
    let filters = Filters::from_query(&query, &["label", "label!", "until"])?;
    let until = match filters.values("until") {
        [] => None,
        [one] => parse_point(one)?,
        _ => return Err(ApiError::bad_request("more than one until filter specified")),
    };
    let networks = engine.netd.clone().list_networks(netd::ListNetworksRequest {}).await?.into_inner().networks;
    let mut deleted = Vec::new();
    for network in networks {
        let labels = sorted(&network.spec.clone().unwrap_or_default().labels);
        let excluded = !filters.values("label!").is_empty() && filters.labels("label!", &labels);
        let young = until.is_some_and(|until| network.created_at_ns >= until);
        // What others may copy has no endpoints by nature.
        let kept = network.predefined || network.spec.as_ref().is_some_and(|spec| spec.config_only);
        if kept || !network.endpoints.is_empty() || young || excluded || !filters.labels("label", &labels) {
            continue;
        }
        let engine = engine.clone();
        // In use again, or removed by somebody else: not ours to prune any more.
        match detached(async move { remove_one(&engine, &network.id).await }).await {
            Ok(name) => deleted.push(name),
            Err(error) => tracing::debug!(%error, "a network was not pruned"),
        }
    }
    engine.events.emit("network", "prune", "", BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]));
    Ok(Json(json!({"NetworksDeleted": if deleted.is_empty() { Value::Null } else { json!(deleted) }})))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct ConnectRequest {
    container: String,
    #[serde(deserialize_with = "body::object")]
    endpoint_config: EndpointSettings,
}

/// Connect and disconnect: the verb is the end of the path.
async fn change(
    State(engine): Shared,
    Path(rest): Path<String>,
    headers: HeaderMap,
    request_body: Body,
) -> ApiResult<StatusCode> {
    match rest.rsplit_once('/') {
        Some((id, "connect")) => {
            let request: ConnectRequest = body::read(&headers, request_body, Empty::Object).await?;
            containers::connect(engine, id.to_owned(), &request.container, request.endpoint_config).await?;
        }
        Some((id, "disconnect")) => {
            let request: DisconnectRequest = body::read(&headers, request_body, Empty::Object).await?;
            containers::disconnect(engine, id.to_owned(), &request.container, request.force).await?;
        }
        _ => return Err(ApiError::not_found("page not found")),
    }
    Ok(StatusCode::OK)
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct DisconnectRequest {
    container: String,
    force: bool,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shape_is_dockers_in_order_and_nulls() {
        let network = netd::Network {
            id: "a".repeat(64),
            spec: Some(netd::CreateNetworkRequest {
                name: "n".into(),
                driver: "bridge".into(),
                ..netd::CreateNetworkRequest::default()
            }),
            pools: vec![netd::IpamPool { subnet: "10.0.0.0/8".into(), ..netd::IpamPool::default() }],
            enable_ipv4: true,
            ..netd::Network::default()
        };
        let text = to_json(&network, &Map::new());
        let keys: Vec<&String> = text.as_object().expect("object").keys().collect();
        assert_eq!(
            keys,
            [
                "Name",
                "Id",
                "Created",
                "Scope",
                "Driver",
                "EnableIPv4",
                "EnableIPv6",
                "IPAM",
                "Internal",
                "Attachable",
                "Ingress",
                "ConfigFrom",
                "ConfigOnly",
                "Containers",
                "Options",
                "Labels"
            ]
        );
        assert_eq!(text["IPAM"], json!({"Driver": "default", "Options": null, "Config": [{"Subnet": "10.0.0.0/8"}]}));
        assert_eq!((&text["Options"], &text["Labels"]), (&json!({}), &json!({})));
    }
}
