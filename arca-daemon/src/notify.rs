// SPDX-License-Identifier: Apache-2.0
//! "I am ready" to whoever supervises: the sd_notify(3) protocol, which systemd and `arca daemon run` both read.

use std::{env, io, os::unix::net::UnixDatagram, time::Duration};

/// Sends `READY=1` if a supervisor asked for it (`NOTIFY_SOCKET`); does nothing otherwise.
pub fn ready() {
    if let Some(socket) = env::var_os("NOTIFY_SOCKET")
        && let Err(error) = send(&socket.to_string_lossy(), "READY=1\n")
    {
        tracing::warn!(%error, "the supervisor could not be told that this daemon is ready");
    }
}

/// Tells systemd that this process lives, as often as it asked for (sd_watchdog_enabled(3)): twice in the time after
/// which it would be started again. From a task, so that a runtime that hangs is found out. Nobody asked: does nothing.
pub fn keep_watchdog_quiet() {
    let said = |variable| env::var(variable).unwrap_or_default();
    let (Some(socket), Some(interval)) =
        (env::var_os("NOTIFY_SOCKET"), interval(&said("WATCHDOG_PID"), &said("WATCHDOG_USEC"), std::process::id()))
    else {
        return;
    };
    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(interval);
        loop {
            ticks.tick().await;
            if let Err(error) = send(&socket.to_string_lossy(), "WATCHDOG=1\n") {
                tracing::warn!(%error, "the supervisor could not be told that this daemon lives");
            }
        }
    });
}

/// Half of the time that the watchdog waits, if it waits for the process `own`. Never below a second: nothing ticks faster.
fn interval(pid: &str, microseconds: &str, own: u32) -> Option<Duration> {
    if !pid.is_empty() && pid.parse() != Ok(own) {
        return None;
    }
    let whole = microseconds.parse().ok().filter(|microseconds| *microseconds > 0).map(Duration::from_micros)?;
    Some((whole / 2).max(Duration::from_secs(1)))
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
    fn the_watchdog_is_told_twice_in_its_time_by_whom_it_waits_for() {
        assert_eq!(interval("42", "30000000", 42), Some(Duration::from_secs(15)));
        assert_eq!(interval("", "30000000", 42), Some(Duration::from_secs(15)), "without a pid everyone is meant");
        assert_eq!(interval("41", "30000000", 42), None);
        for nonsense in ["", "0", "-5", "soon"] {
            assert_eq!(interval("42", nonsense, 42), None, "{nonsense}");
        }
    }

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
