// SPDX-License-Identifier: Apache-2.0
//! The three programs arca-netd speaks to: the helper's agent, arca-relayd, and arca-tapfwd of each machine.
//!
//! [`agent`] and [`relay`] keep one watched connection each and reconcile whenever it comes back; [`tap`] dials a
//! machine when something is to be done there. [`objects`] turns domain types into the agent's.

pub mod agent;
pub mod backoff;
pub mod objects;
pub mod relay;
pub mod tap;
