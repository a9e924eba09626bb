// SPDX-License-Identifier: Apache-2.0
//! A container machine's network: TAPs, frames, DHCP confirmation, addresses and routes.
//!
//! arca-init starts this program beside the workloads, in their network namespace. arca-netd tells it over gRPC
//! (`arca.tap.v1`, port 5555) which networks there are. It knows neither Docker nor OVN.
//!
//! ```text
//! service ── machine ┬─ attach ──┬─ kernel      addresses, routes, settings (rtnetlink, /proc/sys/net)
//!                    ├─ detach   ├─ dhcp        INIT-REBOOT confirmation
//!                    │           ├─ announce    gratuitous ARP, neighbour advertisement
//!                    ├─ configure└─ arca_link   TAP and frames, one thread a link
//!                    │     ├─ redirect          127.0.0.11 (nftables)
//!                    │     └─ stub              127.0.0.11 without IPv4
//!                    └─ restore                 what arca-init kept over a restart
//! ```
//!
//! One thread serves gRPC and netlink; frames have threads of their own and do not wait for it. A call of `nft` runs on
//! a third kind. Nothing here has a timer while no attach is pending.
#![cfg(target_os = "linux")]

mod announce;
pub mod app;
pub mod attach;
mod cable;
pub mod cli;
pub mod configure;
pub mod detach;
pub mod dhcp;
pub mod extras;
mod frames;
pub mod kernel;
pub mod machine;
pub mod native;
mod packet_socket;
pub mod redirect;
mod restore;
pub mod service;
pub mod settings;
mod stub;
pub mod udp;
mod veth;
