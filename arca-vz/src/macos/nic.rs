// SPDX-License-Identifier: Apache-2.0
//! The machine's card. It is there from the beginning or never: the framework plugs none in later.
//!
//! Since macOS 26 the framework carries the frames of a vmnet network itself (`VZVmnetNetworkDeviceAttachment`, from the
//! network's XPC form); before, they come from the network's keeper over a datagram socket (`VZFileHandleNetworkDeviceAttachment`).

use std::{
    io,
    os::{
        fd::{AsRawFd as _, IntoRawFd as _, OwnedFd},
        unix::net::UnixStream,
    },
};

use anyhow::Context as _;
use nix::sys::socket::{setsockopt, sockopt};
use objc2::{AnyThread as _, msg_send, rc::Retained, runtime::AnyClass};
use objc2_foundation::NSFileHandle;
use objc2_virtualization::{
    VZFileHandleNetworkDeviceAttachment, VZNetworkDeviceAttachment, VZNetworkDeviceConfiguration,
    VZVirtioNetworkDeviceConfiguration,
};

use super::xpc;
use crate::{
    spec::Nic,
    wire::{self, Way},
};

/// The send buffer of the socket; the receive buffer is four times that, as Apple's page on the attachment advises.
const SEND_BUFFER: usize = 256 << 10;
/// Devices were seen to stall with more.
const MOST: u32 = 1500;

/// A configured card.
pub(super) struct Card {
    pub(super) configuration: Retained<VZNetworkDeviceConfiguration>,
    /// Its end unplugs the card.
    pub(super) hold: UnixStream,
}

/// Gets the card's network from its keeper.
pub(super) fn plug(nic: &Nic) -> anyhow::Result<Card> {
    anyhow::ensure!(nic.mtu <= MOST, "a network card cannot have an MTU of {} on macOS: {MOST} is the most", nic.mtu);
    let plugged = wire::plug(&nic.wire, nic.mtu)
        .with_context(|| format!("ask the keeper of the network at {}", nic.wire.display()))?;
    let attachment = match plugged.way {
        Way::Service(name) => by_network(xpc::network(&name)?)?,
        Way::Frames(socket) => by_frames(socket).context("prepare the socket of frames")?,
    };
    // SAFETY: plain object of the framework, used by this thread alone until it is part of the machine.
    let configuration = unsafe {
        let configuration = VZVirtioNetworkDeviceConfiguration::new();
        configuration.setAttachment(Some(&attachment));
        configuration
    };
    Ok(Card { configuration: Retained::into_super(configuration), hold: plugged.hold })
}

fn by_network(network: xpc::Network) -> anyhow::Result<Retained<VZNetworkDeviceAttachment>> {
    // Looked up by name: the class came with macOS 26, and the program must start on an older one.
    let class = AnyClass::get(c"VZVmnetNetworkDeviceAttachment");
    let class = class.context("Virtualization.framework has no vmnet attachment here (it came with macOS 26)")?;
    // SAFETY: `initWithNetwork:` takes a vmnet_network_ref, which is a pointer to a CoreFoundation object, and gives the
    // attachment (VZVmnetNetworkDeviceAttachment.h); the class is the one that alloc was sent to.
    let attachment: Option<Retained<VZNetworkDeviceAttachment>> = unsafe {
        let allocated: objc2::rc::Allocated<VZNetworkDeviceAttachment> = msg_send![class, alloc];
        msg_send![allocated, initWithNetwork: network.0.as_ptr()]
    };
    attachment.context("the framework takes no such network")
}

fn by_frames(socket: OwnedFd) -> io::Result<Retained<VZNetworkDeviceAttachment>> {
    setsockopt(&socket, sockopt::SndBuf, &SEND_BUFFER)?;
    setsockopt(&socket, sockopt::RcvBuf, &(4 * SEND_BUFFER))?;
    tracing::debug!(descriptor = socket.as_raw_fd(), "frames by a datagram socket");
    let handle = NSFileHandle::initWithFileDescriptor_closeOnDealloc(NSFileHandle::alloc(), socket.into_raw_fd(), true);
    // SAFETY: the handle is of a connected datagram socket, as the attachment wants it.
    let attachment = unsafe {
        VZFileHandleNetworkDeviceAttachment::initWithFileHandle(VZFileHandleNetworkDeviceAttachment::alloc(), &handle)
    };
    Ok(Retained::into_super(attachment))
}
