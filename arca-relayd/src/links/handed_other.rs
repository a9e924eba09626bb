// SPDX-License-Identifier: Apache-2.0
//! Carriers whose frames do not pass here need both ends in one Linux kernel.

use std::sync::Arc;

use arca_proto::{
    dial::Stream,
    hello::{Agreement, Carrier},
    ports::LinkNumber,
};

use super::count::Count;

/// There is none.
#[derive(Debug)]
pub(super) enum Handed {}

impl Handed {
    #[allow(clippy::unused_async, reason = "as on Linux")]
    pub(super) async fn join(
        _: LinkNumber,
        _: u64,
        carrier: Carrier,
        _: Stream,
        _: Stream,
    ) -> Result<(Self, Agreement), String> {
        Err(format!("carrier {carrier} needs both ends in one Linux kernel; use \"stream\" (config `link`)"))
    }

    #[allow(clippy::unused_async, reason = "as on Linux")]
    pub(super) async fn ended(self, _: &Count) -> Arc<str> {
        match self {}
    }
}
