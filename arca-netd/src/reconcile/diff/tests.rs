// SPDX-License-Identifier: Apache-2.0
use proptest::prelude::*;

use super::*;

fn helper() -> Address {
    Address::Sockets("/h".into())
}

fn machine(n: u8) -> Address {
    Address::Sockets(format!("/m/{n}").into())
}

fn id(n: u8) -> PublicationId {
    PublicationId::try_from(format!("{n:064x}")).unwrap()
}

fn endpoint(n: u8) -> EndpointId {
    EndpointId::try_from(format!("{n:064x}")).unwrap()
}

fn bound(port: u16) -> Bound {
    Bound {
        protocol: Protocol::Tcp,
        host_ip: [127, 0, 0, 1].into(),
        host_port: port,
        vip_port: port,
        by_v6: false,
        helper: None,
    }
}

fn link() -> impl Strategy<Value = LinkNumber> {
    (1_u32..12).prop_map(|n| LinkNumber::try_from(n).unwrap())
}

prop_compose! {
    fn observed()(
        links in prop::collection::btree_map(link(), (0_u8..3).prop_map(|n| (machine(n), helper())), 0..10),
        listeners in prop::collection::btree_map((0_u8..8).prop_map(id), (1_u16..4).prop_map(bound), 0..8),
    ) -> Observed {
        Observed { links, listeners, foreign: BTreeSet::new() }
    }
}

prop_compose! {
    fn desired()(
        links in prop::collection::btree_map(link(), (0_u8..3).prop_map(|n| (endpoint(n), machine(n))), 0..10),
        pending in prop::collection::btree_set(link(), 0..4),
        listeners in prop::collection::btree_map((0_u8..8).prop_map(id), (1_u16..4).prop_map(bound), 0..8),
        pending_listeners in prop::collection::btree_set((0_u8..8).prop_map(id), 0..3),
    ) -> Desired {
        let pending_links = pending.into_iter().filter(|l| !links.contains_key(l)).collect();
        let pending_listeners = pending_listeners.into_iter().filter(|l| !listeners.contains_key(l)).collect();
        Desired { links, pending_links, listeners, pending_listeners }
    }
}

fn act(observed: &mut Observed, desired: &Desired, actions: &[Action]) {
    for action in actions {
        match action {
            Action::Close(link) => drop(observed.links.remove(link)),
            Action::Unpublish(id) => {
                observed.foreign.remove(id);
                observed.listeners.retain(|known, _| known.as_str() != id);
            }
            Action::Open(link) => {
                observed.links.insert(*link, (desired.links[link].1.clone(), helper()));
            }
            Action::Publish(id) => {
                let before = observed.listeners.insert(id.clone(), desired.listeners[id].clone());
                assert_eq!(before, None, "a listener is closed before it is bound anew");
            }
        }
    }
}

proptest! {
    #[test]
    fn acting_on_the_difference_leaves_none(mut observed in observed(), desired in desired()) {
        let before = observed.clone();
        let actions = diff(&observed, &desired, Some(&helper()));
        act(&mut observed, &desired, &actions);
        prop_assert_eq!(diff(&observed, &desired, Some(&helper())), vec![]);
        for (link, (_, container)) in &desired.links {
            prop_assert_eq!(&observed.links[link].0, container);
        }
        for link in before.links.keys().filter(|link| desired.pending_links.contains(link)) {
            prop_assert_eq!(&observed.links[link], &before.links[link]);
        }
        prop_assert!(observed.links.keys().all(|l| desired.links.contains_key(l) || desired.pending_links.contains(l)));
    }

    #[test]
    fn removals_come_before_additions(observed in observed(), desired in desired()) {
        let actions = diff(&observed, &desired, Some(&helper()));
        let adds = |action: &Action| matches!(action, Action::Open(_) | Action::Publish(_));
        let first_add = actions.iter().position(adds).unwrap_or(actions.len());
        prop_assert!(actions[first_add..].iter().all(adds));
    }

    #[test]
    fn what_is_as_wanted_is_not_touched(desired in desired()) {
        let links = desired.links.iter().map(|(link, (_, at))| (*link, (at.clone(), helper()))).collect();
        let observed = Observed { links, listeners: desired.listeners.clone(), foreign: BTreeSet::new() };
        prop_assert_eq!(diff(&observed, &desired, Some(&helper())), vec![]);
    }
}

#[test]
fn without_a_helper_nothing_is_opened_and_the_rest_is_done() {
    let one = LinkNumber::MIN;
    let desired = Desired {
        links: BTreeMap::from([(one, (endpoint(1), machine(1)))]),
        listeners: BTreeMap::from([(id(1), bound(1))]),
        ..Desired::default()
    };
    assert_eq!(diff(&Observed::default(), &desired, None), [Action::Publish(id(1))]);
}

#[test]
fn another_helper_or_machine_address_reopens_the_link() {
    let one = LinkNumber::MIN;
    let desired = Desired { links: BTreeMap::from([(one, (endpoint(1), machine(1)))]), ..Desired::default() };
    let at =
        |container, helper| Observed { links: BTreeMap::from([(one, (container, helper))]), ..Observed::default() };
    assert_eq!(diff(&at(machine(2), helper()), &desired, Some(&helper())), [Action::Open(one)]);
    assert_eq!(diff(&at(machine(1), machine(9)), &desired, Some(&helper())), [Action::Open(one)]);
    assert_eq!(diff(&at(machine(1), helper()), &desired, Some(&helper())), []);
}
