// SPDX-License-Identifier: Apache-2.0
//! Logs: text on a terminal, JSON lines otherwise. Field names are fixed: `network_id`, `container_id`, `link`, ...

use std::{io::IsTerminal, sync::OnceLock};

use tracing_subscriber::{EnvFilter, Registry, fmt, prelude::*, reload};

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Sets the process's logger up once; a second call is ignored. `level` is a word (`info`) or a filter
/// (`arca_netd=debug,info`). Standard error is the sink: a supervisor redirects it.
pub fn init(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let done = if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init()
    } else {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    };
    if done.is_err() || FILTER.set(handle).is_err() {
        tracing::debug!("the logger was set up before");
    }
}

/// Changes what is logged from now on. A level that is none, or a logger that is not ours, changes nothing.
pub fn set_level(level: &str) {
    if let (Some(handle), Ok(filter)) = (FILTER.get(), EnvFilter::try_new(level))
        && let Err(error) = handle.reload(filter)
    {
        tracing::warn!(%error, "the log level stays as it is");
    }
}
