// SPDX-License-Identifier: Apache-2.0
//! Private namespaces for whoever starts an engine, and threads that visit other network namespaces.

use std::{
    env,
    fs::{self, File},
    io,
    os::unix::process::CommandExt as _,
    process::{Command, ExitStatus},
    time::Duration,
};

use anyhow::{Context as _, bail};
use nix::sched::{CloneFlags, setns};

const INSIDE: &str = "ARCA_TESTS_INSIDE";

/// What the re-executed process is to do, when this process is one.
#[must_use]
pub fn errand() -> Option<String> {
    env::var(INSIDE).ok()
}

/// Runs this program again, inside network, mount, process, IPC and host name namespaces of its own, with an errand.
/// When it ends, or this process dies, everything it started is gone.
///
/// # Errors
/// If the namespaces cannot be made (privileges).
pub fn rerun(errand: &str, arguments: &[String]) -> io::Result<ExitStatus> {
    command(errand, arguments)?.status()
}

/// As [`rerun`], keeping what it prints.
///
/// # Errors
/// If the namespaces cannot be made (privileges).
pub fn rerun_captured(errand: &str) -> io::Result<std::process::Output> {
    command(errand, &[])?.output()
}

fn command(errand: &str, arguments: &[String]) -> io::Result<Command> {
    let mut command = Command::new("unshare");
    command
        .args(["--net", "--mount", "--pid", "--ipc", "--uts", "--propagation", "private"])
        .args(["--fork", "--kill-child", "--mount-proc", "--"])
        // The first process of a process namespace inherits orphans and must reap them; a shell that waits does.
        .args(["sh", "-c", "\"$@\"; exit $?", "sh"])
        .arg(env::current_exe()?)
        .args(arguments)
        .env(INSIDE, errand);
    Ok(command)
}

/// First thing to do inside: loopback up, nothing forwarded (a new namespace inherits the machine's IPv4 setting); `/run`
/// is ours, so that tools with fixed paths there stay away from the machine's own.
///
/// # Errors
/// If `ip` or `mount` fails.
pub fn settle() -> anyhow::Result<()> {
    run("ip", &["link", "set", "lo", "up"])?;
    fs::write("/proc/sys/net/ipv4/ip_forward", "0").context("switch IPv4 forwarding off in the test's namespace")?;
    fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "0").context("and IPv6 forwarding")?;
    run("mount", &["-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run"])
}

/// Runs a system tool; its error output is in the error.
///
/// # Errors
/// If it cannot be started or does not end with 0.
pub fn run(program: &str, arguments: &[&str]) -> anyhow::Result<()> {
    output(program, arguments).map(drop)
}

/// As [`run`], giving its standard output.
///
/// # Errors
/// If it cannot be started or does not end with 0.
pub fn output(program: &str, arguments: &[&str]) -> anyhow::Result<String> {
    let output = Command::new(program).args(arguments).output().with_context(|| format!("start {program}"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {}: {} {}", arguments.join(" "), output.status, error.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs `work` on a thread of its own inside the network namespace of process `pid`.
///
/// # Panics
/// If the namespace cannot be entered, or if `work` panics.
pub fn in_network_of<T: Send>(pid: u32, work: impl FnOnce() -> T + Send) -> T {
    let visit = || {
        let namespace = File::open(format!("/proc/{pid}/ns/net")).expect("the process lives");
        setns(namespace, CloneFlags::CLONE_NEWNET).expect("enter its network namespace");
        work()
    };
    std::thread::scope(|scope| match scope.spawn(visit).join() {
        Ok(value) => value,
        Err(panic) => std::panic::resume_unwind(panic),
    })
}

/// Makes `command` start inside the network namespace of process `pid`.
///
/// # Errors
/// If the process is gone.
#[allow(unsafe_code, reason = "pre_exec is unsafe by nature; see below")]
pub fn join_network(command: &mut Command, pid: u32) -> io::Result<()> {
    let namespace = File::open(format!("/proc/{pid}/ns/net"))?;
    // SAFETY: between fork and exec only setns(2) on an already open descriptor is called: async-signal-safe.
    unsafe {
        command.pre_exec(move || Ok(setns(&namespace, CloneFlags::CLONE_NEWNET)?));
    }
    Ok(())
}

/// Inode of the network namespace of a process.
///
/// # Errors
/// If the process is gone.
pub fn network_of(pid: u32) -> io::Result<String> {
    Ok(fs::read_link(format!("/proc/{pid}/ns/net"))?.to_string_lossy().into_owned())
}

/// Blocks until process `pid` has ended, or for `limit`; tells whether it has. A zombie has ended.
///
/// # Errors
/// If the kernel refuses to watch it.
pub fn wait_for_end(pid: u32, limit: Duration) -> anyhow::Result<bool> {
    let Some(pid) = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw) else { return Ok(true) };
    let handle = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Ok(handle) => handle,
        Err(rustix::io::Errno::SRCH) => return Ok(true),
        Err(error) => return Err(error).context("watch a process"),
    };
    let mut watched = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec::try_from(limit).context("a time limit")?;
    Ok(rustix::event::poll(&mut watched, Some(&limit)).context("wait for a process")? > 0)
}
