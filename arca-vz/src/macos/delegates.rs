// SPDX-License-Identifier: Apache-2.0
//! Whom the framework tells things: of the machine's end, of the guest's calls. It calls both on the machine's queue.

use objc2::{AnyThread as _, DefinedClass as _, define_class, msg_send, rc::Retained, runtime::NSObjectProtocol};
use objc2_foundation::{NSError, NSObject};
use objc2_virtualization::{
    VZVirtioSocketConnection, VZVirtioSocketDevice, VZVirtioSocketListener, VZVirtioSocketListenerDelegate,
    VZVirtualMachine, VZVirtualMachineDelegate,
};
use tokio::sync::watch;

use crate::framework::Ended;

define_class!(
    // SAFETY: NSObject has no requirements of its subclasses, and this one has no Drop.
    #[unsafe(super(NSObject))]
    #[name = "ArcaMachineDelegate"]
    #[ivars = watch::Sender<Ended>]
    pub(super) struct MachineDelegate;

    unsafe impl NSObjectProtocol for MachineDelegate {}

    unsafe impl VZVirtualMachineDelegate for MachineDelegate {
        #[unsafe(method(guestDidStopVirtualMachine:))]
        fn guest_did_stop(&self, _machine: &VZVirtualMachine) {
            self.ivars().send_replace(Some(Ok(())));
        }

        #[unsafe(method(virtualMachine:didStopWithError:))]
        fn did_stop_with_error(&self, _machine: &VZVirtualMachine, error: &NSError) {
            self.ivars().send_replace(Some(Err(error.localizedDescription().to_string())));
        }
    }
);

impl MachineDelegate {
    pub(super) fn new(ended: watch::Sender<Ended>) -> Retained<Self> {
        let this = Self::alloc().set_ivars(ended);
        // SAFETY: NSObject's init has this signature.
        unsafe { msg_send![super(this), init] }
    }
}

/// Takes a connection that the guest made; false refuses it.
pub(super) type Taker = Box<dyn Fn(&VZVirtioSocketConnection) -> bool>;

define_class!(
    // SAFETY: as above.
    #[unsafe(super(NSObject))]
    #[name = "ArcaListenerDelegate"]
    #[ivars = Taker]
    pub(super) struct ListenerDelegate;

    unsafe impl NSObjectProtocol for ListenerDelegate {}

    unsafe impl VZVirtioSocketListenerDelegate for ListenerDelegate {
        #[unsafe(method(listener:shouldAcceptNewConnection:fromSocketDevice:))]
        fn should_accept(
            &self,
            _listener: &VZVirtioSocketListener,
            connection: &VZVirtioSocketConnection,
            _device: &VZVirtioSocketDevice,
        ) -> bool {
            self.ivars()(connection)
        }
    }
);

impl ListenerDelegate {
    pub(super) fn new(taker: Taker) -> Retained<Self> {
        let this = Self::alloc().set_ivars(taker);
        // SAFETY: NSObject's init has this signature.
        unsafe { msg_send![super(this), init] }
    }
}
