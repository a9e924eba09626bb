// SPDX-License-Identifier: Apache-2.0
//! The client against the stateful fake, and properties of its codec.

use std::time::Duration;

use proptest::prelude::*;
use serde_json::json;
use tokio::time::timeout;

use super::fake::{Fake, Fault, symmetric};
use super::*;

fn monitors() -> Vec<Monitor> {
    vec![Monitor::new("T", &["name", "n", "tags", "ids"]).optional(&["newer"])]
}

async fn connected(fake: &Fake) -> Database {
    let db = Database::connect(fake.path(), "Fake", monitors());
    timeout(Duration::from_secs(5), db.ready()).await.unwrap().unwrap();
    db
}

#[tokio::test]
async fn a_transaction_is_in_the_snapshot_when_it_is_answered() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let db = connected(&fake).await;
    let before = db.snapshot();
    let op = Op::insert("T").named("a").set("name", "one").set("tags", Value::set(["x", "y"]));
    let result = db.transact(vec![op, Op::comment("test")]).await.unwrap();
    let uuid = result[0].uuid.unwrap();
    let row = db.snapshot().row("T", uuid).cloned().unwrap();
    assert_eq!((row.str("name"), row.integer("n")), ("one", Some(0)));
    assert_eq!(row.strings("tags").collect::<Vec<_>>(), ["x", "y"]);

    let ops = vec![
        Op::mutate("T").row(uuid).mutation("n", Mutator::Add, 5).mutation("tags", Mutator::Delete, "x"),
        Op::mutate("T").row(uuid).mutation("ids", Mutator::Insert, Value::map([("k", "v")])),
        Op::select("T").filter(Condition::eq("name", "one")).columns(&["n"]),
    ];
    let result = db.transact(ops).await.unwrap();
    assert_eq!((result[0].count, result[2].rows[0].integer("n")), (1, Some(5)));
    let now = db.snapshot();
    let row = now.row("T", uuid).unwrap();
    assert_eq!((row.integer("n"), row.key("ids", "k")), (Some(5), Some("v")));
    assert_eq!(row.strings("tags").collect::<Vec<_>>(), ["y"]);
    let changes = now.changes_since(&before);
    assert_eq!(changes.len(), 1);
    assert!(changes[0].old.is_none() && changes[0].uuid == uuid);

    db.transact(vec![Op::delete("T").row(uuid)]).await.unwrap();
    assert!(db.snapshot().changes_since(&now)[0].new.is_none());
}

#[tokio::test]
async fn every_kind_of_failure_is_told_apart() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let db = connected(&fake).await;
    let guarded =
        || vec![Op::wait("T", &["name"], &[]).filter(Condition::eq("name", "a")), Op::insert("T").set("name", "a")];
    db.transact(guarded()).await.unwrap();
    assert!(db.transact(guarded()).await.unwrap_err().is_wait_failure());
    let error = db.transact(vec![Op::comment("x"), Op::delete("Nope")]).await.unwrap_err();
    let Error::Operation { index: 1, op, .. } = &error else { panic!("{error}") };
    assert_eq!(op, "delete Nope");
    fake.fault(Fault::CommitError);
    let error = db.transact(vec![Op::insert("T")]).await.unwrap_err();
    assert!(matches!(&error, Error::Commit { error, .. } if error == "constraint violation"), "{error}");
    assert_eq!(db.snapshot().rows("T").count(), 1);
    fake.fault(Fault::Hangup);
    assert!(matches!(db.transact(vec![Op::insert("T")]).await, Err(Error::Lost(_))));
}

#[tokio::test]
async fn a_lost_connection_comes_back_and_resumes() {
    let dir = tempfile::tempdir().unwrap();
    let mut fake = Fake::new(dir.path());
    let db = connected(&fake).await;
    db.transact(vec![Op::insert("T").set("name", "kept")]).await.unwrap();
    let before = db.snapshot();
    let kept = before.find("T", "name", "kept").unwrap().0;
    let mut changes = db.changed();
    fake.stop().await;
    assert!(!changes.next().await.unwrap().connected);
    assert!(db.snapshot().row("T", kept).is_some(), "last known rows stay visible");
    assert!(db.transact(vec![Op::insert("T")]).await.unwrap_err().is_disconnect());
    fake.transact(&[Op::insert("T").set("name", "missed")]);
    fake.start();
    let found = timeout(Duration::from_secs(5), db.wait_for(|s| s.find("T", "name", "missed").map(|(id, _)| id)));
    found.await.unwrap().unwrap();
    assert_eq!(fake.counts().1, 1, "resumed by the last transaction id");

    // A server that forgot sends everything; rows that did not change stay shared.
    fake.stop().await;
    fake.transact(&[Op::update("T").filter(Condition::eq("name", "missed")).set("name", "renamed")]);
    fake.forget_history();
    fake.start();
    timeout(Duration::from_secs(5), db.wait_for(|s| s.find("T", "name", "renamed").map(|_| ())))
        .await
        .unwrap()
        .unwrap();
    let now = db.snapshot();
    assert!(Arc::ptr_eq(now.row("T", kept).unwrap(), before.row("T", kept).unwrap()));
    assert!(now.find("T", "name", "missed").is_none());
    assert_eq!(fake.counts().2, 2);
    assert!(fake.counts().0 >= 2, "echo answered on every connection");
}

#[tokio::test]
async fn garbage_ends_the_connection_not_the_client() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let db = connected(&fake).await;
    for text in ["}{", "[1", "{\"id\":}", "nonsense", "{\"method\":\"update3\",\"params\":[1]}"] {
        fake.fault(Fault::Garbage(text));
        let answer = timeout(Duration::from_secs(1), db.transact(vec![Op::insert("T")]));
        // "[1" is the beginning of a message: nothing can be known about it, the client goes on waiting.
        assert_eq!(answer.await.is_err(), text == "[1");
        if text == "[1" {
            fake.fault(Fault::Hangup);
            assert!(db.transact(vec![Op::insert("T")]).await.unwrap_err().is_disconnect());
        }
        timeout(Duration::from_secs(5), db.ready()).await.unwrap().unwrap();
        db.transact(vec![Op::select("T")]).await.unwrap();
    }
}

#[tokio::test]
async fn a_schema_without_a_needed_column_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let db = Database::connect(fake.path(), "Fake", vec![Monitor::new("T", &["name", "colour"])]);
    let error = timeout(Duration::from_secs(5), db.ready()).await.unwrap().unwrap_err();
    assert_eq!(error.to_string(), "database Fake: schema version 1.2.3 has no column T.colour");
}

#[tokio::test]
async fn hundreds_of_pipelined_transactions_keep_their_answers() {
    let dir = tempfile::tempdir().unwrap();
    let fake = Fake::new(dir.path());
    let db = connected(&fake).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..300 {
        let db = db.clone();
        tasks.spawn(async move { (n, db.transact(vec![Op::insert("T").set("n", n)]).await.unwrap()[0].uuid.unwrap()) });
    }
    while let Some(done) = tasks.join_next().await {
        let (n, uuid) = done.unwrap();
        assert_eq!(db.snapshot().row("T", uuid).unwrap().integer("n"), Some(n));
    }
}

fn atom() -> impl Strategy<Value = Atom> {
    prop_oneof![
        any::<i64>().prop_map(Atom::Integer),
        any::<f64>().prop_filter("JSON has no such number", |f| f.is_finite()).prop_map(Atom::Real),
        any::<bool>().prop_map(Atom::Boolean),
        any::<String>().prop_map(Atom::String),
        any::<u128>().prop_map(|bits| Atom::Uuid(Uuid::from_u128(bits))),
        "[a-z_][a-z0-9_]{0,8}".prop_map(Atom::Named),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        proptest::collection::vec(atom(), 0..6).prop_map(Value::set),
        proptest::collection::vec((atom(), atom()), 0..6).prop_map(Value::map),
    ]
}

proptest! {
    #[test]
    fn values_survive_their_json_form(value in value()) {
        let text = value.to_json().to_string();
        prop_assert_eq!(Value::from_json(&serde_json::from_str(&text).unwrap()).unwrap(), value);
    }

    #[test]
    fn a_difference_leads_from_old_to_new(
        old in proptest::collection::btree_map(0i64..9, 0i64..3, 0..9),
        new in proptest::collection::btree_map(0i64..9, 0i64..3, 0..9),
    ) {
        let keys = (Value::set(old.keys().copied()), Value::set(new.keys().copied()));
        for (old, new) in [(Value::map(old), Value::map(new)), keys] {
            let mut current = old.clone();
            current.apply_diff(&symmetric(&old, &new)).unwrap();
            prop_assert_eq!(current, new);
        }
    }

    #[test]
    fn framing_does_not_depend_on_how_the_stream_is_cut(
        values in proptest::collection::vec(value(), 1..6),
        blanks in proptest::collection::vec("[ \n\t]{0,2}", 6),
        cuts in proptest::collection::vec(1usize..20, 1..20),
    ) {
        let messages: Vec<_> = values.iter().map(|v| json!({"params": [v.to_json()], "id": null})).collect();
        let stream: String = messages.iter().zip(&blanks).map(|(m, blank)| format!("{m}{blank}")).collect();
        let (mut rest, mut cuts, mut got) = (stream.as_bytes(), cuts.iter().cycle(), Vec::new());
        let mut decoder = Decoder::default();
        while !rest.is_empty() {
            let (head, tail) = rest.split_at(rest.len().min(*cuts.next().unwrap()));
            decoder.buffer().extend_from_slice(head);
            rest = tail;
            while let Some(message) = decoder.next_message().unwrap() {
                got.push(message);
            }
        }
        prop_assert_eq!(got, messages);
    }

    #[test]
    fn no_bytes_make_the_decoder_panic_or_grow(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let mut decoder = Decoder::with_limit(64);
        for byte in bytes {
            decoder.buffer().extend_from_slice(&[byte]);
            if decoder.next_message().is_err() {
                break;
            }
            prop_assert!(decoder.buffer().len() <= 64);
        }
    }

    #[test]
    fn any_json_is_a_value_or_an_error(text in "\\PC{0,40}") {
        if let Ok(json) = serde_json::from_str(&text) {
            let _ = Value::from_json(&json);
        }
        let _ = text.parse::<Uuid>();
    }
}
