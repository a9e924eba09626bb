// SPDX-License-Identifier: Apache-2.0
//! Operations of a transaction (RFC 7047 section 5.2) and their results.

use std::collections::BTreeMap;

use serde_json::{Map, Value as Json, json};

use super::{Error, Row, Uuid, Value};

/// A condition of a `where` clause: column, function, value.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    column: String,
    function: &'static str,
    value: Value,
}

impl Condition {
    /// `column == value`
    pub fn eq(column: &str, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function: "==", value: value.into() }
    }

    /// `column != value`
    pub fn ne(column: &str, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function: "!=", value: value.into() }
    }

    /// The set or map `column` contains all of `value`.
    pub fn includes(column: &str, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function: "includes", value: value.into() }
    }

    /// The set or map `column` contains none of `value`.
    pub fn excludes(column: &str, value: impl Into<Value>) -> Self {
        Self { column: column.into(), function: "excludes", value: value.into() }
    }

    /// The row with this id.
    pub fn uuid(uuid: Uuid) -> Self {
        Self::eq("_uuid", uuid)
    }

    fn to_json(&self) -> Json {
        json!([self.column, self.function, self.value.to_json()])
    }
}

/// What a mutation does to a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutator {
    /// Adds a number.
    Add,
    /// Adds elements to a set, or pairs to a map whose keys are not there yet (an existing key keeps its value).
    Insert,
    /// Removes elements of a set; from a map the keys (value is a set) or exact pairs (value is a map).
    Delete,
}

impl Mutator {
    fn text(self) -> &'static str {
        match self {
            Self::Add => "+=",
            Self::Insert => "insert",
            Self::Delete => "delete",
        }
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq)]
pub struct Op {
    verb: &'static str,
    table: Option<String>,
    conditions: Vec<Condition>,
    row: BTreeMap<String, Value>,
    name: Option<String>,
    columns: Option<Vec<String>>,
    mutations: Vec<(String, Mutator, Value)>,
    extra: Map<String, Json>,
}

impl Op {
    fn new(verb: &'static str, table: Option<&str>) -> Self {
        Self {
            verb,
            table: table.map(Into::into),
            conditions: Vec::new(),
            row: BTreeMap::new(),
            name: None,
            columns: None,
            mutations: Vec::new(),
            extra: Map::new(),
        }
    }

    /// Adds a row. A row of a non-root table that nothing references is gone at commit, without an error.
    pub fn insert(table: &str) -> Self {
        Self::new("insert", Some(table))
    }

    /// Reads rows; all columns unless [`Op::columns`] names some.
    pub fn select(table: &str) -> Self {
        Self::new("select", Some(table))
    }

    /// Sets columns of the rows that meet all conditions.
    pub fn update(table: &str) -> Self {
        Self::new("update", Some(table))
    }

    /// Changes columns of the rows that meet all conditions by [`Op::mutation`]s.
    pub fn mutate(table: &str) -> Self {
        Self::new("mutate", Some(table))
    }

    /// Deletes the rows that meet all conditions.
    pub fn delete(table: &str) -> Self {
        Self::new("delete", Some(table))
    }

    /// Fails the transaction at once unless exactly the given `rows` (of these columns) meet the conditions; no
    /// rows means "there is none such".
    pub fn wait(table: &str, columns: &[&str], rows: &[BTreeMap<String, Value>]) -> Self {
        let mut op = Self::new("wait", Some(table)).columns(columns);
        op.extra.insert("timeout".into(), json!(0));
        op.extra.insert("until".into(), json!("=="));
        op.extra.insert("rows".into(), Json::Array(rows.iter().map(row_json).collect()));
        op
    }

    /// Writes a line into the database's log.
    pub fn comment(text: &str) -> Self {
        let mut op = Self::new("comment", None);
        op.extra.insert("comment".into(), json!(text));
        op
    }

    /// Fails the transaction unless this client holds the lock.
    pub fn assert(lock: &str) -> Self {
        let mut op = Self::new("assert", None);
        op.extra.insert("lock".into(), json!(lock));
        op
    }

    /// Of a wait: milliseconds to wait for the condition (default 0).
    pub fn timeout_ms(mut self, ms: u32) -> Self {
        self.extra.insert("timeout".into(), json!(ms));
        self
    }

    /// Of a wait: hold while the rows *differ* from the given ones.
    pub fn until_differs(mut self) -> Self {
        self.extra.insert("until".into(), json!("!="));
        self
    }

    /// Adds a condition; all must hold. Without any, every row is meant.
    pub fn filter(mut self, condition: Condition) -> Self {
        self.conditions.push(condition);
        self
    }

    /// The row with this id: short for `filter(Condition::uuid(uuid))`.
    pub fn row(self, uuid: Uuid) -> Self {
        self.filter(Condition::uuid(uuid))
    }

    /// Of an insert or update: gives a column its value.
    pub fn set(mut self, column: &str, value: impl Into<Value>) -> Self {
        self.row.insert(column.into(), value.into());
        self
    }

    /// Of an insert: name by which other operations of the transaction refer to the row ([`super::Atom::named`]).
    /// Letters, digits and underscores, not beginning with a digit.
    pub fn named(mut self, name: impl Into<String>) -> Self {
        self.name = Some(name.into());
        self
    }

    /// Of a select or wait: the columns looked at.
    pub fn columns(mut self, columns: &[&str]) -> Self {
        self.columns = Some(columns.iter().map(|c| (*c).to_owned()).collect());
        self
    }

    /// Of a mutate: one mutation.
    pub fn mutation(mut self, column: &str, mutator: Mutator, value: impl Into<Value>) -> Self {
        self.mutations.push((column.into(), mutator, value.into()));
        self
    }

    /// Verb and table, for messages.
    pub fn describe(&self) -> String {
        match &self.table {
            Some(table) => format!("{} {table}", self.verb),
            None => self.verb.to_owned(),
        }
    }

    /// JSON form.
    pub fn to_json(&self) -> Json {
        let mut op = self.extra.clone();
        op.insert("op".into(), json!(self.verb));
        if let Some(table) = &self.table {
            op.insert("table".into(), json!(table));
        }
        if matches!(self.verb, "select" | "update" | "mutate" | "delete" | "wait") {
            op.insert("where".into(), self.conditions.iter().map(Condition::to_json).collect());
        }
        if matches!(self.verb, "insert" | "update") {
            op.insert("row".into(), row_json(&self.row));
        }
        if let Some(name) = &self.name {
            op.insert("uuid-name".into(), json!(name));
        }
        if let Some(columns) = &self.columns {
            op.insert("columns".into(), json!(columns));
        }
        if self.verb == "mutate" {
            let all = self.mutations.iter().map(|(c, m, v)| json!([c, m.text(), v.to_json()]));
            op.insert("mutations".into(), all.collect());
        }
        Json::Object(op)
    }
}

fn row_json(row: &BTreeMap<String, Value>) -> Json {
    Json::Object(row.iter().map(|(column, value)| (column.clone(), value.to_json())).collect())
}

/// Result of one operation.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct OpResult {
    /// Of update, mutate and delete: number of rows met.
    pub count: u64,
    /// Of insert: id of the new row.
    pub uuid: Option<Uuid>,
    /// Of select: the rows.
    pub rows: Vec<Row>,
}

impl OpResult {
    fn from_json(json: &Json) -> Result<Self, Error> {
        let mut result = Self { count: json["count"].as_u64().unwrap_or(0), ..Self::default() };
        if let Some(uuid) = json.get("uuid") {
            result.uuid = Value::from_json(uuid)?.as_uuid();
        }
        for row in json["rows"].as_array().into_iter().flatten() {
            result.rows.push(Row::from_json(row)?);
        }
        Ok(result)
    }
}

/// Judges the `result` array of a transact answer: every element may be an error, and a failed commit appends one.
pub(super) fn results(db: &str, ops: &[String], result: &Json) -> Result<Vec<OpResult>, Error> {
    let elements =
        result.as_array().ok_or_else(|| Error::Protocol(format!("result of transact is no array: {result}")))?;
    for (index, element) in elements.iter().enumerate() {
        let Some(error) = element.get("error").and_then(Json::as_str) else { continue };
        let (db, error) = (db.to_owned(), error.to_owned());
        let details = element["details"].as_str().unwrap_or("no details").to_owned();
        return Err(match ops.get(index) {
            Some(op) => Error::Operation { db, index, op: op.clone(), error, details },
            None => Error::Commit { db, error, details },
        });
    }
    if elements.len() < ops.len() {
        return Err(Error::Protocol(format!("{} results for {} operations", elements.len(), ops.len())));
    }
    elements.iter().take(ops.len()).map(OpResult::from_json).collect()
}
