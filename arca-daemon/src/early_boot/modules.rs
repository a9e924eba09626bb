// SPDX-License-Identifier: Apache-2.0
//! Kernel modules of an image that was made for a kernel with modules.
//!
//! The image brings `/lib/modules/RELEASE/load`, one file name a line in the order of loading: the image's builder has
//! resolved what depends on what. A kernel of another release finds no such list and has everything built in.

use std::{
    fs::{self, File},
    io,
    os::fd::AsRawFd,
    path::Path,
};

use nix::{errno::Errno, libc, sys::utsname::uname};

/// Loads the modules of the running kernel. One that cannot be loaded is logged: who needs it will say more.
pub(super) fn load() {
    let Ok(names) = uname() else { return };
    let folder = Path::new("/lib/modules").join(names.release());
    let Ok(list) = fs::read_to_string(folder.join("load")) else { return };
    for name in list.lines().filter(|line| !line.is_empty()) {
        match load_one(&folder.join(name)) {
            Ok(()) => tracing::trace!(name, "module loaded"),
            Err(error) => tracing::error!(name, %error, "module cannot be loaded"),
        }
    }
}

fn load_one(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: a descriptor that lives over the call, an empty C string, a number.
    let done = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), c"".as_ptr(), 0) };
    match Errno::result(done) {
        // Built in, or loaded by the kernel itself.
        Ok(_) | Err(Errno::EEXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
