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

/// One thing that an engine needs.
pub(in crate::cli) struct Check {
    /// What, in a few words.
    pub(in crate::cli) what: &'static str,
    /// What was found; else what lacks, and after the last colon the way out.
    pub(in crate::cli) result: Result<String, Fatal>,
}

/// The first lack, if there is one.
pub(super) fn check(config: &Config) -> Result<(), Fatal> {
    checks(config).into_iter().try_for_each(|check| check.result.map(drop))
}

/// Privileges, TUN, packages and images, in the order in which they should be put right.
pub(in crate::cli) fn checks(config: &Config) -> Vec<Check> {
    let mut checks = vec![Check { what: "privileges", result: privileges() }];
    if cfg!(target_os = "linux") {
        // Native networks have no TAP.
        if config.network_backend == BackendKind::Ovs {
            checks.push(Check { what: "TUN", result: tun() });
        }
        checks.extend(PROGRAMS.map(|(name, package)| Check { what: name, result: program(name, package) }));
    }
    checks.extend(GUESTS.map(|name| Check { what: name, result: guest(config, name) }));
    // Where native networks are the default the helper starts when an OVN network is first used, and says then what lacks.
    if config.network_backend == BackendKind::Ovs {
        checks.push(Check { what: "helper image", result: helper_image(config) });
    }
    checks
}

fn missing(text: String) -> Fatal {
    Fatal::new(Failure::Missing, text)
}

fn privileges() -> Result<String, Fatal> {
    match nix::unistd::geteuid().is_root() {
        true => Ok("root".to_owned()),
        false => Err(Fatal::new(
            Failure::Privileges,
            "namespace machines need root: run as root (or with sudo -E to keep ARCA_HOME)",
        )),
    }
}

fn tun() -> Result<String, Fatal> {
    let opened = std::fs::OpenOptions::new().read(true).write(true).open("/dev/net/tun");
    match opened {
        Ok(_) => Ok("/dev/net/tun opens".to_owned()),
        Err(error) => {
            Err(missing(format!("/dev/net/tun cannot be opened ({error}): load the module with `modprobe tun`")))
        }
    }
}

fn program(name: &str, package: &str) -> Result<String, Fatal> {
    let lacks = || missing(format!("`{name}` is not in PATH: install it, on Debian `apt-get install {package}`"));
    find(name).map(|path| path.display().to_string()).ok_or_else(lacks)
}

fn guest(config: &Config, name: &str) -> Result<String, Fatal> {
    let path = config.guest_directory.join(name);
    match path.is_file() {
        true => Ok(path.display().to_string()),
        false => Err(missing(format!(
            "guest program {} is missing: build it with `./dev build`, or set guestDirectory",
            path.display()
        ))),
    }
}

fn helper_image(config: &Config) -> Result<String, Fatal> {
    let root = config.helper_root.display();
    match config.helper_root.join("usr/sbin/ovs-vswitchd").exists() {
        true => Ok(root.to_string()),
        false => {
            Err(missing(format!("helper image {root} is missing: build it with `./dev image`, or set helperRoot")))
        }
    }
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
