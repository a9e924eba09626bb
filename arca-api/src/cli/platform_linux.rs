// SPDX-License-Identifier: Apache-2.0
//! What only Linux can do for a supervisor.

use tokio::process::Command;

/// The child gets SIGTERM when the thread that started it dies, even by SIGKILL.
#[allow(unsafe_code, reason = "pre_exec is unsafe by nature; see below")]
pub(super) fn die_with_parent(command: &mut Command) {
    // SAFETY: between fork and exec only prctl(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGTERM)?));
    }
}

/// The child leads a session of its own, so that a closing terminal does not end it.
#[allow(unsafe_code, reason = "pre_exec is unsafe by nature; see below")]
pub(super) fn own_session(command: &mut Command) {
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe and allocates nothing.
    unsafe {
        command.pre_exec(|| Ok(nix::unistd::setsid().map(drop)?));
    }
}

/// Wakes on each write to a file of a folder.
pub(super) struct Changes(inotify::EventStream<[u8; 4096]>);

/// Watches the files of `directory`.
pub(super) fn changes(directory: &std::path::Path) -> std::io::Result<Changes> {
    let inotify = inotify::Inotify::init()?;
    inotify.watches().add(directory, inotify::WatchMask::MODIFY | inotify::WatchMask::CREATE)?;
    Ok(Changes(inotify.into_event_stream([0; 4096])?))
}

impl Changes {
    /// Returns after the next write.
    pub(super) async fn next(&mut self) -> std::io::Result<()> {
        use futures_util::StreamExt as _;
        self.0.next().await.unwrap_or_else(|| Err(std::io::ErrorKind::UnexpectedEof.into())).map(drop)
    }
}
