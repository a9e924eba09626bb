// SPDX-License-Identifier: Apache-2.0
//! The client's copy of the monitored tables. A [`Snapshot`] never changes; the connection publishes a new one after
//! every message, sharing all rows that stayed as they were.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::schema::Schema;
use super::{Error, Monitor, Uuid, Value};

/// Columns of a row.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row(BTreeMap<String, Value>);

impl Row {
    pub(super) fn from_json(json: &Json) -> Result<Self, Error> {
        let columns = json.as_object().ok_or_else(|| Error::Protocol(format!("not a row: {json}")))?;
        Ok(Self(columns.iter().map(|(c, v)| Ok((c.clone(), Value::from_json(v)?))).collect::<Result<_, Error>>()?))
    }

    /// The column's value. Monitored columns are always there, with their default if never set.
    pub fn get(&self, column: &str) -> Option<&Value> {
        self.0.get(column)
    }

    /// Text of a string column; "" when empty or absent.
    pub fn str(&self, column: &str) -> &str {
        self.get(column).and_then(Value::as_str).unwrap_or_default()
    }

    /// An integer column; `None` when empty or absent.
    pub fn integer(&self, column: &str) -> Option<i64> {
        self.get(column)?.as_integer()
    }

    /// A boolean column; `None` when empty or absent.
    pub fn bool(&self, column: &str) -> Option<bool> {
        self.get(column)?.as_bool()
    }

    /// A reference; `None` when empty or absent.
    pub fn uuid(&self, column: &str) -> Option<Uuid> {
        self.get(column)?.as_uuid()
    }

    /// References of a set.
    pub fn uuids(&self, column: &str) -> impl Iterator<Item = Uuid> {
        self.get(column).into_iter().flat_map(Value::uuids)
    }

    /// Strings of a set.
    pub fn strings(&self, column: &str) -> impl Iterator<Item = &str> {
        self.get(column).into_iter().flat_map(Value::strings)
    }

    /// Text at `key` of the map `column`.
    pub fn key(&self, column: &str, key: &str) -> Option<&str> {
        self.get(column)?.get(key)
    }

    /// All columns.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(column, value)| (column.as_str(), value))
    }
}

type Table = HashMap<Uuid, Arc<Row>>;

/// State of the monitored tables at one moment.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Grows with every published snapshot; 0 before the first contents have come.
    pub generation: u64,
    /// The connection stands, so the contents are current. Without it they are the last known ones.
    pub connected: bool,
    /// Schema of the server last connected to.
    pub schema: Arc<Schema>,
    /// Monitored columns of each monitored table with their defaults.
    defaults: Arc<HashMap<String, Vec<(String, Value)>>>,
    tables: HashMap<String, Arc<Table>>,
}

/// Difference between two snapshots in one row.
#[derive(Clone, Debug)]
pub struct Change {
    /// The table.
    pub table: String,
    /// The row.
    pub uuid: Uuid,
    /// Before; `None` for a new row.
    pub old: Option<Arc<Row>>,
    /// Now; `None` for a row that is gone.
    pub new: Option<Arc<Row>>,
}

impl Snapshot {
    /// A row by its id.
    pub fn row(&self, table: &str, uuid: Uuid) -> Option<&Arc<Row>> {
        self.tables.get(table)?.get(&uuid)
    }

    /// All rows of a table; nothing for a table that is not monitored.
    pub fn rows(&self, table: &str) -> impl Iterator<Item = (Uuid, &Arc<Row>)> {
        self.tables.get(table).into_iter().flat_map(|table| table.iter()).map(|(uuid, row)| (*uuid, row))
    }

    /// The first row whose `column` is the text `value`.
    pub fn find(&self, table: &str, column: &str, value: &str) -> Option<(Uuid, &Arc<Row>)> {
        self.rows(table).find(|(_, row)| row.str(column) == value)
    }

    /// The only row of a table that has one, like NB_Global and Open_vSwitch.
    pub fn single(&self, table: &str) -> Option<(Uuid, &Arc<Row>)> {
        self.rows(table).next()
    }

    /// Every row that differs from `older`. Cheap where nothing changed: rows are shared between snapshots.
    pub fn changes_since(&self, older: &Self) -> Vec<Change> {
        let empty = Table::new();
        let mut changes = Vec::new();
        for (name, table) in &self.tables {
            let before = older.tables.get(name);
            if before.is_some_and(|before| Arc::ptr_eq(before, table)) {
                continue;
            }
            let before = before.map_or(&empty, |table| table);
            let change = |uuid: &Uuid, old: Option<&Arc<Row>>, new: Option<&Arc<Row>>| Change {
                table: name.clone(),
                uuid: *uuid,
                old: old.cloned(),
                new: new.cloned(),
            };
            for (uuid, old) in before.iter().filter(|(uuid, _)| !table.contains_key(uuid)) {
                changes.push(change(uuid, Some(old), None));
            }
            for (uuid, new) in table.iter() {
                match before.get(uuid) {
                    Some(old) if Arc::ptr_eq(old, new) || old == new => {}
                    old => changes.push(change(uuid, old, Some(new))),
                }
            }
        }
        changes
    }

    /// Another schema, and the columns that are monitored under it.
    pub(super) fn monitor(&mut self, schema: Schema, monitored: &[Monitor]) {
        let columns = |m: &Monitor| {
            let names = m.columns.iter().chain(&m.optional);
            names.filter_map(|c| Some((c.clone(), schema.column(&m.table, c)?.default.clone()))).collect()
        };
        self.defaults = Arc::new(monitored.iter().map(|m| (m.table.clone(), columns(m))).collect());
        self.schema = Arc::new(schema);
    }

    /// Takes the complete contents instead of what was known: rows that stayed the same stay shared.
    pub(super) fn replace(&mut self, updates: Json) -> Result<(), Error> {
        let old = std::mem::take(&mut self.tables);
        self.tables = self.defaults.keys().map(|name| (name.clone(), Arc::default())).collect();
        if let Err(e) = self.apply(updates) {
            self.tables = old;
            return Err(e);
        }
        for (name, table) in &mut self.tables {
            let Some(before) = old.get(name) else { continue };
            for (uuid, row) in Arc::make_mut(table) {
                if let Some(same) = before.get(uuid).filter(|same| *same == row) {
                    *row = Arc::clone(same);
                }
            }
        }
        Ok(())
    }

    /// Applies a table-updates2 object.
    pub(super) fn apply(&mut self, updates: Json) -> Result<(), Error> {
        for (name, rows) in object(updates)? {
            let table = Arc::make_mut(self.tables.entry(name.clone()).or_default());
            for (uuid, update) in object(rows)? {
                let uuid: Uuid = uuid.parse()?;
                for (kind, columns) in object(update)? {
                    match kind.as_str() {
                        "initial" | "insert" => {
                            let mut row = Row::from_json(&columns)?;
                            row.fill(self.defaults.get(&name));
                            table.insert(uuid, Arc::new(row));
                        }
                        "modify" => {
                            let row = table
                                .get_mut(&uuid)
                                .ok_or_else(|| Error::Protocol(format!("{name} {uuid} modified before inserted")))?;
                            Arc::make_mut(row).modify(&self.schema, &name, Row::from_json(&columns)?)?;
                        }
                        "delete" => drop(table.remove(&uuid)),
                        other => return Err(Error::Protocol(format!("unknown kind of row update {other:?}"))),
                    }
                }
            }
        }
        Ok(())
    }
}

fn object(json: Json) -> Result<Map<String, Json>, Error> {
    match json {
        Json::Object(map) => Ok(map),
        other => Err(Error::Protocol(format!("an update is no object: {other}"))),
    }
}

impl Row {
    /// The server leaves out columns that have their default.
    fn fill(&mut self, defaults: Option<&Vec<(String, Value)>>) {
        for (name, default) in defaults.into_iter().flatten() {
            self.0.entry(name.clone()).or_insert_with(|| default.clone());
        }
    }

    fn modify(&mut self, schema: &Schema, table: &str, diff: Self) -> Result<(), Error> {
        for (name, value) in diff.0 {
            match self.0.get_mut(&name) {
                Some(current) if schema.column(table, &name).is_some_and(|c| c.composite) => {
                    current.apply_diff(&value)?;
                }
                _ => drop(self.0.insert(name, value)),
            }
        }
        Ok(())
    }
}
