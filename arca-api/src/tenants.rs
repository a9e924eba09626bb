// SPDX-License-Identifier: Apache-2.0
//! Which containers live in which machine. A container started with `--network container:OTHER` lives in OTHER's machine;
//! a machine ends with the last container in it, whichever that is.
//!
//! ```text
//!  open ──> {owner} ──join──> {owner, guest} ──leave──> {guest} ──leave──> {} (being ended) ──ended──> (gone)
//! ```

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Mutex, MutexGuard, PoisonError},
};

/// Machines and their containers. A machine with nobody in it is being ended.
#[derive(Debug, Default)]
pub struct Tenants(Mutex<BTreeMap<String, BTreeSet<String>>>);

impl Tenants {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, BTreeSet<String>>> {
        // Every change is one insert or remove.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Id of a machine about to be made for `container`: the container's own id, but while a machine of that id lives on
    /// for the guests of an earlier run, which keep it as it is.
    pub fn open(&self, container: &str) -> String {
        let mut machines = self.lock();
        let mut id = container.to_owned();
        while machines.contains_key(&id) {
            id = crate::containers::names::new_id();
        }
        machines.insert(id.clone(), BTreeSet::from([container.to_owned()]));
        id
    }

    /// Takes note of a machine that an earlier arca-api made.
    pub fn adopt(&self, machine: &str, container: &str) {
        self.lock().entry(machine.to_owned()).or_default().insert(container.to_owned());
    }

    /// A further container moves in. `false`: the machine is being ended.
    #[must_use]
    pub fn join(&self, machine: &str, container: &str) -> bool {
        match self.lock().get_mut(machine) {
            Some(tenants) if !tenants.is_empty() => {
                tenants.insert(container.to_owned());
                true
            }
            _ => false,
        }
    }

    /// A container moves out. `true`: it was the last, and the caller ends the machine, then says so by [`Self::ended`].
    #[must_use]
    pub fn leave(&self, machine: &str, container: &str) -> bool {
        let mut machines = self.lock();
        let Some(tenants) = machines.get_mut(machine) else { return true };
        tenants.remove(container);
        tenants.is_empty()
    }

    /// The machine is gone; its id may be used again.
    pub fn ended(&self, machine: &str) {
        self.lock().remove(machine);
    }

    /// Whether somebody else lives there too.
    pub fn shared(&self, machine: &str) -> bool {
        self.lock().get(machine).is_some_and(|tenants| tenants.len() > 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_ends_with_the_last_of_its_containers() {
        let tenants = Tenants::default();
        assert_eq!(tenants.open("a"), "a");
        assert!(tenants.join("a", "b") && tenants.shared("a"));
        assert!(!tenants.leave("a", "a"), "b is still there");
        assert_ne!(tenants.open("a"), "a", "the owner's next machine is another one");
        assert!(tenants.leave("a", "b"));
        assert!(!tenants.join("a", "c"), "it is being ended");
        assert_ne!(tenants.open("a"), "a", "its name is not free yet");
        tenants.ended("a");
        assert_eq!(tenants.open("a"), "a");
        assert!(!tenants.join("nobody", "c"));
    }
}
