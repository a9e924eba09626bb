// SPDX-License-Identifier: Apache-2.0
//! The key sequence that leaves an attached container running: `ctrl-p,ctrl-q`, or `?detachKeys=`.

use crate::http::{ApiError, ApiResult};

/// Finds a key sequence in a stream of input.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DetachKeys {
    keys: Vec<u8>,
    /// Keys of the sequence seen last and held back.
    seen: usize,
}

/// What of the input may go on.
#[derive(Debug, PartialEq, Eq)]
pub enum Scan {
    /// All but what may still become the sequence.
    Pass(Vec<u8>),
    /// The sequence came; this was before it.
    Detach(Vec<u8>),
}

impl DetachKeys {
    /// Reads `a,ctrl-x,…`; "" is the default.
    ///
    /// # Errors
    /// 400 `Invalid detach keys (…) provided`.
    pub fn parse(text: &str) -> ApiResult<Self> {
        let text = if text.is_empty() { "ctrl-p,ctrl-q" } else { text };
        let invalid = || ApiError::bad_request(format!("Invalid detach keys ({text}) provided"));
        let keys = text
            .split(',')
            .map(|key| match key.as_bytes() {
                [byte] => Some(*byte),
                _ => match key.strip_prefix("ctrl-")?.as_bytes() {
                    [letter @ b'a'..=b'z'] => Some(letter - b'a' + 1),
                    b"@" => Some(0),
                    b"[" => Some(27),
                    b"\\" => Some(28),
                    b"]" => Some(29),
                    b"^" => Some(30),
                    b"_" => Some(31),
                    _ => None,
                },
            })
            .collect::<Option<Vec<u8>>>()
            .ok_or_else(invalid)?;
        Ok(Self { keys, seen: 0 })
    }

    /// Scans the next piece of input.
    pub fn scan(&mut self, input: &[u8]) -> Scan {
        let mut out = Vec::with_capacity(input.len() + self.seen);
        for &byte in input {
            if byte == self.keys[self.seen] {
                self.seen += 1;
                if self.seen == self.keys.len() {
                    self.seen = 0;
                    return Scan::Detach(out);
                }
                continue;
            }
            out.extend_from_slice(&self.keys[..self.seen]);
            self.seen = 0;
            // The wrong key may begin the sequence anew.
            if byte == self.keys[0] && self.keys.len() > 1 {
                self.seen = 1;
            } else {
                out.push(byte);
            }
        }
        Scan::Pass(out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_sequence_is_found_across_pieces() {
        let mut keys = DetachKeys::parse("").expect("default");
        assert_eq!(keys.scan(b"ab\x10"), Scan::Pass(b"ab".to_vec()));
        assert_eq!(keys.scan(b"\x11later"), Scan::Detach(Vec::new()));
        let mut keys = DetachKeys::parse("").expect("default");
        assert_eq!(keys.scan(b"\x10"), Scan::Pass(Vec::new()));
        assert_eq!(keys.scan(b"x\x10\x10\x11"), Scan::Detach(b"\x10x\x10".to_vec()));
    }

    #[test]
    fn sequences_are_read_or_refused() {
        assert_eq!(DetachKeys::parse("a,ctrl-@,ctrl-_").expect("keys").keys, [b'a', 0, 31]);
        for bad in ["ctrl-", "ctrl-ab", "abc", "a,,b", "ctrl-A"] {
            assert_eq!(DetachKeys::parse(bad).expect_err(bad).message, format!("Invalid detach keys ({bad}) provided"));
        }
    }

    proptest::proptest! {
        #[test]
        fn without_the_sequence_nothing_is_lost(input: Vec<u8>) {
            let mut keys = DetachKeys::parse("ctrl-p,ctrl-q").expect("keys");
            let mut whole = input.clone();
            whole.retain(|byte| *byte != 0x11);
            whole.push(b'.');
            match keys.scan(&whole) {
                Scan::Pass(out) => proptest::prop_assert_eq!(out, whole),
                Scan::Detach(_) => proptest::prop_assert!(false, "no second key, no detach"),
            }
        }
    }
}
