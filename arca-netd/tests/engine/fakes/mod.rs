// SPDX-License-Identifier: Apache-2.0
//! One host with its peers.

pub(crate) mod agent;
pub(crate) mod relay;
pub(crate) mod tap;

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use arca_netd::{
    app::{self, App, Parts},
    helper::{Boot, Booted, Uplink},
    model::{Endpoint, Extras, NetworkId, Spec, WorkloadId},
    store::{Store, StoreError},
    validate::{
        create::DefaultKind,
        endpoint::{Demands, Wanted},
    },
};
use arca_proto::{dial::Address, listen::bind_unix, relay::v1::Carrier};
use async_trait::async_trait;
use tokio::{runtime::Runtime, sync::Notify};
use tonic::service::Routes;

/// A peer process.
#[derive(Debug)]
pub(crate) struct Process(Option<Runtime>);

impl Process {
    pub(crate) fn serve(socket: &Path, routes: Routes) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        std::fs::create_dir_all(socket.parent().expect("a folder")).expect("make it");
        let guard = runtime.enter();
        // A runtime that was dropped a moment ago closes its listener a moment later.
        let mut listener = bind_unix(socket, 0o600);
        for _ in 0..10_000 {
            if listener.is_ok() {
                break;
            }
            std::thread::yield_now();
            listener = bind_unix(socket, 0o600);
        }
        let listener = listener.expect("bind a fake's socket");
        let server = tonic::transport::Server::builder().add_routes(routes).serve_with_incoming(listener.incoming());
        runtime.spawn(server);
        drop(guard);
        Self(Some(runtime))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}

/// A helper machine that is always there until told otherwise.
#[derive(Debug)]
pub(crate) struct FakeBoot {
    address: Address,
    pub(crate) ended: Notify,
    pub(crate) boots: Mutex<u32>,
    pub(crate) downs: Mutex<u32>,
    /// What an earlier machine had allocated is not known inside.
    pub(crate) forgetful: AtomicBool,
}

#[async_trait]
impl Boot for FakeBoot {
    async fn up(&self) -> arca_netd::error::Result<Booted> {
        let mut boots = self.boots.lock().unwrap();
        *boots += 1;
        Ok(Booted { address: self.address.clone(), adopted: *boots > 1, forgetful: self.forgetful.load(Relaxed) })
    }
    async fn ended(&self) {
        self.ended.notified().await;
    }
    async fn down(&self) -> arca_netd::error::Result<()> {
        *self.downs.lock().unwrap() += 1;
        Ok(())
    }
    fn uplink(&self) -> Uplink {
        Uplink::choose("192.168.127.0/24".parse().unwrap(), &[]).unwrap()
    }
    fn is_on_this_kernel(&self) -> bool {
        true
    }
}

/// What breaks, by step name; shared by all fakes.
pub(crate) type Breaks = Arc<Mutex<Option<&'static str>>>;

pub(crate) struct World {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) breaks: Breaks,
    pub(crate) boot: Arc<FakeBoot>,
    pub(crate) agent: agent::FakeAgent,
    pub(crate) relay: relay::FakeRelay,
    pub(crate) taps: BTreeMap<u8, tap::FakeTap>,
    pub(crate) agent_process: Option<Process>,
    pub(crate) relay_process: Option<Process>,
    tap_processes: BTreeMap<u8, Process>,
    pub(crate) app: Option<App>,
    /// What links are carried by from the next start of arca-netd on.
    pub(crate) carrier: Carrier,
}

impl World {
    pub(crate) async fn new() -> Self {
        // In memory where there is such a place: what is tested is not the disk.
        let memory = Path::new("/dev/shm");
        let directory = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() }.unwrap();
        let breaks = Breaks::default();
        let helper = directory.path().join("h");
        let mut world = Self {
            boot: Arc::new(FakeBoot {
                address: Address::Sockets(helper),
                ended: Notify::new(),
                boots: Mutex::new(0),
                downs: Mutex::new(0),
                forgetful: AtomicBool::new(false),
            }),
            agent: agent::FakeAgent::new(Arc::clone(&breaks)),
            relay: relay::FakeRelay::new(Arc::clone(&breaks)),
            taps: BTreeMap::new(),
            agent_process: None,
            relay_process: None,
            tap_processes: BTreeMap::new(),
            app: None,
            carrier: Carrier::Stream,
            directory,
            breaks,
        };
        world.start_agent();
        world.start_relay();
        world.start_netd().await;
        eventually("the first full sync", || world.engine().is_ready()).await;
        world
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn start_agent(&mut self) {
        self.agent_process = Some(Process::serve(&self.path("h/9999"), self.agent.routes()));
    }

    pub(crate) fn start_relay(&mut self) {
        self.relay_process = Some(Process::serve(&self.path("relayd.sock"), self.relay.routes()));
    }

    /// A machine with an arca-tapfwd, started when first asked for.
    pub(crate) fn machine(&mut self, n: u8) -> Address {
        let directory = self.path(&format!("m/{n}"));
        if self.taps.contains_key(&n) {
            return Address::Sockets(directory);
        }
        let tap = tap::FakeTap::new(Arc::clone(&self.breaks), self.relay.opened());
        self.tap_processes.insert(n, Process::serve(&directory.join("5555"), tap.routes()));
        self.taps.insert(n, tap);
        Address::Sockets(directory)
    }

    /// The process of an arca-tapfwd dies and comes back; its interfaces stay.
    pub(crate) fn restart_tap(&mut self, n: u8) {
        self.tap_processes.remove(&n);
        let socket = self.path(&format!("m/{n}/5555"));
        self.tap_processes.insert(n, Process::serve(&socket, self.taps[&n].routes()));
    }

    pub(crate) async fn store(&self) -> Store {
        for _ in 0..500 {
            match Store::open(&self.path("netd.db")) {
                // The writer thread of the previous life is just ending.
                Err(StoreError::Locked) => tokio::time::sleep(Duration::from_millis(10)).await,
                opened => return opened.unwrap(),
            }
        }
        panic!("the database stays locked")
    }

    pub(crate) async fn start_netd(&mut self) {
        let store = self.store().await;
        let system_id = app::system_id(&store).await.unwrap();
        let parts = Parts {
            relayd: self.path("relayd.sock"),
            carrier: self.carrier,
            servers: vec!["10.0.0.53:53".parse().unwrap()],
            default_kind: DefaultKind::Ovs,
            pools: Vec::new(),
            vmnet: arca_netd::backend::vmnet::Settings { tag: "0".repeat(8), marker: self.path("vmnet") },
        };
        let boot: Arc<dyn Boot> = Arc::clone(&self.boot) as Arc<dyn Boot>;
        self.app = Some(App::start(store, system_id, boot, parts).await.unwrap());
    }

    pub(crate) async fn stop_netd(&mut self) {
        self.app.take().unwrap().stop().await;
    }

    pub(crate) fn engine(&self) -> &Arc<arca_netd::engine::Engine> {
        &self.app.as_ref().unwrap().engine
    }

    pub(crate) async fn network(&self, name: &str, subnet: &str) -> NetworkId {
        let mut spec = Spec { name: name.into(), ..Spec::default() };
        if !subnet.is_empty() {
            spec.ipam_pools = vec![arca_netd::model::ShownPool { subnet: subnet.into(), ..Default::default() }];
        }
        self.engine().create_network(spec).await.unwrap()
    }

    pub(crate) async fn attach(&self, wanted: Wanted) -> Arc<Endpoint> {
        self.engine().attach(wanted).await.unwrap()
    }

    /// Nothing of any endpoint is left anywhere.
    pub(crate) fn assert_clean(&self, what: &str) {
        assert_eq!(self.agent.endpoints(), 0, "{what}: rows");
        assert!(self.relay.links().is_empty(), "{what}: links");
        assert!(self.taps.values().all(|tap| tap.interfaces().is_empty()), "{what}: interfaces");
        assert_eq!(self.engine().state().endpoints.len(), 0, "{what}: stored endpoints");
    }
}

/// Waits until there is no complaint, at most twenty seconds; the last complaint.
pub(crate) async fn eventually_ok<E>(check: impl Fn() -> Result<(), E>) -> Result<(), E> {
    for _ in 0..2000 {
        if check().is_ok() {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    check()
}

/// A number of calls that are answered with UNAVAILABLE, as by a peer that is just restarting.
#[derive(Debug, Default)]
pub(crate) struct Hiccup(std::sync::atomic::AtomicU32);

impl Hiccup {
    pub(crate) fn set(&self, calls: u32) {
        self.0.store(calls, std::sync::atomic::Ordering::SeqCst);
    }

    pub(crate) fn check(&self) -> Result<(), tonic::Status> {
        use std::sync::atomic::Ordering::SeqCst;
        match self.0.fetch_update(SeqCst, SeqCst, |left| left.checked_sub(1)) {
            Ok(_) => Err(tonic::Status::unavailable("just restarting")),
            Err(_) => Ok(()),
        }
    }
}

/// Waits until `holds`, at most twenty seconds.
pub(crate) async fn eventually(what: &str, holds: impl Fn() -> bool) {
    for _ in 0..2000 {
        if holds() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{what} did not happen")
}

pub(crate) fn workload(n: u8) -> WorkloadId {
    WorkloadId::try_from(format!("{n:064x}")).unwrap()
}

pub(crate) fn wanted(network: &str, n: u8, address: &Address) -> Wanted {
    Wanted {
        network: network.into(),
        machine: Some((format!("m{n}").try_into().unwrap(), address.clone())),
        workload: workload(n),
        workload_name: format!("c{n}"),
        hostname: format!("host{n}"),
        aliases: Vec::new(),
        ipv4: String::new(),
        ipv6: String::new(),
        link_local: Vec::new(),
        mac: String::new(),
        gateway_priority: 0,
        driver_options: BTreeMap::new(),
        extras: Extras::default(),
        demands: Demands::default(),
    }
}
