// SPDX-License-Identifier: Apache-2.0
//! systemd units: a socket and a service for each daemon.
//!
//! Socket activation instead of ordering; `KillMode=process` and `Delegate=yes`, because machines outlive the daemon that
//! started them (systemd.kill(5), systemd.resource-control(5)).

use std::{fmt::Write as _, path::PathBuf};

use arca_daemon::{
    exit::{Failure, Fatal},
    services::{API, SERVICES, Service},
};

use super::{Manager, Plan, ServiceFile, must_be_root, tell};

/// A daemon that does not say for so long that it lives is started again.
const WATCHDOG_SECONDS: u32 = 30;

/// What a daemon that starts no machine does not need. Nothing of it binds the others: they hand down what they may to
/// their machines, where containers have setuid programs, mounts and every system call that Docker's profile allows.
const HARDENED: &str = "NoNewPrivileges=yes
LockPersonality=yes
MemoryDenyWriteExecute=yes
ProtectClock=yes
ProtectHome=read-only
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectSystem=full
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
";

#[derive(Debug)]
pub(super) struct Systemd;

impl Manager for Systemd {
    fn files(&self, plan: &Plan) -> anyhow::Result<Vec<ServiceFile>> {
        let files = SERVICES.iter().flat_map(|service| {
            [
                ServiceFile { name: format!("{}.socket", service.program), text: socket(service, plan) },
                ServiceFile { name: format!("{}.service", service.program), text: unit(service, plan) },
            ]
        });
        Ok(files.collect())
    }

    fn folder(&self, _: &Plan) -> PathBuf {
        "/etc/systemd/system".into()
    }

    fn check(&self) -> Result<(), Fatal> {
        // sd_booted(3).
        if !std::path::Path::new("/run/systemd/system").is_dir() {
            let text = "this machine is not run by systemd: `arca daemon start` runs the engine without it";
            return Err(Fatal::new(Failure::Missing, text));
        }
        must_be_root("a system service")
    }

    fn enable(&self, plan: &Plan) -> anyhow::Result<()> {
        tell("systemctl", &["daemon-reload"])?;
        let mut arguments = vec!["enable".to_owned()];
        arguments.extend(units());
        tell("systemctl", &arguments.iter().map(String::as_str).collect::<Vec<_>>())?;
        self.start(plan)
    }

    fn disable(&self, _: &Plan) -> anyhow::Result<()> {
        let mut arguments = vec!["disable".to_owned()];
        arguments.extend(units());
        tell("systemctl", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }

    fn start(&self, _: &Plan) -> anyhow::Result<()> {
        let mut arguments = vec!["start".to_owned()];
        arguments.extend(units());
        tell("systemctl", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }

    fn stop(&self, _: &Plan) -> anyhow::Result<()> {
        // Sockets and services in one transaction: a client that connects meanwhile starts nothing again.
        let mut arguments = vec!["stop".to_owned()];
        for service in SERVICES.iter().rev() {
            arguments.extend([format!("{}.socket", service.program), format!("{}.service", service.program)]);
        }
        tell("systemctl", &arguments.iter().map(String::as_str).collect::<Vec<_>>()).map(drop)
    }

    fn status(&self) -> anyhow::Result<Vec<String>> {
        let mut lines = Vec::new();
        for service in SERVICES {
            let unit = format!("{}.service", service.program);
            let properties = "--property=LoadState,ActiveState,SubState,MainPID,NRestarts,ActiveEnterTimestamp";
            let said = tell("systemctl", &["show", properties, &unit])?;
            lines.push(status_line(&unit, &said));
        }
        Ok(lines)
    }
}

/// What is enabled and started: every socket, and arca-api itself, for containers that start with the machine.
fn units() -> Vec<String> {
    let sockets = SERVICES.iter().map(|service| format!("{}.socket", service.program));
    sockets.chain([format!("{}.service", API.program)]).collect()
}

pub(super) fn status_line(unit: &str, said: &str) -> String {
    let value = |key: &str| {
        let found = said.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        found.unwrap_or_default()
    };
    if value("LoadState") == "not-found" {
        return format!("{unit:<20} not installed (arca service install)");
    }
    let mut line = format!("{unit:<20} {} ({})", value("ActiveState"), value("SubState"));
    if value("MainPID") != "0" {
        let _ = write!(line, ", pid {}, since {}", value("MainPID"), value("ActiveEnterTimestamp"));
    }
    if !matches!(value("NRestarts"), "0" | "") {
        let _ = write!(line, ", restarted {} times", value("NRestarts"));
    }
    line
}

fn socket(service: &Service, plan: &Plan) -> String {
    let path = (service.path)(&plan.config.paths);
    let group = if plan.group && service.program == API.program { "SocketGroup=arca\n" } else { "" };
    format!(
        "[Unit]\nDescription={} (socket)\n\n[Socket]\nListenStream={}\nSocketMode={:04o}\n{group}FileDescriptorName={}\n\n\
         [Install]\nWantedBy=sockets.target\n",
        service.description,
        specifiers(&path.to_string_lossy()),
        service.mode,
        service.socket,
    )
}

fn unit(service: &Service, plan: &Plan) -> String {
    let program = plan.programs.join(service.program);
    let mut text = format!(
        "[Unit]\nDescription={}\nDocumentation=man:{}(1)\nAfter=network.target\n",
        service.description, service.program
    );
    // Not for order: whoever connects finds the socket.
    let others = SERVICES.iter().map(|other| format!("{}.socket", other.program));
    let _ = writeln!(text, "Requires={}.socket", service.program);
    let _ = writeln!(
        text,
        "Wants={}",
        others.filter(|name| !name.starts_with(service.program)).collect::<Vec<_>>().join(" ")
    );
    // A daemon that is killed over and over comes back each time: frames and containers wait for it.
    text.push_str("StartLimitIntervalSec=0\n\n[Service]\nType=notify\n");
    let _ = writeln!(text, "ExecStart={} serve", quoted(&program.to_string_lossy()));
    text.push_str("ExecReload=/bin/kill -HUP $MAINPID\n");
    let home = plan.home.as_ref().map(|home| ("ARCA_HOME", home));
    for (name, value) in home.into_iter().chain([("HOME", &plan.user_home)]) {
        let _ = writeln!(text, "Environment={}", quoted(&format!("{name}={}", value.to_string_lossy())));
    }
    let _ = writeln!(text, "Restart=on-failure\nRestartSec=200ms\nWatchdogSec={WATCHDOG_SECONDS}");
    text.push_str("KillMode=process\nDelegate=yes\nLimitNOFILE=1048576\nTasksMax=infinity\nOOMScoreAdjust=-500\n");
    if !service.starts_machines {
        text.push_str(HARDENED);
    }
    if service.program == API.program {
        text.push_str("\n[Install]\nWantedBy=multi-user.target\n");
    }
    text
}

/// systemd.unit(5): a percent sign begins a specifier.
fn specifiers(text: &str) -> String {
    text.replace('%', "%%")
}

/// systemd.service(5), "Command lines": one word, whatever is in it.
fn quoted(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-=:+@".contains(&byte);
    let text = specifiers(text).replace('$', "$$");
    if text.bytes().all(plain) {
        return text;
    }
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}
