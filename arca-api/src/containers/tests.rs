// SPDX-License-Identifier: Apache-2.0
//! The verbs against stateful fakes: the state diagram, undo, order of events, adoption, bad input.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::{
    exec::{self, ExecConfig},
    remove::{self, Options},
    start::{self, Started},
    stop::{self, Condition},
    *,
};
use crate::{
    docker::network::EndpointSettings,
    fakes::{self, Outside, World},
    http::server,
    routes,
};

fn status(container: &Container) -> Status {
    container.with(|record| record.state.status)
}

async fn exited(container: &Container) -> i64 {
    tokio::time::timeout(Duration::from_secs(10), stop::wait(container, Condition::NotRunning)).await.expect("an exit")
}

#[tokio::test]
async fn a_life_from_created_to_gone() {
    let world = World::new().await;
    let engine = &world.engine;
    let body = json!({"Image": "img", "HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "8080"}]}}});
    let web = world.create("web", body).await.expect("create");
    assert_eq!(status(&web), Status::Created);
    assert_eq!(stop::stop(engine, &web, "", None).await, Ok(false), "nothing to stop");

    assert_eq!(start::start(engine, &web).await, Ok(Started::Yes));
    assert_eq!(start::start(engine, &web).await, Ok(Started::Already));
    assert_eq!(world.outside.netd.attached(&web.id), ["bridge"]);
    let view = view::inspect(engine, &web, crate::http::frame::MAX_VERSION);
    assert_eq!(view["NetworkSettings"]["IPAddress"], "172.18.0.2");
    assert_eq!(view["NetworkSettings"]["Ports"], json!({"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}]}));
    assert_eq!(view["State"]["Status"], "running");
    let hosts = std::fs::read_to_string(engine.folder(&web.id).join("hosts")).expect("hosts");
    assert!(hosts.ends_with(&format!("172.18.0.2\t{}\n", web.with(|record| record.short_id().to_owned()))), "{hosts}");

    stop::pause(engine, &web).await.expect("pause");
    assert_eq!(status(&web), Status::Paused);
    assert_eq!(stop::pause(engine, &web).await.expect_err("twice").status.as_u16(), 409);
    assert_eq!(start::start(engine, &web).await.expect_err("paused").status.as_u16(), 409);
    stop::unpause(engine, &web).await.expect("unpause");

    assert_eq!(stop::stop(engine, &web, "", None).await, Ok(true));
    assert_eq!(status(&web), Status::Exited);
    let view = view::inspect(engine, &web, crate::http::frame::MAX_VERSION);
    assert_eq!(view["State"]["ExitCode"], 143);
    assert_eq!(view["NetworkSettings"]["Networks"]["bridge"]["IPAddress"], "");
    assert_ne!(view["NetworkSettings"]["Networks"]["bridge"]["NetworkID"], "");
    assert!(world.outside.netd.attached(&web.id).is_empty() && world.outside.netd.published().is_empty());
    assert!(world.outside.machines.get(&web.id).is_none(), "the machine is gone");

    remove::remove(engine, &web, Options::default()).await.expect("remove");
    assert!(engine.container("web").is_err() && !engine.folder(&web.id).exists());
    assert_eq!(
        world.events(),
        [
            "image import",
            "container create",
            "network connect",
            "container start",
            "container pause",
            "container unpause",
            "container kill",
            "network disconnect",
            "container die",
            "container stop",
            "container destroy"
        ]
        .into_iter()
        .filter(|event| *event != "image import")
        .collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_failed_start_leaves_nothing_behind() {
    let world = World::new().await;
    let engine = &world.engine;
    let cases = [
        (json!({"Cmd": ["nosuch"]}), 400, "executable file not found in $PATH", 127),
        (
            json!({"HostConfig": {"NetworkMode": "broken"}}),
            500,
            "failed to set up container networking: attach to",
            128,
        ),
        (json!({"HostConfig": {"NetworkMode": "np_zz"}}), 404, "networking: network np_zz not found", 128),
        (json!({"HostConfig": {"PortBindings": {"80/tcp": [{"HostPort": "81"}]}}}), 500, "already allocated", 128),
    ];
    for (mut body, http, text, code) in cases {
        body["Image"] = "img".into();
        let one = world.create("", body.clone()).await.expect("create");
        let error = start::start(engine, &one).await.expect_err("must not start");
        assert_eq!(error.status.as_u16(), http, "{error}");
        assert!(error.message.contains(text), "{error}");
        let record = one.record();
        assert_eq!((record.state.status, record.state.exit_code), (Status::Created, code));
        assert!(world.outside.netd.attached(&one.id).is_empty(), "{body}");
        assert!(world.outside.machines.get(&one.id).is_none() && one.live().is_none());
        assert!(engine.attached().is_empty());
    }
}

#[tokio::test]
async fn automatic_removal_follows_the_exit_and_wait_tells_the_code() {
    let world = World::new().await;
    let body = json!({"Image": "img", "Cmd": ["exit", "3"], "HostConfig": {"AutoRemove": true}});
    let one = world.create("one", body).await.expect("create");
    let removed = stop::wait(&one, Condition::Removed);
    let next = stop::wait(&one, Condition::NextExit);
    start::start(&world.engine, &one).await.expect("start");
    assert_eq!(tokio::time::timeout(Duration::from_secs(10), removed).await, Ok(3));
    assert_eq!(next.await, 3);
    assert!(world.engine.container("one").is_err());
    let failing = json!({"Image": "img", "Cmd": ["nosuch"], "HostConfig": {"AutoRemove": true}});
    let two = world.create("two", failing).await.expect("create");
    start::start(&world.engine, &two).await.expect_err("nosuch");
    assert!(world.engine.container("two").is_err(), "removed although it never ran");
}

#[tokio::test]
async fn a_stubborn_process_is_killed_and_a_machine_that_dies_is_an_exit() {
    let world = World::new().await;
    let engine = &world.engine;
    let stubborn = world.create("aa", json!({"Image": "img", "Cmd": ["stubborn"]})).await.expect("create");
    start::start(engine, &stubborn).await.expect("start");
    assert_eq!(stop::stop(engine, &stubborn, "", Some(0)).await, Ok(true));
    assert_eq!(exited(&stubborn).await, 137);

    let lost = world.create("bb", json!({"Image": "img"})).await.expect("create");
    start::start(engine, &lost).await.expect("start");
    world.outside.machines.get(&lost.id).expect("machine").end();
    assert_eq!(exited(&lost).await, 137);
    assert_eq!(
        stop::kill(engine, &lost, "bb", "").await.expect_err("not running").message,
        format!("cannot kill container: bb: container {} is not running", lost.id)
    );
}

#[tokio::test]
async fn restart_policies_start_again_until_a_user_stops() {
    let world = World::new().await;
    let engine = &world.engine;
    let body = json!({"Image": "img", "HostConfig": {"RestartPolicy": {"Name": "always"}}});
    let one = world.create("one", body).await.expect("create");
    start::start(engine, &one).await.expect("start");
    let mut phase = one.phase.subscribe();
    phase.borrow_and_update();
    world.outside.machines.get(&one.id).expect("machine").init.end(&one.id, 1).await;
    phase.wait_for(|phase| phase.exits == 1).await.expect("exit");
    tokio::time::timeout(Duration::from_secs(10), phase.wait_for(|phase| phase.running))
        .await
        .expect("restart")
        .expect("phase");
    assert_eq!(one.with(|record| record.restart_count), 1);
    stop::stop(engine, &one, "", None).await.expect("stop");
    assert_eq!(status(&one), Status::Exited);
}

#[tokio::test]
async fn networks_come_and_go_while_it_runs_and_while_it_does_not() {
    let world = World::new().await;
    let engine = &world.engine;
    world
        .engine
        .netd
        .clone()
        .create_network(arca_proto::netd::v1::CreateNetworkRequest { name: "front".into(), ..Default::default() })
        .await
        .expect("network");
    let web = world.create("web", json!({"Image": "img"})).await.expect("create");
    networks::connect(engine, &web, "front", EndpointSettings::default()).await.expect("stopped: stored");
    networks::connect(engine, &web, "np_zz", EndpointSettings::default()).await.expect("unknown: stored");
    networks::disconnect(engine, &web, "np_zz", false).await.expect("what was stored goes, known or not");
    networks::disconnect(engine, &web, "np_zz", false).await.expect_err("nothing of that name is stored any more");
    start::start(engine, &web).await.expect("start");
    assert_eq!(world.outside.netd.attached(&web.id), ["bridge", "front"], "the mode's network first");
    let twice = networks::connect(engine, &web, "front", EndpointSettings::default()).await.expect_err("twice");
    assert_eq!(twice.message, "endpoint with name web already exists in network front");
    assert_eq!(twice.status.as_u16(), 403);
    networks::disconnect(engine, &web, "front", false).await.expect("disconnect");
    assert_eq!(world.outside.netd.attached(&web.id), ["bridge"]);
    let gone = networks::disconnect(engine, &web, "front", false).await.expect_err("not connected");
    assert_eq!(gone.message, format!("container {} is not connected to network front", web.id));
    networks::connect(engine, &web, "front", EndpointSettings::default()).await.expect("again");
    stop::stop(engine, &web, "", None).await.expect("stop");
    start::start(engine, &web).await.expect("start");
    assert_eq!(world.outside.netd.attached(&web.id), ["bridge", "front"], "the same networks after a restart");
}

#[test]
fn a_killed_engine_loses_nothing() {
    let runtime =
        || tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("runtime");
    let (fakes_runtime, first, second) = (runtime(), runtime(), runtime());
    let outside = fakes_runtime.block_on(async { Outside::new() });
    let ids = first.block_on(async {
        let engine = outside.engine().await;
        fakes::import(&engine).await;
        let mut ids = Vec::new();
        for (name, body) in [
            ("runs", json!({"Image": "img"})),
            ("ends", json!({"Image": "img"})),
            ("dies", json!({"Image": "img", "HostConfig": {"AutoRemove": true}})),
        ] {
            let one = fakes::create(&engine, name, body).await.expect("create");
            start::start(&engine, &one).await.expect("start");
            ids.push(one.id.clone());
        }
        fakes::create(&engine, "idle", json!({"Image": "img"})).await.expect("create");
        ids
    });
    // Every task ends where it stands, as at kill -9.
    first.shutdown_timeout(Duration::from_secs(5));
    fakes_runtime.block_on(async {
        outside.machines.get(&ids[1]).expect("machine").init.end(&ids[1], 4).await;
        std::fs::write(outside.home.path().join("data/containers").join(&ids[2]).join("exit.json"), r#"{"code":9}"#)
            .expect("exit record");
        outside.machines.get(&ids[2]).expect("machine").end();
    });
    second.block_on(async {
        let engine = outside.engine().await;
        let runs = engine.container("runs").expect("known");
        assert_eq!(status(&runs), Status::Running);
        assert_eq!(exited(&engine.container("ends").expect("known")).await, 4);
        if let Ok(dies) = engine.container("dies") {
            let code = tokio::time::timeout(Duration::from_secs(10), stop::wait(&dies, Condition::Removed)).await;
            assert_eq!(code, Ok(9));
        }
        assert_eq!(status(&engine.container("idle").expect("known")), Status::Created);
        stop::stop(&engine, &runs, "", None).await.expect("stop what was adopted");
        assert_eq!(runs.with(|record| record.state.exit_code), 143);
    });
}

/// A raw client: what the docker CLI does on a socket.
async fn raw(world: &World) -> impl Fn(&str) -> std::pin::Pin<Box<dyn Future<Output = tokio::net::UnixStream> + Send>> {
    let path = world.outside.home.path().join("d.sock");
    let listener = tokio::net::UnixListener::bind(&path).expect("bind");
    tokio::spawn(server::serve(listener, routes::router(world.engine.clone()), std::future::pending()));
    move |request: &str| {
        let (path, request) = (path.clone(), request.to_owned());
        Box::pin(async move {
            let mut stream = tokio::net::UnixStream::connect(path).await.expect("connect");
            stream.write_all(request.as_bytes()).await.expect("write");
            stream
        })
    }
}

async fn head(stream: &mut tokio::net::UnixStream) -> String {
    let mut text = Vec::new();
    while !text.ends_with(b"\r\n\r\n") {
        text.push(stream.read_u8().await.expect("header"));
    }
    String::from_utf8(text).expect("text")
}

async fn rest(stream: &mut tokio::net::UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut bytes)).await.expect("end").expect("read");
    bytes
}

#[tokio::test]
async fn attach_before_start_loses_no_output_and_the_connection_is_taken_over() {
    let world = World::new().await;
    let send = raw(&world).await;
    world.create("one", json!({"Image": "img", "Cmd": ["exit", "0"]})).await.expect("create");
    let mut stream = send(
        "POST /v1.51/containers/one/attach?stream=1&stdout=1&stderr=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\n",
    )
    .await;
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 101 UPGRADED\r\n"), "{answer}");
    assert!(answer.contains("Content-Type: application/vnd.docker.multiplexed-stream\r\n"), "{answer}");
    assert!(answer.contains("Upgrade: tcp\r\n"), "{answer}");
    start::start(&world.engine, &world.engine.container("one").expect("known")).await.expect("start");
    assert_eq!(rest(&mut stream).await, b"\x01\0\0\0\0\0\0\x04bye\n");
}

#[tokio::test]
async fn input_ends_by_half_close_and_the_output_still_comes() {
    let world = World::new().await;
    let send = raw(&world).await;
    let body = json!({"Image": "img", "Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true});
    let one = world.create("one", body).await.expect("create");
    let mut stream = send(
        "POST /containers/one/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\n\r\nearly ",
    )
    .await;
    head(&mut stream).await;
    start::start(&world.engine, &one).await.expect("start");
    stream.write_all(b"late").await.expect("write");
    stream.shutdown().await.expect("half close");
    let out = rest(&mut stream).await;
    let payload: Vec<u8> = out.iter().copied().filter(u8::is_ascii_graphic).collect();
    assert_eq!(String::from_utf8_lossy(&payload), "earlylate");
    assert_eq!(exited(&one).await, 0);
}

#[tokio::test]
async fn without_upgrade_headers_the_answer_is_200() {
    let world = World::new().await;
    let send = raw(&world).await;
    let one = world.create("one", json!({"Image": "img", "Cmd": ["exit", "0"], "Tty": true})).await.expect("create");
    let mut stream =
        send("POST /containers/one/attach?stream=1&stdout=1 HTTP/1.0\r\nHost: d\r\nContent-Length: 0\r\n\r\n").await;
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.0 200 OK\r\n"), "{answer}");
    assert!(answer.contains("Content-Type: application/vnd.docker.raw-stream\r\n"), "{answer}");
    start::start(&world.engine, &one).await.expect("start");
    assert_eq!(rest(&mut stream).await, b"bye\n");
}

#[tokio::test]
async fn exec_runs_once_and_tells_its_code() {
    let world = World::new().await;
    let engine = &world.engine;
    let send = raw(&world).await;
    let one = world.create("one", json!({"Image": "img"})).await.expect("create");
    let config = |words: &[&str]| ExecConfig {
        cmd: Some(words.iter().map(|word| (*word).to_owned()).collect()),
        attach_stdout: true,
        ..ExecConfig::default()
    };
    let stopped = exec::create(engine, &one, "one", config(&["exit", "5"])).expect_err("stopped");
    assert_eq!(stopped.message, format!("container {} is not running", one.id));
    start::start(engine, &one).await.expect("start");
    let started = exec::create(engine, &one, "one", config(&["exit", "5"])).expect("create");
    let request = |id: &str| {
        format!(
            "POST /exec/{id}/start HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{{}}"
        )
    };
    let mut stream = send(&request(&started.id)).await;
    assert!(head(&mut stream).await.starts_with("HTTP/1.1 101"));
    assert_eq!(rest(&mut stream).await, b"\x01\0\0\0\0\0\0\x04bye\n");
    // The stream has ended, so the code is known: the CLI asks right now.
    assert_eq!(started.to_json()["ExitCode"], 5);
    let mut again = send(&request(&started.id)).await;
    assert!(head(&mut again).await.starts_with("HTTP/1.1 101"));
    let text = String::from_utf8_lossy(&rest(&mut again).await).into_owned();
    assert!(text.ends_with(&format!("exec command {} has already run\r\n", started.id)), "{text}");

    let missing = exec::create(engine, &one, "one", config(&["nosuch"])).expect("create");
    let mut stream = send(&request(&missing.id)).await;
    head(&mut stream).await;
    let text = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
    assert!(text.ends_with("exec: \"nosuch\": executable file not found in $PATH\r\n"), "{text}");
    assert_eq!(missing.to_json()["ExitCode"], 127);
}

#[tokio::test]
async fn wait_answers_its_headers_before_the_exit() {
    let world = World::new().await;
    let send = raw(&world).await;
    let one = world.create("one", json!({"Image": "img"})).await.expect("create");
    let mut stream =
        send("POST /containers/one/wait?condition=next-exit HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n").await;
    let answer = head(&mut stream).await;
    assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
    start::start(&world.engine, &one).await.expect("start");
    stop::kill(&world.engine, &one, "one", "TERM").await.expect("kill");
    let body = String::from_utf8(rest(&mut stream).await).expect("text");
    assert!(body.contains("{\"StatusCode\":143}"), "{body}");
}

#[tokio::test]
async fn bad_input_is_answered_in_dockers_words_and_never_panics() {
    let world = World::new().await;
    let send = raw(&world).await;
    world.create("web", json!({"Image": "img"})).await.expect("create");
    let json_type = "Content-Type: application/json\r\n";
    let cases = [
        ("GET", "/nope", "", "", 404, "page not found"),
        ("PUT", "/containers/json", "", "", 404, "page not found"),
        ("GET", "/v9.99/info", "", "", 400, "client version 9.99 is too new. Maximum supported API version is 1.51"),
        ("GET", "/containers/zz/json", "", "", 404, "No such container: zz"),
        ("GET", "/containers/json?filters=%7B", "", "", 400, "invalid filter"),
        ("GET", "/containers/json?limit=x", "", "", 500, "strconv.Atoi: parsing \"x\": invalid syntax"),
        ("POST", "/containers/create", json_type, "{", 400, "invalid JSON: unexpected EOF"),
        ("POST", "/containers/create", json_type, "", 400, "invalid JSON: got EOF while reading request body"),
        ("POST", "/containers/create", json_type, "{}", 400, "config cannot be empty in order to create a container"),
        (
            "POST",
            "/containers/create",
            "Content-Type: text/plain\r\n",
            "{}",
            400,
            "unsupported Content-Type header (text/plain): must be 'application/json'",
        ),
        ("POST", "/containers/create", json_type, r#"{"Image":"none"}"#, 404, "No such image: none:latest"),
        (
            "POST",
            "/containers/create?name=k",
            json_type,
            r#"{"Image":"img"}"#,
            400,
            "Invalid container name (k), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed",
        ),
        ("POST", "/containers/web/kill?signal=zz", "", "", 400, "cannot kill container: web: invalid signal: zz"),
        ("POST", "/containers/web/wait?condition=zz", "", "", 400, "invalid condition: \"zz\""),
        ("GET", "/containers/web/logs", "", "", 400, "Bad parameters: you must choose at least one stream"),
        ("POST", "/containers/web/checkpoints", "", "", 501, "container checkpoint is not implemented by Arca yet"),
        ("GET", "/exec/zz/json", "", "", 404, "No such exec instance: zz"),
        ("GET", "/networks/zz", "", "", 404, "network zz not found"),
        (
            "GET",
            "/networks/bridge?verbose=zz",
            "",
            "",
            400,
            "invalid value for verbose: zz: strconv.ParseBool: parsing \"zz\": invalid syntax",
        ),
        ("GET", "/networks?filters=%7B%22foo%22%3A%5B%5D%7D", "", "", 400, "invalid filter 'foo'"),
        ("POST", "/networks/bridge/connect", json_type, "{}", 400, "invalid name or ID supplied: \"\""),
        ("POST", "/networks/bridge/connect", json_type, r#"{"Container":"np_zz"}"#, 404, "No such container: np_zz"),
        ("GET", "/events?since=zz", "", "", 500, "strconv.ParseInt: parsing \"zz\": invalid syntax"),
        ("GET", "/volumes/zz", "", "", 404, "get zz: no such volume"),
        (
            "GET",
            "/nodes",
            "",
            "",
            503,
            "This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again.",
        ),
    ];
    for (method, path, header, body, code, message) in cases {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: d\r\nConnection: close\r\n{header}Content-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let mut stream = send(&request).await;
        let answer = head(&mut stream).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {code} ")), "{method} {path}: {answer}");
        let bare = message == "page not found";
        assert_eq!(answer.contains("Api-Version: 1.51\r\n") && answer.contains("Ostype: linux\r\n"), !bare, "{answer}");
        let body: Value = serde_json::from_slice(&rest(&mut stream).await).expect("JSON");
        assert_eq!(body, json!({"message": message}), "{method} {path}");
    }
}

/// Waits for the next event whose action this is.
async fn told(live: &mut tokio::sync::broadcast::Receiver<crate::events::Event>, action: &str) {
    let waiting = async { while live.recv().await.expect("events go on").action != action {} };
    tokio::time::timeout(Duration::from_secs(10), waiting).await.unwrap_or_else(|_| panic!("no event {action}"));
}

#[tokio::test]
async fn health_follows_the_checks_and_ends_with_the_run() {
    let world = World::new().await;
    let engine = &world.engine;
    let (_, mut live) = engine.events.subscribe(None);
    let check = |words: &[&str]| json!({"Test": words, "Interval": 1_000_000, "Retries": 2, "Timeout": 5_000_000});
    let body = json!({"Image": "img", "Healthcheck": check(&["CMD", "exit", "0"])});
    let good = world.create("good", body).await.expect("create");
    assert_eq!(view::inspect(engine, &good, crate::http::frame::MAX_VERSION)["State"].get("Health"), None);
    start::start(engine, &good).await.expect("start");
    told(&mut live, "exec_create: exit 0").await;
    told(&mut live, "health_status: healthy").await;
    let view = view::inspect(engine, &good, crate::http::frame::MAX_VERSION);
    let health = &view["State"]["Health"];
    assert_eq!((health["Status"].as_str(), health["FailingStreak"].as_i64()), (Some("healthy"), Some(0)));
    assert_eq!((health["Log"][0]["ExitCode"].as_i64(), health["Log"][0]["Output"].as_str()), (Some(0), Some("bye\n")));

    // Frozen, nobody checks; thawed, somebody does.
    stop::pause(engine, &good).await.expect("pause");
    assert_eq!(good.record().state.health.map(|health| health.status.word()), Some("unhealthy"));
    stop::unpause(engine, &good).await.expect("unpause");
    told(&mut live, "health_status: healthy").await;

    let body = json!({"Image": "img", "Healthcheck": check(&["CMD-SHELL", "takes too long"])});
    let bad = world.create("bad", body).await.expect("create");
    start::start(engine, &bad).await.expect("start");
    told(&mut live, "health_status: unhealthy").await;
    let log = bad.record().state.health.expect("health").log;
    assert_eq!((log[0].exit_code, log[0].output.as_str()), (-1, "Health check exceeded timeout (5ms)"));
    let body = json!({"Image": "img", "Healthcheck": check(&["CMD", "nosuch"])});
    let ugly = world.create("ugly", body).await.expect("create");
    start::start(engine, &ugly).await.expect("start");
    told(&mut live, "health_status: unhealthy").await;
    let log = ugly.record().state.health.expect("health").log;
    assert!(log[0].output.contains("executable file not found"), "{log:?}");

    stop::stop(engine, &good, "", None).await.expect("stop");
    assert_eq!(good.record().state.health.map(|health| health.status.word()), Some("unhealthy"));
    let listed = |filter: &str| {
        let query = crate::http::query::Query::parse(&format!("all=1&filters={{\"health\":[\"{filter}\"]}}"));
        view::list(engine, &query).map(|list| list.len())
    };
    assert_eq!((listed("unhealthy"), listed("healthy"), listed("none")), (Ok(3), Ok(0), Ok(0)));
    assert!(listed("zz").is_err());
}
