// SPDX-License-Identifier: Apache-2.0
//! What virtual machines are made from: kernel, images, programs. Found and looked at before anything is started, so that
//! each thing that is missing or wrong is one line with the way out.

use std::{
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

use serde::{Deserialize, Serialize};

use crate::MachineError;

/// Where the parts lie.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VmFiles {
    /// Kernel of both kinds of guest.
    pub kernel: PathBuf,
    /// Initial RAM file system of container machines.
    pub init_image: PathBuf,
    /// Initial RAM file system of the helper machine.
    pub helper_image: PathBuf,
    /// Folder whose `bin` (or itself) is looked into before PATH for QEMU, virtiofsd and vhost-device-vsock.
    pub tools: Option<PathBuf>,
    /// The keeper, arca-vmm.
    pub keeper: PathBuf,
}

/// How a kernel file is loaded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum KernelFormat {
    /// An uncompressed x86-64 kernel, entered by PVH, that finds devices named on its command line: one of ours.
    Elf,
    /// An uncompressed x86-64 kernel that finds devices on PCI only: a distribution's.
    ElfPci,
    /// A compressed x86-64 kernel.
    BzImage,
    /// An arm64 `Image`.
    Arm64,
}

/// Where programs that few people call by hand are installed.
const LIBEXEC: [&str; 2] = ["/usr/libexec", "/usr/local/libexec"];

impl VmFiles {
    /// The program `name`; `package` is what a person installs to have it.
    pub(crate) fn program(&self, name: &'static str, package: &'static str) -> Result<PathBuf, MachineError> {
        let own = self.tools.iter().flat_map(|tools| [tools.join("bin"), tools.clone()]);
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path: Vec<PathBuf> = std::env::split_paths(&path).collect();
        own.chain(path)
            .chain(LIBEXEC.map(PathBuf::from))
            .map(|folder| folder.join(name))
            .find_map(|path| path.canonicalize().ok().filter(|path| path.is_file()))
            .ok_or_else(|| MachineError::Missing { what: name.to_owned(), fix: package.to_owned() })
    }

    /// Looks at the kernel.
    pub(crate) fn kernel_format(&self) -> Result<KernelFormat, MachineError> {
        let head = head(&self.kernel, "the kernel", "build one with `just kernel`, or set kernelPath")?;
        let format = format_of(&head).filter(|format| match std::env::consts::ARCH {
            "x86_64" => *format != KernelFormat::Arm64,
            "aarch64" => *format == KernelFormat::Arm64,
            _ => false,
        });
        let format = match format {
            Some(KernelFormat::Elf) if !takes_devices(&self.kernel) => Some(KernelFormat::ElfPci),
            format => format,
        };
        format.ok_or_else(|| MachineError::Unusable {
            what: "the kernel",
            path: self.kernel.clone(),
            why: format!("it is no Linux kernel for {}", std::env::consts::ARCH),
        })
    }
}

/// Whether a kernel has the parameter that names virtio devices (CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES): the parameter's name is
/// in it. The answer for the last kernel is kept, because its whole file is read for it.
fn takes_devices(kernel: &Path) -> bool {
    static KNOWN: Mutex<Option<(PathBuf, Option<SystemTime>, bool)>> = Mutex::new(None);
    let modified = std::fs::metadata(kernel).and_then(|metadata| metadata.modified()).ok();
    let mut known = KNOWN.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((path, at, answer)) = known.as_ref()
        && path == kernel
        && *at == modified
    {
        return *answer;
    }
    let answer = contains(kernel, b"virtio_mmio.device\0").unwrap_or(false);
    *known = Some((kernel.to_path_buf(), modified, answer));
    answer
}

fn contains(path: &Path, wanted: &[u8]) -> std::io::Result<bool> {
    let mut file = File::open(path)?;
    let mut buffer = vec![0; 1 << 20];
    let mut kept = 0;
    loop {
        let read = file.read(&mut buffer[kept..])?;
        if read == 0 {
            return Ok(false);
        }
        let filled = kept + read;
        let first = wanted.first().copied().unwrap_or_default();
        let begins = |at: &usize| buffer[*at] == first && buffer[*at..filled].starts_with(wanted);
        if (0..filled).any(|at| begins(&at)) {
            return Ok(true);
        }
        // What it is looked for in may lie across two pieces.
        kept = filled.min(wanted.len() - 1);
        buffer.copy_within(filled - kept..filled, 0);
    }
}

/// Looks at an initial RAM file system.
pub(crate) fn check_image(path: &Path, recipe: &'static str) -> Result<(), MachineError> {
    let head = head(path, "the guest's image", recipe)?;
    // cpio "newc", gzip, zstd, lz4 (legacy), xz
    let known: [&[u8]; 5] =
        [b"070701", &[0x1f, 0x8b], &[0x28, 0xb5, 0x2f, 0xfd], &[0x02, 0x21, 0x4c, 0x18], b"\xfd7zXZ"];
    if known.iter().any(|magic| head.starts_with(magic)) {
        return Ok(());
    }
    Err(MachineError::Unusable {
        what: "the guest's image",
        path: path.to_path_buf(),
        why: format!("it is no initial RAM file system ({recipe})"),
    })
}

fn head(path: &Path, what: &'static str, fix: &str) -> Result<Vec<u8>, MachineError> {
    let read = File::open(path).and_then(|file| {
        let mut head = Vec::new();
        file.take(1024).read_to_end(&mut head).map(|_| head)
    });
    read.map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => {
            MachineError::Missing { what: format!("{what} {}", path.display()), fix: fix.to_owned() }
        }
        _ => MachineError::Unusable { what, path: path.to_path_buf(), why: error.to_string() },
    })
}

fn format_of(head: &[u8]) -> Option<KernelFormat> {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    // ELF64, little endian, machine 62 (x86-64)
    if at(0, b"\x7fELF\x02\x01") && at(18, &[62, 0]) {
        return Some(KernelFormat::Elf);
    }
    // Documentation/arch/x86/boot.rst and Documentation/arch/arm64/booting.rst
    if at(0x1fe, &[0x55, 0xaa]) && at(0x202, b"HdrS") {
        return Some(KernelFormat::BzImage);
    }
    at(0x38, b"ARM\x64").then_some(KernelFormat::Arm64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernels_are_told_by_their_heads() {
        let mut elf = vec![0; 1024];
        elf[..6].copy_from_slice(b"\x7fELF\x02\x01");
        elf[18] = 62;
        assert_eq!(format_of(&elf), Some(KernelFormat::Elf));
        elf[18] = 183;
        assert_eq!(format_of(&elf), None, "of another machine");
        let mut compressed = vec![0; 1024];
        compressed[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        compressed[0x202..0x206].copy_from_slice(b"HdrS");
        assert_eq!(format_of(&compressed), Some(KernelFormat::BzImage));
        assert_eq!(format_of(b"#!/bin/sh"), None);
        assert_eq!(format_of(b""), None);
    }

    #[test]
    fn a_kernel_that_takes_devices_by_name_is_told_from_one_that_does_not() {
        let folder = tempfile::tempdir().expect("folder");
        let kernel = folder.path().join("k");
        let mut text = vec![b'v'; (1 << 20) - 7];
        std::fs::write(&kernel, &text).expect("write");
        assert!(!contains(&kernel, b"virtio_mmio.device\0").expect("read"));
        text.extend_from_slice(b"virtio_mmio.device\0 and more");
        std::fs::write(&kernel, &text).expect("write");
        assert!(contains(&kernel, b"virtio_mmio.device\0").expect("read"), "across two pieces");
    }

    #[test]
    fn what_is_missing_or_wrong_is_one_line_with_the_way_out() {
        let folder = tempfile::tempdir().expect("folder");
        let image = folder.path().join("image");
        let missing = check_image(&image, "make it with `just vminit`").expect_err("missing").to_string();
        assert!(missing.contains("image is missing") && missing.contains("just vminit"), "{missing}");
        std::fs::write(&image, "not an image").expect("write");
        let corrupt = check_image(&image, "x").expect_err("corrupt").to_string();
        assert!(corrupt.contains("no initial RAM file system"), "{corrupt}");
        std::fs::write(&image, b"\x28\xb5\x2f\xfd and more").expect("write");
        check_image(&image, "x").expect("zstd");
        let files = VmFiles { kernel: folder.path().join("k"), ..VmFiles::default() };
        assert!(files.kernel_format().expect_err("no kernel").to_string().contains("just kernel"));
        let program = files.program("arca-no-such-program", "install it").expect_err("no program").to_string();
        assert!(!program.contains('\n') && program.contains("install it"), "{program}");
    }
}
