// SPDX-License-Identifier: Apache-2.0
//! Locks by key, in a fixed number of shards: two keys may share one, which costs a wait and never a deadlock,
//! because nobody holds two of a kind.

use std::{
    hash::{BuildHasher as _, Hash, RandomState},
    marker::PhantomData,
};

use tokio::sync::{RwLock, RwLockReadGuard, RwLockWriteGuard};

const SHARDS: usize = 256;

/// Locks for keys of one type.
#[derive(Debug)]
pub(super) struct Locks<K> {
    shards: Vec<RwLock<()>>,
    hasher: RandomState,
    keys: PhantomData<fn(K)>,
}

impl<K> Default for Locks<K> {
    fn default() -> Self {
        Self {
            shards: std::iter::repeat_with(|| RwLock::new(())).take(SHARDS).collect(),
            hasher: RandomState::new(),
            keys: PhantomData,
        }
    }
}

impl<K: Hash> Locks<K> {
    fn shard(&self, key: &K) -> &RwLock<()> {
        let hash = self.hasher.hash_one(key);
        &self.shards[usize::try_from(hash % SHARDS as u64).unwrap_or(0)]
    }

    /// Beside others who share it.
    pub(super) async fn shared(&self, key: &K) -> RwLockReadGuard<'_, ()> {
        self.shard(key).read().await
    }

    /// Alone.
    pub(super) async fn alone(&self, key: &K) -> RwLockWriteGuard<'_, ()> {
        self.shard(key).write().await
    }
}
