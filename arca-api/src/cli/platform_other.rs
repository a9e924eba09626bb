// SPDX-License-Identifier: Apache-2.0
//! Where children cannot be tied to their parent: launchd supervises there.

use tokio::process::Command;

/// Nothing to be had.
pub(super) fn die_with_parent(_command: &mut Command) {}

/// The child leads a process group of its own, so that the terminal's interrupt does not reach it.
pub(super) fn own_session(command: &mut Command) {
    command.process_group(0);
}

/// Following logs needs an event source this platform's build does not have yet.
pub(super) struct Changes;

/// Always refuses, with the way out.
pub(super) fn changes(directory: &std::path::Path) -> std::io::Result<Changes> {
    let text = format!("following is not available here; use `tail -f {}/*.log`", directory.display());
    Err(std::io::Error::new(std::io::ErrorKind::Unsupported, text))
}

impl Changes {
    /// Never reached: [`changes`] refuses.
    pub(super) async fn next(&mut self) -> std::io::Result<()> {
        Err(std::io::ErrorKind::Unsupported.into())
    }
}
