// SPDX-License-Identifier: Apache-2.0
//! The `agent` process: creates every part in reading order, says READY, serves until SIGTERM.

use anyhow::Context as _;
use arca_daemon::shutdown::Shutdown;
use arca_proto::listen::ListenOn;
use arca_proto::ports as port_plan;

use crate::layout::Layout;
use crate::ovsdb::Database;
use crate::parts::Parts;
use crate::ports::Ports;
use crate::uplink::Uplink;
use crate::vswitch::{self, Vswitch};
use crate::{publish, ready, service, status};

/// How the agent is started.
#[derive(Clone, Debug)]
pub struct Options {
    /// Where ports 9998, 9999 and 30000 + n are.
    pub listen: ListenOn,
    /// Say READY to the host: the supervisor asks for it at the first start.
    pub ready: bool,
    /// Files and sockets of the machine.
    pub layout: Layout,
}

/// Runs the agent until it is told to end.
///
/// # Errors
/// The gRPC port is taken, or a database has another schema than this program needs.
pub async fn run(options: Options) -> anyhow::Result<()> {
    let Options { listen, ready, layout } = options;
    let (_trigger, shutdown) = Shutdown::on_signals().context("set signal handlers")?;
    let nb = Database::connect(layout.nb_socket(), "OVN_Northbound", service::nb_monitors());
    let sb = Database::connect(layout.sb_socket(), "OVN_Southbound", status::sb_monitors());
    let conf = Database::connect(layout.conf_socket(), "Open_vSwitch", vswitch::monitors());
    let vswitch = Vswitch::open(conf.clone(), &layout).await.context("open the switch")?;
    let ports = Ports::new(vswitch.clone(), listen.clone());
    let uplink = Uplink::new(vswitch, layout.clone());
    let follow = uplink.clone();
    tokio::spawn(async move {
        if let Err(error) = follow.watch().await {
            tracing::error!(error = &error as &dyn std::error::Error, "restarts of ovs-vswitchd go unnoticed");
        }
    });
    let restored = ports.restore().await;
    if restored > 0 {
        tracing::info!(restored, "ports of before taken up");
    }
    let status = status::Source::new(conf, nb.clone(), sb, layout);
    let listener = listen.bind(port_plan::HELPER).with_context(|| format!("listen on {listen} port 9999"))?;
    let clients = listen.bind(port_plan::PUBLISH).with_context(|| format!("listen on {listen} port 9998"))?;
    tokio::spawn(publish::serve(clients, uplink.clone()));
    let routes = service::routes(Parts { nb, ports, uplink, status });
    let serving =
        arca_daemon::serve::serve(listener, routes, &["arca.helper.v1.Helper", "arca.tap.v1.Trace"], shutdown);
    if ready {
        // The port is bound: whoever dials now waits in its queue at worst.
        tokio::spawn(ready::say(listen));
    }
    serving.await.context("serve gRPC")
}
