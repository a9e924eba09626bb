// SPDX-License-Identifier: Apache-2.0
//! The paths that are compared. Each is set up, probed and taken down in turn within one run.

use std::{
    fs,
    net::SocketAddr,
    path::{Path as File, PathBuf},
    process::{Child, Command, Stdio},
    sync::OnceLock,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{engine::Engine, isolation};

use crate::{
    joiner::Joined,
    kernel::{self, Bridge, Holder},
    probes::Ends,
    processes,
};

/// A process of the machine outside: published ports are probed from there.
pub(crate) static OUTSIDE: OnceLock<u32> = OnceLock::new();

/// Port that is published.
const PORT: u16 = 9000;
const LISTENING: Duration = Duration::from_secs(30);

/// A path that stands; dropping it takes it down.
pub(crate) struct Path {
    pub(crate) ends: Ends,
    /// Both ends are namespaces that see each other: small packets can be sent too.
    pub(crate) symmetric: bool,
    /// Whose cost counts.
    pub(crate) processes: Vec<(String, u32)>,
    // In this order: what is inside goes before what it is inside of.
    _keep: Keep,
}

#[allow(dead_code, reason = "only kept")]
enum Keep {
    Bridge(Bridge),
    Joined(Joined),
    Engine(Box<Engine>),
    Peer(Peer, Option<Holder>),
}

/// Name, what it is, how it is made.
pub(crate) struct Kind {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
    start: fn() -> anyhow::Result<Path>,
}

impl Kind {
    pub(crate) fn start(&self) -> anyhow::Result<Path> {
        (self.start)()
    }
}

/// All of them. The first is what the others are compared with.
pub(crate) const KINDS: &[Kind] = &[
    Kind { name: "kernel", meaning: "veth pairs and a kernel bridge", start: bridge },
    Kind { name: "taps", meaning: "two TAPs joined by one thread", start: taps },
    Kind { name: "arca-stream", meaning: "container to container, carrier stream", start: || arca("stream") },
    Kind { name: "arca-tap-fd", meaning: "container to container, carrier tap-fd", start: || arca("tap-fd") },
    Kind { name: "arca-cable", meaning: "container to container, carrier cable", start: || arca("cable") },
    Kind { name: "docker-bridge", meaning: "Docker's own engine, container to container", start: dockerd },
    Kind {
        name: "arca-published",
        meaning: "outside to container, published port, carrier stream",
        start: || published("stream"),
    },
    Kind {
        name: "cable-published",
        meaning: "outside to container, published port, carrier cable",
        start: || published("cable"),
    },
    Kind {
        name: "docker-published",
        meaning: "Docker's own engine, outside to container, published port",
        start: dockerd_published,
    },
    Kind { name: "pasta", meaning: "pasta, outside to namespace, forwarded port", start: pasta },
];

fn bridge() -> anyhow::Result<Path> {
    let bridge = Bridge::start()?;
    let ends = Ends::between(bridge.pid(0), bridge.pid(1), &kernel::address(1))?;
    Ok(Path { ends, symmetric: true, processes: Vec::new(), _keep: Keep::Bridge(bridge) })
}

fn taps() -> anyhow::Result<Path> {
    let joined = Joined::start()?;
    let ends = Ends::between(joined.pid(0), joined.pid(1), &kernel::address(1))?;
    let processes = vec![("joiner".to_owned(), joined.process())];
    Ok(Path { ends, symmetric: true, processes, _keep: Keep::Joined(joined) })
}

/// Processes that touch frames; the others of the engine sleep meanwhile.
fn on_the_path() -> Vec<(String, u32)> {
    let all = processes::of_engine();
    let touches = |title: &str| {
        ["arca-tapfwd", "arca-relayd", "ovs-vswitchd"].iter().any(|name| title.starts_with(name))
            || title.ends_with("agent")
    };
    let titled = all.iter().map(|process| (process.title(), process.id()));
    titled.filter(|(title, _)| touches(title)).collect()
}

fn engine(carrier: &str) -> anyhow::Result<Engine> {
    let engine = Engine::start_with(&[&format!("link={carrier}")])?;
    engine.load_image()?;
    engine.docker_ok(&["network", "create", "bench"])?;
    Ok(engine)
}

fn arca(carrier: &str) -> anyhow::Result<Path> {
    let engine = engine(carrier)?;
    for name in ["left", "right"] {
        engine.docker_ok(&["run", "-d", "--name", name, "--network", "bench", "busybox", "sleep", "3600"])?;
    }
    let ends = Ends::between(engine.pid("left")?, engine.pid("right")?, &engine.address("right", "bench")?)?;
    Ok(Path { ends, symmetric: true, processes: on_the_path(), _keep: Keep::Engine(Box::new(engine)) })
}

/// From another machine to the host's own address.
fn at_the_host(server: u32) -> anyhow::Result<Ends> {
    Ok(Ends {
        server,
        bind: SocketAddr::new("0.0.0.0".parse()?, PORT),
        client: *OUTSIDE.get().context("nobody is outside")?,
        target: Some(format!("{}:{PORT}", arca_tests::outside::GATEWAY).parse()?),
    })
}

fn published(carrier: &str) -> anyhow::Result<Path> {
    let engine = engine(carrier)?;
    let (tcp, udp) = (format!("{PORT}:{PORT}/tcp"), format!("{PORT}:{PORT}/udp"));
    let run = ["run", "-d", "--name", "right", "--network", "bench", "-p", &tcp, "-p", &udp];
    engine.docker_ok(&[&run[..], &["busybox", "sleep", "3600"]].concat())?;
    let ends = at_the_host(engine.pid("right")?)?;
    Ok(Path { ends, symmetric: false, processes: on_the_path(), _keep: Keep::Engine(Box::new(engine)) })
}

/// A program that is not ours, ended when dropped.
struct Peer {
    child: Child,
    #[allow(dead_code, reason = "removed with it")]
    folder: tempfile::TempDir,
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

    fn path(self, ends: Ends, symmetric: bool) -> Path {
        Path { ends, symmetric, processes: Vec::new(), _keep: Keep::Peer(self.peer, None) }
    }
}

fn dockerd() -> anyhow::Result<Path> {
    let dockerd = Dockerd::start()?;
    let ((left, _), (right, address)) = (dockerd.run("left", &[])?, dockerd.run("right", &[])?);
    Ok(dockerd.path(Ends::between(left, right, &address)?, true))
}

fn dockerd_published() -> anyhow::Result<Path> {
    let dockerd = Dockerd::start()?;
    let (tcp, udp) = (format!("{PORT}:{PORT}/tcp"), format!("{PORT}:{PORT}/udp"));
    let (right, _) = dockerd.run("right", &["-p", &tcp, "-p", &udp])?;
    Ok(dockerd.path(at_the_host(right)?, false))
}

/// Unpacks pasta of Debian where it is neither installed nor unpacked; without a network it is left out later, by name.
pub(crate) fn fetch_peers() {
    let folder = cache().join("tools/passt");
    if !folder.exists() && Command::new("pasta").arg("--version").output().is_err() {
        let unpack = File::new(env!("CARGO_MANIFEST_DIR")).join("../helpervm-image/unpack");
        let mut command = Command::new(unpack);
        command.arg("bookworm").arg(cache().join("apt")).arg(folder).arg("passt");
        let _ = command.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

fn pasta() -> anyhow::Result<Path> {
    let unpacked = cache().join("tools/passt/usr/bin/pasta");
    let program = if unpacked.exists() { unpacked } else { PathBuf::from("pasta") };
    let holder = Holder::start()?;
    let folder = tempfile::Builder::new().prefix("x-pasta-").tempdir_in("/tmp")?;
    let port = PORT.to_string();
    // By a mount: pasta has given up the right to look into another process when it opens the namespace.
    let netns = folder.path().join("netns").display().to_string();
    fs::write(&netns, "")?;
    isolation::run("mount", &["--bind", &format!("/proc/{}/ns/net", holder.pid()), &netns])?;
    let mut command = Command::new(&program);
    command
        .args(["--foreground", "--quiet", "--runas", "0", "--config-net", "-t", &port, "-u", &port])
        .args(["-T", "none", "-U", "none", "--netns", &netns])
        .stdin(Stdio::null())
        .stderr(fs::File::create(folder.path().join("log"))?);
    let child = command.spawn().with_context(|| format!("start {} (package passt)", program.display()))?;
    let mut peer = Peer { child, folder };
    let deadline = Instant::now() + LISTENING;
    // It is ready when its interface in the namespace has an address.
    while !isolation::in_network_of(holder.pid(), || isolation::output("ip", &["-4", "-o", "address"]))?
        .lines()
        .any(|line| !line.contains(" lo "))
    {
        if let Some(status) = peer.child.try_wait()? {
            bail!("pasta: {status}: {}", fs::read_to_string(peer.folder.path().join("log")).unwrap_or_default());
        }
        ensure!(Instant::now() < deadline, "pasta has not configured the namespace");
    }
    let ends = at_the_host(holder.pid())?;
    let processes = vec![("pasta".to_owned(), peer.child.id())];
    Ok(Path { ends, symmetric: false, processes, _keep: Keep::Peer(peer, Some(holder)) })
}
