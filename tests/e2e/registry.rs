// SPDX-License-Identifier: Apache-2.0
//! Images go to a registry and come back; a pull that was killed in the middle goes on where it ended.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, Condvar, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{clients, engine::Engine, story};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] =
    &[("a_killed_pull_leaves_a_whole_store_and_goes_on_where_it_ended", killed_pull)];

/// Debian's docker-registry on this machine's loopback; ended when dropped.
struct Registry(Child);

impl Registry {
    fn start(program: &Path, folder: &Path, port: u16) -> anyhow::Result<Self> {
        let config = folder.join("registry.yml");
        let data = folder.join("registry");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: \"127.0.0.1:{port}\"}}\nstorage:\n  filesystem: {{rootdirectory: {}}}\n",
            data.display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new(program);
        let heard = command.arg("serve").arg(&config).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = heard.spawn().context("docker-registry")?;
        let mut log = BufReader::new(child.stderr.take().context("its log")?);
        let registry = Self(child);
        let mut line = String::new();
        while !line.contains("listening on") {
            line.clear();
            ensure!(log.read_line(&mut line)? > 0, "docker-registry ended before it listened");
        }
        // What it says later is read too: a full pipe would hold it up.
        thread::spawn(move || io::copy(&mut log, &mut io::sink()));
        Ok(registry)
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// How many bytes a proxy lets through to its clients.
#[derive(Default)]
struct Gate {
    /// Bytes that passed, and those that may.
    state: Mutex<(u64, u64)>,
    changed: Condvar,
}

impl Gate {
    fn set(&self, passed: u64, limit: u64) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = (passed, limit);
        self.changed.notify_all();
    }

    fn passed(&self) -> u64 {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).0
    }

    /// Waits until `count` bytes may pass.
    fn pass(&self, count: usize) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        while state.0 >= state.1 {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        state.0 += count as u64;
        self.changed.notify_all();
    }

    /// Returns when no more may pass.
    fn until_full(&self) -> anyhow::Result<()> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.changed.wait_timeout_while(state, Duration::from_secs(60), |state| state.0 < state.1);
        let late = waited.unwrap_or_else(PoisonError::into_inner).1.timed_out();
        ensure!(!late, "the pull did not get so far");
        Ok(())
    }
}

/// Passes connections on to the registry, its answers only as far as the gate lets them.
fn proxy(from: u16, to: u16) -> anyhow::Result<Arc<Gate>> {
    let gate = Arc::new(Gate::default());
    gate.set(0, u64::MAX);
    let listener = TcpListener::bind(("127.0.0.1", from))?;
    let shared = gate.clone();
    thread::spawn(move || {
        for client in listener.incoming().flatten() {
            let Ok(server) = TcpStream::connect(("127.0.0.1", to)) else { continue };
            let (Ok(mut reads), Ok(mut writes)) = (client.try_clone(), server.try_clone()) else { continue };
            thread::spawn(move || {
                let _ = io::copy(&mut reads, &mut writes);
                let _ = writes.shutdown(std::net::Shutdown::Write);
            });
            let gate = shared.clone();
            thread::spawn(move || {
                let (mut server, mut client, mut piece) = (server, client, [0; 16 << 10]);
                while let Ok(count @ 1..) = server.read(&mut piece) {
                    gate.pass(count);
                    if client.write_all(&piece[..count]).is_err() {
                        break;
                    }
                }
                let _ = client.shutdown(std::net::Shutdown::Both);
            });
        }
    });
    Ok(gate)
}

fn bytes_in(folder: &Path) -> anyhow::Result<u64> {
    let entries = fs::read_dir(folder).with_context(|| folder.display().to_string())?;
    entries.map(|entry| Ok(entry?.metadata()?.len())).sum()
}

fn killed_pull() -> anyhow::Result<()> {
    let test = "registry::a_killed_pull_leaves_a_whole_store_and_goes_on_where_it_ended";
    let Some(program) = clients::tool(test, "registry", "usr/bin/docker-registry") else { return Ok(()) };
    let engine = Engine::start()?;
    engine.load_image()?;
    let _registry = Registry::start(&program, engine.home(), 5000)?;
    let gate = proxy(5001, 5000)?;
    let images = engine.home().join("data/images");

    // Random bytes, which no compression makes fewer.
    let script = "head -c 4194304 /dev/urandom >/big; echo word >/word; rm /etc/group";
    engine.docker_ok(&["run", "--name", "made", "--network", "none", "busybox", "sh", "-c", script])?;
    engine.docker_ok(&["commit", "-m", "travels", "made", "localhost:5001/far/box:1"])?;
    let sum = engine.docker_ok(&["run", "--rm", "--network", "none", "localhost:5001/far/box:1", "md5sum", "/big"])?;
    let pushed = engine.docker_ok(&["push", "localhost:5001/far/box:1"])?;
    ensure!(pushed.contains("1: digest: sha256:") && pushed.contains(": Pushed"), "{pushed}");
    let forget = || -> anyhow::Result<()> {
        engine.docker_ok(&["image", "rm", "-f", "localhost:5001/far/box:1"])?;
        Ok(())
    };
    engine.docker_ok(&["rm", "made"])?;
    engine.docker_ok(&["image", "rm", "busybox"])?;
    forget()?;
    ensure!(fs::read_dir(images.join("layers"))?.count() == 0, "with its images a layer goes");

    // So much passes that at least one layer has come in part.
    gate.set(0, 3 << 20);
    let mut pull = engine.docker_command(&["pull", "localhost:5001/far/box:1"]);
    let mut pull = pull.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    gate.until_full()?;
    // The kernel holds some of it for a reader that is late.
    let end = Instant::now() + Duration::from_secs(60);
    while bytes_in(&images.join("partial")).unwrap_or(0) < 500_000 {
        ensure!(Instant::now() < end, "what came is not kept");
        // The folder's file system has no event that this could wait for without a tool of its own; it is milliseconds.
        thread::yield_now();
    }
    engine.kill_daemon("arca-api")?;
    if pull.wait()?.success() {
        bail!("a pull whose engine was killed says that it is done");
    }
    gate.set(0, u64::MAX);
    story::wait_until_up(&engine)?;
    ensure!(engine.docker_ok(&["images", "-aq"])?.is_empty(), "half an image is none");
    ensure!(fs::read_dir(images.join("layers"))?.count() == 0, "no layer without an image");
    ensure!(fs::read_dir(images.join("tmp"))?.count() == 0, "no work in progress");
    let kept = bytes_in(&images.join("partial"))?;
    ensure!(kept >= 500_000, "what came is kept for the next pull: {kept}");

    gate.set(0, u64::MAX);
    let pulled = engine.docker_ok(&["pull", "localhost:5001/far/box:1"])?;
    let second = gate.passed();
    ensure!(pulled.contains("Downloaded newer image for localhost:5001/far/box:1"), "{pulled}");
    ensure!(bytes_in(&images.join("partial"))? == 0, "nothing is in progress");
    let run = ["run", "--rm", "--network", "none", "localhost:5001/far/box:1", "sh", "-c"];
    let said = engine.docker_ok(&[&run[..], &["md5sum /big; cat /word; ls /etc/group"]].concat());
    ensure!(said.is_err(), "what was removed in a layer is not there");
    let said = engine.docker_ok(&[&run[..], &["md5sum /big; cat /word"]].concat())?;
    ensure!(said == format!("{sum}\nword"), "{said}");
    forget()?;
    gate.set(0, u64::MAX);
    engine.docker_ok(&["pull", "-q", "localhost:5001/far/box:1"])?;
    let whole = gate.passed();
    ensure!(second + kept <= whole + 100_000, "{kept} bytes were there, and {second} of {whole} came again");

    let build = engine.docker(&["system", "prune", "-f"]);
    ensure!(build.code == 0 && build.stdout.contains("Total reclaimed space"), "{build:?}");
    let mut request = "POST /build HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: 0\r\n\r\n".as_bytes();
    let mut socket = std::os::unix::net::UnixStream::connect(engine.home().join("arca.sock"))?;
    io::copy(&mut request, &mut socket)?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 501") && answer.contains("docker buildx create"), "{answer}");

    // An archive of it is the same image, also for another tool that reads OCI layouts.
    let id = engine.docker_ok(&["image", "inspect", "--format", "{{.Id}}", "localhost:5001/far/box:1"])?;
    let archive = engine.home().join("box.tar").to_string_lossy().into_owned();
    engine.docker_ok(&["save", "-o", &archive, "localhost:5001/far/box:1"])?;
    forget()?;
    ensure!(engine.docker_ok(&["load", "-q", "-i", &archive])? == "Loaded image: localhost:5001/far/box:1");
    ensure!(engine.docker_ok(&["image", "inspect", "--format", "{{.Id}}", "localhost:5001/far/box:1"])? == id);
    engine.stop()
}
