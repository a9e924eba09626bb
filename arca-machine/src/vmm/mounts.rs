// SPDX-License-Identifier: Apache-2.0
//! All that arca-vmm mounts, in its own mount namespace, below one tmpfs:
//!
//! ```text
//! <state>/vm/share    what the guest sees at /arca: bind mounts and overlays, added while it runs
//!           /layers   links to the layers of overlays: short names, because mount(2) takes one page of options
//!           /jail     root of QEMU and of the vsock daemon: system and tools read-only, the machine's sockets
//! ```
//!
//! Mounts made on the host later come in, none goes out, and all go with the last process of the machine.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{MetadataExt, chown, symlink},
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sys::stat::{Mode, SFlag, mknod},
};

use crate::vm::plan::Plan;

/// Where the guest mounts the share.
const GUEST: &str = "/arca";
const NOTHING: Option<&str> = None;
/// Where the jail has kernel, image and disk.
pub(super) const KERNEL: &str = "/kernel";
pub(super) const IMAGE: &str = "/image";
pub(super) const DISK: &str = "/disk";

#[derive(Debug)]
pub(super) struct Mounts {
    base: PathBuf,
    exposed: BTreeMap<(PathBuf, bool), String>,
    roots: BTreeMap<String, Vec<String>>,
    counter: u64,
}

impl Mounts {
    /// Makes the tmpfs, an empty share and the jail.
    pub(super) fn new(plan: &Plan) -> anyhow::Result<Self> {
        let base = plan.mount_point();
        mount(NOTHING, "/", NOTHING, MsFlags::MS_REC | MsFlags::MS_SLAVE, NOTHING).context("take in mounts only")?;
        fs::create_dir_all(&base).with_context(|| format!("make {}", base.display()))?;
        mount(Some("tmpfs"), &base, Some("tmpfs"), MsFlags::MS_NOSUID, Some("mode=755,size=16m"))
            .with_context(|| format!("mount a tmpfs on {}", base.display()))?;
        // Layers are named from here.
        std::env::set_current_dir(&base).with_context(|| format!("enter {}", base.display()))?;
        for folder in ["share", "layers", "jail"] {
            fs::create_dir(base.join(folder)).with_context(|| format!("make {folder}"))?;
        }
        let mounts = Self { base, exposed: BTreeMap::new(), roots: BTreeMap::new(), counter: 0 };
        mounts.build_jail(plan).context("build the root of QEMU")?;
        Ok(mounts)
    }

    pub(super) fn share(&self) -> PathBuf {
        self.base.join("share")
    }

    pub(super) fn jail(&self) -> PathBuf {
        self.base.join("jail")
    }

    fn build_jail(&self, plan: &Plan) -> io::Result<()> {
        let jail = self.jail();
        self.bind_in_jail(Path::new("/usr"), Path::new("/usr"), true)?;
        for name in ["bin", "sbin", "lib", "lib32", "lib64"] {
            let system = Path::new("/").join(name);
            match fs::read_link(&system) {
                Ok(target) => symlink(target, jail.join(name))?,
                Err(_) if system.is_dir() => self.bind_in_jail(&system, &system, true)?,
                Err(_) => {}
            }
        }
        let programs = [&plan.qemu, &plan.vhost_vsock].map(|program| program.parent().map(Path::to_path_buf));
        let elsewhere = programs.into_iter().flatten().filter(|folder| !folder.starts_with("/usr"));
        let further = ["/etc/ld.so.cache", "/nix/store"].map(PathBuf::from).into_iter();
        for path in further.chain(plan.tools.clone()).chain(elsewhere) {
            // A folder within one that is there already is there, too.
            if path.exists() && !jail.join(path.strip_prefix("/").unwrap_or(&path)).exists() {
                self.bind_in_jail(&path, &path, true)?;
            }
        }
        for device in ["/dev/null", "/dev/urandom"].map(Path::new) {
            self.bind_in_jail(device, device, false)?;
        }
        self.own_device(Path::new("/dev/kvm"), plan.uid)?;
        self.bind_in_jail(&plan.sockets, &plan.sockets, false)?;
        self.bind_in_jail(&plan.kernel, Path::new(KERNEL), true)?;
        self.bind_in_jail(&plan.image, Path::new(IMAGE), true)?;
        if let Some(disk) = &plan.disk {
            self.bind_in_jail(disk, Path::new(DISK), false)?;
        }
        Ok(())
    }

    /// A device that may be root's alone becomes QEMU's in the jail, which nobody else sees.
    fn own_device(&self, device: &Path, uid: u32) -> io::Result<()> {
        let Ok(metadata) = fs::metadata(device) else { return Ok(()) };
        let place = self.jail().join(device.strip_prefix("/").unwrap_or(device));
        mknod(&place, SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), metadata.rdev())?;
        chown(place, Some(uid), Some(uid))
    }

    fn bind_in_jail(&self, source: &Path, place: &Path, read_only: bool) -> io::Result<()> {
        let target = self.jail().join(place.strip_prefix("/").unwrap_or(place));
        if let Some(parent) = target.parent() {
            fs::create_dir_all(parent)?;
        }
        bind(source, &target, read_only)
            .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", source.display())))
    }

    /// Makes `source` visible in the guest; gives the guest's path. The same again is there already.
    pub(super) fn expose(&mut self, source: &Path, read_only: bool) -> io::Result<PathBuf> {
        let key = (source.to_path_buf(), read_only);
        if let Some(name) = self.exposed.get(&key) {
            return Ok(Path::new(GUEST).join(name));
        }
        let name = self.counter.to_string();
        self.counter += 1;
        bind(source, &self.share().join(&name), read_only)?;
        self.exposed.insert(key, name.clone());
        Ok(Path::new(GUEST).join(name))
    }

    /// Mounts an overlay that the guest sees; gives the guest's path. `lower` has the topmost layer first.
    pub(super) fn root(&mut self, name: &str, lower: &[PathBuf], upper: &Path, work: &Path) -> io::Result<PathBuf> {
        let invalid = |text: &str| io::Error::new(io::ErrorKind::InvalidInput, text.to_owned());
        let plain = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric());
        if !plain || lower.is_empty() {
            return Err(invalid("an overlay needs a plain name and a lower directory"));
        }
        if self.roots.contains_key(name) {
            self.unroot(name)?;
        }
        let mut links = Vec::new();
        for path in lower.iter().map(PathBuf::as_path).chain([upper, work]) {
            let link = format!("layers/{}", self.counter);
            self.counter += 1;
            symlink(path, &link)?;
            links.push(link);
        }
        let target = self.share().join(format!("root-{name}"));
        fs::create_dir_all(&target)?;
        let (lowers, ends) = links.split_at(lower.len());
        let options = format!("lowerdir={},upperdir={},workdir={}", lowers.join(":"), ends[0], ends[1]);
        let mounted = mount(Some("overlay"), &target, Some("overlay"), MsFlags::empty(), Some(options.as_str()));
        if let Err(error) = mounted {
            remove_links(&links);
            let _ = fs::remove_dir(&target);
            return Err(error.into());
        }
        self.roots.insert(name.to_owned(), links);
        Ok(Path::new(GUEST).join(format!("root-{name}")))
    }

    /// Takes away what [`Self::root`] made. The guest may still have files of it open: they go when it lets go of them.
    pub(super) fn unroot(&mut self, name: &str) -> io::Result<()> {
        let Some(links) = self.roots.remove(name) else { return Ok(()) };
        let target = self.share().join(format!("root-{name}"));
        umount2(&target, MntFlags::MNT_DETACH)?;
        remove_links(&links);
        fs::remove_dir(target)
    }
}

fn remove_links(links: &[String]) {
    for link in links {
        let _ = fs::remove_file(link);
    }
}

/// Binds a file or a folder, with what is mounted in it, to a place that is made.
fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    let metadata = fs::metadata(source)?;
    if metadata.is_dir() {
        fs::create_dir_all(target)?;
    } else {
        fs::write(target, b"")?;
    }
    mount(Some(source), target, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)?;
    if read_only {
        let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NOSUID;
        mount(NOTHING, target, NOTHING, flags, NOTHING)?;
    }
    Ok(())
}
