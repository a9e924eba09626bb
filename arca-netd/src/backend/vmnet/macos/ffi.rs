// SPDX-License-Identifier: Apache-2.0
//! The few calls of vmnet.framework that are used, looked up when the keeper starts: network objects came with macOS 26,
//! and a program linked against them would not even start on an older one.

use std::{
    ffi::{CStr, c_char, c_int, c_void},
    net::Ipv4Addr,
    ptr::NonNull,
};

use block2::DynBlock;
use ipnet::{Ipv4Net, Ipv6Net};
use nix::libc;

use super::xpc::{Object, Owned};

const FRAMEWORK: &CStr = c"/System/Library/Frameworks/vmnet.framework/vmnet";
/// `vmnet_return_t`: VMNET_SUCCESS.
pub(super) const SUCCESS: u32 = 1000;
/// `operating_modes_t`: VMNET_HOST_MODE, no way out.
const HOST_MODE: u32 = 1000;
/// `operating_modes_t`: VMNET_SHARED_MODE, NAT to the outside.
const SHARED_MODE: u32 = 1001;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum VmnetError {
    #[error("vmnet.framework has no {0} here (network objects came with macOS 26)")]
    Absent(String),
    #[error("vmnet.framework cannot give a network the IPv6 prefix {0}: it has to be a /64")]
    Prefix(Ipv6Net),
    /// `vmnet_return_t`, <vmnet/vmnet.h>.
    #[error("vmnet.framework refuses to {action}: status {status}{}", hint(*status))]
    Refused { action: &'static str, status: u32 },
}

/// What the statuses that people meet mean.
fn hint(status: u32) -> &'static str {
    match status {
        1001 => " (failure: before macOS 26 only root may, or who has the entitlement com.apple.vm.networking)",
        1002 => " (no memory)",
        1003 => " (invalid argument: is the subnet in use by another network?)",
        1009 => " (not authorized)",
        _ => "",
    }
}

/// Mode of a network.
pub(super) const fn mode(internal: bool) -> u32 {
    if internal { HOST_MODE } else { SHARED_MODE }
}

/// The loaded framework. It stays loaded for the life of the process.
#[derive(Clone, Copy, Debug)]
pub(super) struct Framework(NonNull<c_void>);

// SAFETY: a handle of dlopen may be used by any thread (dlopen(3)).
unsafe impl Send for Framework {}
// SAFETY: as above.
unsafe impl Sync for Framework {}

impl Framework {
    pub(super) fn load() -> Result<Self, VmnetError> {
        // SAFETY: dlopen takes a string that ends in NUL.
        let framework = unsafe { libc::dlopen(FRAMEWORK.as_ptr(), libc::RTLD_NOW) };
        NonNull::new(framework).map(Self).ok_or_else(|| VmnetError::Absent("framework".into()))
    }

    fn symbol(self, name: &CStr) -> Result<*mut c_void, VmnetError> {
        // SAFETY: the handle is of a loaded library, the name ends in NUL.
        let symbol = unsafe { libc::dlsym(self.0.as_ptr(), name.as_ptr()) };
        NonNull::new(symbol).map(NonNull::as_ptr).ok_or_else(|| VmnetError::Absent(name.to_string_lossy().into_owned()))
    }

    /// A function by its name.
    ///
    /// # Safety
    /// `F` is the function pointer type of that function's declaration in <vmnet/vmnet.h>.
    unsafe fn function<F: Copy>(self, name: &CStr) -> Result<F, VmnetError> {
        const { assert!(size_of::<F>() == size_of::<*mut c_void>()) }
        let symbol = self.symbol(name)?;
        // SAFETY: as the caller says; a function pointer and a data pointer have the same size here (dlsym(3)).
        Ok(unsafe { std::mem::transmute_copy::<*mut c_void, F>(&symbol) })
    }

    /// A key of a dictionary: a constant pointer to a string.
    pub(super) fn key(self, name: &CStr) -> Result<*const c_char, VmnetError> {
        // SAFETY: each `vmnet_*_key` is declared `const char * const`.
        Ok(unsafe { *self.symbol(name)?.cast::<*const c_char>() })
    }
}

/// A network of the framework (macOS 26). It lives exactly as long as this process: nothing releases it before.
#[derive(Debug)]
pub(super) struct VmnetNetwork {
    framework: Framework,
    network: NonNull<c_void>,
}

// SAFETY: network objects are immutable and counted like any CoreFoundation object; serialising one reads it.
unsafe impl Send for VmnetNetwork {}
// SAFETY: as above.
unsafe impl Sync for VmnetNetwork {}

impl VmnetNetwork {
    /// Whether this system has network objects.
    pub(super) fn is_there(framework: Framework) -> bool {
        framework.symbol(c"vmnet_network_create").is_ok()
    }

    /// Makes a network whose first IPv4 address, `v4`, is the host's.
    pub(super) fn create(
        framework: Framework,
        (v4, v6): (Ipv4Net, Option<Ipv6Net>),
        mtu: u32,
        internal: bool,
    ) -> Result<Self, VmnetError> {
        type Configure = unsafe extern "C" fn(Object);
        let refused = |action, status| VmnetError::Refused { action, status };
        let checked = |action, status| if status == SUCCESS { Ok(()) } else { Err(refused(action, status)) };
        // SAFETY: each type repeats the declaration in <vmnet/vmnet.h>; configuration and network are live objects; addresses
        // and statuses are live variables that are used during the calls only.
        unsafe {
            let create: unsafe extern "C" fn(u32, *mut u32) -> Object =
                framework.function(c"vmnet_network_configuration_create")?;
            let mut status = 0;
            let configuration = create(mode(internal), &raw mut status);
            let configuration =
                NonNull::new(configuration).ok_or_else(|| refused("make a configuration", status))?.as_ptr();

            let subnet: unsafe extern "C" fn(Object, *const libc::in_addr, *const libc::in_addr) -> u32 =
                framework.function(c"vmnet_network_configuration_set_ipv4_subnet")?;
            let (address, mask) = (in_addr(v4.addr()), in_addr(v4.netmask()));
            checked("take the subnet", subnet(configuration, &raw const address, &raw const mask))?;

            let set_mtu: unsafe extern "C" fn(Object, u32) -> u32 =
                framework.function(c"vmnet_network_configuration_set_mtu")?;
            checked("take the MTU", set_mtu(configuration, mtu))?;

            // Addresses are given by arca-netd's allocator, not by the framework's DHCP server.
            framework.function::<Configure>(c"vmnet_network_configuration_disable_dhcp")?(configuration);
            match v6 {
                Some(net) if net.prefix_len() != 64 => return Err(VmnetError::Prefix(net)),
                Some(net) => {
                    let set: unsafe extern "C" fn(Object, *const libc::in6_addr, u8) -> u32 =
                        framework.function(c"vmnet_network_configuration_set_ipv6_prefix")?;
                    let prefix = libc::in6_addr { s6_addr: net.network().octets() };
                    checked("take the IPv6 prefix", set(configuration, &raw const prefix, net.prefix_len()))?;
                }
                None => {
                    framework.function::<Configure>(c"vmnet_network_configuration_disable_nat66")?(configuration);
                    framework.function::<Configure>(c"vmnet_network_configuration_disable_router_advertisement")?(
                        configuration,
                    );
                }
            }

            let create: unsafe extern "C" fn(Object, *mut u32) -> Object =
                framework.function(c"vmnet_network_create")?;
            let mut status = 0;
            let network = create(configuration, &raw mut status);
            let network = NonNull::new(network).ok_or_else(|| refused("make the network", status))?;
            Ok(Self { framework, network })
        }
    }

    /// What another process makes the same network of.
    pub(super) fn serialized(&self) -> Result<Owned, VmnetError> {
        // SAFETY: as in `create`; the caller gets the one reference.
        unsafe {
            let copy: unsafe extern "C" fn(Object, *mut u32) -> Object =
                self.framework.function(c"vmnet_network_copy_serialization")?;
            let mut status = 0;
            let form = copy(self.network.as_ptr(), &raw mut status);
            Owned::new(form).ok_or(VmnetError::Refused { action: "hand out the network", status })
        }
    }
}

/// In network byte order, as C has it.
fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(address).to_be() }
}

/// `struct vmpktdesc`.
#[repr(C)]
pub(super) struct Packet {
    pub(super) size: usize,
    pub(super) parts: *mut libc::iovec,
    pub(super) count: u32,
    pub(super) flags: u32,
}

/// Answer to the start of an interface: `vmnet_return_t` and its parameters.
pub(super) type Started = dyn Fn(u32, Object);
/// Answer to its end.
pub(super) type Stopped = dyn Fn(u32);
/// `interface_event_t` and what there is to it.
pub(super) type Happened = dyn Fn(u32, Object);

/// The calls of one interface, as <vmnet/vmnet.h> declares them; there since macOS 10.10.
#[derive(Clone, Copy)]
pub(super) struct Calls {
    pub(super) start: unsafe extern "C" fn(Object, *const c_void, &DynBlock<Started>) -> Object,
    pub(super) stop: unsafe extern "C" fn(Object, *const c_void, &DynBlock<Stopped>) -> u32,
    pub(super) on_event: unsafe extern "C" fn(Object, u32, *const c_void, Option<&DynBlock<Happened>>) -> u32,
    pub(super) read: unsafe extern "C" fn(Object, *mut Packet, *mut c_int) -> u32,
    pub(super) write: unsafe extern "C" fn(Object, *mut Packet, *mut c_int) -> u32,
}

impl Calls {
    pub(super) fn of(framework: Framework) -> Result<Self, VmnetError> {
        // SAFETY: each field's type repeats the declaration of the function of that name.
        unsafe {
            Ok(Self {
                start: framework.function(c"vmnet_start_interface")?,
                stop: framework.function(c"vmnet_stop_interface")?,
                on_event: framework.function(c"vmnet_interface_set_event_callback")?,
                read: framework.function(c"vmnet_read")?,
                write: framework.function(c"vmnet_write")?,
            })
        }
    }
}
