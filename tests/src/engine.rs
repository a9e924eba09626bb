// SPDX-License-Identifier: Apache-2.0
//! An engine as a user has it: started with `arca daemon start`, driven with `docker`.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use arca_daemon::paths::Paths;
use serde_json::Value;

use crate::isolation;

/// A running engine with a home of its own. Dropping it stops it with everything it started.
#[derive(Debug)]
pub struct Engine {
    home: tempfile::TempDir,
    binaries: PathBuf,
    docker_host: String,
    /// From `arca daemon start` to its DOCKER_HOST line.
    pub start_time: Duration,
}

/// Tags of all engines that this process started.
static TAGS: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Tags ([`arca_daemon::paths::Paths::tag`]) of the engines that this process started.
#[must_use]
pub fn tags() -> Vec<String> {
    TAGS.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// How a command ended.
#[derive(Debug)]
pub struct Ran {
    /// Exit code; 128 + signal when killed.
    pub code: i32,
    /// Standard output, as text.
    pub stdout: String,
    /// Standard error, as text.
    pub stderr: String,
    /// Wall time.
    pub time: Duration,
}

impl Ran {
    fn of(output: &Output, time: Duration) -> Self {
        use std::os::unix::process::ExitStatusExt as _;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let code = output.status.code().unwrap_or_else(|| 128 + output.status.signal().unwrap_or(0));
        Self { code, stdout: text(&output.stdout), stderr: text(&output.stderr), time }
    }

    /// Standard output without the last line end; an error unless the exit code is 0.
    ///
    /// # Errors
    /// With both outputs in it.
    pub fn ok(self) -> anyhow::Result<String> {
        if self.code != 0 {
            bail!("exit code {}: {}{}", self.code, self.stdout, self.stderr);
        }
        Ok(self.stdout.trim_end_matches('\n').to_owned())
    }
}

/// Whether this run is to have its containers in virtual machines (`./dev test --machine vm`).
#[must_use]
pub fn over_vms() -> bool {
    env::var("ARCA_TEST_MACHINE").is_ok_and(|machine| machine == "vm")
}

/// Why this machine cannot make virtual machines, if it cannot. A run over them does not ask: there it is a failure.
#[must_use]
pub fn vms_missing() -> Option<String> {
    let named = |variable: &str| {
        let path = PathBuf::from(env::var_os(variable)?);
        path.exists().then_some(path)
    };
    let missing = ["ARCA_KERNEL_PATH", "ARCA_INIT_IMAGE"].into_iter().find(|variable| named(variable).is_none())?;
    Some(format!("{missing} names no file (./dev makes and names what virtual machines are made of)"))
}

/// Folder of `arca` and the daemons.
///
/// # Errors
/// If they are not built.
pub fn binaries() -> anyhow::Result<PathBuf> {
    let folder = match env::var_os("ARCA_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        // target/PROFILE/deps/e2e-0123: the programs are two up.
        None => env::current_exe()?.ancestors().nth(2).map(Path::to_path_buf).unwrap_or_default(),
    };
    if !folder.join("arca").is_file() {
        bail!("{} is not there: build with `./dev build`, or set ARCA_BIN_DIR", folder.join("arca").display());
    }
    Ok(folder)
}

/// The image archive that `tests/images/busybox` makes.
///
/// # Errors
/// If it is not there.
pub fn test_image() -> anyhow::Result<PathBuf> {
    let default = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/images/busybox.tar");
    let path = env::var_os("ARCA_TEST_IMAGE").map_or_else(default, PathBuf::from);
    if !path.is_file() {
        bail!("{} is not there: make it with `tests/images/busybox`, or set ARCA_TEST_IMAGE", path.display());
    }
    Ok(path)
}

impl Engine {
    /// Starts an engine and waits until docker may be used.
    ///
    /// # Errors
    /// With what `arca daemon start` said.
    pub fn start() -> anyhow::Result<Self> {
        Self::start_with(&[])
    }

    /// As [`Self::start`], with `-c KEY=VALUE` flags.
    ///
    /// # Errors
    /// With what `arca daemon start` said.
    pub fn start_with(config: &[&str]) -> anyhow::Result<Self> {
        // A short path: `sun_path` is 108 bytes.
        let home = tempfile::Builder::new().prefix("arca-").tempdir_in("/tmp")?;
        TAGS.lock().unwrap_or_else(PoisonError::into_inner).push(Paths::below(home.path()).tag());
        let docker_host = format!("unix://{}", home.path().join("arca.sock").display());
        let mut engine = Self { home, binaries: binaries()?, docker_host, start_time: Duration::ZERO };
        // What every machine can do is what most tests are about; those of other carriers name theirs.
        let stream = ["link=stream"];
        let carrier = if config.iter().any(|pair| pair.starts_with("link=")) { &[][..] } else { &stream[..] };
        // What containers live in is what the run was asked for, whatever this machine could do.
        let machine = [if over_vms() { "machine=vm" } else { "machine=namespace" }];
        let named = config.iter().any(|pair| pair.starts_with("machine="));
        let machine = if named { &[][..] } else { &machine[..] };
        let mut arguments: Vec<&str> = Vec::new();
        for pair in carrier.iter().chain(machine).chain(config) {
            arguments.extend(["-c", pair]);
        }
        arguments.extend(["daemon", "start"]);
        let ran = engine.arca(&arguments);
        engine.start_time = ran.time;
        let line = ran.ok().map_err(|error| error.context(format!("arca daemon start\n{}", engine.logs())))?;
        if line != format!("DOCKER_HOST={}", engine.docker_host) {
            bail!("arca daemon start printed {line:?}");
        }
        Ok(engine)
    }

    /// ARCA_HOME.
    #[must_use]
    pub fn home(&self) -> &Path {
        self.home.path()
    }

    /// `unix://...`
    #[must_use]
    pub fn docker_host(&self) -> &str {
        &self.docker_host
    }

    /// `docker ARGUMENTS...`, standard input empty.
    pub fn docker(&self, arguments: &[&str]) -> Ran {
        timed(self.docker_command(arguments).stdin(Stdio::null()))
    }

    /// As [`Self::docker`], its standard output; an error unless it ends with 0.
    ///
    /// # Errors
    /// With the command and both outputs.
    pub fn docker_ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.docker(arguments).ok().with_context(|| format!("docker {}", arguments.join(" ")))
    }

    /// `docker ARGUMENTS...` with this on standard input.
    ///
    /// # Errors
    /// If docker cannot be started.
    pub fn docker_with_input(&self, arguments: &[&str], input: &[u8]) -> anyhow::Result<Ran> {
        use std::io::Write as _;
        let began = Instant::now();
        let mut command = self.docker_command(arguments);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut stdin = child.stdin.take().context("standard input")?;
        let output = std::thread::scope(|scope| {
            // Docker may end before it has read everything.
            scope.spawn(move || drop(stdin.write_all(input)));
            child.wait_with_output()
        })?;
        Ok(Ran::of(&output, began.elapsed()))
    }

    /// A docker command to be changed further.
    #[must_use]
    pub fn docker_command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments).env("DOCKER_HOST", &self.docker_host).env("DOCKER_CONFIG", self.home().join("docker"));
        command.env_remove("DOCKER_CONTEXT");
        command
    }

    /// `arca ARGUMENTS...` (or another program of the engine, by its path) for this engine.
    pub fn arca(&self, arguments: &[&str]) -> Ran {
        self.program("arca", arguments)
    }

    /// A program of the engine, for example `arca-netd networks --json`.
    pub fn program(&self, name: &str, arguments: &[&str]) -> Ran {
        let mut command = Command::new(self.binaries.join(name));
        timed(command.args(arguments).env("ARCA_HOME", self.home()).stdin(Stdio::null()))
    }

    /// `docker run -d OPTIONS busybox` with an HTTP server on port 80 whose `/name` is its host name. It listens when this
    /// returns. Gives the container's id.
    ///
    /// # Errors
    /// If docker refuses, or the server says nothing.
    pub fn run_server(&self, options: &[&str]) -> anyhow::Result<String> {
        // The server goes into the background when it listens, and process 1 hears SIGTERM.
        let script = "mkdir -p /srv && hostname > /srv/name && httpd -p 80 -h /srv && echo listening && \
                      trap 'exit 0' TERM && while :; do sleep 1000 & wait $!; done";
        let id = self.docker_ok(&[&["run", "-d"], options, &["busybox", "sh", "-c", script]].concat())?;
        self.until_said(&id, "listening")?;
        Ok(id)
    }

    /// Blocks until a line of a container's output is `line`.
    ///
    /// # Errors
    /// If the output ends first.
    pub fn until_said(&self, container: &str, line: &str) -> anyhow::Result<()> {
        use std::io::{BufRead as _, BufReader};
        let mut command = self.docker_command(&["logs", "-f", container]);
        let mut follow = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let output = BufReader::new(follow.stdout.take().context("output of docker logs")?);
        let said = output.lines().map_while(Result::ok).any(|said| said == line);
        follow.kill()?;
        follow.wait()?;
        anyhow::ensure!(said, "{container} ended without saying {line:?}: {}", self.docker_ok(&["logs", container])?);
        Ok(())
    }

    /// Loads the test image: `busybox:latest`.
    ///
    /// # Errors
    /// If docker refuses it.
    pub fn load_image(&self) -> anyhow::Result<()> {
        let image = test_image()?;
        self.docker_ok(&["load", "-q", "-i", &image.to_string_lossy()]).map(drop)
    }

    /// `docker inspect` of one object.
    ///
    /// # Errors
    /// If it does not exist.
    pub fn inspect(&self, name: &str) -> anyhow::Result<Value> {
        let text = self.docker_ok(&["inspect", name])?;
        let mut list: Vec<Value> = serde_json::from_str(&text)?;
        list.pop().context("inspect gave an empty list")
    }

    /// Name of the engine's end of its uplink.
    #[must_use]
    pub fn uplink(&self) -> String {
        format!("arca-{}", Paths::below(self.home()).tag())
    }

    /// Process id of a running container.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pid(&self, container: &str) -> anyhow::Result<u32> {
        let pid = self.inspect(container)?["State"]["Pid"].as_u64().unwrap_or(0);
        match u32::try_from(pid) {
            Ok(pid) if pid > 0 => Ok(pid),
            _ => bail!("{container} has no process"),
        }
    }

    /// Address of a container on a network.
    ///
    /// # Errors
    /// If it has none.
    pub fn address(&self, container: &str, network: &str) -> anyhow::Result<String> {
        let inspect = self.inspect(container)?;
        let address = inspect["NetworkSettings"]["Networks"][network]["IPAddress"].as_str().unwrap_or_default();
        if address.is_empty() {
            bail!("{container} has no address on {network}");
        }
        Ok(address.to_owned())
    }

    /// Process id of one of the engine's daemons.
    ///
    /// # Errors
    /// If it does not run.
    pub fn daemon_pid(&self, name: &str) -> anyhow::Result<i32> {
        let program = self.binaries.join(name);
        let home = format!("ARCA_HOME={}", self.home().display());
        let program = fs::canonicalize(&program).unwrap_or(program);
        for entry in fs::read_dir("/proc")?.flatten() {
            let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
            let serves = fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let is_it = fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe == program)
                && serves.split(|byte| *byte == 0).any(|word| word == b"serve");
            let environment = fs::read(entry.path().join("environ")).unwrap_or_default();
            if is_it && environment.split(|byte| *byte == 0).any(|pair| pair == home.as_bytes()) {
                return Ok(pid);
            }
        }
        bail!("{name} does not run")
    }

    /// `kill -9` of one of the engine's daemons.
    ///
    /// # Errors
    /// If it does not run.
    pub fn kill_daemon(&self, name: &str) -> anyhow::Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.daemon_pid(name)?);
        Ok(nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGKILL)?)
    }

    /// The last lines of every daemon's log, for failure messages.
    #[must_use]
    pub fn logs(&self) -> String {
        self.arca(&["daemon", "logs", "-n", "25"]).stdout
    }

    /// Ends every container by force, then the engine. Most containers of tests would take their ten seconds of grace: a
    /// shell or `sleep` as process 1 ignores SIGTERM.
    ///
    /// # Errors
    /// With what `arca daemon stop --all` said.
    pub fn stop(&self) -> anyhow::Result<()> {
        let running = self.docker(&["ps", "--quiet"]).stdout;
        let mut remove = vec!["rm", "--force"];
        remove.extend(running.split_whitespace());
        if remove.len() > 2 {
            // An engine that no longer answers is stopped below, and says why it cannot be.
            self.docker(&remove);
        }
        self.stop_with_containers()
    }

    /// `arca daemon stop --all`.
    ///
    /// # Errors
    /// With what it said.
    pub fn stop_with_containers(&self) -> anyhow::Result<()> {
        self.arca(&["daemon", "stop", "--all"]).ok().map(drop).context("arca daemon stop --all")
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", self.logs());
        }
        if let Err(error) = self.stop() {
            eprintln!("{error:#}\n{}", self.logs());
        }
    }
}

fn timed(command: &mut Command) -> Ran {
    let began = Instant::now();
    match command.output() {
        Ok(output) => Ran::of(&output, began.elapsed()),
        Err(error) => Ran {
            code: 127,
            stdout: String::new(),
            stderr: format!("start {}: {error}", command.get_program().to_string_lossy()),
            time: began.elapsed(),
        },
    }
}

/// Interfaces of a process's network namespace with their IPv4 addresses: `eth0 172.18.0.2/16`.
///
/// # Errors
/// If the process is gone.
pub fn interfaces(pid: u32) -> anyhow::Result<Vec<(String, Vec<String>)>> {
    let mut command = Command::new("ip");
    command.args(["-json", "-4", "address", "show"]);
    isolation::join_network(&mut command, pid)?;
    let links: Vec<Value> = serde_json::from_slice(&command.output()?.stdout)?;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let addresses = |link: &Value| {
        let list = link["addr_info"].as_array().cloned().unwrap_or_default();
        list.iter().map(|entry| format!("{}/{}", text(&entry["local"]), entry["prefixlen"])).collect()
    };
    let named = links.iter().filter(|link| link["ifname"].is_string());
    Ok(named.map(|link| (text(&link["ifname"]), addresses(link))).filter(|(name, _)| name != "lo").collect())
}
