// SPDX-License-Identifier: Apache-2.0
//! The machine to keep, as its launcher writes it down (JSON).

use std::path::{Path, PathBuf};

use arca_proto::keeper::{self, Role};
use serde::{Deserialize, Serialize};

/// Longest path of a socket: `sun_path` of macOS holds 104 bytes with the NUL (sys/un.h). Checked on every system, so that
/// a layout that would not fit there is seen here.
const SUN_PATH: usize = 103;
/// Name of the socket that is the way to the guest's ports.
pub const FACE: &str = "vsock";
/// The framework's own lower bound for a Linux guest that does anything is far above this; who asks for less means megabytes.
const LEAST_MEMORY: u64 = 64 << 20;

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Spec {
    /// Machine id.
    pub id: String,
    /// Which gRPC service the guest ends by.
    pub role: Role,
    /// Kernel: an uncompressed `Image` on Apple silicon.
    pub kernel: PathBuf,
    /// Initial RAM file system.
    pub image: PathBuf,
    /// The kernel's command line.
    pub command_line: String,
    /// Bytes; a multiple of 1 MiB.
    pub memory: u64,
    /// Virtual processors.
    pub cpus: u32,
    /// Raw disk images, seen as /dev/vda, /dev/vdb.
    #[serde(default)]
    pub disks: Vec<Disk>,
    /// Folder of the sockets; made by the launcher.
    pub sockets: PathBuf,
    /// `console.log` and the record of the end go here; made by the launcher.
    pub state: PathBuf,
    /// The one network card, if any.
    #[serde(default)]
    pub nic: Option<Nic>,
}

/// A raw disk image.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Disk {
    /// The file.
    pub path: PathBuf,
    /// The guest may not write.
    #[serde(default)]
    pub read_only: bool,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Nic {
    /// Socket of the keeper of the network that it is plugged into.
    pub wire: PathBuf,
    /// Bytes of an IP packet.
    pub mtu: u32,
}

/// A machine that cannot be.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// The file.
    #[error("cannot be read")]
    Read(#[from] std::io::Error),
    /// Its text.
    #[error("is no machine")]
    Json(#[from] serde_json::Error),
    /// A path that must be whole.
    #[error("{what} {} is not an absolute path", path.display())]
    Relative {
        /// Which.
        what: &'static str,
        /// As given.
        path: PathBuf,
    },
    /// A socket that nobody could bind.
    #[error("the socket {} has {length} bytes, more than the {SUN_PATH} that a socket may have on macOS: shorten ARCA_HOME", path.display())]
    TooLong {
        /// The socket.
        path: PathBuf,
        /// Its bytes.
        length: usize,
    },
    /// Memory in a unit that the framework does not have.
    #[error("memory {0} is not a multiple of 1 MiB of at least 64 MiB")]
    Memory(u64),
    /// None at all.
    #[error("a machine needs a processor")]
    Processors,
}

impl Spec {
    /// Reads and checks a machine.
    ///
    /// # Errors
    /// See [`SpecError`].
    pub fn load(path: &Path) -> Result<Self, anyhow::Error> {
        let spec: Self =
            serde_json::from_slice(&std::fs::read(path).map_err(SpecError::Read)?).map_err(SpecError::Json)?;
        spec.check()?;
        Ok(spec)
    }

    /// The socket that is the way to the guest's ports.
    #[must_use]
    pub fn face(&self) -> PathBuf {
        self.sockets.join(FACE)
    }

    /// The control socket.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.sockets.join(keeper::SOCKET)
    }

    /// What can be known to be wrong before the framework is asked.
    ///
    /// # Errors
    /// The first fault.
    pub fn check(&self) -> Result<(), SpecError> {
        let paths =
            [("kernel", &self.kernel), ("image", &self.image), ("sockets", &self.sockets), ("state", &self.state)];
        let disks = self.disks.iter().map(|disk| ("disk", &disk.path));
        let wires = self.nic.iter().map(|nic| ("wire", &nic.wire));
        for (what, path) in paths.into_iter().chain(disks).chain(wires) {
            if !path.is_absolute() {
                return Err(SpecError::Relative { what, path: path.clone() });
            }
        }
        // The longest one, of a port that the guest may call.
        let longest = crate::face::guest_socket(&self.face(), u32::MAX);
        let length = longest.as_os_str().len();
        if length > SUN_PATH {
            return Err(SpecError::TooLong { path: longest, length });
        }
        if self.memory < LEAST_MEMORY || !self.memory.is_multiple_of(1 << 20) {
            return Err(SpecError::Memory(self.memory));
        }
        if self.cpus == 0 {
            return Err(SpecError::Processors);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec() -> Spec {
        Spec {
            id: "m".into(),
            role: Role::Container,
            kernel: "/k".into(),
            image: "/i".into(),
            command_line: "console=hvc0".into(),
            memory: 256 << 20,
            cpus: 2,
            disks: vec![Disk { path: "/d".into(), read_only: true }],
            sockets: "/s".into(),
            state: "/t".into(),
            nic: Some(Nic { wire: "/w".into(), mtu: 1500 }),
        }
    }

    #[test]
    fn what_cannot_be_is_told_in_words() {
        assert!(spec().check().is_ok());
        let fault = |change: fn(&mut Spec)| {
            let mut spec = spec();
            change(&mut spec);
            spec.check().expect_err("a fault").to_string()
        };
        assert_eq!(fault(|spec| spec.kernel = "k".into()), "kernel k is not an absolute path");
        assert_eq!(fault(|spec| spec.disks[0].path = "d".into()), "disk d is not an absolute path");
        assert!(fault(|spec| spec.sockets = format!("/{}", "x".repeat(90)).into()).contains("shorten ARCA_HOME"));
        assert!(fault(|spec| spec.memory = 1000).contains("1000"));
        assert!(fault(|spec| spec.cpus = 0).contains("processor"));
    }

    #[test]
    fn a_spec_is_read_back_and_what_nobody_knows_is_refused() {
        let folder = tempfile::tempdir().expect("folder");
        let path = folder.path().join("vm.json");
        let mut value = serde_json::to_value(spec()).expect("json");
        std::fs::write(&path, value.to_string()).expect("write");
        assert_eq!(Spec::load(&path).expect("read"), spec());
        value["gpu"] = true.into();
        std::fs::write(&path, value.to_string()).expect("write");
        let error = format!("{:#}", Spec::load(&path).expect_err("an unknown field"));
        assert!(error.contains("gpu"), "{error}");
    }
}
