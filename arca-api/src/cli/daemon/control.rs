// SPDX-License-Identifier: Apache-2.0
//! `arca daemon start` and `stop`.

use std::{
    fs::{File, OpenOptions},
    io::{Read as _, Seek as _, SeekFrom},
    path::Path,
    process::Stdio,
    time::Duration,
};

use anyhow::{Context as _, bail};
use arca_daemon::{
    config::{CommonArgs, Config},
    exit::{Failure, Fatal},
};
use arca_proto::netd::v1::{StopHelperRequest, netd_client::NetdClient};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    process::Command,
};

use super::{lock, preflight};
use crate::cli::{docker, platform, print};

/// How long a stopping engine may take.
const STOP: Duration = Duration::from_secs(30);

/// Starts the engine and prints its one line.
pub(super) async fn start(config: &Config, common: &CommonArgs) -> anyhow::Result<()> {
    print(&launch(config, common).await?);
    Ok(())
}

/// Starts the supervisor in a session of its own and waits for its one line.
async fn launch(config: &Config, common: &CommonArgs) -> anyhow::Result<String> {
    preflight::check(config)?;
    if let Some(pid) = lock::holder(config)? {
        let text = format!("the engine runs already (pid {pid}); `arca daemon status` shows it");
        return Err(Fatal::new(Failure::AlreadyRunning, text).into());
    }
    std::fs::create_dir_all(&config.paths.log)?;
    let log_path = super::supervise::log_path(config, "arca");
    let log = OpenOptions::new().create(true).append(true).open(&log_path)?;
    let before = log.metadata()?.len();
    let mut command = Command::new(std::env::current_exe()?);
    for (key, value) in &common.config {
        command.arg("-c").arg(format!("{key}={value}"));
    }
    if let Some(level) = &common.log_level {
        command.args(["--log-level", level]);
    }
    command.args(["daemon", "run"]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::from(log));
    platform::own_session(&mut command);
    let mut child = command.spawn().context("start the supervisor")?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line).await?;
    }
    if line.starts_with("DOCKER_HOST=") {
        return Ok(line.trim_end().to_owned());
    }
    // It gave up before it was ready: the last line it logged is the reason, its exit code ours.
    let code = child.wait().await?.code().and_then(|code| u8::try_from(code).ok());
    let mut text = String::new();
    let mut log = File::open(&log_path)?;
    log.seek(SeekFrom::Start(before))?;
    log.read_to_string(&mut text)?;
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("the supervisor ended without a word");
    let text = last.strip_prefix("arca: ").unwrap_or(last);
    Err(Fatal::new(Failure::from_code(code.unwrap_or(1)), text).into())
}

/// Tells the supervisor, which tells its daemons. The configuration was read before and is not wrong.
pub(super) fn reload(config: &Config) -> anyhow::Result<()> {
    let Some(pid) = lock::holder(config)? else {
        bail!("the engine is not running");
    };
    kill(Pid::from_raw(pid), Signal::SIGHUP).with_context(|| format!("signal the supervisor (pid {pid})"))?;
    print("reloaded");
    Ok(())
}

/// Ends the daemons; with `all` also containers and the helper machine.
pub(super) async fn stop(config: &Config, common: &CommonArgs, all: bool) -> anyhow::Result<()> {
    let pid = match lock::holder(config)? {
        Some(pid) => pid,
        // Only its own daemons know how to end what an engine that was stopped left running: they adopt it first.
        None if all && machines_left(config) => {
            launch(config, common).await.context("start the engine, to end what it left running")?;
            lock::holder(config)?.context("the engine has ended again; see its log")?
        }
        None => {
            print("the engine is not running");
            return Ok(());
        }
    };
    let helper = if all { stop_machines(config).await? } else { Ok(()) };
    let ended = lock::released(config)?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).with_context(|| format!("signal the supervisor (pid {pid})"))?;
    if tokio::time::timeout(STOP, ended).await.is_err() {
        bail!("the supervisor (pid {pid}) did not end within {} s; see its log", STOP.as_secs());
    }
    helper?;
    print(if all { "stopped, containers and helper machine too" } else { "stopped; containers go on" });
    Ok(())
}

/// Ends every container and then the helper machine, whose failure is the inner result: the daemons can be ended anyway.
pub(super) async fn stop_machines(config: &Config) -> anyhow::Result<anyhow::Result<()>> {
    let stopped = docker::stop_all(&config.paths.docker_socket).await;
    stopped.context("stop the containers (their machines go on; `arca daemon logs arca-api` may say why)")?;
    let mut netd = NetdClient::new(arca_proto::dial::unix_channel(&config.paths.netd_socket()));
    Ok(netd.stop_helper(StopHelperRequest {}).await.map(drop).context("stop the helper machine"))
}

/// Whether machines may still run: their sockets go last.
pub(super) fn machines_left(config: &Config) -> bool {
    let holds_something = |folder: &Path| std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_some());
    holds_something(&config.paths.run.join("m"))
        || holds_something(&config.paths.helper_sockets())
        || config.paths.native_marker().exists()
}
