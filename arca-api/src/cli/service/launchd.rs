// SPDX-License-Identifier: Apache-2.0
//! launchd property lists (launchd.plist(5)): a job for each daemon, started when somebody connects to its socket.
//!
//! No `ProcessType`: a background job is throttled, and frames pass through these processes. `AbandonProcessGroup`:
//! machines outlive the daemon that started them.

use std::path::PathBuf;

use arca_daemon::{
    exit::{Failure, Fatal},
    services::{API, SERVICES, Service},
};
use plist::{Dictionary, Value};

use super::{Manager, Plan, ServiceFile, tell};

/// Reverse domain name of the jobs' labels.
const PREFIX: &str = "dev.arca";

/// launchctl's code for a job that is still on its way out (EINPROGRESS of macOS).
const IN_PROGRESS: &str = "36";

#[derive(Debug)]
pub(super) struct Launchd;

impl Manager for Launchd {
    fn files(&self, plan: &Plan) -> anyhow::Result<Vec<ServiceFile>> {
        SERVICES
            .iter()
            .map(|service| {
                let mut text = Vec::new();
                Value::Dictionary(job(service, plan)).to_writer_xml(&mut text)?;
                text.push(b'\n');
                Ok(ServiceFile { name: format!("{}.plist", label(service)), text: String::from_utf8(text)? })
            })
            .collect()
    }

    fn folder(&self, plan: &Plan) -> PathBuf {
        match nix::unistd::geteuid().is_root() {
            true => "/Library/LaunchDaemons".into(),
            false => plan.user_home.join("Library/LaunchAgents"),
        }
    }

    fn check(&self) -> Result<(), Fatal> {
        match cfg!(target_os = "macos") {
            true => Ok(()),
            false => Err(Fatal::new(Failure::Missing, "launchd is macOS's: `--print` and `--into FOLDER` work here")),
        }
    }

    fn enable(&self, plan: &Plan) -> anyhow::Result<()> {
        // A job of an earlier installation keeps its old property list until it is booted out.
        self.stop(plan)?;
        self.start(plan)
    }

    fn disable(&self, _: &Plan) -> anyhow::Result<()> {
        // A job that was booted out and whose file is removed is forgotten.
        Ok(())
    }

    fn start(&self, plan: &Plan) -> anyhow::Result<()> {
        let (domain, folder) = (domain(), self.folder(plan));
        for service in SERVICES {
            let target = format!("{domain}/{}", label(&service));
            tell("launchctl", &["enable", &target])?;
            if tell("launchctl", &["print", &target]).is_err() {
                let file = folder.join(format!("{}.plist", label(&service)));
                tell("launchctl", &["bootstrap", &domain, &file.to_string_lossy()])?;
            }
        }
        tell("launchctl", &["kickstart", &format!("{domain}/{}", label(&API))]).map(drop)
    }

    fn stop(&self, _: &Plan) -> anyhow::Result<()> {
        let domain = domain();
        for service in SERVICES.iter().rev() {
            let target = format!("{domain}/{}", label(service));
            if tell("launchctl", &["print", &target]).is_err() {
                continue;
            }
            // With the socket goes whoever could start it again.
            match tell("launchctl", &["bootout", &target]) {
                // It drains its calls; launchd ends it if it does not.
                Err(error) if error.to_string().contains(IN_PROGRESS) => {}
                other => drop(other?),
            }
        }
        Ok(())
    }

    fn status(&self) -> anyhow::Result<Vec<String>> {
        let domain = domain();
        let line = |service: &Service| {
            let name = label(service);
            match tell("launchctl", &["print", &format!("{domain}/{name}")]) {
                Ok(said) => status_line(&name, &said),
                Err(_) => format!("{name:<20} not installed (arca service install)"),
            }
        };
        Ok(SERVICES.iter().map(line).collect())
    }
}

fn status_line(name: &str, said: &str) -> String {
    let value = |key: &str| said.lines().find_map(|line| line.trim().strip_prefix(key)?.strip_prefix(" = "));
    let pid = value("pid").map(|pid| format!(", pid {pid}")).unwrap_or_default();
    format!("{name:<20} {}{pid}", value("state").unwrap_or("unknown"))
}

fn label(service: &Service) -> String {
    format!("{PREFIX}.{}", service.program.trim_start_matches("arca-"))
}

/// launchctl(1): the system's domain, or that of the user's session.
fn domain() -> String {
    let user = nix::unistd::geteuid();
    if user.is_root() { "system".to_owned() } else { format!("gui/{user}") }
}

fn job(service: &Service, plan: &Plan) -> Dictionary {
    let paths = &plan.config.paths;
    let text = |path: PathBuf| Value::String(path.to_string_lossy().into_owned());
    let dictionary = |pairs: Vec<(&str, Value)>| {
        let pairs = pairs.into_iter().map(|(key, value)| (key.to_owned(), value));
        Value::Dictionary(pairs.collect())
    };
    let mut environment = vec![("HOME", text(plan.user_home.clone()))];
    environment.extend(plan.home.clone().map(|home| ("ARCA_HOME", text(home))));
    let log = text(paths.log.join(format!("{}.log", service.program)));
    let socket = dictionary(vec![
        ("SockPathName", text((service.path)(paths))),
        // launchd.plist(5): decimal, and permission bits have no other form in a property list.
        ("SockPathMode", Value::Integer(u64::from(service.mode).into())),
    ]);
    let pairs = vec![
        ("Label", Value::String(label(service))),
        (
            "ProgramArguments",
            Value::Array(vec![text(plan.programs.join(service.program)), Value::String("serve".into())]),
        ),
        ("EnvironmentVariables", dictionary(environment)),
        ("KeepAlive", dictionary(vec![("SuccessfulExit", Value::Boolean(false))])),
        ("RunAtLoad", Value::Boolean(service.program == API.program)),
        ("Sockets", dictionary(vec![(service.socket, socket)])),
        ("AbandonProcessGroup", Value::Boolean(true)),
        ("StandardOutPath", log.clone()),
        ("StandardErrorPath", log),
    ];
    pairs.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}
