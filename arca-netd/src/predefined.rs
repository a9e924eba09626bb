// SPDX-License-Identifier: Apache-2.0
//! The three networks that are always there. Made once; their ids stay for the life of the database.

use crate::{
    error::Result,
    model::{Kind, Network, NetworkId, ShownPool, Spec},
    pools::DEFAULT_BRIDGE,
    store::Draft,
    validate::{create::Context, ipam},
};

/// Options that `docker network inspect bridge` shows (Docker API, "inspect / list shape").
const BRIDGE_OPTIONS: [(&str, &str); 6] = [
    ("com.docker.network.bridge.default_bridge", "true"),
    ("com.docker.network.bridge.enable_icc", "true"),
    ("com.docker.network.bridge.enable_ip_masquerade", "true"),
    ("com.docker.network.bridge.host_binding_ipv4", "0.0.0.0"),
    ("com.docker.network.bridge.name", "docker0"),
    ("com.docker.network.driver.mtu", "1500"),
];

/// Adds those of `bridge`, `host` and `none` that are missing.
///
/// # Errors
/// If the kernel gives no random bytes.
pub fn ensure(draft: &mut Draft, context: &Context) -> Result<()> {
    for (name, driver, kind) in
        [("bridge", "bridge", Kind::Ovs), ("host", "host", Kind::Host), ("none", "null", Kind::None)]
    {
        if draft.networks.values().any(|network| network.name() == name) {
            continue;
        }
        let bridge = kind == Kind::Ovs;
        let gateway = ipam::first_host(DEFAULT_BRIDGE);
        let shown =
            ShownPool { subnet: DEFAULT_BRIDGE.to_string(), gateway: gateway.to_string(), ..ShownPool::default() };
        let options = BRIDGE_OPTIONS.iter().filter(|_| bridge).map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        let spec = Spec {
            name: name.into(),
            driver: driver.into(),
            scope: "local".into(),
            options: options.collect(),
            ..Spec::default()
        };
        let generation = draft.next_generation();
        draft.put_network(Network {
            id: NetworkId::random().map_err(crate::error::Error::io("draw a network id"))?,
            spec,
            created_at_ns: context.now_ns,
            kind,
            v4: bridge.then(|| ipam::default_v4(DEFAULT_BRIDGE, gateway, false)),
            v6: None,
            shown_pools: if bridge { vec![shown] } else { Vec::new() },
            enable_ipv4: true,
            enable_ipv6: false,
            // Docker has no embedded names on the default bridge; an OVN DNS row would answer whichever server was asked.
            dns: false,
            mtu: 1500,
            inter_container: true,
            masquerade: true,
            predefined: true,
            generation,
        });
    }
    Ok(())
}
