// SPDX-License-Identifier: Apache-2.0
//! Platforms without a native switch of ours.

use std::{collections::BTreeSet, path::PathBuf};

use super::{
    KeeperOptions,
    wanted::{Names, Plug, Segment},
};
use crate::{
    error::{Error, Result},
    model::WorkloadId,
};

/// What is on the host with this engine's names.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) segments: BTreeSet<String>,
    pub(super) ports: BTreeSet<String>,
}

#[derive(Debug)]
pub(super) struct Switch;

fn absent() -> Error {
    Error::Unsupported("the vmnet backend is not supported on this platform; use the ovs backend".into())
}

/// # Errors
/// Always: networks here outlive the process that made them.
pub(super) fn keeper(_options: &KeeperOptions) -> Result<()> {
    Err(Error::Unsupported("networks need no keeper on this platform".into()))
}

impl Switch {
    pub(super) fn new(_names: Names, _marker: PathBuf) -> Self {
        Self
    }

    pub(super) fn is_used(&self) -> bool {
        false
    }

    pub(super) fn wire(&self, _segment: &str, _workload: &WorkloadId) -> String {
        String::new()
    }

    pub(super) async fn found(&self) -> Result<Found> {
        Ok(Found::default())
    }

    pub(super) async fn put(&self, _segment: &Segment) -> Result<()> {
        Err(absent())
    }

    pub(super) async fn remove(&self, _name: &str) -> Result<()> {
        Ok(())
    }

    pub(super) async fn rules(&self, _segments: &[Segment]) -> Result<()> {
        Ok(())
    }

    pub(super) async fn plug(&self, _plug: &Plug) -> Result<(), (&'static str, Error)> {
        Err(("segment", absent()))
    }

    pub(super) async fn join(&self, _plug: &Plug) -> Result<(), (&'static str, Error)> {
        Ok(())
    }

    pub(super) async fn unplug(&self, _port: &str) -> Result<()> {
        Ok(())
    }
}
