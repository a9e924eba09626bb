// SPDX-License-Identifier: Apache-2.0
//! Container ids and names.

use crate::http::{ApiError, ApiResult};

const MOODS: &[&str] = &[
    "airy", "ample", "apt", "balmy", "brisk", "bright", "calm", "candid", "clever", "cosy", "crisp", "dapper", "deft",
    "eager", "early", "easy", "fair", "fleet", "fond", "fresh", "gentle", "glad", "hale", "handy", "hardy", "hearty",
    "keen", "kind", "lively", "lucid", "mellow", "merry", "mild", "neat", "nimble", "noble", "patient", "placid",
    "plucky", "polite", "prompt", "quick", "quiet", "ready", "sage", "sleek", "smart", "snug", "sound", "spry",
    "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise", "witty",
];
const THINGS: &[&str] = &[
    "acorn", "anchor", "anvil", "beacon", "birch", "bridge", "brook", "cairn", "canyon", "cedar", "cliff", "clover",
    "comet", "compass", "coral", "dune", "ember", "falcon", "fern", "fjord", "forge", "garnet", "glacier", "grove",
    "harbor", "heron", "island", "kestrel", "lagoon", "lantern", "larch", "maple", "marble", "meadow", "mill", "moss",
    "oak", "orchard", "otter", "pebble", "pine", "plover", "quartz", "raven", "reef", "ridge", "river", "robin",
    "sparrow", "spruce", "summit", "thistle", "tide", "valley", "willow", "wren",
];

/// A fresh id: 64 hex digits. Never all decimal in the first twelve, which a host name could not be told from a number.
pub fn new_id() -> String {
    loop {
        let id: String = (0..4).map(|_| format!("{:016x}", rand::random::<u64>())).collect();
        if !id[..12].bytes().all(|byte| byte.is_ascii_digit()) {
            return id;
        }
    }
}

/// A name nobody chose, `mood_thing`; from the fourth `attempt` on with a number, so that one is free.
pub fn random(attempt: u32) -> String {
    let pick = |words: &[&'static str]| words[rand::random_range(0..words.len())];
    let name = format!("{}_{}", pick(MOODS), pick(THINGS));
    if attempt < 4 { name } else { format!("{name}{}", rand::random_range(0..1000)) }
}

/// Checks a name that a user chose; a leading slash is allowed and dropped.
///
/// # Errors
/// 400 with Docker's text.
pub fn check(name: &str) -> ApiResult<String> {
    let bare = name.strip_prefix('/').unwrap_or(name);
    let mut bytes = bare.bytes();
    let first = bytes.next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    let rest = bare.len() > 1 && bytes.all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte));
    if first && rest {
        return Ok(bare.to_owned());
    }
    Err(invalid(name))
}

/// The fault of a name.
pub fn invalid(name: &str) -> ApiError {
    ApiError::bad_request(format!("Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_checked_as_dockers() {
        assert_eq!(check("/web").expect("slash"), "web");
        for bad in ["k", "", "-a", "a b", "a/b", "ä1"] {
            assert_eq!(
                check(bad).expect_err(bad).message,
                format!("Invalid container name ({bad}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed")
            );
        }
    }

    #[test]
    fn generated_names_and_ids_are_valid() {
        for attempt in 0..8 {
            assert!(check(&random(attempt)).is_ok());
        }
        assert_eq!(new_id().len(), 64);
    }
}
