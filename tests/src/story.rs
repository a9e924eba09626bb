// SPDX-License-Identifier: Apache-2.0
//! What Arca is for, in one story; the demo tells it, the end-to-end test insists on it.
//!
//! Two networks, a web server on both, a database on one of them; who may reach whom; the way out and the way in; and
//! every host daemon killed in the middle of a transfer.

use std::{
    fmt::Write as _,
    io::{Read as _, Write as _},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use crate::{
    engine::{Engine, over_vms},
    inside::{self, interfaces},
    outside,
};

/// One step that was played.
#[derive(Debug)]
pub struct Step {
    /// What it shows.
    pub title: String,
    /// The command, as a user would type it; empty when none was run.
    pub command: String,
    /// What came out, shortened.
    pub result: String,
    /// Time of the command.
    pub time: Duration,
}

/// Serves the container's host name over HTTP: enough of a server for a story. It says when it listens.
const SERVE: &str =
    "mkdir -p /srv && hostname > /srv/name && httpd -p PORT -h /srv && echo listening && exec sleep 1000000";

/// Plays the story; `told` hears each step as it ends.
///
/// # Errors
/// The first step that did not hold.
pub fn play(engine: &Engine, told: &mut dyn FnMut(&Step)) -> anyhow::Result<()> {
    let mut story = Story { engine, told };
    story.two_networks()?;
    story.hot_attach()?;
    story.names_and_isolation()?;
    story.ways_in_and_out()?;
    story.disconnect_stop_start()?;
    story.daemons_die()
}

struct Story<'a> {
    engine: &'a Engine,
    told: &'a mut dyn FnMut(&Step),
}

impl Story<'_> {
    /// Runs docker, checks its output, tells.
    fn docker(
        &mut self,
        title: &str,
        arguments: &[&str],
        check: impl FnOnce(&str) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let command = format!("docker {}", quoted(arguments));
        let ran = self.engine.docker(arguments);
        let time = ran.time;
        let output = ran.ok().with_context(|| command.clone())?;
        let result = check(&output).with_context(|| format!("{command}\n{output}"))?;
        (self.told)(&Step { title: title.to_owned(), command, result, time });
        Ok(())
    }

    /// Does something that is no docker command, tells.
    fn act(
        &mut self,
        title: &str,
        command: &str,
        act: impl FnOnce(&Engine) -> anyhow::Result<String>,
    ) -> anyhow::Result<()> {
        let began = Instant::now();
        let result = act(self.engine).with_context(|| title.to_owned())?;
        let (title, command) = (title.to_owned(), command.to_owned());
        (self.told)(&Step { title, command, result, time: began.elapsed() });
        Ok(())
    }

    fn two_networks(&mut self) -> anyhow::Result<()> {
        for name in ["frontend", "backend"] {
            self.docker("a network", &["network", "create", name], |id| {
                ensure!(id.len() == 64, "a network id has 64 digits");
                Ok(id[..12].to_owned())
            })?;
        }
        Ok(())
    }

    fn hot_attach(&mut self) -> anyhow::Result<()> {
        let serve = SERVE.replace("PORT", "80");
        let run = ["run", "-d", "--name", "web", "--hostname", "web", "busybox", "sh", "-c", &serve];
        self.docker("a container of its own machine", &run, |id| Ok(id[..12.min(id.len())].to_owned()))?;
        self.engine.until_said("web", "listening")?;
        self.docker("attach it to a network while it runs", &["network", "connect", "frontend", "web"], quiet)?;
        self.docker("and to another", &["network", "connect", "backend", "web"], quiet)?;
        self.act("eth1 and eth2 are there, with the addresses OVN gave", "", |engine| {
            let seen = interfaces(engine, "web")?;
            for (interface, network) in [("eth0", "bridge"), ("eth1", "frontend"), ("eth2", "backend")] {
                let address = engine.address("web", network)?;
                let held = seen.iter().any(|(name, addresses)| {
                    name == interface && addresses.iter().any(|cidr| cidr.split('/').next() == Some(&address))
                });
                ensure!(held, "{interface} should hold {address} of {network}: {seen:?}");
            }
            Ok(seen
                .iter()
                .map(|(name, addresses)| format!("{name} {}", addresses.join(" ")))
                .collect::<Vec<_>>()
                .join(", "))
        })?;
        let serve = SERVE.replace("PORT", "5432");
        let run = [
            "run",
            "-d",
            "--name",
            "db",
            "--hostname",
            "db",
            "--network",
            "backend",
            "-p",
            "5432:5432",
            "busybox",
            "sh",
            "-c",
            &serve,
        ];
        self.docker("a database on backend, published", &run, |id| Ok(id[..12.min(id.len())].to_owned()))?;
        self.engine.until_said("db", "listening")
    }

    fn names_and_isolation(&mut self) -> anyhow::Result<()> {
        let fetch = ["exec", "web", "wget", "-q", "-T", "5", "-O", "-", "http://db:5432/name"];
        self.docker("web finds db by name and reaches it", &fetch, |text| equal(text, "db"))?;
        let db = self.engine.address("db", "backend")?;
        let stranger =
            format!("nslookup db >/dev/null 2>&1 && echo resolved; nc -w 1 {db} 5432 </dev/null && echo reached; true");
        let run = ["run", "--rm", "--network", "frontend", "busybox", "sh", "-c", &stranger];
        self.docker("a container on frontend alone does neither", &run, |text| {
            equal(text, "").map(|_| "no name, no way".into())
        })
    }

    fn ways_in_and_out(&mut self) -> anyhow::Result<()> {
        self.act("the published port answers on the host", "curl http://127.0.0.1:5432/name", |_| {
            equal(&http_get("127.0.0.1:5432", "/name")?, "db")
        })?;
        let ask = ["exec", "web", "nc", "-w", "3", outside::ADDRESS, &outside::WHO_PORT.to_string()];
        self.docker("the outside sees the host's address, not the container's", &ask, |text| {
            equal(text, outside::GATEWAY)
        })
    }

    fn disconnect_stop_start(&mut self) -> anyhow::Result<()> {
        self.docker("take web off backend", &["network", "disconnect", "backend", "web"], quiet)?;
        self.act("its interface is gone, and the name db with it", "", |engine| {
            let seen = interfaces(engine, "web")?;
            ensure!(!seen.iter().any(|(name, _)| name == "eth2"), "eth2 is still there: {seen:?}");
            let found = engine.docker(&["exec", "web", "nslookup", "db"]);
            ensure!(found.code != 0, "db still resolves: {}", found.stdout);
            Ok("eth0, eth1".to_owned())
        })?;
        self.docker("stop it", &["stop", "-t", "1", "web"], |name| equal(name, "web"))?;
        self.docker("start it", &["start", "web"], |name| equal(name, "web"))?;
        self.act("it is on the networks it was on", "", |engine| {
            let inspect = engine.inspect("web")?;
            let networks = inspect["NetworkSettings"]["Networks"].as_object().context("networks")?;
            let names: Vec<&str> = networks.keys().map(String::as_str).collect();
            ensure!(names == ["bridge", "frontend"], "{names:?}");
            ensure!(networks.values().all(|network| network["IPAddress"].as_str().is_some_and(|ip| !ip.is_empty())));
            Ok(names.join(", "))
        })
    }

    fn daemons_die(&mut self) -> anyhow::Result<()> {
        self.docker("web back on backend", &["network", "connect", "backend", "web"], quiet)?;
        for daemon in ["arca-netd", "arca-api", "arca-relayd"] {
            let title = format!("kill -9 {daemon} in the middle of a transfer: it completes");
            self.act(&title, &format!("kill -9 $(pidof {daemon})"), |engine| {
                // Emulated processors take longer to make up and to add up the bytes than to send them.
                let megabytes = if over_vms() { 16 } else { 64 };
                let address = engine.address("db", "backend")?;
                let strike = || engine.kill_daemon(daemon);
                let time = inside::transfer(engine, "web", "db", &address, megabytes, strike)?;
                Ok(format!("{megabytes} MB, same digest at both ends, {:.1} s", time.as_secs_f64()))
            })?;
            self.act(&format!("{daemon} is back"), "arca daemon status", |engine| {
                wait_until_up(engine)?;
                Ok("answers".to_owned())
            })?;
        }
        let list = ["ps", "--format", "{{.Names}}"];
        self.docker("and docker still knows everything", &list, |text| {
            let mut names: Vec<&str> = text.lines().collect();
            names.sort_unstable();
            equal(&names.join(" "), "db web")
        })
    }
}

/// Waits until every daemon answers again; the supervisor restarts them.
///
/// # Errors
/// If one does not within ten seconds.
#[expect(clippy::disallowed_methods, reason = "seen from outside, a restarting daemon has no event to wait for")]
pub fn wait_until_up(engine: &Engine) -> anyhow::Result<()> {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        let status: Value = serde_json::from_str(&engine.arca(&["daemon", "status", "--json"]).stdout)?;
        let daemons = status["daemons"].as_array().cloned().unwrap_or_default();
        if daemons.len() == 3 && daemons.iter().all(|daemon| daemon["state"] == "answers") {
            return Ok(());
        }
        if Instant::now() > deadline {
            bail!("not all daemons came back: {status:#}\n{}", engine.logs());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// `GET path`, its body.
///
/// # Errors
/// If nobody answers within five seconds.
pub fn http_get(address: &str, path: &str) -> anyhow::Result<String> {
    let address = address.parse().context("address")?;
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let body = text.split_once("\r\n\r\n").map(|(_, body)| body.trim_end().to_owned());
    body.with_context(|| format!("no HTTP answer: {text:?}"))
}

fn equal(text: &str, expected: &str) -> anyhow::Result<String> {
    ensure!(text.trim() == expected, "expected {expected:?}, got {text:?}");
    Ok(expected.to_owned())
}

fn quiet(text: &str) -> anyhow::Result<String> {
    ensure!(text.is_empty(), "expected no output, got {text:?}");
    Ok(String::new())
}

fn quoted(arguments: &[&str]) -> String {
    let plain = |word: &str| word.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_./:=,{}@%+".contains(&b));
    arguments.iter().fold(String::new(), |mut line, word| {
        let space = if line.is_empty() { "" } else { " " };
        let quote = if plain(word) && !word.is_empty() { "" } else { "'" };
        let _ = write!(line, "{space}{quote}{word}{quote}");
        line
    })
}
