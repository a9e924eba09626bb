// SPDX-License-Identifier: Apache-2.0
//! The helper machine's agent: OVN rows, link TAPs, DNS fallback; supervisor of OVS and OVN.
//!
//! Two processes come out of this crate. `init` ([`supervisor`]) is the first process of the helper machine: it starts
//! OVS, OVN and the agent, and restarts each when it ends. `agent` serves gRPC to arca-netd: [`service`]
//! turns declared objects by [`nb`] into rows through [`ovsdb`], and into TAPs through [`ports`] and [`vswitch`].
//!
//! Own `unsafe` lives where an ioctl, a borrowed descriptor or a signal needs it: `ports::attach`, `vswitch::buffers`.
#![cfg(target_os = "linux")]

pub mod agent;
pub mod cli;
mod files;
pub mod layout;
pub mod nb;
pub mod neighbours;
pub mod ovsdb;
pub mod parts;
pub mod ports;
pub mod publish;
pub mod ready;
pub mod resolver;
pub mod service;
pub mod status;
pub mod supervisor;
pub mod uplink;
pub mod vswitch;
