// SPDX-License-Identifier: Apache-2.0
//! `arca-netd vmnet-keeper`: owns one network of vmnet.framework, which dies with the process that made it. It outlives
//! arca-netd and answers on a socket of its own until it is told to end.

use std::{
    io::{BufRead as _, BufReader, Write as _},
    os::unix::net::UnixListener,
};

use ipnet::IpNet;

use super::{
    super::{KeeperOptions, wanted::Names},
    ffi::VmnetNetwork,
};
use crate::error::{Error, Result};

/// What it says when its network is there.
pub(super) const READY: &str = "ready";
/// What ends it.
pub(super) const END: &str = "end";

/// Makes the network, says so on standard output, and serves until the end.
pub(super) fn run(options: &KeeperOptions) -> Result<()> {
    let IpNet::V4(gateway) = options.gateway else {
        return Err(Error::Unsupported("a vmnet network without IPv4 is not supported yet".into()));
    };
    let network = VmnetNetwork::create(gateway, options.mtu, options.internal);
    let _network = network.map_err(|error| Error::Failed(error.to_string()))?;
    // Whoever had the socket is gone, or arca-netd would have found him.
    let _ = std::fs::remove_file(&options.socket);
    let listener = UnixListener::bind(&options.socket).map_err(Error::io("listen for arca-netd"))?;
    let mut out = std::io::stdout();
    writeln!(out, "{READY}").and_then(|()| out.flush()).map_err(Error::io("tell arca-netd"))?;
    for connection in listener.incoming() {
        let Ok(connection) = connection else { continue };
        let mut line = String::new();
        // Who connects and says nothing only asks whether somebody is here.
        if BufReader::new(&connection).read_line(&mut line).is_ok() && line.trim_end() == END {
            break;
        }
    }
    std::fs::remove_file(&options.socket).map_err(Error::io("remove the keeper's socket"))
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
