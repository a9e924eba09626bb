// SPDX-License-Identifier: Apache-2.0
//! The helper machine's root: the image read-only below, a tmpfs above, the engine's folders bound in.
//!
//! Every mount stands in the helper's own mount namespace and goes with its last process.

use std::{ffi::CString, io, path::Path};

use nix::libc;

use super::{cstring, spawn::Step};
use crate::HelperSpec;

/// Where the agent's program appears inside.
pub(super) const AGENT: &str = "/sbin/arca-helper-agent";
/// Where the socket directory appears inside.
pub(super) const SOCKETS: &str = "/vsock";
const DATA: &str = "/var/lib/arca";

/// All that happens between clone and exec of the helper's first process. `mount_point` is an empty folder.
pub(super) fn steps(spec: &HelperSpec, mount_point: &Path, agent: &Path) -> io::Result<Vec<Step>> {
    let mut plan = Plan { base: mount_point.join("root"), steps: Vec::new() };
    plan.mount("", Path::new("/"), "", libc::MS_REC | libc::MS_PRIVATE, "")?;
    plan.mount("tmpfs", mount_point, "tmpfs", 0, "mode=755,size=256m")?;
    for folder in ["upper", "work", "root"] {
        plan.steps.push(Step::Mkdir(cstring(mount_point.join(folder))?));
    }
    let layers = format!(
        "lowerdir={},upperdir={},workdir={}",
        escaped(&spec.root)?,
        escaped(&mount_point.join("upper"))?,
        escaped(&mount_point.join("work"))?
    );
    plan.mount("overlay", &mount_point.join("root"), "overlay", 0, &layers)?;
    let quiet = libc::MS_NOSUID | libc::MS_NOEXEC | libc::MS_NODEV;
    plan.folder("/proc", "proc", quiet, "")?;
    plan.folder("/sys", "sysfs", quiet, "")?;
    plan.folder("/dev", "tmpfs", libc::MS_NOSUID, "mode=755,size=64k")?;
    plan.folder("/run", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=755")?;
    plan.folder("/tmp", "tmpfs", libc::MS_NOSUID | libc::MS_NODEV, "mode=1777")?;
    plan.devices()?;
    for folder in ["/var", "/var/lib", "/sbin"] {
        plan.mkdir(folder)?;
    }
    plan.bind(&spec.data_directory, DATA)?;
    plan.bind(&spec.socket_directory, SOCKETS)?;
    plan.steps.push(Step::Touch(plan.inside(AGENT)?));
    plan.mount_inside(agent, AGENT, libc::MS_BIND)?;
    plan.mount_inside(agent, AGENT, libc::MS_BIND | libc::MS_REMOUNT | libc::MS_RDONLY)?;
    plan.steps.push(Step::Chdir(cstring(&plan.base)?));
    plan.steps.push(Step::PivotHere);
    plan.steps.push(Step::Hostname(cstring(&spec.id)?));
    Ok(plan.steps)
}

/// A path in overlayfs's option text, where comma, colon and backslash have meanings.
fn escaped(path: &Path) -> io::Result<String> {
    let text = path
        .to_str()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{} is not valid UTF-8", path.display())))?;
    Ok(text.replace('\\', "\\\\").replace(',', "\\,").replace(':', "\\:"))
}

struct Plan {
    base: std::path::PathBuf,
    steps: Vec<Step>,
}

impl Plan {
    fn inside(&self, path: &str) -> io::Result<CString> {
        cstring(self.base.join(path.trim_start_matches('/')))
    }

    fn mkdir(&mut self, path: &str) -> io::Result<()> {
        self.steps.push(Step::Mkdir(self.inside(path)?));
        Ok(())
    }

    fn mount(&mut self, source: &str, target: &Path, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
        self.steps.push(Step::Mount {
            source: cstring(source)?,
            target: cstring(target)?,
            kind: cstring(kind)?,
            flags,
            data: cstring(data)?,
        });
        Ok(())
    }

    fn mount_inside(&mut self, source: &Path, target: &str, flags: libc::c_ulong) -> io::Result<()> {
        self.steps.push(Step::Mount {
            source: cstring(source)?,
            target: self.inside(target)?,
            kind: CString::default(),
            flags,
            data: CString::default(),
        });
        Ok(())
    }

    /// A file system of its own on a folder that the image may lack.
    fn folder(&mut self, path: &str, kind: &str, flags: libc::c_ulong, data: &str) -> io::Result<()> {
        self.mkdir(path)?;
        let target = self.base.join(path.trim_start_matches('/'));
        self.mount(kind, &target, kind, flags, data)
    }

    fn bind(&mut self, source: &Path, target: &str) -> io::Result<()> {
        self.mkdir(target)?;
        self.mount_inside(source, target, libc::MS_BIND)
    }

    fn devices(&mut self) -> io::Result<()> {
        self.mkdir("/dev/net")?;
        let nodes = [
            ("null", 1, 3),
            ("zero", 1, 5),
            ("full", 1, 7),
            ("random", 1, 8),
            ("urandom", 1, 9),
            ("tty", 5, 0),
            ("net/tun", 10, 200),
        ];
        for (name, major, minor) in nodes {
            let path = self.inside(&format!("/dev/{name}"))?;
            self.steps.push(Step::Device { path, major, minor });
        }
        for (name, target) in [("fd", "/proc/self/fd"), ("stdin", "fd/0"), ("stdout", "fd/1"), ("stderr", "fd/2")] {
            let path = self.inside(&format!("/dev/{name}"))?;
            self.steps.push(Step::Symlink { target: cstring(target)?, path });
        }
        Ok(())
    }
}
