// SPDX-License-Identifier: Apache-2.0
//! A machine in the framework's terms.

use std::{
    fs::{File, OpenOptions},
    io::Read as _,
    os::fd::IntoRawFd as _,
    path::Path,
};

use anyhow::{Context as _, bail, ensure};
use objc2::{AnyThread as _, rc::Retained};
use objc2_foundation::{NSArray, NSDictionary, NSFileHandle, NSString, NSURL};
use objc2_virtualization::{
    VZDirectorySharingDeviceConfiguration, VZDiskImageStorageDeviceAttachment, VZEntropyDeviceConfiguration,
    VZFileHandleSerialPortAttachment, VZLinuxBootLoader, VZMemoryBalloonDeviceConfiguration, VZMultipleDirectoryShare,
    VZSerialPortConfiguration, VZSharedDirectory, VZSocketDeviceConfiguration, VZStorageDeviceConfiguration,
    VZVirtioBlockDeviceConfiguration, VZVirtioConsoleDeviceSerialPortConfiguration, VZVirtioEntropyDeviceConfiguration,
    VZVirtioFileSystemDeviceConfiguration, VZVirtioSocketDeviceConfiguration,
    VZVirtioTraditionalMemoryBalloonDeviceConfiguration, VZVirtualMachine, VZVirtualMachineConfiguration,
};

use super::{nic::Card, refused};
use crate::{
    shares::{self, Shares},
    spec::{Disk, Spec},
};

/// Magic of an arm64 `Image` at offset 56 (Linux, Documentation/arch/arm64/booting.rst).
const IMAGE_MAGIC: [u8; 4] = *b"ARM\x64";
/// What each of the machine's disks is kept in.
type Storage = Retained<VZStorageDeviceConfiguration>;

/// Builds and validates.
pub(super) fn build(spec: &Spec, card: Option<&Card>) -> anyhow::Result<Retained<VZVirtualMachineConfiguration>> {
    // SAFETY (of all blocks here): objects of the framework that no machine has yet, used by this thread alone, with arguments
    // of the types that it declares.
    ensure!(unsafe { VZVirtualMachine::isSupported() }, "this Mac cannot run virtual machines (or is one itself)");
    kernel(&spec.kernel)?;
    let configuration = unsafe { VZVirtualMachineConfiguration::new() };
    // SAFETY: as above.
    let (least, most) = unsafe {
        (
            VZVirtualMachineConfiguration::minimumAllowedMemorySize(),
            VZVirtualMachineConfiguration::maximumAllowedMemorySize(),
        )
    };
    ensure!(
        (least..=most).contains(&spec.memory),
        "memory of {} bytes: this Mac allows {least} to {most}",
        spec.memory
    );
    let boot = boot_loader(spec)?;
    let disks = spec.disks.iter().map(disk).collect::<anyhow::Result<Vec<Storage>>>()?;
    let console = console(&spec.state.join("console.log"))?;
    // SAFETY: as above.
    unsafe {
        configuration.setBootLoader(Some(&boot));
        configuration.setCPUCount(spec.cpus as usize);
        configuration.setMemorySize(spec.memory);
        configuration.setStorageDevices(&NSArray::from_retained_slice(&disks));
        configuration.setSerialPorts(&NSArray::from_retained_slice(&[console]));
        let sockets: Retained<VZSocketDeviceConfiguration> =
            Retained::into_super(VZVirtioSocketDeviceConfiguration::new());
        configuration.setSocketDevices(&NSArray::from_retained_slice(&[sockets]));
        let entropy: Retained<VZEntropyDeviceConfiguration> =
            Retained::into_super(VZVirtioEntropyDeviceConfiguration::new());
        configuration.setEntropyDevices(&NSArray::from_retained_slice(&[entropy]));
        let balloon: Retained<VZMemoryBalloonDeviceConfiguration> =
            Retained::into_super(VZVirtioTraditionalMemoryBalloonDeviceConfiguration::new());
        configuration.setMemoryBalloonDevices(&NSArray::from_retained_slice(&[balloon]));
        let device = VZVirtioFileSystemDeviceConfiguration::initWithTag(
            VZVirtioFileSystemDeviceConfiguration::alloc(),
            &NSString::from_str(shares::TAG),
        );
        device.setShare(Some(&*directories(&Shares::default())?));
        let device: Retained<VZDirectorySharingDeviceConfiguration> = Retained::into_super(device);
        configuration.setDirectorySharingDevices(&NSArray::from_retained_slice(&[device]));
        if let Some(card) = card {
            configuration.setNetworkDevices(&NSArray::from_retained_slice(&[card.configuration.clone()]));
        }
        // Names a missing entitlement, too.
        configuration.validateWithError().map_err(|error| refused("make a machine", &error))?;
    }
    Ok(configuration)
}

/// All folders that the guest sees, in the framework's terms.
pub(super) fn directories(shares: &Shares) -> anyhow::Result<Retained<VZMultipleDirectoryShare>> {
    let mut names = Vec::new();
    let mut folders = Vec::new();
    for (name, folder) in shares.folders() {
        names.push(NSString::from_str(&name));
        // SAFETY: plain objects, as in `build`.
        folders.push(unsafe {
            VZSharedDirectory::initWithURL_readOnly(VZSharedDirectory::alloc(), &*url(&folder.path)?, folder.read_only)
        });
    }
    let names: Vec<&NSString> = names.iter().map(|name| &**name).collect();
    let dictionary = NSDictionary::from_retained_objects(&names, &folders);
    // SAFETY: as above.
    Ok(unsafe { VZMultipleDirectoryShare::initWithDirectories(VZMultipleDirectoryShare::alloc(), &dictionary) })
}

fn boot_loader(spec: &Spec) -> anyhow::Result<Retained<VZLinuxBootLoader>> {
    // SAFETY: as in `build`.
    unsafe {
        let boot = VZLinuxBootLoader::initWithKernelURL(VZLinuxBootLoader::alloc(), &*url(&spec.kernel)?);
        boot.setInitialRamdiskURL(Some(&*url(&spec.image)?));
        boot.setCommandLine(&NSString::from_str(&spec.command_line));
        Ok(boot)
    }
}

fn disk(disk: &Disk) -> anyhow::Result<Storage> {
    // SAFETY: as in `build`.
    unsafe {
        let attachment = VZDiskImageStorageDeviceAttachment::initWithURL_readOnly_error(
            VZDiskImageStorageDeviceAttachment::alloc(),
            &*url(&disk.path)?,
            disk.read_only,
        );
        let attachment = attachment.map_err(|error| refused("open the disk image", &error));
        let attachment = attachment.with_context(|| disk.path.display().to_string())?;
        let device = VZVirtioBlockDeviceConfiguration::initWithAttachment(
            VZVirtioBlockDeviceConfiguration::alloc(),
            &attachment,
        );
        Ok(Retained::into_super(device))
    }
}

/// What the guest writes to its console goes to a log; nothing is read from it.
fn console(path: &Path) -> anyhow::Result<Retained<VZSerialPortConfiguration>> {
    let log = OpenOptions::new().create(true).append(true).open(path);
    let log = log.with_context(|| format!("open {}", path.display()))?;
    let handle = NSFileHandle::initWithFileDescriptor_closeOnDealloc(NSFileHandle::alloc(), log.into_raw_fd(), true);
    // SAFETY: as in `build`.
    unsafe {
        let attachment = VZFileHandleSerialPortAttachment::initWithFileHandleForReading_fileHandleForWriting(
            VZFileHandleSerialPortAttachment::alloc(),
            None,
            Some(&handle),
        );
        let port = VZVirtioConsoleDeviceSerialPortConfiguration::new();
        port.setAttachment(Some(&attachment));
        Ok(Retained::into_super(port))
    }
}

fn url(path: &Path) -> anyhow::Result<Retained<NSURL>> {
    NSURL::from_file_path(path).with_context(|| format!("{} is no path of a URL", path.display()))
}

/// Says beforehand what the framework only says as "cannot start".
fn kernel(path: &Path) -> anyhow::Result<()> {
    let mut head = [0; 60];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut head));
    read.with_context(|| format!("read the kernel {}", path.display()))?;
    if cfg!(target_arch = "aarch64") && !head.ends_with(&IMAGE_MAGIC) {
        bail!(
            "{} is no uncompressed arm64 Image (a compressed one must be unpacked, one for x86-64 does not run)",
            path.display()
        );
    }
    Ok(())
}
