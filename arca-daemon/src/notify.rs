// SPDX-License-Identifier: Apache-2.0
//! "I am ready" to whoever supervises: the sd_notify(3) protocol, which systemd and `arca daemon run` both read.

use std::{env, io, os::unix::net::UnixDatagram};

/// Sends `READY=1` if a supervisor asked for it (`NOTIFY_SOCKET`); does nothing otherwise.
pub fn ready() {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket.to_string_lossy(), "READY=1\n")
    {
        tracing::warn!(%error, "the supervisor could not be told that this daemon is ready");
    }
}

fn send(socket: &str, text: &str) -> io::Result<()> {
    // Abstract sockets (systemd may use them) are written with a leading '@'; ours are paths.
    let datagram = UnixDatagram::unbound()?;
    match socket.strip_prefix('@') {
        #[cfg(target_os = "linux")]
        Some(name) => {
            use std::os::{linux::net::SocketAddrExt, unix::net::SocketAddr};
            datagram.send_to_addr(text.as_bytes(), &SocketAddr::from_abstract_name(name)?)?;
        }
        _ => {
            let (_guard, short) = arca_proto::dial::with_short_path(socket.as_ref())?;
            datagram.send_to(text.as_bytes(), short)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_supervisors_socket_gets_the_line() {
        let directory = tempfile::tempdir().expect("temporary directory");
        let path = directory.path().join("notify");
        let supervisor = UnixDatagram::bind(&path).expect("bind");
        send(&path.to_string_lossy(), "READY=1\n").expect("send");
        let mut buffer = [0; 64];
        let length = supervisor.recv(&mut buffer).expect("receive");
        assert_eq!(&buffer[..length], b"READY=1\n");
    }
}
