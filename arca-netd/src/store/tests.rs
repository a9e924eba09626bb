// SPDX-License-Identifier: Apache-2.0
use super::*;
use crate::{
    error::Error,
    model::{Kind, Network, NetworkId, Spec},
};

fn network(name: &str) -> Network {
    Network {
        id: NetworkId::random().unwrap(),
        spec: Spec { name: name.into(), driver: "bridge".into(), scope: "local".into(), ..Spec::default() },
        created_at_ns: 1,
        kind: Kind::Ovs,
        v4: None,
        v6: None,
        shown_pools: Vec::new(),
        enable_ipv4: true,
        enable_ipv6: false,
        dns: true,
        mtu: 1500,
        inter_container: true,
        masquerade: true,
        predefined: false,
        generation: 1,
    }
}

#[tokio::test]
async fn an_acknowledged_change_is_read_back_and_a_refused_one_leaves_no_trace() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.db");
    let store = Store::open(&path).unwrap();
    let kept = network("kept");
    let (id, row) = (kept.id.clone(), kept.clone());
    store
        .update(move |draft| {
            draft.put_network(row);
            draft.next_generation();
            draft.put_meta("system-id", "x".into());
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    let refused = store
        .update(|draft| {
            draft.put_network(network("refused"));
            draft.next_generation();
            Err::<(), _>(Error::Invalid("no".into()))
        })
        .await;
    assert!(matches!(refused, Err(Error::Invalid(_))));
    let before = store.state();
    drop(store);
    let store = reopen(&path);
    assert_eq!(*store.state(), *before);
    assert_eq!(store.state().networks.len(), 1);
    assert_eq!(*store.state().networks[&id], kept);
    assert_eq!(store.state().generation, 1);
}

/// The writer thread ends after the last handle; its lock goes a moment later.
fn reopen(path: &std::path::Path) -> Store {
    for _ in 0..100_000 {
        match Store::open(path) {
            Err(StoreError::Locked) => std::thread::yield_now(),
            other => return other.unwrap(),
        }
    }
    panic!("the database stays locked")
}

#[tokio::test]
async fn changes_that_share_a_commit_see_each_other_and_fail_alone() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("netd.db")).unwrap();
    let jobs = (0..50).map(|n| {
        let store = store.clone();
        async move {
            store
                .update(move |draft| {
                    let generation = draft.next_generation();
                    if n % 10 == 3 {
                        return Err(Error::Invalid("no".into()));
                    }
                    draft.put_network(Network { generation, ..network(&format!("n{n}")) });
                    Ok(generation)
                })
                .await
        }
    });
    let results = futures_util::future::join_all(jobs).await;
    let mut generations: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
    generations.sort_unstable();
    assert_eq!(generations, (1..=45).collect::<Vec<_>>());
    assert_eq!(store.state().networks.len(), 45);
}

#[test]
fn a_second_process_on_the_same_data_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.db");
    let _first = Store::open(&path).unwrap();
    assert!(matches!(Store::open(&path), Err(StoreError::Locked)));
}

#[test]
fn a_database_of_a_later_version_is_refused_with_the_way_out() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("netd.db");
    rusqlite::Connection::open(&path).unwrap().pragma_update(None, "user_version", 99).unwrap();
    let error = Store::open(&path).unwrap_err();
    assert!(matches!(error, StoreError::Newer { found: 99, .. }), "{error}");
}

#[test]
fn names_resolve_by_id_then_name_then_unique_prefix() {
    let mut draft = Draft::new(State::default());
    for (id, name) in [("a".repeat(64), "one"), (format!("ab{}", "c".repeat(62)), "two"), ("d".repeat(64), "ab")] {
        draft.put_network(Network { id: NetworkId::try_from(id).unwrap(), ..network(name) });
    }
    let found = |wanted: &str| draft.find_network(wanted).map(|n| n.name().to_owned()).map_err(|e| e.to_string());
    assert_eq!(found("ab"), Ok("ab".into()));
    assert_eq!(found("abc"), Ok("two".into()));
    assert_eq!(found(&"a".repeat(64)), Ok("one".into()));
    assert_eq!(found("a"), Err("2 matches found based on ID prefix: network a is ambiguous".into()));
    assert_eq!(found("zz"), Err("network zz not found".into()));
    assert_eq!(found(""), Err("3 matches found based on ID prefix: network  is ambiguous".into()));
}
