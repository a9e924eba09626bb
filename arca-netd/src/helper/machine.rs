// SPDX-License-Identifier: Apache-2.0
//! The real helper machine, through arca-machine.

use std::{
    path::PathBuf,
    sync::{Mutex as Cell, PoisonError},
    time::Duration,
};

use arca_daemon::config::{Config, PublishKind};
use arca_machine::{Adoption, HelperSpec, Kind, Machine, Machines};
use arca_proto::dial::Address;
use async_trait::async_trait;
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::Mutex;

use super::{
    Boot, Booted, Uplink, host,
    uplink::{Names, Ranges},
};
use crate::{
    error::{Error, Result},
    store::Store,
};

/// How long the helper may take to stop by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Uplink networks tried in one start: as many engines may start at the same moment.
const CHOICES: u32 = 8;
/// From spawn to READY. A TCG virtual machine on a busy host is the slowest case.
const READY: Duration = Duration::from_secs(30);

/// Launches, adopts and ends the helper machine.
#[derive(Debug)]
pub struct HelperMachine {
    machines: Machines,
    spec: HelperSpec,
    store: Store,
    /// Where uplink networks come from.
    ranges: Ranges,
    names: Names,
    uplink: Cell<Uplink>,
    publish: PublishKind,
    running: Mutex<Option<Machine>>,
}

impl HelperMachine {
    /// As the configuration says.
    ///
    /// # Errors
    /// If this platform cannot make machines, or the uplink range has no room.
    pub async fn new(config: &Config, system_id: &str, store: Store) -> Result<Self> {
        let ranges = Ranges {
            v4: Ipv4Net::new(config.uplink_range.network, config.uplink_range.length)
                .map_err(|error| Error::Invalid(format!("uplinkRange: {error}")))?,
            v6: Ipv6Net::new(config.uplink_range6.network, config.uplink_range6.length)
                .map_err(|error| Error::Invalid(format!("uplinkRange6: {error}")))?,
        };
        let names = Names::of(&config.paths.tag());
        let uplink = Cell::new(Uplink::load(&store, ranges, &names).await?);
        let machines = Machines::new(Kind::Namespace).map_err(failed)?;
        let data = config.paths.helper_data();
        let spec = HelperSpec {
            id: format!("arca-helper-{}", &system_id.get(..8).unwrap_or(system_id)),
            root: config.helper_root.clone(),
            data_directory: data.join("state"),
            socket_directory: config.paths.helper_sockets(),
            state_directory: data.join("machine"),
            guest_directory: config.guest_directory.clone(),
            environment: Vec::new(),
            log_level: config.log_level.clone(),
            ready_timeout: READY,
        };
        let publish = config.publish;
        Ok(Self { machines, spec, store, ranges, names, uplink, publish, running: Mutex::new(None) })
    }

    /// Takes hold of a machine that runs, without launching one; for ending it.
    ///
    /// # Errors
    /// If its record cannot be read.
    pub async fn adopt(&self) -> Result<()> {
        match self.machines.adopt(&self.spec.state_directory).await.map_err(failed)? {
            Adoption::Running(machine) | Adoption::Unresponsive(machine) => *self.running.lock().await = Some(machine),
            Adoption::Gone(Some(record)) => self.machines.sweep(&record).await.map_err(failed)?,
            Adoption::Gone(None) => {}
        }
        Ok(())
    }

    async fn adopt_or_launch(&self) -> Result<(Machine, bool)> {
        match self.machines.adopt(&self.spec.state_directory).await.map_err(failed)? {
            Adoption::Running(machine) => return Ok((machine, true)),
            // Its supervisor may just be restarting the agent; but then the machine would have answered soon, and
            // a helper nobody can reach is worth less than a second without one.
            Adoption::Unresponsive(machine) => machine.destroy(GRACE).await.map_err(failed)?,
            Adoption::Gone(Some(record)) => self.machines.sweep(&record).await.map_err(failed)?,
            Adoption::Gone(None) => {}
        }
        if !self.spec.root.is_dir() {
            return Err(Error::Failed(format!(
                "no helper image at {} (build it with `./dev helper-image`, or set helperRoot)",
                self.spec.root.display()
            )));
        }
        Ok((self.machines.launch_helper(&self.spec).await.map_err(failed)?, false))
    }

    /// Makes the uplink; one that another engine took at the same moment is changed for the next free one.
    async fn connect(&self, machine: &Machine, adopted: bool) -> Result<()> {
        let netns = Self::netns(machine)?;
        for _ in 0..CHOICES {
            if host::connect(&self.names, self.uplink(), &netns, adopted).await? {
                return Ok(());
            }
            let next = Uplink::load(&self.store, self.ranges, &self.names).await?;
            tracing::warn!(taken = %self.uplink().net(), next = %next.net(), "the uplink network is another engine's now");
            *self.uplink.lock().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Err(Error::Failed(format!("no uplink network of {} could be claimed {CHOICES} times in a row", self.ranges.v4)))
    }

    fn netns(machine: &Machine) -> Result<PathBuf> {
        machine.netns_path().ok_or_else(|| Error::Failed("the helper machine has no network namespace here".into()))
    }
}

/// arca-machine's errors carry their cause as a source; the text should not lose it.
#[allow(clippy::needless_pass_by_value, reason = "used as a `map_err` function")]
fn failed(error: arca_machine::MachineError) -> Error {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(&error);
    while let Some(source) = cause {
        text = format!("{text}: {source}");
        cause = source.source();
    }
    Error::Failed(text)
}

#[async_trait]
impl Boot for HelperMachine {
    async fn up(&self) -> Result<Booted> {
        let (machine, adopted) = self.adopt_or_launch().await?;
        if let Err(error) = self.connect(&machine, adopted).await {
            if !adopted && let Err(worse) = machine.destroy(GRACE).await {
                tracing::warn!(error = %failed(worse), "helper machine without uplink could not be ended");
            }
            return Err(error);
        }
        let booted = Booted { address: machine.address().clone(), adopted };
        *self.running.lock().await = Some(machine);
        Ok(booted)
    }

    async fn ended(&self) {
        let machine = self.running.lock().await.clone();
        match machine {
            Some(machine) => machine.wait_exit().await,
            None => std::future::pending().await,
        }
    }

    async fn down(&self) -> Result<()> {
        let machine = self.running.lock().await.take();
        let ended = match machine {
            Some(machine) => machine.destroy(GRACE).await.map_err(failed),
            None => Ok(()),
        };
        host::disconnect(&self.names).await.and(ended)
    }

    fn uplink(&self) -> Uplink {
        *self.uplink.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn is_there(&self) -> bool {
        let found = self.machines.adopt(&self.spec.state_directory).await;
        matches!(found, Ok(Adoption::Running(_) | Adoption::Unresponsive(_)))
    }

    fn carries_clients(&self) -> Option<Address> {
        (self.publish == PublishKind::Helper).then(|| Address::Sockets(self.spec.socket_directory.clone()))
    }

    fn uplink_interface(&self) -> Option<String> {
        self.is_on_this_kernel().then(|| self.names.interface.clone())
    }

    fn is_on_this_kernel(&self) -> bool {
        cfg!(target_os = "linux")
    }
}
