// SPDX-License-Identifier: Apache-2.0
//! What a launcher tells arca-vmm about the machine to keep (`vm.json`), and what arca-vmm leaves behind of it
//! (`vm-exit.json`), both in the machine's state directory.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{Role, files::KernelFormat};

const PLAN: &str = "vm.json";
const END: &str = "vm-exit.json";

/// One machine to keep.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    pub(crate) id: String,
    pub(crate) role: Role,
    pub(crate) kernel: PathBuf,
    pub(crate) format: KernelFormat,
    /// Initial RAM file system.
    pub(crate) image: PathBuf,
    /// Further words of the kernel's command line.
    pub(crate) words: Vec<String>,
    /// Bytes.
    pub(crate) memory: u64,
    pub(crate) cpus: u32,
    pub(crate) sockets: PathBuf,
    pub(crate) state: PathBuf,
    pub(crate) qemu: PathBuf,
    pub(crate) vhost_vsock: PathBuf,
    /// Only where files are shared with the guest.
    pub(crate) virtiofsd: Option<PathBuf>,
    /// Folder that holds the three programs and their libraries, if they are not the system's.
    pub(crate) tools: Option<PathBuf>,
    /// User and group of QEMU and of the vsock daemon.
    pub(crate) uid: u32,
    /// The one network card, if any.
    pub(crate) card: Option<Card>,
    /// Raw disk image that the guest sees as /dev/vda.
    #[serde(default)]
    pub(crate) disk: Option<PathBuf>,
    /// gRPC port whose health is asked for.
    pub(crate) port: u32,
    /// How long the guest may give no sign of life, in milliseconds.
    pub(crate) patience_ms: u64,
}

/// A network card's host end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Card {
    /// A TAP interface: made by arca-vmm and gone with it, unless somebody made one of this name to stay.
    Tap { interface: String },
    /// QEMU's own user-mode network, with these options of `-netdev user`.
    User { options: String },
}

/// How a machine ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct End {
    /// One line for a person.
    pub(crate) reason: String,
    /// It was asked to end.
    pub(crate) asked: bool,
    /// Milliseconds since 1970.
    pub(crate) at_ms: u64,
}

impl Plan {
    pub(crate) fn path(state: &Path) -> PathBuf {
        state.join(PLAN)
    }

    pub(crate) fn store(&self) -> io::Result<()> {
        store(&self.state.join(PLAN), self)
    }

    pub(crate) fn load(path: &Path) -> io::Result<Self> {
        load(path)
    }

    /// Mount point of everything that arca-vmm mounts for its machine; others see an empty folder.
    pub(crate) fn mount_point(&self) -> PathBuf {
        self.state.join("vm")
    }
}

impl End {
    pub(crate) fn store(&self, state: &Path) -> io::Result<()> {
        store(&state.join(END), self)
    }

    /// `None` while there is none, or none that can be read.
    pub(crate) fn load(state: &Path) -> Option<Self> {
        load(&state.join(END)).ok()
    }

    /// A new run of the machine begins.
    pub(crate) fn remove(state: &Path) -> io::Result<()> {
        match fs::remove_file(state.join(END)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

fn store(path: &Path, value: &impl Serialize) -> io::Result<()> {
    let temporary = path.with_extension("json.new");
    fs::write(&temporary, serde_json::to_vec_pretty(value)?)?;
    fs::rename(temporary, path)
}

fn load<T: DeserializeOwned>(path: &Path) -> io::Result<T> {
    Ok(serde_json::from_slice(&fs::read(path)?)?)
}
