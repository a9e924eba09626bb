// SPDX-License-Identifier: Apache-2.0
//! A network of another process, as macOS 26 hands it on: an XPC object that vmnet.framework makes a network of again.
//! XPC objects travel over XPC only, so the keeper of the network serves it as a mach service.

use std::{
    ffi::{CStr, CString, c_char, c_void},
    io,
    ptr::NonNull,
};

use block2::{DynBlock, RcBlock};
use nix::libc;

/// What the keeper's answer holds.
const NETWORK: &CStr = c"network";
const FRAMEWORK: &CStr = c"/System/Library/Frameworks/vmnet.framework/vmnet";

type Object = *mut c_void;

// <xpc/xpc.h>, <xpc/connection.h>: libSystem.
unsafe extern "C" {
    fn xpc_connection_create_mach_service(name: *const c_char, queue: *mut c_void, flags: u64) -> Object;
    fn xpc_connection_set_event_handler(connection: Object, handler: &DynBlock<dyn Fn(Object)>);
    fn xpc_connection_resume(connection: Object);
    fn xpc_connection_cancel(connection: Object);
    fn xpc_connection_send_message_with_reply_sync(connection: Object, message: Object) -> Object;
    fn xpc_dictionary_create(keys: *const *const c_char, values: *const Object, count: usize) -> Object;
    fn xpc_dictionary_get_value(dictionary: Object, key: *const c_char) -> Object;
    fn xpc_get_type(object: Object) -> *const c_void;
    fn xpc_release(object: Object);
    static _xpc_type_dictionary: c_void;
}

/// Something counted by XPC.
struct Owned(NonNull<c_void>);

impl Owned {
    fn new(object: Object, what: &str) -> io::Result<Self> {
        NonNull::new(object).map(Self).ok_or_else(|| io::Error::other(format!("XPC gives no {what}")))
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        // SAFETY: made by a function that gives one reference to its caller, which is this.
        unsafe { xpc_release(self.0.as_ptr()) }
    }
}

/// A `vmnet_network_ref` of this process. It is held as long as the process lives: the machine uses it until then.
#[derive(Clone, Copy, Debug)]
pub(super) struct Network(pub(super) NonNull<c_void>);

/// Asks the mach service for its network.
pub(super) fn network(service: &str) -> io::Result<Network> {
    let name = CString::new(service).map_err(io::Error::other)?;
    // SAFETY: the name ends in NUL; no queue means the default one.
    let connection = unsafe { xpc_connection_create_mach_service(name.as_ptr(), std::ptr::null_mut(), 0) };
    let connection = Owned::new(connection, "connection")?;
    // Errors come as the answer, too; XPC insists on a handler.
    let handler = RcBlock::new(|_event: Object| ());
    // SAFETY: an empty dictionary needs no keys; all objects live across the calls; the handler is copied by XPC.
    let answer = unsafe {
        xpc_connection_set_event_handler(connection.0.as_ptr(), &handler);
        xpc_connection_resume(connection.0.as_ptr());
        let question = Owned::new(xpc_dictionary_create(std::ptr::null(), std::ptr::null(), 0), "dictionary")?;
        xpc_connection_send_message_with_reply_sync(connection.0.as_ptr(), question.0.as_ptr())
    };
    let answer = Owned::new(answer, "answer")?;
    // SAFETY: as above; the value belongs to the answer, which outlives its use.
    let network = unsafe {
        let given = if std::ptr::eq(xpc_get_type(answer.0.as_ptr()), &raw const _xpc_type_dictionary) {
            made(xpc_dictionary_get_value(answer.0.as_ptr(), NETWORK.as_ptr()))
        } else {
            Err(io::Error::other(format!("the mach service {service} does not answer (has the keeper ended?)")))
        };
        xpc_connection_cancel(connection.0.as_ptr());
        given
    };
    network
}

/// A network of its XPC form.
///
/// # Safety
/// `form` is null or an XPC object.
unsafe fn made(form: Object) -> io::Result<Network> {
    if form.is_null() {
        return Err(io::Error::other("the keeper of the network does not hand it out"));
    }
    let absent = || io::Error::other("vmnet.framework has no network objects here (they came with macOS 26)");
    // SAFETY: both strings end in NUL; the framework stays loaded; the symbol has the type that <vmnet/vmnet.h> declares, and
    // a function pointer is as large as a data pointer here (dlsym(3)).
    unsafe {
        let framework = NonNull::new(libc::dlopen(FRAMEWORK.as_ptr(), libc::RTLD_NOW)).ok_or_else(absent)?;
        let symbol = libc::dlsym(framework.as_ptr(), c"vmnet_network_create_with_serialization".as_ptr());
        let symbol = NonNull::new(symbol).ok_or_else(absent)?;
        let create: unsafe extern "C" fn(Object, *mut u32) -> *mut c_void = std::mem::transmute(symbol.as_ptr());
        let mut status = 0;
        let network = create(form, &raw mut status);
        NonNull::new(network).map(Network).ok_or_else(|| {
            io::Error::other(format!("vmnet.framework makes no network of what the keeper hands out: status {status}"))
        })
    }
}
