// SPDX-License-Identifier: Apache-2.0
//! A thread that moves frames works for microseconds and then waits: it asks the scheduler for short slices, so that it is
//! served soon after each wake-up. Its share of the processor stays what it was; only when it gets it changes.

use std::io;

use nix::libc;

/// Nanoseconds; the least that the kernel takes. Its default is about three milliseconds, and so long may a thread that
/// was woken wait for another that computes.
const SLICE: u64 = 100_000;

/// For thread `thread`, 0 for the calling one. Kernels before Linux 6.12 have one length for all and take no notice.
///
/// # Errors
/// As `sched_setattr(2)`: somebody else's thread.
pub fn short_slices(thread: libc::pid_t) -> io::Result<()> {
    // SAFETY: all-zero is a valid sched_attr.
    let mut attributes: libc::sched_attr = unsafe { std::mem::zeroed() };
    let size = libc::c_uint::try_from(size_of::<libc::sched_attr>()).map_err(io::Error::other)?;
    // SAFETY: `attributes` is `size` bytes long and lives across the call.
    let got = unsafe { libc::syscall(libc::SYS_sched_getattr, thread, &raw mut attributes, size, 0) };
    nix::Error::result(got)?;
    if attributes.sched_policy != libc::SCHED_OTHER.cast_unsigned() {
        return Ok(());
    }
    attributes.size = size;
    // The flags that were read back are not all ones that may be set.
    attributes.sched_flags = 0;
    attributes.sched_runtime = SLICE;
    // SAFETY: `attributes` lives across the call and is only read.
    let set = unsafe { libc::syscall(libc::SYS_sched_setattr, thread, &raw const attributes, 0) };
    nix::Error::result(set)?;
    Ok(())
}

/// The same for the calling thread. Without it frames are moved all the same.
pub(crate) fn short_slices_here() {
    if let Err(error) = short_slices(0) {
        tracing::debug!(%error, "no short slices");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_stays_and_others_threads_are_not_there() {
        let nice = || {
            // SAFETY: takes and returns integers.
            unsafe { libc::getpriority(libc::PRIO_PROCESS, 0) }
        };
        let before = nice();
        short_slices(0).expect("our own thread");
        short_slices(0).expect("twice");
        assert_eq!(nice(), before);
        assert!(short_slices(libc::pid_t::MAX).is_err());
    }
}
