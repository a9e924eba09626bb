// SPDX-License-Identifier: Apache-2.0
//! `arca daemon status`: who runs, and whether each daemon answers. Exit code 3 when the engine does not run.

use std::{path::Path, time::Duration};

use arca_daemon::{config::Config, paths::Paths};
use arca_proto::netd::v1::{GetStatusRequest, netd_client::NetdClient};
use hyper::{Method, StatusCode};
use serde_json::json;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use super::lock;
use crate::cli::{docker, print};

/// A daemon that does not answer within this is reported as such.
const PATIENCE: Duration = Duration::from_secs(3);

/// One daemon.
pub(in crate::cli) struct Line {
    pub(in crate::cli) name: &'static str,
    socket: String,
    /// "answers", or why not.
    pub(in crate::cli) state: String,
}

/// Prints the state of the engine.
pub(super) async fn show(config: &Config, as_json: bool) -> anyhow::Result<()> {
    let supervisor = lock::holder(config)?;
    let paths = &config.paths;
    let lines = daemons(paths).await;
    let helper = helper(&paths.netd_socket()).await;
    if as_json {
        let daemons =
            lines.each_ref().map(|line| json!({"name": line.name, "socket": line.socket, "state": line.state}));
        let value = json!({"supervisor": supervisor, "daemons": daemons, "helper": helper});
        print(&format!("{value:#}"));
    } else {
        match supervisor {
            Some(pid) => print(&format!("engine   runs, supervisor pid {pid}, data {}", paths.data.display())),
            None => print("engine   does not run (arca daemon start)"),
        }
        for line in &lines {
            print(&format!("{:<12} {:<10} {}", line.name, line.state, line.socket));
        }
        print(&format!("helper       {helper}"));
    }
    if supervisor.is_none() {
        std::process::exit(3);
    }
    Ok(())
}

/// Whether each daemon answers.
pub(in crate::cli) async fn daemons(paths: &Paths) -> [Line; 3] {
    let (relayd_socket, netd_socket) = (paths.relayd_socket(), paths.netd_socket());
    tokio::join!(health("arca-relayd", &relayd_socket), health("arca-netd", &netd_socket), api(&paths.docker_socket))
        .into()
}

async fn health(name: &'static str, socket: &Path) -> Line {
    let mut client = HealthClient::new(arca_proto::dial::unix_channel(socket));
    let asked = tokio::time::timeout(PATIENCE, client.check(HealthCheckRequest::default())).await;
    let state = match asked {
        Ok(Ok(_)) => "answers".to_owned(),
        Ok(Err(status)) if status.code() == tonic::Code::Unavailable => "down".to_owned(),
        Ok(Err(status)) => status.message().to_owned(),
        Err(_) => "hangs".to_owned(),
    };
    Line { name, socket: socket.display().to_string(), state }
}

async fn api(socket: &Path) -> Line {
    let asked = tokio::time::timeout(PATIENCE, docker::request(socket, Method::GET, "/_ping")).await;
    let state = match asked {
        Ok(Ok((StatusCode::OK, _))) => "answers".to_owned(),
        Ok(Ok((status, _))) => status.to_string(),
        Ok(Err(_)) => "down".to_owned(),
        Err(_) => "hangs".to_owned(),
    };
    Line { name: "arca-api", socket: socket.display().to_string(), state }
}

async fn helper(netd: &Path) -> String {
    let mut client = NetdClient::new(arca_proto::dial::unix_channel(netd));
    match tokio::time::timeout(PATIENCE, client.get_status(GetStatusRequest {})).await {
        Ok(Ok(status)) => status.into_inner().helper_state,
        _ => "unknown (arca-netd does not answer)".to_owned(),
    }
}
