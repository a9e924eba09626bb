// SPDX-License-Identifier: Apache-2.0
//! The HTTP frame of the Docker Engine API: what is the same for every endpoint.
//!
//! [`server`] takes connections and hands requests to the router of [`crate::routes`] through [`frame`], which knows
//! versions and common headers. Handlers read bodies with [`json`], query strings with [`query`] and [`filters`],
//! answer faults with [`ApiError`], and take a connection over with [`hijack`].

pub mod error;
pub mod filters;
pub mod frame;
pub mod glob;
pub mod hijack;
pub mod json;
pub mod keys;
pub mod leftover;
pub mod query;
pub mod server;
pub mod upload;

#[cfg(target_os = "linux")]
#[path = "hangup_linux.rs"]
pub(crate) mod hangup;
#[cfg(not(target_os = "linux"))]
#[path = "hangup_other.rs"]
pub(crate) mod hangup;

pub use error::{ApiError, ApiResult};
