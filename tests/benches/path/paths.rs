// SPDX-License-Identifier: Apache-2.0
//! The paths that are compared. Each is set up, probed and taken down in turn within one run.

use std::{net::SocketAddr, sync::OnceLock};

use anyhow::Context as _;
use arca_tests::{engine::Engine, story};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use crate::{
    joiner::Joined,
    kernel::{self, Bridge, Holder},
    peers::{self, Peer},
    plug::Plugged,
    probes::Ends,
    processes,
};

/// A process of the machine outside: published ports are probed from there.
pub(crate) static OUTSIDE: OnceLock<u32> = OnceLock::new();

/// Port that is published.
pub(crate) const PORT: u16 = 9000;

/// A path that stands; dropping it takes it down.
pub(crate) struct Path {
    pub(crate) ends: Ends,
    /// Whose cost counts.
    pub(crate) processes: Vec<(String, u32)>,
    keep: Keep,
}

/// What a path consists of. In this order: what is inside goes before what it is inside of.
#[allow(dead_code, reason = "only kept")]
pub(crate) enum Keep {
    Bridge(Bridge),
    Joined(Joined),
    Engine(Box<Engine>),
    Peer(Peer, Option<Holder>),
    Plugged([Plugged; 2], Peer),
}

/// Parties of a link that may die.
pub(crate) const PARTIES: &[&str] = &["arca-tapfwd", "arca-relayd", "agent"];

impl Path {
    pub(crate) fn new(ends: Ends, processes: Vec<(String, u32)>, keep: Keep) -> Self {
        Self { ends, processes, keep }
    }

    /// Between two containers of an engine whose parties can be killed.
    pub(crate) fn has_parties(&self) -> bool {
        matches!(self.keep, Keep::Engine(_)) && self.ends.target.is_none()
    }

    /// Kills one of the [`PARTIES`].
    pub(crate) fn strike(&self, party: &str) -> anyhow::Result<()> {
        let found = processes::of_engine().into_iter().find(|process| {
            let title = process.title();
            title.starts_with(party) || title.ends_with(party)
        });
        let pid = found.with_context(|| format!("{party} does not run"))?.id();
        Ok(kill(Pid::from_raw(i32::try_from(pid)?), Signal::SIGKILL)?)
    }

    /// Waits until every link is up again.
    pub(crate) fn recovered(&self) -> anyhow::Result<()> {
        let Keep::Engine(engine) = &self.keep else { return Ok(()) };
        story::wait_until_up(engine)
    }
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
    Kind { name: "gvproxy", meaning: "gvproxy, namespace to namespace", start: peers::gvproxy },
    Kind { name: "docker-bridge", meaning: "Docker's own engine, container to container", start: peers::dockerd },
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
        start: peers::dockerd_published,
    },
    Kind {
        name: "gvproxy-published",
        meaning: "gvproxy, outside to namespace, forwarded port",
        start: peers::gvproxy_published,
    },
    Kind { name: "pasta", meaning: "pasta, outside to namespace, forwarded port", start: peers::pasta },
];

fn bridge() -> anyhow::Result<Path> {
    let bridge = Bridge::start()?;
    let ends = Ends::between(bridge.pid(0), bridge.pid(1), &kernel::address(1))?;
    Ok(Path::new(ends, Vec::new(), Keep::Bridge(bridge)))
}

fn taps() -> anyhow::Result<Path> {
    let joined = Joined::start()?;
    let ends = Ends::between(joined.pid(0), joined.pid(1), &kernel::address(1))?;
    let processes = vec![("joiner".to_owned(), joined.process())];
    Ok(Path::new(ends, processes, Keep::Joined(joined)))
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
    Ok(Path::new(ends, on_the_path(), Keep::Engine(Box::new(engine))))
}

/// From another machine to the host's own address.
pub(crate) fn at_the_host(server: u32) -> anyhow::Result<Ends> {
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
    Ok(Path::new(ends, on_the_path(), Keep::Engine(Box::new(engine))))
}
