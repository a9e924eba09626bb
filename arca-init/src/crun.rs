// SPDX-License-Identifier: Apache-2.0
//! crun as the OCI runtime: one short run per operation, its log as the error text.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::Arc,
};

use crate::{error::InitError, reaper::Reaper};

/// Environment variable that names another crun.
const ENV: &str = "ARCA_CRUN";

/// Standard streams of a process to create.
#[derive(Debug)]
pub(crate) struct ChildStreams {
    pub(crate) input: Stdio,
    pub(crate) output: Stdio,
    pub(crate) error: Stdio,
}

/// Runs crun.
#[derive(Debug)]
pub(crate) struct Crun {
    program: PathBuf,
    root: PathBuf,
    reaper: Arc<Reaper>,
}

impl Crun {
    /// crun with its state below `root`.
    pub(crate) fn new(root: PathBuf, reaper: Arc<Reaper>) -> Self {
        let program = std::env::var_os(ENV).map_or_else(|| PathBuf::from("crun"), PathBuf::from);
        Self { program, root, reaper }
    }

    /// Creates a container whose process waits for `start`; gives the process id.
    pub(crate) async fn create(
        &self,
        id: &str,
        bundle: &Path,
        console: Option<&Path>,
        streams: ChildStreams,
        executable: &str,
    ) -> Result<u32, InitError> {
        let pid_file = bundle.join("pid");
        let mut command = self.command(&log_of(bundle), "create");
        command.arg("--bundle").arg(bundle).arg("--pid-file").arg(&pid_file);
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(id).stdin(streams.input).stdout(streams.output).stderr(streams.error);
        self.run(&mut command, &log_of(bundle), executable).await?;
        read_pid(&pid_file)
    }

    /// Lets the created process go.
    pub(crate) async fn start(&self, id: &str, bundle: &Path, executable: &str) -> Result<(), InitError> {
        let mut command = self.command(&log_of(bundle), "start");
        self.run(command.arg(id), &log_of(bundle), executable).await
    }

    /// Starts a further process, described by `<folder>/process.json`; gives its process id.
    pub(crate) async fn exec(
        &self,
        id: &str,
        folder: &Path,
        console: Option<&Path>,
        streams: ChildStreams,
        executable: &str,
    ) -> Result<u32, InitError> {
        let pid_file = folder.join("pid");
        let mut command = self.command(&log_of(folder), "exec");
        command.arg("--detach").arg("--pid-file").arg(&pid_file).arg("--process").arg(folder.join("process.json"));
        if let Some(console) = console {
            command.arg("--console-socket").arg(console);
        }
        command.arg(id).stdin(streams.input).stdout(streams.output).stderr(streams.error);
        self.run(&mut command, &log_of(folder), executable).await?;
        read_pid(&pid_file)
    }

    /// One of `pause`, `resume`, `delete --force`.
    pub(crate) async fn simple(&self, verb: &[&str], id: &str, bundle: &Path) -> Result<(), InitError> {
        let mut command = self.command(&log_of(bundle), verb.first().copied().unwrap_or_default());
        self.run(command.args(verb.iter().skip(1)).arg(id), &log_of(bundle), "").await
    }

    fn command(&self, log: &Path, verb: &str) -> Command {
        let mut command = Command::new(&self.program);
        // In cgroupfs mode crun makes the cgroups itself; it would otherwise talk to a systemd that need not be there.
        command.arg("--root").arg(&self.root).arg("--cgroup-manager=cgroupfs");
        // Text, not JSON: a failure of the exec itself comes later, in the workload's own standard error.
        command.arg("--log").arg(log).arg("--log-format=text").arg(verb);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    async fn run(&self, command: &mut Command, log: &Path, executable: &str) -> Result<(), InitError> {
        let missing = |source| InitError::RuntimeMissing { program: self.program.clone(), source };
        let ended = self.reaper.run(command).await.map_err(missing)?;
        if ended.code == 0 {
            return Ok(());
        }
        let text = last_message(log).unwrap_or_else(|| format!("{} ended with {}", self.program.display(), ended.code));
        let _ = fs::remove_file(log);
        Err(classify(text, executable))
    }
}

/// Where crun logs what happens with a bundle or an exec.
fn log_of(folder: &Path) -> PathBuf {
    folder.join("crun.log")
}

/// The last line in a log of crun: what made it give up.
fn last_message(log: &Path) -> Option<String> {
    let text = fs::read_to_string(log).ok()?;
    text.lines().map(str::trim).rfind(|line| !line.is_empty()).map(str::to_owned)
}

fn read_pid(path: &Path) -> Result<u32, InitError> {
    let text = fs::read_to_string(path).map_err(InitError::file("read", path))?;
    text.trim().parse().map_err(|_| InitError::Runtime(format!("crun wrote `{text}` as process id")))
}

/// Says what crun said in the words that Docker's users know from the exec family of errors.
fn classify(text: String, executable: &str) -> InitError {
    if text.starts_with("executable file") && text.contains("not found") {
        return InitError::NotFound(if executable.contains('/') {
            format!("exec: \"{executable}\": stat {executable}: no such file or directory")
        } else {
            format!("exec: \"{executable}\": executable file not found in $PATH")
        });
    }
    if text.starts_with("open executable") {
        return InitError::Denied(if text.contains("Operation not permitted") {
            // crun's answer for whatever is no regular file.
            format!("exec: \"{executable}\": is a directory: permission denied")
        } else {
            format!("exec: \"{executable}\": permission denied")
        });
    }
    if text.contains("exists but it is not executable") {
        // What newer ones say of a regular file.
        return InitError::Denied(format!("exec: \"{executable}\": permission denied"));
    }
    if let Some(directory) = text.strip_prefix("chdir `").and_then(|rest| rest.split_once('`')) {
        return InitError::NotFound(format!(
            "chdir to cwd (\"{}\") set in config.json failed: no such file or directory",
            directory.0
        ));
    }
    InitError::Runtime(text)
}

/// An I/O error that says a file is missing.
pub(crate) fn is_missing(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::NotFound
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_crun_says_becomes_what_docker_says() {
        let said = |text: &str, executable: &str| classify(text.to_owned(), executable);
        let missing = "executable file `x` not found in $PATH: No such file or directory";
        assert!(
            matches!(said(missing, "x"), InitError::NotFound(t) if t == "exec: \"x\": executable file not found in $PATH")
        );
        assert!(
            matches!(said(missing, "/x"), InitError::NotFound(t) if t.ends_with("stat /x: no such file or directory"))
        );
        assert!(matches!(said("open executable: Permission denied", "/x"), InitError::Denied(_)));
        assert!(
            matches!(said("open executable: Operation not permitted", "/etc"), InitError::Denied(t) if t.contains("directory"))
        );
        let newer = "the path `/etc/passwd` exists but it is not executable: Operation not permitted";
        assert!(
            matches!(said(newer, "/etc/passwd"), InitError::Denied(t) if t == "exec: \"/etc/passwd\": permission denied")
        );
        assert!(
            matches!(said("chdir `/no`: No such file or directory", "x"), InitError::NotFound(t) if t.contains("\"/no\""))
        );
        assert!(matches!(said("something else", "x"), InitError::Runtime(t) if t == "something else"));
    }

    #[test]
    fn the_last_line_counts_and_a_missing_log_is_none() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let log = log_of(directory.path());
        assert_eq!(last_message(&log), None);
        fs::write(&log, "a warning\nwhat went wrong\n\n").expect("write");
        assert_eq!(last_message(&log).as_deref(), Some("what went wrong"));
    }
}
