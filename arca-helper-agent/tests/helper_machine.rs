// SPDX-License-Identifier: Apache-2.0
//! The whole helper machine: real OVS and OVN from the helper image, booted by the supervisor. Needs root and the
//! environment variable ARCA_HELPER_ROOT, else SKIP. Everything happens in private namespaces.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // a test may fail where it stands, and prints what it measured

mod machine;

use std::net::Ipv4Addr;
use std::time::Duration;

use arca_helper_agent::ovsdb::{Atom, Database, Monitor, Op, Value};
use arca_proto::helper::v1::{
    ApplyRequest, ConfigureRequest, Endpoint, GetStatusRequest, ListPortsRequest, Network, Object, ObjectKey,
    ObjectKind, Observation, WatchRequest, object,
};
use arca_proto::relay::v1::Carrier;
use machine::wire::{Mac, Wire};
use machine::{Machine, eventually, in_sandbox, run};

const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 3);
const GATEWAY: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 1);
const MAC: Mac = [2, 0x42, 0xac, 0x12, 0, 2];
const SOON: Duration = Duration::from_secs(5);

fn id(digit: char) -> String {
    digit.to_string().repeat(64)
}

async fn configure(machine: &Machine) {
    if run("ip", &["-o", "link"]).contains("arca-up0") {
        run("ip", &["link", "delete", "arca-up0"]);
    }
    let init = machine.init.to_string();
    run("ip", &["link", "add", "arca-up0", "type", "veth", "peer", "name", "up0", "netns", &init]);
    run("ip", &["address", "add", "192.168.127.1/29", "dev", "arca-up0"]);
    run("ip", &["link", "set", "arca-up0", "up"]);
    declare_uplink().await;
    declare_uplink().await; // the same again changes nothing
}

async fn declare_uplink() {
    let request = ConfigureRequest {
        system_id: "helper-test".into(),
        uplink_interface: "up0".into(),
        router_address: "192.168.127.2/29".into(),
        next_hop: "192.168.127.1".into(),
        resolver_address: "192.168.127.3/29".into(),
        forwarders: vec![],
        ..ConfigureRequest::default()
    };
    let answer = Machine::client().configure(request).await.unwrap().into_inner();
    assert_eq!(answer.datapath, "netdev");
}

fn network() -> Object {
    let network = Network {
        id: id('a'),
        name: "front".into(),
        subnet_v4: "172.18.0.0/16".into(),
        gateway_v4: GATEWAY.to_string(),
        inter_container: true,
        masquerade: true,
        dns: true,
        mtu: 1442,
        ..Network::default()
    };
    Object { generation: 1, kind: Some(object::Kind::Network(network)) }
}

fn endpoint(link: u32, mac: Mac) -> Object {
    let endpoint = Endpoint {
        id: id(char::from_digit(link, 10).unwrap()),
        network_id: id('a'),
        link,
        mac: mac.map(|octet| format!("{octet:02x}")).join(":"),
        names: vec![format!("c{link}")],
        hostname: format!("c{link}"),
        carrier: Carrier::Stream.into(),
        machine_id: id('d'),
        ..Endpoint::default()
    };
    Object { generation: 1, kind: Some(object::Kind::Endpoint(endpoint)) }
}

async fn observed_up(link: u32) -> Observation {
    let mut stream = Machine::client().watch(WatchRequest {}).await.unwrap().into_inner();
    let wanted = id(char::from_digit(link, 10).unwrap());
    let search = async {
        loop {
            let observation = stream.message().await.unwrap().expect("watch goes on");
            assert_eq!(observation.error, "");
            if observation.up && observation.key.as_ref().is_some_and(|key| key.id == wanted) {
                return observation;
            }
        }
    };
    tokio::time::timeout(SOON, search).await.expect("up within 5 s")
}

fn address(observation: &Observation) -> Ipv4Addr {
    observation.address_v4.split('/').next().unwrap().parse().unwrap()
}

async fn wire(link: u32, epoch: u64, mac: Mac) -> Wire {
    eventually("a connection of the link", SOON, async || Wire::connect(link, epoch, mac).await).await
}

async fn print_memory(machine: &Machine) {
    let report = machine.supervised().await;
    let total: u64 = report.processes.iter().map(|p| p.resident_bytes).sum();
    let mut shares = 0;
    for process in &report.processes {
        // Pages that several programs map count in part here.
        let rollup = std::fs::read_to_string(machine.inside(&format!("/proc/{}/smaps_rollup", process.pid))).unwrap();
        let share = rollup.lines().find_map(|line| line.strip_prefix("Pss:")).unwrap();
        let share: u64 = share.trim().trim_end_matches(" kB").parse().unwrap();
        shares += share;
        println!("  {:<20} {:>6} KiB resident, {share:>6} KiB its share", process.name, process.resident_bytes >> 10);
    }
    println!("  {:<20} {:>6} KiB resident, {shares:>6} KiB share; boot {:?}", "all", total >> 10, report.boot_ms);
}

#[test]
fn boots_attaches_heals_and_stops() {
    in_sandbox("boots_attaches_heals_and_stops", async |mut machine| {
        configure(&machine).await;
        let put = vec![network(), endpoint(1, MAC)];
        let applied = Machine::client().apply(ApplyRequest { put, remove: vec![] }).await.unwrap().into_inner();
        assert!(applied.observations.iter().all(|o| o.error.is_empty()), "{applied:?}");
        let first = observed_up(1).await;
        let own = address(&first);
        println!("READY after {:?}, first address up after {:?}", machine.ready, machine.spawned.elapsed());

        // OVN itself answers on the wire: DHCP, ARP, the router; then the way out.
        let mut link = wire(1, 1, MAC).await;
        assert_eq!(link.discover().await, Some(own), "DHCP offers what was observed");
        let gateway = link.resolve(own, GATEWAY).await.expect("ARP for the gateway");
        link.ping(gateway, own, GATEWAY, 1).await.expect("ping the gateway");
        let ping = async |link: &mut Wire, host, n: u16| {
            for attempt in 0..10u16 {
                if link.ping(gateway, own, host, n + attempt).await.is_some() {
                    return true;
                }
            }
            false
        };
        assert!(ping(&mut link, HOST, 10).await, "ping the host through SNAT and the uplink");
        // Names are asked at the gateway; the helper's own address is no container's business.
        assert!(link.ping(gateway, own, RESOLVER, 30).await.is_none(), "nobody reaches the helper's own address");

        check_buffers(&machine);
        check_leak(&machine, &mut link, own).await;
        let ports = Machine::client().list_ports(ListPortsRequest {}).await.unwrap().into_inner().ports;
        assert_eq!(ports.len(), 1);
        assert!(ports[0].linked && ports[0].from_stream.unwrap().frames > 10 && ports[0].interface == "arca1");
        let status = Machine::client().get_status(GetStatusRequest {}).await.unwrap().into_inner();
        assert_eq!((status.system_id.as_str(), status.datapath.as_str()), ("helper-test", "netdev"));
        assert!(status.ovs_version.starts_with(char::is_numeric) && status.ovn_version.starts_with(char::is_numeric));
        assert!(status.databases.iter().all(|d| d.connected), "{:?}", status.databases);
        assert_eq!((status.processes.len(), status.networks, status.endpoints), (8, 1, 1));
        assert!(status.faults.is_empty(), "{:?}", status.faults);
        check_command_line();
        print_memory(&machine).await;

        // Each program in turn is killed; it alone comes back, and the container's traffic with it.
        let programs: Vec<_> = machine.supervised().await.processes.into_iter().skip(1).collect();
        let (mut epoch, mut sequence) = (1, 1000);
        for program in programs {
            let killed = std::time::Instant::now();
            machine.kill(program.pid);
            let back = eventually("a restart", SOON, async || {
                let now = machine.supervised().await.processes;
                now.into_iter().find(|p| p.name == program.name && p.restarts == 1 && p.pid != 0)
            });
            assert_ne!(back.await.pid, program.pid);
            let restarted = killed.elapsed();
            eventually(&format!("traffic after {} was killed", program.name), SOON, async || {
                sequence += 1; // a late reply to an earlier request proves nothing
                if link.ping(gateway, own, GATEWAY, sequence).await.is_none() {
                    epoch += 1;
                    link = Wire::connect(1, epoch, MAC).await?;
                    return None;
                }
                Some(())
            })
            .await;
            println!("{:<20} killed: restarted after {restarted:?}, ping after {:?}", program.name, killed.elapsed());
        }
        let healed = eventually("DHCP and the way out after all that", SOON, async || {
            let offered = link.discover().await?;
            ping(&mut link, HOST, 200).await.then_some(offered)
        });
        assert_eq!(healed.await, own);
        assert!(machine.supervised().await.processes.iter().skip(1).all(|p| p.restarts == 1));
        check_buffers(&machine);

        // The restarted agent is told everything again, as arca-netd does; then a second port. Withdraw both: nothing
        // of them stays.
        declare_uplink().await;
        let put = vec![network(), endpoint(1, MAC), endpoint(2, [2, 0x42, 0xac, 0x12, 0, 3])];
        Machine::client().apply(ApplyRequest { put, remove: vec![] }).await.unwrap();
        assert_eq!(address(&observed_up(1).await), own);
        observed_up(2).await;
        let key = |digit| ObjectKey { kind: ObjectKind::Endpoint.into(), id: id(digit), generation: 2 };
        let remove = vec![key('1'), key('2')];
        Machine::client().apply(ApplyRequest { put: vec![], remove }).await.unwrap();
        assert!(!machine.in_network("ip -o link").contains("arca1"));
        assert!(!machine.in_network("nft list ruleset").contains("arca1"));
        assert!(!std::path::Path::new("/tmp/s/30001").exists());

        let (code, took) = machine.stop().await;
        println!("stopped after {took:?}");
        assert_eq!(code, Some(0));

        // The second boot on the same data knows chassis and networks; the port gets its address anew.
        drop(machine);
        let machine = Machine::start().await;
        configure(&machine).await;
        let put = vec![network(), endpoint(1, MAC)];
        Machine::client().apply(ApplyRequest { put, remove: vec![] }).await.unwrap();
        assert_eq!(address(&observed_up(1).await), own);
        println!("second boot: READY after {:?}, address up after {:?}", machine.ready, machine.spawned.elapsed());
    });
}

/// `status` and `ports` show what the services answer, as text and as JSON.
fn check_command_line() {
    let ask =
        |what: &str, more: &[&str]| run("/tmp/r/sbin/arca-helper-agent", &[&[what, "--sockets=/tmp/s"], more].concat());
    let json = |what| -> serde_json::Value { serde_json::from_str(&ask(what, &["--json"])).unwrap() };
    assert_eq!(json("status")["system_id"], "helper-test");
    assert_eq!(json("ports")[0]["interface"], "arca1");
    assert!(ask("status", &[]).contains("ovs-vswitchd") && ask("ports", &[]).contains("arca1"));
}

/// Every packet socket that ovs-vswitchd receives by has the great buffer (the kernel doubles the figure). Protocol 0
/// receives nothing: OVS sends by it.
fn check_buffers(machine: &Machine) {
    let sockets = machine.in_network("ss --packet --memory --numeric --processes --oneline");
    let receiving = sockets.lines().filter(|line| line.contains("ovs-vswitchd") && !line.contains(" [0]:"));
    let small: Vec<_> = receiving.clone().filter(|line| !line.contains("rb16777216")).collect();
    assert!(receiving.count() >= 2 && small.is_empty(), "{sockets}");
}

/// A container addresses the TAP itself, past all of OVN: the helper's kernel must not see it. Without the ingress
/// chain it does, which shows that the chain is what keeps it out.
async fn check_leak(machine: &Machine, link: &mut Wire, own: Ipv4Addr) {
    let tap = machine.in_network("ip -o link show arca1");
    let text = tap.split("link/ether ").last().unwrap().split_whitespace().next().unwrap().to_owned();
    let octets: Vec<u8> = text.split(':').map(|part| u8::from_str_radix(part, 16).unwrap()).collect();
    let tap: Mac = octets.try_into().unwrap();
    let echoes = || -> u64 {
        let table = machine.in_network("grep ^Icmp: /proc/net/snmp");
        let [names, values] = [0, 1].map(|n| table.lines().nth(n).unwrap().split_whitespace());
        names.zip(values).find(|(name, _)| *name == "InEchos").unwrap().1.parse().unwrap()
    };
    let attack = async |link: &mut Wire| {
        let before = echoes();
        for n in 0..20 {
            assert!(link.echo(tap, own, RESOLVER, 500 + n).await);
        }
        // What is behind these frames in the same queue has come back, so they have been through.
        let gateway = link.resolve(own, GATEWAY).await.unwrap();
        link.ping(gateway, own, GATEWAY, 600).await.unwrap();
        echoes() - before
    };
    let filter = "for f in /proc/sys/net/ipv4/conf/*/rp_filter; do echo 0 > $f; done";
    machine.in_network(filter);
    assert_eq!(attack(link).await, 0, "with the ingress chain nothing reaches the helper's kernel");
    machine.in_network("nft delete chain netdev arca-ingress arca1");
    let leaked = attack(link).await;
    println!("leak: 0 of 20 echo requests reached the helper's kernel with the ingress chain, {leaked} without");
    assert!(leaked > 0, "without the chain it leaks, or this test tests nothing");
    machine.in_network(
        "nft 'add chain netdev arca-ingress arca1 { type filter hook ingress device arca1 priority 0; policy drop; }'",
    );
    assert_eq!(attack(link).await, 0);
}

/// The client alone, without the service: one switch with one port made by hand, on the wire of an OVS internal port.
#[test]
fn the_client_alone_makes_a_switch_that_answers() {
    in_sandbox("the_client_alone_makes_a_switch_that_answers", async |machine| {
        let ids = Op::mutate("Open_vSwitch").mutation(
            "external_ids",
            arca_helper_agent::ovsdb::Mutator::Insert,
            Value::map([("system-id", "by-hand")]),
        );
        let monitors = arca_helper_agent::vswitch::monitors();
        let conf = Database::connect(machine.inside("/run/openvswitch/db.sock"), "Open_vSwitch", monitors);
        conf.ready().await.unwrap();
        let (bridge, _) = conf.snapshot().find("Bridge", "name", "br-int").map(|(u, r)| (u, r.clone())).unwrap();
        let port = vec![
            ids,
            Op::insert("Interface")
                .named("i")
                .set("name", "by-hand")
                .set("type", "internal")
                .set("external_ids", Value::map([("iface-id", "port")])),
            Op::insert("Port").named("p").set("name", "by-hand").set("interfaces", Atom::named("i")),
            Op::mutate("Bridge").row(bridge).mutation(
                "ports",
                arca_helper_agent::ovsdb::Mutator::Insert,
                Atom::named("p"),
            ),
        ];
        conf.transact(port).await.unwrap();
        let monitors = vec![Monitor::new("Logical_Switch_Port", &["name", "dynamic_addresses", "up"])];
        let nb = Database::connect(machine.inside("/run/ovn/ovnnb_db.sock"), "OVN_Northbound", monitors);
        nb.ready().await.unwrap();
        let started = std::time::Instant::now();
        let switch = vec![
            Op::insert("Logical_Switch_Port")
                .named("p")
                .set("name", "port")
                .set("addresses", "02:00:00:00:00:05 dynamic"),
            Op::insert("Logical_Switch")
                .set("name", "switch")
                .set("other_config", Value::map([("subnet", "10.9.0.0/24")]))
                .set("ports", Atom::named("p")),
        ];
        nb.transact(switch).await.unwrap();
        let allocated = nb.wait_for(|s| {
            let row = s.find("Logical_Switch_Port", "name", "port")?.1;
            let text = row.str("dynamic_addresses");
            (!text.is_empty()).then(|| text.to_owned())
        });
        let allocated = tokio::time::timeout(SOON, allocated).await.unwrap().unwrap();
        let at_address = started.elapsed();
        let up = nb.wait_for(|s| s.find("Logical_Switch_Port", "name", "port")?.1.bool("up").filter(|up| *up));
        tokio::time::timeout(SOON, up).await.unwrap().unwrap();
        println!("OVN allocated {allocated} after {at_address:?}, up after {:?}", started.elapsed());
        assert_eq!(allocated, "02:00:00:00:00:05 10.9.0.2");
    });
}
