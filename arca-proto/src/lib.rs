// SPDX-License-Identifier: Apache-2.0
//! The contract between Arca's processes.
//!
//! Every daemon and guest program depends on this crate and on no other daemon's crate. It holds the gRPC services
//! (`proto/`), the port plan ([`ports`]), the one way to reach a machine ([`dial`]), the other side of it
//! ([`listen`]), what travels on a link: the [`hello`], the [`frame`] codec,
//! and, where frames do not travel on the link's streams, notes; how frames are followed ([`trace`]); and what travels for
//! a client of a published port
//! ([`publish`]); and what a launcher asks of a virtual machine's [`keeper`].

pub mod dial;
#[cfg(target_os = "linux")]
pub mod fdstore;
pub mod frame;
pub mod hello;
pub mod hybrid;
pub mod keeper;
pub mod listen;
#[cfg(target_os = "linux")]
pub mod note;
pub mod ports;
pub mod publish;
pub mod trace;

/// Encoded `FileDescriptorSet` of all services, for gRPC reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/arca_descriptor.bin"));

macro_rules! services {
    ($($(#[$doc:meta])* $name:ident),* $(,)?) => { $(
        $(#[$doc])*
        #[allow(missing_docs, clippy::all, clippy::pedantic, unreachable_pub)]
        pub mod $name {
            /// Version 1.
            pub mod v1 {
                include!(concat!(env!("OUT_DIR"), "/arca.", stringify!($name), ".v1.rs"));
            }
        }
    )* };
}

services! {
    /// How a machine is reached.
    machine,
    /// arca-init: workloads of one machine.
    init,
    /// arca-tapfwd: network of one machine.
    tap,
    /// arca-relayd: links and published ports.
    relay,
    /// arca-helper-agent: declared objects to OVN rows.
    helper,
    /// arca-netd: networks, endpoints, published ports.
    netd,
}
