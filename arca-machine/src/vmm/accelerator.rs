// SPDX-License-Identifier: Apache-2.0
//! KVM or TCG, found out by trying: the device may be there and of no use (nested, or not permitted). A KVM on an x86
//! processor without extensions for virtualization makes machines, too, but only for guests that help it (PVM): an
//! ordinary one does not get through its firmware in minutes.

use std::{
    fs::OpenOptions,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

use nix::libc;

const DEVICE: &str = "/dev/kvm";
// linux/kvm.h: KVM_GET_API_VERSION, KVM_CREATE_VM, and the version there has been since 2007.
const GET_API_VERSION: libc::c_ulong = 0xae00;
const CREATE_VM: libc::c_ulong = 0xae01;
const API_VERSION: libc::c_int = 12;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    Tcg,
}

impl Accelerator {
    /// What works here.
    pub(crate) fn find() -> Self {
        if has_extensions() && makes_a_machine() { Self::Kvm } else { Self::Tcg }
    }

    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }
}

fn has_extensions() -> bool {
    if !cfg!(target_arch = "x86_64") {
        return true;
    }
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let flags = text.lines().find(|line| line.starts_with("flags")).unwrap_or_default();
    flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm")
}

fn makes_a_machine() -> bool {
    let Ok(device) = OpenOptions::new().read(true).write(true).open(DEVICE) else { return false };
    // SAFETY: both calls take the descriptor and a number; the second gives a new descriptor or an error.
    unsafe {
        if libc::ioctl(device.as_raw_fd(), GET_API_VERSION, 0) != API_VERSION {
            return false;
        }
        let machine = libc::ioctl(device.as_raw_fd(), CREATE_VM, 0);
        if machine < 0 {
            return false;
        }
        drop(OwnedFd::from_raw_fd(machine));
    }
    true
}
