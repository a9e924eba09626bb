// SPDX-License-Identifier: Apache-2.0
//! Everything the endpoints share, made once by [`crate::app`].

use std::{
    collections::BTreeSet,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
};

use arca_daemon::paths::Paths;
use tokio::sync::RwLock;

use crate::{
    containers::{Container, exec::Execs, index::Index},
    events::Bus,
    http::{ApiError, ApiResult},
    images,
    machines::Boot,
    netd::Netd,
    store::Store,
    tenants::Tenants,
    volumes::Volumes,
};

/// The engine's parts.
#[derive(Debug)]
pub struct Engine {
    /// Files and sockets.
    pub paths: Paths,
    /// Durable documents.
    pub store: Store,
    /// Images.
    pub images: images::Store,
    /// Named and anonymous volumes.
    pub volumes: Volumes,
    /// Containers by id and name.
    pub containers: Index,
    /// Processes started by exec.
    pub execs: Execs,
    /// Networks, endpoints, published ports.
    pub netd: Netd,
    /// Machines.
    pub machines: Arc<dyn Boot>,
    /// Who lives in them.
    pub tenants: Tenants,
    /// Events.
    pub events: Bus,
    /// Cgroups of workloads stand below this: "arca/<engine>".
    pub cgroup_parent: String,
    /// The program that `--init` puts before a command, on this machine.
    pub init_program: PathBuf,
    /// Stable identity of this engine (`info`).
    pub id: String,
    /// Held while hosts files of native networks are brought up to date.
    pub hosts: tokio::sync::Mutex<()>,
    /// Workloads that arca-netd should know endpoints of.
    pub attached: Mutex<BTreeSet<String>>,
    /// Held alone while arca-netd is given the full set of `attached`: who is not in it loses its endpoints.
    pub full_set: RwLock<()>,
}

impl Engine {
    /// The container that `name_or_id` means.
    ///
    /// # Errors
    /// 404, or 400 if a prefix is ambiguous.
    pub fn container(&self, name_or_id: &str) -> ApiResult<Arc<Container>> {
        self.containers.find(name_or_id)
    }

    /// Folder of one container.
    pub fn folder(&self, id: &str) -> PathBuf {
        self.paths.container(id)
    }

    /// Ids of the workloads that should have endpoints now.
    pub fn attached(&self) -> Vec<String> {
        self.attached.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }

    /// Says that a workload will have endpoints, before its first attach. Waits while a full set without it is on its
    /// way: its endpoints would be removed as they are made.
    pub async fn will_attach(&self, id: &str) {
        let _no_full_set = self.full_set.read().await;
        self.set_attached(id, true);
    }

    /// Says whether a workload has endpoints: set at adoption, cleared after the last detach.
    pub fn set_attached(&self, id: &str, attached: bool) {
        let mut set = self.attached.lock().unwrap_or_else(PoisonError::into_inner);
        if attached {
            set.insert(id.to_owned());
        } else {
            set.remove(id);
        }
    }

    /// Runs blocking file work away from the runtime's threads.
    ///
    /// # Errors
    /// What `work` returns.
    pub async fn blocking<T: Send + 'static>(work: impl FnOnce() -> ApiResult<T> + Send + 'static) -> ApiResult<T> {
        tokio::task::spawn_blocking(work).await.map_err(|error| ApiError::internal(error.to_string()))?
    }
}

/// Runs a state change in a task of its own, so that a client that leaves does not cut it short.
///
/// # Errors
/// What `change` returns.
pub async fn detached<T: Send + 'static>(change: impl Future<Output = ApiResult<T>> + Send + 'static) -> ApiResult<T> {
    tokio::spawn(change).await.map_err(|error| ApiError::internal(error.to_string()))?
}
