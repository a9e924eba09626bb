// SPDX-License-Identifier: Apache-2.0
//! What the machine must have before an engine starts; each lack is one line with the way out and its own exit code.

use std::path::{Path, PathBuf};

use arca_daemon::{
    config::{BackendKind, Config},
    exit::{Failure, Fatal},
};

/// Programs the host daemons and the namespace machines run.
const PROGRAMS: [(&str, &str); 3] = [("crun", "crun"), ("nft", "nftables"), ("ip", "iproute2")];
const GUESTS: [&str; 3] = ["arca-init", "arca-tapfwd", "arca-helper-agent"];

/// Checks privileges, TUN, packages and images.
pub(super) fn check(config: &Config) -> Result<(), Fatal> {
    let missing = |text: String| Err(Fatal::new(Failure::Missing, text));
    if !nix::unistd::geteuid().is_root() {
        return Err(Fatal::new(
            Failure::Privileges,
            "namespace machines need root: run as root (or with sudo -E to keep ARCA_HOME)",
        ));
    }
    if cfg!(target_os = "linux") {
        // Native networks have no TAP.
        if config.network_backend == BackendKind::Ovs
            && let Err(error) = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun")
        {
            return missing(format!("/dev/net/tun cannot be opened ({error}): load the module with `modprobe tun`"));
        }
        for (program, package) in PROGRAMS {
            if find(program).is_none() {
                return missing(format!(
                    "`{program}` is not in PATH: install it, on Debian `apt-get install {package}`"
                ));
            }
        }
    }
    for guest in GUESTS {
        let path = config.guest_directory.join(guest);
        if !path.is_file() {
            return missing(format!(
                "guest program {} is missing: build it with `./dev build`, or set guestDirectory",
                path.display()
            ));
        }
    }
    // Where native networks are the default the helper starts when an OVN network is first used, and says then what lacks.
    if config.network_backend == BackendKind::Ovs && !config.helper_root.join("usr/sbin/ovs-vswitchd").exists() {
        return missing(format!(
            "helper image {} is missing: build it with `./dev image`, or set helperRoot",
            config.helper_root.display()
        ));
    }
    Ok(())
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Daemons started from a user's shell often lack the sbin folders.
    let folders = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    folders.map(|folder| folder.join(program)).find(|path| is_executable(path))
}

fn is_executable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::X_OK).is_ok() && path.is_file()
}
