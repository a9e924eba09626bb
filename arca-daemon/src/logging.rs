// SPDX-License-Identifier: Apache-2.0
//! Logs: text on a terminal, JSON lines otherwise. Field names are fixed: `network_id`, `container_id`, `link`, ...

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

/// Sets the process's logger up once; a second call is ignored. `level` is a word (`info`) or a filter
/// (`arca_netd=debug,info`). Standard error is the sink: a supervisor redirects it.
pub fn init(level: &str) {
    let filter = EnvFilter::try_new(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let registry = tracing_subscriber::registry().with(filter);
    let done = if std::io::stderr().is_terminal() {
        registry.with(fmt::layer().with_writer(std::io::stderr).with_target(false)).try_init()
    } else {
        registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
    };
    if done.is_err() {
        tracing::debug!("the logger was set up before");
    }
}
