// SPDX-License-Identifier: Apache-2.0
//! `arca service ...`: the host daemons under systemd or launchd, from one table ([`arca_daemon::services`]).
//!
//! The service manager makes the sockets and starts a daemon when somebody first connects, so there is no order to keep.
//! Machines outlive the daemons that started them, here as under `arca daemon run`.

mod launchd;
mod systemd;

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command as Process,
};

use anyhow::Context as _;
use arca_daemon::{
    config::{CommonArgs, Config},
    exit::{Failure, Fatal},
};
use clap::{Subcommand, ValueEnum};

use crate::cli::{daemon, print};

/// `arca service ...`
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Write the service files, and start the engine now and at every boot
    Install {
        /// Only write the files, into this folder (for packages)
        #[arg(long, value_name = "FOLDER", conflicts_with = "print")]
        into: Option<PathBuf>,
        /// Only print the files
        #[arg(long)]
        print: bool,
        /// Whose files; the platform's own unless given
        #[arg(long, value_enum)]
        manager: Option<ManagerKind>,
        /// Folder of the programs, if not this program's own
        #[arg(long, value_name = "FOLDER")]
        programs: Option<PathBuf>,
    },
    /// Stop the engine with its containers and remove the service files
    Uninstall,
    /// Start the installed engine
    Start,
    /// Stop the installed engine; containers and the helper machine go on
    Stop {
        /// Also stop every container, the helper machine, and undo host changes
        #[arg(long)]
        all: bool,
    },
    /// What the service manager says of each daemon
    Status,
}

/// Who supervises the daemons.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum ManagerKind {
    /// Linux
    Systemd,
    /// macOS
    Launchd,
}

/// A file for the service manager.
#[derive(Debug, PartialEq, Eq)]
struct ServiceFile {
    name: String,
    text: String,
}

/// What the files are made from.
#[derive(Debug)]
struct Plan {
    /// Folder of the daemons' programs.
    programs: PathBuf,
    /// `ARCA_HOME`, if this engine has one.
    home: Option<PathBuf>,
    /// The user whose `~/.arca` is the configuration.
    user_home: PathBuf,
    config: Config,
    /// Whether there is a group that may use docker's socket.
    group: bool,
}

trait Manager {
    /// The files of an installation.
    fn files(&self, plan: &Plan) -> anyhow::Result<Vec<ServiceFile>>;
    /// Where they belong.
    fn folder(&self, plan: &Plan) -> PathBuf;
    /// One clear line if it does not run on this machine or this user may not.
    fn check(&self) -> Result<(), Fatal>;
    /// Takes the written files over and starts the engine, now and at every boot.
    fn enable(&self, plan: &Plan) -> anyhow::Result<()>;
    /// Forgets the engine, which has been stopped; the files are still there.
    fn disable(&self, plan: &Plan) -> anyhow::Result<()>;
    /// Starts the engine.
    fn start(&self, plan: &Plan) -> anyhow::Result<()>;
    /// Stops the daemons.
    fn stop(&self, plan: &Plan) -> anyhow::Result<()>;
    /// One line a daemon.
    fn status(&self) -> anyhow::Result<Vec<String>>;
}

fn manager(kind: Option<ManagerKind>) -> Box<dyn Manager> {
    let own = if cfg!(target_os = "macos") { ManagerKind::Launchd } else { ManagerKind::Systemd };
    match kind.unwrap_or(own) {
        ManagerKind::Systemd => Box::new(systemd::Systemd),
        ManagerKind::Launchd => Box::new(launchd::Launchd),
    }
}

/// Runs `arca service ...`.
///
/// # Errors
/// One clear line with the way out.
pub fn run(command: Command, common: &CommonArgs) -> anyhow::Result<()> {
    let mut plan = plan(common.load()?)?;
    match command {
        Command::Install { into, print: only_print, manager: kind, programs } => {
            plan.programs = programs.unwrap_or(plan.programs);
            let manager = manager(kind);
            let files = manager.files(&plan)?;
            if only_print {
                files.iter().for_each(|file| print(&format!("# {}\n{}", file.name, file.text)));
                return Ok(());
            }
            if let Some(folder) = into {
                return write(&folder, &files);
            }
            manager.check()?;
            daemon::refuse_if_running(&plan.config)?;
            write(&manager.folder(&plan), &files)?;
            manager.enable(&plan)?;
            print(&format!("DOCKER_HOST=unix://{}", plan.config.paths.docker_socket.display()));
        }
        Command::Uninstall => {
            let manager = manager(None);
            manager.check()?;
            daemon::stop_machines(&plan.config)?;
            manager.stop(&plan)?;
            manager.disable(&plan)?;
            for file in manager.files(&plan)? {
                remove(&manager.folder(&plan).join(file.name))?;
            }
            print("uninstalled; images, volumes and networks stay");
        }
        Command::Start => {
            let manager = manager(None);
            manager.check()?;
            manager.start(&plan)?;
            print(&format!("DOCKER_HOST=unix://{}", plan.config.paths.docker_socket.display()));
        }
        Command::Stop { all } => {
            let manager = manager(None);
            manager.check()?;
            if all {
                daemon::stop_machines(&plan.config)?;
            }
            manager.stop(&plan)?;
            print(if all { "stopped, containers and helper machine too" } else { "stopped; containers go on" });
        }
        Command::Status => {
            let manager = manager(None);
            manager.check()?;
            manager.status()?.iter().for_each(|line| print(line));
        }
    }
    Ok(())
}

fn plan(config: Config) -> anyhow::Result<Plan> {
    let program = std::env::current_exe().context("find this program")?;
    let group = nix::unistd::Group::from_name("arca").is_ok_and(|group| group.is_some());
    Ok(Plan {
        programs: program.parent().map(Path::to_path_buf).unwrap_or_default(),
        home: std::env::var_os("ARCA_HOME").map(std::path::absolute).transpose().context("find ARCA_HOME")?,
        user_home: std::env::var_os("HOME").map_or_else(|| PathBuf::from("/root"), PathBuf::from),
        config,
        group,
    })
}

/// Writes all files or, where one cannot be written, none.
fn write(folder: &Path, files: &[ServiceFile]) -> anyhow::Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("create {}", folder.display()))?;
    let mut written = Vec::new();
    for file in files {
        let path = folder.join(&file.name);
        let existed = path.exists();
        if let Err(error) = fs::write(&path, &file.text) {
            for path in written {
                // What was there before is overwritten by now; what was not goes again.
                let _ = fs::remove_file(path);
            }
            return Err(error).with_context(|| format!("write {}", path.display()));
        }
        if !existed {
            written.push(path);
        }
    }
    Ok(())
}

fn remove(path: &Path) -> anyhow::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("remove {}", path.display()))
        }
        _ => Ok(()),
    }
}

/// Runs a program of the service manager; its own words are the error.
fn tell(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let what = || format!("{program} {}", arguments.join(" "));
    let output = Process::new(program).args(arguments).output().with_context(what)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        anyhow::bail!("{}: {}: {}", what(), output.status, said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn must_be_root(what: &str) -> Result<(), Fatal> {
    match nix::unistd::geteuid().is_root() {
        true => Ok(()),
        false => Err(Fatal::new(Failure::Privileges, format!("{what} needs root: use sudo"))),
    }
}

#[cfg(test)]
mod tests;
