// SPDX-License-Identifier: Apache-2.0
//! The guest's end of a virtual machine's interface: its arca-init sets it up.

use std::time::Duration;

use arca_proto::{
    dial,
    init::v1::{ConfigureInterfaceRequest, init_client::InitClient},
    ports,
};

use crate::{
    backend::vmnet::wanted::Plug,
    error::{Error, Result},
};

/// A guest that has booted answers in milliseconds, one that is emulated on a busy host in a second or two.
const ANSWERS: Duration = Duration::from_secs(20);

/// Name, hardware address, addresses and routes; all set when this returns.
pub(super) async fn configure(plug: &Plug) -> Result<()> {
    let mut init = InitClient::new(dial::channel(&plug.machine, ports::INIT));
    let request = ConfigureInterfaceRequest {
        interface: plug.interface.clone(),
        mac: plug.mac.to_string(),
        mtu: plug.mtu,
        addresses: plug.addresses.iter().map(ToString::to_string).collect(),
        gateways: plug.gateways.iter().map(ToString::to_string).collect(),
    };
    match tokio::time::timeout(ANSWERS, init.configure_interface(request)).await {
        Ok(Ok(_)) => Ok(()),
        Ok(Err(status)) => Err(Error::Failed(format!("the machine cannot set up its interface: {}", status.message()))),
        Err(_) => Err(Error::Failed("the machine does not answer".into())),
    }
}
