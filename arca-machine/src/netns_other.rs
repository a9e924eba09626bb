// SPDX-License-Identifier: Apache-2.0
//! Platforms without network namespaces.

use std::{
    io,
    os::fd::{BorrowedFd, OwnedFd},
};

use arca_proto::dial::Address;

/// # Errors
/// Always.
pub fn open(_address: &Address) -> io::Result<OwnedFd> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this platform has no network namespaces"))
}

/// # Errors
/// Always.
pub fn within<T: Send>(_netns: BorrowedFd<'_>, _work: impl FnOnce() -> T + Send) -> io::Result<T> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this platform has no network namespaces"))
}
