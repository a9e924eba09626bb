// SPDX-License-Identifier: Apache-2.0
//! Types of the Docker Engine API (1.51) as they travel and as they are stored: field names, order and nulls are
//! Docker's, so one serde form serves request, database and inspect.

pub mod config;
pub mod health;
pub mod host_config;
pub mod network;
pub mod ports;
pub mod time;
