// SPDX-License-Identifier: Apache-2.0
//! The whole of arca-netd against stateful fakes of its three peers, over real gRPC on unix sockets. Each fake is a
//! runtime of its own: dropping it is the death of that process, connections included.

#![allow(
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "a failed unwrap is a failed test; times are for the record"
)]

mod attach;
mod fakes;
mod model;
mod publish;
mod restart;
mod rpc;
