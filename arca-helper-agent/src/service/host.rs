// SPDX-License-Identifier: Apache-2.0
//! The real helper machine behind [`Machine`].

use std::collections::BTreeSet;

use arca_proto::ports::LinkNumber;
use arca_proto::{helper::v1 as proto, tap::v1 as tap};
use tokio::sync::watch;

use crate::nb::model::Config;
use crate::neighbours::Known;
use crate::ports::{PortSpec, PortStatus, Ports};
use crate::status::Source;
use crate::uplink::{Side, Subnet, Uplink, UplinkConfig};
use crate::vswitch::Installed;

use super::machine::{Failure, Machine};

/// Ports, uplink and status of this machine.
pub(super) struct Host {
    pub(super) ports: Ports,
    pub(super) uplink: Uplink,
    pub(super) status: Source,
}

impl Machine for Host {
    async fn configure(&self, config: &Config) -> Result<String, Failure> {
        let wanted = UplinkConfig {
            system_id: config.system_id.clone(),
            interface: config.uplink_interface.clone(),
            v4: Side {
                router: config.router.address.into(),
                next_hop: config.next_hop.into(),
                resolver: (config.resolver.address.into(), config.resolver.subnet().prefix()),
            },
            v6: config.v6.map(|v6| Side {
                router: v6.router.address.into(),
                next_hop: v6.next_hop.into(),
                resolver: (v6.resolver.address.into(), v6.resolver.prefix),
            }),
        };
        Ok(self.uplink.configure(wanted).await?.to_string())
    }

    fn neighbours(&self) -> watch::Receiver<Known> {
        self.uplink.neighbours()
    }

    fn installed(&self) -> watch::Receiver<Installed> {
        self.uplink.installed()
    }

    async fn routes(&self, subnets: &BTreeSet<Subnet>) -> Result<(), Failure> {
        Ok(self.uplink.set_subnets(subnets.iter().copied().collect()).await?)
    }

    async fn ensure(&self, ports: Vec<PortSpec>) -> Vec<(LinkNumber, Result<(), Failure>)> {
        let results = self.ports.ensure(ports).await;
        results.into_iter().map(|(link, result)| (link, result.map_err(Into::into))).collect()
    }

    async fn remove(&self, links: &[LinkNumber]) -> Result<(), Failure> {
        Ok(self.ports.remove(links).await?)
    }

    async fn links(&self) -> Vec<LinkNumber> {
        self.ports.links().await
    }

    async fn list(&self) -> Vec<proto::Port> {
        self.ports.list().await.into_iter().map(port).collect()
    }

    async fn status(&self) -> proto::GetStatusResponse {
        let s = self.status.collect().await;
        let process = |p: crate::status::Process| proto::ProcessStatus {
            name: p.name,
            pid: p.pid,
            restarts: p.restarts,
            resident_bytes: p.resident_bytes,
        };
        let database = |d: crate::status::DatabaseState| proto::DatabaseStatus {
            name: d.name,
            connected: d.connected,
            schema_version: d.schema_version,
        };
        proto::GetStatusResponse {
            version: s.version,
            system_id: s.system_id,
            datapath: s.datapath,
            ovs_version: s.ovs_version,
            ovn_version: s.ovn_version,
            processes: s.processes.into_iter().map(process).collect(),
            databases: s.databases.into_iter().map(database).collect(),
            faults: s.faults,
            ..Default::default()
        }
    }
}

fn port(status: PortStatus) -> proto::Port {
    proto::Port {
        link: status.spec.link.get(),
        interface: status.spec.interface(),
        endpoint_id: status.spec.endpoint_id,
        linked: status.linked,
        epoch: status.epoch,
        offloads: status.offloads.bits(),
        to_stream: Some(counters(status.to_stream)),
        from_stream: Some(counters(status.from_stream)),
        reconnects: status.reconnects,
    }
}

fn counters(c: arca_link::Counters) -> tap::Counters {
    tap::Counters { frames: c.frames, bytes: c.bytes, drops: c.drops }
}
