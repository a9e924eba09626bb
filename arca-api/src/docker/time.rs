// SPDX-License-Identifier: Apache-2.0
//! Times as Docker writes and reads them. Inside Arca a time is nanoseconds since the Unix epoch, 0 for never.

use std::time::{SystemTime, UNIX_EPOCH};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::http::{ApiError, ApiResult};

/// Now, in nanoseconds since the Unix epoch.
pub fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // Until the year 2262.
    i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
}

/// RFC 3339 with nanoseconds, UTC; Go's zero time for 0.
pub fn rfc3339(ns: i64) -> String {
    if ns == 0 {
        return "0001-01-01T00:00:00Z".into();
    }
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(ns))
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "0001-01-01T00:00:00Z".into())
}

/// RFC 3339 with all nine digits of the second, as `docker logs -t` prints them.
pub fn rfc3339_fixed(ns: i64) -> String {
    let text = rfc3339(ns - ns.rem_euclid(1_000_000_000));
    let seconds = text.strip_suffix('Z').unwrap_or(&text);
    format!("{seconds}.{:09}Z", ns.rem_euclid(1_000_000_000))
}

/// Reads RFC 3339.
pub fn from_rfc3339(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos()).ok()
}

/// `since`/`until` of requests: Unix seconds with an optional fraction, RFC 3339, or a Go duration before now.
///
/// # Errors
/// 400 `failed to parse value as time or duration: "…"`.
pub fn parse_point(text: &str) -> ApiResult<Option<i64>> {
    if text.is_empty() || text == "0" {
        return Ok(None);
    }
    unix_seconds(text)
        .or_else(|| from_rfc3339(text))
        .or_else(|| from_rfc3339(&format!("{text}Z")))
        .or_else(|| from_rfc3339(&format!("{text}T00:00:00Z")))
        .or_else(|| go_duration(text).map(|ns| now() - ns))
        .map(Some)
        .ok_or_else(|| ApiError::bad_request(format!("failed to parse value as time or duration: \"{text}\"")))
}

/// As [`parse_point`] for `since`/`until` of events and logs, which the CLI always sends as Unix seconds.
///
/// # Errors
/// 500 with Go's text, as Docker.
pub fn parse_timestamp(text: &str) -> ApiResult<Option<i64>> {
    let seconds = text.split('.').next().unwrap_or("");
    parse_point(text)
        .map_err(|_| ApiError::internal(format!("strconv.ParseInt: parsing \"{seconds}\": invalid syntax")))
}

fn unix_seconds(text: &str) -> Option<i64> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = seconds.parse().ok()?;
    if fraction.len() > 9 || !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let nanos: i64 = format!("{fraction:0<9}").parse().ok()?;
    seconds.checked_mul(1_000_000_000)?.checked_add(nanos)
}

/// Go's `time.ParseDuration` (`1h30m`, `1.5s`, `100ms`), in nanoseconds.
pub fn go_duration(text: &str) -> Option<i64> {
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1.0, rest),
        None => (1.0, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(0);
    }
    let mut total = 0.0;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let value: f64 = rest[..digits].parse().ok()?;
        rest = &rest[digits..];
        let unit_end = rest.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(rest.len());
        let unit = match &rest[..unit_end] {
            "ns" => 1.0,
            "us" | "µs" => 1e3,
            "ms" => 1e6,
            "s" => 1e9,
            "m" => 60e9,
            "h" => 3600e9,
            _ => return None,
        };
        rest = &rest[unit_end..];
        total += value * unit;
    }
    // Saturates; a duration beyond 292 years is "always".
    #[allow(clippy::cast_possible_truncation)]
    (!text.is_empty()).then_some((sign * total) as i64)
}

/// Go's text of a duration (`1m30s`, `1.5s`, `20ms`).
pub fn go_duration_text(ns: i64) -> String {
    let fraction = |whole: u64, rest: u64, digits: usize| {
        let rest = format!("{rest:0digits$}");
        let rest = rest.trim_end_matches('0');
        if rest.is_empty() { whole.to_string() } else { format!("{whole}.{rest}") }
    };
    let size = ns.unsigned_abs();
    let sign = if ns < 0 { "-" } else { "" };
    let text = match size {
        0 => "0s".to_owned(),
        1..1_000 => format!("{size}ns"),
        1_000..1_000_000 => format!("{}µs", fraction(size / 1_000, size % 1_000, 3)),
        1_000_000..1_000_000_000 => format!("{}ms", fraction(size / 1_000_000, size % 1_000_000, 6)),
        _ => {
            let (minutes, rest) = (size / 60_000_000_000, size % 60_000_000_000);
            let seconds = fraction(rest / 1_000_000_000, rest % 1_000_000_000, 9);
            match (minutes / 60, minutes % 60) {
                (0, 0) => format!("{seconds}s"),
                (0, minutes) => format!("{minutes}m{seconds}s"),
                (hours, minutes) => format!("{hours}h{minutes}m{seconds}s"),
            }
        }
    };
    format!("{sign}{text}")
}

/// "5 seconds", "About a minute", "3 hours": how `docker ps` words a time span of `seconds`.
pub fn human(seconds: i64) -> String {
    let minutes = seconds / 60;
    // Rounded to the nearest hour.
    let hours = (seconds + 1800) / 3600;
    match () {
        () if seconds < 1 => "Less than a second".into(),
        () if seconds == 1 => "1 second".into(),
        () if seconds < 60 => format!("{seconds} seconds"),
        () if minutes == 1 => "About a minute".into(),
        () if minutes < 60 => format!("{minutes} minutes"),
        () if hours == 1 => "About an hour".into(),
        () if hours < 48 => format!("{hours} hours"),
        () if hours < 24 * 7 * 2 => format!("{} days", hours / 24),
        () if hours < 24 * 30 * 2 => format!("{} weeks", hours / 24 / 7),
        () if hours < 24 * 365 * 2 => format!("{} months", hours / 24 / 30),
        () => format!("{} years", hours / 24 / 365),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_print_and_parse() {
        assert_eq!(rfc3339(0), "0001-01-01T00:00:00Z");
        assert_eq!(rfc3339(1_700_000_000_120_000_000), "2023-11-14T22:13:20.12Z");
        assert_eq!(rfc3339_fixed(1_700_000_000_120_000_000), "2023-11-14T22:13:20.120000000Z");
        assert_eq!(from_rfc3339("2023-11-14T22:13:20.12Z"), Some(1_700_000_000_120_000_000));
        assert_eq!(parse_point("1700000000.12"), Ok(Some(1_700_000_000_120_000_000)));
        assert_eq!(parse_point(""), Ok(None));
        assert_eq!(parse_point("zz").expect_err("zz").message, "failed to parse value as time or duration: \"zz\"");
        assert_eq!(go_duration("1h1.5s"), Some(3_601_500_000_000));
        assert_eq!(go_duration("10"), None);
        for text in ["0s", "1ns", "1.5µs", "20ms", "1.5s", "1m0s", "2h0m0.25s", "-3s"] {
            assert_eq!(go_duration_text(go_duration(text).expect(text)), text);
        }
    }

    #[test]
    fn spans_read_as_in_docker_ps() {
        for (seconds, text) in [
            (0, "Less than a second"),
            (1, "1 second"),
            (59, "59 seconds"),
            (60, "About a minute"),
            (150, "2 minutes"),
            (3600, "About an hour"),
            (3 * 3600, "3 hours"),
            (86400 * 3, "3 days"),
        ] {
            assert_eq!(human(seconds), text);
        }
    }

    proptest::proptest! {
        #[test]
        fn no_time_panics(text in "\\PC{0,30}", ns: i64) {
            let _ = parse_point(&text);
            let _ = go_duration(&text);
            let _ = rfc3339(ns);
            let _ = human(ns);
            let _ = go_duration_text(ns);
        }
    }
}
