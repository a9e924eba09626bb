// SPDX-License-Identifier: Apache-2.0
//! What must change so that arca-relayd carries what is wanted. [`diff`](diff::diff) is pure; [`crate::peers::relay`]
//! acts. The helper's agent makes its own difference from a full sync, so there is none for it here.

pub mod diff;
