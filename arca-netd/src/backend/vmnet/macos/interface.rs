// SPDX-License-Identifier: Apache-2.0
//! One card's place in a network before macOS 26: an interface of vmnet.framework, whose frames this process carries from and to a
//! datagram socket. Interfaces with the same subnet are on one network.

use std::{
    ffi::{c_int, c_void},
    io,
    net::IpAddr,
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::net::UnixDatagram,
    },
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use block2::RcBlock;
use dispatch2::{DispatchQueue, DispatchRetained};
use ipnet::IpNet;
use nix::{
    libc,
    sys::socket::{MsgFlags, send, setsockopt, sockopt},
};

use super::{
    ffi::{Calls, Framework, Packet, SUCCESS, VmnetError, mode},
    xpc::{self, Object, Owned},
};

/// `interface_event_t`: VMNET_INTERFACE_PACKETS_AVAILABLE.
const PACKETS: u32 = 1;
/// From the call to its answer.
const ANSWERS: Duration = Duration::from_secs(20);
/// The socket's send buffer; a card's receive buffer is to be four times that (Apple's page on its attachment).
const SEND_BUFFER: usize = 256 << 10;
/// An Ethernet header with a VLAN tag, before the IP packet.
const HEADER: usize = 18;

/// What interfaces of a network have in common.
#[derive(Clone, Debug)]
pub(super) struct Terms {
    pub(super) gateways: Vec<IpNet>,
    pub(super) internal: bool,
}

/// An interface that carries frames. Dropped, it is gone.
pub(super) struct Interface {
    calls: Calls,
    reference: Reference,
    queue: DispatchRetained<DispatchQueue>,
    frames: Arc<UnixDatagram>,
}

/// `interface_ref`.
#[derive(Clone, Copy)]
struct Reference(Object);

// SAFETY: calls about an interface may come from any thread (<vmnet/vmnet.h>: reading and writing are thread safe).
unsafe impl Send for Reference {}
// SAFETY: as above.
unsafe impl Sync for Reference {}

impl Interface {
    /// Starts an interface; gives the socket that goes to the card.
    pub(super) fn start(framework: Framework, terms: &Terms, mtu: u32) -> Result<(Self, OwnedFd), String> {
        let text = |error: &dyn std::error::Error| error.to_string();
        let calls = Calls::of(framework).map_err(|error| text(&error))?;
        let wanted = description(framework, terms, mtu)?;
        let longest = framework.key(c"vmnet_max_packet_size_key").map_err(|error| text(&error))?.addr();
        let queue = DispatchQueue::new("dev.arca.vmnet", None);
        let (answer, answered) = mpsc::channel();
        let started = RcBlock::new(move |status: u32, parameters: Object| {
            // SAFETY: on success the parameters are a dictionary; the key is a constant of the framework.
            let length = if parameters.is_null() { 0 } else { unsafe { xpc::number(parameters, longest as *const _) } };
            let _ = answer.send((status, length));
        });
        // SAFETY: all arguments are alive; the framework copies the block and keeps the queue.
        let reference = unsafe { (calls.start)(wanted.as_ptr(), pointer(&queue), &started) };
        let refused = |status| text(&VmnetError::Refused { action: "start an interface", status });
        let (status, length) =
            answered.recv_timeout(ANSWERS).map_err(|_| "vmnet.framework does not answer".to_owned())?;
        if status != SUCCESS || reference.is_null() {
            return Err(refused(status));
        }
        let length = usize::try_from(length).unwrap_or(0).max(mtu as usize + HEADER);
        let (ours, theirs) = pair().map_err(|error| text(&error))?;
        let interface = Self { calls, reference: Reference(reference), queue, frames: Arc::new(ours) };
        interface.carry(length).map_err(refused)?;
        Ok((interface, theirs.into()))
    }

    /// Frames both ways until this is dropped.
    fn carry(&self, length: usize) -> Result<(), u32> {
        let (calls, reference, frames) = (self.calls, self.reference, Arc::clone(&self.frames));
        let arrived = RcBlock::new(move |_event: u32, _: Object| {
            // On the interface's serial queue: one at a time. What the card does not take is lost, as on any wire.
            let mut buffer = vec![0; length];
            while let Some(frame) = read(&calls, reference, &mut buffer) {
                let _ = send(frames.as_raw_fd(), frame, MsgFlags::MSG_DONTWAIT);
            }
        });
        // SAFETY: interface and queue are alive until the callback is taken back in `drop`; the block is copied.
        let status = unsafe { (self.calls.on_event)(self.reference.0, PACKETS, pointer(&self.queue), Some(&arrived)) };
        if status != SUCCESS {
            return Err(status);
        }
        let (calls, reference, frames) = (self.calls, self.reference, Arc::clone(&self.frames));
        thread::spawn(move || {
            let mut buffer = vec![0; length];
            // Ends when the socket is shut down, here or by the card's end.
            while let Ok(length @ 1..) = frames.recv(&mut buffer) {
                write(&calls, reference, buffer.get_mut(..length).unwrap_or_default());
            }
        });
        Ok(())
    }
}

impl Drop for Interface {
    fn drop(&mut self) {
        let _ = self.frames.shutdown(std::net::Shutdown::Both);
        let (done, stopped) = mpsc::channel();
        let answer = RcBlock::new(move |_status: u32| {
            let _ = done.send(());
        });
        // SAFETY: the interface is alive; it is not used after this: the callback is taken back, and the thread that writes has
        // no socket any more.
        unsafe {
            (self.calls.on_event)(self.reference.0, PACKETS, std::ptr::null(), None);
            (self.calls.stop)(self.reference.0, pointer(&self.queue), &answer);
        }
        let _ = stopped.recv_timeout(ANSWERS);
    }
}

/// Our end, and the card's.
fn pair() -> io::Result<(UnixDatagram, UnixDatagram)> {
    let (ours, theirs) = UnixDatagram::pair()?;
    setsockopt(&ours, sockopt::SndBuf, &SEND_BUFFER)?;
    setsockopt(&theirs, sockopt::RcvBuf, &(4 * SEND_BUFFER))?;
    Ok((ours, theirs))
}

fn pointer(queue: &DispatchQueue) -> *const c_void {
    std::ptr::from_ref(queue).cast()
}

/// The interface in the framework's terms.
fn description(framework: Framework, terms: &Terms, mtu: u32) -> Result<Owned, String> {
    let text = |error: VmnetError| error.to_string();
    let wanted = Owned::dictionary().map_err(|error| error.to_string())?;
    let number = |key, value| framework.key(key).map(|key| wanted.set_number(key, value)).map_err(text);
    let word = |key, value: String| {
        let key = framework.key(key).map_err(text)?;
        wanted.set_text(key, &value).map_err(|error| error.to_string())
    };
    number(c"vmnet_operation_mode_key", mode(terms.internal).into())?;
    number(c"vmnet_mtu_key", mtu.into())?;
    for gateway in &terms.gateways {
        match gateway {
            IpNet::V4(net) => {
                // The first is the host's; the rest are the framework's DHCP server's, which no machine of ours asks.
                let last = IpAddr::V4((u32::from(net.broadcast()) - 1).into());
                word(c"vmnet_start_address_key", net.addr().to_string())?;
                word(c"vmnet_end_address_key", last.to_string())?;
                word(c"vmnet_subnet_mask_key", net.netmask().to_string())?;
            }
            IpNet::V6(net) if net.prefix_len() != 64 => return Err(text(VmnetError::Prefix(*net))),
            IpNet::V6(net) => word(c"vmnet_nat66_prefix_key", net.network().to_string())?,
        }
    }
    Ok(wanted)
}

/// One frame, if there is one.
fn read<'a>(calls: &Calls, reference: Reference, buffer: &'a mut [u8]) -> Option<&'a [u8]> {
    let mut part = libc::iovec { iov_base: buffer.as_mut_ptr().cast(), iov_len: buffer.len() };
    let mut packet = Packet { size: buffer.len(), parts: &raw mut part, count: 1, flags: 0 };
    let mut count: c_int = 1;
    // SAFETY: one packet of one part, which is the buffer, alive over the call.
    let status = unsafe { (calls.read)(reference.0, &raw mut packet, &raw mut count) };
    if status == SUCCESS && count == 1 { buffer.get(..packet.size) } else { None }
}

fn write(calls: &Calls, reference: Reference, frame: &mut [u8]) {
    let mut part = libc::iovec { iov_base: frame.as_mut_ptr().cast(), iov_len: frame.len() };
    let mut packet = Packet { size: frame.len(), parts: &raw mut part, count: 1, flags: 0 };
    let mut count: c_int = 1;
    // SAFETY: as in `read`. A frame that the framework does not take is lost, as on any wire.
    unsafe { (calls.write)(reference.0, &raw mut packet, &raw mut count) };
}

impl std::fmt::Debug for Interface {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Interface").field("frames", &self.frames.as_raw_fd()).finish_non_exhaustive()
    }
}
