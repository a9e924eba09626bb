// SPDX-License-Identifier: Apache-2.0
use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use arca_netd::{model::Extras, validate::endpoint::Wanted};
use arca_proto::relay::v1::Carrier;

use crate::fakes::{World, eventually, wanted, workload};

#[tokio::test(flavor = "multi_thread")]
async fn an_attach_reaches_every_peer_and_a_detach_leaves_nothing() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("front", "").await;
    world.network("back", "10.9.0.0/24").await;
    let front = world.attach(Wanted { aliases: vec!["www".into()], ..wanted("front", 1, &machine) }).await;
    assert_eq!(front.address_v4.unwrap().to_string(), "172.18.0.2/16");
    let place = front.place.clone().unwrap();
    assert_eq!((place.link.get(), place.interface.as_str()), (1, "eth0"));
    let row = world.agent.endpoint(front.id.as_str());
    assert_eq!(row.names, ["c1", "www", workload(1).short(), "host1"]);
    assert_eq!((row.link, row.static_v4.as_str(), row.machine_id.as_str()), (1, "", "m1"));
    let interface = world.taps[&1].interfaces().pop().unwrap();
    assert_eq!((interface.addresses, interface.gateway_v4), (vec!["172.18.0.2/16".to_owned()], "172.18.0.1".into()));
    assert!(interface.confirm_dhcp);
    assert_eq!(world.relay.links(), [1]);
    assert_eq!(world.taps[&1].configured(), (1, "172.18.0.1".into()));

    // "back" comes before "front" by name: it takes the default route over, and gives it back.
    let back = world.attach(Wanted { ipv4: "10.9.0.77".into(), ..wanted("back", 1, &machine) }).await;
    assert_eq!(back.address_v4.unwrap().to_string(), "10.9.0.77/24");
    assert_eq!(back.place.as_ref().unwrap().interface, "eth1");
    assert_eq!(world.taps[&1].configured(), (2, "10.9.0.1".into()));
    world.engine().detach("back".into(), workload(1)).await.unwrap();
    assert_eq!(world.taps[&1].configured(), (1, "172.18.0.1".into()));
    assert_eq!((world.relay.links(), world.agent.endpoints()), (vec![1], 1));

    // A network with an endpoint stays, one without goes.
    let refused = world.engine().remove_network("front".into()).await.unwrap_err().to_string();
    let list = format!("(name:\"c1\" id:\"{}\")", front.id.short());
    assert_eq!(refused, format!("error while removing network: network front has active endpoints {list}"));
    world.engine().detach_workload(workload(1)).await.unwrap();
    world.assert_clean("after detach");
    world.engine().remove_network("front".into()).await.unwrap();
    eventually("rows of the network go", || world.agent.networks() == 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_carrier_that_does_not_come_up_is_followed_by_the_next() {
    let mut world = World::new().await;
    world.stop_netd().await;
    world.carrier = Carrier::Unspecified;
    world.start_netd().await;
    eventually("a full set", || world.engine().is_ready()).await;
    let machine = world.machine(1);
    world.network("n", "10.9.0.0/24").await;
    world.relay.hiccup(1);
    let made = world.attach(wanted("n", 1, &machine)).await;
    // The rows of the first try were withdrawn; those of the second are there all the same.
    let row = world.agent.endpoint(made.id.as_str());
    assert_eq!((row.carrier(), world.relay.links()), (Carrier::TapFd, vec![1]));
    world.engine().detach_workload(workload(1)).await.unwrap();
    world.assert_clean("after detach");
}

#[tokio::test(flavor = "multi_thread")]
async fn extras_reach_whom_they_concern() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("n", "10.9.0.0/24").await;
    let extras = Extras {
        links: [("mine".to_owned(), "db".to_owned())].into(),
        dns: vec!["192.0.2.9".parse().unwrap()],
        link_local: vec!["169.254.9.9".parse().unwrap()],
        sysctls: vec![("ipv4/conf".into(), "log_martians".into(), "1".into())],
    };
    let made = world.attach(Wanted { extras, ..wanted("n", 1, &machine) }).await;
    let row = world.agent.endpoint(made.id.as_str());
    assert_eq!(
        (row.links["mine"].as_str(), row.forwarders, row.extra_addresses),
        ("db", vec!["192.0.2.9".to_owned()], vec!["169.254.9.9".to_owned()])
    );
    let set = world.taps[&1].extras();
    assert_eq!((set.len(), set[0].interface.as_str(), set[0].addresses[0].as_str()), (1, "eth0", "169.254.9.9/16"));
    assert_eq!(
        (set[0].sysctls[0].name.as_str(), set[0].sysctls[0].value.as_str()),
        ("ipv4/conf/eth0/log_martians", "1")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_step_names_it_and_leaves_nothing_behind() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("n", "10.9.0.0/24").await;
    for step in ["rows", "interface", "link", "confirm", "default route"] {
        *world.breaks.lock().unwrap() = Some(step);
        let error = world.engine().attach(wanted("n", 1, &machine)).await.unwrap_err().to_string();
        assert!(error.starts_with(&format!("attach to network n failed at step \"{step}\": ")), "{error}");
        *world.breaks.lock().unwrap() = None;
        world.assert_clean(step);
    }
    *world.breaks.lock().unwrap() = Some("taken");
    let error = world.engine().attach(wanted("n", 1, &machine)).await.unwrap_err().to_string();
    assert_eq!(error, "Address already in use");
    *world.breaks.lock().unwrap() = None;
    world.assert_clean("taken");
    // The address and the link number are free again.
    let endpoint = world.attach(wanted("n", 1, &machine)).await;
    assert_eq!(endpoint.address_v4.unwrap().to_string(), "10.9.0.2/24");
    assert_eq!(endpoint.link().unwrap().get(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_ovn_never_says_is_an_error_that_names_the_step() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("n", "10.9.0.0/24").await;
    let mut attaches = Vec::new();
    for step in ["address", "up"] {
        *world.breaks.lock().unwrap() = Some(step);
        let started = Instant::now();
        let error = world.engine().attach(wanted("n", 1, &machine)).await.unwrap_err().to_string();
        assert!(
            error.starts_with(&format!("attach to network n failed at step \"{step}\": nothing was heard")),
            "{error}"
        );
        attaches.push(started.elapsed());
        *world.breaks.lock().unwrap() = None;
        world.assert_clean(step);
    }
    assert!(attaches.iter().all(|took| *took < Duration::from_secs(15)), "{attaches:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exhausted_pool_is_told_in_dockers_words() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    let id = world.network("n", "10.9.0.0/30").await;
    world.attach(wanted("n", 1, &machine)).await;
    let second = Wanted { workload: workload(2), ..wanted("n", 1, &machine) };
    let error = world.engine().attach(second).await.unwrap_err().to_string();
    assert_eq!(error, format!("no available IPv4 addresses on this network's address pools: n ({id})"));
    assert_eq!(world.agent.endpoints(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_attaches_at_once_share_nothing() {
    let mut world = World::new().await;
    world.network("n", "10.9.0.0/24").await;
    let machines: Vec<_> = (1..=40).map(|n| (n, world.machine(n))).collect();
    let attaches = machines.iter().map(|(n, machine)| async {
        let started = Instant::now();
        let endpoint = world.attach(wanted("n", *n, machine)).await;
        (started.elapsed(), endpoint)
    });
    let done = futures_util::future::join_all(attaches).await;
    let distinct = |of: &dyn Fn(&arca_netd::model::Endpoint) -> String| {
        done.iter().map(|(_, endpoint)| of(endpoint)).collect::<BTreeSet<_>>().len()
    };
    assert_eq!(distinct(&|e| e.address_v4.unwrap().to_string()), 40);
    assert_eq!(distinct(&|e| e.place.as_ref().unwrap().mac.to_string()), 40);
    let links: BTreeSet<_> = done.iter().map(|(_, endpoint)| endpoint.link().unwrap().get()).collect();
    assert_eq!(links, (1..=40).collect());
    let mut took: Vec<_> = done.iter().map(|(took, _)| *took).collect();
    took.sort();
    println!("40 attaches at once against fakes: p50 {:?}, slowest {:?}", took[20], took[39]);
    world.engine().sync_attachments([workload(1)].into()).await.unwrap();
    assert_eq!(world.relay.links().len(), 1);
    assert_eq!(world.agent.endpoints(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_attach_after_the_other_for_the_record() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("n", "10.9.0.0/24").await;
    let mut took = Vec::new();
    for _ in 0..20 {
        let started = Instant::now();
        world.attach(wanted("n", 1, &machine)).await;
        took.push(started.elapsed());
        world.engine().detach("n".into(), workload(1)).await.unwrap();
    }
    took.sort();
    println!("attach against fakes (2 ms of them the fake OVN's): p50 {:?}, p95 {:?}", took[10], took[19]);
    world.assert_clean("after twenty");
}

#[tokio::test(flavor = "multi_thread")]
async fn new_names_reach_the_rows() {
    let mut world = World::new().await;
    let machine = world.machine(1);
    world.network("n", "").await;
    let endpoint = world.attach(wanted("n", 1, &machine)).await;
    world.engine().set_names(workload(1), "renamed".into()).await.unwrap();
    assert_eq!(world.agent.endpoint(endpoint.id.as_str()).names[0], "renamed");
    assert_eq!(world.engine().state().endpoints[&endpoint.id].workload_name, "renamed");
}

#[tokio::test(flavor = "multi_thread")]
async fn host_and_none_have_endpoints_without_an_interface() {
    let world = World::new().await;
    let plain = |network: &str, n| Wanted {
        machine: None,
        ..wanted(network, n, &arca_proto::dial::Address::Sockets("/x".into()))
    };
    let host = world.attach(plain("host", 1)).await;
    assert_eq!((host.place.clone(), host.address_v4), (None, None));
    let other = world.engine().attach(plain("bridge", 1)).await.unwrap_err().to_string();
    assert!(other.starts_with("container sharing network namespace with another container or host"), "{other}");
    world.attach(plain("none", 2)).await;
    let second = world.engine().attach(plain("bridge", 2)).await.unwrap_err().to_string();
    assert!(second.contains("private (none) mode"), "{second}");
    world.engine().detach("none".into(), workload(2)).await.unwrap();
    let stuck = world.engine().detach("host".into(), workload(1)).await.unwrap_err().to_string();
    assert!(stuck.starts_with("cannot disconnect container from host network"), "{stuck}");
    let missing = world.engine().detach("bridge".into(), workload(1)).await.unwrap_err().to_string();
    assert_eq!(missing, format!("container {} is not connected to network bridge", workload(1)));
    world.engine().detach_workload(workload(1)).await.unwrap();
}
