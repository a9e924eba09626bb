// SPDX-License-Identifier: Apache-2.0
//! The programs that arca-vmm is the parent of: with the descriptors they are given, in the jail, as another user.
//!
//! arca-vmm is process 1 of a process namespace, so the kernel ends all of them with it, however it ends.

use std::{
    ffi::{CString, OsString},
    io,
    os::{
        fd::{AsRawFd, OwnedFd, RawFd},
        unix::ffi::OsStrExt,
    },
    path::Path,
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
};

use nix::libc;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStderr, Command},
};

/// Longest line of standard error that is kept.
const LINE: u64 = 4096;

/// What a program may.
#[derive(Debug)]
pub(super) struct Confined<'a> {
    /// Becomes its root.
    pub(super) jail: &'a Path,
    /// User and group.
    pub(super) uid: u32,
}

/// A program that runs.
#[derive(Debug)]
pub(super) struct Running {
    name: &'static str,
    child: Child,
    last: Arc<Mutex<String>>,
}

/// Starts a program. `descriptors` keep their numbers in it, and are closed here.
pub(super) fn start(
    name: &'static str,
    program: &Path,
    arguments: Vec<OsString>,
    confined: Option<&Confined<'_>>,
    descriptors: Vec<OwnedFd>,
) -> io::Result<Running> {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).kill_on_drop(true);
    command.env_clear().env("PATH", "/usr/bin:/bin").env("RUST_LOG", "warn");
    let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let place = match confined {
        Some(confined) => {
            let jail = CString::new(confined.jail.as_os_str().as_bytes()).map_err(io::Error::other)?;
            Some((jail, confined.uid))
        }
        None => None,
    };
    // SAFETY: only system calls on memory that was made before; nothing is allocated and no lock is taken.
    unsafe {
        command.pre_exec(move || {
            for number in &numbers {
                check(libc::fcntl(*number, libc::F_SETFD, 0))?;
            }
            if let Some((jail, uid)) = &place {
                check(libc::chroot(jail.as_ptr()))?;
                check(libc::chdir(c"/".as_ptr()))?;
                if libc::geteuid() == 0 {
                    check(libc::setgroups(0, std::ptr::null()))?;
                    check(libc::setgid(*uid))?;
                    check(libc::setuid(*uid))?;
                }
            }
            check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
            check(libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL))
        });
    }
    let mut child = command.spawn()?;
    drop(descriptors);
    let last = Arc::new(Mutex::new(String::new()));
    if let Some(errors) = child.stderr.take() {
        tokio::spawn(read_errors(name, errors, Arc::clone(&last)));
    }
    Ok(Running { name, child, last })
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// What a program complains of is logged, and its last words are kept.
async fn read_errors(name: &'static str, errors: ChildStderr, last: Arc<Mutex<String>>) {
    let mut reader = BufReader::new(errors);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader).take(LINE).read_until(b'\n', &mut line).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let text = String::from_utf8_lossy(&line).trim().to_owned();
        if !text.is_empty() {
            tracing::warn!(program = name, "{text}");
            *last.lock().unwrap_or_else(PoisonError::into_inner) = text;
        }
    }
}

impl Running {
    /// Its end, in words. Cancel-safe.
    pub(super) async fn ended(&mut self) -> String {
        let status = self.child.wait().await;
        // What it wrote last may not have been read yet.
        tokio::task::yield_now().await;
        let said = self.last.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
        let said = if said.is_empty() { said } else { format!(": {said}") };
        format!("{} ended ({status}){said}", self.name)
    }

    /// Whether it has ended well.
    pub(super) fn succeeded(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(Some(status)) if status.success())
    }

    pub(super) async fn kill(&mut self) {
        // One that has ended is fine.
        let _ = self.child.kill().await;
    }
}
