// SPDX-License-Identifier: Apache-2.0
use arca_netd::{
    error::Error,
    model::{Phase, Protocol},
    publish::Binding,
};

use crate::fakes::{World, eventually, wanted, workload};

fn port(host: u16) -> Binding {
    Binding { protocol: Protocol::Tcp, container_port: 80, host_ip: None, host_ports: Some((host, host)) }
}

/// Three containers on one network, one of them with a published port.
async fn populated() -> World {
    let mut world = World::new().await;
    world.network("n", "10.9.0.0/24").await;
    for n in 1..=3 {
        let machine = world.machine(n);
        world.attach(wanted("n", n, &machine)).await;
    }
    world.engine().publish(workload(1), vec![port(8080)]).await.unwrap();
    world
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_of_netd_changes_no_row_no_link_and_no_interface() {
    let mut world = populated().await;
    let (state, changed, syncs) = (world.engine().state(), world.agent.changed(), world.agent.syncs());
    let configures: usize = world.taps.values().map(|tap| tap.configures()).sum();
    let lists = world.relay.lists();
    world.relay.take_log();
    world.stop_netd().await;
    world.start_netd().await;
    eventually("both are compared", || world.agent.syncs() > syncs && world.relay.lists() > lists).await;
    // Another comparison finds nothing either.
    let (syncs, lists) = (world.agent.syncs(), world.relay.lists());
    world.engine().kick();
    eventually("both are compared again", || world.agent.syncs() > syncs && world.relay.lists() > lists).await;
    assert_eq!(world.agent.changed(), changed, "rows");
    assert_eq!(world.relay.take_log(), Vec::<String>::new(), "links and listeners");
    assert_eq!(world.taps.values().map(|tap| tap.configures()).sum::<usize>(), configures);
    let now = world.engine().state();
    assert_eq!(
        (&now.networks, &now.endpoints, &now.publications),
        (&state.networks, &state.endpoints, &state.publications)
    );
    assert_eq!(*world.boot.downs.lock().unwrap(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_relayd_gets_every_link_and_listener_back() {
    let mut world = populated().await;
    world.relay_process = None;
    world.relay.forget();
    world.relay.take_log();
    let started = std::time::Instant::now();
    world.start_relay();
    eventually("links are back", || world.relay.links() == [1, 2, 3] && world.relay.listeners().len() == 2).await;
    println!("links and listeners back {:?} after arca-relayd's restart", started.elapsed());
    assert_eq!(world.relay.listeners(), [("0.0.0.0".to_owned(), 8080), ("::".to_owned(), 8080)]);
    let mut log = world.relay.take_log();
    log.sort();
    assert_eq!(log, ["open 1", "open 2", "open 3", "publish 0.0.0.0:8080", "publish :::8080"]);
    // And it works on.
    let machine = world.machine(9);
    world.attach(wanted("n", 9, &machine)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn while_relayd_is_away_an_attach_fails_cleanly_and_a_detach_succeeds() {
    let mut world = populated().await;
    world.relay_process = None;
    let machine = world.machine(4);
    let error = world.engine().attach(wanted("n", 4, &machine)).await.unwrap_err().to_string();
    assert!(error.starts_with("attach to network n failed at step \"link\": "), "{error}");
    assert!(world.taps[&4].interfaces().is_empty());
    world.engine().detach_workload(workload(2)).await.unwrap();
    // arca-relayd did not die, it was unreachable: the difference closes what was detached meanwhile.
    world.start_relay();
    eventually("the detached link is closed", || world.relay.links() == [1, 3]).await;
    assert_eq!(world.agent.endpoints(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_agent_that_kept_its_database_sees_no_change() {
    let mut world = populated().await;
    let (changed, syncs) = (world.agent.changed(), world.agent.syncs());
    world.agent_process = None;
    eventually("netd notices", || !world.engine().is_ready()).await;
    world.start_agent();
    eventually("a full sync", || world.agent.syncs() > syncs).await;
    assert_eq!(world.agent.changed(), changed);
    let configured = world.agent.configured();
    assert!(configured.len() >= 2 && configured.iter().all(|c| *c == configured[0]));
    assert_eq!(configured[0].router_address, "192.168.127.2/29");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_lost_its_database_gets_the_same_addresses_back() {
    let mut world = populated().await;
    let before: Vec<_> = world.engine().state().endpoints.values().map(|e| (e.id.clone(), e.address_v4)).collect();
    let syncs = world.agent.syncs();
    world.agent_process = None;
    eventually("netd notices", || !world.engine().is_ready()).await;
    world.agent.wipe();
    world.boot.ended.notify_one();
    world.start_agent();
    eventually("a full sync", || world.agent.syncs() > syncs).await;
    eventually("the helper was started again", || *world.boot.boots.lock().unwrap() == 2).await;
    // First come first served by id, which is random: some got another's, and get their own back.
    let as_before = || before.iter().all(|(id, address)| world.agent.address(id.as_str()) == *address);
    eventually("every address is what it was", as_before).await;
    let state = world.engine().state();
    assert!(state.endpoints.values().all(|endpoint| before.contains(&(endpoint.id.clone(), endpoint.address_v4))));
    assert_eq!(world.agent.ports().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_helper_that_forgets_is_told_every_address_before_it_gives_one_away() {
    let mut world = populated().await;
    let before: Vec<_> = world.engine().state().endpoints.values().map(|e| (e.id.clone(), e.address_v4)).collect();
    let syncs = world.agent.syncs();
    world.stop_netd().await;
    world.agent_process = None;
    world.agent.wipe();
    world.boot.forgetful.store(true, std::sync::atomic::Ordering::Relaxed);
    world.start_agent();
    world.start_netd().await;
    eventually("a full sync", || world.agent.syncs() > syncs).await;
    // Not repaired afterwards: the first set says so.
    assert!(before.iter().all(|(id, address)| world.agent.address(id.as_str()) == *address));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_half_done_at_a_power_cut_is_taken_back() {
    let mut world = populated().await;
    world.stop_netd().await;
    let store = world.store().await;
    // One endpoint was on its way, one on its way out, one port not yet acknowledged.
    store
        .update(|draft| {
            let ids: Vec<_> = draft.endpoints.values().filter(|e| e.workload != workload(3)).cloned().collect();
            for (endpoint, phase) in ids.iter().zip([Phase::Pending, Phase::Removing]) {
                draft.edit_endpoint(&endpoint.id, |endpoint| endpoint.phase = phase);
            }
            let port = draft.publications.values().next().cloned().unwrap();
            draft.put_publication(arca_netd::model::Publication { active: false, ..(*port).clone() });
            Ok::<_, Error>(())
        })
        .await
        .unwrap();
    drop(store);
    world.start_netd().await;
    eventually("only the third is left", || world.agent.endpoints() == 1 && world.relay.links() == [3]).await;
    eventually("the port is given back", || world.relay.listeners().is_empty() && world.agent.ports().is_empty()).await;
    assert!(world.taps[&1].interfaces().is_empty() && world.taps[&2].interfaces().is_empty());
    let state = world.engine().state();
    assert_eq!((state.endpoints.len(), state.publications.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn predefined_networks_keep_their_ids() {
    let mut world = World::new().await;
    let ids = |world: &World| -> Vec<_> {
        let state = world.engine().state();
        ["bridge", "host", "none"].map(|name| state.find_network(name).unwrap().id.clone()).into()
    };
    let before = ids(&world);
    world.stop_netd().await;
    world.start_netd().await;
    assert_eq!(ids(&world), before);
    assert_eq!(world.engine().state().networks.len(), 3);
}
