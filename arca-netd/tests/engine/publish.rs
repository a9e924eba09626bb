// SPDX-License-Identifier: Apache-2.0
use arca_netd::{model::Protocol, publish::Binding, validate::endpoint::Wanted};

use crate::fakes::{World, wanted, workload};

fn port(host: &str, first: u16, last: u16) -> Binding {
    Binding {
        protocol: Protocol::Tcp,
        container_port: 80,
        host_ip: host.parse().ok(),
        host_ports: (first > 0).then_some((first, last)),
    }
}

async fn world() -> World {
    let mut world = World::new().await;
    world.network("n", "10.9.0.0/24").await;
    for n in 1..=2 {
        let machine = world.machine(n);
        world.attach(wanted("n", n, &machine)).await;
    }
    world
}

async fn refusal(world: &World, n: u8, bindings: Vec<Binding>) -> String {
    world.engine().publish(workload(n), bindings).await.unwrap_err().to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_is_bound_in_both_families_and_leads_to_one_row() {
    let world = world().await;
    let done = world.engine().publish(workload(1), vec![port("", 8080, 8080)]).await.unwrap();
    assert_eq!(world.relay.listeners(), [("0.0.0.0".to_owned(), 8080), ("::".to_owned(), 8080)]);
    let rows = world.agent.ports();
    assert_eq!((rows.len(), rows[0].vip_port, rows[0].target_port), (1, 8080, 80));
    assert_eq!(Some(rows[0].endpoint_id.as_str()), done[0].endpoint.as_ref().map(|id| id.as_str()));
    world.engine().detach_workload(workload(1)).await.unwrap();
    assert_eq!((world.relay.listeners().len(), world.agent.ports().len()), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_are_dockers_and_all_or_nothing() {
    let world = world().await;
    world.engine().publish(workload(1), vec![port("", 8080, 8080)]).await.unwrap();
    let id = world.engine().state().endpoints.values().find(|e| e.workload == workload(2)).unwrap().id.clone();
    let head = format!("driver failed programming external connectivity on endpoint c2 ({id}): ");
    let taken = refusal(&world, 2, vec![port("", 9000, 9000), port("127.0.0.1", 8080, 8080)]).await;
    // Docker names the address of the one that holds the port.
    assert_eq!(taken, format!("{head}Bind for 0.0.0.0:8080 failed: port is already allocated"));
    world.relay.occupy(7000);
    let outside = refusal(&world, 2, vec![port("", 9000, 9000), port("", 7000, 7000)]).await;
    let address = "10.9.0.3";
    assert_eq!(
        outside,
        format!("{head}failed to bind host port for 0.0.0.0:7000:{address}:80/tcp: address already in use")
    );
    let foreign = refusal(&world, 2, vec![port("203.0.113.9", 18081, 18081)]).await;
    assert_eq!(
        foreign,
        format!(
            "{head}failed to bind host port for 203.0.113.9:18081:{address}:80/tcp: cannot assign requested address"
        )
    );
    assert_eq!(world.relay.listeners().len(), 2, "only the first container's");
    assert_eq!((world.agent.ports().len(), world.engine().state().publications.len()), (1, 1));
}

#[tokio::test(flavor = "multi_thread")]
async fn ranges_and_ephemeral_ports_step_over_what_is_taken() {
    let world = world().await;
    world.relay.occupy(18100);
    let first = world.engine().publish(workload(1), vec![port("", 18100, 18105)]).await.unwrap();
    assert_eq!(first[0].listeners[0].host_port, 18101);
    let second = world.engine().publish(workload(2), vec![port("", 18100, 18105), port("", 0, 0)]).await.unwrap();
    assert_eq!(second[0].listeners[0].host_port, 18102);
    let [a, b] = [&second[1].listeners[0], &second[1].listeners[1]];
    assert_eq!(a.host_port, b.host_port);
    assert!((32768..=60999).contains(&a.host_port));
}

#[tokio::test(flavor = "multi_thread")]
async fn two_host_addresses_share_a_port_number_and_udp_and_tcp_share_nothing() {
    let world = world().await;
    let udp = Binding { protocol: Protocol::Udp, ..port("127.0.0.1", 53, 53) };
    let all = vec![port("127.0.0.1", 53, 53), port("127.0.0.2", 53, 53), udp];
    let done = world.engine().publish(workload(1), all).await.unwrap();
    let vips: Vec<_> = done.iter().map(|publication| (publication.protocol, publication.vip_port)).collect();
    assert_eq!(vips, [(Protocol::Tcp, 53), (Protocol::Tcp, 20_000), (Protocol::Udp, 53)]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_port_follows_the_default_route() {
    let mut world = world().await;
    world.network("a", "10.8.0.0/24").await;
    world.engine().publish(workload(1), vec![port("", 8080, 8080)]).await.unwrap();
    let machine = world.machine(1);
    let a = world.attach(Wanted { gateway_priority: 1, ..wanted("a", 1, &machine) }).await;
    assert_eq!(world.agent.ports()[0].endpoint_id, a.id.as_str());
    world.engine().detach("a".into(), workload(1)).await.unwrap();
    assert_ne!(world.agent.ports()[0].endpoint_id, a.id.as_str());
    world.engine().detach("n".into(), workload(1)).await.unwrap();
    // Without a way out it is given back; who connects the container again publishes it again.
    assert_eq!((world.agent.ports().len(), world.relay.listeners().len()), (0, 0));
    world.attach(wanted("n", 1, &machine)).await;
    world.engine().publish(workload(1), vec![port("", 8080, 8080)]).await.unwrap();
    assert_eq!((world.agent.ports().len(), world.relay.listeners().len()), (1, 2));
}
