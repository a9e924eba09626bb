// SPDX-License-Identifier: Apache-2.0
//! Everything is checked before anything is done. Texts are Docker's (API 1.51), several faults are joined as Docker
//! joins them.

pub mod create;
pub mod endpoint;
pub mod ipam;
pub mod options;

/// `head` and the faults: one plainly, several as a list, as Go's joined errors print in moby.
fn joined(head: &str, faults: &[String]) -> String {
    match faults {
        [one] => format!("{head}\n{one}"),
        many => many.iter().fold(head.to_owned(), |text, fault| text + "\n* " + fault),
    }
}
