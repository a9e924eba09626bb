// SPDX-License-Identifier: Apache-2.0
//! Signal names as `docker kill -s` takes them: `9`, `KILL`, `SIGKILL`, `RTMIN+3`. Numbers are Linux's on every host:
//! the workload always runs on Linux.

use crate::http::{ApiError, ApiResult};

const NAMES: &[(&str, i32)] = &[
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("IOT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("POLL", 29),
    ("PWR", 30),
    ("SYS", 31),
];
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// SIGTERM.
pub const TERM: i32 = 15;
/// SIGKILL.
pub const KILL: i32 = 9;

/// Reads a signal.
///
/// # Errors
/// 400 `invalid signal: …`.
pub fn parse(text: &str) -> ApiResult<i32> {
    let invalid = || ApiError::bad_request(format!("invalid signal: {text}"));
    if let Ok(number) = text.parse::<i32>() {
        let unsupported = || ApiError::bad_request(format!("the linux daemon does not support signal {number}"));
        return match number {
            1..=64 => Ok(number),
            0 => Err(invalid()),
            _ => Err(unsupported()),
        };
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let offset = |rest: &str| if rest.is_empty() { Some(0) } else { rest[1..].parse::<i32>().ok() };
    let real_time =
        if let Some(rest) = name.strip_prefix("RTMIN").filter(|rest| rest.is_empty() || rest.starts_with('+')) {
            offset(rest).and_then(|offset| REAL_TIME.start().checked_add(offset))
        } else if let Some(rest) = name.strip_prefix("RTMAX").filter(|rest| rest.is_empty() || rest.starts_with('-')) {
            offset(rest).and_then(|offset| REAL_TIME.end().checked_sub(offset))
        } else {
            None
        };
    let named = NAMES.iter().find(|(known, _)| *known == name).map(|(_, number)| *number);
    named.or_else(|| real_time.filter(|number| REAL_TIME.contains(number))).ok_or_else(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_numbers_and_nonsense() {
        for (text, number) in
            [("9", 9), ("KILL", 9), ("sigterm", 15), ("SIGRTMIN+3", 37), ("RTMAX-1", 63), ("RTMIN", 34)]
        {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
        for bad in ["", "zz", "0", "RTMIN+99", "RTMINx", "RTMAX+1", "SIGRTMIN+ä"] {
            assert_eq!(parse(bad).expect_err(bad).message, format!("invalid signal: {bad}"));
        }
        assert_eq!(parse("65").expect_err("65").message, "the linux daemon does not support signal 65");
    }
}
