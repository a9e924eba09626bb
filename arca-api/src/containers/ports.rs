// SPDX-License-Identifier: Apache-2.0
//! A container's published ports: asked of arca-netd at start and whenever a network comes or goes, because they stand
//! at the endpoint that carries the default route, and nowhere without one. What is shown is what arca-netd has bound.

use std::collections::BTreeMap;

use arca_proto::netd::v1 as netd;

use crate::{
    containers::Record,
    docker::{
        host_config::PortBinding,
        ports::{bindings, published_key},
    },
    engine::Engine,
    http::ApiResult,
};

/// As inspect shows them: `80/tcp` to host addresses and ports.
type Published = BTreeMap<String, Vec<PortBinding>>;

fn wanted(record: &Record) -> ApiResult<Vec<netd::PortBinding>> {
    bindings(&record.host.port_bindings, record.config.exposed_ports.keys(), record.host.publish_all_ports)
}

fn shown(ports: Vec<netd::PublishedPort>) -> Published {
    let mut published = Published::new();
    for port in ports {
        let key = published_key(&port);
        // None where the container is reached by its own address.
        let host_port = if port.host_port == 0 { String::new() } else { port.host_port.to_string() };
        let binding = PortBinding { host_ip: port.host_ip, host_port };
        published.entry(key).or_default().push(binding);
    }
    published
}

/// Publishes what a container wants; all or nothing.
///
/// # Errors
/// Docker's: `driver failed programming external connectivity on endpoint …`.
pub async fn publish(engine: &Engine, record: &Record) -> ApiResult<Published> {
    let bindings = wanted(record)?;
    if bindings.is_empty() {
        return Ok(Published::new());
    }
    let request = netd::PublishPortsRequest { workload_id: record.id.clone(), bindings };
    Ok(shown(engine.netd.clone().publish_ports(request).await?.into_inner().ports))
}

/// What is published now.
///
/// # Errors
/// If arca-netd does not answer.
pub async fn published(engine: &Engine, record: &Record) -> ApiResult<Published> {
    if wanted(record)?.is_empty() {
        return Ok(Published::new());
    }
    let request = netd::ListPublishedPortsRequest { workload_id: record.id.clone() };
    Ok(shown(engine.netd.clone().list_published_ports(request).await?.into_inner().ports))
}

/// After a network was connected: what moved along, or all of it anew where the container had no way out before.
///
/// # Errors
/// As [`publish`].
pub async fn published_or_publish(engine: &Engine, record: &Record) -> ApiResult<Published> {
    let published = published(engine, record).await?;
    if published.is_empty() { publish(engine, record).await } else { Ok(published) }
}
