// SPDX-License-Identifier: Apache-2.0
//! sd_listen_fds(3): `LISTEN_FDS` descriptors from 3 on, meant for the process `LISTEN_PID`, named by `LISTEN_FDNAMES`.
#![allow(unsafe_code, reason = "a descriptor that arrives as a number can only be owned by saying so; see below")]

use std::{
    collections::BTreeSet,
    env, io,
    os::fd::{FromRawFd as _, OwnedFd, RawFd},
    sync::{Mutex, PoisonError},
};

use nix::{
    fcntl::{FcntlArg, FdFlag, fcntl},
    sys::stat::fstat,
};

/// SD_LISTEN_FDS_START.
const FIRST: RawFd = 3;

/// Descriptors that have an owner already.
static TAKEN: Mutex<BTreeSet<RawFd>> = Mutex::new(BTreeSet::new());

pub(super) fn take(name: &str) -> io::Result<Option<OwnedFd>> {
    let said = |variable| env::var(variable).unwrap_or_default();
    let Some(number) =
        find(name, &said("LISTEN_PID"), &said("LISTEN_FDS"), &said("LISTEN_FDNAMES"), std::process::id())?
    else {
        return Ok(None);
    };
    if !TAKEN.lock().unwrap_or_else(PoisonError::into_inner).insert(number) {
        return Ok(None);
    }
    // SAFETY: the service manager gave this number to this process, and `TAKEN` gives it to one owner only. Whether it is
    // open at all is asked next, before anything is done with it.
    let fd = unsafe { OwnedFd::from_raw_fd(number) };
    if let Err(error) = fstat(&fd) {
        // Not open: there is nothing to close either.
        std::mem::forget(fd);
        return Err(error.into());
    }
    // It came without: machines that this process starts would inherit it.
    fcntl(&fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    Ok(Some(fd))
}

/// Number of the descriptor called `name`, if the variables mean the process `own`.
fn find(name: &str, pid: &str, count: &str, names: &str, own: u32) -> io::Result<Option<RawFd>> {
    if pid.is_empty() || pid.parse() != Ok(own) {
        return Ok(None);
    }
    let count: RawFd = count.parse().ok().filter(|count| (0..=1024).contains(count)).ok_or_else(|| {
        io::Error::new(io::ErrorKind::InvalidInput, format!("LISTEN_FDS={count} is not a number of descriptors"))
    })?;
    let found = names.split(':').zip(FIRST..FIRST + count).find(|(called, _)| *called == name);
    Ok(found.map(|(_, number)| number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_socket_is_found_by_its_name_and_only_by_whom_it_is_meant_for() {
        let find = |name, pid, count, names| find(name, pid, count, names, 42);
        assert_eq!(find("netd", "42", "2", "docker:netd").expect("valid"), Some(4));
        assert_eq!(find("relayd", "42", "2", "docker:netd").expect("valid"), None);
        assert_eq!(find("netd", "41", "2", "docker:netd").expect("not for this process"), None);
        assert_eq!(find("netd", "", "", "").expect("no service manager"), None);
        // A name beyond the count means no descriptor.
        assert_eq!(find("netd", "42", "1", "docker:netd").expect("valid"), None);
        assert!(find("netd", "42", "many", "netd").is_err());
        assert!(find("netd", "42", "-1", "netd").is_err());
    }
}
