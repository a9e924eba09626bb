// SPDX-License-Identifier: Apache-2.0
//! `docker update`: other limits and another restart policy, of a container that runs or not.

use std::sync::Arc;

use arca_proto::init::v1 as init;
use serde_json::Value;

use crate::{
    containers::{Container, Status, inside},
    docker::host_config::HostConfig,
    engine::Engine,
    http::{ApiError, ApiResult},
    spec,
};

/// Changes what `request` names: the fields of `HostConfig` that are limits, and `RestartPolicy`.
///
/// # Errors
/// 400 for values that make no sense, 409 for those that contradict what is set, 500 if the machine refuses them.
/// Nothing has changed then.
pub async fn update(engine: &Arc<Engine>, container: &Arc<Container>, request: Value) -> ApiResult<()> {
    let policy = request["RestartPolicy"]["Name"].as_str().is_some_and(|name| !name.is_empty());
    let asked: HostConfig =
        serde_json::from_value(request).map_err(|error| ApiError::bad_request(format!("invalid JSON: {error}")))?;
    validate(&asked)?;
    let within = |error: ApiError| error.within(&format!("Cannot update container {}", container.id));
    let _op = container.ops.lock().await;
    let status = container.with(|record| record.state.status);
    if status == Status::Dead {
        return Err(within(ApiError::internal("container is marked for removal and cannot be \"update\"")));
    }
    let mut host = container.with(|record| record.host.clone());
    merge(&mut host, &asked, policy).map_err(within)?;
    if let Some(live) = container.live().filter(|_| matches!(status, Status::Running | Status::Paused)) {
        let mut resources = spec::limits(&host).map_err(|error| within(ApiError::bad_request(error.to_string())))?;
        inside::adapt_limits(live.machine.kind(), &mut resources);
        let oci_resources = resources.to_string().into_bytes();
        let request = init::UpdateWorkloadRequest { workload_id: container.id.clone(), oci_resources };
        live.init
            .clone()
            .update_workload(request)
            .await
            .map_err(|status| within(ApiError::internal(status.message().to_owned())))?;
    }
    container.update(engine, |record| record.host = host).await?;
    container.emit(engine, "update", &[]);
    Ok(())
}

fn validate(asked: &HostConfig) -> ApiResult<()> {
    let mut alone = asked.clone();
    if alone.memory == 0 {
        // The memory limit that this one belongs to may be set already.
        alone.memory_swap = 0;
    }
    alone.validate()
}

/// Takes over what was asked for; 0 and "" are "not asked for".
fn merge(host: &mut HostConfig, asked: &HostConfig, policy: bool) -> ApiResult<()> {
    let nano_first = "cannot be updated as NanoCPUs has already been set";
    let conflicts = [
        (asked.nano_cpus > 0 && host.cpu_period > 0, "Nano CPUs cannot be updated as CPU Period has already been set"),
        (asked.nano_cpus > 0 && host.cpu_quota > 0, "Nano CPUs cannot be updated as CPU Quota has already been set"),
        (asked.cpu_period > 0 && host.nano_cpus > 0, &format!("CPU Period {nano_first}")),
        (asked.cpu_quota > 0 && host.nano_cpus > 0, &format!("CPU Quota {nano_first}")),
    ];
    if let Some((_, text)) = conflicts.iter().find(|(conflict, _)| *conflict) {
        return Err(ApiError::conflict(format!("Conflicting options: {text}")));
    }
    if asked.memory != 0 && asked.memory_swap == 0 && asked.memory > host.memory_swap {
        return Err(ApiError::conflict(
            "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time",
        ));
    }
    if policy && host.auto_remove && asked.restart_policy.name != "no" {
        return Err(ApiError::conflict(
            "Restart policy cannot be updated because AutoRemove is enabled for the container",
        ));
    }
    for (field, value) in [
        (&mut host.cpu_shares, asked.cpu_shares),
        (&mut host.nano_cpus, asked.nano_cpus),
        (&mut host.cpu_period, asked.cpu_period),
        (&mut host.cpu_quota, asked.cpu_quota),
        (&mut host.cpu_realtime_period, asked.cpu_realtime_period),
        (&mut host.cpu_realtime_runtime, asked.cpu_realtime_runtime),
        (&mut host.memory, asked.memory),
        (&mut host.memory_swap, asked.memory_swap),
        (&mut host.memory_reservation, asked.memory_reservation),
    ] {
        if value != 0 {
            *field = value;
        }
    }
    if asked.blkio_weight != 0 {
        host.blkio_weight = asked.blkio_weight;
    }
    for (field, value) in [(&mut host.cpuset_cpus, &asked.cpuset_cpus), (&mut host.cpuset_mems, &asked.cpuset_mems)] {
        if !value.is_empty() {
            field.clone_from(value);
        }
    }
    if let Some(limit) = asked.pids_limit {
        // 0 and less lift the limit.
        host.pids_limit = Some(limit.max(0));
    }
    if policy {
        host.restart_policy = asked.restart_policy.clone();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{containers::start, fakes::World};

    #[tokio::test]
    async fn limits_and_policy_change_and_a_refusal_changes_nothing() {
        let world = World::new().await;
        let engine = &world.engine;
        let one = world.create("one", json!({"Image": "img"})).await.expect("create");
        let ask = |request: Value| update(engine, &one, request);
        let host = || one.record().host;
        ask(json!({"Memory": 64 << 20, "MemorySwap": -1, "CpuShares": 512, "PidsLimit": -1})).await.expect("stopped");
        assert_eq!((host().memory, host().memory_swap, host().cpu_shares), (64 << 20, -1, 512));
        assert_eq!((host().pids_limit, host().restart_policy.name.as_str()), (Some(0), "no"));
        start::start(engine, &one).await.expect("start");
        ask(json!({"RestartPolicy": {"Name": "always"}, "NanoCpus": 500_000_000})).await.expect("running");
        assert_eq!((host().restart_policy.name.as_str(), host().nano_cpus), ("always", 500_000_000));
        assert_eq!(world.events().iter().filter(|event| *event == "container update").count(), 2);
        let before = host();
        for (request, status, text) in [
            (json!({"CpuPeriod": 50_000}), 409, "CPU Period cannot be updated as NanoCPUs has already been set"),
            (json!({"Memory": 128 << 20}), 409, "Memory limit should be smaller than already set memoryswap limit"),
            (json!({"Memory": 5}), 400, "Minimum memory limit allowed is 6MB"),
            (json!({"RestartPolicy": {"Name": "zz"}}), 400, "unknown policy 'zz'"),
            (json!({"PidsLimit": 666}), 500, "write pids.max"),
        ] {
            let error = ask(request).await.expect_err(text);
            assert_eq!(error.status.as_u16(), status, "{error}");
            assert!(error.message.contains(text), "{error}");
        }
        assert_eq!(host(), before);
    }
}
