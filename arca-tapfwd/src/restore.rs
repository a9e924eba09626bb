// SPDX-License-Identifier: Apache-2.0
//! What the descriptor store keeps of this process, and how a new process goes on with it.
//!
//! Only finished attaches are kept: of one that was pending when the process died, the kernel has removed the interface,
//! and its caller sees a broken RPC. Addresses, routes and rules are in the kernel and are not touched.

use std::os::fd::{BorrowedFd, OwnedFd};

use arca_link::{Kind, Pump, PumpConfig, PumpError, Tap, TapError};
use arca_proto::fdstore::{Client, Entry, FdStoreError};
use arca_proto::ports::LinkNumber;
use arca_proto::tap::v1::AttachNetworkRequest;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::cable::Cable;
use crate::configure::Configuration;
use crate::frames::Frames;
use crate::kernel::KernelError;
use crate::machine::{Attached, Machine};
use crate::redirect::RedirectError;
use crate::settings::{InvalidSettings, Settings};
use crate::veth::Pair;

const CONFIGURATION: &str = "configuration";

/// An `AttachNetworkRequest` on its way through the store.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LinkRecord {
    link: u32,
    interface: String,
    mac: String,
    mtu: u32,
    addresses: Vec<String>,
    gateway_v4: String,
    gateway_v6: String,
    confirm_dhcp: bool,
    #[serde(default)]
    cable: bool,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct ConfigurationRecord {
    default_route_link: u32,
    #[serde(default)]
    default_route_link_v6: Option<u32>,
    /// Of either family.
    resolver_v4: String,
}

/// Why an entry of the store is of no use.
#[derive(Debug, thiserror::Error)]
enum EntryError {
    #[error("not a record of this program: {0}")]
    Record(String),
    #[error("bad value")]
    Settings(#[from] InvalidSettings),
    #[error("{0} descriptors: not those of a link of this kind")]
    Descriptors(usize),
    #[error(transparent)]
    Tap(#[from] TapError),
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error(transparent)]
    Pump(#[from] PumpError),
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error("cannot take up the cable")]
    Cable(#[source] std::io::Error),
}

fn link_name(link: LinkNumber) -> String {
    format!("link-{link}")
}

/// Has the store keep a link's descriptors: TAP and listener; of a cable the listener and, once it is plugged in, the
/// helper's network namespace.
pub(crate) fn put_link(
    store: &Client,
    settings: &Settings,
    descriptors: &[BorrowedFd<'_>],
) -> Result<(), FdStoreError> {
    let AttachNetworkRequest {
        link, interface, mac, mtu, addresses, gateway_v4, gateway_v6, confirm_dhcp, cable, ..
    } = settings.to_request();
    let record = LinkRecord { link, interface, mac, mtu, addresses, gateway_v4, gateway_v6, confirm_dhcp, cable };
    store.put(&link_name(settings.link), json!(record), descriptors)
}

/// Has the store close its descriptors of a link.
pub(crate) fn remove_link(store: &Client, link: LinkNumber) -> Result<(), FdStoreError> {
    store.remove(&link_name(link))
}

/// Has the store keep the configuration.
pub(crate) fn put_configuration(store: &Client, configuration: Configuration) -> Result<(), FdStoreError> {
    let record = ConfigurationRecord {
        default_route_link: configuration.default_route.map(LinkNumber::get).unwrap_or_default(),
        default_route_link_v6: Some(configuration.default_route_v6.map(LinkNumber::get).unwrap_or_default()),
        resolver_v4: configuration.resolver.map(|r| r.to_string()).unwrap_or_default(),
    };
    store.put(CONFIGURATION, json!(record), &[])
}

impl Machine {
    /// Goes on where the last run of this program stopped. An entry of no use is dropped and named in the log: the
    /// others' frames must flow.
    ///
    /// # Errors
    /// The parent does not answer.
    pub async fn restore(&self) -> Result<(), FdStoreError> {
        let Some(store) = &self.store else { return Ok(()) };
        for entry in store.restore()? {
            let name = entry.name.clone();
            match self.resume(entry).await {
                Ok(()) => tracing::info!(%name, "resumed"),
                Err(error) => {
                    let error = anyhow::Error::new(error);
                    tracing::error!("{name} cannot be resumed and is dropped: {error:#}");
                    store.remove(&name)?;
                }
            }
        }
        Ok(())
    }

    async fn resume(&self, entry: Entry) -> Result<(), EntryError> {
        if entry.name == CONFIGURATION {
            let kept = configuration(entry.state)?;
            *self.configuration.lock().await = kept;
            // Rules are in the kernel, but what they lead to was this process.
            if kept.resolver.is_some_and(|resolver| resolver.is_ipv6()) {
                self.redirect(kept.resolver).await?;
            }
            return Ok(());
        }
        let settings = settings(entry.state)?;
        let slot = self.slot(settings.link);
        let attached = if settings.cable {
            self.resume_cable(settings, entry.descriptors).await?
        } else {
            let [tap, listener] =
                <[OwnedFd; 2]>::try_from(entry.descriptors).map_err(|d| EntryError::Descriptors(d.len()))?;
            let tap = Tap::from_fd(tap)?;
            let index = self.kernel.index(tap.name()).await?;
            let copy = listener.try_clone().map_err(|e| EntryError::Pump(PumpError::Start(settings.link, e)))?;
            // The helper's end may have the TAP and go on with it while this process was away.
            let config = PumpConfig { lent: true, ..PumpConfig::new(settings.link, Kind::Container, tap, listener) };
            Attached { settings, index, frames: Frames::Pump(Pump::start(config)?, copy) }
        };
        *slot.attached.lock().await = Some(attached);
        Ok(())
    }

    async fn resume_cable(&self, settings: Settings, descriptors: Vec<OwnedFd>) -> Result<Attached, EntryError> {
        let mut descriptors = descriptors.into_iter();
        let listener = descriptors.next().ok_or(EntryError::Descriptors(0))?;
        let pair = Pair::of(self.kernel.index(settings.interface.as_str()).await?);
        let index = pair.index();
        let cable = Cable::start(&settings, pair, listener, descriptors.next(), self.store.clone());
        Ok(Attached { settings, index, frames: Frames::Cable(cable.map_err(EntryError::Cable)?) })
    }
}

fn settings(state: Value) -> Result<Settings, EntryError> {
    let record: LinkRecord = serde_json::from_value(state).map_err(|e| EntryError::Record(e.to_string()))?;
    let LinkRecord { link, interface, mac, mtu, addresses, gateway_v4, gateway_v6, confirm_dhcp, cable } = record;
    Ok(Settings::try_from(&AttachNetworkRequest {
        link,
        interface,
        mac,
        mtu,
        addresses,
        gateway_v4,
        gateway_v6,
        confirm_dhcp,
        timeout_ms: 0,
        cable,
    })?)
}

fn configuration(state: Value) -> Result<Configuration, EntryError> {
    let record: ConfigurationRecord = serde_json::from_value(state).map_err(|e| EntryError::Record(e.to_string()))?;
    let link = |number| match number {
        0 => Ok(None),
        link => LinkNumber::try_from(link).map(Some).map_err(InvalidSettings::Link),
    };
    let default_route = link(record.default_route_link)?;
    let default_route_v6 = link(record.default_route_link_v6.unwrap_or(record.default_route_link))?;
    let resolver = match record.resolver_v4.as_str() {
        "" => None,
        text => Some(text.parse().map_err(|_| EntryError::Record(format!("resolver {text}")))?),
    };
    Ok(Configuration { default_route, default_route_v6, resolver })
}
