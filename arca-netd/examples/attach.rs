// SPDX-License-Identifier: Apache-2.0
//! Measures attach and detach of a running engine: `attach NETD_SOCKET MACHINE_SOCKETS COUNT`.
//! With a count of 0 it attaches once and leaves it so. Makes a network of its own and removes it again; publishes one port on the way.

#![allow(clippy::print_stdout, reason = "a report is what it is for")]

use std::{path::Path, time::Instant};

use anyhow::Context as _;
use arca_proto::{
    dial::{self, Address},
    netd::v1::{self as proto, netd_client::NetdClient},
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [socket, machine, count] = arguments.as_slice() else {
        anyhow::bail!("attach NETD_SOCKET MACHINE_SOCKETS COUNT")
    };
    let mut client = NetdClient::new(dial::unix_channel(Path::new(socket)));
    let name = format!("measure-{}", std::process::id());
    let started = Instant::now();
    let request = proto::CreateNetworkRequest { name: name.clone(), ..Default::default() };
    client.create_network(request).await.context("create a network")?;
    println!("network create {:?}", started.elapsed());
    let workload = "ab".repeat(32);
    let attach = proto::AttachRequest {
        network: name.clone(),
        machine_id: "measured".into(),
        machine: Some(Address::Sockets(machine.into()).into()),
        workload_id: workload.clone(),
        workload_name: "measured".into(),
        ..Default::default()
    };
    let count: usize = count.parse()?;
    if count == 0 {
        let endpoint = client.attach(attach).await.context("attach")?.into_inner();
        println!("{} is {}", endpoint.interface, endpoint.address_v4);
        return Ok(());
    }
    let (mut attaches, mut detaches) = (Vec::new(), Vec::new());
    for n in 0..count {
        let started = Instant::now();
        let endpoint = client.attach(attach.clone()).await.context("attach")?.into_inner();
        attaches.push(started.elapsed());
        if n == 0 {
            println!("{endpoint:#?}");
            let binding = proto::PortBinding { protocol: 1, container_port: 80, ..Default::default() };
            let publish = proto::PublishPortsRequest { workload_id: workload.clone(), bindings: vec![binding] };
            let started = Instant::now();
            let ports = client.publish_ports(publish).await.context("publish")?.into_inner().ports;
            println!("publish {:?} {ports:?}", started.elapsed());
        }
        let started = Instant::now();
        client
            .detach_workload(proto::DetachWorkloadRequest { workload_id: workload.clone() })
            .await
            .context("detach")?;
        detaches.push(started.elapsed());
    }
    for (what, times) in [("attach", &mut attaches), ("detach", &mut detaches)] {
        times.sort();
        println!("{what}: p50 {:?}, slowest {:?}", times[times.len() / 2], times[times.len() - 1]);
    }
    client.remove_network(proto::RemoveNetworkRequest { name_or_id: name }).await.context("remove the network")?;
    println!("{:#?}", client.get_status(proto::GetStatusRequest {}).await?.into_inner());
    Ok(())
}
