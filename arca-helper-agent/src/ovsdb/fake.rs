// SPDX-License-Identifier: Apache-2.0
//! A stateful OVSDB server for tests: one table `T(name string, n integer, tags set of string, ids map)`, real
//! transactions, `update3`, and the faults a client must survive, on demand.

use std::collections::{BTreeMap, VecDeque};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value as Json, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::broadcast;
use tokio::task::JoinHandle;

use super::{Decoder, Value};

/// Misbehaviour for the next request of its kind.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Fault {
    /// Close the connection instead of answering a transaction.
    Hangup,
    /// Append a commit error.
    CommitError,
    /// Send these bytes instead of an answer.
    Garbage(&'static str),
}

#[derive(Default)]
struct Store {
    rows: BTreeMap<String, BTreeMap<String, Value>>,
    transactions: u64,
    /// updates2 of each transaction, for resume.
    history: Vec<Json>,
    faults: VecDeque<Fault>,
    echoes: u64,
    resumed: u64,
    full: u64,
}

/// The server; its state outlives [`Fake::stop`] and [`Fake::start`].
pub(crate) struct Fake {
    path: PathBuf,
    store: Arc<Mutex<Store>>,
    updates: broadcast::Sender<Json>,
    accept: Option<JoinHandle<()>>,
}

impl Fake {
    pub(crate) fn new(dir: &Path) -> Self {
        let (updates, _) = broadcast::channel(1024);
        let mut fake = Self { path: dir.join("db.sock"), store: Arc::default(), updates, accept: None };
        fake.start();
        fake
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn start(&mut self) {
        let _ = std::fs::remove_file(&self.path);
        let listener = UnixListener::bind(&self.path).unwrap();
        let (store, updates) = (Arc::clone(&self.store), self.updates.clone());
        self.accept = Some(tokio::spawn(async move {
            let mut clients = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                clients.spawn(client(stream, Arc::clone(&store), updates.clone()));
            }
        }));
    }

    /// Ends all connections and refuses new ones.
    pub(crate) async fn stop(&mut self) {
        if let Some(task) = self.accept.take() {
            task.abort();
            let _ = task.await;
        }
    }

    pub(crate) fn fault(&self, fault: Fault) {
        self.store.lock().unwrap().faults.push_back(fault);
    }

    pub(crate) fn forget_history(&self) {
        self.store.lock().unwrap().history.clear();
    }

    /// (echo answers seen, monitors resumed, monitors from nothing)
    pub(crate) fn counts(&self) -> (u64, u64, u64) {
        let store = self.store.lock().unwrap();
        (store.echoes, store.resumed, store.full)
    }

    /// Commits without a client.
    pub(crate) fn transact(&self, ops: &[super::Op]) {
        let ops: Vec<Json> = ops.iter().map(super::Op::to_json).collect();
        let mut store = self.store.lock().unwrap();
        let (_, update) = store.transact(&ops);
        if let Some(update) = update {
            let _ = self.updates.send(update);
        }
    }
}

fn transaction_id(n: u64) -> String {
    format!("00000000-0000-0000-0000-{n:012x}")
}

fn defaults() -> BTreeMap<String, Value> {
    BTreeMap::from([
        ("name".into(), Value::from("")),
        ("n".into(), Value::from(0)),
        ("tags".into(), Value::empty()),
        ("ids".into(), Value::Map(BTreeMap::new())),
    ])
}

fn schema() -> Json {
    let text = |min: u64, max: Json| json!({"type": {"key": "string", "min": min, "max": max}});
    json!({"name": "Fake", "version": "1.2.3", "tables": {"T": {"columns": {
        "name": {"type": "string"},
        "n": {"type": {"key": {"type": "integer", "minInteger": 0}}},
        "tags": text(0, json!("unlimited")),
        "ids": {"type": {"key": "string", "value": "string", "min": 0, "max": "unlimited"}},
    }}}})
}

impl Store {
    /// Answer of the transaction, and the update3 parameters if something changed.
    fn transact(&mut self, ops: &[Json]) -> (Json, Option<Json>) {
        let mut rows = self.rows.clone();
        let mut results = Vec::new();
        for op in ops {
            match operation(&mut rows, op, self.transactions, results.len()) {
                Ok(result) => results.push(result),
                Err((error, details)) => {
                    results.push(json!({"error": error, "details": details}));
                    results.resize(ops.len(), Json::Null);
                    return (json!(results), None);
                }
            }
        }
        if self.faults.front() == Some(&Fault::CommitError) {
            self.faults.pop_front();
            results.push(json!({"error": "constraint violation", "details": "an index"}));
            return (json!(results), None);
        }
        let updates = difference(&self.rows, &rows);
        self.rows = rows;
        if updates.as_object().unwrap().is_empty() {
            return (json!(results), None);
        }
        self.transactions += 1;
        let updates = json!({ "T": updates });
        self.history.push(updates.clone());
        (json!(results), Some(json!(["arca", transaction_id(self.transactions), updates])))
    }

    fn monitor(&mut self, since: &str) -> Json {
        let last = transaction_id(self.transactions);
        let known = (1..=self.transactions).find(|n| transaction_id(*n) == since);
        let missed = known.map(|n| usize::try_from(self.transactions - n).unwrap());
        match missed.filter(|missed| *missed <= self.history.len()) {
            // Several missed transactions would have to be merged; one is enough to test the resume.
            Some(missed) if missed <= 1 => {
                self.resumed += 1;
                let updates = if missed == 1 { self.history.last().unwrap().clone() } else { json!({}) };
                json!([true, last, updates])
            }
            _ => {
                self.full += 1;
                let plain =
                    |(id, row): (&String, &BTreeMap<String, Value>)| (id.clone(), json!({"initial": sparse(row)}));
                let rows: serde_json::Map<_, _> = self.rows.iter().map(plain).collect();
                json!([false, last, {"T": rows}])
            }
        }
    }
}

/// Columns that differ from their default, as the real server sends them.
fn sparse(row: &BTreeMap<String, Value>) -> Json {
    let defaults = defaults();
    let changed = row.iter().filter(|(c, v)| defaults.get(*c) != Some(v));
    Json::Object(changed.map(|(c, v)| (c.clone(), v.to_json())).collect())
}

type Rows = BTreeMap<String, BTreeMap<String, Value>>;

fn difference(old: &Rows, new: &Rows) -> Json {
    let mut out = serde_json::Map::new();
    for (id, row) in new {
        match old.get(id) {
            None => drop(out.insert(id.clone(), json!({"insert": sparse(row)}))),
            Some(before) if before != row => {
                let mut modify = serde_json::Map::new();
                for (column, value) in row.iter().filter(|(c, v)| before.get(*c) != Some(v)) {
                    let mut diff = value.clone();
                    if column == "tags" || column == "ids" {
                        diff = symmetric(&before[column], value);
                    }
                    modify.insert(column.clone(), diff.to_json());
                }
                out.insert(id.clone(), json!({ "modify": modify }));
            }
            Some(_) => {}
        }
    }
    for id in old.keys().filter(|id| !new.contains_key(*id)) {
        out.insert(id.clone(), json!({"delete": null}));
    }
    Json::Object(out)
}

/// Written from the definition in ovsdb-server(7), independently of `Value::apply_diff`.
pub(super) fn symmetric(old: &Value, new: &Value) -> Value {
    match (old, new) {
        (Value::Set(a), Value::Set(b)) => Value::Set(a.symmetric_difference(b).cloned().collect()),
        (Value::Map(a), Value::Map(b)) => {
            let gone = a.iter().filter(|(k, _)| !b.contains_key(*k));
            let come = b.iter().filter(|(k, v)| a.get(*k) != Some(v));
            Value::Map(gone.chain(come).map(|(k, v)| (k.clone(), v.clone())).collect())
        }
        _ => unreachable!("columns keep their type"),
    }
}

fn operation(rows: &mut Rows, op: &Json, serial: u64, index: usize) -> Result<Json, (&'static str, String)> {
    let verb = op["op"].as_str().unwrap_or_default();
    if verb == "comment" || verb == "assert" {
        return Ok(json!({}));
    }
    if op["table"] != "T" {
        return Err(("unknown table", op["table"].to_string()));
    }
    let columns = |json: &Json| -> BTreeMap<String, Value> {
        json.as_object().into_iter().flatten().map(|(c, v)| (c.clone(), Value::from_json(v).unwrap())).collect()
    };
    let matched: Vec<String> =
        rows.iter().filter(|(id, row)| holds(id, row, &op["where"])).map(|(id, _)| id.clone()).collect();
    match verb {
        "insert" => {
            let mut row = defaults();
            row.extend(columns(&op["row"]));
            let id = format!("{:08x}-0000-0000-0000-{index:012x}", serial + 1);
            rows.insert(id.clone(), row);
            Ok(json!({"uuid": ["uuid", id]}))
        }
        "select" => {
            let row =
                |id: &String| rows[id].iter().map(|(c, v)| (c.clone(), v.to_json())).collect::<serde_json::Map<_, _>>();
            Ok(json!({"rows": matched.iter().map(row).collect::<Vec<_>>()}))
        }
        "update" => {
            for id in &matched {
                rows.get_mut(id).unwrap().extend(columns(&op["row"]));
            }
            Ok(json!({"count": matched.len()}))
        }
        "delete" => {
            rows.retain(|id, _| !matched.contains(id));
            Ok(json!({"count": matched.len()}))
        }
        "mutate" => {
            for id in &matched {
                for mutation in op["mutations"].as_array().unwrap() {
                    let column = rows.get_mut(id).unwrap().get_mut(mutation[0].as_str().unwrap()).unwrap();
                    mutate(column, mutation[1].as_str().unwrap(), Value::from_json(&mutation[2]).unwrap());
                }
            }
            Ok(json!({"count": matched.len()}))
        }
        "wait" => {
            let wanted = op["rows"].as_array().unwrap().len();
            if (matched.len() == wanted) == (op["until"] == "==") {
                Ok(json!({}))
            } else {
                Err(("timed out", "\"wait\" timed out".into()))
            }
        }
        other => Err(("unknown operation", other.into())),
    }
}

fn holds(id: &str, row: &BTreeMap<String, Value>, conditions: &Json) -> bool {
    conditions.as_array().into_iter().flatten().all(|c| {
        let (column, value) = (c[0].as_str().unwrap(), Value::from_json(&c[2]).unwrap());
        let own = if column == "_uuid" { Value::from(id.parse::<super::Uuid>().unwrap()) } else { row[column].clone() };
        (own == value) == (c[1] == "==")
    })
}

fn mutate(column: &mut Value, mutator: &str, by: Value) {
    match (column, mutator, by) {
        (column, "+=", by) => *column = Value::from(column.as_integer().unwrap() + by.as_integer().unwrap()),
        (Value::Set(set), "insert", Value::Set(more)) => set.extend(more),
        (Value::Map(map), "insert", Value::Map(more)) => {
            more.into_iter().for_each(|(k, v)| _ = map.entry(k).or_insert(v))
        }
        (Value::Set(set), "delete", Value::Set(less)) => set.retain(|a| !less.contains(a)),
        (Value::Map(map), "delete", Value::Set(keys)) => map.retain(|k, _| !keys.contains(k)),
        (column, mutator, by) => panic!("{mutator} {by:?} on {column:?}"),
    }
}

async fn client(mut stream: UnixStream, store: Arc<Mutex<Store>>, updates: broadcast::Sender<Json>) {
    let mut decoder = Decoder::default();
    let mut feed = updates.subscribe();
    let mut monitoring = false;
    loop {
        while let Ok(Some(message)) = decoder.next_message() {
            let id = message["id"].clone();
            let ok = |result: Json| json!({"result": result, "error": null, "id": id}).to_string();
            let answer = match message["method"].as_str() {
                Some("get_schema") => ok(schema()),
                Some("monitor_cond_since") => {
                    monitoring = true;
                    feed = updates.subscribe();
                    let answer = ok(store.lock().unwrap().monitor(message["params"][3].as_str().unwrap()));
                    answer + &json!({"method": "echo", "params": ["hi"], "id": "echo"}).to_string()
                }
                Some("transact") => {
                    let fault = {
                        let mut store = store.lock().unwrap();
                        let ready = matches!(store.faults.front(), Some(Fault::Hangup | Fault::Garbage(_)));
                        if ready { store.faults.pop_front() } else { None }
                    };
                    match fault {
                        Some(Fault::Hangup) => return,
                        Some(Fault::Garbage(text)) => text.into(),
                        _ => {
                            let ops = message["params"].as_array().unwrap()[1..].to_vec();
                            let (result, update) = store.lock().unwrap().transact(&ops);
                            // As the real server: the update goes out before the answer.
                            let mut text = String::new();
                            if let Some(update) = update {
                                if monitoring {
                                    text = json!({"method": "update3", "params": update, "id": null}).to_string();
                                }
                                let _ = updates.send(update);
                                let _ = feed.try_recv();
                            }
                            text + "\n " + &ok(result)
                        }
                    }
                }
                _ => {
                    store.lock().unwrap().echoes +=
                        u64::from(message["id"] == "echo" && message["result"] == json!(["hi"]));
                    continue;
                }
            };
            if stream.write_all(answer.as_bytes()).await.is_err() {
                return;
            }
        }
        let buffer = decoder.buffer();
        buffer.reserve(4096);
        tokio::select! {
            read = stream.read_buf(buffer) => if matches!(read, Ok(0) | Err(_)) { return },
            update = feed.recv() => if let (true, Ok(update)) = (monitoring, update) {
                let text = json!({"method": "update3", "params": update, "id": null}).to_string();
                if stream.write_all(text.as_bytes()).await.is_err() { return }
            },
        }
    }
}
