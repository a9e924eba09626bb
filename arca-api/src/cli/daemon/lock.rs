// SPDX-License-Identifier: Apache-2.0
//! Who runs this engine: a locked file with the supervisor's process id.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Seek as _, Write as _},
    path::PathBuf,
};

use anyhow::Context as _;
use arca_daemon::{
    config::Config,
    exit::{Failure, Fatal},
};
use nix::fcntl::{Flock, FlockArg};

/// Held while the supervisor lives; the kernel lets go when it dies, however it dies.
#[derive(Debug)]
pub(super) struct EngineLock(#[allow(dead_code, reason = "held, not read")] Flock<File>);

fn path(config: &Config) -> PathBuf {
    config.paths.data.join("engine.lock")
}

/// Takes the engine, or says who has it.
pub(super) fn take(config: &Config) -> anyhow::Result<EngineLock> {
    let path = path(config);
    fs::create_dir_all(&config.paths.data).map_err(|error| {
        let text = format!("create {}: {error} (run as root, or set ARCA_HOME)", config.paths.data.display());
        Fatal::new(Failure::Privileges, text)
    })?;
    let file = OpenOptions::new().create(true).truncate(false).read(true).write(true).open(&path);
    let file = file.with_context(|| format!("open {}", path.display()))?;
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(mut file, _)| {
        let mut text = String::new();
        let _ = file.read_to_string(&mut text);
        Fatal::new(
            Failure::AlreadyRunning,
            format!(
                "an engine (pid {}) already uses {}; `arca daemon stop` ends it, ARCA_HOME=DIR starts another",
                text.trim(),
                config.paths.data.display()
            ),
        )
    })?;
    lock.set_len(0)?;
    lock.rewind()?;
    write!(lock, "{}", std::process::id())?;
    lock.sync_all()?;
    Ok(EngineLock(lock))
}

/// Process id of the running supervisor, if one runs.
pub(super) fn holder(config: &Config) -> anyhow::Result<Option<i32>> {
    let path = path(config);
    let mut file = match File::open(&path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error).with_context(|| format!("open {}", path.display())),
    };
    let mut text = String::new();
    file.read_to_string(&mut text)?;
    match Flock::lock(file, FlockArg::LockSharedNonblock) {
        Ok(_free) => Ok(None),
        Err(_) => Ok(text.trim().parse().ok()),
    }
}

/// Resolves when the supervisor that holds the engine now has ended: the kernel then hands the lock over.
pub(super) fn released(config: &Config) -> anyhow::Result<tokio::sync::oneshot::Receiver<()>> {
    let file = File::open(path(config))?;
    let (sender, receiver) = tokio::sync::oneshot::channel();
    // A thread of its own, not the runtime's pool: that pool would be waited for when we give up first.
    std::thread::spawn(move || {
        if Flock::lock(file, FlockArg::LockShared).is_ok() {
            let _ = sender.send(());
        }
    });
    Ok(receiver)
}
