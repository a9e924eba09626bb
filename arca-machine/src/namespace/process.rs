// SPDX-License-Identifier: Apache-2.0
//! The first process of a namespace machine: its pidfd as event, and its end.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd},
    path::Path,
    process::Stdio,
    time::Duration,
};

use arca_proto::{
    dial::{self, Address},
    init::v1::{ShutdownRequest, init_client::InitClient},
    ports,
};
use async_trait::async_trait;
use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use tokio::io::{Interest, unix::AsyncFd};

use super::spawn::{Spawned, reap};
use crate::{MachineError, Record, Role, machine::Keeper};

/// What arca-init may need beyond the grace it was given: kill, unmount, remove cgroups.
const CLEANUP: Duration = Duration::from_secs(5);
/// From SIGKILL to the end, generous: a process in an uninterruptible call ends late.
const KILLED: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Process {
    pid: u32,
    start_time: u64,
    pidfd: AsyncFd<OwnedFd>,
}

impl Process {
    pub(super) fn child(spawned: Spawned) -> io::Result<Self> {
        let Spawned { pid, pidfd } = spawned;
        // A child that has ended already is a zombie: it still has its stat file.
        let start_time = start_time(pid)?.ok_or_else(|| io::Error::other("the child has no /proc entry"))?;
        let process = Self { pid, start_time, pidfd: watch(pidfd.try_clone()?)? };
        // Somebody must take the exit status even if nobody waits for the machine any more.
        let watched = watch(pidfd)?;
        tokio::spawn(async move {
            ended(&watched).await;
            reap(pid);
        });
        Ok(process)
    }

    /// The process of a record, if it is still that process.
    pub(crate) fn of(record: &Record) -> Result<Option<Self>, MachineError> {
        Self::open(record.pid, record.start_time).map_err(|source| MachineError::Process {
            id: record.id.clone(),
            operation: "open the process of the record",
            source,
        })
    }

    /// The process `pid` if it is still the one that started at `start_time`.
    pub(crate) fn open(pid: u32, start_time: u64) -> io::Result<Option<Self>> {
        // SAFETY: pidfd_open takes two numbers and gives a new descriptor or an error.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        let Some(fd) = i32::try_from(fd).ok().filter(|fd| *fd >= 0) else {
            let error = io::Error::last_os_error();
            return if error.raw_os_error() == Some(libc::ESRCH) { Ok(None) } else { Err(error) };
        };
        // SAFETY: the descriptor was just made for us.
        let pidfd = unsafe { OwnedFd::from_raw_fd(fd) };
        // Read after opening: if the times agree now, the descriptor is that process.
        if self::start_time(pid)? != Some(start_time) {
            return Ok(None);
        }
        // A zombie has a start time too, but it has ended.
        let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        if poll(&mut polled, PollTimeout::ZERO)? > 0 {
            return Ok(None);
        }
        Ok(Some(Self { pid, start_time, pidfd: watch(pidfd)? }))
    }

    pub(super) fn pid(&self) -> u32 {
        self.pid
    }

    pub(super) fn start_time(&self) -> u64 {
        self.start_time
    }

    fn signal(&self, signal: libc::c_int) -> io::Result<()> {
        let fd = self.pidfd.get_ref().as_raw_fd();
        // SAFETY: numbers and a null siginfo pointer.
        let sent = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, std::ptr::null::<u8>(), 0) };
        match (sent, io::Error::last_os_error()) {
            (0, _) => Ok(()),
            (_, error) if error.raw_os_error() == Some(libc::ESRCH) => Ok(()),
            (_, error) => Err(error),
        }
    }

    /// Whether it has ended in this time.
    pub(crate) async fn ended_within(&self, time: Duration) -> bool {
        tokio::time::timeout(time, ended(&self.pidfd)).await.is_ok()
    }

    /// Ends it by force; what went wrong.
    pub(crate) async fn kill(&self) -> Option<String> {
        if let Err(error) = self.signal(libc::SIGKILL) {
            return Some(format!("kill process {}: {error}", self.pid));
        }
        let ended = self.ended_within(KILLED).await;
        (!ended).then(|| format!("process {} does not end after SIGKILL", self.pid))
    }

    /// Asks the machine to end itself.
    async fn ask(&self, record: &Record, grace: Duration) -> io::Result<()> {
        match record.role {
            Role::Helper => self.signal(libc::SIGTERM),
            Role::Container => {
                let grace_ms = u32::try_from(grace.as_millis()).unwrap_or(u32::MAX);
                let mut client = InitClient::new(dial::channel(&record.address, ports::INIT));
                let asked = tokio::time::timeout(Duration::from_secs(2), client.shutdown(ShutdownRequest { grace_ms }));
                match asked.await {
                    Ok(Ok(_)) => Ok(()),
                    Ok(Err(status)) => Err(io::Error::other(status.message().to_owned())),
                    Err(_) => Err(io::ErrorKind::TimedOut.into()),
                }
            }
        }
    }
}

#[async_trait]
impl Keeper for Process {
    async fn wait_exit(&self) {
        ended(&self.pidfd).await;
    }

    async fn destroy(&self, record: &Record, grace: Duration) -> Result<(), MachineError> {
        let mut failures = Vec::new();
        let running = !self.ended_within(Duration::ZERO).await;
        if running {
            let asked = if grace.is_zero() && record.role == Role::Helper {
                Err(io::Error::other("no grace"))
            } else {
                self.ask(record, grace).await
            };
            if let Err(error) = &asked {
                tracing::debug!(machine_id = record.id, %error, "machine cannot be asked to end; it is killed");
            }
            if asked.is_err() || !self.ended_within(grace + CLEANUP).await {
                failures.extend(self.kill().await);
            }
        }
        sweep(record, failures).await
    }
}

/// Removes what a machine that is not running left; goes on past failures.
pub(super) async fn sweep(record: &Record, mut failures: Vec<String>) -> Result<(), MachineError> {
    if let Address::Sockets(directory) = &record.address {
        failures.extend(sweep_sockets(record.role, directory, &record.guest_directory).await);
    }
    if record.role == Role::Helper {
        let _ = fs::remove_dir(record.state_directory.join("mount"));
    }
    if let Err(error) = record.remove() {
        failures.push(format!("remove the machine record: {error}"));
    }
    if failures.is_empty() { Ok(()) } else { Err(MachineError::Teardown { id: record.id.clone(), failures }) }
}

/// Removes a socket directory and whatever its machine, which is dead, still has running; lists what remains.
pub(super) async fn sweep_sockets(role: Role, directory: &Path, guest_directory: &Path) -> Vec<String> {
    let mut failures = Vec::new();
    // An arca-init that was killed leaves its notes of workloads in its run directory, and the workloads with them.
    if role == Role::Container && directory.join("workloads").exists() {
        let arguments = ["sweep".to_owned(), format!("--run={}", directory.display())];
        if let Err(error) = run_init(guest_directory, &arguments).await {
            failures.push(format!("sweep up after arca-init: {error}"));
        }
    }
    if let Err(error) = fs::remove_dir_all(directory)
        && error.kind() != io::ErrorKind::NotFound
    {
        failures.push(format!("remove {}: {error}", directory.display()));
    }
    failures
}

/// Runs arca-init for one of its housekeeping commands.
pub(super) async fn run_init(guest_directory: &Path, arguments: &[String]) -> io::Result<()> {
    let mut command = tokio::process::Command::new(guest_directory.join("arca-init"));
    let output = command.args(arguments).stdin(Stdio::null()).kill_on_drop(true).output().await?;
    if output.status.success() {
        return Ok(());
    }
    Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

fn watch(pidfd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: the descriptor is owned, so it stays open and the same until the registration is dropped.
    Ok(unsafe { AsyncFd::register_with_interest(pidfd, Interest::READABLE) }?)
}

/// A pidfd becomes readable when its process has ended (pidfd_open(2)) and stays so.
async fn ended(pidfd: &AsyncFd<OwnedFd>) {
    if pidfd.readable().await.is_err() {
        // Only when the runtime is going away: nobody will read the answer.
        std::future::pending::<()>().await;
    }
}

/// Start time in clock ticks since boot (proc_pid_stat(5), field 22); `None` if there is no such process.
fn start_time(pid: u32) -> io::Result<Option<u64>> {
    let stat = match fs::read_to_string(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound || error.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        Err(error) => return Err(error),
    };
    // The name in field 2 may hold blanks and parentheses; field 3 follows the last one.
    let field = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(19));
    field
        .and_then(|text| text.parse().ok())
        .map(Some)
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("/proc/{pid}/stat has no start time")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_start_time_is_stable_and_a_missing_process_has_none() {
        let own = start_time(std::process::id()).expect("read").expect("we run");
        assert_eq!(start_time(std::process::id()).expect("read"), Some(own));
        assert_eq!(start_time(u32::MAX / 2).expect("read"), None);
    }

    #[tokio::test]
    async fn a_process_with_another_start_time_is_not_ours() {
        let pid = std::process::id();
        let own = start_time(pid).expect("read").expect("we run");
        assert!(Process::open(pid, own).expect("open").is_some());
        assert!(Process::open(pid, own + 1).expect("open").is_none());
    }
}
