// SPDX-License-Identifier: Apache-2.0
//! The helper machine's agent: OVN rows, link TAPs, DNS fallback; supervisor of OVS and OVN.
#![cfg(target_os = "linux")]

pub mod ovsdb;
