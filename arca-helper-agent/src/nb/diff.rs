// SPDX-License-Identifier: Apache-2.0
//! The difference between the rows that are and the rows that should be, and its form as one OVSDB transaction.
//!
//! Rows without Arca's `external_ids` and references to them are never touched. Sets and maps are changed by their
//! differing elements only, so the cost of a transaction does not grow with the network.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::observed::{Columns, Observed, ObservedRow};
use super::rows::{ENGINE, Row, RowKey, Table};
use crate::ovsdb::{Atom, Condition, Mutator, Op, Uuid, Value};

/// How much the desired rows say about rows that are not among them.
#[derive(Clone, Copy, Debug)]
pub enum Scope<'a> {
    /// They are everything: other owned rows go, apart from those of these networks.
    Whole {
        /// Networks to leave as they are.
        except: &'a BTreeSet<String>,
    },
    /// Only part of the world has been declared yet: of the other owned rows only those of these objects go.
    Part {
        /// arca-id of withdrawn objects.
        removed: &'a BTreeSet<String>,
    },
}

/// One row's change.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// A new row.
    Insert {
        /// Its identity.
        key: RowKey,
        /// Its columns.
        columns: BTreeMap<&'static str, Value>,
    },
    /// Some columns differ.
    Update {
        /// Its identity.
        key: RowKey,
        /// The row.
        uuid: Uuid,
        /// Columns that get another value.
        set: BTreeMap<&'static str, Value>,
        /// Elements that go and come.
        elements: Vec<(&'static str, Mutator, Value)>,
    },
    /// The row goes.
    Delete {
        /// Its identity.
        key: RowKey,
        /// The row.
        uuid: Uuid,
    },
}

/// Counts of a list of changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// New rows.
    pub inserted: u64,
    /// Changed rows.
    pub updated: u64,
    /// Rows that go.
    pub deleted: u64,
}

impl Change {
    /// Identity of the row.
    pub fn key(&self) -> &RowKey {
        match self {
            Self::Insert { key, .. } | Self::Update { key, .. } | Self::Delete { key, .. } => key,
        }
    }
}

impl Counts {
    /// Adds another transaction's.
    pub fn add(&mut self, other: Self) {
        self.inserted += other.inserted;
        self.updated += other.updated;
        self.deleted += other.deleted;
    }

    /// Counts a list of changes.
    pub fn of(changes: &[Change]) -> Self {
        let mut counts = Self::default();
        for change in changes {
            *match change {
                Change::Insert { .. } => &mut counts.inserted,
                Change::Update { .. } => &mut counts.updated,
                Change::Delete { .. } => &mut counts.deleted,
            } += 1;
        }
        counts
    }
}

/// What must change for the owned rows to become the desired ones.
pub fn diff<R: Columns>(observed: &Observed<R>, desired: &[Arc<Row>], scope: Scope<'_>) -> Vec<Change> {
    let context = Context { observed, wanted: desired.iter().map(|row| &row.key).collect(), scope };
    let named = &observed.references;
    let mut changes = Vec::new();
    for (key, found) in observed.rows.iter().chain(observed.doubles.iter().map(|(k, f)| (k, f))) {
        let double = observed.rows.get(key).is_some_and(|kept| kept.uuid != found.uuid);
        if (double || !context.wanted.contains(key)) && context.may_remove(key, found) {
            changes.push(Change::Delete { key: key.clone(), uuid: found.uuid });
        }
    }
    // The same difference always makes the same transaction, whatever order a hash map has.
    changes.sort_by(|a, b| deleted(a).cmp(&deleted(b)));
    for row in desired {
        match observed.rows.get(&row.key) {
            None => {
                let columns = row.columns.iter().map(|(column, value)| (*column, resolve(value, named).into_owned()));
                changes.push(Change::Insert { key: row.key.clone(), columns: columns.collect() });
            }
            Some(found) => changes.extend(context.update(row, found, named)),
        }
    }
    changes
}

fn deleted(change: &Change) -> Option<(&RowKey, Uuid)> {
    match change {
        Change::Delete { key, uuid } => Some((key, *uuid)),
        _ => None,
    }
}

/// Sets that may hold more than one element: changed element by element.
fn is_multiple(column: &str) -> bool {
    matches!(
        column,
        "acls"
            | "addresses"
            | "dns_records"
            | "load_balancer"
            | "nat"
            | "policies"
            | "port_security"
            | "ports"
            | "static_routes"
    )
}

fn resolve<'a>(value: &'a Value, named: &BTreeMap<Atom, Uuid>) -> Cow<'a, Value> {
    match value {
        Value::Set(set) if set.iter().any(|a| matches!(a, Atom::Named(_))) => {
            let atom = |atom: &Atom| named.get(atom).map_or_else(|| atom.clone(), |uuid| Atom::Uuid(*uuid));
            Cow::Owned(Value::set(set.iter().map(atom)))
        }
        other => Cow::Borrowed(other),
    }
}

struct Context<'a, R> {
    observed: &'a Observed<R>,
    wanted: HashSet<&'a RowKey>,
    scope: Scope<'a>,
}

impl<R: Columns> Context<'_, R> {
    fn may_remove(&self, key: &RowKey, found: &ObservedRow<R>) -> bool {
        match self.scope {
            Scope::Whole { except } => !except.contains(&found.network),
            Scope::Part { removed } => removed.contains(&key.id),
        }
    }

    /// Whether a row gathers elements of objects that may not have been declared yet.
    fn only_grows(&self, key: &RowKey) -> bool {
        let incomplete = match self.scope {
            Scope::Whole { except } => !except.is_empty() && key.id == ENGINE,
            Scope::Part { .. } => true,
        };
        incomplete && matches!(key.table, Table::AddressSet | Table::Dns)
    }

    /// Whether `atom` may be taken out of a set of row `key`.
    fn may_drop(&self, key: &RowKey, atom: &Atom) -> bool {
        let Atom::Uuid(uuid) = atom else { return !self.only_grows(key) };
        let Some(referred) = self.observed.keys.get(uuid) else { return false };
        let Some(found) = self.observed.rows.get(referred) else { return false };
        found.uuid != *uuid || self.wanted.contains(referred) || self.may_remove(referred, found)
    }

    fn update(&self, row: &Row, found: &ObservedRow<R>, named: &BTreeMap<Atom, Uuid>) -> Option<Change> {
        let mut set = BTreeMap::new();
        let mut elements = Vec::new();
        let nothing = Value::empty();
        for (column, wanted) in &row.columns {
            // OVN renumbers running ports when a switch's addressing changes.
            if row.key.table == Table::LogicalSwitch && *column == "other_config" {
                continue;
            }
            let wanted = resolve(wanted, named);
            let current = found.row.get(column).unwrap_or(&nothing);
            match (wanted.as_ref(), current) {
                (wanted, current) if wanted == current => {}
                (Value::Map(wanted), Value::Map(current)) => {
                    let stale = |(key, value): &(&Atom, &Atom)| match wanted.get(key) {
                        Some(new) => new != *value,
                        None => self.may_forget(&row.key, column, key),
                    };
                    let gone: BTreeSet<Atom> = current.iter().filter(stale).map(|(key, _)| key.clone()).collect();
                    let come = wanted.iter().filter(|(key, value)| current.get(key) != Some(value));
                    let come: BTreeMap<Atom, Atom> = come.map(|(k, v)| (k.clone(), v.clone())).collect();
                    // "insert" leaves a key that is there as it is, so a changed one is deleted first.
                    push(&mut elements, column, Mutator::Delete, Value::Set(gone));
                    push(&mut elements, column, Mutator::Insert, Value::Map(come));
                }
                (Value::Set(wanted), Value::Set(current)) if is_multiple(column) => {
                    let gone = current.difference(wanted).filter(|atom| self.may_drop(&row.key, atom)).cloned();
                    push(&mut elements, column, Mutator::Delete, Value::Set(gone.collect()));
                    let come = wanted.difference(current).cloned();
                    push(&mut elements, column, Mutator::Insert, Value::Set(come.collect()));
                }
                _ => drop(set.insert(*column, wanted.into_owned())),
            }
        }
        if set.is_empty() && elements.is_empty() {
            return None;
        }
        Some(Change::Update { key: row.key.clone(), uuid: found.uuid, set, elements })
    }

    fn may_forget(&self, row: &RowKey, column: &str, key: &Atom) -> bool {
        if column == "external_ids" {
            return matches!(key, Atom::String(key) if key.starts_with("arca-"));
        }
        !self.only_grows(row)
    }
}

/// Takes out what only adds names to OVN's records; whether there was any.
///
/// ovn-northd computes everything anew for each change of a record, several times, and the resolver answers a name that
/// OVN does not know. So names may come late, but go at once: what OVN knows nobody else is asked.
pub fn without_new_names(changes: &mut Vec<Change>) -> bool {
    let mut any = false;
    changes.retain_mut(|change| match change {
        Change::Update { key, set, elements, .. } if key.table == Table::Dns => {
            let before = elements.len();
            elements.retain(|(column, mutator, _)| !(*column == "records" && *mutator == Mutator::Insert));
            any |= elements.len() < before;
            !(set.is_empty() && elements.is_empty())
        }
        _ => true,
    });
    any
}

fn push(elements: &mut Vec<(&'static str, Mutator, Value)>, column: &'static str, mutator: Mutator, value: Value) {
    if !value.is_empty() {
        elements.push((column, mutator, value));
    }
}

/// The changes as one transaction. Most names in OVN's schema are not unique, so each new root row is guarded against
/// one of the same identity that the snapshot did not show.
///
/// With each operation comes the position of the change it stems from.
pub fn operations(changes: &[Change]) -> Vec<(usize, Op)> {
    let names: BTreeMap<Atom, String> = changes
        .iter()
        .filter_map(|change| match change {
            Change::Insert { key, .. } => Some(key.reference()),
            _ => None,
        })
        .enumerate()
        .map(|(n, reference)| (reference, format!("row{n}")))
        .collect();
    let name = |atom: &Atom| names.get(atom).map_or_else(|| atom.clone(), Atom::named);
    let value = |value: &Value| match value {
        Value::Set(set) => Value::set(set.iter().map(name)),
        map @ Value::Map(_) => map.clone(),
    };
    let mut guards = Vec::new();
    let mut operations = Vec::new();
    for (position, change) in changes.iter().enumerate() {
        match change {
            Change::Insert { key, columns } => {
                if key.table.is_root() {
                    let identity = Value::map([("arca-id", key.id.as_str()), ("arca-kind", key.kind.as_str())]);
                    let guard = Op::wait(key.table.name(), &["external_ids"], &[]);
                    guards.push((position, guard.filter(Condition::includes("external_ids", identity))));
                }
                let insert = Op::insert(key.table.name());
                let insert = match names.get(&key.reference()) {
                    Some(name) => insert.named(name),
                    None => insert,
                };
                let insert = columns.iter().fold(insert, |op, (column, v)| op.set(column, value(v)));
                operations.push((position, insert));
            }
            Change::Update { key, uuid, set, elements } => {
                if !set.is_empty() {
                    let update = Op::update(key.table.name()).row(*uuid);
                    let update = set.iter().fold(update, |op, (column, v)| op.set(column, value(v)));
                    operations.push((position, update));
                }
                if !elements.is_empty() {
                    let mutate = Op::mutate(key.table.name()).row(*uuid);
                    let mutate = elements
                        .iter()
                        .fold(mutate, |op, (column, mutator, v)| op.mutation(column, *mutator, value(v)));
                    operations.push((position, mutate));
                }
            }
            Change::Delete { key, uuid } => operations.push((position, Op::delete(key.table.name()).row(*uuid))),
        }
    }
    guards.extend(operations);
    guards
}
