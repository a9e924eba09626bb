// SPDX-License-Identifier: Apache-2.0
//! `docker stats`: what arca-init counts, in Docker's form.
//!
//! A stream asks once a second for as long as its client reads. Processor shares come from two samples, which every
//! answer but a one-shot one has; a container that does not run has an empty answer.

use std::{sync::Arc, time::Duration};

use arca_proto::init::v1 as init;
use bytes::Bytes;
use serde_json::{Map, Value, json};
use tokio::sync::mpsc;

use crate::{
    containers::Container,
    docker::time::rfc3339,
    http::{ApiError, ApiResult},
};

/// Time between two samples.
const PERIOD: Duration = Duration::from_secs(1);

/// What there is to say of the container now: `None` if it does not run.
///
/// # Errors
/// 500 if its machine does not answer.
async fn sample(container: &Container) -> ApiResult<Option<init::StatsResponse>> {
    let Ok(live) = container.running() else { return Ok(None) };
    let request = init::StatsRequest { workload_id: container.id.clone() };
    match live.init.clone().stats(request).await {
        Ok(stats) => Ok(Some(stats.into_inner())),
        // It has ended meanwhile.
        Err(_) if container.running().is_err() => Ok(None),
        Err(status) if matches!(status.code(), tonic::Code::NotFound | tonic::Code::FailedPrecondition) => Ok(None),
        Err(status) => Err(ApiError::internal(format!("container stats: {}", status.message()))),
    }
}

/// One answer. `one_shot` leaves the second sample, and the second it takes, away.
///
/// # Errors
/// 500 if the machine does not answer.
pub async fn once(container: &Container, one_shot: bool) -> ApiResult<Value> {
    let Some(first) = sample(container).await? else { return Ok(shape(container, None, None)) };
    if one_shot {
        let mut shot = shape(container, Some(&first), None);
        if let Some(fields) = shot.as_object_mut() {
            // Docker does not name whom it asked for one.
            fields.retain(|key, _| key != "name" && key != "id");
        }
        return Ok(shot);
    }
    tokio::time::sleep(PERIOD).await;
    let second = sample(container).await?;
    Ok(shape(container, second.as_ref(), Some(&first)))
}

/// A line of JSON a second, until the client or the container goes.
pub fn stream(container: Arc<Container>) -> mpsc::Receiver<Result<Bytes, std::convert::Infallible>> {
    let (lines, receiver) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut phase = container.phase.subscribe();
        let mut last = None;
        let mut ticks = tokio::time::interval(PERIOD);
        loop {
            // Both may be asked again: a tick that was cut short is still due, and what changed is looked at here.
            tokio::select! {
                _ = ticks.tick() => {}
                () = lines.closed() => return,
                gone = phase.wait_for(|phase| phase.removed) => {
                    drop(gone);
                    return;
                }
            }
            let Ok(next) = sample(&container).await else { return };
            let line = shape(&container, next.as_ref(), last.as_ref()).to_string() + "\n";
            last = next;
            if lines.send(Ok(Bytes::from(line))).await.is_err() {
                return;
            }
        }
    });
    receiver
}

/// Docker's `StatsResponse`.
fn shape(container: &Container, now: Option<&init::StatsResponse>, last: Option<&init::StatsResponse>) -> Value {
    let (name, host_network) = container.with(|record| (format!("/{}", record.name), record.is_host_network()));
    let time = |stats: Option<&init::StatsResponse>| rfc3339(stats.map_or(0, |stats| stats.read_at_ns));
    let mut out = json!({
        "read": time(now),
        "preread": time(last),
        "pids_stats": now.map_or_else(|| json!({}), pids),
        "blkio_stats": block(now),
        "num_procs": 0,
        "storage_stats": {},
        "cpu_stats": processor(now),
        "precpu_stats": processor(last),
        "memory_stats": now.map_or_else(|| json!({}), memory),
        "name": name,
        "id": container.id,
    });
    let interfaces: Map<String, Value> = now
        .filter(|_| !host_network)
        .into_iter()
        .flat_map(|stats| &stats.interfaces)
        .map(|interface| {
            let counters = json!({
                "rx_bytes": interface.rx_bytes,
                "rx_packets": interface.rx_packets,
                "rx_errors": interface.rx_errors,
                "rx_dropped": interface.rx_dropped,
                "tx_bytes": interface.tx_bytes,
                "tx_packets": interface.tx_packets,
                "tx_errors": interface.tx_errors,
                "tx_dropped": interface.tx_dropped,
            });
            (interface.name.clone(), counters)
        })
        .collect();
    if !interfaces.is_empty() {
        out["networks"] = Value::Object(interfaces);
    }
    out
}

/// Puts a number into an object unless it is zero: Docker leaves such fields out.
fn unless_zero(object: &mut Value, name: &str, number: u64) {
    if number > 0 {
        object[name] = json!(number);
    }
}

fn pids(stats: &init::StatsResponse) -> Value {
    let mut out = json!({});
    unless_zero(&mut out, "current", stats.pids);
    unless_zero(&mut out, "limit", stats.pids_limit);
    out
}

fn processor(stats: Option<&init::StatsResponse>) -> Value {
    let none = init::StatsResponse::default();
    let stats = stats.unwrap_or(&none);
    let mut usage = json!({"total_usage": stats.cpu_total_ns});
    if !stats.cpu_each_ns.is_empty() {
        usage["percpu_usage"] = json!(stats.cpu_each_ns);
    }
    usage["usage_in_kernelmode"] = json!(stats.cpu_kernel_ns);
    usage["usage_in_usermode"] = json!(stats.cpu_user_ns);
    let mut out = json!({"cpu_usage": usage});
    unless_zero(&mut out, "system_cpu_usage", stats.machine_cpu_ns);
    unless_zero(&mut out, "online_cpus", u64::from(stats.online_cpus));
    out["throttling_data"] = json!({
        "periods": stats.throttle_periods,
        "throttled_periods": stats.throttled_periods,
        "throttled_time": stats.throttled_ns,
    });
    out
}

fn memory(stats: &init::StatsResponse) -> Value {
    let mut out = json!({});
    unless_zero(&mut out, "usage", stats.memory_usage);
    unless_zero(&mut out, "max_usage", stats.memory_peak);
    if !stats.memory.is_empty() {
        let sorted: std::collections::BTreeMap<_, _> = stats.memory.iter().collect();
        out["stats"] = json!(sorted);
    }
    // Without a limit it is what the machine has.
    unless_zero(&mut out, "limit", stats.memory_limit.min(stats.machine_memory));
    out
}

fn block(stats: Option<&init::StatsResponse>) -> Value {
    let bytes = stats.map_or(Value::Null, |stats| {
        let entries = stats
            .block
            .iter()
            .map(|one| json!({"major": one.major, "minor": one.minor, "op": one.operation, "value": one.bytes}));
        let entries: Vec<Value> = entries.collect();
        if entries.is_empty() { Value::Null } else { json!(entries) }
    });
    json!({
        "io_service_bytes_recursive": bytes,
        "io_serviced_recursive": null,
        "io_queue_recursive": null,
        "io_service_time_recursive": null,
        "io_wait_time_recursive": null,
        "io_merged_recursive": null,
        "io_time_recursive": null,
        "sectors_recursive": null,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        containers::{start, stop},
        fakes::World,
    };

    #[tokio::test]
    async fn a_running_container_has_figures_and_a_stopped_one_zeros() {
        let world = World::new().await;
        let one = world.create("one", json!({"Image": "img"})).await.expect("create");
        let empty = once(&one, true).await.expect("stats");
        assert_eq!(empty["name"], "/one");
        assert_eq!((empty["read"].as_str(), &empty["memory_stats"]), (Some("0001-01-01T00:00:00Z"), &json!({})));
        assert_eq!(empty["cpu_stats"]["cpu_usage"]["total_usage"], 0);
        assert!(empty.get("networks").is_none());
        start::start(&world.engine, &one).await.expect("start");
        let full = once(&one, true).await.expect("stats");
        assert_eq!(full["memory_stats"], json!({"usage": 4096, "limit": 1 << 30}));
        assert_eq!(full["cpu_stats"]["online_cpus"], 2);
        assert_eq!(full["networks"]["eth0"]["rx_bytes"], 5);
        assert_eq!(full["preread"], "0001-01-01T00:00:00Z");
        let mut lines = stream(one.clone());
        let first = lines.recv().await.expect("a line").expect("no error");
        assert!(first.ends_with(b"}\n"));
        stop::kill(&world.engine, &one, "one", "").await.expect("kill");
        crate::containers::remove::remove(&world.engine, &one, crate::containers::remove::Options::default())
            .await
            .expect("remove");
        while lines.recv().await.is_some() {}
    }
}
