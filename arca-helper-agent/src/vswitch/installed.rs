// SPDX-License-Identifier: Apache-2.0
//! Which ports carry frames: ovn-controller says so at the interface as soon as the switch has their flows
//! (`external_ids:ovn-installed`, ovn-controller(8)).
//!
//! The northbound database says it too (`LSP.up`), but only when ovn-northd, which may have much to compute, has passed
//! it on from the southbound one.

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;

use crate::ovsdb::{Database, Row, Snapshot};

/// `iface-id`s of such ports: names of logical switch ports.
pub type Installed = BTreeSet<String>;

/// Follows the switch's database until that ends or nobody listens.
pub(super) fn follow(conf: &Database) -> watch::Receiver<Installed> {
    let mut changes = conf.changed();
    let mut before = Arc::<Snapshot>::default();
    let (send, receive) = watch::channel(Installed::new());
    tokio::spawn(async move {
        let mut now = changes.current();
        loop {
            send.send_if_modified(|installed| update(installed, &before, &now));
            before = now;
            tokio::select! {
                // Cancel-safe: nothing is taken until it returns.
                next = changes.next() => match next {
                    Some(next) => now = next,
                    None => return,
                },
                // Cancel-safe: only tells that nobody listens.
                () = send.closed() => return,
            }
        }
    });
    receive
}

fn update(installed: &mut Installed, before: &Snapshot, now: &Snapshot) -> bool {
    let id = |row: &Option<Arc<Row>>| {
        let row = row.as_ref().filter(|row| row.key("external_ids", "ovn-installed") == Some("true"))?;
        row.key("external_ids", "iface-id").map(str::to_owned)
    };
    let changes = now.changes_since(before);
    let (mut gone, mut come) = (Vec::new(), Vec::new());
    for change in changes.iter().filter(|change| change.table == "Interface") {
        let (old, new) = (id(&change.old), id(&change.new));
        if old != new {
            gone.extend(old);
            come.extend(new);
        }
    }
    // An interface may have taken over the port of another.
    let removed = gone.iter().filter(|id| installed.remove(*id)).count();
    let any = removed > 0 || !come.is_empty();
    installed.extend(come);
    any
}
