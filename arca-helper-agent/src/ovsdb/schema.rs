// SPDX-License-Identifier: Apache-2.0
//! The part of a database's schema (RFC 7047 section 3.2) that a client needs: which columns exist, how their
//! differences read, and what a column is that the server left out because it has its default.

use std::collections::{BTreeMap, HashMap};

use serde_json::Value as Json;

use super::{Atom, Error, Monitor, Uuid, Value};

/// Type of a column.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Column {
    /// More than one element is possible: `update3` then sends symmetric differences.
    pub(super) composite: bool,
    /// Value of a row that never got one.
    pub(super) default: Value,
}

/// Tables and columns of a database.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Schema {
    /// Version of the schema, as "7.11.0".
    pub version: String,
    tables: HashMap<String, HashMap<String, Column>>,
}

impl Schema {
    /// From the answer of `get_schema`.
    pub(super) fn from_json(json: &Json) -> Result<Self, Error> {
        let version = json["version"].as_str().unwrap_or_default().to_owned();
        let tables = json["tables"].as_object().ok_or_else(|| Error::Protocol("a schema without tables".into()))?;
        let columns = |table: &Json| -> HashMap<String, Column> {
            let columns = table["columns"].as_object().into_iter().flatten();
            columns.map(|(name, column)| (name.clone(), Column::from_json(&column["type"]))).collect()
        };
        Ok(Self { version, tables: tables.iter().map(|(name, table)| (name.clone(), columns(table))).collect() })
    }

    /// True when the table has this column.
    pub fn has(&self, table: &str, column: &str) -> bool {
        self.column(table, column).is_some()
    }

    /// True when there is such a table.
    pub fn has_table(&self, table: &str) -> bool {
        self.tables.contains_key(table)
    }

    /// Checks that everything `monitored` requires exists in the database `db`.
    pub(super) fn check(&self, db: &str, monitored: &[Monitor]) -> Result<(), Error> {
        let missing = |missing: String| Error::Schema { db: db.to_owned(), version: self.version.clone(), missing };
        for Monitor { table, columns, .. } in monitored {
            if !self.has_table(table) {
                return Err(missing(format!("table {table}")));
            }
            if let Some(column) = columns.iter().find(|column| !self.has(table, column)) {
                return Err(missing(format!("column {table}.{column}")));
            }
        }
        Ok(())
    }

    pub(super) fn column(&self, table: &str, column: &str) -> Option<&Column> {
        self.tables.get(table)?.get(column)
    }
}

impl Column {
    fn from_json(kind: &Json) -> Self {
        let is_map = kind.get("value").is_some();
        let mandatory = kind.get("min").is_none_or(|min| min.as_u64() != Some(0));
        let composite = kind.get("max").is_some_and(|max| max.as_u64() != Some(1));
        let default = match (is_map, mandatory) {
            (true, false) => Value::Map(BTreeMap::new()),
            (true, true) => Value::Map(BTreeMap::from([(zero(&kind["key"]), zero(&kind["value"]))])),
            (false, false) => Value::empty(),
            (false, true) if kind.get("key").is_some() => zero(&kind["key"]).into(),
            (false, true) => zero(kind).into(),
        };
        Self { composite, default }
    }
}

fn zero(base: &Json) -> Atom {
    match base.as_str().or_else(|| base["type"].as_str()).unwrap_or_default() {
        "integer" => Atom::Integer(0),
        "real" => Atom::Real(0.0),
        "boolean" => Atom::Boolean(false),
        "uuid" => Atom::Uuid(Uuid::ZERO),
        _ => Atom::String(String::new()),
    }
}
