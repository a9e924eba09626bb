// SPDX-License-Identifier: Apache-2.0
//! Sockets that a service manager made before this process was started: systemd's (sd_listen_fds(3)) and launchd's
//! (launch_activate_socket(3)). Clients may connect before the daemon runs; nobody has to be started in an order.

use arca_proto::listen::Listener;

use crate::exit::{Failure, Fatal};

#[cfg(not(target_os = "macos"))]
#[path = "listeners/systemd.rs"]
mod manager;
#[cfg(target_os = "macos")]
#[path = "listeners/launchd.rs"]
mod manager;

/// The listening socket called `name`, if a service manager handed one down. Of the same name only the first call gets it.
///
/// # Errors
/// The service manager's word about its sockets makes no sense, or the descriptor is no listening unix socket.
pub fn inherited(name: &str) -> Result<Option<Listener>, Fatal> {
    let failed = |error| {
        let text = format!("take over the socket `{name}` of the service manager: {error}");
        Fatal::new(Failure::General, text)
    };
    match manager::take(name).map_err(failed)? {
        Some(fd) => Listener::from_unix_fd(fd).map(Some).map_err(failed),
        None => Ok(None),
    }
}
