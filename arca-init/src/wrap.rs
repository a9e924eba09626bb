// SPDX-License-Identifier: Apache-2.0
//! `docker run --init`: under the name `docker-init` this program is the first process of a container. It starts the
//! command, passes signals on to it, takes the exit status of every orphan and ends as the command did.
//!
//! arca-api mounts it into the container and puts it before the command.

use std::{
    ffi::OsString,
    io,
    os::unix::process::{CommandExt as _, ExitStatusExt as _},
    path::Path,
    process::{Command, ExitCode, ExitStatus},
};

use nix::{
    libc,
    sys::signal::{SigSet, SigmaskHow},
    unistd::{getpgrp, tcsetpgrp},
};

/// The name that it goes by there.
const NAME: &str = "docker-init";

/// The command, if the program was started as `docker-init -- COMMAND`.
#[must_use]
pub fn asked() -> Option<Vec<OsString>> {
    let mut words = std::env::args_os();
    let own = words.next()?;
    if Path::new(&own).file_name() != Some(NAME.as_ref()) {
        return None;
    }
    let mut command: Vec<OsString> = words.collect();
    if command.first().is_some_and(|word| word == "--") {
        command.remove(0);
    }
    Some(command)
}

/// Runs the command to its end; the code is its own, or 128 + signal.
#[must_use]
pub fn run(command: &[OsString]) -> ExitCode {
    let Some((program, arguments)) = command.split_first() else {
        eprintln!("{NAME}: no command");
        return ExitCode::from(1);
    };
    // Every signal waits for `sigwait`; the command starts with none blocked.
    let all = SigSet::all();
    if let Err(error) = all.thread_block() {
        eprintln!("{NAME}: block signals: {error}");
        return ExitCode::from(1);
    }
    let mut child = Command::new(program);
    child.args(arguments).process_group(0);
    // SAFETY: between fork and exec only sigprocmask, getpgrp and tcsetpgrp are called, which are safe there.
    unsafe { child.pre_exec(to_the_foreground) };
    let child = match child.spawn() {
        Ok(child) => child.id().cast_signed(),
        Err(error) => {
            eprintln!("{NAME}: exec {}: {error}", program.to_string_lossy());
            return ExitCode::from(if error.kind() == io::ErrorKind::NotFound { 127 } else { 126 });
        }
    };
    loop {
        match wait_signal() {
            libc::SIGCHLD => {
                if let Some(status) = reap(child) {
                    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
                    return ExitCode::from(u8::try_from(code & 0xff).unwrap_or(u8::MAX));
                }
            }
            // SAFETY: kill takes two numbers. (The typed wrapper cannot name real-time signals.)
            signal => drop(unsafe { libc::kill(child, signal) }),
        }
    }
}

/// The command's group gets the terminal, so that keys reach it alone; without a terminal nothing is to be done.
fn to_the_foreground() -> io::Result<()> {
    // Every signal is still blocked: whoever asks for the terminal from the background would be stopped by one.
    let _ = tcsetpgrp(io::stdin(), getpgrp());
    Ok(nix::sys::signal::sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::empty()), None)?)
}

/// The next signal, real-time ones included.
fn wait_signal() -> i32 {
    let mut signal = 0;
    // SAFETY: the set is whole and the number is ours.
    unsafe { libc::sigwait(SigSet::all().as_ref(), &raw mut signal) };
    signal
}

/// Takes every status there is; that of the command if it is among them.
fn reap(child: i32) -> Option<ExitStatus> {
    let mut ended = None;
    loop {
        let mut status = 0;
        // SAFETY: waitpid writes one int, which is ours.
        let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
        if pid <= 0 {
            return ended;
        }
        if pid == child {
            ended = Some(ExitStatus::from_raw(status));
        }
    }
}
