// SPDX-License-Identifier: Apache-2.0
//! The service over gRPC against real OVSDB servers and a real ovn-northd, with a fake machine below. Needs no
//! privileges: programs of the helper image run by its own loader. SKIP without ARCA_HELPER_ROOT.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use arca_proto::helper::v1::helper_client::HelperClient;
use arca_proto::helper::v1::helper_server::HelperServer;
use arca_proto::helper::v1::{self as proto, object, sync_item};
use arca_proto::ports::LinkNumber;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::{Channel, Server};

use super::machine::{Failure, Machine};
use super::{Service, nb_monitors};
use crate::nb::address::MacAddr;
use crate::nb::model::Config;
use crate::nb::tests::{endpoint, id, network};
use crate::neighbours::Known;
use crate::ovsdb::{Database, Op, Snapshot, Value};
use crate::ports::PortSpec;
use crate::uplink::Subnet;
use crate::vswitch::Installed;

const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Default)]
struct FakeMachine {
    ports: Mutex<BTreeMap<LinkNumber, PortSpec>>,
    routes: Mutex<BTreeSet<Subnet>>,
    /// A link that cannot be made.
    broken: Mutex<Option<LinkNumber>>,
    neighbours: watch::Sender<Known>,
    installed: watch::Sender<Installed>,
}

impl Machine for Arc<FakeMachine> {
    async fn configure(&self, _: &Config) -> Result<String, Failure> {
        Ok("netdev".into())
    }
    fn neighbours(&self) -> watch::Receiver<Known> {
        self.neighbours.subscribe()
    }
    fn installed(&self) -> watch::Receiver<Installed> {
        self.installed.subscribe()
    }
    async fn routes(&self, subnets: &BTreeSet<Subnet>) -> Result<(), Failure> {
        self.routes.lock().unwrap().clone_from(subnets);
        Ok(())
    }
    async fn ensure(&self, ports: Vec<PortSpec>) -> Vec<(LinkNumber, Result<(), Failure>)> {
        let broken = *self.broken.lock().unwrap();
        let make = |spec: PortSpec| {
            if Some(spec.link) == broken {
                return (spec.link, Err("no TUN".into()));
            }
            let link = spec.link;
            self.ports.lock().unwrap().insert(link, spec);
            (link, Ok(()))
        };
        ports.into_iter().map(make).collect()
    }
    async fn remove(&self, links: &[LinkNumber]) -> Result<(), Failure> {
        self.ports.lock().unwrap().retain(|link, _| !links.contains(link));
        Ok(())
    }
    async fn links(&self) -> Vec<LinkNumber> {
        self.ports.lock().unwrap().keys().copied().collect()
    }
    async fn list(&self) -> Vec<proto::Port> {
        Vec::new()
    }
    async fn status(&self) -> proto::GetStatusResponse {
        proto::GetStatusResponse::default()
    }
}

struct Program(Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Databases and northd in a directory of their own.
struct Ovn {
    root: PathBuf,
    dir: tempfile::TempDir,
    nb: Option<Program>,
    _others: Vec<Program>,
}

impl Ovn {
    fn start() -> Option<Self> {
        let root = std::env::var_os("ARCA_HELPER_ROOT").map(PathBuf::from);
        let Some(root) = root.filter(|root| root.join("usr/bin/ovn-northd").exists()) else {
            println!("SKIP service live tests: ARCA_HELPER_ROOT names no helper image");
            return None;
        };
        let dir = tempfile::tempdir().unwrap();
        let mut ovn = Self { root, dir, nb: None, _others: Vec::new() };
        for db in ["nb", "sb"] {
            let mut create = ovn.program("usr/bin/ovsdb-tool");
            create.arg("create").arg(ovn.path(&format!("{db}.db")));
            create.arg(ovn.root.join(format!("usr/share/ovn/ovn-{db}.ovsschema")));
            assert!(create.status().unwrap().success());
        }
        ovn.start_nb();
        let sb = ovn.server("sb");
        let mut northd = ovn.program("usr/bin/ovn-northd");
        for db in ["nb", "sb"] {
            northd.arg(format!("--ovn{db}-db=unix:{}", ovn.path(&format!("{db}.sock")).display()));
        }
        northd.arg(format!("--unixctl={}", ovn.path("northd.ctl").display()));
        let northd = Program(northd.spawn().unwrap());
        ovn._others = vec![sb, northd];
        Some(ovn)
    }

    fn path(&self, file: &str) -> PathBuf {
        self.dir.path().join(file)
    }

    fn program(&self, path: &str) -> Command {
        let mut command = Command::new(self.root.join("usr/lib64/ld-linux-x86-64.so.2"));
        command.arg("--library-path").arg(self.root.join("usr/lib/x86_64-linux-gnu")).arg(self.root.join(path));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn server(&self, db: &str) -> Program {
        let mut server = self.program("usr/sbin/ovsdb-server");
        server.arg("--no-chdir").arg(format!("--remote=punix:{}", self.path(&format!("{db}.sock")).display()));
        server.arg(format!("--unixctl={}", self.path(&format!("{db}.ctl")).display()));
        Program(server.arg(self.path(&format!("{db}.db"))).spawn().unwrap())
    }

    fn start_nb(&mut self) {
        self.nb = Some(self.server("nb"));
    }

    fn connect(&self) -> Database {
        Database::connect(self.path("nb.sock"), "OVN_Northbound", nb_monitors())
    }
}

/// A service on a socket, and a client. It ends when the sender and the clients are dropped.
async fn serve(
    db: Database,
    machine: &Arc<FakeMachine>,
    dir: &Path,
) -> (HelperClient<Channel>, tokio::sync::oneshot::Sender<()>) {
    static NUMBER: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let path = dir.join(format!("agent{number}.sock"));
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let service = HelperServer::new(Service::new(db, Arc::clone(machine)));
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let stopped = async move { drop(stopped.await) };
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming_shutdown(incoming, stopped));
    (HelperClient::connect(format!("unix://{}", path.display())).await.unwrap(), stop)
}

/// Every address of 127/8 is local, so the resolver can listen there; one of its own for each test and process.
fn uplink(test: u32) -> Ipv4Addr {
    Ipv4Addr::from_bits(0x7f40_0000 + ((std::process::id() & 0x3_ffff) << 4) + (test << 3))
}

fn configuration(test: u32) -> proto::ConfigureRequest {
    let [next_hop, router, resolver] = [1, 2, 3].map(|n| Ipv4Addr::from_bits(uplink(test).to_bits() + n));
    proto::ConfigureRequest {
        system_id: "helper-1".into(),
        uplink_interface: "up0".into(),
        router_address: format!("{router}/29"),
        next_hop: next_hop.to_string(),
        resolver_address: format!("{resolver}/29"),
        forwarders: vec![],
        ..Default::default()
    }
}

fn object(generation: u64, kind: object::Kind) -> proto::Object {
    proto::Object { generation, kind: Some(kind) }
}

fn net(generation: u64, n: proto::Network) -> proto::Object {
    object(generation, object::Kind::Network(n))
}

fn ep(generation: u64, e: proto::Endpoint) -> proto::Object {
    object(generation, object::Kind::Endpoint(e))
}

fn port(generation: u64, endpoint: u8) -> proto::Object {
    let p = proto::PublishedPort {
        id: "web".into(),
        endpoint_id: id(endpoint),
        protocol: 1,
        vip_port: 8080,
        target_port: 80,
    };
    object(generation, object::Kind::PublishedPort(p))
}

fn key(kind: proto::ObjectKind, n: u8, generation: u64) -> proto::ObjectKey {
    proto::ObjectKey { kind: kind.into(), id: id(n), generation }
}

fn sync(epoch: u64, objects: Vec<proto::Object>, end: bool) -> impl tokio_stream::Stream<Item = proto::SyncItem> {
    let mut items = vec![sync_item::Kind::Epoch(epoch)];
    items.extend(objects.into_iter().map(sync_item::Kind::Object));
    items.extend(end.then_some(sync_item::Kind::End(proto::SyncEnd {})));
    tokio_stream::iter(items.into_iter().map(|kind| proto::SyncItem { kind: Some(kind) }))
}

/// Watches until `enough`; gives the newest observation of each object.
async fn watch(
    client: &mut HelperClient<Channel>,
    enough: impl Fn(&BTreeMap<String, proto::Observation>) -> bool,
) -> BTreeMap<String, proto::Observation> {
    let mut stream = client.watch(proto::WatchRequest {}).await.unwrap().into_inner();
    let mut seen = BTreeMap::new();
    while !enough(&seen) {
        let observation = timeout(PATIENCE, stream.message()).await;
        let Ok(observation) = observation else { panic!("not enough observed: {seen:#?}") };
        let observation = observation.unwrap().unwrap();
        seen.insert(observation.key.as_ref().unwrap().id.clone(), observation);
    }
    seen
}

fn addresses(seen: &BTreeMap<String, proto::Observation>, ids: &[u8]) -> bool {
    ids.iter().all(|n| seen.get(&id(*n)).is_some_and(|o| !o.address_v4.is_empty()))
}

async fn apply(client: &mut HelperClient<Channel>, put: Vec<proto::Object>) -> Vec<proto::Observation> {
    let request = proto::ApplyRequest { put, remove: vec![] };
    timeout(PATIENCE, client.apply(request)).await.expect("Apply answers").unwrap().into_inner().observations
}

fn lsp(snapshot: &Snapshot, n: u8) -> (String, String, String) {
    let (_, row) = snapshot.find("Logical_Switch_Port", "name", &id(n)).expect("the port is there");
    let text = |column| row.strings(column).next().unwrap_or_default().to_owned();
    (text("addresses"), text("dynamic_addresses"), text("port_security"))
}

/// Waits for a state of the database.
async fn eventually(db: &Database, what: &str, holds: impl Fn(&Snapshot) -> bool) {
    let wait = db.wait_for(|s| holds(s).then_some(()));
    timeout(PATIENCE, wait).await.unwrap_or_else(|_| panic!("never: {what}")).unwrap();
}

fn can_bind_port_53(test: u32) -> bool {
    let resolver = Ipv4Addr::from_bits(uplink(test).to_bits() + 3);
    std::net::UdpSocket::bind((resolver, 53)).is_ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn declared_objects_become_rows_and_come_back_as_observations() {
    const TEST: u32 = 0;
    if !can_bind_port_53(TEST) {
        println!("SKIP service live tests: port 53 cannot be bound (not root?)");
        return;
    }
    let Some(mut ovn) = Ovn::start() else { return };
    let machine = Arc::<FakeMachine>::default();
    let db = ovn.connect();
    let (mut client, stop) = serve(ovn.connect(), &machine, ovn.dir.path()).await;

    let early = client.apply(proto::ApplyRequest::default()).await.unwrap_err();
    assert_eq!(early.code(), tonic::Code::FailedPrecondition);
    let bad = proto::ConfigureRequest { next_hop: "nowhere".into(), ..configuration(TEST) };
    assert_eq!(client.configure(bad).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    assert_eq!(client.configure(configuration(TEST)).await.unwrap().into_inner().datapath, "netdev");

    // Two endpoints and a published port; one bad object among them.
    let elsewhere = endpoint(102, 77);
    let all =
        vec![ep(1, endpoint(100, 18)), ep(1, endpoint(101, 18)), port(1, 100), ep(1, elsewhere), net(1, network(18))];
    let answer = apply(&mut client, all).await;
    let wrong: Vec<_> = answer.iter().filter(|o| !o.error.is_empty()).collect();
    assert_eq!(wrong.len(), 1, "{answer:?}");
    assert_eq!(wrong[0].error_kind(), proto::ErrorKind::UnknownNetwork);
    assert_eq!(machine.ports.lock().unwrap().len(), 2, "the answer means that TAPs exist");
    let seen = watch(&mut client, |seen| addresses(seen, &[100, 101])).await;
    let got: BTreeSet<&str> = [100, 101].iter().map(|n| seen[&id(*n)].address_v4.as_str()).collect();
    assert_eq!(got, BTreeSet::from(["172.18.0.2/24", "172.18.0.3/24"]));
    assert!(machine.routes.lock().unwrap().contains(&("172.18.0.0".parse().unwrap(), 24)));

    // An endpoint is up as soon as the switch has its flows.
    machine.installed.send_replace([id(100)].into());
    let seen = watch(&mut client, |seen| seen.get(&id(100)).is_some_and(|o| o.up)).await;
    assert!(!seen.get(&id(101)).is_some_and(|o| o.up));

    // Who is on the uplink becomes known at any time, and may change.
    let hop = Ipv4Addr::from_bits(uplink(TEST).to_bits() + 1);
    for last in [1, 2] {
        let mac = MacAddr::from([2, 0, 0, 0, 0, last]);
        machine.neighbours.send_replace([(hop.into(), mac)].into());
        let wanted = BTreeSet::from(["unknown".to_owned(), format!("{mac} {hop}")]);
        eventually(&db, "the neighbour", |s| {
            let row = s.find("Logical_Switch_Port", "name", "ext-ln").map(|(_, row)| row);
            row.is_some_and(|row| row.strings("addresses").map(str::to_owned).collect::<BTreeSet<_>>() == wanted)
        })
        .await;
    }

    // The address is fixed; names, port security and the published port follow the address.
    let ip = seen[&id(100)].address_v4.trim_end_matches("/24").to_owned();
    eventually(&db, "names and port security", |s| {
        let records = s.rows("DNS").next().is_some_and(|(_, r)| r.key("records", "web100") == Some(&ip));
        records
            && s.find("Logical_Switch_Port", "name", &id(100)).is_some()
            && lsp(s, 100).2 == format!("02:42:ac:12:00:64 {ip}")
    })
    .await;
    let now = db.snapshot();
    assert_eq!(lsp(&now, 100).0, format!("02:42:ac:12:00:64 {ip}"));
    let vip = format!("{}:8080", Ipv4Addr::from_bits(uplink(TEST).to_bits() + 2));
    let (_, published) = now.find("Load_Balancer", "name", "pub-web").unwrap();
    assert_eq!(published.key("vips", &vip), Some(format!("{ip}:80").as_str()));

    // An address in use, one outside, a static one.
    let fixed = |n, ip: &str| ep(1, proto::Endpoint { static_v4: ip.into(), ..endpoint(n, 18) });
    let answer = apply(&mut client, vec![fixed(103, &ip), fixed(104, "10.1.1.1"), fixed(105, "172.18.0.200")]).await;
    let kinds: Vec<_> = answer.iter().map(|o| (o.key.clone().unwrap().id, o.error_kind())).collect();
    assert!(kinds.contains(&(id(103), proto::ErrorKind::AddressInUse)), "{kinds:?}");
    assert!(kinds.contains(&(id(104), proto::ErrorKind::Invalid)));
    assert!(kinds.contains(&(id(105), proto::ErrorKind::Unspecified)));
    eventually(&db, "the static address", |s| s.find("Logical_Switch_Port", "name", &id(105)).is_some()).await;
    assert_eq!(lsp(&db.snapshot(), 105).0, "02:42:ac:12:00:69 172.18.0.200");

    // A sync equal to what is there changes nothing; one that breaks off neither.
    let same = || {
        vec![
            net(1, network(18)),
            ep(1, endpoint(100, 18)),
            ep(1, endpoint(101, 18)),
            fixed(105, "172.18.0.200"),
            port(1, 100),
        ]
    };
    let answer = client.sync(sync(1, same(), true)).await.unwrap().into_inner();
    assert_eq!((answer.rows_inserted, answer.rows_updated, answer.rows_deleted), (0, 0, 0));
    assert!(answer.observations.iter().all(|o| o.error.is_empty() && !o.removed), "{answer:?}");
    assert_eq!(client.sync(sync(2, vec![], false)).await.unwrap_err().code(), tonic::Code::InvalidArgument);
    let quiet = db.snapshot();

    // A new agent on the same database: before its first sync nothing unknown goes, afterwards an equal one changes nothing.
    drop((client, stop));
    while !can_bind_port_53(TEST) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (mut second, _stop) = serve(ovn.connect(), &machine, ovn.dir.path()).await;
    second.configure(configuration(TEST)).await.unwrap();
    // northd may still be noting its own things.
    let mut written = db.snapshot().changes_since(&quiet);
    let northds = |column: &str| matches!(column, "up" | "dynamic_addresses");
    written.retain(|change| match (&change.old, &change.new) {
        _ if change.table == "NB_Global" => false,
        (Some(old), Some(new)) => old.iter().any(|(column, value)| !northds(column) && new.get(column) != Some(value)),
        _ => true,
    });
    assert!(written.is_empty(), "{written:#?}");
    let answer = timeout(PATIENCE, second.sync(sync(1, same(), true))).await.unwrap().unwrap().into_inner();
    assert_eq!((answer.rows_inserted, answer.rows_updated, answer.rows_deleted), (0, 0, 0), "{answer:?}");
    assert!(answer.observations.iter().all(|o| o.error.is_empty()));

    // Withdrawal of an endpoint takes port, names and membership in one transaction.
    let removed = Arc::new(Mutex::new(Vec::new()));
    let log = Arc::clone(&removed);
    let mut changes = db.changed();
    let mut before = changes.current();
    let follow = tokio::spawn(async move {
        while let Some(now) = changes.next().await {
            let tables: BTreeSet<String> = now.changes_since(&before).into_iter().map(|c| c.table).collect();
            log.lock().unwrap().push(tables);
            before = now;
        }
    });
    let remove = vec![key(proto::ObjectKind::Endpoint, 100, 2)];
    let answer = second.apply(proto::ApplyRequest { put: vec![], remove }).await.unwrap().into_inner();
    assert!(answer.observations[0].removed);
    eventually(&db, "the port has gone", |s| s.find("Logical_Switch_Port", "name", &id(100)).is_none()).await;
    tokio::time::sleep(Duration::from_millis(50)).await;
    follow.abort();
    let together = ["Logical_Switch_Port", "DNS", "Port_Group", "Logical_Switch", "Load_Balancer"];
    let log = removed.lock().unwrap().clone();
    assert!(log.iter().any(|t| together.iter().all(|x| t.contains(*x))), "{log:?}");
    assert!(!machine.ports.lock().unwrap().contains_key(&LinkNumber::try_from(100).unwrap()));

    // The database away: declarations wait and are applied when it is back.
    ovn.nb = None;
    let mut waiting = second.clone();
    let apply_later = tokio::spawn(async move { apply(&mut waiting, vec![ep(3, endpoint(106, 18))]).await });
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(!apply_later.is_finished());
    ovn.start_nb();
    assert!(apply_later.await.unwrap()[0].error.is_empty());
    watch(&mut second, |seen| addresses(seen, &[106])).await;

    // A full declaration removes the rest.
    let answer = second.sync(sync(3, vec![net(1, network(18))], true)).await.unwrap().into_inner();
    assert!(answer.rows_deleted >= 3, "{answer:?}");
    assert!(machine.ports.lock().unwrap().is_empty());
    assert_eq!(second.sync(sync(2, vec![], true)).await.unwrap_err().code(), tonic::Code::Aborted);
    let status = second.get_status(proto::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.networks, status.endpoints, status.published_ports), (1, 0, 0));
    second.sync(sync(4, vec![], true)).await.unwrap();
    // This test's own connection may hear of the removal later than the agent's.
    eventually(&db, "only the uplink's switch", |s| s.rows("Logical_Switch").count() == 1).await;
    let now = db.snapshot();
    assert_eq!(
        (now.rows("DHCP_Options").count(), now.rows("DNS").count(), now.rows("Load_Balancer").count()),
        (0, 0, 0)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn exhaustion_ports_that_fail_and_bulk() {
    const TEST: u32 = 1;
    if !can_bind_port_53(TEST) {
        println!("SKIP service live tests: port 53 cannot be bound (not root?)");
        return;
    }
    let Some(ovn) = Ovn::start() else { return };
    let machine = Arc::<FakeMachine>::default();
    let (mut client, _stop) = serve(ovn.connect(), &machine, ovn.dir.path()).await;
    client.configure(configuration(TEST)).await.unwrap();

    // Five usable addresses in a /29, six endpoints; removing one makes room for the sixth.
    let small = proto::Network {
        subnet_v4: "172.18.0.0/29".into(),
        exclude_v4: vec![],
        subnet_v6: "fd00:18::/64".into(),
        gateway_v6: "fd00:18::1".into(),
        ..network(18)
    };
    let mut all = vec![net(1, small)];
    all.extend((100..106).map(|n| ep(1, endpoint(n, 18))));
    apply(&mut client, all).await;
    let exhausted = |seen: &BTreeMap<String, proto::Observation>| {
        seen.values().filter(|o| o.error_kind() == proto::ErrorKind::PoolExhausted).count()
    };
    let addressed =
        |seen: &BTreeMap<String, proto::Observation>| seen.values().filter(|o| !o.address_v4.is_empty()).count();
    let seen = watch(&mut client, |seen| exhausted(seen) == 1 && addressed(seen) == 5).await;
    let mut sixes: Vec<_> = seen.values().map(|o| o.address_v6.as_str()).filter(|a| !a.is_empty()).collect();
    sixes.sort_unstable();
    sixes.dedup();
    // Six numbers are drawn and five are used.
    assert!(sixes.len() == 5 && sixes.iter().all(|a| ("fd00:18::2/64"..="fd00:18::7/64").contains(a)), "{sixes:?}");
    let owner = seen.values().find(|o| !o.address_v4.is_empty()).unwrap().key.clone().unwrap();
    let remove = vec![proto::ObjectKey { generation: 2, ..owner }];
    client.apply(proto::ApplyRequest { put: vec![], remove }).await.unwrap();
    watch(&mut client, |seen| exhausted(seen) == 0 && addressed(seen) == 5).await;

    // A port that cannot be made is told with its object, and tried again by itself.
    *machine.broken.lock().unwrap() = Some(LinkNumber::try_from(50).unwrap());
    let answer = apply(&mut client, vec![net(1, network(19)), ep(1, endpoint(50, 19)), ep(1, endpoint(51, 19))]).await;
    let broken: Vec<_> = answer.iter().filter(|o| !o.error.is_empty()).collect();
    assert_eq!((broken.len(), broken[0].error.as_str()), (1, "no TUN"));
    *machine.broken.lock().unwrap() = None;
    watch(&mut client, |seen| seen.get(&id(50)).is_some_and(|o| o.error.is_empty() && !o.address_v4.is_empty())).await;

    // --ip6 alone: fixed once OVN has given the IPv4 address.
    let six = proto::Network { subnet_v6: "fd00:21::/64".into(), gateway_v6: "fd00:21::1".into(), ..network(21) };
    let fixed6 = proto::Endpoint { static_v6: "fd00:21::99".into(), ..endpoint(60, 21) };
    apply(&mut client, vec![net(1, six), ep(1, fixed6)]).await;
    let seen = watch(&mut client, |seen| addresses(seen, &[60])).await;
    assert_eq!(seen[&id(60)].address_v6, "fd00:21::99/64");
    let db = ovn.connect();
    let written = format!("02:42:ac:12:00:3c {} fd00:21::99", seen[&id(60)].address_v4.trim_end_matches("/24"));
    eventually(&db, "the pinned address", |s| {
        s.find("Logical_Switch_Port", "name", &id(60)).is_some() && lsp(s, 60).0 == written
    })
    .await;

    // Someone else's hand in an owned row is undone.
    let (uuid, _) = db.snapshot().find("Logical_Router", "name", "gw").map(|(u, r)| (u, Arc::clone(r))).unwrap();
    let spoil = Op::update("Logical_Router").row(uuid).set("options", Value::map([("chassis", "other")]));
    db.transact(vec![spoil]).await.unwrap();
    eventually(&db, "the router's chassis", |s| {
        s.row("Logical_Router", uuid).is_some_and(|r| r.key("options", "chassis") == Some("helper-1"))
    })
    .await;

    // Concurrent calls are coalesced: a hundred in far fewer transactions than calls.
    apply(&mut client, vec![net(1, proto::Network { exclude_v4: vec![], ..network(20) })]).await;
    let started = Instant::now();
    let calls = (110..210).map(|n| {
        let mut client = client.clone();
        tokio::spawn(async move { apply(&mut client, vec![ep(1, endpoint(n, 20))]).await })
    });
    let calls: Vec<_> = calls.collect();
    for call in calls {
        assert!(call.await.unwrap()[0].error.is_empty());
    }
    let ids: Vec<u8> = (110..210).collect();
    watch(&mut client, |seen| addresses(seen, &ids)).await;
    println!("100 endpoints from Apply to address: {:?}", started.elapsed());
}
