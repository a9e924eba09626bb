// SPDX-License-Identifier: Apache-2.0
//! The host daemons as a service manager sees them: one table, which the daemons bind their sockets by and
//! `arca service` writes systemd units and launchd property lists from.

use std::path::PathBuf;

use arca_proto::listen::Listener;

use crate::{exit::Fatal, paths::Paths, serve};

/// One host daemon.
#[derive(Clone, Copy, Debug)]
pub struct Service {
    /// Its program, and the name of its unit.
    pub program: &'static str,
    /// One line for people.
    pub description: &'static str,
    /// Name of its listening socket: systemd's `FileDescriptorName=`, launchd's key in `Sockets`.
    pub socket: &'static str,
    /// Permission bits of that socket.
    pub mode: u32,
    /// Whether it starts machines. They outlive it, so what is forbidden to it would be forbidden to containers too.
    pub starts_machines: bool,
    /// Where its socket lies.
    pub path: fn(&Paths) -> PathBuf,
}

/// Links and listeners of published ports.
pub const RELAYD: Service = Service {
    program: "arca-relayd",
    description: "Arca: links and published ports",
    socket: "relayd",
    mode: 0o600,
    starts_machines: false,
    path: Paths::relayd_socket,
};

/// Networks and the helper machine.
pub const NETD: Service = Service {
    program: "arca-netd",
    description: "Arca: networks",
    socket: "netd",
    mode: 0o600,
    starts_machines: true,
    path: Paths::netd_socket,
};

/// Docker's API.
pub const API: Service = Service {
    program: "arca-api",
    description: "Arca: Docker Engine API",
    socket: "docker",
    mode: 0o660,
    starts_machines: true,
    path: |paths| paths.docker_socket.clone(),
};

/// The host daemons, in the order they are started where nobody starts them on demand; they are stopped in reverse.
pub const SERVICES: [Service; 3] = [RELAYD, NETD, API];

/// What a daemon serves on.
#[derive(Debug)]
pub struct Listening {
    /// The socket.
    pub listener: Listener,
    /// Whether a service manager made it: then its file is not this process's to remove.
    pub inherited: bool,
}

impl Service {
    /// The socket that the service manager handed down, else one bound here.
    ///
    /// # Errors
    /// A [`Fatal`] that says who is in the way or which directory cannot be written.
    pub fn listen(&self, paths: &Paths) -> Result<Listening, Fatal> {
        if let Some(listener) = crate::listeners::inherited(self.socket)? {
            tracing::debug!(socket = self.socket, "handed down by the service manager");
            return Ok(Listening { listener, inherited: true });
        }
        Ok(Listening { listener: serve::bind_socket(&(self.path)(paths), self.mode)?, inherited: false })
    }
}
