// SPDX-License-Identifier: Apache-2.0
//! The one interface that a virtual machine on a native network has from its boot on. arca-tapfwd, which knows how, is run for
//! it once; it does not stay.

use std::{
    fs::File,
    path::PathBuf,
    process::{Command, Stdio},
    sync::Arc,
};

use arca_proto::init::v1::ConfigureInterfaceRequest;

use crate::{error::InitError, reaper::Reaper};

/// Runs the network's program.
#[derive(Clone, Debug)]
pub(crate) struct Interface {
    /// None in a namespace machine, whose interfaces are set up from outside.
    pub(crate) program: Option<PathBuf>,
    /// Where its complaint is written.
    pub(crate) run: PathBuf,
    pub(crate) reaper: Arc<Reaper>,
}

impl Interface {
    pub(crate) async fn configure(&self, wanted: ConfigureInterfaceRequest) -> Result<(), InitError> {
        let Some(program) = &self.program else {
            return Err(InitError::Runtime("the interfaces of this machine are set up from outside".into()));
        };
        let log = self.run.join("interface.log");
        let complaint = File::create(&log).map_err(InitError::file("write", &log))?;
        let mut command = Command::new(program);
        command.arg("interface").arg(format!("--name={}", wanted.interface)).arg(format!("--mac={}", wanted.mac));
        command.arg(format!("--mtu={}", wanted.mtu));
        command.args(wanted.addresses.iter().map(|address| format!("--address={address}")));
        command.args(wanted.gateways.iter().map(|gateway| format!("--gateway={gateway}")));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(complaint);
        let ended = self.reaper.run(&mut command).await;
        let ended = ended.map_err(|source| InitError::RuntimeMissing { program: program.clone(), source })?;
        if ended.code == 0 {
            return Ok(());
        }
        let said = std::fs::read_to_string(&log).unwrap_or_default();
        let line = said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("no reason given");
        Err(InitError::Runtime(format!("{} {line}", program.display())))
    }
}
