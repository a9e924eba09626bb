// SPDX-License-Identifier: Apache-2.0
//! Many things at once, and things that exclude each other: every call is answered, one of two rivals wins, and
//! afterwards everybody says the same ([`arca_tests::audit`]).
//!
//! Nothing here depends on who is first: both orders are right, and what is asserted is what holds after either.

use std::{
    collections::BTreeSet,
    sync::{Barrier, mpsc},
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use arca_tests::{
    audit::{agreement, at_once},
    engine::Engine,
    http::{Answer, Docker},
    story,
};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[(&str, Test)] = &[
    ("fifty_containers_start_at_once_on_ten_networks_and_go_at_once", fifty),
    ("of_rivals_one_wins", rivals),
    ("connect_and_disconnect_race_with_stop_and_removal", against_the_end),
    ("daemons_killed_in_the_middle_of_a_batch_leave_nothing_half_made", killed),
];

/// After the last answer; a killed daemon's leftovers are the slowest.
const SETTLES: Duration = Duration::from_secs(20);

fn engine() -> anyhow::Result<(Engine, Docker)> {
    let engine = Engine::start()?;
    engine.load_image()?;
    let docker = Docker::of(&engine);
    Ok((engine, docker))
}

fn network(docker: &Docker, name: &str) -> anyhow::Result<()> {
    docker.post("/networks/create", &json!({"Name": name})).map(drop)
}

/// All calls at the same moment; their answers in order. A call that is not answered is an error.
fn together(docker: &Docker, calls: &[(&str, String, Value)]) -> anyhow::Result<Vec<Answer>> {
    let start = Barrier::new(calls.len());
    let answers = at_once(calls, |(method, path, body)| {
        start.wait();
        docker.call(method, path, body)
    });
    answers.into_iter().collect()
}

fn fifty() -> anyhow::Result<()> {
    let (engine, docker) = engine()?;
    let networks: Vec<String> = (0..10).map(|n| format!("n{n}")).collect();
    networks.iter().try_for_each(|name| network(&docker, name))?;
    let numbers: Vec<usize> = (0..50).collect();
    let started = at_once(&numbers, |n| docker.sleeper(&format!("c{n}"), &networks[n % 10]));
    let ids = started.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let seen = agreement(&engine, SETTLES)?;
    ensure!(seen.len() == 50, "{} endpoints", seen.len());
    let of_network = |name: &String| seen.iter().filter(|seen| seen.network == *name).count();
    ensure!(networks.iter().all(|name| of_network(name) == 5));

    let removed = at_once(&ids, |id| docker.call("DELETE", &format!("/containers/{id}?force=1"), &Value::Null)?.ok());
    removed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(agreement(&engine, SETTLES)?.is_empty());
    let removed = at_once(&networks, |name| docker.call("DELETE", &format!("/networks/{name}"), &Value::Null)?.ok());
    removed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    ensure!(agreement(&engine, SETTLES)?.is_empty());
    engine.stop()
}

/// Exactly one of the answers is a success, and every other one says `text`.
fn one_wins(answers: &[Answer], text: &str) -> anyhow::Result<()> {
    let (won, lost): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status < 300);
    ensure!(
        won.len() == 1 && lost.iter().all(|answer| answer.message().contains(text)),
        "one should win and the others hear {text:?}: {answers:?}"
    );
    Ok(())
}

fn rivals() -> anyhow::Result<()> {
    let (engine, docker) = engine()?;
    let same = |call: (&'static str, String, Value)| vec![call; 6];

    let made = together(&docker, &same(("POST", "/networks/create".into(), json!({"Name": "twin"}))))?;
    one_wins(&made, "network with name twin already exists")?;
    let overlapping: Vec<_> = (0..6)
        .map(|n| {
            let ipam = json!({"Config": [{"Subnet": "10.77.0.0/16"}]});
            ("POST", "/networks/create".to_owned(), json!({"Name": format!("over{n}"), "IPAM": ipam}))
        })
        .collect();
    one_wins(&together(&docker, &overlapping)?, "Pool overlaps")?;

    let config = json!({"Image": "busybox", "Cmd": ["sleep", "100000"], "StopSignal": "SIGKILL"});
    let made = together(&docker, &same(("POST", "/containers/create?name=only".into(), config)))?;
    one_wins(&made, "is already in use by container")?;
    // Docker's answer to a second start is 304, also while the first is under way.
    let started = together(&docker, &same(("POST", "/containers/only/start".into(), Value::Null)))?;
    ensure!(started.iter().filter(|answer| answer.status == 204).count() == 1, "{started:?}");
    ensure!(started.iter().all(|answer| matches!(answer.status, 204 | 304)), "{started:?}");

    let connect = ("POST", "/networks/twin/connect".to_owned(), json!({"Container": "only"}));
    one_wins(&together(&docker, &same(connect))?, "already exists in network twin")?;
    let disconnect = ("POST", "/networks/twin/disconnect".to_owned(), json!({"Container": "only"}));
    one_wins(&together(&docker, &same(disconnect))?, "is not connected to network twin")?;
    ensure!(agreement(&engine, SETTLES)?.len() == 1);

    // One address, one hardware address, one host port for six containers.
    let names: Vec<String> = (0..6).map(|n| format!("c{n}")).collect();
    at_once(&names, |name| docker.sleeper(name, "bridge")).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    let ipam = json!({"Config": [{"Subnet": "10.78.0.0/24"}]});
    docker.post("/networks/create", &json!({"Name": "given", "IPAM": ipam}))?;
    let wanted = "10.78.0.99";
    let connects = |settings: Value| -> Vec<(&str, String, Value)> {
        let body = |name: &String| json!({"Container": name, "EndpointConfig": settings.clone()});
        names.iter().map(|name| ("POST", "/networks/given/connect".to_owned(), body(name))).collect()
    };
    let answers = together(&docker, &connects(json!({"IPAMConfig": {"IPv4Address": wanted}})))?;
    one_wins(&answers, "Address already in use")?;
    let seen = agreement(&engine, SETTLES)?;
    ensure!(seen.iter().filter(|seen| seen.address.starts_with(wanted)).count() == 1, "{seen:?}");
    let published = |n: usize| {
        let host = json!({"PortBindings": {"80/tcp": [{"HostPort": "8088"}]}});
        json!({"Image": "busybox", "Cmd": ["sleep", "9999"], "StopSignal": "SIGKILL", "HostConfig": host, "Hostname": format!("p{n}")})
    };
    for n in 0..4 {
        docker.post(&format!("/containers/create?name=p{n}"), &published(n))?;
    }
    let starts: Vec<_> = (0..4).map(|n| ("POST", format!("/containers/p{n}/start"), Value::Null)).collect();
    one_wins(&together(&docker, &starts)?, "Bind for 0.0.0.0:8088 failed: port is already allocated")?;
    agreement(&engine, SETTLES)?;

    // A network goes, or it is connected to: never both.
    for round in 0..6 {
        let name = format!("gone{round}");
        network(&docker, &name)?;
        let calls = [
            ("DELETE", format!("/networks/{name}"), Value::Null),
            ("POST", format!("/networks/{name}/connect"), json!({"Container": "only"})),
            ("POST", format!("/networks/{name}/connect"), json!({"Container": "c0"})),
        ];
        let answers = together(&docker, &calls)?;
        let connected = answers[1..].iter().filter(|answer| answer.status < 300).count();
        match answers[0].status {
            204 => ensure!(connected == 0, "connected to a network that is gone: {answers:?}"),
            403 => ensure!(connected > 0, "refused for nothing: {answers:?}"),
            _ => bail!("{answers:?}"),
        }
    }
    agreement(&engine, SETTLES)?;
    engine.stop()
}

/// What a call may be answered with when the thing it is about goes at the same time.
fn answered(calls: &[(&str, String, Value)], answers: &[Answer]) -> anyhow::Result<()> {
    for ((method, path, _), answer) in calls.iter().zip(answers) {
        let text = answer.message();
        let gone = ["No such container", "not found", "is not connected to", "is not running", "already in progress"];
        let gone = gone.iter().any(|part| text.contains(part));
        let lost = matches!(answer.status, 403 | 404 | 409 | 500) && gone;
        // A container that ended under its own connect; a network that has an endpoint again.
        let other = text.contains("has active endpoints") || text.contains("already exists in network");
        ensure!(answer.status < 400 || lost || other, "{method} {path}: {} {text}", answer.status);
    }
    Ok(())
}

fn against_the_end() -> anyhow::Result<()> {
    let (engine, docker) = engine()?;
    for name in ["base", "n1", "n2", "n3"] {
        network(&docker, name)?;
    }
    let stays = docker.sleeper("stays", "base")?;
    for round in 0..6 {
        let names: Vec<String> = ["a", "b", "c"].iter().map(|name| format!("{name}{round}")).collect();
        at_once(&names, |name| docker.sleeper(name, "base")).into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        let ends = ["/stop?t=0", "/kill", "/restart?t=0"];
        let mut calls: Vec<(&str, String, Value)> = Vec::new();
        for (name, end) in names.iter().zip(ends) {
            calls.extend(
                ["n1", "n2", "n3"].map(|net| ("POST", format!("/networks/{net}/connect"), json!({"Container": name}))),
            );
            calls.push((
                "POST",
                "/networks/base/disconnect".into(),
                json!({"Container": name, "Force": round % 2 == 0}),
            ));
            calls.push(("POST", format!("/containers/{name}{end}"), Value::Null));
            calls.push(("POST", "/networks/n1/disconnect".into(), json!({"Container": name})));
            if round % 3 != 0 {
                calls.push(("DELETE", format!("/containers/{name}?force=1"), Value::Null));
            }
        }
        let answers = together(&docker, &calls)?;
        answered(&calls, &answers).with_context(|| format!("round {round}"))?;
        agreement(&engine, SETTLES).with_context(|| format!("round {round}"))?;
        let rest = docker.get("/containers/json?all=1")?;
        let rest: Vec<String> =
            rest.as_array().into_iter().flatten().filter_map(|c| c["Id"].as_str()).map(str::to_owned).collect();
        let rest: Vec<String> = rest.into_iter().filter(|id| *id != stays).collect();
        let removed =
            at_once(&rest, |id| docker.call("DELETE", &format!("/containers/{id}?force=1"), &Value::Null)?.ok());
        removed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
    }
    ensure!(agreement(&engine, SETTLES)?.len() == 1);
    for name in ["n1", "n2", "n3"] {
        docker.call("DELETE", &format!("/networks/{name}"), &Value::Null)?.ok()?;
    }
    engine.stop()
}

fn killed() -> anyhow::Result<()> {
    let (engine, docker) = engine()?;
    let networks: Vec<String> = (0..4).map(|n| format!("n{n}")).collect();
    networks.iter().try_for_each(|name| network(&docker, name))?;
    for (round, daemon) in ["arca-netd", "arca-relayd", "arca-netd", "arca-relayd"].into_iter().enumerate() {
        let names: Vec<String> = (0..12).map(|n| format!("c{round}x{n}")).collect();
        let (done, first) = mpsc::channel();
        let outcome = std::thread::scope(|scope| {
            let (docker, names, networks) = (&docker, &names, &networks);
            let batch = scope.spawn(move || {
                at_once(names, |name| {
                    let at = name.len() % networks.len();
                    let started = docker.sleeper(name, &networks[at]);
                    let _ = done.send(());
                    let body = json!({"Container": name});
                    let other = &networks[(at + 1) % networks.len()];
                    let connected = docker.call("POST", &format!("/networks/{other}/connect"), &body);
                    (name.clone(), started, connected)
                })
            });
            // Half of the batch is under way when the first one is done.
            let _ = first.recv();
            engine.kill_daemon(daemon)?;
            batch.join().map_err(|_| anyhow::anyhow!("the batch panicked"))
        })
        .with_context(|| format!("round {round}"))?;
        story::wait_until_up(&engine)?;
        let mut lost = BTreeSet::new();
        for (name, started, connected) in outcome {
            // Answered at all, that is what counts; what could not be done is said.
            connected.with_context(|| format!("{name} in round {round}"))?;
            if let Err(error) = started {
                ensure!(!format!("{error:#}").contains("closed before an answer"), "{name}: {error:#}");
                lost.insert(name);
            }
        }
        agreement(&engine, SETTLES).with_context(|| format!("round {round}, {daemon} killed, {} lost", lost.len()))?;
        // What failed can be done now.
        let lost: Vec<String> = lost.into_iter().collect();
        let again = at_once(&lost, |name| docker.post(&format!("/containers/{name}/start"), &Value::Null));
        again.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        agreement(&engine, SETTLES).with_context(|| format!("round {round}, started again"))?;
        let removed =
            at_once(&names, |name| docker.call("DELETE", &format!("/containers/{name}?force=1"), &Value::Null)?.ok());
        removed.into_iter().collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(agreement(&engine, SETTLES)?.is_empty(), "round {round}: removed");
    }
    engine.stop()
}
