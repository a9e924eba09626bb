// SPDX-License-Identifier: Apache-2.0
//! XPC, as far as it is needed: dictionaries for vmnet.framework, and the mach service over which a network is handed out.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    io,
    ptr::NonNull,
    sync::Arc,
};

use block2::{DynBlock, RcBlock};
use nix::libc;

use super::ffi::VmnetNetwork;

pub(super) type Object = *mut c_void;

/// What the answer holds; arca-vz asks for it.
const NETWORK: &CStr = c"network";
/// <xpc/connection.h>: XPC_CONNECTION_MACH_SERVICE_LISTENER.
const LISTENER: u64 = 1;

// <xpc/xpc.h>, <xpc/connection.h>: libSystem.
unsafe extern "C" {
    fn xpc_connection_create_mach_service(name: *const c_char, queue: *mut c_void, flags: u64) -> Object;
    fn xpc_connection_set_event_handler(connection: Object, handler: &DynBlock<dyn Fn(Object)>);
    fn xpc_connection_resume(connection: Object);
    fn xpc_connection_cancel(connection: Object);
    fn xpc_connection_send_message(connection: Object, message: Object);
    fn xpc_connection_get_euid(connection: Object) -> libc::uid_t;
    fn xpc_dictionary_create(keys: *const *const c_char, values: *const Object, count: usize) -> Object;
    fn xpc_dictionary_create_reply(original: Object) -> Object;
    fn xpc_dictionary_set_value(dictionary: Object, key: *const c_char, value: Object);
    fn xpc_dictionary_set_uint64(dictionary: Object, key: *const c_char, value: u64);
    fn xpc_dictionary_set_string(dictionary: Object, key: *const c_char, value: *const c_char);
    fn xpc_dictionary_get_uint64(dictionary: Object, key: *const c_char) -> u64;
    fn xpc_get_type(object: Object) -> *const c_void;
    fn xpc_retain(object: Object) -> Object;
    fn xpc_release(object: Object);
    static _xpc_type_connection: c_void;
    static _xpc_type_dictionary: c_void;
}

/// Something counted by XPC.
#[derive(Debug)]
pub(super) struct Owned(NonNull<c_void>);

impl Owned {
    /// Takes over the one reference that a function gave to its caller.
    pub(super) fn new(object: Object) -> Option<Self> {
        NonNull::new(object).map(Self)
    }

    /// An empty dictionary.
    pub(super) fn dictionary() -> io::Result<Self> {
        // SAFETY: no keys and no values.
        let made = unsafe { xpc_dictionary_create(std::ptr::null(), std::ptr::null(), 0) };
        Self::new(made).ok_or_else(|| io::Error::other("XPC makes no dictionary"))
    }

    pub(super) fn as_ptr(&self) -> Object {
        self.0.as_ptr()
    }

    /// `key` ends in NUL; it is a constant of vmnet.framework.
    pub(super) fn set_number(&self, key: *const c_char, value: u64) {
        // SAFETY: the dictionary is alive, the key is as said.
        unsafe { xpc_dictionary_set_uint64(self.as_ptr(), key, value) }
    }

    /// As [`Owned::set_number`].
    pub(super) fn set_text(&self, key: *const c_char, value: &str) -> io::Result<()> {
        let value = CString::new(value).map_err(io::Error::other)?;
        // SAFETY: as above; XPC copies the text.
        unsafe { xpc_dictionary_set_string(self.as_ptr(), key, value.as_ptr()) };
        Ok(())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: this holds one reference.
        unsafe { xpc_release(self.as_ptr()) }
    }
}

/// A number of a dictionary that XPC gave; 0 where there is none.
///
/// # Safety
/// `dictionary` is a live dictionary, `key` ends in NUL.
pub(super) unsafe fn number(dictionary: Object, key: *const c_char) -> u64 {
    // SAFETY: as the caller says.
    unsafe { xpc_dictionary_get_uint64(dictionary, key) }
}

/// Hands `network` out at the mach service `name`, which launchd has for this job, until the process ends.
pub(super) fn serve(name: &str, network: &Arc<VmnetNetwork>) -> io::Result<()> {
    let name = CString::new(name).map_err(io::Error::other)?;
    let network = Arc::clone(network);
    // SAFETY: the name ends in NUL; no queue means the default one.
    let listener = unsafe { xpc_connection_create_mach_service(name.as_ptr(), std::ptr::null_mut(), LISTENER) };
    let listener = NonNull::new(listener).ok_or_else(|| io::Error::other("XPC makes no listener"))?;
    let arrived = RcBlock::new(move |peer: Object| {
        // SAFETY: XPC gives a live object; what is no connection is an error that it reports.
        if unsafe { is(peer, &raw const _xpc_type_connection) } {
            attend(peer, Arc::clone(&network));
        }
    });
    // SAFETY: the listener is alive, and never released: it lives as long as the process. XPC copies the handler.
    unsafe {
        xpc_connection_set_event_handler(listener.as_ptr(), &arrived);
        xpc_connection_resume(listener.as_ptr());
    }
    Ok(())
}

/// One peer: every question is answered with the network.
fn attend(peer: Object, network: Arc<VmnetNetwork>) {
    // SAFETY: the peer is a live connection.
    let uid = unsafe { xpc_connection_get_euid(peer) };
    if uid != 0 && uid != nix::unistd::geteuid().as_raw() {
        tracing::warn!(uid, "another user asks for a network");
        // SAFETY: as above; a connection has to be resumed once before it may go.
        unsafe {
            xpc_connection_set_event_handler(peer, &RcBlock::new(|_: Object| ()));
            xpc_connection_resume(peer);
            xpc_connection_cancel(peer);
        }
        return;
    }
    // Held by its own handler until the peer goes, when XPC drops the handler.
    // SAFETY: a live object gains a reference that `Owned` gives back.
    let Some(held) = Owned::new(unsafe { xpc_retain(peer) }) else { return };
    let asked = RcBlock::new(move |message: Object| {
        // SAFETY: XPC gives a live object.
        if !unsafe { is(message, &raw const _xpc_type_dictionary) } {
            return;
        }
        // SAFETY: `message` is a dictionary from this peer; the answer and the network's form live across the calls.
        let Some(answer) = Owned::new(unsafe { xpc_dictionary_create_reply(message) }) else { return };
        match network.serialized() {
            // SAFETY: as above.
            Ok(form) => unsafe { xpc_dictionary_set_value(answer.as_ptr(), NETWORK.as_ptr(), form.as_ptr()) },
            Err(error) => tracing::warn!(%error, "a network cannot be handed out"),
        }
        // SAFETY: as above.
        unsafe { xpc_connection_send_message(held.as_ptr(), answer.as_ptr()) };
    });
    // SAFETY: the peer is alive; XPC copies the handler.
    unsafe {
        xpc_connection_set_event_handler(peer, &asked);
        xpc_connection_resume(peer);
    }
}

/// # Safety
/// `object` is a live XPC object.
unsafe fn is(object: Object, kind: *const c_void) -> bool {
    // SAFETY: as the caller says.
    std::ptr::eq(unsafe { xpc_get_type(object) }, kind)
}
