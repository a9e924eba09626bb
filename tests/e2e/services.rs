// SPDX-License-Identifier: Apache-2.0
//! The daemons under a service manager: sockets first, each daemon when somebody connects, machines longer than daemons.

use std::{
    fs::{self, File},
    os::{
        fd::{AsFd as _, AsRawFd as _},
        unix::net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use anyhow::{Context as _, ensure};
use arca_daemon::{
    paths::Paths,
    services::{API, NETD, RELAYD, SERVICES, Service},
};
use arca_tests::engine;
use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("daemons_start_when_somebody_connects_and_machines_outlive_them", activation),
    ("service_files_are_what_other_readers_of_them_expect", files),
];

/// A service manager of one engine, as far as sd_listen_fds(3) goes.
struct Manager {
    home: tempfile::TempDir,
    sockets: Vec<(Service, UnixListener)>,
    running: Vec<(Service, Child)>,
}

impl Manager {
    fn new() -> anyhow::Result<Self> {
        let home = tempfile::Builder::new().prefix("arca-").tempdir_in("/tmp")?;
        let paths = Paths::below(home.path());
        fs::create_dir_all(&paths.run)?;
        fs::create_dir_all(&paths.log)?;
        let bind = |service: Service| Ok((service, UnixListener::bind((service.path)(&paths))?));
        let sockets = SERVICES.into_iter().map(bind).collect::<anyhow::Result<_>>()?;
        Ok(Self { home, sockets, running: Vec::new() })
    }

    fn runs(&self, service: &Service) -> bool {
        self.running.iter().any(|(running, _)| running.program == service.program)
    }

    /// Waits until somebody connects to the daemon's socket and starts it. Whoever connected waits in the backlog.
    fn activate(&mut self, service: &Service) -> anyhow::Result<()> {
        let (_, listener) =
            self.sockets.iter().find(|(bound, _)| bound.program == service.program).context("a socket")?;
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        let ready = poll(&mut waiting, PollTimeout::from(30_000_u16))?;
        ensure!(ready == 1, "nobody asked for {}", service.program);
        fcntl(listener, FcntlArg::F_SETFD(FdFlag::empty()))?;
        let log = File::create(self.home.path().join(format!("log/{}.log", service.program)))?;
        // LISTEN_PID is the pid of the process that execs the daemon: the shell's own.
        let script = format!("exec 3<&{}; LISTEN_PID=$$ exec \"$0\" serve", listener.as_raw_fd());
        let child = Command::new("sh")
            .args(["-c", &script])
            .arg(engine::binaries()?.join(service.program))
            .env("ARCA_HOME", self.home.path())
            .env("LISTEN_FDS", "1")
            .env("LISTEN_FDNAMES", service.socket)
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn();
        fcntl(listener, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
        self.running.push((*service, child?));
        Ok(())
    }

    /// SIGTERM to all, the last started first; each must end well.
    fn stop(&mut self) -> anyhow::Result<()> {
        while let Some((service, mut child)) = self.running.pop() {
            kill(Pid::from_raw(i32::try_from(child.id())?), Signal::SIGTERM)?;
            let status = child.wait()?;
            ensure!(status.success(), "{} ended with {status}\n{}", service.program, self.log(&service));
        }
        Ok(())
    }

    fn log(&self, service: &Service) -> String {
        fs::read_to_string(self.home.path().join(format!("log/{}.log", service.program))).unwrap_or_default()
    }

    fn docker(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.env("DOCKER_HOST", format!("unix://{}", self.home.path().join("arca.sock").display()));
        command.env("DOCKER_CONFIG", self.home.path().join("docker")).env_remove("DOCKER_CONTEXT");
        command
    }

    /// Runs docker while these daemons, which are not running, are asked for one after the other.
    fn docker_ok(&mut self, arguments: &[&str], wakes: &[Service]) -> anyhow::Result<String> {
        let client = self.docker(arguments).spawn().context("docker")?;
        for service in wakes {
            ensure!(!self.runs(service), "{} runs before anybody asked for it", service.program);
            self.activate(service)?;
        }
        let output = client.wait_with_output()?;
        let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let complaint = String::from_utf8_lossy(&output.stderr);
        let logs = || SERVICES.iter().map(|service| self.log(service)).collect::<String>();
        ensure!(output.status.success(), "docker {arguments:?}: {complaint}\n{}", logs());
        Ok(said)
    }
}

fn activation() -> anyhow::Result<()> {
    let mut manager = Manager::new()?;
    // arca-netd is asked at once, for what it knows of containers; arca-relayd by arca-netd.
    manager.docker_ok(&["version"], &[API, NETD, RELAYD])?;
    let image = engine::test_image()?;
    manager.docker_ok(&["load", "-i", &image.to_string_lossy()], &[])?;
    manager.docker_ok(&["run", "-d", "--name", "lives", "busybox", "sleep", "1000"], &[])?;
    let pid = manager.docker_ok(&["inspect", "-f", "{{.State.Pid}}", "lives"], &[])?;

    manager.stop()?;
    let paths = Paths::below(manager.home.path());
    ensure!(paths.docker_socket.exists(), "the service manager's socket was removed");
    ensure!(Path::new(&format!("/proc/{pid}")).exists(), "a container ended with the daemons");

    // The same sockets again: nobody had to bind anything.
    let again = manager.docker_ok(&["inspect", "-f", "{{.State.Pid}}", "lives"], &[API, NETD, RELAYD])?;
    ensure!(again == pid, "the container is another process now: {pid}, then {again}");
    manager.docker_ok(&["rm", "-f", "lives"], &[])?;
    manager.stop()?;
    let arca_netd = engine::binaries()?.join("arca-netd");
    let stopped = Command::new(arca_netd).arg("stop-helper").env("ARCA_HOME", manager.home.path()).output()?;
    ensure!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    Ok(())
}

/// Property lists are read by Python's plistlib, units by systemd's own checker where there is one.
fn files() -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |manager: &str| -> anyhow::Result<PathBuf> {
        let into = folder.path().join(manager);
        let output = Command::new(engine::binaries()?.join("arca"))
            .args(["service", "install", "--manager", manager, "--into"])
            .arg(&into)
            .env("ARCA_HOME", folder.path().join("home"))
            .output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(into)
    };
    let lists = write("launchd")?;
    let script = "import plistlib, pathlib, sys\n\
                  for path in sorted(pathlib.Path(sys.argv[1]).glob('*.plist')):\n\
                  \x20   job = plistlib.loads(path.read_bytes())\n\
                  \x20   assert path.stem == job['Label'], job\n\
                  \x20   print(job['Label'], *job['Sockets'])";
    let output = Command::new("python3").args(["-c", script]).arg(&lists).output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(said == "dev.arca.api docker\ndev.arca.netd netd\ndev.arca.relayd relayd\n", "{said}");

    let units = write("systemd")?;
    let mut verify = Command::new("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    for service in SERVICES {
        verify.args([
            units.join(format!("{}.service", service.program)),
            units.join(format!("{}.socket", service.program)),
        ]);
    }
    match verify.output() {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            arca_tests::skip("systemd-analyze verify", "this machine has no systemd-analyze");
        }
        output => {
            let output = output?;
            let said = String::from_utf8_lossy(&output.stderr).into_owned();
            ensure!(output.status.success() && said.trim().is_empty(), "systemd-analyze verify: {said}");
        }
    }
    Ok(())
}
