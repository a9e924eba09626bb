// SPDX-License-Identifier: Apache-2.0
//! Peers that do the same work: Docker's own engine, pasta and gvproxy. Each is Debian's, unpacked below `.cache`; one
//! that cannot be had is left out with the reason.

use std::{
    fs,
    io::{Read as _, Write as _},
    os::unix::net::UnixStream,
    path::{Path as File, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{isolation, outside};

use crate::{
    kernel::Holder,
    paths::{Keep, PORT, Path, at_the_host},
    plug::{self, Plugged},
    probes::Ends,
};

/// What a peer may take until it serves.
const LISTENING: Duration = Duration::from_secs(30);

/// A program that is not ours, ended when dropped.
pub(crate) struct Peer {
    child: Child,
    #[allow(dead_code, reason = "removed with it")]
    folder: tempfile::TempDir,
}

impl Peer {
    /// Waits until `reached`; if it ends before, its own words are the error.
    fn until(&mut self, what: &str, mut reached: impl FnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
        let deadline = Instant::now() + LISTENING;
        while !reached()? {
            if let Some(status) = self.child.try_wait()? {
                bail!("{status}: {}", fs::read_to_string(self.folder.path().join("log")).unwrap_or_default());
            }
            ensure!(Instant::now() < deadline, "has not {what} within {} s", LISTENING.as_secs());
            pause();
        }
        Ok(())
    }
}

#[expect(clippy::disallowed_methods, reason = "another program's readiness has no event")]
fn pause() {
    std::thread::sleep(Duration::from_millis(5));
}

impl Drop for Peer {
    fn drop(&mut self) {
        let pid = nix::unistd::Pid::from_raw(self.child.id().cast_signed());
        // Docker's engine ends its containers' helpers only when it is asked to stop.
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn cache() -> PathBuf {
    File::new(env!("CARGO_MANIFEST_DIR")).join("../.cache")
}

struct Dockerd {
    peer: Peer,
    host: String,
}

impl Dockerd {
    /// The engine that the conformance cases unpack.
    fn start() -> anyhow::Result<Self> {
        let root =
            fs::canonicalize(cache().join("reference")).context("`./dev conformance` unpacks Docker's engine")?;
        ensure!(root.join("usr/sbin/dockerd").exists(), "`./dev conformance` unpacks Docker's engine");
        let folder = tempfile::Builder::new().prefix("x-dockerd-").tempdir_in("/tmp")?;
        let path = |name: &str| folder.path().join(name).display().to_string();
        fs::write(folder.path().join("none.json"), "{}")?;
        let libraries = root.join(format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH));
        let search = std::env::var("PATH").unwrap_or_default();
        let programs = format!("{0}/usr/sbin:{0}/usr/bin:{search}", root.display());
        let host = format!("unix://{}", path("d.sock"));
        let mut command = Command::new(root.join("usr/sbin/dockerd"));
        command
            .args(["--host", &host, "--data-root", &path("data"), "--exec-root", &path("exec")])
            .args(["--pidfile", &path("pid"), "--config-file", &path("none.json")])
            .args(["--exec-opt", "native.cgroupdriver=cgroupfs", "--cgroup-parent", "/arca/bench"])
            .env("PATH", programs)
            .env("XTABLES_LIBDIR", libraries.join("xtables"))
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(folder.path().join("log"))?);
        let dockerd = Self { peer: Peer { child: command.spawn()?, folder }, host };
        let deadline = Instant::now() + LISTENING;
        while dockerd.docker(&["version"]).is_err() {
            ensure!(Instant::now() < deadline, "dockerd does not answer");
        }
        let image = arca_tests::engine::test_image()?;
        dockerd.docker(&["load", "-q", "-i", &image.to_string_lossy()])?;
        dockerd.docker(&["network", "create", "bench"])?;
        Ok(dockerd)
    }

    fn docker(&self, arguments: &[&str]) -> anyhow::Result<String> {
        let output = Command::new("docker").args(arguments).env("DOCKER_HOST", &self.host).output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if !output.status.success() {
            bail!("docker {}: {}", arguments.join(" "), text(&output.stderr));
        }
        Ok(text(&output.stdout))
    }

    fn run(&self, name: &str, more: &[&str]) -> anyhow::Result<(u32, String)> {
        let run = ["run", "-d", "--name", name, "--network", "bench"];
        self.docker(&[&run[..], more, &["busybox", "sleep", "3600"]].concat())?;
        let pid = self.docker(&["inspect", "-f", "{{.State.Pid}}", name])?.parse()?;
        Ok((pid, self.docker(&["inspect", "-f", "{{.NetworkSettings.Networks.bench.IPAddress}}", name])?))
    }

    fn path(self, ends: Ends) -> Path {
        Path::new(ends, Vec::new(), Keep::Peer(self.peer, None))
    }
}

pub(crate) fn dockerd() -> anyhow::Result<Path> {
    let dockerd = Dockerd::start()?;
    let ((left, _), (right, address)) = (dockerd.run("left", &[])?, dockerd.run("right", &[])?);
    Ok(dockerd.path(Ends::between(left, right, &address)?))
}

pub(crate) fn dockerd_published() -> anyhow::Result<Path> {
    let dockerd = Dockerd::start()?;
    let (tcp, udp) = (format!("{PORT}:{PORT}/tcp"), format!("{PORT}:{PORT}/udp"));
    let (right, _) = dockerd.run("right", &["-p", &tcp, "-p", &udp])?;
    Ok(dockerd.path(at_the_host(right)?))
}

/// Programs that are unpacked where they are not installed: the program, its package, the Debian release it is taken from.
const PROGRAMS: &[(&str, &str, &str)] = &[("pasta", "passt", "bookworm"), ("gvproxy", "gvproxy", "trixie")];

/// Where an unpacked program lies.
fn unpacked(package: &str) -> PathBuf {
    cache().join("tools").join(package)
}

/// Unpacks what is neither installed nor unpacked; without a network it is left out later, by name.
pub(crate) fn fetch() {
    for (program, package, suite) in PROGRAMS {
        let folder = unpacked(package);
        if folder.exists() || Command::new(program).arg("--version").stderr(Stdio::null()).output().is_ok() {
            continue;
        }
        let (unpack, fresh) = (cache().join("../helpervm-image/unpack"), folder.with_extension("new"));
        let _ = fs::remove_dir_all(&fresh);
        let mut command = Command::new(unpack);
        command.arg(suite).arg(cache().join("apt")).arg(&fresh).arg(package).stdout(Stdio::null());
        let done = command.status().is_ok_and(|status| status.success()) && fs::rename(&fresh, &folder).is_ok();
        if !done {
            eprintln!("bench path: package {package} of Debian {suite} cannot be had");
        }
    }
}

/// An unpacked program, else the installed one.
fn program(name: &str, package: &str) -> PathBuf {
    let unpacked = unpacked(package).join("usr/bin").join(name);
    if unpacked.exists() { unpacked } else { PathBuf::from(name) }
}

pub(crate) fn pasta() -> anyhow::Result<Path> {
    let program = program("pasta", "passt");
    let holder = Holder::start()?;
    let folder = tempfile::Builder::new().prefix("x-pasta-").tempdir_in("/tmp")?;
    let port = PORT.to_string();
    // By a mount: pasta has given up the right to look into another process when it opens the namespace.
    let netns = folder.path().join("netns").display().to_string();
    fs::write(&netns, "")?;
    isolation::run("mount", &["--bind", &format!("/proc/{}/ns/net", holder.pid()), &netns])?;
    let mut command = Command::new(&program);
    command
        // The client outside is the default gateway, which would otherwise mean the host itself.
        .args(["--foreground", "--quiet", "--runas", "0", "--config-net", "--no-map-gw", "-t", &port, "-u", &port])
        .args(["-T", "none", "-U", "none", "--netns", &netns])
        .stdin(Stdio::null())
        .stderr(fs::File::create(folder.path().join("log"))?);
    let child = command.spawn().with_context(|| format!("start {} (Debian package passt)", program.display()))?;
    let mut peer = Peer { child, folder };
    // It is ready when its interface in the namespace has an address.
    peer.until("configured the namespace", || {
        let shown = isolation::in_network_of(holder.pid(), || isolation::output("ip", &["-4", "-o", "address"]))?;
        Ok(shown.lines().any(|line| !line.contains(" lo ")))
    })?;
    let processes = vec![("pasta".to_owned(), peer.child.id())];
    Ok(Path::new(at_the_host(holder.pid())?, processes, Keep::Peer(peer, Some(holder))))
}

/// It, what is on its switch, whose cost counts, and its control socket.
type Gvproxy = (Peer, [Plugged; 2], Vec<(String, u32)>, PathBuf);

/// gvproxy with two namespaces on its switch.
fn gvproxy_with_ends() -> anyhow::Result<Gvproxy> {
    let program = program("gvproxy", "gvproxy");
    let folder = tempfile::Builder::new().prefix("x-gvproxy-").tempdir_in("/tmp")?;
    let control = folder.path().join("control");
    let mut command = Command::new(&program);
    command
        .args(["-listen", &format!("unix://{}", control.display()), "-ssh-port", "-1"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(folder.path().join("log"))?);
    let child = command.spawn().with_context(|| format!("start {} (Debian package gvproxy)", program.display()))?;
    let mut peer = Peer { child, folder };
    peer.until("listened", || Ok(control.exists()))?;
    let ends = [Plugged::start(&control, 3)?, Plugged::start(&control, 4)?];
    let mut processes = vec![("gvproxy".to_owned(), peer.child.id())];
    processes.extend(ends.iter().map(|end| ("plug".to_owned(), end.process())));
    Ok((peer, ends, processes, control))
}

pub(crate) fn gvproxy() -> anyhow::Result<Path> {
    let (peer, ends, processes, _) = gvproxy_with_ends()?;
    let between = Ends::between(ends[0].pid(), ends[1].pid(), &plug::address(4))?;
    Ok(Path::new(between, processes, Keep::Plugged(ends, peer)))
}

pub(crate) fn gvproxy_published() -> anyhow::Result<Path> {
    let (peer, ends, processes, control) = gvproxy_with_ends()?;
    for protocol in ["tcp", "udp"] {
        let body = serde_json::json!({
            "local": format!("{}:{PORT}", outside::GATEWAY),
            "remote": format!("{}:{PORT}", plug::address(4)),
            "protocol": protocol,
        })
        .to_string();
        let mut stream = UnixStream::connect(&control)?;
        write!(
            stream,
            "POST /services/forwarder/expose HTTP/1.1\r\nHost: gvproxy\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        ensure!(answer.starts_with("HTTP/1.1 200"), "gvproxy publishes nothing: {answer}");
    }
    let at = at_the_host(ends[1].pid())?;
    Ok(Path::new(at, processes, Keep::Plugged(ends, peer)))
}
