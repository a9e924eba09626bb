// SPDX-License-Identifier: Apache-2.0
//! Unix sockets below directories with long names.
//!
//! `sun_path` holds 108 bytes on Linux and 104 on macOS, while `ARCA_HOME` may be deep. A socket with a longer path is
//! reached through a descriptor of its directory (`/proc/self/fd/N/name`) where the kernel offers that.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::{Path, PathBuf},
};

/// Bytes of a socket path that every supported system takes (macOS: 104 with the final NUL).
const SAFE_LENGTH: usize = 100;

/// Gives a path for `bind` or `connect` that fits `sun_path`. The guard must live until the call returns.
///
/// # Errors
/// If the directory cannot be opened, or the path is too long and has no directory part.
pub fn with_short_path(path: &Path) -> io::Result<(Option<OwnedFd>, PathBuf)> {
    if path.as_os_str().len() <= SAFE_LENGTH {
        return Ok((None, path.to_path_buf()));
    }
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "socket path has no directory"));
    };
    let directory = OwnedFd::from(File::open(directory)?);
    let short = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd())).join(name);
    Ok((Some(directory), short))
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn a_socket_below_a_very_long_directory_can_be_bound_and_reached() {
        let root = tempfile::tempdir().expect("temporary directory");
        let deep = root.path().join("d".repeat(120));
        std::fs::create_dir(&deep).expect("create");
        let socket = deep.join("5556");
        let (_guard, short) = with_short_path(&socket).expect("short path");
        let listener = std::os::unix::net::UnixListener::bind(short).expect("bind");
        let (_guard, short) = with_short_path(&socket).expect("short path");
        std::os::unix::net::UnixStream::connect(short).expect("connect");
        listener.accept().expect("accept");
    }
}
