// SPDX-License-Identifier: Apache-2.0
//! The few calls of vmnet.framework that are used, looked up when the keeper starts: network objects came with macOS 26,
//! and a program linked against them would not even start on an older one.

use std::{
    ffi::{CStr, c_void},
    net::Ipv4Addr,
    ptr::NonNull,
};

use ipnet::Ipv4Net;
use nix::libc;

const FRAMEWORK: &CStr = c"/System/Library/Frameworks/vmnet.framework/vmnet";
/// `vmnet_return_t`: VMNET_SUCCESS.
const SUCCESS: u32 = 1000;
/// `operating_modes_t`: VMNET_HOST_MODE, no way out.
const HOST_MODE: u32 = 1000;
/// `operating_modes_t`: VMNET_SHARED_MODE, NAT to the outside.
const SHARED_MODE: u32 = 1001;

type Reference = *mut c_void;

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub(super) enum VmnetError {
    #[error("vmnet.framework has no network objects here: vmnet networks need macOS 26 (use the ovs backend)")]
    Absent,
    /// `vmnet_return_t`, <vmnet/vmnet.h>.
    #[error("vmnet.framework refuses to {action}: status {status}{}", hint(*status))]
    Refused { action: &'static str, status: u32 },
}

/// What the statuses that people meet mean.
fn hint(status: u32) -> &'static str {
    match status {
        1002 => " (no memory)",
        1003 => " (invalid argument: is the subnet in use by another network?)",
        1009 => " (not authorized)",
        _ => "",
    }
}

/// The functions, as <vmnet/vmnet.h> declares them.
struct Functions {
    configuration: unsafe extern "C" fn(u32, *mut u32) -> Reference,
    subnet: unsafe extern "C" fn(Reference, *const libc::in_addr, *const libc::in_addr) -> u32,
    mtu: unsafe extern "C" fn(Reference, u32) -> u32,
    no_dhcp: unsafe extern "C" fn(Reference),
    create: unsafe extern "C" fn(Reference, *mut u32) -> Reference,
}

impl Functions {
    fn load() -> Result<Self, VmnetError> {
        // SAFETY: dlopen takes a string that ends in NUL; the framework stays loaded for the life of the process.
        let framework = unsafe { libc::dlopen(FRAMEWORK.as_ptr(), libc::RTLD_NOW) };
        let framework = NonNull::new(framework).ok_or(VmnetError::Absent)?;
        let find = |name: &CStr| {
            // SAFETY: the handle is of a loaded library, the name ends in NUL.
            let symbol = unsafe { libc::dlsym(framework.as_ptr(), name.as_ptr()) };
            NonNull::new(symbol).map(NonNull::as_ptr).ok_or(VmnetError::Absent)
        };
        // SAFETY: each symbol is the function of that name in vmnet.framework, whose C declaration the field's type repeats;
        // a function pointer and a data pointer have the same size on this platform (dlsym(3)).
        unsafe {
            Ok(Self {
                configuration: std::mem::transmute::<*mut c_void, _>(find(c"vmnet_network_configuration_create")?),
                subnet: std::mem::transmute::<*mut c_void, _>(find(c"vmnet_network_configuration_set_ipv4_subnet")?),
                mtu: std::mem::transmute::<*mut c_void, _>(find(c"vmnet_network_configuration_set_mtu")?),
                no_dhcp: std::mem::transmute::<*mut c_void, _>(find(c"vmnet_network_configuration_disable_dhcp")?),
                create: std::mem::transmute::<*mut c_void, _>(find(c"vmnet_network_create")?),
            })
        }
    }
}

/// A network of the framework. It lives exactly as long as this process: nothing releases it before.
#[derive(Debug)]
pub(super) struct VmnetNetwork(#[allow(dead_code, reason = "held, not read")] NonNull<c_void>);

impl VmnetNetwork {
    /// Makes a network whose first address, `gateway`, is the host's.
    pub(super) fn create(gateway: Ipv4Net, mtu: u32, internal: bool) -> Result<Self, VmnetError> {
        let functions = Functions::load()?;
        let mode = if internal { HOST_MODE } else { SHARED_MODE };
        let mut status = 0;
        // SAFETY: the status is written to a live variable.
        let configuration = unsafe { (functions.configuration)(mode, &raw mut status) };
        let refused = |action, status| VmnetError::Refused { action, status };
        let configuration =
            NonNull::new(configuration).ok_or_else(|| refused("make a configuration", status))?.as_ptr();
        let (address, mask) = (in_addr(gateway.addr()), in_addr(gateway.netmask()));
        // SAFETY: the configuration is a live object; both addresses are read during the call only.
        let status = unsafe { (functions.subnet)(configuration, &raw const address, &raw const mask) };
        if status != SUCCESS {
            return Err(refused("take the subnet", status));
        }
        // SAFETY: the configuration is a live object.
        let status = unsafe { (functions.mtu)(configuration, mtu) };
        if status != SUCCESS {
            return Err(refused("take the MTU", status));
        }
        // SAFETY: as before. Addresses are given by arca-netd's allocator, not by the framework's DHCP server.
        unsafe { (functions.no_dhcp)(configuration) };
        let mut status = 0;
        // SAFETY: as before; the status is written to a live variable.
        let network = unsafe { (functions.create)(configuration, &raw mut status) };
        NonNull::new(network).map(Self).ok_or_else(|| refused("make the network", status))
    }
}

/// In network byte order, as C has it.
fn in_addr(address: Ipv4Addr) -> libc::in_addr {
    libc::in_addr { s_addr: u32::from(address).to_be() }
}
