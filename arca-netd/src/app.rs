// SPDX-License-Identifier: Apache-2.0
//! The wiring: every component, in reading order.

use std::{net::IpAddr, path::PathBuf, sync::Arc};

use arca_daemon::{
    config::{BackendKind, Config, LinkKind},
    exit::{Failure, Fatal},
    serve,
    shutdown::Shutdown,
};
use arca_proto::{listen::Listener, netd::v1::netd_server::NetdServer, relay::v1::Carrier};
use ipnet::Ipv4Net;
use tonic::service::Routes;

use crate::{
    backend::{Backends, ovn::Ovn},
    engine::{Engine, Settings},
    error::{Error, Result},
    helper::{Boot, Helper, Uplink, machine::HelperMachine, uplink},
    hostnet,
    model::NetworkId,
    peers::{agent::Agent, relay::Relay},
    service::{NAME, Service},
    store::{Store, StoreError},
    validate::create::DefaultKind,
};

const SYSTEM_ID: &str = "system-id";
const UPLINK: &str = "uplink";

/// Everything that runs, besides the helper machine.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Socket of arca-relayd.
    pub relayd: PathBuf,
    /// Carrier of links.
    pub carrier: Carrier,
    /// Where unknown names are forwarded, "address:53".
    pub forwarders: Vec<String>,
    /// What "" and "bridge" mean.
    pub default_kind: DefaultKind,
}

/// A running engine; dropping it stops its tasks and nothing else.
pub struct App {
    /// What requests go to.
    pub engine: Arc<Engine>,
    tasks: tokio::task::JoinSet<()>,
    boot: Arc<dyn Boot>,
}

impl App {
    /// Starts every task. The order does not matter to them: each waits for what it needs.
    ///
    /// # Errors
    /// If the store fails.
    pub async fn start(store: Store, identity: Identity, boot: Arc<dyn Boot>, parts: Parts) -> Result<Self> {
        let helper = Arc::new(Helper::new(Arc::clone(&boot), identity.uplink, identity.system_id, parts.forwarders));
        let agent = Arc::new(Agent::new(Arc::clone(&helper), store.clone(), parts.carrier));
        let relay = Arc::new(Relay::new(&parts.relayd, Arc::clone(&helper), store.clone(), parts.carrier));
        let ovn = Ovn::new(Arc::clone(&agent), Arc::clone(&relay), parts.carrier);
        let backends = Backends::new(Arc::new(ovn));
        let peers =
            crate::engine::Peers { agent: Arc::clone(&agent), relay: Arc::clone(&relay), helper: Arc::clone(&helper) };
        let settings = Settings::new(parts.default_kind, parts.carrier);
        let engine = Engine::new(store, backends, peers, settings).await?;
        // What a previous life left half done goes before anything is compared with it.
        engine.recover().await?;
        let mut tasks = tokio::task::JoinSet::new();
        tasks.spawn(async move { helper.run().await });
        tasks.spawn(async move { agent.run().await });
        tasks.spawn(async move { relay.run().await });
        Ok(Self { engine, tasks, boot })
    }

    /// Serves until shutdown; the helper machine and the links stay.
    ///
    /// # Errors
    /// If the listener breaks.
    pub async fn serve(mut self, listener: Listener, shutdown: Shutdown) -> Result<(), serve::ServeError> {
        let routes = Routes::new(NetdServer::new(Service::new(Arc::clone(&self.engine))));
        let served = serve::serve(listener, routes, &[NAME], shutdown).await;
        self.tasks.shutdown().await;
        served
    }

    /// Stops every task and leaves everything else as it is.
    pub async fn stop(mut self) {
        self.tasks.shutdown().await;
    }

    /// Ends the helper machine as well and undoes what was changed on the host.
    ///
    /// # Errors
    /// What could not be undone.
    pub async fn take_down(mut self) -> Result<()> {
        self.tasks.shutdown().await;
        self.boot.down().await
    }
}

/// What stays the same over restarts of everything: drawn or chosen once, kept in the store.
#[derive(Clone, Debug)]
pub struct Identity {
    /// Chassis id of the helper.
    pub system_id: String,
    /// The uplink network.
    pub uplink: Uplink,
}

impl Identity {
    /// Reads it, or makes it: the uplink is the first free /29 of `range`.
    ///
    /// # Errors
    /// If the range has no room beside the host's routes, or the store fails.
    pub async fn load(store: &Store, range: Ipv4Net) -> Result<Self> {
        let host = hostnet::taken(uplink::HOST_INTERFACE);
        store
            .update(move |draft| {
                let system_id = match draft.meta.get(SYSTEM_ID) {
                    Some(id) => id.clone(),
                    None => {
                        let id = NetworkId::random().map_err(Error::io("draw a chassis id"))?.as_str()[..32].to_owned();
                        draft.put_meta(SYSTEM_ID, id.clone());
                        id
                    }
                };
                // Kept as long as it lies in the configured range.
                let kept = draft.meta.get(UPLINK).and_then(|text| text.parse::<Ipv4Net>().ok());
                let kept = kept.filter(|net| range.contains(net)).and_then(|net| Uplink::choose(net, &[]));
                let uplink = match kept {
                    Some(uplink) => uplink,
                    None => {
                        let networks = draft.networks.values().filter_map(|network| network.v4.as_ref());
                        let taken: Vec<_> = networks.map(|v4| v4.subnet).chain(host).collect();
                        let uplink = Uplink::choose(range, &taken).ok_or_else(|| {
                            Error::Failed(format!("uplinkRange {range} has no free /29 beside the host's routes"))
                        })?;
                        draft.put_meta(UPLINK, uplink.net().to_string());
                        uplink
                    }
                };
                Ok(Self { system_id, uplink })
            })
            .await
    }
}

/// Opens the store of the configured engine.
///
/// # Errors
/// A [`Fatal`] with its own exit code if another arca-netd has it.
pub fn open_store(config: &Config) -> Result<Store, Fatal> {
    let data = &config.paths.data;
    std::fs::create_dir_all(data).map_err(|error| {
        Fatal::new(Failure::Privileges, format!("create {}: {error} (run as root, or set ARCA_HOME)", data.display()))
    })?;
    let path = data.join("netd.db");
    Store::open(&path).map_err(|error| {
        let failure = match error {
            StoreError::Locked => Failure::AlreadyRunning,
            _ => Failure::General,
        };
        Fatal::new(failure, format!("{}: {}", path.display(), chain(&error)))
    })
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

/// The real engine, as configured.
///
/// # Errors
/// If the store or the machine kind is not to be had.
pub async fn start(config: &Config) -> anyhow::Result<App> {
    let store = open_store(config)?;
    let range = Ipv4Net::new(config.uplink_range.network, config.uplink_range.length)?;
    let identity = Identity::load(&store, range).await?;
    let boot = Arc::new(HelperMachine::new(config, &identity.system_id, identity.uplink)?);
    let servers = if config.dns.is_empty() { hostnet::nameservers() } else { config.dns.clone() };
    // The helper cannot reach a stub on the host's loopback.
    let forwarders = servers.into_iter().filter(|ip| !ip.is_loopback()).map(|ip| match ip {
        IpAddr::V4(ip) => format!("{ip}:53"),
        IpAddr::V6(ip) => format!("[{ip}]:53"),
    });
    let parts = Parts {
        relayd: config.paths.relayd_socket(),
        carrier: match config.link {
            LinkKind::Auto | LinkKind::Stream => Carrier::Stream,
            LinkKind::TapFd => Carrier::TapFd,
            LinkKind::Cable => Carrier::Cable,
        },
        forwarders: forwarders.collect(),
        default_kind: match config.network_backend {
            BackendKind::Ovs => DefaultKind::Ovs,
            BackendKind::Vmnet => DefaultKind::Vmnet,
        },
    };
    Ok(App::start(store, identity, boot, parts).await?)
}

/// Ends the helper machine of an engine whose arca-netd does not run, and undoes what it changed on the host.
///
/// # Errors
/// If arca-netd still runs, or what could not be undone.
pub async fn stop_helper(config: &Config) -> anyhow::Result<()> {
    let store = open_store(config)?;
    let range = Ipv4Net::new(config.uplink_range.network, config.uplink_range.length)?;
    let identity = Identity::load(&store, range).await?;
    let machine = HelperMachine::new(config, &identity.system_id, identity.uplink)?;
    machine.adopt().await?;
    Ok(machine.down().await?)
}
