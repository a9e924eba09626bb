// SPDX-License-Identifier: Apache-2.0
//! The real helper machine, through arca-machine.

use std::{
    path::PathBuf,
    sync::{Mutex as Cell, PoisonError},
    time::Duration,
};

use arca_daemon::config::{Config, MachineKind, PublishKind, UplinkKind};
use arca_machine::{Adoption, Card, HelperSpec, Kind, Machine, Machines, VmFiles};
use arca_proto::dial::Address;
use async_trait::async_trait;
use ipnet::{Ipv4Net, Ipv6Net};
use tokio::sync::Mutex;

use super::{
    Boot, Booted, Uplink, host,
    uplink::{self, Names, Ranges},
};
use crate::{
    direct::Plan,
    error::{Error, Result},
    store::Store,
};

/// How long the helper may take to stop by itself.
const GRACE: Duration = Duration::from_secs(5);
/// Uplink networks tried in one start: as many engines may start at the same moment.
const CHOICES: u32 = 8;
/// From spawn to READY.
const READY: Duration = Duration::from_secs(30);
/// As above for a virtual machine, whose processor may be an emulated one on a busy host.
const VM_READY: Duration = Duration::from_secs(120);
/// The one network card of a virtual machine.
const CARD: &str = "eth0";

/// What the uplink is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wire {
    /// A veth pair into the helper's network namespace.
    Veth,
    /// A TAP interface between the host and the helper's network card.
    Tap,
    /// The hypervisor's user-mode network: the host has no interface, route or rule for it.
    User,
}

/// Launches, adopts and ends the helper machine.
#[derive(Debug)]
pub struct HelperMachine {
    machines: Machines,
    kind: Kind,
    wire: Wire,
    spec: HelperSpec,
    store: Store,
    /// Where uplink networks come from.
    ranges: Ranges,
    names: Names,
    uplink: Cell<Uplink>,
    publish: PublishKind,
    running: Mutex<Option<Machine>>,
    /// What the host's routes and rules are, while there is an uplink: none inside where that is not known.
    settled: Mutex<Option<Option<Plan>>>,
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
        let kind = kind(config);
        let wire = match (kind, config.uplink) {
            (Kind::Namespace, _) => Wire::Veth,
            (Kind::Vm, UplinkKind::Tap) => Wire::Tap,
            (Kind::Vm, UplinkKind::User) => Wire::User,
            (Kind::Vm, UplinkKind::Auto) if cfg!(target_os = "linux") && nix::unistd::geteuid().is_root() => Wire::Tap,
            (Kind::Vm, UplinkKind::Auto) => Wire::User,
        };
        let machines = match kind {
            Kind::Namespace => Machines::new(kind),
            Kind::Vm => Machines::virtual_machines(vm_files(config)),
        };
        let machines = machines.map_err(failed)?;
        let data = config.paths.helper_data();
        let spec = HelperSpec {
            id: format!("arca-helper-{}", &system_id.get(..8).unwrap_or(system_id)),
            root: config.helper_root.clone(),
            data_directory: data.join("state"),
            socket_directory: config.paths.helper_sockets(),
            state_directory: data.join("machine"),
            guest_directory: config.guest_directory.clone(),
            card: Card::None,
            environment: Vec::new(),
            log_level: config.log_level.clone(),
            ready_timeout: if kind == Kind::Vm { VM_READY } else { READY },
        };
        let publish = config.publish;
        Ok(Self {
            machines,
            kind,
            wire,
            spec,
            store,
            ranges,
            names,
            uplink,
            publish,
            running: Mutex::new(None),
            settled: Mutex::new(None),
        })
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
            Adoption::Running(machine) if machine.kind() == self.kind => return Ok((machine, true)),
            Adoption::Running(machine) => {
                tracing::warn!("the helper machine is not of the kind that is configured now; it is made anew");
                machine.destroy(GRACE).await.map_err(failed)?;
            }
            // Its supervisor may just be restarting the agent; but then the machine would have answered soon, and
            // a helper nobody can reach is worth less than a second without one.
            Adoption::Unresponsive(machine) => machine.destroy(Duration::ZERO).await.map_err(failed)?,
            Adoption::Gone(Some(record)) => self.machines.sweep(&record).await.map_err(failed)?,
            Adoption::Gone(None) => {}
        }
        if self.kind == Kind::Namespace && !self.spec.root.is_dir() {
            return Err(Error::Failed(format!(
                "no helper image at {} (build it with `./dev helper-image`, or set helperRoot)",
                self.spec.root.display()
            )));
        }
        let uplink = self.uplink();
        let card = match self.wire {
            Wire::Veth => Card::None,
            Wire::Tap => {
                host::clear(&self.names).await?;
                Card::Tap { interface: self.names.interface.clone() }
            }
            Wire::User => Card::User { network: uplink.net().to_string(), host: uplink.host(), spare: uplink.spare() },
        };
        let spec = HelperSpec { card, ..self.spec.clone() };
        Ok((self.machines.launch_helper(&spec).await.map_err(failed)?, false))
    }

    /// Makes the uplink; one that another engine took at the same moment is changed for the next free one.
    async fn connect(&self, machine: &Machine, adopted: bool) -> Result<()> {
        let mut settled = self.settled.lock().await;
        *settled = None;
        if self.wire == Wire::User {
            return Ok(());
        }
        for _ in 0..CHOICES {
            let plan = Plan::of(&self.store.state());
            let connected = match self.wire {
                Wire::Veth => host::connect(&self.names, self.uplink(), &Self::netns(machine)?, adopted, &plan).await?,
                _ => host::connect_tap(&self.names, self.uplink(), &plan).await?,
            };
            if connected {
                *settled = Some(Some(plan));
                return Ok(());
            }
            let next = Uplink::load(&self.store, self.ranges, &self.names).await?;
            tracing::warn!(taken = %self.uplink().net(), next = %next.net(), "the uplink network is another engine's now");
            *self.uplink.lock().unwrap_or_else(PoisonError::into_inner) = next;
        }
        Err(Error::Failed(format!("no uplink network of {} could be claimed {CHOICES} times in a row", self.ranges.v4)))
    }

    async fn end(&self, grace: Duration) -> Result<()> {
        *self.settled.lock().await = None;
        let machine = self.running.lock().await.take();
        let ended = match machine {
            Some(machine) => machine.destroy(grace).await.map_err(failed),
            None => Ok(()),
        };
        host::disconnect(&self.names).await.and(ended)
    }

    fn netns(machine: &Machine) -> Result<PathBuf> {
        machine.netns_path().ok_or_else(|| Error::Failed("the helper machine has no network namespace here".into()))
    }
}

/// What the helper lives in.
fn kind(config: &Config) -> Kind {
    match config.machine {
        MachineKind::Namespace => Kind::Namespace,
        MachineKind::Vm => Kind::Vm,
        MachineKind::Auto if !cfg!(target_os = "linux") => Kind::Vm,
        // One that cannot be made is no default: everything of it must be there.
        MachineKind::Auto if config.kernel_path.is_file() && config.helper_image.is_file() => {
            if arca_machine::virtual_machines_are_fast() {
                Kind::Vm
            } else {
                Kind::Namespace
            }
        }
        MachineKind::Auto => Kind::Namespace,
    }
}

/// Where the parts of virtual machines lie.
fn vm_files(config: &Config) -> VmFiles {
    VmFiles {
        kernel: config.kernel_path.clone(),
        init_image: config.init_image.clone(),
        helper_image: config.helper_image.clone(),
        tools: Some(config.vm_tools.clone()).filter(|tools| tools.is_dir()),
        keeper: std::env::current_exe().unwrap_or_default().with_file_name("arca-vmm"),
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
        let forgetful = self.kind == Kind::Vm && !adopted;
        let booted = Booted { address: machine.address().clone(), adopted, forgetful };
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

    async fn settle_host(&self) -> Result<()> {
        let mut settled = self.settled.lock().await;
        let plan = Plan::of(&self.store.state());
        // Without an uplink there is nothing yet to be routed to.
        if settled.as_ref().is_none_or(|now| now.as_ref() == Some(&plan)) {
            return Ok(());
        }
        *settled = Some(None);
        host::settle(&self.names, self.uplink(), &plan).await?;
        *settled = Some(Some(plan));
        Ok(())
    }

    async fn down(&self) -> Result<()> {
        self.end(GRACE).await
    }

    async fn give_up(&self) -> Result<()> {
        self.end(Duration::ZERO).await
    }

    fn uplink(&self) -> Uplink {
        let uplink = *self.uplink.lock().unwrap_or_else(PoisonError::into_inner);
        // A user-mode network translates addresses of IPv4 only, as it is set up.
        if self.wire == Wire::User { uplink.v4_only() } else { uplink }
    }

    fn interface_inside(&self) -> &'static str {
        if self.wire == Wire::Veth { uplink::HELPER_INTERFACE } else { CARD }
    }

    fn uplink_is_loopback(&self) -> bool {
        self.wire == Wire::User
    }

    async fn is_there(&self) -> bool {
        let found = self.machines.adopt(&self.spec.state_directory).await;
        matches!(found, Ok(Adoption::Running(_) | Adoption::Unresponsive(_)))
    }

    fn carries_clients(&self) -> Option<Address> {
        let sockets = &self.spec.socket_directory;
        (self.publish == PublishKind::Helper || self.wire == Wire::User).then(|| match self.kind {
            Kind::Namespace => Address::Sockets(sockets.clone()),
            Kind::Vm => arca_machine::virtual_address(sockets),
        })
    }

    fn uplink_interface(&self) -> Option<String> {
        (self.wire != Wire::User).then(|| self.names.interface.clone())
    }

    fn is_on_this_kernel(&self) -> bool {
        self.kind == Kind::Namespace
    }
}
