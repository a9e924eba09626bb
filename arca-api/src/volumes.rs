// SPDX-License-Identifier: Apache-2.0
//! Volumes: folders below `data/volumes`, named by the user or, for anonymous ones, by 64 hex digits.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use serde::{Deserialize, Serialize};

use crate::{
    docker::time::now,
    http::{ApiError, ApiResult},
    store::Store,
};

/// One volume.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[allow(missing_docs)]
pub struct Volume {
    pub name: String,
    /// Nanoseconds since the Unix epoch.
    pub created: i64,
    pub labels: BTreeMap<String, String>,
    pub options: BTreeMap<String, String>,
    /// Made for `VOLUME` or `-v /path`; goes with its container.
    pub anonymous: bool,
}

/// All volumes.
#[derive(Debug)]
pub struct Volumes {
    root: PathBuf,
    store: Store,
    volumes: Mutex<BTreeMap<String, Volume>>,
}

impl Volumes {
    /// Volumes below `root`, with those that the database knew.
    pub fn new(root: &Path, store: Store, known: Vec<Volume>) -> Self {
        let volumes = known.into_iter().map(|volume| (volume.name.clone(), volume)).collect();
        Self { root: root.to_owned(), store, volumes: Mutex::new(volumes) }
    }

    /// Folder that containers see.
    pub fn data(&self, name: &str) -> PathBuf {
        self.root.join(name).join("_data")
    }

    /// The volume called `name`.
    ///
    /// # Errors
    /// 404 `get NAME: no such volume`.
    pub fn get(&self, name: &str) -> ApiResult<Volume> {
        let volumes = self.volumes.lock().unwrap_or_else(PoisonError::into_inner);
        volumes.get(name).cloned().ok_or_else(|| ApiError::not_found(format!("get {name}: no such volume")))
    }

    /// Every volume, by name.
    pub fn all(&self) -> Vec<Volume> {
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect()
    }

    /// Makes a volume, or gives the one that has the name. The flag says whether it is new.
    ///
    /// # Errors
    /// 400 for a bad name, 500 for the disk's faults.
    pub async fn create(&self, volume: Volume) -> ApiResult<(Volume, bool)> {
        let name = volume.name.clone();
        let valid = name.len() > 1
            && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
        if !valid {
            return Err(ApiError::bad_request(format!(
                "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
            )));
        }
        if let Ok(known) = self.get(&name) {
            return Ok((known, false));
        }
        let volume = Volume { created: now(), ..volume };
        fs::create_dir_all(self.data(&name))?;
        let json = serde_json::to_string(&volume).map_err(|error| ApiError::internal(error.to_string()))?;
        self.store.put("volume", &name, json).await.map_err(|error| ApiError::internal(error.to_string()))?;
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).insert(name, volume.clone());
        Ok((volume, true))
    }

    /// Removes a volume that nothing uses.
    ///
    /// # Errors
    /// 404; 500 for the disk's faults.
    pub async fn remove(&self, name: &str) -> ApiResult<()> {
        self.get(name)?;
        self.store.delete("volume", name).await.map_err(|error| ApiError::internal(error.to_string()))?;
        self.volumes.lock().unwrap_or_else(PoisonError::into_inner).remove(name);
        match fs::remove_dir_all(self.root.join(name)) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error.into()),
            _ => Ok(()),
        }
    }
}
