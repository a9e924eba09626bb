// SPDX-License-Identifier: Apache-2.0
//! launch_activate_socket(3): the descriptors of one key of the property list's `Sockets`.
#![allow(unsafe_code, reason = "a C function of the system library, and descriptors that arrive as numbers; see below")]

use std::{
    ffi::CString,
    io,
    os::fd::{FromRawFd as _, OwnedFd},
    ptr, slice,
};

use nix::libc::{self, c_char, c_int, size_t};

unsafe extern "C" {
    /// Of libSystem; not in the libc crate.
    fn launch_activate_socket(name: *const c_char, fds: *mut *mut c_int, count: *mut size_t) -> c_int;
}

pub(super) fn take(name: &str) -> io::Result<Option<OwnedFd>> {
    let name = CString::new(name)?;
    let (mut fds, mut count): (*mut c_int, size_t) = (ptr::null_mut(), 0);
    // SAFETY: the name ends with a zero byte, and the two results outlive the call.
    let code = unsafe { launch_activate_socket(name.as_ptr(), &raw mut fds, &raw mut count) };
    match code {
        0 => {}
        // Not started by launchd, no such key, or taken before (launch_activate_socket(3), ERRORS).
        libc::ESRCH | libc::ENOENT | libc::EALREADY => return Ok(None),
        code => return Err(io::Error::from_raw_os_error(code)),
    }
    // SAFETY: on success it gives `count` descriptors, which are this process's, in an array to be freed by the caller.
    let owned: Vec<OwnedFd> = unsafe {
        let owned = slice::from_raw_parts(fds, count).iter().map(|fd| OwnedFd::from_raw_fd(*fd)).collect();
        libc::free(fds.cast());
        owned
    };
    // A unix socket is one descriptor; close-on-exec is set by launchd.
    Ok(owned.into_iter().next())
}
