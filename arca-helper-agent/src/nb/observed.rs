// SPDX-License-Identifier: Apache-2.0
//! The owned rows found in the database, by their `external_ids`. Made anew from each snapshot by the service.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::address::Addresses;
use super::model::EndpointId;
use super::network::{NUMBER, NUMBER4};
use super::rows::{Allocated, Learned, RowKey, Table};
use crate::ovsdb::{self, Atom, Monitor, Snapshot, Uuid, Value};

/// A row whose columns can be read; the test's fake has its own.
pub trait Columns {
    /// Value of a column.
    fn get(&self, column: &str) -> Option<&Value>;
}

impl Columns for Arc<ovsdb::Row> {
    fn get(&self, column: &str) -> Option<&Value> {
        ovsdb::Row::get(self, column)
    }
}

/// An owned row as it is.
#[derive(Debug)]
pub struct ObservedRow<R> {
    /// Identity in the database.
    pub uuid: Uuid,
    /// Network it belongs to, "" for none.
    pub network: String,
    /// Its columns.
    pub row: R,
}

/// All owned rows.
#[derive(Debug)]
pub struct Observed<R> {
    /// By identity.
    pub rows: HashMap<RowKey, ObservedRow<R>>,
    /// UUIDs by what stands for the rows in desired ones.
    pub references: BTreeMap<Atom, Uuid>,
    /// Identity by UUID.
    pub keys: HashMap<Uuid, RowKey>,
    /// Rows with the identity of another one: nobody writes these but a fault.
    pub doubles: Vec<(RowKey, ObservedRow<R>)>,
}

/// What to monitor in the northbound database.
pub fn monitors() -> Vec<Monitor> {
    Table::ALL.iter().map(|t| Monitor::new(t.name(), t.columns())).collect()
}

impl Observed<Arc<ovsdb::Row>> {
    /// Reads a snapshot.
    pub fn of_snapshot(snapshot: &Snapshot) -> Self {
        Self::new(
            Table::ALL.iter().flat_map(|t| snapshot.rows(t.name()).map(|(uuid, row)| (*t, uuid, Arc::clone(row)))),
        )
    }

    /// Takes up what differs in a later snapshot; what stayed is not looked at again. `true` if something changed that is
    /// not OVN's own to write.
    pub fn follow(&mut self, before: &Snapshot, now: &Snapshot) -> bool {
        let changes = now.changes_since(before);
        let written = changes.iter().any(|change| match (&change.old, &change.new) {
            (Some(old), Some(new)) => {
                new.iter().any(|(column, value)| !is_ovns(column) && old.get(column) != Some(value))
            }
            _ => true,
        });
        if !self.doubles.is_empty() || !self.take(changes) {
            *self = Self::of_snapshot(now);
        }
        written
    }

    /// `false`: two rows of one identity, which only a look at all of them can sort out.
    fn take(&mut self, changes: Vec<ovsdb::Change>) -> bool {
        // All that goes before all that comes: an identity may pass from one row to another.
        for change in &changes {
            if let Some(key) = self.keys.remove(&change.uuid) {
                self.rows.remove(&key);
                self.references.remove(&key.reference());
            }
        }
        for change in changes {
            let table = Table::ALL.into_iter().find(|table| table.name() == change.table);
            if let (Some(table), Some(row)) = (table, change.new) {
                self.add(table, change.uuid, row);
            }
        }
        self.doubles.is_empty()
    }
}

/// Columns of ports that OVN answers in.
fn is_ovns(column: &str) -> bool {
    matches!(column, "up" | "dynamic_addresses")
}

impl<R: Columns> Observed<R> {
    /// Keeps the rows that carry Arca's `external_ids`.
    pub fn new(all: impl IntoIterator<Item = (Table, Uuid, R)>) -> Self {
        let mut observed =
            Self { rows: HashMap::new(), references: BTreeMap::new(), keys: HashMap::new(), doubles: Vec::new() };
        for (table, uuid, row) in all {
            observed.add(table, uuid, row);
        }
        observed
    }

    fn add(&mut self, table: Table, uuid: Uuid, row: R) {
        let Some(ids) = row.get("external_ids") else { return };
        let (Some(id), Some(kind)) = (ids.get("arca-id"), ids.get("arca-kind")) else { return };
        let key = RowKey { table, id: id.to_owned(), kind: kind.to_owned() };
        let network = ids.get("arca-network").unwrap_or_default().to_owned();
        self.keys.insert(uuid, key.clone());
        let mut found = ObservedRow { uuid, network, row };
        match self.rows.get_mut(&key) {
            None => {
                self.references.insert(key.reference(), uuid);
                self.rows.insert(key, found);
            }
            Some(kept) => {
                // Which one stays must not depend on the order of a hash map.
                if found.uuid < kept.uuid {
                    std::mem::swap(&mut found, kept);
                    self.references.insert(key.reference(), uuid);
                }
                self.doubles.push((key, found));
            }
        }
    }

    /// Switch ports of endpoints, by endpoint.
    pub fn endpoints(&self) -> impl Iterator<Item = (EndpointId, EndpointRow<'_>)> {
        self.rows.iter().filter_map(|(key, found)| {
            if key.table != Table::LogicalSwitchPort || key.kind != "endpoint" {
                return None;
            }
            let number =
                |kind: &str| self.rows.get(&RowKey { table: key.table, id: key.id.clone(), kind: kind.to_owned() });
            Some((EndpointId::new(&key.id).ok()?, EndpointRow::read(found, number(NUMBER), number(NUMBER4))))
        })
    }

    /// Addresses of all endpoints.
    pub fn learned(&self) -> Learned {
        self.endpoints().map(|(id, row)| (id, row.allocated)).collect()
    }
}

/// What the database says of an endpoint's port.
#[derive(Debug)]
pub struct EndpointRow<'a> {
    /// Network it is on.
    pub network: &'a str,
    /// Allocated or static addresses.
    pub allocated: Allocated,
    /// OVN looked for an IPv4 address and found none free: it answers with the MAC alone.
    pub exhausted4: bool,
    /// The same of IPv6 addresses.
    pub exhausted6: bool,
    /// Flows are installed.
    pub up: bool,
    /// Generation written.
    pub generation: u64,
}

impl<'a> EndpointRow<'a> {
    fn read<R: Columns>(
        found: &'a ObservedRow<R>,
        number: Option<&'a ObservedRow<R>>,
        number4: Option<&'a ObservedRow<R>>,
    ) -> Self {
        let (addresses, exhausted) = addresses_of(found);
        let (number4, exhausted4) = number4.map(|row| addresses_of(row)).unwrap_or_default();
        let (number, exhausted6) = number.map(|row| addresses_of(row)).unwrap_or_default();
        let generation = found.row.get("external_ids").and_then(|v| v.get("arca-gen"));
        Self {
            network: &found.network,
            allocated: Allocated { addresses, number: number.v4, number4: number4.v4 },
            exhausted4: exhausted || exhausted4,
            exhausted6,
            up: found.row.get("up").and_then(Value::as_bool).unwrap_or(false),
            generation: generation.and_then(|g| g.parse().ok()).unwrap_or(0),
        }
    }
}

/// Allocated or static addresses of a port, and whether OVN found none free.
fn addresses_of<R: Columns>(found: &ObservedRow<R>) -> (Addresses, bool) {
    let text = |column| found.row.get(column).and_then(|v| v.strings().next()).unwrap_or_default();
    let dynamic = text("dynamic_addresses");
    let allocated = Addresses::parse(dynamic);
    let wanted = text("addresses");
    let exhausted = !dynamic.trim().is_empty() && allocated.v4.is_none() && wanted.ends_with("dynamic");
    let fixed = Addresses::parse(wanted);
    (Addresses { v4: allocated.v4.or(fixed.v4), v6: fixed.v6 }, exhausted)
}
