// SPDX-License-Identifier: Apache-2.0
//! The Docker Engine API, containers, images, volumes, events; and the arca CLI.
//!
//! A request comes in through [`http`], is read and answered by [`routes`], and changes a container through a verb of
//! [`containers`]. [`engine`] holds what they share, [`app`] makes it. Other processes are reached through [`netd`]
//! (networks) and [`machines`] (a container's machine and its arca-init). arca-api opens no OVSDB socket, touches no
//! frame, decides no address.

// The answer of `GET /info` is one literal of more fields than the default allows.
#![recursion_limit = "256"]

pub mod app;
pub mod cli;
pub mod containers;
pub mod docker;
pub mod engine;
pub mod events;
#[cfg(test)]
mod fakes;
pub mod http;
pub mod images;
pub mod machines;
pub mod netd;
pub mod registry;
pub mod routes;
pub mod spec;
pub mod store;
pub mod tenants;
pub mod volumes;
