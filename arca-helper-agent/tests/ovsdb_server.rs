// SPDX-License-Identifier: Apache-2.0
//! The OVSDB client against a real ovsdb-server with OVN's northbound schema. Needs no privileges: the program runs
//! by the helper image's own loader. SKIP without an image (environment variable ARCA_HELPER_ROOT).

#![allow(clippy::print_stdout)] // says when it skips, and what it measured

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use arca_helper_agent::ovsdb::{Atom, Condition, Database, Error, Monitor, Mutator, Op, Value};
use tokio::time::timeout;

fn image() -> Option<PathBuf> {
    let root = std::env::var_os("ARCA_HELPER_ROOT").map(PathBuf::from);
    let found = root.filter(|root| root.join("usr/sbin/ovsdb-server").exists());
    if found.is_none() {
        println!("SKIP ovsdb_server: ARCA_HELPER_ROOT names no helper image");
    }
    found
}

fn program(root: &Path, path: &str) -> Command {
    let mut command = Command::new(root.join("usr/lib64/ld-linux-x86-64.so.2"));
    command.arg("--library-path").arg(root.join("usr/lib/x86_64-linux-gnu")).arg(root.join(path));
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command
}

struct Server(Child);

impl Server {
    fn start(root: &Path, dir: &Path) -> Self {
        let mut command = program(root, "usr/sbin/ovsdb-server");
        command.arg("--no-chdir").arg(format!("--remote=punix:{}", dir.join("nb.sock").display()));
        command.arg(format!("--unixctl={}", dir.join("nb.ctl").display())).arg(dir.join("nb.db"));
        Self(command.spawn().expect("the loader starts"))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn connect(dir: &Path) -> Database {
    let monitors = vec![
        Monitor::new("NB_Global", &["nb_cfg", "options"]),
        Monitor::new("Logical_Switch", &["name", "ports", "other_config", "external_ids"]),
        Monitor::new("Logical_Switch_Port", &["name", "addresses", "up", "dynamic_addresses"]),
        Monitor::new("DNS", &["records"]).optional(&["options", "column_of_the_future"]),
    ];
    Database::connect(dir.join("nb.sock"), "OVN_Northbound", monitors)
}

#[tokio::test(flavor = "multi_thread")]
async fn speaks_with_a_real_server() {
    let Some(root) = image() else { return };
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let create = program(&root, "usr/bin/ovsdb-tool")
        .arg("create")
        .arg(dir.join("nb.db"))
        .arg(root.join("usr/share/ovn/ovn-nb.ovsschema"))
        .status();
    assert!(create.unwrap().success());
    let db = connect(dir); // before the server runs
    let mut server = Server::start(&root, dir);
    let first = timeout(Duration::from_secs(10), db.ready()).await.unwrap().unwrap();
    assert!(first.schema.has("DNS", "options") && !first.schema.has("DNS", "column_of_the_future"));

    // References within a transaction, sets, maps, guards.
    let create = || {
        let port = |n: u32| {
            Op::insert("Logical_Switch_Port")
                .named(format!("p{n}"))
                .set("name", format!("port{n}"))
                .set("addresses", Value::set([format!("02:00:00:00:00:0{n} dynamic")]))
        };
        vec![
            Op::wait("Logical_Switch", &["name"], &[]).filter(Condition::eq("name", "s1")),
            Op::insert("Logical_Switch")
                .named("s")
                .set("name", "s1")
                .set("ports", Value::set([Atom::named("p1"), Atom::named("p2")]))
                .set("other_config", Value::map([("subnet", "10.0.0.0/24"), ("exclude_ips", "10.0.0.1")])),
            port(1),
            port(2),
        ]
    };
    let results = db.transact(create()).await.unwrap();
    let switch = results[1].uuid.unwrap();
    let now = db.snapshot();
    let row = now.row("Logical_Switch", switch).expect("the update came before the answer");
    assert_eq!(row.uuids("ports").count(), 2);
    assert_eq!(row.key("other_config", "subnet"), Some("10.0.0.0/24"));
    assert!(row.get("external_ids").unwrap().is_empty(), "columns the server leaves out have their default");
    let (_, port) = now.find("Logical_Switch_Port", "name", "port1").unwrap();
    assert_eq!((port.bool("up"), port.strings("addresses").next()), (None, Some("02:00:00:00:00:01 dynamic")));

    assert!(db.transact(create()).await.unwrap_err().is_wait_failure());
    let twice = vec![
        Op::mutate("Logical_Switch").row(switch).mutation("ports", Mutator::Insert, Atom::named("again")),
        Op::insert("Logical_Switch_Port").named("again").set("name", "port1"),
    ];
    let error = db.transact(twice).await.unwrap_err();
    assert!(matches!(error, Error::Commit { .. }), "an index is only checked at commit: {error}");
    assert!(matches!(db.transact(vec![Op::delete("Nope")]).await, Err(Error::Operation { index: 0, .. })));

    // Differences of maps and sets: replace a key, remove one, remove a reference (which collects the port).
    let port1 = now.find("Logical_Switch_Port", "name", "port1").unwrap().0;
    let change = vec![
        Op::mutate("Logical_Switch")
            .row(switch)
            .mutation("other_config", Mutator::Delete, Value::set(["subnet", "exclude_ips"]))
            .mutation("other_config", Mutator::Insert, Value::map([("subnet", "10.0.1.0/24")]))
            .mutation("ports", Mutator::Delete, port1),
        Op::insert("NB_Global"),
        Op::mutate("NB_Global").mutation("nb_cfg", Mutator::Add, 1),
    ];
    assert_eq!(db.transact(change).await.unwrap()[2].count, 1);
    let now = db.snapshot();
    let row = now.row("Logical_Switch", switch).unwrap();
    assert_eq!(
        (row.key("other_config", "subnet"), row.key("other_config", "exclude_ips")),
        (Some("10.0.1.0/24"), None)
    );
    assert_eq!((row.uuids("ports").count(), now.rows("Logical_Switch_Port").count()), (1, 1));
    assert_eq!(now.single("NB_Global").unwrap().1.integer("nb_cfg"), Some(1));

    // Another client's change is seen; a killed server is survived with what was committed.
    let other = connect(dir);
    timeout(Duration::from_secs(10), other.ready()).await.unwrap().unwrap();
    other.transact(vec![Op::update("Logical_Switch").row(switch).set("name", "renamed")]).await.unwrap();
    let seen = db.wait_for(|s| s.find("Logical_Switch", "name", "renamed").map(|_| ()));
    timeout(Duration::from_secs(5), seen).await.unwrap().unwrap();
    let mut changes = db.changed();
    server.0.kill().unwrap();
    server.0.wait().unwrap();
    while timeout(Duration::from_secs(5), changes.next()).await.unwrap().unwrap().connected {}
    assert!(db.transact(vec![Op::comment("x")]).await.unwrap_err().is_disconnect());
    let _server = Server::start(&root, dir);
    timeout(Duration::from_secs(10), db.ready()).await.unwrap().unwrap();
    assert!(db.snapshot().find("Logical_Switch", "name", "renamed").is_some());

    let started = std::time::Instant::now();
    for n in 0..500 {
        let add = Op::mutate("NB_Global").mutation("nb_cfg", Mutator::Add, 1);
        let answer = db.transact(vec![add, Op::select("NB_Global").columns(&["nb_cfg"])]).await.unwrap();
        assert_eq!(answer[1].rows[0].integer("nb_cfg"), Some(n + 2));
    }
    println!("one transaction: {:.3} ms mean of 500", started.elapsed().as_secs_f64() * 2.0);
}
