// SPDX-License-Identifier: Apache-2.0
//! Docker compose, unchanged, on the files of tests/compose: order of start, names, addresses, isolation, scale, change,
//! one-off runs, and nothing left afterwards.

use std::{
    collections::BTreeSet,
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, ensure};
use arca_tests::{
    clients,
    engine::{Engine, Ran},
    story,
};
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("a_shop_opens_in_order_changes_and_closes", shop),
    ("dependencies_that_never_come_true_are_told", broken),
    ("networks_with_ipv6", six),
];

/// One project on one engine.
struct Project {
    engine: Engine,
    file: PathBuf,
}

impl Project {
    /// `None`, and a line that says why, without docker compose.
    fn new(test: &str, file: &str) -> anyhow::Result<Option<Self>> {
        let Some(plugin) = clients::tool(&format!("compose::{test}"), "compose", "docker-compose") else {
            return Ok(None);
        };
        let engine = Engine::start()?;
        let config = engine.home().join("docker");
        std::fs::create_dir_all(&config)?;
        let extra = serde_json::json!({"cliPluginsExtraDirs": [plugin.parent()]});
        std::fs::write(config.join("config.json"), extra.to_string())?;
        engine.load_image()?;
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("compose").join(file);
        Ok(Some(Self { engine, file }))
    }

    fn run(&self, arguments: &[&str]) -> Ran {
        let file = self.file.to_string_lossy();
        let all: Vec<&str> = ["compose", "-f", &*file].iter().chain(arguments).copied().collect();
        self.engine.docker(&all)
    }

    fn ok(&self, arguments: &[&str]) -> anyhow::Result<String> {
        self.run(arguments).ok().with_context(|| format!("docker compose {}", arguments.join(" ")))
    }

    /// Addresses that a service gets for a name.
    fn resolve(&self, service: &str, name: &str) -> anyhow::Result<BTreeSet<String>> {
        let told = self.ok(&["exec", "-T", service, "nslookup", "-type=a", name])?;
        let lines = told.lines().filter_map(|line| line.strip_prefix("Address: "));
        Ok(lines.map(str::to_owned).collect())
    }

    /// Addresses of a service's containers on a network, by inspect.
    fn addresses(&self, service: &str, network: &str) -> anyhow::Result<BTreeSet<String>> {
        let ids = self.ok(&["ps", "-q", service])?;
        ids.lines().map(|id| self.engine.address(id, network)).collect()
    }

    /// State, health and exit code of every container, `ps --all`.
    fn states(&self) -> anyhow::Result<Vec<String>> {
        let told = self.ok(&["ps", "-a", "--format", "json"])?;
        let mut states = Vec::new();
        for line in told.lines() {
            let one: Value = serde_json::from_str(line)?;
            let text = |key: &str| one[key].as_str().unwrap_or_default().to_owned();
            states.push(format!("{} {} {}{}", text("Name"), text("State"), text("Health"), one["ExitCode"]));
        }
        states.sort();
        Ok(states)
    }

    /// What the web server of a service says to a container of another.
    fn page(&self, from: &str, url: &str) -> Ran {
        self.run(&["exec", "-T", from, "wget", "-q", "-T", "5", "-O", "-", url])
    }
}

/// What a web server at a published port says.
fn fetch(address: &str) -> anyhow::Result<String> {
    let mut stream = TcpStream::connect(address).with_context(|| format!("connect to {address}"))?;
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split("\r\n\r\n").nth(1).unwrap_or_default().trim().to_owned())
}

fn shop() -> anyhow::Result<()> {
    let Some(shop) = Project::new("a_shop_opens_in_order_changes_and_closes", "shop.yaml")? else { return Ok(()) };
    let engine = &shop.engine;
    let absent = shop.run(&["up", "-d"]);
    ensure!(absent.code == 1 && absent.stderr.contains("network outside declared as external, but could not be found"));
    engine.docker_ok(&["network", "create", "outside"])?;
    shop.ok(&["up", "-d", "--wait"])?;
    opened(&shop)?;
    named(&shop)?;
    isolated(&shop)?;
    scaled(&shop)?;
    driven(&shop)?;
    adopted(&shop)?;
    changed(&shop)?;
    shop.ok(&["down", "-v", "--remove-orphans", "-t", "0"])?;
    ensure!(engine.docker_ok(&["ps", "-aq"])?.is_empty());
    ensure!(engine.docker_ok(&["volume", "ls", "-q"])?.is_empty());
    let networks = engine.docker_ok(&["network", "ls", "--filter", "type=custom", "--format", "{{.Name}}"])?;
    ensure!(networks == "outside", "an external network is nobody's to remove: {networks}");
    engine.stop()
}

/// Every condition came true, in order.
fn opened(shop: &Project) -> anyhow::Result<()> {
    let states = shop.states()?;
    let expected = [
        "shop-cache-1 running healthy0",
        "shop-db-1 running healthy0",
        "shop-front running healthy0",
        "shop-migrate-1 exited 0",
        "shop-worker-1 running healthy0",
        "shop-worker-2 running healthy0",
    ];
    ensure!(states == expected, "{states:?}");
    ensure!(shop.ok(&["logs", "--no-color", "--no-log-prefix", "migrate"])?.trim() == "data");
    let started =
        |name: &str, field: &str| shop.engine.docker_ok(&["inspect", "-f", &format!("{{{{.State.{field}}}}}"), name]);
    // Times of one form compare as texts.
    ensure!(started("shop-db-1", "StartedAt")? < started("shop-migrate-1", "StartedAt")?);
    ensure!(started("shop-migrate-1", "FinishedAt")? < started("shop-front", "StartedAt")?);
    Ok(())
}

/// Services, aliases and static addresses are what the file says, and published ports lead to them.
fn named(shop: &Project) -> anyhow::Result<()> {
    let engine = &shop.engine;
    ensure!(engine.address("shop-front", "shop_front")? == "10.77.1.10");
    ensure!(engine.address("shop-db-1", "shop_back")? == "10.77.2.20");
    let front = engine.inspect("shop-front")?;
    ensure!(front["NetworkSettings"]["Networks"]["shop_front"]["MacAddress"] == "02:42:0a:4d:01:0a");
    ensure!(front["Config"]["Hostname"] == "front" && front["Config"]["Labels"]["tier"] == "front");
    for (url, page) in [("http://db/", "data"), ("http://cache/", "cache"), ("http://shop-worker-2/", "work")] {
        let said = shop.page("web", url);
        ensure!(said.stdout.trim() == page, "{url}: {said:?}");
    }
    for alias in ["web", "www", "shop.example", "shop-front"] {
        let said = shop.page("web", &format!("http://{alias}/"));
        ensure!(said.stdout.trim() == "hello", "{alias}: {said:?}");
    }
    ensure!(shop.resolve("web", "www")? == BTreeSet::from(["10.77.1.10".to_owned()]));
    ensure!(shop.resolve("web", "worker")? == shop.addresses("worker", "shop_back")?);
    ensure!(shop.ok(&["port", "web", "80"])? == "127.0.0.1:18080");
    ensure!(shop.ok(&["port", "--protocol", "udp", "web", "53"])? == "0.0.0.0:18053");
    ensure!(shop.ok(&["port", "web", "91"])? == "0.0.0.0:18091");
    ensure!(fetch("127.0.0.1:18080")? == "hello");
    Ok(())
}

/// The back network has no way out, and nobody there knows the front.
fn isolated(shop: &Project) -> anyhow::Result<()> {
    // The probe works where there is a way.
    ensure!(shop.page("web", "http://10.77.1.10/").code == 0);
    ensure!(shop.page("worker", "http://10.77.2.20/").code == 0);
    let refused = shop.page("worker", "http://10.77.1.10/");
    ensure!(refused.code == 1 && refused.stderr.contains("unreachable"), "{refused:?}");
    ensure!(shop.run(&["exec", "-T", "worker", "nslookup", "-type=a", "www"]).code != 0);
    let routes = |service: &str| shop.ok(&["exec", "-T", service, "ip", "route"]);
    ensure!(!routes("worker")?.contains("default"), "internal networks have no gateway");
    ensure!(routes("web")?.contains("default via 10.77.1.1 "));
    Ok(())
}

/// Every replica is found by the service's name, and none that is gone.
fn scaled(shop: &Project) -> anyhow::Result<()> {
    shop.ok(&["up", "-d", "--no-deps", "--wait", "--scale", "worker=4", "worker"])?;
    let addresses = shop.addresses("worker", "shop_back")?;
    ensure!(addresses.len() == 4 && shop.resolve("web", "worker")? == addresses, "{addresses:?}");
    shop.ok(&["scale", "--no-deps", "worker=1"])?;
    let addresses = shop.addresses("worker", "shop_back")?;
    ensure!(addresses.len() == 1 && shop.resolve("web", "worker")? == addresses, "{addresses:?}");
    Ok(())
}

/// Verbs on services.
fn driven(shop: &Project) -> anyhow::Result<()> {
    ensure!(shop.run(&["exec", "-T", "-e", "A=b", "web", "sh", "-c", "echo $A; exit 5"]).stdout == "b\n");
    ensure!(shop.run(&["exec", "-T", "web", "sh", "-c", "exit 5"]).code == 5);
    let once = shop.run(&["run", "--rm", "--no-deps", "-T", "worker", "sh", "-c", "wget -q -O - http://db/; exit 7"]);
    ensure!(once.code == 7 && once.stdout == "data\n", "{once:?}");
    ensure!(shop.ok(&["top", "db"])?.contains("httpd -f -p 80"));
    let images = shop.ok(&["images", "--format", "json"])?;
    ensure!(images.contains("\"Repository\":\"busybox\""), "{images}");
    let state = |name: &str| shop.engine.docker_ok(&["inspect", "-f", "{{.State.Status}}", name]);
    shop.ok(&["pause", "db"])?;
    ensure!(state("shop-db-1")? == "paused");
    shop.ok(&["unpause", "db"])?;
    ensure!(state("shop-db-1")? == "running");
    shop.ok(&["kill", "cache"])?;
    ensure!(shop.states()?.contains(&"shop-cache-1 exited 137".to_owned()), "{:?}", shop.states()?);
    shop.ok(&["start", "cache"])?;
    ensure!(state("shop-cache-1")? == "running");
    shop.ok(&["stop", "-t", "0", "worker"])?;
    ensure!(state("shop-worker-1")? == "exited");
    shop.ok(&["restart", "-t", "0", "--no-deps", "worker"])?;
    ensure!(state("shop-worker-1")? == "running");
    let listed = shop.ok(&["ls", "--format", "json"])?;
    ensure!(listed.contains("\"Name\":\"shop\""), "{listed}");
    Ok(())
}

/// Another arca-api takes the services up again and finds them healthy by checks of its own.
fn adopted(shop: &Project) -> anyhow::Result<()> {
    let ids = || shop.ok(&["ps", "-q", "--no-trunc"]);
    let before = ids()?;
    shop.engine.kill_daemon("arca-api")?;
    story::wait_until_up(&shop.engine)?;
    shop.ok(&["up", "-d", "--wait", "--no-deps", "--scale", "worker=1", "web", "db", "cache", "worker"])?;
    ensure!(ids()? == before, "{before}");
    let healthy = shop.engine.docker_ok(&["ps", "-q", "--no-trunc", "--filter", "health=healthy"])?;
    ensure!(healthy.lines().count() == before.lines().count(), "{healthy}");
    Ok(())
}

/// Another greeting makes another front and leaves the others alone; its volume and its address stay.
fn changed(shop: &Project) -> anyhow::Result<()> {
    let ids = || shop.ok(&["ps", "-q", "--no-trunc", "db", "cache"]);
    let (before, front) = (ids()?, shop.ok(&["ps", "-q", "web"])?);
    shop.ok(&["exec", "-T", "web", "sh", "-c", "echo kept >/srv/note"])?;
    let file = shop.file.to_string_lossy();
    let mut command = shop.engine.docker_command(&["compose", "-f", &file, "up", "-d", "--wait", "--no-deps", "web"]);
    let output = command.env("GREETING", "good day").output()?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    ensure!(ids()? == before && shop.ok(&["ps", "-q", "web"])? != front);
    ensure!(fetch("127.0.0.1:18080")? == "good day");
    ensure!(shop.engine.address("shop-front", "shop_front")? == "10.77.1.10");
    ensure!(shop.ok(&["exec", "-T", "web", "cat", "/srv/note"])? == "kept");
    Ok(())
}

fn broken() -> anyhow::Result<()> {
    let Some(broken) = Project::new("dependencies_that_never_come_true_are_told", "broken.yaml")? else {
        return Ok(());
    };
    let exit = broken.run(&["--profile", "exit", "up", "-d"]);
    ensure!(exit.code == 1, "{exit:?}");
    ensure!(exit.stderr.contains("service \"fails\" didn't complete successfully: exit 3"), "{exit:?}");
    let states = broken.states()?;
    ensure!(states == ["broken-after-exit-1 created 0", "broken-fails-1 exited 3"], "{states:?}");
    let alone = broken.run(&["--profile", "exit", "up", "--no-log-prefix", "--exit-code-from", "fails", "fails"]);
    ensure!(alone.code == 3 && alone.stdout.contains("giving up\n"), "{alone:?}");
    let health = broken.run(&["--profile", "health", "up", "-d"]);
    ensure!(health.code == 1, "{health:?}");
    ensure!(health.stderr.contains("container broken-sick-1 is unhealthy"), "{health:?}");
    broken.ok(&["--profile", "*", "down", "-t", "0"])?;
    ensure!(broken.engine.docker_ok(&["ps", "-aq"])?.is_empty());
    broken.engine.stop()
}

fn six() -> anyhow::Result<()> {
    let Some(six) = Project::new("networks_with_ipv6", "six.yaml")? else { return Ok(()) };
    six.ok(&["up", "-d", "--wait"])?;
    let address = |name: &str, network: &str| {
        let inspect = six.engine.inspect(name)?;
        let address = inspect["NetworkSettings"]["Networks"][network]["GlobalIPv6Address"].as_str().unwrap_or_default();
        anyhow::Ok(address.to_owned())
    };
    ensure!(address("six-both-1", "six_dual")? == "fd78:1::10");
    ensure!(six.engine.address("six-both-1", "six_dual")? == "10.78.1.10");
    ensure!(address("six-only-1", "six_six")?.starts_with("fd78:2::"));
    ensure!(six.engine.address("six-only-1", "six_six").is_err(), "a network without IPv4 gives no such address");
    let resolved = six.ok(&["exec", "-T", "client", "nslookup", "-type=aaaa", "both"])?;
    ensure!(resolved.contains("Address: fd78:1::10"), "{resolved}");
    for (url, page) in [("http://both/", "both"), ("http://[fd78:1::10]/", "both"), ("http://alone/", "only")] {
        let said = six.page("client", url);
        ensure!(said.stdout.trim() == page, "{url}: {said:?}");
    }
    six.ok(&["down", "-t", "0"])?;
    ensure!(six.engine.docker_ok(&["network", "ls", "-q", "--filter", "type=custom"])?.is_empty());
    six.engine.stop()
}
