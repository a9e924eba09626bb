// SPDX-License-Identifier: Apache-2.0
//! Where everything lies (DESIGN section 11). `ARCA_HOME` moves all of it, docker's socket included.

use std::path::{Path, PathBuf};

/// Files and sockets of one engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Paths {
    /// Sockets: gone after a reboot, short because of `sun_path`.
    pub run: PathBuf,
    /// Databases, images, containers, the helper's NB database.
    pub data: PathBuf,
    /// Daemon logs.
    pub log: PathBuf,
    /// Docker Engine API socket unless `socketPath` says otherwise.
    pub docker_socket: PathBuf,
    /// Folder of `config.json` / `config.toml`.
    pub config: PathBuf,
}

impl Paths {
    /// Everything below one folder, as `ARCA_HOME` asks.
    #[must_use]
    pub fn below(home: &Path) -> Self {
        Self {
            run: home.join("run"),
            data: home.join("data"),
            log: home.join("log"),
            docker_socket: home.join("arca.sock"),
            config: home.to_path_buf(),
        }
    }

    /// Without `ARCA_HOME`: a root service keeps data in /var/lib/arca, a user's engine in ~/.arca. The
    /// configuration is the user's `~/.arca` in both cases.
    #[must_use]
    pub fn default_for(root: bool, user_home: &Path) -> Self {
        let config = user_home.join(".arca");
        let system_run = if cfg!(target_os = "macos") { "/var/run/arca" } else { "/run/arca" };
        let (run, data, log) = if root {
            (PathBuf::from(system_run), PathBuf::from("/var/lib/arca"), PathBuf::from("/var/log/arca"))
        } else {
            (config.join("run"), config.clone(), config.join("log"))
        };
        Self { run, data, log, docker_socket: PathBuf::from("/var/run/arca.sock"), config }
    }

    /// gRPC of arca-netd.
    #[must_use]
    pub fn netd_socket(&self) -> PathBuf {
        self.run.join("netd.sock")
    }

    /// gRPC of arca-relayd.
    #[must_use]
    pub fn relayd_socket(&self) -> PathBuf {
        self.run.join("relayd.sock")
    }

    /// Figures of a host daemon for Prometheus, by its program's name.
    #[must_use]
    pub fn metrics_socket(&self, daemon: &str) -> PathBuf {
        self.run.join(format!("{}.metrics", daemon.trim_start_matches("arca-")))
    }

    /// Socket directory of a namespace container machine: named by the first 12 digits, for `sun_path`'s sake.
    #[must_use]
    pub fn machine_sockets(&self, machine_id: &str) -> PathBuf {
        self.run.join("m").join(machine_id.get(..12).unwrap_or(machine_id))
    }

    /// A file that exists while the native switch has anything on the host.
    #[must_use]
    pub fn native_marker(&self) -> PathBuf {
        self.run.join("vmnet")
    }

    /// Socket directory of the namespace helper machine.
    #[must_use]
    pub fn helper_sockets(&self) -> PathBuf {
        self.run.join("h")
    }

    /// What is on disk of the container machines that run.
    #[must_use]
    pub fn machines(&self) -> PathBuf {
        self.data.join("machines")
    }

    /// Record and log of one container machine. Not in the container's folder: a machine may outlive the container it was
    /// made for.
    #[must_use]
    pub fn machine(&self, machine_id: &str) -> PathBuf {
        self.machines().join(machine_id)
    }

    /// State of one container: output, exit record, bundle, writable layer.
    #[must_use]
    pub fn container(&self, container_id: &str) -> PathBuf {
        self.data.join("containers").join(container_id)
    }

    /// Tells this engine from others on one machine: eight hexadecimal digits, the same as long as `data` lies where it
    /// lies. Whatever an engine makes with a name that others could choose too has this in it.
    #[must_use]
    pub fn tag(&self) -> String {
        // FNV-1a, 32 bits: stable over releases, which the standard library's hashes are not.
        let bytes = self.data.as_os_str().as_encoded_bytes();
        let hash = bytes.iter().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        format!("{hash:08x}")
    }

    /// Parent of the control groups of this engine's workloads.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        format!("arca/{}", self.tag())
    }

    /// What of the helper machine must survive: OVN's NB database.
    #[must_use]
    pub fn helper_data(&self) -> PathBuf {
        self.data.join("helper")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arca_home_moves_every_path() {
        let home = Path::new("/x/y");
        let paths = Paths::below(home);
        for path in [&paths.run, &paths.data, &paths.log, &paths.docker_socket, &paths.config] {
            assert!(path.starts_with(home), "{}", path.display());
        }
    }

    #[test]
    fn engines_are_told_apart_by_where_their_data_lies() {
        let tag = |home| Paths::below(Path::new(home)).tag();
        // FNV-1a of "/x/data", by hand: a change of the hash would lose what running engines made.
        assert_eq!(tag("/x"), "ab73a7af");
        assert_ne!(tag("/x"), tag("/y"));
    }

    #[test]
    fn a_root_service_still_reads_the_users_configuration() {
        let paths = Paths::default_for(true, Path::new("/home/u"));
        assert_eq!(paths.config, Path::new("/home/u/.arca"));
        assert_eq!(paths.data, Path::new("/var/lib/arca"));
    }
}
