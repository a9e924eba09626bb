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

/// Options that the local driver knows.
const OPTIONS: &[&str] = &["device", "o", "size", "type"];

impl Volume {
    /// The folder of this machine that the volume is (`type=none`, `o=bind`), if it is not one of its own.
    ///
    /// # Errors
    /// 400 with Docker's text for options that make no sense; 501 for what would have to be mounted.
    pub fn device(&self) -> ApiResult<Option<PathBuf>> {
        if self.options.is_empty() {
            return Ok(None);
        }
        if let Some(option) = self.options.keys().find(|option| !OPTIONS.contains(&option.as_str())) {
            return Err(ApiError::bad_request(format!("invalid option: {option:?}")));
        }
        let option = |name: &str| self.options.get(name).map(String::as_str).unwrap_or_default();
        if self.options.contains_key("size") && self.options.len() == 1 {
            return Err(ApiError::bad_request("quota size requested but no quota support"));
        }
        for name in ["device", "type"] {
            if option(name).is_empty() {
                return Err(ApiError::bad_request(format!("missing required option: {name:?}")));
            }
        }
        let words: Vec<&str> = option("o").split(',').filter(|word| !word.is_empty()).collect();
        let bind = words.iter().any(|word| matches!(*word, "bind" | "rbind"));
        let known = |word: &&str| matches!(*word, "bind" | "rbind" | "rw" | "ro");
        if !bind || !words.iter().all(known) {
            let text = format!(
                "volumes of type {} with options \"{}\" are not implemented by Arca yet: mount it on the host and use its path \
                 (type=none, o=bind), or --mount type=tmpfs",
                option("type"),
                option("o")
            );
            return Err(ApiError::new(axum::http::StatusCode::NOT_IMPLEMENTED, text));
        }
        Ok(Some(PathBuf::from(option("device"))))
    }

    /// `o=bind,ro`
    pub fn is_read_only(&self) -> bool {
        self.options.get("o").is_some_and(|words| words.split(',').any(|word| word == "ro"))
    }
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
        match volume.device().map_err(|error| error.within(&format!("create {name}")))? {
            None => fs::create_dir_all(self.data(&name))?,
            // Whoever uses the volume follows the link; who removes it does not.
            Some(device) => {
                fs::create_dir_all(self.root.join(&name))?;
                let _ = fs::remove_file(self.data(&name));
                std::os::unix::fs::symlink(device, self.data(&name))?;
            }
        }
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
