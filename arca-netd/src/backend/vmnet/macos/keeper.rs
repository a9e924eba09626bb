// SPDX-License-Identifier: Apache-2.0
//! `arca-netd vmnet-keeper`: owns one network of vmnet.framework, which dies with the process that made it. A job of launchd:
//! it outlives arca-netd and answers on a socket of its own until it is told to end.

use std::{
    io::Write as _,
    os::unix::net::{UnixListener, UnixStream},
    sync::Arc,
};

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::{
    super::{
        KeeperOptions,
        keeper::{self, Network, Way},
        wanted::Names,
    },
    ffi::{Framework, VmnetNetwork},
    interface::{Interface, Terms},
    xpc,
};
use crate::error::{Error, Result};

/// What it says when its network is there.
pub(super) const READY: &str = "ready";

/// The network, by what this system has.
enum Kept {
    /// A network object (macOS 26): handed out by a mach service.
    Object(String),
    /// Interfaces with the same subnet (before).
    Interfaces(Framework, Terms),
}

impl Network for Kept {
    type Plug = Option<Interface>;

    fn plug(&self, mtu: u32) -> std::result::Result<(Way, Self::Plug), String> {
        match self {
            Self::Object(service) => Ok((Way::Service(service.clone()), None)),
            Self::Interfaces(framework, terms) => {
                let (interface, socket) = Interface::start(*framework, terms, mtu)?;
                Ok((Way::Frames(socket), Some(interface)))
            }
        }
    }
}

/// Makes the network, says so to arca-netd, and serves until the end.
pub(super) fn run(options: &KeeperOptions) -> Result<()> {
    let made = make(options);
    let word = match &made {
        Ok(_) => READY.to_owned(),
        Err(error) => error.to_string().replace('\n', " "),
    };
    // Who does not listen any more has given up; the network is then found by its socket, or taken down.
    if let Ok(mut netd) = UnixStream::connect(&options.tell) {
        let _ = writeln!(netd, "{word}");
    }
    let (listener, kept) = made?;
    keeper::serve(listener, kept).map_err(Error::io("serve a network"))?;
    std::fs::remove_file(&options.socket).map_err(Error::io("remove the keeper's socket"))
}

fn make(options: &KeeperOptions) -> Result<(UnixListener, Kept)> {
    let failed = |error: &dyn std::error::Error| Error::Failed(error.to_string());
    let v4 = options.gateway.iter().find_map(|net| if let IpNet::V4(net) = net { Some(*net) } else { None });
    let v6 = options.gateway.iter().find_map(|net| if let IpNet::V6(net) = net { Some(*net) } else { None });
    let v4: Ipv4Net = v4.ok_or_else(|| Error::Unsupported("vmnet.framework has no networks without IPv4".into()))?;
    let v6: Option<Ipv6Net> = v6;
    let framework = Framework::load().map_err(|error| failed(&error))?;
    let kept = if VmnetNetwork::is_there(framework) {
        let network = VmnetNetwork::create(framework, (v4, v6), options.mtu, options.internal);
        let network = Arc::new(network.map_err(|error| failed(&error))?);
        xpc::serve(&options.service, &network).map_err(Error::io("hand the network out"))?;
        Kept::Object(options.service.clone())
    } else {
        Kept::Interfaces(framework, Terms { gateways: options.gateway.clone(), internal: options.internal })
    };
    // Whoever had the socket is gone, or arca-netd would have found him.
    let _ = std::fs::remove_file(&options.socket);
    let listener = UnixListener::bind(&options.socket).map_err(Error::io("listen for machines"))?;
    Ok((listener, kept))
}

/// The socket's file name.
pub(super) fn socket_name(segment: &str) -> String {
    format!("{segment}.sock")
}

/// Segment of a socket's file name, if it is one of this engine's.
pub(super) fn segment_of(file: &str, names: &Names) -> Option<String> {
    let segment = file.strip_suffix(".sock")?;
    segment.starts_with(&names.segments()).then(|| segment.to_owned())
}
