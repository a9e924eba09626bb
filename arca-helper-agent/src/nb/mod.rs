// SPDX-License-Identifier: Apache-2.0
//! From declared objects to rows of OVN's northbound database, without any IO.
//!
//! ```text
//!   declared objects ──rows()──> desired rows ──┐
//!                                               ├─diff()──> changes ──operations()──> one OVSDB transaction
//!   snapshot of the database ──Observed─────────┘
//! ```
//!
//! [`crate::service`] calls this with what arca-netd declared and what OVN has allocated; `tests` runs it against a
//! stateful fake.

pub mod address;
pub mod diff;
pub mod model;
mod network;
mod numbers;
pub mod observed;
pub mod rows;

#[cfg(test)]
pub(crate) mod tests;
