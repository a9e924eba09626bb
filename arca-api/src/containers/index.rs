// SPDX-License-Identifier: Apache-2.0
//! Which containers there are: by id, by name, by unique id prefix. Names are reserved here before anything is made.

use std::{
    collections::BTreeMap,
    sync::{Arc, PoisonError, RwLock},
};

use crate::{
    containers::Container,
    http::{ApiError, ApiResult},
};

#[derive(Debug, Default)]
struct Maps {
    by_id: BTreeMap<String, Arc<Container>>,
    /// Name to id; a name being created is here before its container is.
    by_name: BTreeMap<String, String>,
}

/// All containers.
#[derive(Debug, Default)]
pub struct Index(RwLock<Maps>);

impl Index {
    fn read<T>(&self, look: impl FnOnce(&Maps) -> T) -> T {
        look(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }

    fn write<T>(&self, edit: impl FnOnce(&mut Maps) -> T) -> T {
        edit(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Full id, then full name, then unique id prefix.
    ///
    /// # Errors
    /// 404 `No such container: …`; 400 for an ambiguous prefix.
    pub fn find(&self, name_or_id: &str) -> ApiResult<Arc<Container>> {
        let missing = || ApiError::not_found(format!("No such container: {name_or_id}"));
        self.read(|maps| {
            let name = name_or_id.strip_prefix('/').unwrap_or(name_or_id);
            let id = maps.by_name.get(name);
            if let Some(found) = maps.by_id.get(name_or_id).or_else(|| maps.by_id.get(id?)) {
                return Ok(found.clone());
            }
            // The name that a container has by being linked to: PARENT/ALIAS.
            let linked = name.split_once('/').and_then(|(parent, alias)| {
                let parent = maps.by_id.get(maps.by_name.get(parent)?)?;
                maps.by_id.get(&parent.with(|record| record.links.get(alias).map(|link| link.id.clone()))?)
            });
            if let Some(found) = linked {
                return Ok(found.clone());
            }
            if name_or_id.is_empty() {
                return Err(missing());
            }
            let mut prefixed =
                maps.by_id.range(name_or_id.to_owned()..).take_while(|(id, _)| id.starts_with(name_or_id));
            match (prefixed.next(), prefixed.next()) {
                (Some((_, found)), None) => Ok(found.clone()),
                (Some(_), Some(_)) => {
                    Err(ApiError::bad_request(format!("Multiple IDs found with provided prefix: {name_or_id}")))
                }
                (None, _) => Err(missing()),
            }
        })
    }

    /// Reserves `name` for `id`.
    ///
    /// # Errors
    /// 409 with Docker's text.
    pub fn reserve(&self, name: &str, id: &str) -> ApiResult<()> {
        self.write(|maps| match maps.by_name.get(name) {
            Some(owner) if owner != id => Err(ApiError::conflict(format!(
                "Conflict. The container name \"/{name}\" is already in use by container \"{owner}\". You have to remove (or rename) that container to be able to reuse that name."
            ))),
            _ => {
                maps.by_name.insert(name.to_owned(), id.to_owned());
                Ok(())
            }
        })
    }

    /// Gives a reserved name back.
    pub fn release(&self, name: &str) {
        self.write(|maps| maps.by_name.remove(name));
    }

    /// Adds a container whose name is reserved.
    pub fn insert(&self, container: Arc<Container>) {
        self.write(|maps| maps.by_id.insert(container.id.clone(), container));
    }

    /// Forgets a container and its name.
    pub fn remove(&self, id: &str) {
        self.write(|maps| {
            maps.by_id.remove(id);
            maps.by_name.retain(|_, owner| owner != id);
        });
    }

    /// Every container, newest first.
    pub fn all(&self) -> Vec<Arc<Container>> {
        let mut all: Vec<_> = self.read(|maps| maps.by_id.values().cloned().collect());
        all.sort_by_key(|container| std::cmp::Reverse(container.with(|record| record.created)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containers::Record;

    fn add(index: &Index, id: &str, name: &str) {
        index.reserve(name, id).expect("free name");
        index.insert(Container::new(Record { id: id.into(), name: name.into(), ..Record::default() }));
    }

    #[test]
    fn lookup_order_and_faults() {
        let index = Index::default();
        add(&index, "abc1", "web");
        add(&index, "abc2", "abc1x");
        assert_eq!(index.find("abc1").expect("id").id, "abc1");
        assert_eq!(index.find("/web").expect("name").id, "abc1");
        assert_eq!(index.find("abc2").expect("id").id, "abc2");
        assert_eq!(index.find("ab").expect_err("two").message, "Multiple IDs found with provided prefix: ab");
        assert_eq!(index.find("zz").expect_err("none").message, "No such container: zz");
        assert_eq!(index.find("").expect_err("none").status.as_u16(), 404);
        let taken = index.reserve("web", "new").expect_err("taken");
        assert_eq!(taken.status.as_u16(), 409);
        assert!(
            taken.message.starts_with("Conflict. The container name \"/web\" is already in use by container \"abc1\".")
        );
        index.remove("abc1");
        assert!(index.reserve("web", "new").is_ok());
    }
}
