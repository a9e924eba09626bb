// SPDX-License-Identifier: Apache-2.0
//! The OVN backend: rows by the helper's agent, frames by arca-relayd, interfaces by arca-tapfwd.
//!
//! Steps of an attach: `rows` (agent makes rows, TAP and listener) · `address` (OVN has allocated) · `interface`
//! (arca-tapfwd listens) · `link` (arca-relayd joins both) · `confirm` (OVN's DHCP server acknowledged the address
//! over that very path) · `up` (the port's flows are installed).

use std::{sync::Arc, time::Duration};

use arca_proto::{
    dial::Address as MachineAddress,
    hello::Carrier,
    helper::v1::{self as helper, ErrorKind, ObjectKind},
    relay::v1 as relay,
    tap::v1::{AttachNetworkRequest, SetInterfaceRequest, Sysctl, attach_progress},
};
use async_trait::async_trait;

use super::{Addresses, Backend, Capabilities};
use crate::{
    attach::{Step, run_all},
    error::{Error, Result},
    model::{Endpoint, Extras, Network, Place, Publication},
    peers::{
        agent::Agent,
        objects,
        relay::Relay,
        tap::{Attaching, Tap},
    },
    store::Store,
    validate::endpoint::ADDRESS_TAKEN,
};

/// How long OVN may take to allocate an address or to install a port's flows.
const OVN: Duration = Duration::from_secs(10);
/// How long arca-tapfwd waits from LISTENING to CONFIRMED, in milliseconds.
const CONFIRM_MS: u32 = 10_000;

/// What it can do.
pub const CAPABILITIES: Capabilities = Capabilities { hot_attach: true, port_mapping: true, several_networks: true };

/// OVN in the helper machine.
#[derive(Debug)]
pub struct Ovn {
    agent: Arc<Agent>,
    relay: Arc<Relay>,
    store: Store,
    carrier: relay::Carrier,
}

impl Ovn {
    /// Over these two. An unspecified carrier means the fastest that comes up, for each link by itself.
    #[must_use]
    pub fn new(agent: Arc<Agent>, relay: Arc<Relay>, store: Store, carrier: relay::Carrier) -> Self {
        Self { agent, relay, store, carrier }
    }

    /// Carriers to try for a link, in this order.
    fn carriers(&self, place: &Place) -> Vec<Carrier> {
        // Descriptors and veth pairs stay within one kernel.
        let is_one = matches!(place.address, MachineAddress::Sockets(_)) && self.relay.is_on_this_kernel();
        match Carrier::try_from(i32::from(self.carrier)) {
            _ if !is_one => vec![Carrier::Stream],
            Ok(carrier) if self.carrier != relay::Carrier::Unspecified => vec![carrier],
            _ => vec![Carrier::Cable, Carrier::TapFd, Carrier::Stream],
        }
    }

    /// Stores which carrier is tried. A further try is a new generation: the one before it was withdrawn.
    async fn choose(&self, endpoint: &Endpoint, carrier: Carrier, again: bool) -> Result<Arc<Endpoint>> {
        if !again && endpoint.place.as_ref().is_some_and(|place| place.carrier == carrier) {
            return Ok(Arc::new(endpoint.clone()));
        }
        let id = endpoint.id.clone();
        self.store
            .update(move |draft| {
                let generation = again.then(|| draft.next_generation());
                let edited = draft.edit_endpoint(&id, |endpoint| {
                    endpoint.generation = generation.unwrap_or(endpoint.generation);
                    endpoint.place.iter_mut().for_each(|place| place.carrier = carrier);
                });
                edited.ok_or_else(|| Error::Failed("the endpoint vanished while it was made".into()))
            })
            .await
    }

    /// One try, over the carrier that the endpoint has.
    async fn attach_by(&self, network: &Network, endpoint: &Endpoint) -> Result<Addresses, (&'static str, Error)> {
        let Some(place) = &endpoint.place else { return Ok(Addresses::default()) };
        let mut attach = Attach {
            ovn: self,
            network,
            endpoint,
            place,
            tap: Tap::new(&place.address),
            got: Addresses::default(),
            progress: None,
        };
        let steps: [&dyn Step<Attach<'_>>; 6] = [&Rows, &Address, &Interface, &Link, &Confirm, &Up];
        run_all(&steps, &mut attach).await.map(|()| attach.got)
    }

    async fn put(&self, object: helper::Object, network: &Network) -> Result<()> {
        let observations = self.agent.apply_if_ready(vec![object], Vec::new()).await?;
        observations.iter().try_for_each(|observation| check(observation, network))
    }
}

/// Docker's answer to what the agent says is wrong with an object.
fn check(observation: &helper::Observation, network: &Network) -> Result<()> {
    if observation.error.is_empty() {
        return Ok(());
    }
    Err(match observation.error_kind() {
        ErrorKind::AddressInUse => Error::Forbidden(ADDRESS_TAKEN.into()),
        ErrorKind::PoolExhausted => {
            // The agent names the family, and the network by its subnet.
            let family = if observation.error.contains("IPv6") { "IPv6" } else { "IPv4" };
            Error::Exhausted(format!(
                "no available {family} addresses on this network's address pools: {} ({})",
                network.name(),
                network.id
            ))
        }
        ErrorKind::Invalid => Error::Invalid(observation.error.clone()),
        ErrorKind::UnknownNetwork | ErrorKind::Internal | ErrorKind::Unspecified => {
            Error::Failed(observation.error.clone())
        }
    })
}

#[async_trait]
impl Backend for Ovn {
    fn capabilities(&self) -> Capabilities {
        CAPABILITIES
    }

    async fn put_network(&self, network: &Network) -> Result<()> {
        if network.without_room().is_some() {
            return Ok(());
        }
        match self.put(objects::network(network), network).await {
            // It is on disk: the full sync after the next connect declares it.
            Err(Error::Unavailable(_) | Error::Peer { .. }) => {
                self.agent.kick();
                Ok(())
            }
            done => done,
        }
    }

    async fn remove_network(&self, network: &Network, generation: u64) -> Result<()> {
        let key = objects::key(ObjectKind::Network, network.id.as_str(), generation);
        self.agent.apply_if_ready(Vec::new(), vec![key]).await.map(drop)
    }

    async fn attach(&self, network: &Network, endpoint: &Endpoint) -> Result<Addresses> {
        let Some(place) = &endpoint.place else { return Ok(Addresses::default()) };
        self.agent.need_helper();
        let mut carriers = self.carriers(place).into_iter().peekable();
        let mut again = false;
        let outcome = loop {
            let carrier = carriers.next().unwrap_or_default();
            let endpoint = self.choose(endpoint, carrier, again).await?;
            match self.attach_by(network, &endpoint).await {
                // Only what a carrier itself cannot do is no failure of the attachment yet.
                Err((step @ ("interface" | "link"), error)) if carriers.peek().is_some() => {
                    tracing::warn!(step, %error, %carrier, link = %place.link, "carrier does not come up; the next one");
                    again = true;
                }
                outcome => break outcome,
            }
        };
        match outcome {
            Ok(got) => Ok(got),
            // Docker's own texts go through as they are; the step is for what Docker has no text for.
            Err((step, error)) if error.is_dockers() => {
                tracing::info!(step, %error, network_id = %network.id, "attach refused");
                Err(error)
            }
            Err((step, source)) => {
                Err(Error::Step { network: network.name().to_owned(), step, source: Box::new(source) })
            }
        }
    }

    async fn rename(&self, network: &Network, endpoint: &Endpoint) -> Result<()> {
        match objects::endpoint(endpoint, network) {
            Some(object) => self.put(object, network).await,
            None => Ok(()),
        }
    }

    async fn detach(&self, endpoint: &Endpoint, generation: u64) -> Vec<Error> {
        let Some(place) = &endpoint.place else { return Vec::new() };
        let key = objects::key(ObjectKind::Endpoint, endpoint.id.as_str(), generation);
        let mut tap = Tap::new(&place.address);
        // The link first: arca-relayd would take an end that goes away for one that broke, and dial again.
        let link = self.relay.close(place.link).await;
        let (interface, rows) = tokio::join!(tap.detach(place.link), self.agent.apply_if_ready(Vec::new(), vec![key]));
        [interface.err(), link.err(), rows.err()].into_iter().flatten().collect()
    }

    async fn put_port(&self, publication: &Publication) -> Result<()> {
        let Some(object) = objects::published_port(publication) else {
            return self.remove_port(publication, publication.generation).await;
        };
        let observations = self.agent.apply_if_ready(vec![object], Vec::new()).await?;
        match observations.into_iter().find(|observation| !observation.error.is_empty()) {
            Some(observation) => Err(Error::Failed(observation.error)),
            None => Ok(()),
        }
    }

    async fn remove_port(&self, publication: &Publication, generation: u64) -> Result<()> {
        let key = objects::key(ObjectKind::PublishedPort, publication.id.as_str(), generation);
        self.agent.apply_if_ready(Vec::new(), vec![key]).await.map(drop)
    }
}

/// What the steps share.
struct Attach<'a> {
    ovn: &'a Ovn,
    network: &'a Network,
    endpoint: &'a Endpoint,
    place: &'a Place,
    tap: Tap,
    got: Addresses,
    progress: Option<Attaching>,
}

/// Sysctls and further addresses, as arca-tapfwd wants them told. Link-local networks have their prefix by definition.
fn extras(interface: &str, extras: &Extras) -> SetInterfaceRequest {
    let sysctl = |(group, key, value): &(String, String, String)| Sysctl {
        name: format!("{group}/{interface}/{key}"),
        value: value.clone(),
    };
    let address = |address: &std::net::IpAddr| match address {
        std::net::IpAddr::V4(address) => format!("{address}/16"),
        std::net::IpAddr::V6(address) => format!("{address}/64"),
    };
    SetInterfaceRequest {
        interface: interface.to_owned(),
        sysctls: extras.sysctls.iter().map(sysctl).collect(),
        addresses: extras.link_local.iter().map(address).collect(),
    }
}

struct Rows;
struct Address;
struct Interface;
struct Link;
struct Confirm;
struct Up;

#[async_trait]
impl<'a> Step<Attach<'a>> for Rows {
    fn name(&self) -> &'static str {
        "rows"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        // The network goes along: the request that makes it may still be on its way, and twice changes nothing.
        let endpoint = objects::endpoint(a.endpoint, a.network);
        let objects = std::iter::once(objects::network(a.network)).chain(endpoint).collect();
        let observations = a.ovn.agent.apply(objects, Vec::new()).await?;
        observations.iter().try_for_each(|observation| check(observation, a.network))
    }

    async fn undo(&self, a: &mut Attach<'a>) -> Result<()> {
        // Its own generation suffices, and a later one may be that of the next try, which would then count as withdrawn.
        let key = objects::key(ObjectKind::Endpoint, a.endpoint.id.as_str(), a.endpoint.generation);
        a.ovn.agent.apply_if_ready(Vec::new(), vec![key]).await.map(drop)
    }
}

#[async_trait]
impl<'a> Step<Attach<'a>> for Address {
    fn name(&self) -> &'static str {
        "address"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        let (want_v4, want_v6) = (a.network.v4.is_some(), a.network.v6.is_some());
        let enough = |seen: &helper::Observation| {
            (!want_v4 || !seen.address_v4.is_empty()) && (!want_v6 || !seen.address_v6.is_empty())
        };
        let seen = a.ovn.agent.wait(&a.endpoint.id, a.endpoint.generation, OVN, enough).await?;
        check(&seen, a.network)?;
        let malformed = |text: &str| Error::Failed(format!("the helper agent gave the address {text:?}"));
        if want_v4 {
            a.got.v4 = Some(seen.address_v4.parse().map_err(|_| malformed(&seen.address_v4))?);
        }
        if want_v6 {
            a.got.v6 = Some(seen.address_v6.parse().map_err(|_| malformed(&seen.address_v6))?);
        }
        Ok(())
    }
}

#[async_trait]
impl<'a> Step<Attach<'a>> for Interface {
    fn name(&self) -> &'static str {
        "interface"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        let addresses = [a.got.v4.map(|net| net.to_string()), a.got.v6.map(|net| net.to_string())];
        let request = AttachNetworkRequest {
            link: a.place.link.get(),
            interface: a.place.interface.clone(),
            mac: a.place.mac.to_string(),
            mtu: a.network.mtu,
            addresses: addresses.into_iter().flatten().collect(),
            gateway_v4: a.network.route_v4().map(|address| address.to_string()).unwrap_or_default(),
            gateway_v6: a.network.route_v6().map(|address| address.to_string()).unwrap_or_default(),
            confirm_dhcp: a.got.v4.is_some(),
            timeout_ms: CONFIRM_MS,
            cable: a.place.carrier == Carrier::Cable,
        };
        let mut progress = a.tap.attach(request).await?;
        let listening = progress.until(attach_progress::Step::Listening).await;
        a.progress = Some(progress);
        listening?;
        if a.endpoint.extras.touch_interface() {
            a.tap.set_interface(extras(&a.place.interface, &a.endpoint.extras)).await?;
        }
        Ok(())
    }

    async fn undo(&self, a: &mut Attach<'a>) -> Result<()> {
        // The stream goes first, or arca-tapfwd would still be waiting on it.
        a.progress = None;
        a.tap.detach(a.place.link).await
    }
}

#[async_trait]
impl<'a> Step<Attach<'a>> for Link {
    fn name(&self) -> &'static str {
        "link"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        a.ovn.relay.open(a.place.link, &a.place.address).await
    }

    async fn undo(&self, a: &mut Attach<'a>) -> Result<()> {
        a.ovn.relay.close(a.place.link).await
    }
}

#[async_trait]
impl<'a> Step<Attach<'a>> for Confirm {
    fn name(&self) -> &'static str {
        "confirm"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        match a.progress.as_mut() {
            Some(progress) => progress.until(attach_progress::Step::Confirmed).await,
            None => Err(Error::Failed("the attachment's progress was lost".into())),
        }
    }
}

#[async_trait]
impl<'a> Step<Attach<'a>> for Up {
    fn name(&self) -> &'static str {
        "up"
    }

    async fn run(&self, a: &mut Attach<'a>) -> Result<()> {
        let seen = a.ovn.agent.wait(&a.endpoint.id, a.endpoint.generation, OVN, |seen| seen.up).await?;
        check(&seen, a.network)
    }
}
