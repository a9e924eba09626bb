// SPDX-License-Identifier: Apache-2.0
//! `--pid container:NAME`: whose namespace a container joins. Called by create and start.

use crate::{
    containers::Record,
    docker::host_config::HostConfig,
    engine::Engine,
    http::{ApiError, ApiResult},
    spec::JOINED,
};

/// The container that is named is meant, not its name.
///
/// # Errors
/// 500 for one that is not there, as Docker.
pub fn fix(engine: &Engine, host: &mut HostConfig) -> ApiResult<()> {
    if let Some(name) = host.pid_mode.strip_prefix("container:") {
        let other = engine.container(name).map_err(|error| ApiError::internal(error.message))?;
        host.pid_mode = format!("container:{}", other.id);
    }
    Ok(())
}

/// Puts the path of the namespace in the place of the container, in the copy of the record that is started from.
///
/// # Errors
/// Docker's texts for one that is gone or does not run.
pub fn resolve(engine: &Engine, record: &mut Record) -> ApiResult<()> {
    let Some(name) = record.host.pid_mode.strip_prefix("container:") else { return Ok(()) };
    let within = |error: ApiError| error.within("failed to join PID namespace");
    let other = engine.container(name).map_err(within)?;
    let (pid, running) = other.with(|other| (other.state.pid, other.state.is_running()));
    if !running {
        return Err(within(ApiError::conflict(format!("container {} is not running", other.id))));
    }
    record.host.pid_mode = format!("{JOINED}/proc/{pid}/ns/pid");
    Ok(())
}
